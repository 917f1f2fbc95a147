//! The way back: every open file once, in the conductor.

use super::pidfd::Dead;
use super::reference::{Opener, open_flags, reopen};
use super::{
    Contents, device, epoll, eventfd, flags, inotify, lock, namespace, pidfd, pipe, pty, signalfd,
    timerfd,
};
use crate::error::{Context, Error, Exit, Result};
use crate::image::files::{
    External, FileId, FileKind, FileOwner, Files, Inode, LockKind, OpenFile, PosixLock,
};
use crate::sys::owner;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the files need of the world around them.
pub struct Env<'a> {
    /// The new container's mount namespace, all mounts in place.
    pub mount_namespace: BorrowedFd<'a>,
    /// Processes and threads: number in the container to number on this host.
    pub processes: BTreeMap<i32, i32>,
    /// What the caller gives for [`External::key`].
    pub external: BTreeMap<String, OwnedFd>,
    /// What the caller gives for standard streams that led out and have no entry in `external`.
    pub streams: [Option<OwnedFd>; 3],
    /// Memory files, made and filled.
    pub memory: BTreeMap<Inode, OwnedFd>,
    /// The image's bulk data.
    pub contents: &'a dyn Contents,
    /// Refuse files whose size is not the recorded one.
    pub strict: bool,
}

/// What only the target itself can do, once its descriptors are in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InTarget {
    /// flock(2): the lock belongs to the open file, but the kernel notes who took it, and shows that
    /// in /proc/locks.
    Flock {
        /// The descriptor.
        fd: i32,
        /// LOCK_EX rather than LOCK_SH.
        exclusive: bool,
    },
    /// fcntl(fd, F_SETLK): a record lock belongs to its process.
    PosixLock {
        /// The descriptor.
        fd: i32,
        /// F_WRLCK rather than F_RDLCK.
        exclusive: bool,
        /// l_start, from the beginning of the file.
        start: i64,
        /// l_len; 0 is to the end.
        len: i64,
    },
}

/// What was made.
pub struct Rebuilt {
    /// Every open file once.
    pub files: BTreeMap<FileId, OwnedFd>,
    /// By pid, in order.
    pub in_target: BTreeMap<i32, Vec<InTarget>>,
    /// New masters of terminals whose master was outside of the container, by
    /// [`Pty::id`](crate::image::files::Pty::id); closing one hangs its terminal up.
    pub masters: BTreeMap<u32, OwnedFd>,
}

/// Makes the open files of [`Files`]: [`build`](Self::build) all but sockets, then
/// [`insert`](Self::insert) those, then [`finish`](Self::finish).
pub struct Rebuilder<'a> {
    files: &'a Files,
    env: Env<'a>,
    opener: Opener<'a>,
    made: BTreeMap<FileId, OwnedFd>,
    /// Externals whose open file has been given away once.
    given: HashMap<String, OwnedFd>,
    dead: Dead,
    masters: BTreeMap<u32, OwnedFd>,
    terminals_made: bool,
}

impl<'a> Rebuilder<'a> {
    /// For these records; makes nothing yet.
    pub fn new(files: &'a Files, env: Env<'a>) -> Result<Self> {
        let opener = Opener::new(env.mount_namespace, &files.ghosts, env.contents, env.strict)?;
        Ok(Self {
            files,
            env,
            opener,
            made: BTreeMap::new(),
            given: HashMap::new(),
            dead: Dead::default(),
            masters: BTreeMap::new(),
            terminals_made: false,
        })
    }

    /// Opens the references of others (cwd, exe, mappings): ghosts are shared with the open files.
    pub fn opener(&mut self) -> &mut Opener<'a> {
        &mut self.opener
    }

    /// Makes everything but sockets.
    pub fn build(&mut self) -> Result<()> {
        match self.build_all() {
            Err(error) if error.errno() == Some(Errno::EMFILE) => Err(Error::coded(
                "E-HOST-NOFILE",
                Exit::Host,
                format!(
                    "{} open files are more than this process may have: {error}",
                    self.files.open_files.len()
                ),
                "raise the limit of open files (ulimit -n)",
            )),
            other => other,
        }
    }

    fn build_all(&mut self) -> Result<()> {
        pipe::rebuild(
            self.files,
            &mut self.opener,
            self.env.contents,
            &mut self.made,
        )?;
        self.terminals()?;
        for file in &self.files.open_files {
            if !self.made.contains_key(&file.id)
                && let Some(fd) = self.one(file).doing(|| describe(file))?
            {
                self.made.insert(file.id, fd);
            }
        }
        Ok(())
    }

    /// Makes the terminals, once: a session's leader needs its own before its members are born, for
    /// they inherit it.
    pub fn terminals(&mut self) -> Result<()> {
        if !self.terminals_made {
            self.terminals_made = true;
            self.masters = pty::rebuild(self.files, &mut self.opener, &mut self.made)?;
        }
        Ok(())
    }

    /// Opens the terminal with this device number (major, minor), for reading and writing; `None` when
    /// the image has no such terminal.
    pub fn terminal(&self, device: (u32, u32)) -> Result<Option<OwnedFd>> {
        let Some(pty) = self
            .files
            .ptys
            .iter()
            .find(|pty| pty::index_of(device) == Some(pty.index))
        else {
            return Ok(None);
        };
        let node = pty::slave_path(&pty.devpts, pty.index);
        let flags = open_flags(libc::O_RDWR);
        let fd = self
            .opener
            .view()
            .open(&node, flags, Mode::empty())
            .doing(|| format!("opening terminal {}/{}", pty.devpts, pty.index))?;
        Ok(Some(fd))
    }

    /// Says which processes and threads there are: number in the container to number on this host.
    pub fn set_processes(&mut self, processes: BTreeMap<i32, i32>) {
        self.env.processes = processes;
    }

    /// Adds an open file that was made elsewhere: a socket.
    pub fn insert(&mut self, id: FileId, fd: OwnedFd) {
        self.made.insert(id, fd);
    }

    /// An open file that has been made.
    pub fn get(&self, id: FileId) -> Option<BorrowedFd<'_>> {
        self.made.get(&id).map(AsFd::as_fd)
    }

    /// Sets offsets, flags, owners and locks, and hands everything over.
    /// Watches come last: whatever is opened or made afterwards would be an event for them.
    pub fn finish(mut self) -> Result<Rebuilt> {
        for file in &self.files.open_files {
            let fd = self.made.get(&file.id).ok_or_else(|| {
                Error::bug(format!("open file {} was not made", file.id.0)).doing(describe(file))
            })?;
            self.settle(file, fd.as_fd()).doing(|| describe(file))?;
        }
        epoll::register(self.files, &self.made)?;
        for file in &self.files.open_files {
            if let FileKind::Inotify { watches } = &file.kind
                && let Some(fd) = self.made.get(&file.id)
            {
                inotify::watch(fd.as_fd(), watches, &mut self.opener).doing(|| describe(file))?;
            }
        }
        let mut in_target: BTreeMap<i32, Vec<InTarget>> = BTreeMap::new();
        for file in &self.files.open_files {
            for lock in file.locks.iter().filter(|one| one.kind == LockKind::Flock) {
                if let Some((pid, fd)) = self.holder(file.id) {
                    in_target.entry(pid).or_default().push(InTarget::Flock {
                        fd,
                        exclusive: lock.exclusive,
                    });
                }
            }
        }
        for lock in &self.files.posix_locks {
            in_target
                .entry(lock.pid)
                .or_default()
                .push(posix_lock(lock)?);
        }
        Ok(Rebuilt {
            files: self.made,
            in_target,
            masters: self.masters,
        })
    }

    /// The first process that has an open file, and under which number.
    fn holder(&self, id: FileId) -> Option<(i32, i32)> {
        self.files.tables.iter().find_map(|(pid, table)| {
            let descriptor = table.iter().find(|one| one.file == id)?;
            Some((*pid, descriptor.fd))
        })
    }

    /// One open file that is neither pipe nor socket.
    fn one(&mut self, file: &OpenFile) -> Result<Option<OwnedFd>> {
        let bits = flags::bits(&file.flags)?;
        Ok(Some(match &file.kind {
            FileKind::Path(reference) => self.opener.open(reference, bits)?,
            FileKind::Device {
                file: reference,
                major,
                minor,
            } => {
                let flags = bits | libc::O_NONBLOCK;
                let there = self.opener.open(reference, flags).and_then(|fd| {
                    device::check(&fd, *major, *minor)?;
                    Ok(fd)
                });
                match there {
                    Ok(fd) => fd,
                    // Another node of the same device is as good.
                    Err(why) => device::elsewhere(*major, *minor, flags).ok_or(why)?,
                }
            }
            FileKind::Eventfd { count, semaphore } => eventfd::rebuild(*count, *semaphore)?,
            FileKind::Epoll { .. } => crate::sys::epoll::create().doing(|| "making an epoll")?,
            FileKind::Timerfd(record) => timerfd::rebuild(record)?,
            FileKind::Signalfd { mask } => signalfd::rebuild(*mask)?,
            FileKind::Inotify { .. } => inotify::rebuild()?,
            FileKind::Pidfd(target) => {
                pidfd::rebuild(*target, &self.env.processes, &mut self.dead)?
            }
            FileKind::Namespace { kind, pid, .. } => {
                namespace::rebuild(kind, *pid, &self.env.processes)?
            }
            FileKind::Memory { memory } => {
                let given = self.env.memory.get(memory).ok_or_else(|| {
                    Error::bug(format!("memory file {} was not made", memory.ino))
                })?;
                reopen(given.as_fd(), open_flags(bits))?
            }
            FileKind::External(external) => self.external(external, bits)?,
            FileKind::Socket { .. } => return Ok(None),
            FileKind::Pipe { pipe } | FileKind::Fifo { pipe, .. } => {
                return Err(Error::coded(
                    "E-IMAGE-PIPE",
                    Exit::Image,
                    format!("there is no record of pipe {}", pipe.ino),
                    "the image is damaged",
                ));
            }
            FileKind::PtyMaster { pty, .. } | FileKind::PtySlave { pty, .. } => {
                return Err(Error::coded(
                    "E-IMAGE-PTY",
                    Exit::Image,
                    format!("there is no record of terminal {pty}"),
                    "the image is damaged",
                ));
            }
        }))
    }

    /// What the caller gave. Pipes and devices get an open file of their own each time; of others
    /// the given one is shared, and opened again from the second time on.
    fn external(&mut self, external: &External, bits: i32) -> Result<OwnedFd> {
        let stream = external.stream.and_then(|number| {
            self.env
                .streams
                .get(usize::try_from(number).ok()?)?
                .as_ref()
        });
        let Some(given) = self.env.external.get(&external.key).or(stream) else {
            return Err(Error::coded(
                "E-EXTERNAL",
                Exit::Usage,
                format!(
                    "{} ({}) led out of the container and nothing was given in its place",
                    external.key, external.what
                ),
                "name a descriptor for it",
            ));
        };
        let first = !self.given.contains_key(&external.key);
        let shareable = matches!(external.file_type.as_str(), "regular" | "socket");
        if first {
            self.given.insert(external.key.clone(), given.try_clone()?);
        }
        if first && shareable {
            return Ok(given.try_clone()?);
        }
        match reopen(given.as_fd(), open_flags(bits | libc::O_NONBLOCK)) {
            Ok(fd) => Ok(fd),
            // No right to open it anew, or nobody on the other side: share what there is.
            Err(_) => Ok(given.try_clone()?),
        }
    }

    fn settle(&self, file: &OpenFile, fd: BorrowedFd<'_>) -> Result<()> {
        let bits = flags::bits(&file.flags)?;
        if bits & libc::O_PATH != 0 {
            return Ok(());
        }
        let seekable = matches!(file.kind, FileKind::Path(_) | FileKind::Memory { .. });
        if seekable && file.pos != 0 {
            lseek(fd, file.pos, Whence::SeekSet).doing(|| format!("seeking to {}", file.pos))?;
        }
        if file.signal != 0 {
            owner::set_signal(fd, file.signal).doing(|| "setting its signal")?;
        }
        if let Some(owner) = file.owner {
            owner::set_owner(fd, self.owner(owner)?).doing(|| "setting its owner")?;
        }
        if !matches!(file.kind, FileKind::External(_)) {
            set_status_flags(fd, bits)?;
        }
        for one in &file.locks {
            // Of a file that is in flight nobody but this process can take it.
            if one.kind != LockKind::Flock || self.holder(file.id).is_none() {
                lock::rebuild(fd, one)?;
            }
        }
        Ok(())
    }

    fn owner(&self, owner: FileOwner) -> Result<owner::Owner> {
        let host = |pid: i32| {
            self.env.processes.get(&pid).copied().ok_or_else(|| {
                Error::coded(
                    "E-IMAGE-OWNER",
                    Exit::Image,
                    format!("it signals process {pid}, which is not in the image"),
                    "the image is damaged",
                )
            })
        };
        Ok(match owner {
            FileOwner::Thread(pid) => owner::Owner::Thread(host(pid)?),
            FileOwner::Process(pid) => owner::Owner::Process(host(pid)?),
            FileOwner::Group(pid) => owner::Owner::Group(host(pid)?),
        })
    }
}

/// F_SETFL, where anything differs.
fn set_status_flags(fd: BorrowedFd<'_>, bits: i32) -> Result<()> {
    let settable =
        libc::O_APPEND | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK;
    let now = fcntl(fd, FcntlArg::F_GETFL).doing(|| "asking for its flags")?;
    if now & settable == bits & settable {
        return Ok(());
    }
    let flags = OFlag::from_bits_retain((now & !settable) | (bits & settable));
    fcntl(fd, FcntlArg::F_SETFL(flags)).doing(|| "setting its flags")?;
    Ok(())
}

fn posix_lock(lock: &PosixLock) -> Result<InTarget> {
    let range = lock::range(lock.start, lock.end)?;
    Ok(InTarget::PosixLock {
        fd: lock.fd,
        exclusive: lock.exclusive,
        start: range.0,
        len: range.1,
    })
}

fn describe(file: &OpenFile) -> String {
    format!("making open file {} anew", file.id.0)
}
