//! Multicast memberships. The kernel lists the groups of a namespace (/proc/net/igmp, igmp6) and not
//! who joined them, but it tells a socket the source filter of any group that this one has joined.

use super::address;
use crate::error::{Context, Result};
use crate::image::sockets::Membership;
use crate::sys::socket;
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

/// A group that some socket of the namespace has joined, by device number and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    index: u32,
    device: String,
    group: IpAddr,
}

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const STORAGE: usize = 128;
const FILTER: usize = 8 + STORAGE + 8;
const EXCLUDE: u32 = 0;
/// More sources than the kernel allows by default (net.ipv4.igmp_max_msf is 10).
const SOURCES: usize = 256;

/// The groups of the calling thread's network namespace.
pub(super) fn groups() -> Result<Vec<Group>> {
    let read = |name: &str| {
        let path = format!("/proc/thread-self/net/{name}");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            // IPv6 may not be there at all.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error).doing(|| format!("reading {path}")),
        }
    };
    let mut all = parse_igmp(&read("igmp")?);
    all.extend(parse_igmp6(&read("igmp6")?));
    Ok(all)
}

fn parse_igmp(text: &str) -> Vec<Group> {
    let mut all = Vec::new();
    let mut device = None;
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if !line.starts_with(char::is_whitespace) {
            let name = words
                .next()
                .map(|name| name.trim_end_matches(':').to_owned());
            device = first.parse::<u32>().ok().zip(name);
        } else if let (Some((index, device)), Ok(group)) =
            (device.clone(), u32::from_str_radix(first, 16))
        {
            // Printed as the number that the bytes in network order are on this machine.
            let group = IpAddr::from(Ipv4Addr::from(group.to_ne_bytes()));
            all.push(Group {
                index,
                device,
                group,
            });
        }
    }
    all
}

fn parse_igmp6(text: &str) -> Vec<Group> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let index = words.next()?.parse().ok()?;
            let device = words.next()?.to_owned();
            let group = u128::from_str_radix(words.next()?, 16).ok()?;
            let group = Ipv6Addr::from(group).into();
            Some(Group {
                index,
                device,
                group,
            })
        })
        .collect()
}

fn storage(ip: IpAddr) -> Result<Vec<u8>> {
    let mut raw = address::raw(SocketAddr::new(ip, 0), ip.is_ipv6())?;
    raw.resize(STORAGE, 0);
    Ok(raw)
}

/// `struct group_req`, also the beginning of `struct group_filter`.
fn request(index: u32, group: IpAddr) -> Result<Vec<u8>> {
    let mut raw = index.to_ne_bytes().to_vec();
    raw.resize(8, 0);
    raw.extend(storage(group)?);
    Ok(raw)
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv6() {
        libc::SOL_IPV6
    } else {
        libc::SOL_IP
    }
}

/// Which of `groups` this socket has joined.
pub(super) fn collect(fd: BorrowedFd<'_>, v6: bool, groups: &[Group]) -> Result<Vec<Membership>> {
    let mut joined = Vec::new();
    for one in groups {
        if one.group.is_ipv6() && !v6 {
            continue;
        }
        let mut filter = request(one.index, one.group)?;
        filter.extend(0u32.to_ne_bytes());
        filter.extend((SOURCES as u32).to_ne_bytes());
        let room = FILTER + SOURCES * STORAGE;
        let answer = match socket::option(fd, level(one.group), MCAST_MSFILTER, &filter, room) {
            Ok(answer) => answer,
            Err(Errno::EADDRNOTAVAIL) => continue,
            Err(errno) => {
                return Err(errno).doing(|| format!("asking for membership in {}", one.group));
            }
        };
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?))
        };
        let count = word(FILTER - 4).unwrap_or(0) as usize;
        joined.push(Membership {
            group: one.group,
            device: one.device.clone(),
            exclude: word(FILTER - 8) == Some(EXCLUDE),
            sources: answer
                .get(FILTER..)
                .unwrap_or_default()
                .chunks_exact(STORAGE)
                .take(count)
                .filter_map(|raw| Some(address::parse(raw)?.ip()))
                .collect(),
        });
    }
    joined.sort_by(|a, b| (a.group, &a.device).cmp(&(b.group, &b.device)));
    Ok(joined)
}

/// Joins again.
pub(super) fn rebuild(fd: BorrowedFd<'_>, groups: &[Membership]) -> Result<()> {
    for one in groups {
        join(fd, one).doing(|| format!("joining the group {} on {}", one.group, one.device))?;
    }
    Ok(())
}

fn join(fd: BorrowedFd<'_>, one: &Membership) -> Result<()> {
    let index = nix::net::if_::if_nametoindex(one.device.as_str())?;
    let request = request(index, one.group)?;
    socket::set_option(fd, level(one.group), MCAST_JOIN_GROUP, &request)?;
    if one.exclude && one.sources.is_empty() {
        return Ok(());
    }
    let mut filter = request;
    filter.extend(u32::from(!one.exclude).to_ne_bytes());
    filter.extend((one.sources.len() as u32).to_ne_bytes());
    for source in &one.sources {
        filter.extend(storage(*source)?);
    }
    Ok(socket::set_option(
        fd,
        level(one.group),
        MCAST_MSFILTER,
        &filter,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_of_groups_are_read() {
        let four = parse_igmp(
            "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
             1\tlo        :     1      V3\n\
             \t\t\t\t010000E0     1 0:00000000\t\t0\n",
        );
        let expected = Group {
            index: 1,
            device: "lo".to_owned(),
            group: "224.0.0.1".parse().unwrap(),
        };
        assert_eq!(four, [expected]);
        let six =
            parse_igmp6("4    eth0  ff020000000000000000000000000001  1 0000000C 0\nrubbish\n");
        assert_eq!(six[0].group, "ff02::1".parse::<IpAddr>().unwrap());
        assert_eq!((six.len(), six[0].index), (1, 4));
    }
}
