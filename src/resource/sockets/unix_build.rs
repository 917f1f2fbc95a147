//! Unix sockets: the way back.
//!
//! Names are made with bind(2) in the container's root, or, where the file has since been moved or
//! deleted, in a scratch directory with that root, from which the file is then moved to its place.
//! Connections are made by connecting through /proc/self/fd to the listening socket's own file
//! (SIOCUNIXFILE), so that no path has to lead there any more. A connection whose listener is closed
//! gets a passing listener of the same name; both names then read as they did.

use super::{damaged, fresh, of, options, own};
use crate::error::{Context, Error, Result};
use crate::image::bytes::NameBytes;
use crate::image::sockets::{Unix, UnixFile, UnixKind, UnixMessage, UnixState};
use crate::sys::scratch::{detached_tmpfs, rooted};
use crate::sys::socket::{self, Along, RawAddress};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{UnlinkatFlags, fchownat, unlinkat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The other ends, closed in the old container, of sockets of the image: kept until what they had
/// sent is sent again.
pub(super) type Ghosts = BTreeMap<u64, OwnedFd>;

fn kind_number(kind: UnixKind) -> i32 {
    match kind {
        UnixKind::Stream => libc::SOCK_STREAM,
        UnixKind::Datagram => libc::SOCK_DGRAM,
        UnixKind::SeqPacket => libc::SOCK_SEQPACKET,
    }
}

fn raw_address(name: &NameBytes) -> RawAddress {
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend(&name.0);
    if name.0.first().is_some_and(|&b| b != 0) {
        address.push(0);
    }
    address
}

/// Names sockets.
struct Names<'a> {
    root: BorrowedFd<'a>,
    /// The thread's own root.
    home: OwnedFd,
    scratch: OwnedFd,
    made: usize,
}

impl<'a> Names<'a> {
    fn new(root: BorrowedFd<'a>) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            root,
            home: open("/", flags, Mode::empty()).doing(|| "opening the root directory")?,
            scratch: detached_tmpfs()?,
            made: 0,
        })
    }

    /// Binds `fd` so that its name reads as `name` and its file is where `file` says.
    fn bind(
        &mut self,
        fd: BorrowedFd<'_>,
        name: &NameBytes,
        file: Option<&UnixFile>,
    ) -> Result<()> {
        let text = String::from_utf8_lossy(&name.0).into_owned();
        self.bind_inner(fd, name, file)
            .doing(|| format!("binding a Unix socket to {text:?}"))
    }

    fn bind_inner(
        &mut self,
        fd: BorrowedFd<'_>,
        name: &NameBytes,
        file: Option<&UnixFile>,
    ) -> Result<()> {
        if name.0.first() == Some(&0) {
            return Ok(socket::bind(fd, &raw_address(name))?);
        }
        let Some((file, path)) = file.and_then(|file| Some((file, file.path.as_ref()?))) else {
            let scratch = self.scratch.try_clone()?;
            return self.bind_in_scratch(fd, name, scratch.as_fd(), None);
        };
        let path = Path::new(OsStr::from_bytes(&path.0));
        let (Some(parent), Some(base)) = (path.parent(), path.file_name()) else {
            return Err(damaged("a socket's file has no name"));
        };
        let parent = self.directory(parent)?;
        if OsStr::from_bytes(&name.0) == path.as_os_str() {
            match unlinkat(&parent, base, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno).doing(|| "removing an old socket file"),
            }
            rooted(self.root, self.home.as_fd(), || {
                Ok(socket::bind(fd, &raw_address(name))?)
            })?;
        } else {
            self.bind_in_scratch(fd, name, parent.as_fd(), Some(base))?;
        }
        fchownat(
            &parent,
            base,
            Some(file.uid.into()),
            Some(file.gid.into()),
            nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .doing(|| "giving a socket file to its owner")?;
        fchmodat(
            &parent,
            base,
            Mode::from_bits_truncate(file.mode),
            FchmodatFlags::FollowSymlink,
        )
        .doing(|| "setting the mode of a socket file")
    }

    /// Opens a directory of the container, never leaving its root.
    fn directory(&self, path: &Path) -> Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(self.root, path, how).doing(|| format!("opening {} in the root", path.display()))
    }

    /// Binds in a new directory below `below`, as its own root; moves the file to `base` in `below`,
    /// or deletes it.
    fn bind_in_scratch(
        &mut self,
        fd: BorrowedFd<'_>,
        name: &NameBytes,
        below: BorrowedFd<'_>,
        base: Option<&OsStr>,
    ) -> Result<()> {
        self.made += 1;
        let scratch = format!(".ocimig-socket-{}-{}", std::process::id(), self.made);
        mkdirat(below, scratch.as_str(), Mode::S_IRWXU).doing(|| "making a scratch directory")?;
        let link = PathBuf::from(format!("/proc/self/fd/{}/{scratch}", below.as_raw_fd()));
        let result = open(
            &link,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .doing(|| "opening a scratch directory")
        .and_then(|inner| {
            rooted(inner.as_fd(), self.home.as_fd(), || {
                let path = Path::new(OsStr::from_bytes(&name.0));
                make_parents(path)?;
                socket::bind(fd, &raw_address(name))?;
                match base {
                    Some(base) => renameat(AT_FDCWD, path, below, base)
                        .doing(|| "moving a socket file to its place"),
                    None => Ok(std::fs::remove_file(path)?),
                }
            })
        });
        let cleanup =
            std::fs::remove_dir_all(&link).doing(|| format!("removing {}", link.display()));
        match result {
            Ok(()) => cleanup,
            Err(error) => Err(error.and_cleanup(cleanup)),
        }
    }
}

/// Makes whatever `path` needs to lead somewhere from the working directory, the root of an empty
/// file system: it goes down first as often as the path goes up.
fn make_parents(path: &Path) -> Result<()> {
    if path.is_relative() {
        for _ in path.components().filter(|c| *c == Component::ParentDir) {
            std::fs::create_dir("d")?;
            std::env::set_current_dir("d")?;
        }
    }
    let mut walked = PathBuf::new();
    for component in path.parent().into_iter().flat_map(Path::components) {
        walked.push(component);
        if matches!(component, Component::Normal(_)) && !walked.exists() {
            std::fs::create_dir(&walked)?;
        }
    }
    Ok(())
}

/// Connects to a named socket of ours, wherever its file is. Nothing here ever has to wait, so
/// nothing does.
fn connect_to(fd: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    reach(to, |address| Ok(socket::connect(fd, address)?)).doing(|| "connecting a Unix socket")
}

/// Calls `work` with an address that leads to the named socket `to`.
fn reach<T>(to: BorrowedFd<'_>, work: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    match socket::unix_file(to) {
        Ok(file) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            work(&raw_address(&NameBytes(path.into_bytes())))
        }
        Err(Errno::ENOENT) => work(&socket::local_address(to)?),
        Err(errno) => Err(errno).doing(|| "opening a socket's file"),
    }
}

type Key = (NameBytes, Option<u64>);

fn key(record: &Unix) -> Option<Key> {
    let identity = record.file.as_ref().map(|file| file.identity);
    Some((record.name.clone()?, identity))
}

struct Maker<'a> {
    records: BTreeMap<u64, &'a Unix>,
    names: Names<'a>,
    fds: &'a mut BTreeMap<u64, OwnedFd>,
    ghosts: Ghosts,
    listeners: BTreeMap<Key, u64>,
    passing: BTreeMap<Key, OwnedFd>,
    /// How many sockets bear a name: those that a listener gave to what it accepted.
    bearers: BTreeMap<Key, usize>,
}

/// Makes all sockets, names and connections.
pub(super) fn make<'a>(
    root: BorrowedFd<'a>,
    records: &'a [Unix],
    fds: &'a mut BTreeMap<u64, OwnedFd>,
) -> Result<Ghosts> {
    if records.is_empty() {
        return Ok(Ghosts::new());
    }
    let mut bearers = BTreeMap::new();
    for key in records.iter().filter_map(key) {
        *bearers.entry(key).or_insert(0) += 1;
    }
    let mut maker = Maker {
        records: records.iter().map(|one| (one.common.id, one)).collect(),
        names: Names::new(root)?,
        fds,
        ghosts: Ghosts::new(),
        listeners: BTreeMap::new(),
        passing: BTreeMap::new(),
        bearers,
    };
    // A passing listener may bear the abstract name of nobody else, so it goes first; a listener's
    // own connections need it to listen; those that wait come after those that were accepted.
    maker.listen()?;
    for record in records {
        maker
            .connect(record)
            .doing(|| format!("rebuilding Unix socket {}", record.common.id))?;
    }
    maker.passing.clear();
    maker.wait_for_accept()?;
    Ok(maker.ghosts)
}

impl<'a> Maker<'a> {
    fn new_socket(&mut self, record: &Unix) -> Result<OwnedFd> {
        fresh(libc::AF_UNIX, kind_number(record.kind), 0, &record.common)
    }

    fn named_socket(&mut self, record: &Unix) -> Result<OwnedFd> {
        let fd = self.new_socket(record)?;
        if let Some(name) = &record.name {
            self.names.bind(fd.as_fd(), name, record.file.as_ref())?;
        }
        Ok(fd)
    }

    fn listen(&mut self) -> Result<()> {
        let all: Vec<&Unix> = self.records.values().copied().collect();
        for record in all {
            let UnixState::Listening { pending, .. } = &record.state else {
                continue;
            };
            let fd = self.named_socket(record)?;
            let room = i32::try_from(pending.len()).unwrap_or(i32::MAX);
            socket::listen(&fd, room.max(1)).doing(|| "listening on a Unix socket")?;
            if let Some(key) = key(record) {
                self.listeners.insert(key, record.common.id);
            }
            self.fds.insert(record.common.id, fd);
        }
        Ok(())
    }

    fn connect(&mut self, record: &'a Unix) -> Result<()> {
        let id = record.common.id;
        if self.fds.contains_key(&id) {
            return Ok(());
        }
        if record.kind == UnixKind::Datagram {
            return self.make_datagram(record);
        }
        match &record.state {
            UnixState::Connected { peer } => {
                let Some(other) = self.records.get(peer).copied() else {
                    return Err(damaged(format!(
                        "the peer {peer} of socket {id} is missing"
                    )));
                };
                if self.fds.contains_key(peer) || *peer == id || other.kind != record.kind {
                    return Err(damaged(format!("sockets {id} and {peer} are no pair")));
                }
                let (first, second) = self.connection(record, Some(other), &None)?;
                self.fds.insert(id, first);
                self.fds.insert(*peer, second);
            }
            UnixState::PeerGone { peer_name } => {
                let (first, second) = self.connection(record, None, peer_name)?;
                self.fds.insert(id, first);
                self.ghosts.insert(id, second);
            }
            UnixState::Unconnected | UnixState::Pending => {
                let fd = self.named_socket(record)?;
                self.fds.insert(id, fd);
            }
            UnixState::Listening { .. } => {}
            UnixState::External { .. } => {
                return Err(damaged(format!("stream socket {id} leads outside")));
            }
        }
        Ok(())
    }

    /// A connection between `one` and `other`, or between `one` and a passing socket that bears
    /// `ghost_name`.
    fn connection(
        &mut self,
        one: &Unix,
        other: Option<&Unix>,
        ghost_name: &Option<NameBytes>,
    ) -> Result<(OwnedFd, OwnedFd)> {
        let (one_key, other_key) = match other {
            Some(other) => (key(one), key(other)),
            None => (key(one), ghost_name.clone().map(|name| (name, None))),
        };
        if one_key.is_none() && other_key.is_none() {
            let (first, second) =
                socket::pair(libc::AF_UNIX, kind_number(one.kind)).doing(|| "making a pair")?;
            own(first.as_fd(), &one.common)?;
            if let Some(other) = other {
                own(second.as_fd(), &other.common)?;
            }
            return Ok((first, second));
        }
        let accepted = |key: &Option<Key>| match key {
            None => 0,
            Some(key) if self.listeners.contains_key(key) => 3,
            Some(key) if self.bearers.get(key).is_some_and(|&count| count > 1) => 2,
            Some(_) => 1,
        };
        let one_accepted = accepted(&one_key) >= accepted(&other_key);
        let client = match (one_accepted, other) {
            (false, _) => self.named_socket(one)?,
            (true, Some(other)) => self.named_socket(other)?,
            (true, None) => {
                let fd = self.new_socket(one)?;
                if let Some(name) = ghost_name {
                    self.names.bind(fd.as_fd(), name, None)?;
                }
                fd
            }
        };
        let (server_key, file) = match (one_accepted, other) {
            (true, _) => (one_key, one.file.as_ref()),
            (false, other) => (other_key, other.and_then(|other| other.file.as_ref())),
        };
        let Some(server_key) = server_key else {
            return Err(Error::bug("an unnamed side was chosen to accept"));
        };
        let server = self.accept(&client, server_key, file, one.kind)?;
        match other {
            Some(other) if !one_accepted => own(server.as_fd(), &other.common)?,
            _ => own(server.as_fd(), &one.common)?,
        }
        Ok(match one_accepted {
            true => (server, client),
            false => (client, server),
        })
    }

    fn accept(
        &mut self,
        client: &OwnedFd,
        key: Key,
        file: Option<&UnixFile>,
        kind: UnixKind,
    ) -> Result<OwnedFd> {
        let listener = match self.listeners.get(&key) {
            Some(id) => of(self.fds, *id)?,
            None => {
                if !self.passing.contains_key(&key) {
                    let fd = socket::socket(libc::AF_UNIX, kind_number(kind), 0)
                        .doing(|| "making a passing socket")?;
                    self.names.bind(fd.as_fd(), &key.0, file)?;
                    socket::listen(&fd, 1).doing(|| "listening in passing")?;
                    self.passing.insert(key.clone(), fd);
                }
                self.passing
                    .get(&key)
                    .map(AsFd::as_fd)
                    .ok_or_else(|| Error::bug("a passing socket is missing"))?
            }
        };
        connect_to(client.as_fd(), listener)?;
        socket::accept(listener).doing(|| "accepting a Unix connection")
    }

    /// Clients that were not accepted yet, in their order; then the backlog as it was.
    fn wait_for_accept(&mut self) -> Result<()> {
        for record in self.records.values() {
            let UnixState::Listening { backlog, pending } = &record.state else {
                continue;
            };
            let listener = of(self.fds, record.common.id)?;
            for client in pending {
                match client {
                    Some(id) => connect_to(of(self.fds, *id)?, listener)?,
                    None => {
                        let passing = socket::socket(libc::AF_UNIX, kind_number(record.kind), 0)
                            .doing(|| "making a passing socket")?;
                        connect_to(passing.as_fd(), listener)?;
                    }
                }
            }
            let backlog = i32::try_from(*backlog).unwrap_or(i32::MAX);
            socket::listen(listener, backlog).doing(|| "setting a backlog")?;
        }
        Ok(())
    }

    /// Datagram sockets are connected in [`finish`]: once connected they take nothing from others.
    fn make_datagram(&mut self, record: &Unix) -> Result<()> {
        let id = record.common.id;
        let other = match &record.state {
            UnixState::Connected { peer } => self.records.get(peer).copied(),
            _ => None,
        };
        if let Some(other) = other
            && other.name.is_none()
            && !self.fds.contains_key(&other.common.id)
            && other.kind == UnixKind::Datagram
            && other.common.id != id
        {
            let (first, second) =
                socket::pair(libc::AF_UNIX, libc::SOCK_DGRAM).doing(|| "making a pair")?;
            for (fd, one) in [(first, record), (second, other)] {
                own(fd.as_fd(), &one.common)?;
                if let Some(name) = &one.name {
                    self.names.bind(fd.as_fd(), name, one.file.as_ref())?;
                }
                self.fds.insert(one.common.id, fd);
            }
        } else if let UnixState::PeerGone { peer_name: None } = &record.state {
            let (fd, ghost) =
                socket::pair(libc::AF_UNIX, libc::SOCK_DGRAM).doing(|| "making a pair")?;
            own(fd.as_fd(), &record.common)?;
            if let Some(name) = &record.name {
                self.names.bind(fd.as_fd(), name, record.file.as_ref())?;
            }
            self.fds.insert(id, fd);
            self.ghosts.insert(id, ghost);
        } else {
            let fd = self.named_socket(record)?;
            self.fds.insert(id, fd);
        }
        Ok(())
    }
}

struct Finisher<'a> {
    records: &'a [Unix],
    names: Names<'a>,
    fds: &'a BTreeMap<u64, OwnedFd>,
    ghosts: Ghosts,
    files: &'a BTreeMap<u64, BorrowedFd<'a>>,
    host_pid: &'a (dyn Fn(i32) -> Option<i32> + Sync),
    /// Senders of datagrams that are gone, by name.
    senders: BTreeMap<Option<NameBytes>, OwnedFd>,
}

/// Fills the queues, connects datagram sockets, shuts down, sets options.
pub(super) fn finish(
    root: BorrowedFd<'_>,
    records: &[Unix],
    fds: &BTreeMap<u64, OwnedFd>,
    ghosts: Ghosts,
    files: &BTreeMap<u64, BorrowedFd<'_>>,
    host_pid: &(dyn Fn(i32) -> Option<i32> + Sync),
) -> Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    let mut finisher = Finisher {
        records,
        names: Names::new(root)?,
        fds,
        ghosts,
        files,
        host_pid,
        senders: BTreeMap::new(),
    };
    for record in records {
        finisher
            .fill(record)
            .doing(|| format!("filling the queue of Unix socket {}", record.common.id))?;
    }
    for record in records {
        finisher
            .settle(record)
            .doing(|| format!("finishing Unix socket {}", record.common.id))?;
    }
    drop(finisher.ghosts);
    for record in records {
        options::set_late(of(fds, record.common.id)?, &record.common.options)
            .doing(|| format!("setting options of Unix socket {}", record.common.id))?;
    }
    Ok(())
}

impl Finisher<'_> {
    fn fill(&mut self, record: &Unix) -> Result<()> {
        let id = record.common.id;
        let fd = of(self.fds, id)?;
        if record.kind == UnixKind::Datagram {
            if self.only_from_peer(record) {
                self.connect_datagram(record)?;
            }
            for message in &record.queue {
                self.send_datagram(record, message)?;
            }
            return self.connect_datagram(record);
        }
        if record.queue.is_empty() && !record.reset {
            return Ok(());
        }
        let sender = match &record.state {
            UnixState::Connected { peer } => of(self.fds, *peer)?,
            _ => self
                .ghosts
                .get(&id)
                .map(AsFd::as_fd)
                .ok_or_else(|| damaged(format!("socket {id} has a queue and no peer")))?,
        };
        // A kilobyte each, for the kernel counts its own overhead.
        let total: usize = record.queue.iter().map(|m| 2 * m.data.0.len() + 1024).sum();
        options::roomy_buffers(sender, &options::Options::new(), total)?;
        for message in &record.queue {
            self.send(sender, None, message, record.kind)?;
        }
        if record.reset && self.ghosts.contains_key(&id) {
            // It closes without having read this, which is what made the old one's error.
            socket::send(fd, b"!", None, &Along::default(), 0).doing(|| "sending a byte")?;
        }
        Ok(())
    }

    fn send(
        &self,
        sender: BorrowedFd<'_>,
        to: Option<&[u8]>,
        message: &UnixMessage,
        kind: UnixKind,
    ) -> Result<()> {
        let mut rights = Vec::new();
        for id in &message.files {
            rights.push(match (self.fds.get(id), self.files.get(id)) {
                (Some(socket), _) => socket.as_fd(),
                (None, Some(file)) => *file,
                (None, None) => return Err(damaged(format!("file {id} in flight is missing"))),
            });
        }
        let along = Along {
            rights: &rights,
            credentials: message.credentials.map(|who| {
                let pid = (self.host_pid)(who.host_pid);
                (pid.unwrap_or(std::process::id() as i32), who.uid, who.gid)
            }),
        };
        let data = message.data.0.as_slice();
        let mut sent = socket::send(sender, data, to, &along, 0).doing(|| "sending a message")?;
        while kind == UnixKind::Stream && sent < data.len() {
            sent += socket::send(sender, &data[sent..], None, &Along::default(), 0)
                .doing(|| "sending the rest of a message")?;
        }
        match sent == data.len() {
            true => Ok(()),
            false => Err(Error::bug("a message was sent in part")),
        }
    }

    fn named(&self, name: &NameBytes) -> Option<&Unix> {
        self.records
            .iter()
            .find(|one| one.kind == UnixKind::Datagram && one.name.as_ref() == Some(name))
    }

    fn peer<'s>(&'s self, record: &Unix) -> Option<&'s Unix> {
        match &record.state {
            UnixState::Connected { peer } => self.records.iter().find(|one| one.common.id == *peer),
            _ => None,
        }
    }

    /// Nothing of others is in the queue: then it may be connected first, which lifts the limit on
    /// the number of messages between two that are connected to each other.
    fn only_from_peer(&self, record: &Unix) -> bool {
        self.peer(record)
            .is_some_and(|peer| record.queue.iter().all(|m| m.from == peer.name))
    }

    fn send_datagram(&mut self, record: &Unix, message: &UnixMessage) -> Result<()> {
        let id = record.common.id;
        let mutual = self.peer(record).filter(|peer| {
            matches!(peer.state, UnixState::Connected { peer } if peer == id)
                && peer.name == message.from
        });
        let sender = match (&message.from, mutual, self.ghosts.get(&id)) {
            (_, Some(peer), _) => Some(of(self.fds, peer.common.id)?),
            (None, None, Some(ghost)) => Some(ghost.as_fd()),
            (Some(name), None, _) => match self.named(name) {
                Some(live) => Some(of(self.fds, live.common.id)?),
                None => None,
            },
            (None, None, None) => None,
        };
        let sender = match sender {
            Some(sender) => sender,
            None => {
                if !self.senders.contains_key(&message.from) {
                    let fd = socket::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)
                        .doing(|| "making a passing socket")?;
                    if let Some(name) = &message.from {
                        self.names.bind(fd.as_fd(), name, None)?;
                    }
                    self.senders.insert(message.from.clone(), fd);
                }
                self.senders
                    .get(&message.from)
                    .map(AsFd::as_fd)
                    .ok_or_else(|| Error::bug("a passing socket is missing"))?
            }
        };
        options::roomy_buffers(
            sender,
            &options::Options::new(),
            2 * message.data.0.len() + 4096,
        )?;
        if record.name.is_none() {
            return self.send(sender, None, message, record.kind);
        }
        reach(of(self.fds, id)?, |address| {
            self.send(sender, Some(address), message, record.kind)
        })
    }

    fn connect_datagram(&mut self, record: &Unix) -> Result<()> {
        let fd = of(self.fds, record.common.id)?;
        if socket::peer_address(fd)?.is_some() {
            return Ok(());
        }
        match &record.state {
            UnixState::Connected { peer } => connect_to(fd, of(self.fds, *peer)?),
            UnixState::PeerGone {
                peer_name: Some(name),
            } => {
                let ghost = socket::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)
                    .doing(|| "making a passing socket")?;
                self.names.bind(ghost.as_fd(), name, None)?;
                connect_to(fd, ghost.as_fd())
            }
            UnixState::External { peer_name } => {
                let connect = || Ok(socket::connect(fd, &raw_address(peer_name))?);
                match peer_name.0.first() {
                    Some(0) => connect(),
                    _ => rooted(self.names.root, self.names.home.as_fd(), connect),
                }
                .doing(|| {
                    let name = String::from_utf8_lossy(&peer_name.0).into_owned();
                    format!("connecting to {name}, outside the container")
                })
            }
            _ => Ok(()),
        }
    }

    fn settle(&mut self, record: &Unix) -> Result<()> {
        let fd = of(self.fds, record.common.id)?;
        drop(self.ghosts.remove(&record.common.id));
        let how = match (record.shut_read, record.shut_write) {
            (true, true) => libc::SHUT_RDWR,
            (true, false) => libc::SHUT_RD,
            (false, true) => libc::SHUT_WR,
            (false, false) => return Ok(()),
        };
        match socket::shutdown(fd, how) {
            // A datagram or unconnected socket was shut down as well, but not all kernels let it.
            Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
            Err(errno) => Err(errno).doing(|| "shutting down"),
        }
    }
}
