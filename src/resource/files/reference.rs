//! How to reopen a file that a process had: by its path where that still leads to it, by another
//! link, or as a file without a name that is made anew.

use super::Contents;
use super::ghost::{Ghosts, Made};
use super::view::device;
use super::view::{View, inode};
use crate::error::{Context, Error, Exit, Result};
use crate::image::PathBytes;
use crate::image::files::{FileReference, Ghost, GhostId};
use crate::sys::statx;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{LinkatFlags, linkat};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Entries of a mount that are looked at when another link of an inode is searched.
const SEARCH_LIMIT: usize = 1_000_000;

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Located {
    /// In the container; this is how to open it again.
    Here(FileReference),
    /// On a mount that is not in the container's mount namespace.
    Outside,
    /// It has a name somewhere that was not found: the reason, for a refusal.
    Unreachable(String),
}

/// Locates the file behind `fd` (O_PATH allowed), whose link in /proc reads `link`. A file without
/// a name goes to `ghosts`.
pub(super) fn locate(
    view: &View,
    ghosts: &mut Ghosts,
    fd: BorrowedFd<'_>,
    link: &[u8],
) -> Result<Located> {
    let status = statx::of(fd)?;
    if !view.mounts.contains_key(&status.mount) {
        return Ok(Located::Outside);
    }
    let reference = |path: &[u8]| FileReference {
        path: path.into(),
        inode: inode(&status),
        file_type: type_name(status.mode).to_owned(),
        size: status.size,
        mtime: status.mtime,
        ghost: None,
        opened_as: None,
    };
    if leads_to(view, link, &status)? {
        return Ok(Located::Here(reference(link)));
    }
    let path = link.strip_suffix(b" (deleted)").unwrap_or(link);
    if path.len() != link.len() && leads_to(view, path, &status)? {
        return Ok(Located::Here(reference(path)));
    }
    if view.mounts[&status.mount].fs_type == b"proc" {
        return Ok(Located::Unreachable(
            "the process or object of /proc that it belongs to is gone".to_owned(),
        ));
    }
    if status.nlink == 0 {
        let ghost = ghosts.capture(fd, path, &status)?;
        return Ok(Located::Here(FileReference {
            ghost: Some(ghost),
            ..reference(path)
        }));
    }
    Ok(match other_link(view, path, &status)? {
        Some(found) => Located::Here(FileReference {
            opened_as: Some(path.into()),
            ..reference(&found)
        }),
        None => Located::Unreachable(format!(
            "it was opened as {}, which is gone or hidden, and its other name was not found on the \
             same mount",
            PathBytes::from(path)
        )),
    })
}

fn leads_to(view: &View, path: &[u8], wanted: &statx::Status) -> Result<bool> {
    Ok(view
        .status(path)?
        .is_some_and(|found| inode(&found) == inode(wanted)))
}

/// Another name of that inode: first beside the old one, then anywhere on its mount.
fn other_link(view: &View, path: &[u8], wanted: &statx::Status) -> Result<Option<Vec<u8>>> {
    let point = &view.mounts[&wanted.mount].mount_point;
    let parent = path.rsplitn(2, |byte| *byte == b'/').nth(1).unwrap_or(b"/");
    let identity = inode(wanted);
    let mut budget = SEARCH_LIMIT;
    for (start, deep) in [(parent, false), (point.as_slice(), true)] {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let Ok(top) = view.open(start, flags, Mode::empty()) else {
            continue;
        };
        let Some(found) = search(top.as_fd(), deep, &mut budget, |status| {
            (status.dev(), status.ino()) == (identity.dev, identity.ino)
        })?
        else {
            continue;
        };
        let mut full = start.strip_suffix(b"/").unwrap_or(start).to_vec();
        full.push(b'/');
        full.extend_from_slice(found.as_os_str().as_bytes());
        // The search follows directories as they are; what it found must lead there by name too.
        if leads_to(view, &full, wanted)? {
            return Ok(Some(full));
        }
    }
    Ok(None)
}

/// Looks for an inode below `top` without leaving its file system; the path relative to `top`.
fn search(
    top: BorrowedFd<'_>,
    deep: bool,
    budget: &mut usize,
    wanted: impl Fn(&std::fs::Metadata) -> bool,
) -> Result<Option<PathBuf>> {
    let base = PathBuf::from(format!("/proc/self/fd/{}", top.as_raw_fd()));
    let device = device(statx::of(top)?.dev);
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(base.join(&relative)) else {
            continue;
        };
        for entry in entries.flatten() {
            *budget = match budget.checked_sub(1) {
                Some(left) => left,
                None => return Ok(None),
            };
            let Ok(status) = entry.metadata() else {
                continue;
            };
            let name = relative.join(entry.file_name());
            if wanted(&status) {
                return Ok(Some(name));
            }
            if deep && status.is_dir() && status.dev() == device {
                pending.push(name);
            }
        }
    }
    Ok(None)
}

/// A file of the mount at `point` by its inode number alone, for file systems without handles.
pub(super) fn find_by_number(view: &View, point: &[u8], ino: u64) -> Result<Option<OwnedFd>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let Ok(top) = view.open(point, flags, Mode::empty()) else {
        return Ok(None);
    };
    if statx::of(top.as_fd())?.ino == ino {
        return Ok(Some(top));
    }
    let mut budget = SEARCH_LIMIT;
    let Some(found) = search(top.as_fd(), true, &mut budget, |status| status.ino() == ino)? else {
        return Ok(None);
    };
    let mut full = point.strip_suffix(b"/").unwrap_or(point).to_vec();
    full.push(b'/');
    full.extend_from_slice(found.as_os_str().as_bytes());
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    Ok(view.open(&full, flags, Mode::empty()).ok())
}

/// The name that records use for the type in `st_mode`.
pub(super) fn type_name(mode: u32) -> &'static str {
    match mode & libc::S_IFMT {
        libc::S_IFREG => "regular",
        libc::S_IFDIR => "directory",
        libc::S_IFIFO => "fifo",
        libc::S_IFLNK => "symlink",
        libc::S_IFCHR => "char-device",
        libc::S_IFBLK => "block-device",
        libc::S_IFSOCK => "socket",
        _ => "anonymous",
    }
}

/// Opens references in the new container.
pub struct Opener<'a> {
    view: View,
    contents: &'a dyn Contents,
    ghosts: BTreeMap<GhostId, Made>,
    strict: bool,
    /// Terminals that have been made already: where their devpts is mounted, number, master.
    masters: Vec<(PathBytes, u32, OwnedFd)>,
}

impl<'a> Opener<'a> {
    /// For the mount namespace behind `namespace`. With `strict` a file whose size is not the
    /// recorded one is an error (E-FILE-CHANGED).
    pub fn new(
        namespace: BorrowedFd<'_>,
        ghosts: &[Ghost],
        contents: &'a dyn Contents,
        strict: bool,
    ) -> Result<Self> {
        Ok(Self {
            view: View::new(namespace)?,
            contents,
            ghosts: ghosts
                .iter()
                .map(|ghost| (ghost.id, Made::new(ghost.clone())))
                .collect(),
            strict,
            masters: Vec::new(),
        })
    }

    /// Hands over a terminal that had to be made with the mounts (its node is mounted on
    /// /dev/console), so that it is not made again.
    pub fn give_master(&mut self, devpts: PathBytes, index: u32, master: OwnedFd) {
        self.masters.push((devpts, index, master));
    }

    pub(super) fn take_master(&mut self, devpts: &PathBytes, index: u32) -> Option<OwnedFd> {
        let mut masters = self.masters.iter();
        let at = masters.position(|one| one.0 == *devpts && one.1 == index)?;
        Some(self.masters.swap_remove(at).2)
    }

    /// The mount namespace.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Opens the file; O_* bits in `flags` that only make sense at creation are ignored, a terminal
    /// never becomes controlling.
    pub fn open(&mut self, reference: &FileReference, flags: i32) -> Result<OwnedFd> {
        let doing = || format!("opening {} in the container", reference.path);
        let fd = self.open_unchecked(reference, flags).doing(doing)?;
        self.check(reference, fd.as_fd()).doing(doing)?;
        Ok(fd)
    }

    fn open_unchecked(&mut self, reference: &FileReference, flags: i32) -> Result<OwnedFd> {
        let flags = open_flags(flags);
        if let Some(id) = reference.ghost {
            let made = self.ghosts.get_mut(&id).ok_or_else(|| {
                Error::coded(
                    "E-IMAGE-GHOST",
                    Exit::Image,
                    format!("there is no record of ghost {}", id.0),
                    "the image is damaged",
                )
            })?;
            return made.open(&self.view, self.contents, flags);
        }
        let path = reference.path.as_bytes();
        match &reference.opened_as {
            Some(old) => self.open_by_old_name(path, old.as_bytes(), flags),
            None => Ok(self.view.open(path, flags, Mode::empty())?),
        }
    }

    /// Opens `path` by its old name, which exists only for that moment. Where the old name is taken
    /// or its directory gone, the file is opened by its present one: /proc shows it differently, it
    /// is the same file.
    fn open_by_old_name(&self, path: &[u8], old: &[u8], flags: OFlag) -> Result<OwnedFd> {
        let (parent, name) = split(old);
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
        if let Ok(parent) = self.view.open(parent, directory, Mode::empty()) {
            let target = self.view.open(path, OFlag::O_PATH, Mode::empty())?;
            let linked = linkat(
                &target,
                "",
                &parent,
                Path::new(name),
                LinkatFlags::AT_EMPTY_PATH,
            );
            if linked.is_ok() {
                let fd = self.view.open(old, flags, Mode::empty());
                super::ghost::unlink(parent.as_fd(), name, false)?;
                return Ok(fd?);
            }
        }
        Ok(self.view.open(path, flags, Mode::empty())?)
    }

    fn check(&self, reference: &FileReference, fd: BorrowedFd<'_>) -> Result<()> {
        let status = statx::of(fd)?;
        let found = type_name(status.mode);
        let changed = if found != reference.file_type {
            format!("it was a {} and is a {found}", reference.file_type)
        } else if self.strict && found == "regular" && status.size != reference.size {
            format!(
                "it had {} bytes and has {} now",
                reference.size, status.size
            )
        } else {
            return Ok(());
        };
        Err(Error::coded(
            "E-FILE-CHANGED",
            Exit::Host,
            changed,
            "restore the file as it was at the checkpoint",
        ))
    }
}

/// Directory and name.
pub(super) fn split(path: &[u8]) -> (&[u8], &std::ffi::OsStr) {
    let at = path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = match at {
        Some(0) => (&b"/"[..], &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b"/"[..], path),
    };
    (parent, std::ffi::OsStr::from_bytes(name))
}

/// What can be asked for at open(2) of a file that exists.
pub(super) fn open_flags(bits: i32) -> OFlag {
    let tmpfile = libc::O_TMPFILE & !libc::O_DIRECTORY;
    let bits = if bits & tmpfile != 0 {
        bits & !libc::O_TMPFILE
    } else {
        bits
    };
    let never = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC | libc::O_ASYNC;
    let bits = bits & !never;
    let bits = if bits & libc::O_PATH != 0 {
        bits & (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)
    } else {
        bits | libc::O_NOCTTY
    };
    OFlag::from_bits_retain(bits | libc::O_CLOEXEC)
}

/// Opens once more what `fd` refers to, as an open file of its own.
pub(super) fn reopen(fd: BorrowedFd<'_>, flags: OFlag) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = flags & !(OFlag::O_NOFOLLOW);
    open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
        .doing(|| format!("reopening {path}"))
}

#[cfg(test)]
pub(super) fn search_for_test(top: &Path, wanted: &statx::Status) -> Result<Option<PathBuf>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let top = open(top, flags, Mode::empty())?;
    let identity = inode(wanted);
    search(top.as_fd(), true, &mut 100, |status| {
        (status.dev(), status.ino()) == (identity.dev, identity.ino)
    })
}
