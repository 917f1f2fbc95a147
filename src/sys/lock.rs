//! flock(2) on borrowed descriptors.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes a lock for the open file behind `fd`; never waits (EAGAIN).
pub fn flock(fd: BorrowedFd<'_>, exclusive: bool) -> Result<(), Errno> {
    let kind = if exclusive {
        libc::LOCK_EX
    } else {
        libc::LOCK_SH
    };
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::flock(fd.as_raw_fd(), kind | libc::LOCK_NB) })?;
    Ok(())
}
