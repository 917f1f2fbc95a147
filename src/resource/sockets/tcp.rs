//! TCP: capture. The way back is in `tcp_build.rs`.
//!
//! A connection with both ends inside is not taken out of the kernel: it is made anew, between the
//! same addresses, and what lies in its queues is sent again. So nothing has to be set on the old
//! one, unless bytes are still on their way. Those only the sender's queue holds, and only
//! TCP_REPAIR shows them: both ends are put in repair mode for the few microseconds that it takes,
//! and a guard takes them out of it should this process be killed ([`crate::sys::undo`]).

use super::tcp_outside::{self, Outside};
use super::{Collector, Taken, address, common};
use crate::error::{Context, Error, Result};
use crate::image::bytes::Bytes;
use crate::image::sockets::{Tcp, TcpState};
use crate::sys::sock_diag::Inet;
use crate::sys::socket;
use crate::sys::tcp_repair::{self, Queue};
use crate::sys::undo::{self, Undo};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
pub(super) const FIN_WAIT1: u8 = 4;
pub(super) const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;
pub(super) const CLOSE_WAIT: u8 = 8;
pub(super) const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
pub(super) const CLOSING: u8 = 11;

/// What capture found out beside the record.
pub(super) struct Found {
    pub record: Tcp,
    pub who: String,
    pub fd: OwnedFd,
    pub inode: u64,
    /// The kernel's state number.
    pub state: u8,
    /// Both ends, mapped addresses as IPv4.
    pub ends: Option<(SocketAddr, SocketAddr)>,
}

pub(super) fn fin_sent(state: u8) -> bool {
    matches!(state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING)
}

pub(super) fn collect(taken: &Taken, v6: bool, collector: &mut Collector<'_>) -> Result<()> {
    let fd = taken.fd.as_fd();
    let who = taken.who.as_str();
    let state = tcp_repair::info(fd).doing(|| "reading TCP_INFO")?.state;
    let poll = socket::ready(fd).doing(|| "polling a socket")?;
    let diag = collector.tcp.iter().find(|one| one.inode == taken.inode);
    let shutdown = diag.map_or(0, |diag| diag.shutdown);
    let backlog = diag.map_or(0, |diag| diag.send_queue);
    let connected = !matches!(state, CLOSE | LISTEN);
    let local = socket::local_address(fd).doing(|| "asking a socket for its address")?;
    let remote = socket::peer_address(fd).doing(|| "asking a socket for its peer")?;
    if connected && poll & libc::POLLPRI != 0 {
        collector.refusals.add(
            "E-TCP-URGENT",
            who,
            "urgent data (MSG_OOB) waits in the queue",
            "let the program read it first",
        );
    }
    if matches!(state, SYN_SENT | SYN_RECV) {
        collector.refusals.add(
            "E-TCP-CONNECTING",
            who,
            "the connection is just being made",
            "try again when it is made, or has failed",
        );
        return Ok(());
    }
    if diag.is_none() && state == LISTEN {
        collector.refusals.add(
            "E-SOCKET-NETNS",
            who,
            "the TCP socket belongs to another network namespace than the container's",
            "close it, or let the container use its own network namespace",
        );
        return Ok(());
    }
    let over = poll & (libc::POLLRDHUP | libc::POLLERR) != 0;
    let local = address::bound(&local);
    let remote = remote.as_deref().and_then(address::parse);
    let ends = local.zip(remote).filter(|_| connected);
    let record = Tcp {
        common: common(taken, connected || over, collector.refusals)?,
        v6,
        local,
        state: match (state, ends) {
            (LISTEN, _) => TcpState::Listening {
                backlog,
                pending: Vec::new(),
            },
            (_, Some((_, remote))) => TcpState::Inside {
                remote,
                peer: None,
                pending: false,
            },
            _ if over => TcpState::Over {
                reset: poll & libc::POLLERR != 0,
            },
            _ => TcpState::Unconnected,
        },
        shut_read: connected && shutdown & 1 != 0,
        shut_write: connected && shutdown & 2 != 0,
        receive_queue: Bytes::default(),
        send_queue: Bytes::default(),
    };
    collector.tcp_found.push(Found {
        record,
        who: who.to_owned(),
        fd: taken.fd.try_clone().doing(|| "duplicating a socket")?,
        inode: taken.inode,
        state,
        ends: ends.map(|(local, remote)| (address::plain(local), address::plain(remote))),
    });
    Ok(())
}

/// The other end, where this namespace has it.
enum Other {
    /// Index of it among what was found.
    Found(usize),
    /// It waits to be accepted by the listening socket with that index.
    Waits(usize, Inet),
    /// Closed by its process; the kernel may still keep it.
    Closed(Option<Inet>),
    Outside,
}

fn other_end(one: &Found, all: &[Found], collector: &Collector<'_>) -> Other {
    let Some((local, remote)) = one.ends else {
        return Other::Outside;
    };
    let diag = collector.tcp.iter().find(|diag| {
        diag.state != LISTEN
            && address::plain(diag.local) == remote
            && address::plain(diag.remote) == local
    });
    let inside = remote.ip().is_loopback() || collector.addresses.contains(&remote.ip());
    match diag {
        None if inside => Other::Closed(None),
        None => Other::Outside,
        Some(diag) if diag.inode != 0 => all
            .iter()
            .position(|other| other.inode == diag.inode)
            .map_or(Other::Outside, Other::Found),
        Some(diag) if matches!(diag.state, ESTABLISHED | CLOSE_WAIT) => {
            listener_of(diag, all).map_or(Other::Outside, |at| Other::Waits(at, diag.clone()))
        }
        Some(diag) => Other::Closed(Some(diag.clone())),
    }
}

/// Which listening socket took a connection: the one bound to its very address before one bound to
/// all addresses.
fn listener_of(waiting: &Inet, all: &[Found]) -> Option<usize> {
    let local = address::plain(waiting.local);
    let fits = |wildcard: bool| {
        all.iter().position(|one| {
            one.state == LISTEN
                && one.record.local.is_some_and(|bound| {
                    let bound = address::plain(bound);
                    bound.port() == local.port()
                        && match wildcard {
                            true => bound.ip().is_unspecified(),
                            false => bound.ip() == local.ip(),
                        }
                })
        })
    };
    fits(false).or_else(|| fits(true))
}

/// Finds the other ends and reads the queues, once all sockets are known.
pub(super) fn resolve(collector: &mut Collector<'_>) -> Result<(Vec<Tcp>, Outside)> {
    let mut found = std::mem::take(&mut collector.tcp_found);
    let mut pairs = Vec::new();
    let mut outside = Vec::new();
    for at in 0..found.len() {
        if found[at].ends.is_none() {
            continue;
        }
        match other_end(&found[at], &found, collector) {
            Other::Found(other) => {
                let id = found[other].record.common.id;
                set_peer(&mut found[at], Some(id), false);
                pairs.push((at, other));
            }
            Other::Waits(listener, diag) => {
                waits(&mut found, at, listener, &diag, collector)?;
            }
            Other::Closed(diag) => closed(&mut found[at], diag, collector)?,
            Other::Outside => outside.push(at),
        }
    }
    strangers_that_wait(&mut found, collector);
    let (refused, outside) = tcp_outside::collect(&mut found, &outside, collector)?;
    read_pairs(&mut found, &pairs)?;
    let mut records: Vec<Tcp> = found
        .into_iter()
        .enumerate()
        .filter_map(|(at, one)| (!refused.contains(&at)).then_some(one.record))
        .collect();
    records.sort_by_key(|record| record.common.id);
    Ok((records, outside))
}

fn set_peer(one: &mut Found, id: Option<u64>, waits: bool) {
    if let TcpState::Inside { peer, pending, .. } = &mut one.record.state {
        (*peer, *pending) = (id, waits);
    }
}

pub(super) fn receive_queue(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let len = socket::in_queue(fd).doing(|| "asking for the length of a queue")?;
    without_peek_offset(fd, || {
        tcp_repair::contents(fd, usize::try_from(len).unwrap_or(0))
            .doing(|| "looking into a receive queue")
    })
}

/// SO_PEEK_OFF on TCP is as rare as it is new (Linux 6.9).
fn without_peek_offset<T>(fd: BorrowedFd<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);
    match socket::int_option(fd, level, option) {
        Ok(offset) if offset >= 0 => {
            let undo = Undo::arm(&[(fd, level, option, offset)])?;
            socket::set_int_option(fd, level, option, -1).doing(|| "setting SO_PEEK_OFF")?;
            let result = work();
            socket::set_int_option(fd, level, option, offset).doing(|| "setting SO_PEEK_OFF")?;
            undo.disarm();
            result
        }
        _ => work(),
    }
}

/// `found[at]` is a client that was not accepted yet.
fn waits(
    found: &mut [Found],
    at: usize,
    listener: usize,
    diag: &Inet,
    collector: &mut Collector<'_>,
) -> Result<()> {
    set_peer(&mut found[at], None, true);
    found[at].record.receive_queue = Bytes(receive_queue(found[at].fd.as_fd())?);
    let unacknowledged = socket::out_queue(&found[at].fd).unwrap_or(0) > 0;
    let client = found[at].record.local;
    wait_at(found, listener, client, diag, unacknowledged, collector);
    Ok(())
}

fn wait_at(
    found: &mut [Found],
    listener: usize,
    client: Option<SocketAddr>,
    diag: &Inet,
    unacknowledged: bool,
    collector: &mut Collector<'_>,
) {
    // The FIN counts as one.
    let fin = u32::from(diag.state == CLOSE_WAIT);
    if diag.receive_queue > fin || (unacknowledged && fin == 0) {
        collector.refusals.add(
            "E-TCP-PENDING-DATA",
            found[listener].who.as_str(),
            format!(
                "{} has sent data before its connection was accepted, and the kernel shows that to \
                 nobody",
                diag.remote
            ),
            "try again when the program has accepted the connection",
        );
    }
    if let (TcpState::Listening { pending, .. }, Some(client)) =
        (&mut found[listener].record.state, client)
    {
        pending.push(client);
    }
}

/// Connections that wait to be accepted and whose other end no socket of the container is.
fn strangers_that_wait(found: &mut [Found], collector: &mut Collector<'_>) {
    let waiting: Vec<Inet> = collector
        .tcp
        .iter()
        .filter(|diag| diag.inode == 0 && matches!(diag.state, ESTABLISHED | CLOSE_WAIT))
        .filter(|diag| {
            !found.iter().any(|one| {
                one.ends == Some((address::plain(diag.remote), address::plain(diag.local)))
            })
        })
        .cloned()
        .collect();
    for diag in waiting {
        let Some(listener) = listener_of(&diag, found) else {
            continue;
        };
        let remote = address::plain(diag.remote).ip();
        if remote.is_loopback() || collector.addresses.contains(&remote) {
            wait_at(found, listener, Some(diag.remote), &diag, false, collector);
        } else if !collector.choices.tcp_close {
            collector.refusals.add(
                "E-TCP-PENDING-OUTSIDE",
                found[listener].who.as_str(),
                format!(
                    "a connection from {}, outside the container, waits to be accepted, and only the \
                     program could accept it",
                    diag.remote
                ),
                "try again when the program has accepted the connection, or drop it with --tcp-close",
            );
        }
    }
}

/// The process at the other end has closed it.
fn closed(one: &mut Found, diag: Option<Inet>, collector: &mut Collector<'_>) -> Result<()> {
    if let Some(diag) = diag
        && matches!(one.state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2)
        && diag.send_queue > 1
    {
        collector.refusals.add(
            "E-TCP-ORPHAN-DATA",
            one.who.as_str(),
            "the other end has sent data, closed its socket, and the data has not arrived yet",
            "try again when this end has read more",
        );
    }
    one.record.receive_queue = Bytes(receive_queue(one.fd.as_fd())?);
    Ok(())
}

/// Reads both queues of every connection inside. `pairs` names each connection from both sides.
fn read_pairs(found: &mut [Found], pairs: &[(usize, usize)]) -> Result<()> {
    let mut moving = Vec::new();
    for &(receiver, sender) in pairs {
        // First the sender, then the receiver: what was acknowledged lies in the receiver's queue.
        let on_the_way =
            socket::out_queue(&found[sender].fd).doing(|| "asking for a send queue")?;
        if on_the_way > 0 && sender != receiver {
            moving.push((receiver, sender));
        } else {
            found[receiver].record.receive_queue =
                Bytes(receive_queue(found[receiver].fd.as_fd())?);
        }
    }
    if moving.is_empty() {
        return Ok(());
    }
    let reuse = |at: usize| {
        socket::int_option(&found[at].fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)
            .doing(|| "reading SO_REUSEADDR")
    };
    let mut involved = BTreeMap::new();
    for at in moving.iter().flat_map(|&(a, b)| [a, b]) {
        involved.insert(at, reuse(at)?);
    }
    let back: Vec<undo::Option<'_>> = involved
        .iter()
        .flat_map(|(&at, &reuse)| undo_of(found[at].fd.as_fd(), reuse))
        .collect();
    let undo = Undo::arm(&back)?;
    let mut read = Vec::new();
    for &(receiver, sender) in &moving {
        let (to, from) = (&found[receiver], &found[sender]);
        let one = without_peek_offset(to.fd.as_fd(), || {
            read_moving(
                (to.fd.as_fd(), involved[&receiver]),
                (from.fd.as_fd(), involved[&sender]),
                fin_sent(from.state),
            )
        })
        .doing(|| format!("reading what is on its way to {}", to.who))?;
        read.push(one);
    }
    undo.disarm();
    for (&(receiver, sender), (arrived, on_the_way)) in moving.iter().zip(read) {
        found[receiver].record.receive_queue = Bytes(arrived);
        found[sender].record.send_queue = Bytes(on_the_way);
    }
    Ok(())
}

/// What takes a socket out of repair mode.
pub(super) fn undo_of(fd: BorrowedFd<'_>, reuse: i32) -> [undo::Option<'_>; 2] {
    [
        (
            fd,
            libc::SOL_TCP,
            tcp_repair::REPAIR,
            tcp_repair::OFF_SILENT,
        ),
        (fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse),
    ]
}

/// Puts both ends in repair mode; reads what has arrived, and what was sent and has not.
fn read_moving(
    receiver: (BorrowedFd<'_>, i32),
    sender: (BorrowedFd<'_>, i32),
    fin: bool,
) -> Result<(Vec<u8>, Vec<u8>)> {
    let (to, from) = (receiver.0, sender.0);
    let read = || -> Result<(Vec<u8>, Vec<u8>)> {
        tcp_repair::begin(to)?;
        tcp_repair::begin(from)?;
        tcp_repair::choose(to, Queue::Receive)?;
        tcp_repair::choose(from, Queue::Send)?;
        // The kernel goes on delivering under us: once more, then, if something has arrived.
        for _ in 0..100 {
            let before = tcp_repair::sequence(to)?;
            let room = usize::try_from(socket::out_queue(from)?).unwrap_or(0);
            let sent = tcp_repair::contents(from, room)?;
            let end = tcp_repair::sequence(from)?.wrapping_sub(u32::from(fin));
            let room = usize::try_from(socket::in_queue(to)?).unwrap_or(0);
            let arrived = tcp_repair::contents(to, room)?;
            if tcp_repair::sequence(to)? != before {
                continue;
            }
            let missing = usize::try_from(end.wrapping_sub(before) as i32).unwrap_or(0);
            let from = sent
                .len()
                .checked_sub(missing)
                .ok_or_else(|| Error::bug("a send queue holds less than what has not arrived"))?;
            return Ok((arrived, sent[from..].to_vec()));
        }
        Err(Error::bug("a receive queue would not stand still"))
    };
    let result = read();
    let back = tcp_repair::end(from, false, sender.1)
        .and(tcp_repair::end(to, false, receiver.1))
        .doing(|| "leaving repair mode");
    match (result, back) {
        (Ok(read), Ok(())) => Ok(read),
        (Ok(_), Err(error)) => Err(error),
        (Err(error), back) => Err(error.and_cleanup(back)),
    }
}
