//! signalfd(2): it has a mask and nothing else; the signals belong to whoever reads.

use super::kind::Found;
use crate::error::{Context, Result};
use crate::image::files::FileKind;
use std::os::fd::OwnedFd;

pub(super) fn capture(found: &Found<'_>) -> Result<FileKind> {
    let mask = found
        .info
        .sigmask
        .ok_or_else(|| found.unreadable("sigmask"))?;
    Ok(FileKind::Signalfd { mask })
}

pub(super) fn rebuild(mask: u64) -> Result<OwnedFd> {
    crate::sys::signalfd::create(mask).doing(|| "making a signalfd")
}
