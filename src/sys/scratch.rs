//! A file system that nobody can see, and running a piece of work with another root directory.

use crate::error::{Context, Result};
use nix::errno::Errno;
use nix::unistd::{chroot, fchdir};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FLAG_CLOEXEC: libc::c_uint = 1;

/// The root of a new tmpfs that is mounted nowhere and vanishes with its last user (fsmount(2)).
pub fn detached_tmpfs() -> Result<OwnedFd> {
    let kind: &CStr = c"tmpfs";
    // SAFETY: a live C string; fsconfig and fsmount take no pointers here.
    unsafe {
        let context = owned(libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FLAG_CLOEXEC))
            .doing(|| "opening a tmpfs context")?;
        Errno::result(libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            0usize,
            0usize,
            0,
        ))
        .doing(|| "making a tmpfs")?;
        owned(libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FLAG_CLOEXEC,
            0,
        ))
        .doing(|| "mounting a tmpfs nowhere")
    }
}

/// Runs `work` with `directory` as root and working directory of this thread, then returns to
/// `home`, the root that it had. The thread must not share its file-system attributes
/// (see [`crate::sys::ns::inside`]).
pub fn rooted<T>(
    directory: BorrowedFd<'_>,
    home: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let enter = |directory: BorrowedFd<'_>| -> Result<()> {
        fchdir(directory).doing(|| "changing to a directory")?;
        chroot(".").doing(|| "changing the root directory")
    };
    enter(directory)?;
    let result = work();
    match (result, enter(home)) {
        (Ok(value), Ok(())) => Ok(value),
        (Ok(_), Err(error)) => Err(error),
        (Err(error), back) => Err(error.and_cleanup(back)),
    }
}
