//! What kind of thing an open file is, and who knows it.

use super::capture::Capturer;
use super::pipe::Sides;
use super::reference::{Located, type_name};
use super::view::inode;
use super::{Subject, device, epoll, eventfd, memfd, pipe, pty, signalfd, timerfd};
use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::PathBytes;
use crate::image::files::{External, FileId, FileKind};
use crate::proc::fdinfo::Fdinfo;
use crate::sys::statx;
use nix::sys::statfs::{FsType, fstatfs};
use std::os::fd::BorrowedFd;

/// An open file under examination.
pub(super) struct Found<'a> {
    pub id: FileId,
    /// A duplicate: looking only.
    pub fd: BorrowedFd<'a>,
    /// The link in /proc.
    pub link: Vec<u8>,
    pub info: &'a Fdinfo,
    pub status: statx::Status,
    pub subject: &'a Subject,
    /// The number under which it was found first; `None` for one in flight.
    pub number: Option<i32>,
    /// Where the open file was found, for kcmp.
    pub place: super::identity::Place,
    /// For messages, where it is no descriptor.
    pub label: Option<&'a str>,
}

impl Found<'_> {
    /// `fd 17 of pid 812 (nginx)`.
    pub fn object(&self) -> String {
        match (self.label, self.number) {
            (Some(label), _) => label.to_owned(),
            (None, Some(fd)) => super::capture::object(self.subject, fd),
            (None, None) => format!("a file of pid {}", self.subject.pid),
        }
    }

    /// The link for messages.
    pub fn shown(&self) -> PathBytes {
        PathBytes(self.link.clone())
    }

    pub fn bits(&self) -> i32 {
        self.info.flags.cast_signed()
    }

    /// A line of fdinfo is missing or not understood.
    pub fn unreadable(&self, name: &str) -> Error {
        Error::coded(
            "E-PROC-FORMAT",
            Exit::Host,
            format!("fdinfo of {} has no readable {name} line", self.shown()),
            "report it with the kernel's version",
        )
    }

    /// The record of something that leads out of the container.
    pub fn external(&self, key: String) -> External {
        External {
            key,
            what: self.shown(),
            file_type: type_name(self.status.mode).to_owned(),
            stream: self.number.filter(|fd| (0..=2).contains(fd)),
        }
    }
}

/// nsfs, secretmem, mqueue: `<linux/magic.h>`.
const NSFS: i64 = 0x6e73_6673;
const SECRETMEM: i64 = 0x5345_434d;
const MQUEUE: i64 = 0x1980_0202;

impl Capturer<'_> {
    /// Describes an open file; `None` where it was refused.
    pub(super) fn kind(
        &mut self,
        found: &Found<'_>,
        refusals: &mut Refusals,
    ) -> Result<Option<FileKind>> {
        if found.bits() & libc::O_PATH != 0 {
            return self.by_path(found, refusals);
        }
        if let Some(name) = found.link.strip_prefix(b"anon_inode:") {
            return self.anonymous(found, &String::from_utf8_lossy(name), refusals);
        }
        match found.status.mode & libc::S_IFMT {
            libc::S_IFSOCK => {
                self.sockets.push(super::SocketFile {
                    file: found.id,
                    inode: found.status.ino,
                    who: found.object(),
                });
                Ok(Some(FileKind::Socket {
                    socket: found.status.ino,
                }))
            }
            libc::S_IFIFO => self.pipe_or_fifo(found, refusals),
            libc::S_IFCHR => self.character_device(found, refusals),
            libc::S_IFREG | libc::S_IFDIR => self.regular(found, refusals),
            _ => {
                refusals.add(
                    "E-FILE-TYPE",
                    found.object(),
                    format!("{} is a {}", found.shown(), type_name(found.status.mode)),
                    "let the program close it first",
                );
                Ok(None)
            }
        }
    }

    fn anonymous(
        &mut self,
        found: &Found<'_>,
        name: &str,
        refusals: &mut Refusals,
    ) -> Result<Option<FileKind>> {
        let name = name.trim_matches(['[', ']']);
        let (code, what) = match name {
            "eventfd" => return eventfd::capture(found).map(Some),
            "eventpoll" => {
                let (kind, pending) = epoll::capture(found);
                self.epolls.push(pending);
                return Ok(Some(kind));
            }
            "timerfd" => return timerfd::capture(found).map(Some),
            "signalfd" => return signalfd::capture(found).map(Some),
            "inotify" => return self.inotify(found, refusals),
            "pidfd" => return self.pidfd(found, refusals),
            "io_uring" => (
                "E-IOURING",
                "an io_uring instance, whose rings and requests in flight the kernel does not show",
            ),
            "userfaultfd" => (
                "E-USERFAULTFD",
                "a userfaultfd, which is bound to memory registrations",
            ),
            "fanotify" => (
                "E-FANOTIFY",
                "a fanotify group, whose marks and pending permission events belong to this host",
            ),
            "perf_event" => (
                "E-PERF",
                "a perf event, whose counters belong to this processor",
            ),
            "seccomp notify" => (
                "E-SECCOMP-NOTIFY",
                "a seccomp listener, whose notifications are in flight",
            ),
            "landlock-ruleset" => (
                "E-LANDLOCK",
                "a Landlock ruleset, whose rules the kernel does not show",
            ),
            "fscontext" => ("E-FSCONTEXT", "a file system being configured (fsopen)"),
            name if name.starts_with("bpf") || name == "btf" => {
                ("E-BPF", "a BPF object, which lives in this kernel")
            }
            name if name.starts_with("kvm") => ("E-KVM", "a virtual machine"),
            _ => (
                "E-ANON-INODE",
                "a kind of kernel object that this engine does not know",
            ),
        };
        refusals.add(
            code,
            found.object(),
            format!("{} is {what}", found.shown()),
            "let the program close it before the checkpoint",
        );
        Ok(None)
    }

    fn regular(&mut self, found: &Found<'_>, refusals: &mut Refusals) -> Result<Option<FileKind>> {
        let FsType(magic) = fstatfs(found.fd)
            .doing(|| "asking for its file system")?
            .filesystem_type();
        let (code, what) = match magic {
            SECRETMEM => ("E-SECRETMEM", "secret memory, which nobody else can read"),
            MQUEUE => (
                "E-MQUEUE",
                "a POSIX message queue, whose messages nobody can read without taking them",
            ),
            NSFS if !found.link.starts_with(b"/") => return Ok(self.namespace(found, refusals)),
            _ if self.is_memory(found)? => {
                let memory = inode(&found.status);
                if !self.memory.contains_key(&memory) {
                    let (record, fd) = memfd::capture(found)?;
                    self.records.memory_files.push(record);
                    self.memory.insert(memory, fd);
                }
                return Ok(Some(FileKind::Memory { memory }));
            }
            _ => return self.by_path(found, refusals),
        };
        refusals.add(
            code,
            found.object(),
            format!("{} is {what}", found.shown()),
            "let the program close it before the checkpoint",
        );
        Ok(None)
    }

    /// A memory file has a name like a path, but no mount that anybody sees.
    fn is_memory(&mut self, found: &Found<'_>) -> Result<bool> {
        let named = memfd::name(&found.link).is_some();
        let namespace = self.view(found.subject)?;
        let mounts = &self.views()[&namespace].mounts;
        Ok(named && !mounts.contains_key(&found.status.mount))
    }

    /// Whatever can be opened again by path.
    fn by_path(&mut self, found: &Found<'_>, refusals: &mut Refusals) -> Result<Option<FileKind>> {
        match self.locate(found.subject, found.fd, &found.link)? {
            Located::Here(file) => Ok(Some(FileKind::Path(file))),
            Located::Outside => {
                let key = format!("file[{:x}:{:x}]", found.status.mount, found.status.ino);
                self.external_or_refuse(found, key, "E-FILE-OUTSIDE", refusals)
            }
            Located::Unreachable(reason) => {
                refusals.add(
                    "E-FILE-UNREACHABLE",
                    found.object(),
                    reason,
                    "give the file a name in the container, or let the program close it",
                );
                Ok(None)
            }
        }
    }

    /// Standard streams and what the caller named may lead out of the container.
    pub(super) fn external_or_refuse(
        &mut self,
        found: &Found<'_>,
        key: String,
        code: &'static str,
        refusals: &mut Refusals,
    ) -> Result<Option<FileKind>> {
        let external = found.external(key);
        if external.stream.is_some() || self.options.external.contains(&external.key) {
            return Ok(Some(FileKind::External(external)));
        }
        refusals.add(
            code,
            found.object(),
            format!("{} is outside of the container", found.shown()),
            format!(
                "let the program close it, or name {} as external",
                external.key
            ),
        );
        Ok(None)
    }

    fn character_device(
        &mut self,
        found: &Found<'_>,
        refusals: &mut Refusals,
    ) -> Result<Option<FileKind>> {
        if pty::is_pty(found.status.rdev) {
            return self.pty(found, refusals);
        }
        let located = self.locate(found.subject, found.fd, &found.link)?;
        let key = format!("dev[{}:{}]", found.status.rdev.0, found.status.rdev.1);
        let mapped = self.options.external.contains(&key);
        device::capture(found, located, mapped, refusals)
    }

    fn pipe_or_fifo(
        &mut self,
        found: &Found<'_>,
        refusals: &mut Refusals,
    ) -> Result<Option<FileKind>> {
        let identity = inode(&found.status);
        let kind = if found.link.starts_with(b"pipe:[") {
            FileKind::Pipe { pipe: identity }
        } else {
            match self.by_path(found, refusals)? {
                Some(FileKind::Path(file)) => FileKind::Fifo {
                    file,
                    pipe: identity,
                },
                other => return Ok(other),
            }
        };
        let sides = Sides::of(found.fd, found.bits())?;
        let entry = match self.pipes.entry(identity) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert((pipe::describe(found.fd)?, Vec::new()))
            }
        };
        entry.1.push((
            found.id,
            sides,
            found.external(format!("pipe:[{}]", identity.ino)),
        ));
        Ok(Some(kind))
    }
}
