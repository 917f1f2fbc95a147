//! inotify(7): watches by number. Events that wait to be read cannot be seen without taking them.

use super::capture::Capturer;
use super::kind::Found;
use super::reference::{Located, Opener, find_by_number};
use crate::error::{Context, Refusals, Result};
use crate::image::files::{FileKind, Watch};
use crate::proc::fdinfo::InotifyWatch;
use crate::sys::{handle, inotify as sys, pipe};
use nix::fcntl::{OFlag, readlink};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// What inotify_add_watch takes and the kernel keeps.
const MASK: u32 = libc::IN_ALL_EVENTS | libc::IN_ONESHOT | libc::IN_EXCL_UNLINK;

impl Capturer<'_> {
    pub(super) fn inotify(
        &mut self,
        found: &Found<'_>,
        refusals: &mut Refusals,
    ) -> Result<Option<FileKind>> {
        let queued = pipe::readable(found.fd).doing(|| "asking for queued events")?;
        if queued > 0 {
            refusals.add(
                "E-INOTIFY-QUEUED",
                found.object(),
                format!("{queued} bytes of inotify events wait to be read, which only the program can do"),
                "try again when the program has read them",
            );
        }
        let mut watches = Vec::new();
        for shown in &found.info.inotify {
            let doing = || format!("finding what watch {} watches", shown.wd);
            let file = match self.watched(found, shown).doing(doing)? {
                Some(fd) => {
                    let link = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str())?;
                    self.locate(found.subject, fd.as_fd(), &link.into_vec())
                        .doing(doing)?
                }
                None => Located::Outside,
            };
            match file {
                Located::Here(file) => watches.push(Watch {
                    wd: shown.wd,
                    mask: shown.mask & MASK,
                    file,
                }),
                Located::Outside | Located::Unreachable(_) => refusals.add(
                    "E-INOTIFY-WATCH",
                    found.object(),
                    format!(
                        "watch {} is on inode {} of device {}:{}, which was not found in the container",
                        shown.wd, shown.inode, shown.device.major, shown.device.minor
                    ),
                    "let the program remove the watch",
                ),
            }
        }
        watches.sort_by_key(|watch| watch.wd);
        Ok(Some(FileKind::Inotify { watches }))
    }

    /// What is watched, opened through one of the container's mounts of that file system: by handle,
    /// or where it has none (overlayfs) by walking the mount.
    fn watched(&mut self, found: &Found<'_>, shown: &InotifyWatch) -> Result<Option<OwnedFd>> {
        let namespace = self.view(found.subject)?;
        let view = &self.views()[&namespace];
        let mounts: Vec<_> = view
            .mounts
            .values()
            .filter(|mount| mount.device == shown.device)
            .collect();
        for mount in &mounts {
            let directory = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            let Ok(top) = view.open(&mount.mount_point, directory, Mode::empty()) else {
                continue;
            };
            if let Some(known) = &shown.handle
                && let Ok(fd) = handle::open(top.as_fd(), known.kind, &known.bytes)
            {
                return Ok(Some(fd));
            }
        }
        for mount in &mounts {
            if let Some(fd) = find_by_number(view, &mount.mount_point, shown.inode)? {
                return Ok(Some(fd));
            }
        }
        Ok(None)
    }
}

pub(super) fn rebuild() -> Result<OwnedFd> {
    sys::create().doing(|| "making an inotify instance")
}

/// Sets the watches: after everything that would be an event for them.
pub(super) fn watch(
    inotify: BorrowedFd<'_>,
    watches: &[Watch],
    opener: &mut Opener<'_>,
) -> Result<()> {
    for watch in watches {
        let nofollow = libc::O_PATH | libc::O_NOFOLLOW;
        let file = opener.open(&watch.file, nofollow)?;
        sys::watch(inotify, file.as_fd(), watch.wd, watch.mask)
            .doing(|| format!("setting watch {} on {}", watch.wd, watch.file.path))?;
    }
    Ok(())
}
