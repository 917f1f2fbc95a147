//! A mount namespace as seen from outside: its root and its mounts.

use crate::error::{Context, Result};
use crate::image::PathBytes;
use crate::image::files::Inode;
use crate::proc::mountinfo::{self, Mount};
use crate::sys::{ns, statx};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A mount namespace. Paths are walked from its root by descriptor, so no thread has to be in it.
#[derive(Debug)]
pub struct View {
    root: OwnedFd,
    pub(super) mounts: BTreeMap<u64, Mount>,
}

impl View {
    /// Looks into the mount namespace behind that descriptor.
    pub fn new(namespace: BorrowedFd<'_>) -> Result<Self> {
        let proc = open(
            "/proc",
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .doing(|| "opening /proc")?;
        let (root, text) = ns::inside(&[namespace], || {
            let root = open(
                "/",
                OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .doing(|| "opening the root of a mount namespace")?;
            let read = || -> Result<Vec<u8>> {
                let mut bytes = Vec::new();
                let info = openat(
                    &proc,
                    "thread-self/mountinfo",
                    OFlag::O_RDONLY | OFlag::O_CLOEXEC,
                    Mode::empty(),
                )?;
                File::from(info).read_to_end(&mut bytes)?;
                Ok(bytes)
            };
            let text = read().doing(|| "reading mountinfo of a mount namespace")?;
            Ok((root, text))
        })?;
        Ok(Self {
            root,
            mounts: mountinfo::parse(&text)?
                .into_iter()
                .map(|mount| (mount.id, mount))
                .collect(),
        })
    }

    /// The mount namespace of process `host_pid`.
    pub fn of(host_pid: i32) -> Result<Self> {
        Self::new(ns::open(host_pid, ns::Kind::Mnt)?.as_fd())
    }

    /// Its root (O_PATH).
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens `path` from the root. No component may be a symbolic link: the kernel shows paths
    /// without, and an image must not lead elsewhere.
    pub fn open(&self, path: &[u8], flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
        let relative = path.strip_prefix(b"/").unwrap_or(path);
        let relative = if relative.is_empty() { b"." } else { relative };
        openat2(
            &self.root,
            Path::new(OsStr::from_bytes(relative)),
            OpenHow::new()
                .flags(flags | OFlag::O_CLOEXEC)
                .mode(mode)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS),
        )
    }

    /// What is at `path`; `None` where nothing is.
    pub(super) fn status(&self, path: &[u8]) -> Result<Option<statx::Status>> {
        match self.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(statx::of(fd.as_fd())?)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => Ok(None),
            Err(errno) => Err(errno)
                .doing(|| format!("looking at {} in the container", PathBytes::from(path))),
        }
    }
}

/// The identity that records use.
pub(super) fn inode(status: &statx::Status) -> Inode {
    Inode {
        dev: device(status.dev),
        ino: status.ino,
    }
}

/// `st_dev` of a major and minor number.
pub(super) fn device((major, minor): (u32, u32)) -> u64 {
    libc::makedev(major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_of_our_own_namespace_finds_our_files() {
        let view = View::of(std::process::id().cast_signed()).unwrap();
        let status = view.status(b"/proc/version").unwrap().unwrap();
        assert_eq!(view.mounts[&status.mount].fs_type, b"proc");
        assert!(view.status(b"/proc/self/status").unwrap().is_none());
        assert!(view.status(b"/nowhere").unwrap().is_none());
    }
}
