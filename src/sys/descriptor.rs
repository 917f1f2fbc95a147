//! Descriptors by number.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A duplicate whose number is the lowest free one from `lowest` on; F_DUPFD_CLOEXEC. EMFILE when there
/// is none below RLIMIT_NOFILE.
pub fn duplicate_above(fd: BorrowedFd<'_>, lowest: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; the result is a new descriptor that nobody else owns.
    unsafe {
        let number = Errno::result(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest))?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}
