//! TCP connections that lead outside the namespace: refused, dropped, or taken out of the kernel and
//! put into another by TCP_REPAIR.
//!
//! While it is being captured, and until it is let go, such a connection has a socket filter that
//! drops whatever arrives: the other side is told of nothing that the image does not hold, and sends
//! it again later. Killed processes would close their sockets with a FIN; in repair mode
//! ([`Outside::silence`]) they say nothing. A guard undoes both should this process die first.

use super::tcp::{Found, fin_sent, undo_of};
use super::{Collector, address, damaged, fresh, of, options, wait_until};
use crate::error::{Context, Error, Exit, Result};
use crate::image::bytes::Bytes;
use crate::image::sockets::{Sockets, Tcp, TcpRepair, TcpState};
use crate::sys::socket::{self, Along};
use crate::sys::tcp_repair::{self, Queue};
use crate::sys::undo::Undo;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const SOL: i32 = libc::SOL_SOCKET;
/// "Return 0": nothing of the packet is let through.
const DROP_ALL: [u8; 8] = {
    let [low, high] = (6u16).to_ne_bytes();
    [low, high, 0, 0, 0, 0, 0, 0]
};

/// Connections that lead outside, as they were captured: nothing arrives on them until this is
/// dropped, or they are [gone](Self::gone).
#[derive(Debug, Default)]
pub struct Outside {
    /// The connections, and the SO_REUSEADDR of each.
    sockets: Vec<(OwnedFd, i32)>,
    undo: Option<Undo>,
}

impl Outside {
    /// To be called right before the processes are killed: the connections will end without a word.
    /// The other side keeps them open, for the restored container.
    pub fn silence(&self) -> Result<()> {
        for (fd, _) in &self.sockets {
            tcp_repair::begin(fd).doing(|| "silencing a connection that leads outside")?;
        }
        Ok(())
    }

    /// The processes are dead: there is nothing to undo any more.
    pub fn gone(mut self) {
        self.sockets.clear();
        if let Some(undo) = self.undo.take() {
            undo.disarm();
        }
    }

    fn arm(sockets: Vec<(OwnedFd, i32)>) -> Result<Self> {
        let back: Vec<_> = sockets
            .iter()
            .flat_map(|(fd, reuse)| {
                let filter = (fd.as_fd(), SOL, libc::SO_DETACH_FILTER, 0);
                undo_of(fd.as_fd(), *reuse).into_iter().chain([filter])
            })
            .collect();
        let undo = Some(Undo::arm(&back)?);
        Ok(Self { sockets, undo })
    }
}

// Dropping the `Undo` makes its child put everything back, and waits for it.

/// Captures the connections at `outside`; returns the indices of those refused.
pub(super) fn collect(
    found: &mut [Found],
    outside: &[usize],
    collector: &mut Collector<'_>,
) -> Result<(Vec<usize>, Outside)> {
    let mut kept = Vec::new();
    let mut refused = Vec::new();
    for &at in outside {
        let one = &mut found[at];
        if collector.choices.tcp_established {
            if has_filter(one, collector) {
                refused.push(at);
            } else {
                kept.push(at);
            }
        } else if collector.choices.tcp_close {
            close(&mut one.record);
        } else {
            refuse(one, collector);
            refused.push(at);
        }
    }
    if kept.is_empty() {
        return Ok((refused, Outside::default()));
    }
    let mut sockets = Vec::new();
    for &at in &kept {
        let fd = &found[at].fd;
        let reuse =
            socket::int_option(fd, SOL, libc::SO_REUSEADDR).doing(|| "reading SO_REUSEADDR")?;
        sockets.push((fd.try_clone().doing(|| "duplicating a socket")?, reuse));
    }
    let outside = Outside::arm(sockets)?;
    for (&at, (fd, reuse)) in kept.iter().zip(&outside.sockets) {
        take(&mut found[at], fd.as_fd(), *reuse)
            .doing(|| format!("taking the connection of {}", found[at].who))?;
    }
    Ok((refused, outside))
}

/// A filter of the program's own would have to make room for the one that drops all.
fn has_filter(one: &Found, collector: &mut Collector<'_>) -> bool {
    let filter = one.record.common.options.contains_key("SO_ATTACH_FILTER");
    if filter {
        collector.refusals.add(
            "E-TCP-FILTER",
            one.who.as_str(),
            "a connection that leads outside has a socket filter",
            "detach the filter, or drop the connection with --tcp-close",
        );
    }
    filter
}

fn refuse(one: &Found, collector: &mut Collector<'_>) {
    let ends = one.ends.map_or_else(String::new, |(local, remote)| {
        format!("from {local} to {remote} ")
    });
    collector.refusals.add(
        "E-TCP-OUTSIDE",
        one.who.as_str(),
        format!("the connection {ends}leads outside the container"),
        "close it, keep it with --tcp-established, or drop it with --tcp-close",
    );
}

fn close(record: &mut Tcp) {
    record.state = TcpState::Over { reset: false };
    record.local = None;
    (record.shut_read, record.shut_write) = (false, false);
    record.receive_queue.0.clear();
    record.send_queue.0.clear();
}

/// The ends of the connections of an image that lead outside: local, remote.
pub fn outside(sockets: &Sockets) -> Vec<(SocketAddr, SocketAddr)> {
    let ends = |one: &Tcp| match &one.state {
        TcpState::Outside { remote, .. } => Some((one.local?, *remote)),
        _ => None,
    };
    sockets.tcp.iter().filter_map(ends).collect()
}

/// Makes closed connections of those that lead outside (`--tcp-close` at restore).
pub fn close_outside(sockets: &mut Sockets) {
    for one in &mut sockets.tcp {
        if matches!(one.state, TcpState::Outside { .. }) {
            close(one);
        }
    }
}

fn take(one: &mut Found, fd: BorrowedFd<'_>, reuse: i32) -> Result<()> {
    socket::attach_filter(fd, &DROP_ALL).doing(|| "locking the connection")?;
    let info = tcp_repair::info(fd).doing(|| "reading TCP_INFO")?;
    let taken = repair(fd, info);
    let back = tcp_repair::end(fd, false, reuse).doing(|| "leaving repair mode");
    let (repair, receive_queue, send_queue) = match (taken, back) {
        (Ok(taken), Ok(())) => taken,
        (Ok(_), Err(error)) => return Err(error),
        (Err(error), back) => return Err(error.and_cleanup(back)),
    };
    let TcpState::Inside { remote, .. } = one.record.state else {
        return Err(Error::bug("a connection without remote end"));
    };
    one.record.state = TcpState::Outside { remote, repair };
    one.record.receive_queue = Bytes(receive_queue);
    one.record.send_queue = Bytes(send_queue);
    Ok(())
}

fn repair(fd: BorrowedFd<'_>, info: tcp_repair::Info) -> Result<(TcpRepair, Vec<u8>, Vec<u8>)> {
    use super::tcp::{CLOSE_WAIT, CLOSING, FIN_WAIT2, LAST_ACK};
    let room = |len: i32| usize::try_from(len).unwrap_or(0);
    tcp_repair::begin(fd)?;
    tcp_repair::choose(fd, Queue::Send)?;
    let send_sequence = tcp_repair::sequence(fd)?;
    let send_queue = tcp_repair::contents(fd, room(socket::out_queue(fd)?))?;
    tcp_repair::choose(fd, Queue::Receive)?;
    let receive_sequence = tcp_repair::sequence(fd)?;
    let receive_queue = tcp_repair::contents(fd, room(socket::in_queue(fd)?))?;
    let fin = fin_sent(info.state);
    let repair = TcpRepair {
        send_sequence,
        receive_sequence,
        unsent: info.unsent.min(send_queue.len() as u32),
        fin_sent: fin,
        fin_acknowledged: info.state == FIN_WAIT2,
        fin_received: matches!(info.state, CLOSE_WAIT | LAST_ACK | CLOSING),
        mss: socket::int_option(fd, libc::SOL_TCP, libc::TCP_MAXSEG)? as u32,
        window_scale: (info.options & 4 != 0).then_some(info.window_scale),
        sack: info.options & 2 != 0,
        timestamp: match info.options & 1 {
            0 => None,
            _ => Some(socket::int_option(fd, libc::SOL_TCP, libc::TCP_TIMESTAMP)? as u32),
        },
        window: tcp_repair::window(fd)?,
    };
    Ok((repair, receive_queue, send_queue))
}

/// Puts the connection into this kernel; it stays in repair mode until [`finish`].
pub(super) fn make(record: &Tcp, remote: SocketAddr, repair: &TcpRepair) -> Result<OwnedFd> {
    let domain = if record.v6 {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    let fd = fresh(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP, &record.common)?;
    let local = record
        .local
        .ok_or_else(|| damaged("a connection has no address"))?;
    options::roomy_buffers(
        fd.as_fd(),
        &record.common.options,
        2 * (record.receive_queue.0.len() + record.send_queue.0.len()),
    )?;
    tcp_repair::begin(&fd).doing(|| "entering repair mode")?;
    let before = |sequence: u32, fin: bool, queue: &Bytes| {
        sequence
            .wrapping_sub(u32::from(fin))
            .wrapping_sub(queue.0.len() as u32)
    };
    for (queue, sequence) in [
        (
            Queue::Send,
            before(repair.send_sequence, repair.fin_sent, &record.send_queue),
        ),
        (
            Queue::Receive,
            before(
                repair.receive_sequence,
                repair.fin_received,
                &record.receive_queue,
            ),
        ),
    ] {
        tcp_repair::choose(&fd, queue)?;
        tcp_repair::set_sequence(&fd, sequence).doing(|| "setting a sequence number")?;
    }
    socket::bind(&fd, &address::raw(local, record.v6)?)
        .doing(|| format!("binding a connection to {local}"))?;
    socket::connect(&fd, &address::raw(remote, record.v6)?)
        .doing(|| format!("connecting to {remote} in repair mode"))?;
    let mut agreed = vec![(2, repair.mss)];
    if let Some((theirs, ours)) = repair.window_scale {
        agreed.push((3, u32::from(theirs) | u32::from(ours) << 16));
    }
    if repair.sack {
        agreed.push((4, 0));
    }
    if let Some(timestamp) = repair.timestamp {
        agreed.push((8, 0));
        socket::set_int_option(&fd, libc::SOL_TCP, libc::TCP_TIMESTAMP, timestamp as i32)
            .doing(|| "setting the timestamp clock")?;
    }
    tcp_repair::set_agreed(&fd, &agreed).doing(|| "setting what was agreed on")?;
    Ok(fd)
}

/// Fills the queues and leaves repair mode: from here on the connection lives.
pub(super) fn finish(
    record: &Tcp,
    remote: SocketAddr,
    repair: &TcpRepair,
    fds: &BTreeMap<u64, OwnedFd>,
) -> Result<()> {
    let fd = of(fds, record.common.id)?;
    let sent = record
        .send_queue
        .0
        .len()
        .checked_sub(repair.unsent as usize)
        .ok_or_else(|| damaged("more was unsent than is in the send queue"))?;
    let (sent, unsent) = record.send_queue.0.split_at(sent);
    for (queue, data) in [
        (Queue::Receive, record.receive_queue.0.as_slice()),
        (Queue::Send, sent),
    ] {
        tcp_repair::choose(fd, queue)?;
        push(fd, data).doing(|| format!("filling the {queue:?} queue"))?;
    }
    if !repair.fin_received {
        // With the FIN still to come the receive window ends one earlier than it did; the kernel
        // works it out anew.
        tcp_repair::set_window(fd, repair.window).doing(|| "setting the window")?;
    }
    tcp_repair::end(fd, true, 1).doing(|| "leaving repair mode")?;
    push(fd, unsent).doing(|| "sending what had not been sent")?;
    if repair.fin_received {
        fin_from(record, remote, repair)?;
        wait_until("the end of a connection", || {
            Ok(socket::ready(fd)? & libc::POLLRDHUP != 0)
        })?;
    }
    if repair.fin_sent {
        socket::shutdown(fd, libc::SHUT_WR).doing(|| "sending FIN again")?;
    }
    if record.shut_read && !repair.fin_received {
        socket::shutdown(fd, libc::SHUT_RD).doing(|| "shutting down")?;
    }
    Ok(())
}

/// In repair mode a send puts the bytes where they belong, in pieces that the kernel has memory for.
fn push(fd: BorrowedFd<'_>, mut data: &[u8]) -> Result<()> {
    let mut piece = 64 << 10;
    while !data.is_empty() {
        let some = &data[..data.len().min(piece)];
        match socket::send(fd, some, None, &Along::default(), 0) {
            Ok(sent) => data = &data[sent..],
            Err(Errno::ENOMEM | Errno::EAGAIN) if piece > 1024 => piece /= 2,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The other side's FIN cannot be put into a queue: it is sent to ourselves as a packet, as it came.
fn fin_from(record: &Tcp, remote: SocketAddr, repair: &TcpRepair) -> Result<()> {
    let local = record
        .local
        .map(address::plain)
        .ok_or_else(|| damaged("a connection has no address"))?;
    let remote = address::plain(remote);
    let segment = segment(
        remote,
        local,
        repair.receive_sequence.wrapping_sub(1),
        repair
            .send_sequence
            .wrapping_sub(u32::from(repair.fin_sent))
            .wrapping_sub(record.send_queue.0.len() as u32),
        repair.window_scale.map_or(0, |(theirs, _)| theirs),
        repair.window[1],
    );
    let v6 = remote.is_ipv6();
    let (domain, level, option, header) = match (remote.ip(), local.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = (20 + segment.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 6, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            (libc::AF_INET, libc::SOL_IP, libc::IP_HDRINCL, header)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = (segment.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, length[0], length[1], 6, 64];
            header.extend(from.octets());
            header.extend(to.octets());
            (libc::AF_INET6, libc::SOL_IPV6, libc::IPV6_HDRINCL, header)
        }
        _ => return Err(damaged("a connection between two families")),
    };
    let raw = socket::socket(domain, libc::SOCK_RAW, libc::IPPROTO_RAW)
        .doing(|| "making a raw socket")?;
    socket::set_int_option(&raw, level, option, 1).doing(|| "asking for own headers")?;
    let to = address::raw(SocketAddr::new(local.ip(), 0), v6)?;
    let packet = [header, segment].concat();
    socket::send(&raw, &packet, Some(&to), &Along::default(), 0)
        .map(drop)
        .doing(|| "sending a FIN on behalf of the other side")
}

/// A TCP segment without data, FIN and ACK set.
fn segment(
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    acknowledged: u32,
    scale: u8,
    window: u32,
) -> Vec<u8> {
    let window = u16::try_from(window >> scale.min(14)).unwrap_or(u16::MAX);
    let mut segment = from.port().to_be_bytes().to_vec();
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([0x50, 0x11]);
    segment.extend(window.to_be_bytes());
    segment.extend([0; 4]);
    let mut summed = Vec::new();
    for ip in [from.ip(), to.ip()] {
        match ip {
            IpAddr::V4(ip) => summed.extend(ip.octets()),
            IpAddr::V6(ip) => summed.extend(ip.octets()),
        }
    }
    summed.extend([0, 6]);
    summed.extend((segment.len() as u16).to_be_bytes());
    summed.extend(&segment);
    let mut sum: u32 = summed
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    segment
}

/// Refuses an image with connections that lead outside, unless they are to be kept.
pub fn check_kept(sockets: &Sockets, tcp_established: bool) -> Result<()> {
    match outside(sockets).first() {
        Some((local, remote)) if !tcp_established => Err(Error::coded(
            "E-TCP-OUTSIDE",
            Exit::Refused,
            format!("the image holds a connection from {local} to {remote}, outside the container"),
            "keep it with --tcp-established, or drop it with --tcp-close",
        )),
        _ => Ok(()),
    }
}
