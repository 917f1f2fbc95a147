//! TCP: the way back.
//!
//! Connections inside come first, each through a passing listener at the old address: while it is
//! there, no other socket may listen on that port. Then sockets are bound and listen, then those
//! connect that waited to be accepted. SO_REUSEADDR is on for all of them until the end, when it is
//! set to what it was.

use super::tcp_outside;
use super::{PATIENCE, address, damaged, fresh, of, options, own, wait_until};
use crate::error::{Context, Error, Result};
use crate::image::sockets::{Common, Tcp, TcpState};
use crate::sys::socket::{self, Along};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Other ends that are closed, kept until what they had sent is sent again.
pub(super) type Ghosts = BTreeMap<u64, OwnedFd>;

fn new_socket(record: &Tcp) -> Result<OwnedFd> {
    tcp_socket(record.v6, &record.common)
}

fn tcp_socket(v6: bool, common: &Common) -> Result<OwnedFd> {
    let domain = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let fd = fresh(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP, common)?;
    set(&fd, libc::SO_REUSEADDR, 1)?;
    // connect(2) must not wait for ever, should a filter drop what it sends.
    let timeout: Vec<u8> = [PATIENCE as i64 / 1000, 0]
        .iter()
        .flat_map(|n| n.to_ne_bytes())
        .collect();
    socket::set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, &timeout)
        .doing(|| "setting a time limit")?;
    Ok(fd)
}

fn set(fd: &OwnedFd, option: i32, value: i32) -> Result<()> {
    socket::set_int_option(fd, libc::SOL_SOCKET, option, value).doing(|| "setting an option")
}

fn bind(fd: BorrowedFd<'_>, local: SocketAddr, v6: bool) -> Result<()> {
    let raw = address::raw(local, v6)?;
    socket::bind(fd, &raw).doing(|| format!("binding a TCP socket to {local}"))
}

fn connect(fd: BorrowedFd<'_>, remote: SocketAddr, v6: bool) -> Result<()> {
    let raw = address::raw(remote, v6)?;
    socket::connect(fd, &raw).doing(|| format!("connecting a TCP socket to {remote}"))
}

/// One side of a connection to make.
struct Side<'a> {
    v6: bool,
    local: SocketAddr,
    common: &'a Common,
    /// Bytes that will lie in its receive queue.
    receives: usize,
    /// Bytes that it will send.
    sends: usize,
}

/// Makes a connection; returns both ends, the one that connects first.
fn connection(client: &Side<'_>, server: &Side<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let passing = tcp_socket(server.v6, server.common)?;
    options::roomy_buffers(
        passing.as_fd(),
        &server.common.options,
        2 * (server.receives + server.sends),
    )?;
    bind(passing.as_fd(), server.local, server.v6)?;
    socket::listen(&passing, 1).doing(|| "listening in passing")?;
    let client_fd = tcp_socket(client.v6, client.common)?;
    options::roomy_buffers(
        client_fd.as_fd(),
        &client.common.options,
        2 * (client.receives + client.sends),
    )?;
    bind(client_fd.as_fd(), client.local, client.v6)?;
    let server_local = socket::local_address(&passing)
        .ok()
        .as_deref()
        .and_then(address::parse)
        .unwrap_or(server.local);
    connect(client_fd.as_fd(), server_local, client.v6)?;
    let server_fd = socket::accept(&passing).doing(|| "accepting a TCP connection")?;
    let peer = socket::peer_address(&server_fd).doing(|| "asking a socket for its peer")?;
    let expected = socket::local_address(&client_fd)
        .ok()
        .as_deref()
        .and_then(address::parse);
    if peer.as_deref().and_then(address::parse).map(address::plain) != expected.map(address::plain)
    {
        return Err(Error::bug("somebody else connected to a passing socket"));
    }
    own(server_fd.as_fd(), server.common)?;
    Ok((client_fd, server_fd))
}

fn side(record: &Tcp, local: SocketAddr) -> Side<'_> {
    Side {
        v6: record.v6,
        local,
        common: &record.common,
        receives: record.receive_queue.0.len(),
        sends: record.send_queue.0.len(),
    }
}

/// Options as they are by default, for an end that will be closed.
fn ghost_common() -> Common {
    Common {
        id: 0,
        uid: 0,
        gid: 0,
        options: BTreeMap::new(),
    }
}

struct Maker<'a> {
    records: BTreeMap<u64, &'a Tcp>,
    fds: &'a mut BTreeMap<u64, OwnedFd>,
    ghosts: Ghosts,
}

/// Makes all sockets and connections.
pub(super) fn make(records: &[Tcp], fds: &mut BTreeMap<u64, OwnedFd>) -> Result<Ghosts> {
    let mut maker = Maker {
        records: records.iter().map(|one| (one.common.id, one)).collect(),
        fds,
        ghosts: Ghosts::new(),
    };
    for stage in [Maker::connect, Maker::bind_and_listen, Maker::wait] {
        for record in records {
            stage(&mut maker, record)
                .doing(|| format!("rebuilding TCP socket {}", record.common.id))?;
        }
    }
    Ok(maker.ghosts)
}

impl Maker<'_> {
    fn connect(&mut self, record: &Tcp) -> Result<()> {
        let id = record.common.id;
        if self.fds.contains_key(&id) {
            return Ok(());
        }
        match &record.state {
            TcpState::Inside {
                peer: Some(peer), ..
            } => self.pair(record, *peer),
            TcpState::Inside {
                remote,
                peer: None,
                pending: false,
            } => self.with_ghost(record, local_of(record)?, *remote),
            TcpState::Outside { remote, repair } => {
                let fd = tcp_outside::make(record, *remote, repair)?;
                self.fds.insert(id, fd);
                Ok(())
            }
            TcpState::Over { .. } => {
                let any: IpAddr = match record.v6 {
                    true => Ipv6Addr::LOCALHOST.into(),
                    false => Ipv4Addr::LOCALHOST.into(),
                };
                let local = record.local.unwrap_or(SocketAddr::new(any, 0));
                self.with_ghost(record, local, SocketAddr::new(local.ip(), 0))
            }
            _ => Ok(()),
        }
    }

    fn pair(&mut self, record: &Tcp, peer: u64) -> Result<()> {
        let id = record.common.id;
        let local = local_of(record)?;
        if peer == id {
            let fd = new_socket(record)?;
            options::roomy_buffers(
                fd.as_fd(),
                &record.common.options,
                4 * record.receive_queue.0.len(),
            )?;
            bind(fd.as_fd(), local, record.v6)?;
            connect(fd.as_fd(), local, record.v6)?;
            self.fds.insert(id, fd);
            return Ok(());
        }
        let Some(other) = self.records.get(&peer).copied() else {
            return Err(damaged(format!(
                "the peer {peer} of socket {id} is missing"
            )));
        };
        if self.fds.contains_key(&peer) {
            return Err(damaged(format!("sockets {id} and {peer} are no pair")));
        }
        let (mut one, mut two) = (side(record, local), side(other, local_of(other)?));
        // What was on its way arrives now.
        one.receives += two.sends;
        two.receives += one.sends;
        let ports = listening_ports(&self.records);
        let (first, second) = match ports.contains(&local.port()) {
            true => {
                let (client, server) = connection(&two, &one)?;
                (server, client)
            }
            false => connection(&one, &two)?,
        };
        self.fds.insert(id, first);
        self.fds.insert(peer, second);
        Ok(())
    }

    fn with_ghost(&mut self, record: &Tcp, local: SocketAddr, remote: SocketAddr) -> Result<()> {
        let common = ghost_common();
        let ghost = Side {
            v6: remote.is_ipv6(),
            local: remote,
            common: &common,
            receives: 0,
            sends: record.receive_queue.0.len(),
        };
        let (fd, ghost) = connection(&side(record, local), &ghost)?;
        self.fds.insert(record.common.id, fd);
        self.ghosts.insert(record.common.id, ghost);
        Ok(())
    }

    fn bind_and_listen(&mut self, record: &Tcp) -> Result<()> {
        let pending = match &record.state {
            TcpState::Unconnected => None,
            TcpState::Listening { pending, .. } => Some(pending.len()),
            _ => return Ok(()),
        };
        let fd = new_socket(record)?;
        if pending.is_some() || record.local.is_some() {
            options::roomy_buffers(fd.as_fd(), &record.common.options, 0)?;
        }
        if let Some(local) = record.local {
            bind(fd.as_fd(), local, record.v6)?;
        }
        if let Some(pending) = pending {
            let room = i32::try_from(pending).unwrap_or(i32::MAX);
            socket::listen(&fd, room.max(1)).doing(|| "listening on a TCP socket")?;
        }
        self.fds.insert(record.common.id, fd);
        Ok(())
    }

    /// Connections that were not accepted yet; then the backlog as it was.
    fn wait(&mut self, record: &Tcp) -> Result<()> {
        let TcpState::Listening { backlog, pending } = &record.state else {
            return Ok(());
        };
        let listener_local = local_of(record)?;
        for remote in pending {
            let waiting = self.records.values().copied().find(|one| {
                matches!(one.state, TcpState::Inside { pending: true, .. })
                    && one.local.map(address::plain) == Some(address::plain(*remote))
            });
            match waiting {
                Some(client) => {
                    let TcpState::Inside { remote: to, .. } = &client.state else {
                        continue;
                    };
                    let fd = new_socket(client)?;
                    bind(fd.as_fd(), local_of(client)?, client.v6)?;
                    connect(fd.as_fd(), *to, client.v6)?;
                    self.fds.insert(client.common.id, fd);
                }
                None => {
                    let fd = tcp_socket(remote.is_ipv6(), &ghost_common())?;
                    bind(fd.as_fd(), *remote, remote.is_ipv6())?;
                    let ip = match listener_local.ip().is_unspecified() {
                        true => remote.ip(),
                        false => listener_local.ip(),
                    };
                    let to = SocketAddr::new(ip, listener_local.port());
                    connect(fd.as_fd(), to, remote.is_ipv6())?;
                }
            }
        }
        let backlog = i32::try_from(*backlog).unwrap_or(i32::MAX);
        socket::listen(of(self.fds, record.common.id)?, backlog).doing(|| "setting a backlog")
    }
}

fn local_of(record: &Tcp) -> Result<SocketAddr> {
    record
        .local
        .ok_or_else(|| damaged(format!("socket {} has no address", record.common.id)))
}

fn listening_ports(records: &BTreeMap<u64, &Tcp>) -> BTreeSet<u16> {
    records
        .values()
        .filter(|one| matches!(one.state, TcpState::Listening { .. }))
        .filter_map(|one| Some(one.local?.port()))
        .collect()
}

/// Fills the queues, closes and shuts down, sets options.
pub(super) fn finish(
    records: &[Tcp],
    fds: &BTreeMap<u64, OwnedFd>,
    mut ghosts: Ghosts,
) -> Result<()> {
    let by_id: BTreeMap<u64, &Tcp> = records.iter().map(|one| (one.common.id, one)).collect();
    for record in records {
        let id = record.common.id;
        fill(record, &by_id, fds, &ghosts)
            .doing(|| format!("filling the queue of TCP socket {id}"))?;
    }
    for record in records {
        let id = record.common.id;
        settle(record, &by_id, of(fds, id)?, ghosts.remove(&id))
            .doing(|| format!("finishing TCP socket {id}"))?;
    }
    for record in records {
        let id = record.common.id;
        let fd = of(fds, id)?;
        options::set_late(fd, &record.common.options)
            .doing(|| format!("setting options of TCP socket {id}"))?;
        if !record.common.options.contains_key("SO_SNDTIMEO") {
            return Err(damaged(format!("socket {id} lacks SO_SNDTIMEO")));
        }
    }
    Ok(())
}

fn fill(
    record: &Tcp,
    by_id: &BTreeMap<u64, &Tcp>,
    fds: &BTreeMap<u64, OwnedFd>,
    ghosts: &Ghosts,
) -> Result<()> {
    let id = record.common.id;
    let (sender, more): (BorrowedFd<'_>, &[u8]) = match &record.state {
        TcpState::Inside {
            peer: Some(peer), ..
        } => {
            let more = by_id.get(peer).map_or(&[][..], |peer| &peer.send_queue.0);
            (of(fds, *peer)?, more)
        }
        TcpState::Outside { remote, repair } => {
            return tcp_outside::finish(record, *remote, repair, fds);
        }
        _ => match ghosts.get(&id) {
            Some(ghost) => (ghost.as_fd(), &[]),
            None if record.receive_queue.0.is_empty() => return Ok(()),
            None => return Err(damaged(format!("socket {id} has a queue and no peer"))),
        },
    };
    for data in [record.receive_queue.0.as_slice(), more] {
        send_all(sender, data)?;
    }
    wait_until("queued data to arrive", || {
        let arrived = socket::in_queue(of(fds, id)?)?;
        Ok(usize::try_from(arrived).unwrap_or(0) >= record.receive_queue.0.len())
    })
}

fn send_all(fd: BorrowedFd<'_>, mut data: &[u8]) -> Result<()> {
    wait_until("room in a send queue", || {
        while !data.is_empty() {
            match socket::send(fd, data, None, &Along::default(), 0) {
                Ok(sent) => data = &data[sent..],
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(errno).doing(|| "sending what was queued"),
            }
        }
        Ok(true)
    })
}

fn settle(
    record: &Tcp,
    by_id: &BTreeMap<u64, &Tcp>,
    fd: BorrowedFd<'_>,
    ghost: Option<OwnedFd>,
) -> Result<()> {
    let peer_closes = match &record.state {
        TcpState::Inside {
            peer: Some(peer), ..
        } => by_id.get(peer).is_some_and(|peer| peer.shut_write),
        TcpState::Inside {
            peer: None,
            pending: false,
            ..
        } => true,
        _ => false,
    };
    if let Some(ghost) = ghost {
        close_ghost(record, fd, ghost)?;
        if let TcpState::Over { reset } = &record.state {
            return over(record, fd, *reset);
        }
    }
    let stop = |how| match socket::shutdown(fd, how) {
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(errno) => Err(errno).doing(|| "shutting down"),
    };
    if !matches!(record.state, TcpState::Inside { .. }) {
        return Ok(());
    }
    if record.shut_write {
        stop(libc::SHUT_WR)?;
    }
    if record.shut_read && !peer_closes {
        stop(libc::SHUT_RD)?;
    }
    Ok(())
}

fn close_ghost(record: &Tcp, fd: BorrowedFd<'_>, ghost: OwnedFd) -> Result<()> {
    if matches!(record.state, TcpState::Over { reset: true }) {
        let now: Vec<u8> = [1i32, 0].iter().flat_map(|n| n.to_ne_bytes()).collect();
        socket::set_option(&ghost, libc::SOL_SOCKET, libc::SO_LINGER, &now)
            .doing(|| "setting SO_LINGER")?;
    }
    drop(ghost);
    wait_until("the end of a connection", || {
        Ok(socket::ready(fd)? & libc::POLLRDHUP != 0)
    })
}

/// Closes this side as well, so that nothing is left but what read(2) and write(2) say about it.
fn over(record: &Tcp, fd: BorrowedFd<'_>, reset: bool) -> Result<()> {
    if reset {
        return Ok(());
    }
    let id = record.common.id;
    socket::shutdown(fd, libc::SHUT_WR).doing(|| format!("closing connection {id}"))?;
    wait_until("the end of a connection", || {
        Ok(socket::peer_address(fd)?.is_none())
    })
}
