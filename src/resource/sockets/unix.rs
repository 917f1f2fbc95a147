//! Unix sockets: capture. The way back is in `unix_build.rs`.
//!
//! UNIX_DIAG knows who is connected to whom, who waits to be accepted and which queue holds
//! something; the duplicate knows its name, options and messages. A connection that was not accepted
//! yet has no descriptor on the listening side, so what was already sent into it cannot be read.

use super::queue::{self, Guard};
use super::{Collector, Taken, common};
use crate::error::{Context, Result};
use crate::image::bytes::{Bytes, NameBytes};
use crate::image::sockets::{Credentials, Unix, UnixFile, UnixKind, UnixMessage, UnixState};
use crate::sys::socket::{self, Control, Message, RawAddress};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

/// The name in a raw `sockaddr_un`: `None` for an unnamed socket.
pub(super) fn name_of(address: &RawAddress) -> Option<NameBytes> {
    let path = address.get(2..).filter(|path| !path.is_empty())?;
    if path[0] == 0 {
        return Some(NameBytes(path.to_vec()));
    }
    let end = path.iter().position(|&b| b == 0).unwrap_or(path.len());
    Some(NameBytes(path[..end].to_vec()))
}

/// What capture found out beside the record.
pub(super) struct Found {
    record: Unix,
    who: String,
    /// Inode of the other side, as UNIX_DIAG knows it.
    peer: Option<u64>,
    pending: Vec<u64>,
    /// Something that it sent was not read yet.
    sent: bool,
    peer_name: Option<NameBytes>,
}

pub(super) fn collect(
    taken: &Taken,
    collector: &mut Collector<'_>,
    guard: &mut Guard<'_>,
) -> Result<()> {
    let fd = taken.fd.as_fd();
    let who = taken.who.as_str();
    let Some(diag) = collector.unix.get(&taken.inode).cloned() else {
        collector.refusals.add(
            "E-SOCKET-NETNS",
            who,
            "the Unix socket belongs to another network namespace than the container's",
            "close it, or let the container use its own network namespace",
        );
        return Ok(());
    };
    let poll = socket::ready(fd).doing(|| "polling a socket")?;
    let kind = match diag.kind {
        libc::SOCK_STREAM => UnixKind::Stream,
        libc::SOCK_DGRAM => UnixKind::Datagram,
        _ => UnixKind::SeqPacket,
    };
    let listening = diag.state == LISTEN;
    let reset = poll & libc::POLLERR != 0;
    let connected = kind != UnixKind::Datagram && diag.state == ESTABLISHED;
    if poll & libc::POLLPRI != 0 {
        collector.refusals.add(
            "E-UNIX-OOB",
            who,
            "out-of-band data (MSG_OOB) waits in the queue",
            "let the program read it first",
        );
    }
    let messages = match kind {
        _ if listening => Vec::new(),
        UnixKind::Stream => queue::stream(fd, guard)?,
        _ if queue::error_first(taken, collector.refusals)? => Vec::new(),
        // Reading a sequenced-packet socket that has no connection fails.
        UnixKind::SeqPacket if !connected => Vec::new(),
        UnixKind::SeqPacket => queue::datagrams(fd, diag.shutdown & 1 != 0, guard)?,
        UnixKind::Datagram => queue::datagrams(fd, false, guard)?,
    };
    let mut queue = Vec::new();
    for message in messages {
        queue.push(unix_message(message, who, collector)?);
    }
    let local = socket::local_address(fd).doing(|| "asking a socket for its name")?;
    let peer_address = socket::peer_address(fd).doing(|| "asking a socket for its peer's name")?;
    let record = Unix {
        common: common(taken, connected, collector.refusals)?,
        kind,
        name: name_of(&local),
        file: file_of(taken, collector)?,
        state: match listening {
            true => UnixState::Listening {
                backlog: diag.send_queue,
                pending: Vec::new(),
            },
            false => UnixState::Unconnected,
        },
        shut_read: diag.shutdown & 1 != 0,
        shut_write: diag.shutdown & 2 != 0,
        reset,
        peer_credentials: peer_credentials(fd),
        queue,
    };
    collector.unix_found.push(Found {
        record,
        who: who.to_owned(),
        // A closed socket keeps its peer's number, a listening one has no peer.
        peer: diag.peer.filter(|_| !listening),
        pending: diag.pending,
        sent: !listening && diag.send_queue > 0,
        peer_name: peer_address.as_ref().and_then(name_of),
    });
    Ok(())
}

fn peer_credentials(fd: BorrowedFd<'_>) -> Option<Credentials> {
    let raw = socket::option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, &[], 12).ok()?;
    let word = |at: usize| -> Option<[u8; 4]> { raw.get(at..at + 4)?.try_into().ok() };
    let found = Credentials {
        host_pid: i32::from_ne_bytes(word(0)?),
        uid: u32::from_ne_bytes(word(4)?),
        gid: u32::from_ne_bytes(word(8)?),
    };
    (found.uid != u32::MAX).then_some(found)
}

fn unix_message(message: Message, who: &str, collector: &mut Collector<'_>) -> Result<UnixMessage> {
    let mut files = Vec::new();
    let mut credentials = None;
    for control in message.control {
        match control {
            Control::Rights(fds) => {
                for fd in fds {
                    files.push(collector.adopt(fd, who)?);
                }
            }
            Control::Credentials(host_pid, uid, gid) => {
                credentials = Some(Credentials { host_pid, uid, gid });
            }
            // SCM_SECURITY, SCM_PIDFD: made by the kernel anew for whoever reads.
            Control::Other(..) => {}
        }
    }
    Ok(UnixMessage {
        data: Bytes(message.data),
        from: name_of(&message.from),
        files,
        credentials,
    })
}

/// The socket file, its present place included; SIOCUNIXFILE opens it wherever it is.
fn file_of(taken: &Taken, collector: &mut Collector<'_>) -> Result<Option<UnixFile>> {
    let file = match socket::unix_file(&taken.fd) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno).doing(|| "opening a socket's file"),
    };
    let stat =
        nix::sys::stat::fstat(&file).doing(|| "reading the attributes of a socket's file")?;
    let path = match stat.st_nlink {
        0 => None,
        _ => {
            let link = format!("/proc/self/fd/{}", file.as_raw_fd());
            let path = std::fs::read_link(&link).doing(|| format!("reading {link}"))?;
            path.strip_prefix(collector.root_prefix)
                .ok()
                .map(|inside| NameBytes([b"/", inside.as_os_str().as_bytes()].concat()))
        }
    };
    let known = collector.unix_files.len() as u64;
    let identity = *collector
        .unix_files
        .entry((stat.st_dev, stat.st_ino))
        .or_insert(known);
    Ok(Some(UnixFile {
        path,
        identity,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
    }))
}

/// Turns inodes into ids once all sockets are known, and refuses what leads outside.
pub(super) fn resolve(collector: &mut Collector<'_>) -> Vec<Unix> {
    let found = std::mem::take(&mut collector.unix_found);
    let waiting: Vec<u64> = found.iter().flat_map(|one| one.pending.clone()).collect();
    if waiting.contains(&0) {
        let who = found.iter().find(|one| one.pending.contains(&0));
        refuse_pending(
            who.map_or("a listening socket", |one| one.who.as_str()),
            "a client of this listening socket has closed its end before being accepted, and what \
             it may have sent the kernel shows to nobody",
            collector,
        );
    }
    let mut records = Vec::new();
    for mut one in found {
        let inode = collector
            .ids
            .iter()
            .find_map(|(inode, id)| (*id == one.record.common.id).then_some(*inode));
        if let UnixState::Listening { backlog, .. } = one.record.state {
            let pending: Vec<Option<u64>> = one
                .pending
                .iter()
                .map(|client| collector.ids.get(client).copied())
                .collect();
            if one
                .pending
                .iter()
                .zip(&pending)
                .any(|(inode, id)| *inode != 0 && id.is_none())
            {
                refuse_outside(&one, collector, "a client that waits to be accepted");
            }
            one.record.state = UnixState::Listening { backlog, pending };
        } else if let Some(peer) = one.peer {
            one.record.state = match collector.ids.get(&peer) {
                Some(&peer) => UnixState::Connected { peer },
                None if inode.is_some_and(|inode| waiting.contains(&inode)) => {
                    if one.sent {
                        refuse_pending(
                            &one.who,
                            "it has sent data before being accepted, and the kernel shows that to \
                             nobody",
                            collector,
                        );
                    }
                    UnixState::Pending
                }
                None if peer == 0 => UnixState::PeerGone {
                    peer_name: one.peer_name.clone(),
                },
                None => match one.peer_name.clone() {
                    Some(peer_name)
                        if one.record.kind == UnixKind::Datagram
                            && collector.choices.ext_unix_sk =>
                    {
                        UnixState::External { peer_name }
                    }
                    _ => {
                        refuse_outside(&one, collector, "its peer");
                        continue;
                    }
                },
            };
        }
        records.push(one.record);
    }
    records.sort_by_key(|record| record.common.id);
    records
}

/// The far end of a connection that waits to be accepted has no descriptor, and UNIX_DIAG leaves it
/// out: its queue cannot be read.
fn refuse_pending(who: &str, reason: &str, collector: &mut Collector<'_>) {
    collector.refusals.add(
        "E-UNIX-PENDING-DATA",
        who,
        reason,
        "try again when the program has accepted the connection",
    );
}

fn refuse_outside(one: &Found, collector: &mut Collector<'_>, what: &str) {
    let datagram = one.record.kind == UnixKind::Datagram;
    collector.refusals.add(
        "E-UNIX-PEER-OUTSIDE",
        one.who.as_str(),
        format!(
            "{what} ({}) is a socket outside the container",
            one.peer_name.as_ref().map_or_else(
                || "unnamed".to_owned(),
                |name| String::from_utf8_lossy(&name.0).into_owned()
            )
        ),
        if datagram {
            "allow it with --ext-unix-sk, or close the connection"
        } else {
            "close the connection"
        },
    );
}
