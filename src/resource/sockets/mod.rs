//! Sockets: captured through duplicates while everything is stopped, rebuilt in a new namespace.
//!
//! A duplicate shares the socket with the container: capture sets nothing on it but SO_PEEK_OFF and,
//! for bytes that are still on their way, TCP_REPAIR; both are put back at once, and by a guard
//! process should this one be killed in between ([`crate::sys::undo`]).
//!
//! Rebuilding has two halves, because descriptors may be in flight: [`rebuild`] makes all sockets,
//! their names and connections; [`Rebuilt::finish`] fills the queues when every open file is there,
//! then shuts down what was shut down and sets the options.

mod address;
#[cfg(test)]
mod ground;
mod hold;
mod multicast;
mod netlink;
pub mod options;
#[cfg(test)]
mod outside_tests;
mod queue;
mod tcp;
mod tcp_build;
pub mod tcp_outside;
#[cfg(test)]
mod tcp_tests;
mod udp;
#[cfg(test)]
mod udp_tests;
mod unix;
mod unix_build;
#[cfg(test)]
mod unix_tests;

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::sockets::{Common, Netlink, Sockets, Udp};
use crate::sys::{ns, sock_diag, socket};
pub use hold::{Hold, hold, release};
use nix::sys::stat::{SFlag, fstat};
use queue::Guard;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
pub use tcp_outside::{Outside, check_kept, close_outside, outside};

/// A socket to capture.
#[derive(Debug)]
pub struct Taken {
    /// Id of the open file.
    pub id: u64,
    /// A duplicate.
    pub fd: OwnedFd,
    /// The socket's inode.
    pub inode: u64,
    /// For messages: `fd 3 of pid 7 (nginx)`.
    pub who: String,
}

/// What the caller allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Choices {
    /// Keep TCP connections that lead outside.
    pub tcp_established: bool,
    /// Drop TCP connections that lead outside.
    pub tcp_close: bool,
    /// Keep datagram sockets that are connected to a named Unix socket outside.
    pub ext_unix_sk: bool,
}

/// Where capture looks.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The container's network namespace.
    pub net: BorrowedFd<'a>,
    /// What paths in the container's mount namespace begin with, seen from that namespace's root:
    /// `/` after pivot_root(2).
    pub root_prefix: &'a Path,
}

/// Gives an open file in flight to whoever captures open files, and gets its id.
pub type Adopt<'a> = dyn FnMut(OwnedFd) -> Result<u64> + 'a;

struct Collector<'a> {
    choices: Choices,
    root_prefix: &'a Path,
    adopt: &'a mut Adopt<'a>,
    refusals: &'a mut Refusals,
    /// Socket inode → id of the open file.
    ids: BTreeMap<u64, u64>,
    /// Sockets that were found in flight and have to be captured as well.
    more: Vec<Taken>,
    /// The addresses of the namespace.
    addresses: HashSet<IpAddr>,
    tcp: Vec<sock_diag::Inet>,
    tcp_found: Vec<tcp::Found>,
    udp: Vec<sock_diag::Inet>,
    udp_found: Vec<Udp>,
    /// Multicast groups joined by anybody in the namespace.
    groups: Vec<multicast::Group>,
    netlink_found: Vec<Netlink>,
    unix: HashMap<u64, sock_diag::Unix>,
    unix_found: Vec<unix::Found>,
    unix_files: HashMap<(u64, u64), u64>,
}

impl Collector<'_> {
    /// The id of an open file in flight. A socket is captured here too, so that pairs of which one
    /// end travels stay pairs.
    fn adopt(&mut self, fd: OwnedFd, carrier: &str) -> Result<u64> {
        let stat = fstat(&fd).doing(|| "reading the attributes of a file in flight")?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
            return (self.adopt)(fd);
        }
        if let Some(id) = self.ids.get(&stat.st_ino) {
            return Ok(*id);
        }
        let copy = fd.try_clone().doing(|| "duplicating a socket in flight")?;
        let id = (self.adopt)(fd)?;
        self.ids.insert(stat.st_ino, id);
        self.more.push(Taken {
            id,
            fd: copy,
            inode: stat.st_ino,
            who: format!("a socket in flight to {carrier}"),
        });
        Ok(id)
    }
}

fn common(taken: &Taken, connected: bool, refusals: &mut Refusals) -> Result<Common> {
    let stat = fstat(&taken.fd).doing(|| "reading the attributes of a socket")?;
    Ok(Common {
        id: taken.id,
        uid: stat.st_uid,
        gid: stat.st_gid,
        options: options::collect(taken.fd.as_fd(), &taken.who, connected, refusals)?,
    })
}

/// What [`collect`] found.
#[derive(Debug)]
pub struct Captured {
    /// The records.
    pub sockets: Sockets,
    /// Connections that lead outside and are kept: to be held until the processes go on or are dead.
    pub outside: Outside,
}

/// Captures `sockets` while every process that holds them is stopped. Sockets in flight are captured
/// as well, under the ids that `adopt` gives them.
pub fn collect<'a>(
    place: Place<'a>,
    sockets: Vec<Taken>,
    choices: Choices,
    adopt: &'a mut Adopt<'a>,
    refusals: &'a mut Refusals,
) -> Result<Captured> {
    let (unix, tcp, udp, addresses, groups) = ns::inside(&[place.net], || {
        let both = |protocol| -> Result<Vec<sock_diag::Inet>> {
            let mut all = sock_diag::inet(libc::AF_INET, protocol)?;
            all.extend(sock_diag::inet(libc::AF_INET6, protocol)?);
            Ok(all)
        };
        Ok((
            sock_diag::unix()?,
            both(libc::IPPROTO_TCP)?,
            both(libc::IPPROTO_UDP)?,
            addresses()?,
            multicast::groups()?,
        ))
    })?;
    let mut collector = Collector {
        choices,
        root_prefix: place.root_prefix,
        adopt,
        refusals,
        ids: sockets.iter().map(|one| (one.inode, one.id)).collect(),
        more: sockets,
        addresses,
        tcp,
        tcp_found: Vec::new(),
        udp,
        udp_found: Vec::new(),
        groups,
        netlink_found: Vec::new(),
        unix: unix.into_iter().map(|one| (one.inode, one)).collect(),
        unix_found: Vec::new(),
        unix_files: HashMap::new(),
    };
    while !collector.more.is_empty() {
        let now = std::mem::take(&mut collector.more);
        let mut guard = Guard::new(now.iter().map(|one| one.fd.as_fd()));
        for taken in &now {
            one(taken, &mut collector, &mut guard)
                .doing(|| format!("capturing socket {}, {}", taken.inode, taken.who))?;
        }
        guard.disarm();
    }
    let (tcp, outside) = tcp::resolve(&mut collector)?;
    let mut all = Sockets {
        unix: unix::resolve(&mut collector),
        tcp,
        udp: collector.udp_found,
        netlink: collector.netlink_found,
    };
    all.udp.sort_by_key(|one| one.common.id);
    all.netlink.sort_by_key(|one| one.common.id);
    Ok(Captured {
        sockets: all,
        outside,
    })
}

/// The addresses of the calling thread's network namespace.
fn addresses() -> Result<HashSet<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs().doing(|| "listing network addresses")?;
    Ok(all
        .filter_map(|one| one.address)
        .filter_map(|address| {
            let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
        })
        .collect())
}

fn one(taken: &Taken, collector: &mut Collector<'_>, guard: &mut Guard<'_>) -> Result<()> {
    use libc::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX};
    use libc::{IPPROTO_TCP, IPPROTO_UDP, SOCK_DGRAM, SOCK_STREAM};
    let (domain, kind, protocol) = options::kind(taken.fd.as_fd())?;
    match (domain, kind, protocol) {
        (AF_UNIX, ..) => unix::collect(taken, collector, guard),
        (AF_INET | AF_INET6, SOCK_STREAM, IPPROTO_TCP) => {
            tcp::collect(taken, domain == AF_INET6, collector)
        }
        (AF_INET | AF_INET6, SOCK_DGRAM, IPPROTO_UDP) => {
            udp::collect(taken, domain == AF_INET6, collector, guard)
        }
        (AF_NETLINK, ..) => netlink::collect(taken, kind, protocol, collector),
        _ => {
            let (code, what) = unsupported(domain, kind, protocol);
            collector.refusals.add(
                code,
                taken.who.as_str(),
                format!("{what} (family {domain}, type {kind}, protocol {protocol})"),
                "close it before the checkpoint",
            );
            Ok(())
        }
    }
}

/// The code and the name of a kind of socket that is not taken along.
fn unsupported(domain: i32, kind: i32, protocol: i32) -> (&'static str, &'static str) {
    match (domain, kind, protocol) {
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_MPTCP) => {
            ("E-SOCKET-MPTCP", "a Multipath TCP socket")
        }
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_UDPLITE) => {
            ("E-SOCKET-UDPLITE", "a UDP-Lite socket")
        }
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_SCTP) => {
            ("E-SOCKET-SCTP", "an SCTP socket")
        }
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, _) => {
            ("E-SOCKET-PING", "an ICMP echo socket")
        }
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => ("E-SOCKET-RAW", "a raw socket"),
        (libc::AF_PACKET, ..) => ("E-SOCKET-PACKET", "a packet socket"),
        (libc::AF_VSOCK, ..) => ("E-SOCKET-VSOCK", "a socket to the hypervisor"),
        (libc::AF_ALG, ..) => ("E-SOCKET-ALG", "a kernel cryptography socket"),
        (libc::AF_XDP, ..) => ("E-SOCKET-XDP", "an XDP socket"),
        (libc::AF_BLUETOOTH, ..) => ("E-SOCKET-BLUETOOTH", "a Bluetooth socket"),
        (libc::AF_CAN, ..) => ("E-SOCKET-CAN", "a CAN socket"),
        _ => (
            "E-SOCKET-FAMILY",
            "a socket of a family that is not supported",
        ),
    }
}

/// Where sockets are rebuilt.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The new network namespace, its devices and addresses up already.
    pub net: BorrowedFd<'a>,
    /// The new container's root directory, an O_PATH descriptor of its mount namespace.
    pub root: BorrowedFd<'a>,
}

/// Sockets that are there, with names and connections, and with nothing in their queues yet.
#[derive(Debug)]
pub struct Rebuilt {
    fds: BTreeMap<u64, OwnedFd>,
    unix: unix_build::Ghosts,
    tcp: tcp_build::Ghosts,
}

/// Makes all sockets of `sockets`, their names and their connections.
pub fn rebuild(target: Target<'_>, sockets: &Sockets) -> Result<Rebuilt> {
    ns::inside(&[target.net], || {
        let mut fds = BTreeMap::new();
        let unix = unix_build::make(target.root, &sockets.unix, &mut fds)?;
        let tcp = tcp_build::make(&sockets.tcp, &mut fds)?;
        udp::make(&sockets.udp, &mut fds)?;
        netlink::make(&sockets.netlink, &mut fds)?;
        Ok(Rebuilt { fds, unix, tcp })
    })
    .doing(|| "rebuilding the sockets")
}

impl Rebuilt {
    /// The socket with this id.
    pub fn get(&self, id: u64) -> Option<BorrowedFd<'_>> {
        self.fds.get(&id).map(AsFd::as_fd)
    }

    /// Fills the queues, shuts down, sets options. `files` holds every open file that is in flight
    /// and no socket; `host_pid` translates a process id of the host of the checkpoint.
    pub fn finish(
        mut self,
        target: Target<'_>,
        sockets: &Sockets,
        files: &BTreeMap<u64, BorrowedFd<'_>>,
        host_pid: &(dyn Fn(i32) -> Option<i32> + Sync),
    ) -> Result<BTreeMap<u64, OwnedFd>> {
        let ghosts = std::mem::take(&mut self.unix);
        let tcp_ghosts = std::mem::take(&mut self.tcp);
        let fds = &self.fds;
        ns::inside(&[target.net], || {
            unix_build::finish(target.root, &sockets.unix, fds, ghosts, files, host_pid)?;
            tcp_build::finish(&sockets.tcp, fds, tcp_ghosts)?;
            udp::finish(&sockets.udp, fds)?;
            netlink::finish(&sockets.netlink, fds)
        })
        .doing(|| "filling the sockets' queues")?;
        Ok(self.fds)
    }
}

fn of(fds: &BTreeMap<u64, OwnedFd>, id: u64) -> Result<BorrowedFd<'_>> {
    fds.get(&id)
        .map(AsFd::as_fd)
        .ok_or_else(|| damaged(format!("the image names socket {id} but does not hold it")))
}

fn own(fd: BorrowedFd<'_>, common: &Common) -> Result<()> {
    let now = fstat(fd).doing(|| "reading the attributes of a socket")?;
    if (now.st_uid, now.st_gid) != (common.uid, common.gid) {
        nix::unistd::fchown(fd, Some(common.uid.into()), Some(common.gid.into()))
            .doing(|| "giving a socket to its owner")?;
    }
    Ok(())
}

/// A new socket with the owner of `common` and the options that must be set early.
fn fresh(domain: i32, kind: i32, protocol: i32, common: &Common) -> Result<OwnedFd> {
    let fd = socket::socket(domain, kind, protocol).doing(|| "making a socket")?;
    own(fd.as_fd(), common)?;
    options::set_early(fd.as_fd(), &common.options)?;
    Ok(fd)
}

fn damaged(what: impl Into<String>) -> Error {
    Error::coded("E-IMAGE-SOCKET", Exit::Image, what, "")
}

/// How long the kernel may take to deliver within this host, in milliseconds.
const PATIENCE: u64 = 10_000;

/// Delivery within the host is done in a moment, but by somebody else.
fn wait_until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    for waited in 0..PATIENCE {
        if done()? {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(u64::from(waited > 0)));
    }
    Err(Error::coded(
        "E-SOCKET-DELIVERY",
        Exit::Failure,
        format!("waited {PATIENCE} ms for {what}"),
        "look for packet filters in the container's network namespace",
    ))
}
