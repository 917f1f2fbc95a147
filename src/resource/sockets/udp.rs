//! UDP sockets, both directions.
//!
//! A queued datagram is sent again from the address that it came from, wherever that is
//! (IP_TRANSPARENT), by a passing socket, or by the socket of the image that has this very address.

use super::queue::{self, Guard};
use super::{
    Collector, Taken, address, common, damaged, fresh, multicast, of, options, wait_until,
};
use crate::error::{Context, Result};
use crate::image::bytes::Bytes;
use crate::image::sockets::{OptionValue, Udp, UdpMessage};
use crate::sys::socket::{self, Along};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const SO_MEMINFO: i32 = 55;
const IP_TRANSPARENT: (i32, i32) = (libc::SOL_IP, 19);
const IPV6_TRANSPARENT: (i32, i32) = (libc::SOL_IPV6, 75);

pub(super) fn collect(
    taken: &Taken,
    v6: bool,
    collector: &mut Collector<'_>,
    guard: &mut Guard<'_>,
) -> Result<()> {
    let fd = taken.fd.as_fd();
    let who = taken.who.as_str();
    let diag = collector.udp.iter().find(|one| one.inode == taken.inode);
    let shutdown = diag.map_or(0, |diag| diag.shutdown);
    let common = common(taken, false, collector.refusals)?;
    if common.options.get("UDP_CORK") == Some(&OptionValue::Number(1))
        && socket::out_queue(fd).unwrap_or(0) > 0
    {
        collector.refusals.add(
            "E-UDP-CORK",
            who,
            "a datagram is being put together (UDP_CORK), and the kernel shows it to nobody",
            "let the program send it first",
        );
    }
    let messages = match queue::error_first(taken, collector.refusals)? {
        true => Vec::new(),
        false => queue::datagrams(fd, false, guard)?,
    };
    let local = socket::local_address(fd).doing(|| "asking a socket for its address")?;
    let remote = socket::peer_address(fd).doing(|| "asking a socket for its peer")?;
    let queue = messages
        .into_iter()
        .filter_map(|message| {
            Some(UdpMessage {
                from: address::parse(&message.from)?,
                data: Bytes(message.data),
            })
        })
        .collect();
    collector.udp_found.push(Udp {
        common,
        v6,
        local: address::bound(&local),
        remote: remote.as_deref().and_then(address::parse),
        shut_read: shutdown & 1 != 0,
        shut_write: shutdown & 2 != 0,
        groups: multicast::collect(fd, v6, &collector.groups)?,
        queue,
    });
    Ok(())
}

fn domain(v6: bool) -> i32 {
    if v6 { libc::AF_INET6 } else { libc::AF_INET }
}

fn new_socket(v6: bool, record: &Udp) -> Result<OwnedFd> {
    fresh(
        domain(v6),
        libc::SOCK_DGRAM,
        libc::IPPROTO_UDP,
        &record.common,
    )
}

fn reuse(fd: &OwnedFd) -> Result<()> {
    socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
        .doing(|| "setting SO_REUSEADDR")
}

/// Makes and binds all sockets.
pub(super) fn make(records: &[Udp], fds: &mut BTreeMap<u64, OwnedFd>) -> Result<()> {
    for record in records {
        let id = record.common.id;
        let fd = new_socket(record.v6, record)?;
        reuse(&fd)?;
        if let Some(local) = record.local {
            socket::bind(&fd, &address::raw(local, record.v6)?)
                .doing(|| format!("binding UDP socket {id} to {local}"))?;
        }
        fds.insert(id, fd);
    }
    Ok(())
}

/// Fills the queues, connects, joins groups, shuts down, sets options.
pub(super) fn finish(records: &[Udp], fds: &BTreeMap<u64, OwnedFd>) -> Result<()> {
    for record in records {
        fill(record, records, fds)
            .doing(|| format!("filling the queue of UDP socket {}", record.common.id))?;
    }
    for record in records {
        let id = record.common.id;
        settle(record, of(fds, id)?).doing(|| format!("finishing UDP socket {id}"))?;
    }
    Ok(())
}

fn fill(record: &Udp, records: &[Udp], fds: &BTreeMap<u64, OwnedFd>) -> Result<()> {
    if record.queue.is_empty() {
        return Ok(());
    }
    let fd = of(fds, record.common.id)?;
    let Some(local) = record.local.map(address::plain) else {
        return Err(damaged("a UDP socket without address has a queue"));
    };
    // Two kilobytes each, for the kernel counts its own overhead.
    let total = record.queue.iter().map(|m| 2 * m.data.0.len() + 2048).sum();
    options::roomy_buffers(fd, &record.common.options, total)?;
    // Everything comes in by the loopback device now. Only where it must be: a socket that is
    // (re)bound to a device leaves the group that shares its port.
    if record.common.options.get("SO_BINDTODEVICE") != Some(&OptionValue::Text(String::new())) {
        socket::set_option(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"\0")
            .doing(|| "taking a socket from its device")?;
    }
    let shared = records
        .iter()
        .filter(|one| one.local.map(|local| local.port()) == Some(local.port()))
        .count()
        > 1;
    for message in &record.queue {
        if shared {
            // Of several sockets on one port the connected one receives.
            socket::connect(fd, &address::raw(message.from, record.v6)?)
                .doing(|| "connecting in passing")?;
        }
        let before = queued(fd)?;
        let sent = send(record, local, message, records, fds);
        if shared {
            let mut nobody = (libc::AF_UNSPEC as u16).to_ne_bytes().to_vec();
            nobody.resize(16, 0);
            socket::connect(fd, &nobody).doing(|| "disconnecting")?;
        }
        sent?;
        wait_until("a queued datagram to arrive", || Ok(queued(fd)? > before))?;
    }
    Ok(())
}

/// Bytes that the queue takes, with the kernel's overhead.
fn queued(fd: BorrowedFd<'_>) -> Result<u32> {
    let raw = socket::option(fd, libc::SOL_SOCKET, SO_MEMINFO, &[], 36)
        .doing(|| "asking for the length of a queue")?;
    Ok(match raw[..] {
        [a, b, c, d, ..] => u32::from_ne_bytes([a, b, c, d]),
        _ => 0,
    })
}

fn send(
    record: &Udp,
    local: SocketAddr,
    message: &UdpMessage,
    records: &[Udp],
    fds: &BTreeMap<u64, OwnedFd>,
) -> Result<()> {
    let from = address::plain(message.from);
    let to = match (local.ip().is_unspecified(), from.ip()) {
        (false, _) => local.ip(),
        // Where it was sent to the kernel does not say; nor does it tell the program later on.
        (true, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
        (true, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
    };
    let to = SocketAddr::new(to, local.port());
    let itself =
        record.local.map(|local| local.port()) == Some(from.port()) && from.ip() == to.ip();
    let live = match itself {
        true => Some(record),
        false => records
            .iter()
            .find(|one| one.local.map(address::plain) == Some(from)),
    };
    let passing;
    let (sender, v6) = match live {
        Some(live) => (of(fds, live.common.id)?, live.v6),
        None => {
            let v6 = from.is_ipv6();
            passing = socket::socket(domain(v6), libc::SOCK_DGRAM, libc::IPPROTO_UDP)
                .doing(|| "making a passing socket")?;
            reuse(&passing)?;
            let (level, option) = if v6 { IPV6_TRANSPARENT } else { IP_TRANSPARENT };
            socket::set_int_option(&passing, level, option, 1)
                .doing(|| "setting IP_TRANSPARENT")?;
            // The scope of a link-local address is still in the record.
            socket::bind(&passing, &address::raw(message.from, v6)?)
                .doing(|| format!("binding a passing socket to {from}"))?;
            (passing.as_fd(), v6)
        }
    };
    options::roomy_buffers(
        sender,
        &options::Options::new(),
        message.data.0.len() + 2048,
    )?;
    let to = address::raw(to, v6)?;
    let sent = socket::send(sender, &message.data.0, Some(&to), &Along::default(), 0);
    sent.map(drop)
        .doing(|| format!("sending a datagram again from {from}"))
}

fn settle(record: &Udp, fd: BorrowedFd<'_>) -> Result<()> {
    if let Some(remote) = record.remote {
        socket::connect(fd, &address::raw(remote, record.v6)?)
            .doing(|| format!("connecting to {remote}"))?;
    }
    multicast::rebuild(fd, &record.groups)?;
    let how = match (record.shut_read, record.shut_write) {
        (true, true) => Some(libc::SHUT_RDWR),
        (true, false) => Some(libc::SHUT_RD),
        (false, true) => Some(libc::SHUT_WR),
        (false, false) => None,
    };
    if let Some(how) = how {
        match socket::shutdown(fd, how) {
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(errno) => return Err(errno).doing(|| "shutting down"),
        }
    }
    options::set_late(fd, &record.common.options)
}
