//! The way out: walking descriptor tables and describing each open file once.

use super::ghost::{Content, Ghosts};
use super::identity::{Identities, Place, position};
use super::kind::Found;
use super::lock::{self, PosixLocks};
use super::pipe::{self, Sides};
use super::reference::{self, Located};
use super::view::View;
use super::{Subject, epoll, flags};
use crate::error::{Context, Error, Refusals, Result};
use crate::image::files::{
    Descriptor, External, FileId, FileKind, FileOwner, Files, Inode, OpenFile, Pipe,
};
use crate::proc::Process;
use crate::proc::fdinfo::Fdinfo;
use crate::sys::{kcmp, ns, owner, pidfd, statx};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What the request allows.
#[derive(Debug, Clone, Default)]
pub struct CaptureOptions {
    /// Keys of things outside of the container that the restoring side will give: see
    /// [`External::key`]. Standard streams and pipes need no naming.
    pub external: BTreeSet<String>,
}

/// A socket among the open files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketFile {
    /// The open file.
    pub file: FileId,
    /// Its inode number, as `socket:[N]` and sock_diag have it.
    pub inode: u64,
    /// Who has it, for messages: `fd 3 of pid 7 (nginx)`.
    pub who: String,
}

/// What was captured.
#[derive(Debug)]
pub struct Captured {
    /// The records.
    pub files: Files,
    /// Members and what goes into them.
    pub contents: Vec<(String, Content)>,
    /// Memory files by identity, opened for reading by us; mapped or not.
    pub memory: BTreeMap<Inode, OwnedFd>,
}

type PipeEnds = (Pipe, Vec<(FileId, Sides, External)>);

/// See the module documentation. Nothing it does changes a process or an open file.
pub struct Capturer<'a> {
    pub(super) subjects: &'a [Subject],
    pub(super) options: CaptureOptions,
    views: HashMap<u64, View>,
    view_of: HashMap<i32, u64>,
    pub(super) identities: Identities,
    adopted: HashMap<FileId, OwnedFd>,
    pub(super) records: Files,
    ghosts: Ghosts,
    posix_locks: PosixLocks,
    pub(super) pipes: BTreeMap<Inode, PipeEnds>,
    pub(super) sockets: Vec<SocketFile>,
    pub(super) epolls: Vec<epoll::Pending>,
    pub(super) memory: BTreeMap<Inode, OwnedFd>,
    /// By device of the devpts instance and number.
    pub(super) ptys: HashMap<(u64, u32), u32>,
}

impl<'a> Capturer<'a> {
    /// For these processes, all of which are stopped.
    pub fn new(subjects: &'a [Subject], options: CaptureOptions) -> Self {
        Self {
            subjects,
            options,
            views: HashMap::new(),
            view_of: HashMap::new(),
            identities: Identities::default(),
            adopted: HashMap::new(),
            records: Files::default(),
            ghosts: Ghosts::default(),
            posix_locks: PosixLocks::default(),
            pipes: BTreeMap::new(),
            sockets: Vec::new(),
            epolls: Vec::new(),
            memory: BTreeMap::new(),
            ptys: HashMap::new(),
        }
    }

    /// Walks the descriptor tables of all processes.
    pub fn tables(&mut self, refusals: &mut Refusals) -> Result<()> {
        let mut known: Vec<&Subject> = Vec::new();
        for subject in self.subjects {
            let at = position(&known, |other| {
                kcmp::compare(
                    kcmp::Kind::Files,
                    (other.host_pid, 0),
                    (subject.host_pid, 0),
                )
            });
            match at.doing(|| format!("comparing the descriptor table of pid {}", subject.pid))? {
                Ok(same) => {
                    let other = known[same].pid;
                    self.records.shared_tables.insert(subject.pid, other);
                }
                Err(at) => {
                    known.insert(at, subject);
                    self.table(subject, refusals)?;
                }
            }
        }
        Ok(())
    }

    fn table(&mut self, subject: &'a Subject, refusals: &mut Refusals) -> Result<()> {
        let process = Process::new(subject.host_pid);
        let numbers = process.numbers("fd")?;
        let mut table = Vec::with_capacity(numbers.len());
        for fd in numbers {
            let doing = || format!("capturing {}", object(subject, fd));
            let info = process.fdinfo(fd).doing(doing)?;
            self.posix_locks.see(subject.pid, fd, &info);
            let place = Place {
                host_pid: subject.host_pid,
                fd,
            };
            let (id, new) = self
                .identities
                .identify(candidates(&info), place)
                .doing(doing)?;
            if new {
                let dup = pidfd::getfd(subject.pidfd.as_fd(), fd).doing(doing)?;
                let link = process.link(format!("fd/{fd}")).doing(doing)?;
                let status = statx::of(dup.as_fd()).doing(doing)?;
                let found = Found {
                    id,
                    fd: dup.as_fd(),
                    link,
                    info: &info,
                    status,
                    subject,
                    number: Some(fd),
                    place,
                    label: None,
                };
                self.open_file(&found, refusals).doing(doing)?;
            }
            table.push(Descriptor {
                fd,
                cloexec: info.flags.cast_signed() & libc::O_CLOEXEC != 0,
                file: id,
            });
        }
        self.records.tables.insert(subject.pid, table);
        Ok(())
    }

    /// Registers an open file that no descriptor need refer to (one in flight in a socket). `object`
    /// says what it is, for messages; paths are seen as `subject` sees them.
    pub fn adopt(
        &mut self,
        fd: OwnedFd,
        subject: &Subject,
        object: &str,
        refusals: &mut Refusals,
    ) -> Result<FileId> {
        let doing = || format!("capturing {object}");
        let own = Process::new(std::process::id().cast_signed());
        let number = fd.as_raw_fd();
        let info = own.fdinfo(number).doing(doing)?;
        let place = Place {
            host_pid: own.host_pid(),
            fd: number,
        };
        let (id, new) = self
            .identities
            .identify(candidates(&info), place)
            .doing(doing)?;
        if new {
            let found = Found {
                id,
                fd: fd.as_fd(),
                link: own.link(format!("fd/{number}")).doing(doing)?,
                info: &info,
                status: statx::of(fd.as_fd()).doing(doing)?,
                subject,
                number: None,
                place,
                label: Some(object),
            };
            self.open_file(&found, refusals).doing(doing)?;
            self.adopted.insert(id, fd);
        }
        Ok(id)
    }

    fn open_file(&mut self, found: &Found<'_>, refusals: &mut Refusals) -> Result<()> {
        let Some(kind) = self.kind(found, refusals)? else {
            return Ok(());
        };
        let (owner, signal) = if found.bits() & libc::O_PATH == 0 {
            (
                self.owner(found, refusals)?,
                owner::signal(found.fd).doing(|| "asking for its signal")?,
            )
        } else {
            (None, 0)
        };
        self.records.open_files.push(OpenFile {
            id: found.id,
            flags: flags::names(found.info.flags),
            pos: found.info.pos,
            owner,
            signal,
            locks: lock::capture(found.info, || found.object(), refusals),
            kind,
        });
        Ok(())
    }

    fn owner(&self, found: &Found<'_>, refusals: &mut Refusals) -> Result<Option<FileOwner>> {
        let Some(owner) = owner::owner(found.fd).doing(|| "asking for its owner")? else {
            return Ok(None);
        };
        let (owner::Owner::Thread(host) | owner::Owner::Process(host) | owner::Owner::Group(host)) =
            owner;
        let Some(inside) = self.inner_pid(host) else {
            refusals.add(
                "E-OWNER-OUTSIDE",
                found.object(),
                format!("it signals process {host} (F_SETOWN), which is not in the container"),
                "let the program set another owner",
            );
            return Ok(None);
        };
        Ok(Some(match owner {
            owner::Owner::Thread(_) => FileOwner::Thread(inside),
            owner::Owner::Process(_) => FileOwner::Process(inside),
            owner::Owner::Group(_) => FileOwner::Group(inside),
        }))
    }

    /// The number in the container of a process, thread or group leader.
    pub(super) fn inner_pid(&self, host: i32) -> Option<i32> {
        if let Some(subject) = self.subjects.iter().find(|one| one.host_pid == host) {
            return Some(subject.pid);
        }
        let Ok(text) = Process::new(host).text("status") else {
            return self.inner_group(host);
        };
        let field = |name: &str| -> Option<Vec<i32>> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace()
                .map(|word| word.parse().ok())
                .collect()
        };
        let group = field("Tgid:")?.first().copied()?;
        self.subjects.iter().find(|one| one.host_pid == group)?;
        field("NSpid:")?.last().copied()
    }

    /// The number in the container of a process group whose leader is gone, from a member.
    fn inner_group(&self, host: i32) -> Option<i32> {
        self.subjects.iter().find_map(|subject| {
            let status = Process::new(subject.host_pid).status().ok()?;
            (*status.ns_pgid.first()? == host).then(|| status.ns_pgid.last().copied())?
        })
    }

    /// Locates a file that a process has (cwd, root, exe, a mapping): `fd` is it (O_PATH allowed),
    /// `link` what /proc shows. `object` names it in refusals. `None` where it was refused.
    pub fn refer(
        &mut self,
        subject: &Subject,
        fd: BorrowedFd<'_>,
        link: &[u8],
        object: &str,
        refusals: &mut Refusals,
    ) -> Result<Option<crate::image::files::FileReference>> {
        let located = self
            .locate(subject, fd, link)
            .doing(|| format!("capturing {object}"))?;
        let (code, reason) = match located {
            Located::Here(file) => return Ok(Some(file)),
            Located::Outside => (
                "E-FILE-OUTSIDE",
                format!(
                    "{} is on a mount that the container does not have",
                    String::from_utf8_lossy(link)
                ),
            ),
            Located::Unreachable(reason) => ("E-FILE-UNREACHABLE", reason),
        };
        refusals.add(
            code,
            object,
            reason,
            "run the program from a file of the container",
        );
        Ok(None)
    }

    /// Locates a file as `subject` sees it; see [`Located`].
    pub fn locate(
        &mut self,
        subject: &Subject,
        fd: BorrowedFd<'_>,
        link: &[u8],
    ) -> Result<Located> {
        let namespace = self.view(subject)?;
        reference::locate(&self.views[&namespace], &mut self.ghosts, fd, link)
    }

    /// What has a number in the table of a process.
    pub(super) fn at_number(&self, host_pid: i32, fd: i32) -> Option<FileId> {
        let pid = self
            .subjects
            .iter()
            .find(|one| one.host_pid == host_pid)?
            .pid;
        let pid = self.records.shared_tables.get(&pid).unwrap_or(&pid);
        let table = self.records.tables.get(pid)?;
        let at = table.binary_search_by_key(&fd, |one| one.fd).ok()?;
        Some(table[at].file)
    }

    /// The key in `views` of a process's mount namespace.
    pub(super) fn view(&mut self, subject: &Subject) -> Result<u64> {
        if let Some(namespace) = self.view_of.get(&subject.host_pid) {
            return Ok(*namespace);
        }
        let fd = ns::open(subject.host_pid, ns::Kind::Mnt)?;
        let namespace = statx::of(fd.as_fd())?.ino;
        if let Entry::Vacant(entry) = self.views.entry(namespace) {
            entry
                .insert(View::new(fd.as_fd()).doing(|| {
                    format!("looking into the mount namespace of pid {}", subject.pid)
                })?);
        }
        self.view_of.insert(subject.host_pid, namespace);
        Ok(namespace)
    }

    pub(super) fn views(&self) -> &HashMap<u64, View> {
        &self.views
    }

    /// The sockets found so far, in the order of their discovery.
    pub fn sockets(&self) -> &[SocketFile] {
        &self.sockets
    }

    /// A duplicate of an open file: for looking, not for changing.
    pub fn duplicate(&self, id: FileId) -> Result<OwnedFd> {
        if let Some(fd) = self.adopted.get(&id) {
            return Ok(fd.try_clone()?);
        }
        let place = self
            .identities
            .place(id)
            .ok_or_else(|| Error::bug(format!("there is no open file {}", id.0)))?;
        let subject = self
            .subjects
            .iter()
            .find(|subject| subject.host_pid == place.host_pid)
            .ok_or_else(|| Error::bug(format!("open file {} has no process", id.0)))?;
        pidfd::getfd(subject.pidfd.as_fd(), place.fd)
            .doing(|| format!("duplicating {}", object(subject, place.fd)))
    }

    /// Settles what needs all open files to be known, and hands everything over.
    pub fn finish(mut self, refusals: &mut Refusals) -> Result<Captured> {
        self.finish_epolls(refusals)?;
        let mut contents = Vec::new();
        for (inode, (pipe, ends)) in std::mem::take(&mut self.pipes) {
            if let Some(content) = self.finish_pipe(inode, pipe, &ends)? {
                contents.push(content);
            }
        }
        let mut files = self.records;
        files.ghosts = self.ghosts.records;
        files.posix_locks = self.posix_locks.finish(refusals);
        contents.append(&mut self.ghosts.contents);
        Ok(Captured {
            files,
            contents,
            memory: self.memory,
        })
    }

    /// A pipe of which one side is here and the other neither here nor closed leads out.
    fn finish_pipe(
        &mut self,
        inode: Inode,
        mut pipe: Pipe,
        ends: &[(FileId, Sides, External)],
    ) -> Result<Option<(String, Content)>> {
        let reader = ends.iter().find(|end| end.1.reads);
        let writer = ends.iter().find(|end| end.1.writes);
        let one_sided = reader.is_none() || writer.is_none();
        let mut fifo = false;
        for (id, sides, external) in ends {
            let Some(file) = find(&mut self.records.open_files, *id) else {
                continue;
            };
            fifo |= matches!(file.kind, FileKind::Fifo { .. });
            if one_sided && !sides.alone && !fifo {
                file.kind = FileKind::External(external.clone());
            }
        }
        let outside = one_sided && ends.iter().all(|end| !end.1.alone);
        if outside && !fifo {
            return Ok(None);
        }
        pipe.expectant = fifo && outside && writer.is_none();
        let mut content = None;
        if let Some((id, ..)) = reader {
            let fd = self.duplicate(*id)?;
            let (bytes, pieces) = pipe::content(fd.as_fd(), pipe.capacity)
                .doing(|| format!("reading the queue of pipe {}", inode.ino))?;
            if !bytes.is_empty() {
                let member = format!("files/pipe-{:x}-{}", inode.dev, inode.ino);
                pipe.member = Some(member.clone());
                pipe.pieces = pieces;
                content = Some((member, Content::Bytes(bytes)));
            }
        }
        self.records.pipes.push(pipe);
        Ok(content)
    }
}

/// Records are pushed in the order of their ids, with gaps where something was refused.
pub(super) fn find(files: &mut [OpenFile], id: FileId) -> Option<&mut OpenFile> {
    let at = files.binary_search_by_key(&id, |file| file.id).ok()?;
    files.get_mut(at)
}

fn candidates(info: &Fdinfo) -> (u64, u64, u64) {
    let serial = info
        .other
        .iter()
        .find_map(|line| line.strip_prefix("eventfd-id:")?.trim().parse().ok())
        .unwrap_or(0);
    (info.mnt_id, info.inode.unwrap_or(0), serial)
}

/// `fd 17 of pid 812 (nginx)`.
pub(super) fn object(subject: &Subject, fd: i32) -> String {
    format!("fd {fd} of pid {} ({})", subject.pid, subject.comm)
}
