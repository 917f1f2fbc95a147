//! pidfd_open(2).

use super::capture::Capturer;
use super::kind::Found;
use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::files::{FileKind, PidfdTarget};
use crate::sys::pidfd as sys;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};

impl Capturer<'_> {
    pub(super) fn pidfd(
        &self,
        found: &Found<'_>,
        refusals: &mut Refusals,
    ) -> Result<Option<FileKind>> {
        let shown = found
            .info
            .pidfd
            .as_ref()
            .ok_or_else(|| found.unreadable("Pid"))?;
        if shown.pid < 0 {
            return Ok(Some(FileKind::Pidfd(PidfdTarget::Gone(found.status.ino))));
        }
        match self.inner_pid(shown.pid) {
            Some(pid) if found.bits() & libc::O_EXCL != 0 => {
                Ok(Some(FileKind::Pidfd(PidfdTarget::Thread(pid))))
            }
            Some(pid) => Ok(Some(FileKind::Pidfd(PidfdTarget::Process(pid)))),
            None => {
                refusals.add(
                    "E-PIDFD-OUTSIDE",
                    found.object(),
                    "it stands for a process that is not in the container",
                    "let the program close it",
                );
                Ok(None)
            }
        }
    }
}

/// Descriptors of one dead process stay descriptors of one process.
#[derive(Default)]
pub(super) struct Dead(HashMap<u64, OwnedFd>);

pub(super) fn rebuild(
    target: PidfdTarget,
    processes: &BTreeMap<i32, i32>,
    dead: &mut Dead,
) -> Result<OwnedFd> {
    let (pid, flags) = match target {
        PidfdTarget::Process(pid) => (pid, 0),
        PidfdTarget::Thread(pid) => (pid, libc::O_EXCL),
        PidfdTarget::Gone(key) => {
            let first = match dead.0.remove(&key) {
                Some(fd) => fd,
                None => sys::of_dead().doing(|| "making a process to be dead")?,
            };
            let first = dead.0.entry(key).or_insert(first);
            return super::reference::reopen(first.as_fd(), nix::fcntl::OFlag::O_RDWR)
                .or_else(|_| Ok(first.try_clone()?));
        }
    };
    let host = processes.get(&pid).copied().ok_or_else(|| {
        Error::coded(
            "E-IMAGE-PIDFD",
            Exit::Image,
            format!("there is no process {pid}"),
            "the image is damaged",
        )
    })?;
    sys::open_with(host, flags).doing(|| format!("opening a pidfd of pid {pid}"))
}
