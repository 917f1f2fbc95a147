//! pidfd_open(2), pidfd_getfd(2).

use crate::error::Result;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A descriptor that stands for the process `host_pid`; pidfd_open(2). ESRCH when it is gone.
pub fn open(host_pid: i32) -> Result<OwnedFd> {
    open_with(host_pid, 0)
}

/// As [`open`], with PIDFD_NONBLOCK (O_NONBLOCK) and PIDFD_THREAD (O_EXCL).
pub fn open_with(host_pid: i32, flags: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, host_pid, flags))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// A descriptor that stands for a process which is dead and reaped: one of our own that does nothing
/// else. It sends no signal when it dies and no wait(2) without __WCLONE or __WALL sees it.
pub fn of_dead() -> Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    // clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let arguments: [u64; 8] = [
        libc::CLONE_PIDFD as u64,
        &raw mut fd as u64,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: the child, a copy of this thread alone, makes one system call and is gone; the kernel
    // stores a new descriptor, which nobody else owns, in `fd` of the parent.
    unsafe {
        let child = Errno::result(libc::syscall(
            libc::SYS_clone3,
            arguments.as_ptr(),
            size_of_val(&arguments),
        ))?;
        if child == 0 {
            libc::syscall(libc::SYS_exit_group, 0);
        }
        let fd = OwnedFd::from_raw_fd(fd);
        reap(fd.as_fd())?;
        Ok(fd)
    }
}

/// Waits for the end of a child of ours, whatever its exit signal.
pub(super) fn reap(child: BorrowedFd<'_>) -> Result<()> {
    loop {
        // SAFETY: the kernel fills one siginfo_t.
        let waited = Errno::result(unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(
                libc::P_PIDFD,
                child.as_raw_fd().cast_unsigned(),
                &raw mut info,
                libc::WEXITED | libc::__WALL,
            )
        });
        match waited {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Sends a signal to the process behind `pidfd`; pidfd_send_signal(2). One that has ended is no error.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: a null siginfo is allowed and means that of kill(2).
    let sent = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    });
    match sent {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
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
