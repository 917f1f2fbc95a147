//! Netlink sockets whose queue is empty, both directions. Conversations with the kernel that leave
//! state there (packet queues, audit) are refused.

use super::{Collector, Taken, common, damaged, fresh, of, options};
use crate::error::{Context, Result};
use crate::image::sockets::Netlink;
use crate::sys::socket;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

const NETLINK: i32 = 270;
const ADD_MEMBERSHIP: i32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;

/// NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_KOBJECT_UEVENT, NETLINK_GENERIC.
const PLAIN: [i32; 4] = [0, 4, 15, 16];
const GENERIC: i32 = 16;

fn words(raw: &[u8]) -> Vec<u32> {
    raw.chunks_exact(4)
        .map(|w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]]))
        .collect()
}

pub(super) fn collect(
    taken: &Taken,
    kind: i32,
    protocol: i32,
    collector: &mut Collector<'_>,
) -> Result<()> {
    let fd = taken.fd.as_fd();
    let who = taken.who.as_str();
    // The list comes as bits, group 1 first.
    let bits = words(
        &socket::option(fd, NETLINK, LIST_MEMBERSHIPS, &[], 256)
            .doing(|| "listing netlink groups")?,
    );
    let groups: Vec<u32> = (0..bits.len() as u32 * 32)
        .filter(|n| bits[*n as usize / 32] >> (n % 32) & 1 != 0)
        .map(|n| n + 1)
        .collect();
    if !PLAIN.contains(&protocol) || protocol == GENERIC && !groups.is_empty() {
        collector.refusals.add(
            "E-NETLINK",
            who,
            format!(
                "a netlink socket (protocol {protocol}, {} groups) of a kind whose state in the \
                 kernel cannot be read",
                groups.len()
            ),
            "close it",
        );
        return Ok(());
    }
    let busy = socket::ready(fd).doing(|| "polling a socket")? & (libc::POLLIN | libc::POLLERR);
    if busy != 0 {
        collector.refusals.add(
            "E-NETLINK-QUEUE",
            who,
            "messages of the kernel wait on a netlink socket",
            "let the program read them first",
        );
        return Ok(());
    }
    let local = socket::local_address(fd).doing(|| "asking a socket for its address")?;
    let remote = socket::peer_address(fd).doing(|| "asking a socket for its peer")?;
    let remote = words(
        remote
            .as_deref()
            .and_then(|raw| raw.get(4..))
            .unwrap_or(&[]),
    );
    let record = Netlink {
        common: common(taken, false, collector.refusals)?,
        protocol: protocol as u32,
        datagram: kind == libc::SOCK_DGRAM,
        port: words(local.get(4..).unwrap_or_default())
            .first()
            .copied()
            .unwrap_or(0),
        groups,
        remote: match remote[..] {
            [port, mask] if (port, mask) != (0, 0) => Some((port, mask)),
            _ => None,
        },
    };
    collector.netlink_found.push(record);
    Ok(())
}

fn address(port: u32, groups: u32) -> Vec<u8> {
    let mut raw = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
    raw.resize(4, 0);
    raw.extend(port.to_ne_bytes());
    raw.extend(groups.to_ne_bytes());
    raw
}

pub(super) fn make(records: &[Netlink], fds: &mut BTreeMap<u64, OwnedFd>) -> Result<()> {
    for record in records {
        let fd = one(record).doing(|| format!("rebuilding netlink socket {}", record.common.id))?;
        fds.insert(record.common.id, fd);
    }
    Ok(())
}

fn one(record: &Netlink) -> Result<OwnedFd> {
    let kind = match record.datagram {
        true => libc::SOCK_DGRAM,
        false => libc::SOCK_RAW,
    };
    let protocol = i32::try_from(record.protocol).map_err(|_| damaged("a netlink protocol"))?;
    let fd = fresh(libc::AF_NETLINK, kind, protocol, &record.common)?;
    if record.port != 0 {
        socket::bind(&fd, &address(record.port, 0))
            .doing(|| format!("binding to port {}", record.port))?;
    }
    for group in &record.groups {
        socket::set_option(&fd, NETLINK, ADD_MEMBERSHIP, &group.to_ne_bytes())
            .doing(|| format!("joining netlink group {group}"))?;
    }
    if let Some((port, groups)) = record.remote {
        socket::connect(&fd, &address(port, groups)).doing(|| "connecting a netlink socket")?;
    }
    Ok(fd)
}

pub(super) fn finish(records: &[Netlink], fds: &BTreeMap<u64, OwnedFd>) -> Result<()> {
    for record in records {
        options::set_late(of(fds, record.common.id)?, &record.common.options)
            .doing(|| format!("setting options of netlink socket {}", record.common.id))?;
    }
    Ok(())
}
