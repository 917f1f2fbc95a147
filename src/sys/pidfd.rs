//! pidfd_open(2), pidfd_getfd(2).

use crate::error::Result;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A descriptor that stands for the process `host_pid`; pidfd_open(2). ESRCH when it is gone.
pub fn open(host_pid: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, host_pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A duplicate of descriptor `fd` of the process behind `pidfd`; pidfd_getfd(2). It shares the open
/// file: its offset, flags and queue are the target's, so nothing that changes them may be done to it.
pub fn getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor (close-on-exec) that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::syscall(
            libc::SYS_pidfd_getfd,
            pidfd.as_raw_fd(),
            fd,
            0,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}
