//! sock_diag(7): what the kernel tells about the sockets of the calling thread's network namespace.

use crate::error::{Context, Error, Result};
use crate::sys::socket;
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_DONE: u16 = 3;
const NLMSG_ERROR: u16 = 2;
const REQUEST_DUMP: u16 = 0x301;

/// A Unix socket: `struct unix_diag_msg` and its attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unix {
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub kind: i32,
    /// TCP_ESTABLISHED (1), TCP_CLOSE (7) or TCP_LISTEN (10).
    pub state: u8,
    /// 0 for a connection that was not accepted yet, or whose last descriptor is closed.
    pub inode: u64,
    /// The name: a path, or a NUL and an abstract name. Empty for none.
    pub name: Vec<u8>,
    /// Inode and device (as the kernel encodes it) of the socket file.
    pub file: Option<(u64, u32)>,
    /// Inode of the other side; 0 when that is closed or not accepted yet.
    pub peer: Option<u64>,
    /// Listening: the inodes of those who connected and were not accepted yet, oldest first.
    pub pending: Vec<u64>,
    /// Listening: pending connections; else bytes that can be read.
    pub receive_queue: u32,
    /// Listening: the backlog; else bytes (with overhead) sent and not read by others.
    pub send_queue: u32,
    /// Bit 0: no more receiving; bit 1: no more sending.
    pub shutdown: u8,
}

/// An internet socket: `struct inet_diag_msg` and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inet {
    /// AF_INET or AF_INET6.
    pub family: i32,
    /// The kernel's TCP state number (1 ESTABLISHED … 12 NEW_SYN_RECV).
    pub state: u8,
    /// Local end.
    pub local: SocketAddr,
    /// Remote end.
    pub remote: SocketAddr,
    /// 0 for a connection without a descriptor (not accepted yet, orphaned, TIME_WAIT).
    pub inode: u64,
    /// Listening: pending connections; else unread bytes.
    pub receive_queue: u32,
    /// Listening: the backlog; else unacknowledged bytes.
    pub send_queue: u32,
    /// Bit 0: no more receiving; bit 1: no more sending.
    pub shutdown: u8,
}

/// All Unix sockets of this network namespace.
pub fn unix() -> Result<Vec<Unix>> {
    let mut request = vec![0u8; 24];
    request[0] = libc::AF_UNIX as u8;
    request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    // UDIAG_SHOW_NAME | VFS | PEER | ICONS | RQLEN
    request[12..16].copy_from_slice(&0x1fu32.to_ne_bytes());
    request[16..24].fill(0xff);
    dump(&request)
        .doing(|| "asking for the Unix sockets of a network namespace")
        .map(|all| all.iter().filter_map(|message| unix_one(message)).collect())
}

/// All sockets of this network namespace of `family` (AF_INET, AF_INET6) and `protocol`
/// (IPPROTO_TCP, IPPROTO_UDP). An empty answer where the kernel does not know that protocol's diag.
pub fn inet(family: i32, protocol: i32) -> Result<Vec<Inet>> {
    let mut request = vec![0u8; 56];
    request[0] = family as u8;
    request[1] = protocol as u8;
    request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    request[48..56].fill(0xff);
    match dump(&request) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
        other => other
            .doing(|| "asking for the internet sockets of a network namespace")
            .map(|all| all.iter().filter_map(|message| inet_one(message)).collect()),
    }
}

/// Sends one dump request and gathers the payloads of the answer.
fn dump(request: &[u8]) -> Result<Vec<Vec<u8>>> {
    let netlink: OwnedFd =
        socket::socket(libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_SOCK_DIAG)?;
    let mut message = Vec::with_capacity(16 + request.len());
    message.extend((16 + request.len() as u32).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST_DUMP.to_ne_bytes());
    message.extend([0u8; 8]);
    message.extend(request);
    let kernel = [libc::AF_NETLINK as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    socket::send(&netlink, &message, Some(&kernel), &Default::default(), 0)?;
    let mut all = Vec::new();
    loop {
        // The kernel fills the first part of a dump while we send and each next one while we
        // receive, so there is never anything to wait for.
        let part = socket::receive(&netlink, 0, 1 << 16)?
            .ok_or_else(|| Error::bug("sock_diag stopped in the middle of an answer"))?;
        let mut rest = part.data.as_slice();
        while let Some((kind, payload, next)) = split(rest) {
            match kind {
                NLMSG_DONE => return Ok(all),
                NLMSG_ERROR => {
                    let errno = i32::from_ne_bytes(bytes(payload, 0).unwrap_or_default());
                    return Err(Errno::from_raw(-errno).into());
                }
                _ => all.push(payload.to_vec()),
            }
            rest = next;
        }
    }
}

/// The first netlink message of `data`: its type, its payload, what follows.
fn split(data: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(bytes(data, 0)?) as usize;
    let kind = u16::from_ne_bytes(bytes(data, 4)?);
    let payload = data.get(16..len)?;
    let next = data.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, payload, next))
}

fn bytes<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at + N)?.try_into().ok()
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    bytes(data, at).map(u32::from_ne_bytes)
}

/// The attributes after a message's fixed part: type and payload.
fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes(data, 0)?));
        let kind = u16::from_ne_bytes(bytes(data, 2)?);
        let payload = data.get(4..len)?;
        data = data.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

fn unix_one(message: &[u8]) -> Option<Unix> {
    let mut one = Unix {
        kind: i32::from(*message.get(1)?),
        state: *message.get(2)?,
        inode: u64::from(u32_at(message, 4)?),
        ..Unix::default()
    };
    for (kind, value) in attributes(message.get(16..)?) {
        match kind {
            0 => one.name = value.to_vec(),
            1 => one.file = Some((u64::from(u32_at(value, 0)?), u32_at(value, 4)?)),
            2 => one.peer = Some(u64::from(u32_at(value, 0)?)),
            3 => {
                one.pending = value
                    .chunks_exact(4)
                    .filter_map(|inode| u32_at(inode, 0).map(u64::from))
                    .collect();
            }
            4 => (one.receive_queue, one.send_queue) = (u32_at(value, 0)?, u32_at(value, 4)?),
            6 => one.shutdown = *value.first()?,
            _ => {}
        }
    }
    Some(one)
}

fn inet_one(message: &[u8]) -> Option<Inet> {
    let family = i32::from(*message.first()?);
    let port = |at| bytes(message, at).map(u16::from_be_bytes);
    let address = |at| -> Option<IpAddr> {
        Some(if family == libc::AF_INET {
            IpAddr::V4(Ipv4Addr::from(bytes::<4>(message, at)?))
        } else {
            IpAddr::V6(Ipv6Addr::from(bytes::<16>(message, at)?))
        })
    };
    let shutdown = attributes(message.get(72..)?)
        .find(|(kind, _)| *kind == 8)
        .and_then(|(_, value)| value.first().copied());
    Some(Inet {
        family,
        state: *message.get(1)?,
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: SocketAddr::new(address(24)?, port(6)?),
        receive_queue: u32_at(message, 56)?,
        send_queue: u32_at(message, 60)?,
        inode: u64::from(u32_at(message, 68)?),
        shutdown: shutdown.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_pair_name_each_other() {
        let (one, two) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        let (a, b) = (socket::inode(&one).unwrap(), socket::inode(&two).unwrap());
        let all = unix().unwrap();
        let found = all.iter().find(|unix| unix.inode == a).unwrap();
        assert_eq!((found.peer, found.state, found.kind), (Some(b), 1, 1));
    }

    #[test]
    fn a_listening_socket_shows_its_backlog() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = socket::inode(&listener).unwrap();
        let all = inet(libc::AF_INET, libc::IPPROTO_TCP).unwrap();
        let found = all.iter().find(|inet| inet.inode == inode).unwrap();
        assert_eq!(found.local, listener.local_addr().unwrap());
        assert_eq!((found.state, found.receive_queue), (10, 0));
        assert!(found.send_queue > 0);
    }

    #[test]
    fn broken_answers_do_not_panic() {
        for len in 0..80 {
            let data = vec![0xffu8; len];
            let _ = (split(&data), unix_one(&data), inet_one(&data));
        }
    }
}
