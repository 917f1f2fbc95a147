//! What pipes offer beyond read and write: tee(2), splice(2), their size, FIONREAD.

use crate::error::Result;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;

/// Copies what is queued in `from` to `to` without taking it; the number of bytes. Never waits:
/// EAGAIN where nothing is queued or nothing fits. Boundaries of packets are kept.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> Result<usize> {
    // SAFETY: no pointers.
    let copied = Errno::result(unsafe {
        libc::tee(
            from.as_raw_fd(),
            to.as_raw_fd(),
            len,
            libc::SPLICE_F_NONBLOCK,
        )
    })?;
    Ok(copied.cast_unsigned())
}

/// Moves what is queued in `from` to `to`, one buffer to one buffer; the number of bytes. Never waits.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> Result<usize> {
    // SAFETY: the offsets are null, as pipes demand.
    let moved = Errno::result(unsafe {
        libc::splice(
            from.as_raw_fd(),
            null_mut(),
            to.as_raw_fd(),
            null_mut(),
            len,
            libc::SPLICE_F_NONBLOCK,
        )
    })?;
    Ok(moved.cast_unsigned())
}

/// F_GETPIPE_SZ, in bytes.
pub fn capacity(pipe: BorrowedFd<'_>) -> Result<usize> {
    // SAFETY: no pointers.
    let bytes = Errno::result(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_GETPIPE_SZ) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// F_SETPIPE_SZ, in bytes; the kernel rounds up. EPERM above /proc/sys/fs/pipe-max-size without
/// CAP_SYS_RESOURCE.
pub fn set_capacity(pipe: BorrowedFd<'_>, bytes: usize) -> Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) })?;
    Ok(())
}

/// FIONREAD: bytes that can be read from a pipe, terminal, inotify descriptor.
pub fn readable(fd: BorrowedFd<'_>) -> Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel stores one int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}
