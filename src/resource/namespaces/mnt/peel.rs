//! The roots of all mounts of another mount namespace, those that others hide included.
//!
//! A hidden mount has no path. So a thread makes a copy of the namespace, which nobody else is in and
//! from which nothing spreads, and takes it apart from the outside in: what hides goes before what it
//! hides, and of each mount a descriptor is kept.

use super::order::{children, root};
use crate::error::{Context, Error, Result};
use crate::proc::mountinfo::{Mount, parse};
use crate::sys::{mount, ns, statx};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const PLACE: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// Mountinfo of the calling thread, by a descriptor of a /proc that shows it.
pub(super) fn own_mountinfo(proc: BorrowedFd<'_>) -> Result<Vec<Mount>> {
    let read = || -> Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut text = Vec::new();
        let file = openat(proc, "thread-self/mountinfo", flags, Mode::empty())?;
        File::from(file).read_to_end(&mut text)?;
        Ok(text)
    };
    parse(read().doing(|| "reading mountinfo of a mount namespace")?)
}

/// O_PATH descriptors of the roots of `mounts` (all of the namespace behind `namespace`) by id, with
/// nothing mounted on them any more. `root_mount` is the mount that the root of the container's
/// first process is on: `None` where the root of the namespace is another.
pub(super) fn peel(
    namespace: BorrowedFd<'_>,
    root_mount: u64,
    mounts: &[Mount],
) -> Result<Option<HashMap<u64, OwnedFd>>> {
    let proc =
        open("/proc", PLACE | OFlag::O_DIRECTORY, Mode::empty()).doing(|| "opening /proc")?;
    ns::inside(&[namespace], || {
        let top = || open("/", PLACE, Mode::empty()).doing(|| "opening the container's root");
        if statx::of(top()?.as_fd())?.mount != root_mount {
            return Ok(None);
        }
        ns::unshare_own(ns::Kind::Mnt)?;
        let top = top()?;
        mount::set_propagation(top.as_fd(), mount::Propagation::Private, true)
            .doing(|| "making a copy of a mount namespace private")?;
        let copies = own_mountinfo(proc.as_fd())?;
        let mut peeling = Peeling {
            top: top.as_fd(),
            originals: mounts,
            original_children: children(mounts),
            copies: &copies,
            copy_children: children(&copies),
            found: HashMap::new(),
        };
        let (Some(original), Some(copy)) = (root(mounts), root(&copies)) else {
            return Err(Error::bug("a mount namespace without a root"));
        };
        peeling.mount(original, copy)?;
        Ok(Some(peeling.found))
    })
}

struct Peeling<'a> {
    top: BorrowedFd<'a>,
    originals: &'a [Mount],
    original_children: HashMap<u64, Vec<usize>>,
    copies: &'a [Mount],
    copy_children: HashMap<u64, Vec<usize>>,
    found: HashMap<u64, OwnedFd>,
}

impl Peeling<'_> {
    fn mount(&mut self, original: usize, copy: usize) -> Result<()> {
        let (original, copy) = (&self.originals[original], &self.copies[copy]);
        let mut below = self.copy_children.remove(&copy.id).unwrap_or_default();
        below.sort_by_key(|&child| self.copies[child].mount_point.len());
        let originals = self
            .original_children
            .get(&original.id)
            .cloned()
            .unwrap_or_default();
        for child in below {
            let point = &self.copies[child].mount_point;
            // One place of one mount has at most one mount on it.
            let same = originals
                .iter()
                .find(|&&one| self.originals[one].mount_point == *point)
                .ok_or_else(|| Error::bug("a copy of a mount namespace has other mounts"))?;
            self.mount(*same, child)?;
        }
        let point = Path::new(OsStr::from_bytes(&copy.mount_point));
        let doing = || {
            format!(
                "looking at the mount on {} in the container",
                point.display()
            )
        };
        let fd = self.open(&copy.mount_point).doing(doing)?;
        if statx::of(fd.as_fd()).doing(doing)?.mount != copy.id {
            return Err(Error::bug("another mount is in the way").doing(doing()));
        }
        self.found.insert(original.id, fd);
        if copy.mount_point != b"/" {
            umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .doing(|| format!("unmounting {} in a copy", point.display()))?;
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let path = if path.is_empty() { b"." } else { path };
        openat2(
            self.top,
            Path::new(OsStr::from_bytes(path)),
            OpenHow::new()
                .flags(PLACE | OFlag::O_NOFOLLOW)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS),
        )
    }
}
