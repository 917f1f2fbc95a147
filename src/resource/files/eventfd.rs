//! eventfd(2).

use super::kind::Found;
use crate::error::{Context, Error, Exit, Result};
use crate::image::files::FileKind;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::OwnedFd;

pub(super) fn capture(found: &Found<'_>) -> Result<FileKind> {
    let shown = found
        .info
        .eventfd
        .as_ref()
        .ok_or_else(|| found.unreadable("eventfd-count"))?;
    Ok(FileKind::Eventfd {
        count: shown.count,
        // Shown since Linux 6.5; nothing else tells.
        semaphore: shown.semaphore.ok_or_else(|| {
            Error::coded(
                "E-HOST-EVENTFD",
                Exit::Host,
                "this kernel does not show whether an eventfd is a semaphore",
                "use Linux 6.5 or later",
            )
        })?,
    })
}

pub(super) fn rebuild(count: u64, semaphore: bool) -> Result<OwnedFd> {
    let mut flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    flags.set(EfdFlags::EFD_SEMAPHORE, semaphore);
    let eventfd = EventFd::from_value_and_flags(0, flags).doing(|| "making an eventfd")?;
    if count != 0 {
        // The counter's highest value is reserved; the kernel alone can reach it.
        eventfd
            .write(count.min(u64::MAX - 1))
            .doing(|| "setting the counter of an eventfd")?;
    }
    Ok(eventfd.into())
}
