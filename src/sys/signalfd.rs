//! signalfd4(2) with all 64 signals.

use crate::error::Result;
use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A new signalfd, close-on-exec and non-blocking; bit N-1 of `mask` for signal N.
pub fn create(mask: u64) -> Result<OwnedFd> {
    // SAFETY: the kernel reads the eight bytes of `mask`; the result is a new descriptor of our own.
    unsafe {
        let fd = Errno::result(libc::syscall(
            libc::SYS_signalfd4,
            -1,
            &raw const mask,
            size_of::<u64>(),
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}
