//! ioctl_nsfs(2): how namespaces relate.

use crate::error::Result;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `_IO(0xb7, 2)`
const NS_GET_PARENT: libc::c_ulong = 0xb702;

/// The parent of a pid or user namespace; `None` when it has none that this process may see.
pub fn parent(namespace: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    // SAFETY: no pointers; the result is a new descriptor that nobody else owns.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) };
    match Errno::result(fd) {
        // SAFETY: as above.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(Errno::EPERM) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
