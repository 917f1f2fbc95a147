//! A child that opens something which only another process can, and hands it over.

use super::pidfd;
use crate::error::{Cause, Result};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Runs `open` in a child of ours and fetches the descriptor whose number it returns (-1 and errno
/// where it failed). `open` may make system calls only, since other threads are gone in the middle
/// of whatever they did. The child sends no signal and no plain wait(2) sees it.
pub fn produce(open: impl FnOnce() -> RawFd) -> Result<OwnedFd> {
    let mut pidfd: libc::c_int = -1;
    // clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let arguments: [u64; 8] = [
        libc::CLONE_PIDFD as u64,
        &raw mut pidfd as u64,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let mut answer = [0; 2];
    let mut hold = [0; 2];
    // SAFETY: the pipes are ours; the child makes system calls only and never returns; what clone3
    // stores in `pidfd` is a new descriptor of our own.
    unsafe {
        Errno::result(libc::pipe2(answer.as_mut_ptr(), libc::O_CLOEXEC))?;
        let (answer_out, answer_in) = owned(answer);
        Errno::result(libc::pipe2(hold.as_mut_ptr(), libc::O_CLOEXEC))?;
        let (hold_out, hold_in) = owned(hold);
        let child = Errno::result(libc::syscall(
            libc::SYS_clone3,
            arguments.as_ptr(),
            size_of_val(&arguments),
        ))?;
        if child == 0 {
            // Ends with the parent: the other end of this pipe is nobody else's.
            libc::close(hold[1]);
            let fd = open();
            let result = if fd >= 0 {
                fd
            } else {
                -*libc::__errno_location()
            };
            libc::write(answer[1], (&raw const result).cast(), size_of::<RawFd>());
            let mut byte = 0_u8;
            libc::read(hold[0], (&raw mut byte).cast(), 1);
            libc::syscall(libc::SYS_exit_group, 0);
        }
        let pidfd = OwnedFd::from_raw_fd(pidfd);
        drop((answer_in, hold_out));
        let mut result: RawFd = 0;
        let got = libc::read(
            answer_out.as_raw_fd(),
            (&raw mut result).cast(),
            size_of::<RawFd>(),
        );
        let fetched = if got != size_of::<RawFd>() as isize {
            Err(Cause::Gone {
                host_pid: child as i32,
            }
            .into())
        } else if result < 0 {
            Err(Errno::from_raw(-result).into())
        } else {
            pidfd::getfd(pidfd.as_fd(), result)
        };
        drop(hold_in);
        // Other children of ours may hold that end as well; do not wait for them.
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            0,
            0,
        );
        pidfd::reap(pidfd.as_fd())?;
        fetched
    }
}

/// A child that does nothing and shares nothing but the address space that it was forked with, to be
/// compared with. It ends when this is dropped, or with its parent.
#[derive(Debug)]
pub struct Idle {
    host_pid: i32,
    pidfd: OwnedFd,
    _hold: OwnedFd,
}

impl Idle {
    /// Starts it. The child sends no signal and no plain wait(2) sees it.
    pub fn start() -> Result<Self> {
        let mut pidfd: libc::c_int = -1;
        let arguments: [u64; 8] = [
            libc::CLONE_PIDFD as u64,
            &raw mut pidfd as u64,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        let mut hold = [0; 2];
        // SAFETY: the pipe is ours; the child makes system calls only and never returns; what clone3
        // stores in `pidfd` is a new descriptor of our own.
        unsafe {
            Errno::result(libc::pipe2(hold.as_mut_ptr(), libc::O_CLOEXEC))?;
            let (_out, held) = owned(hold);
            let child = Errno::result(libc::syscall(
                libc::SYS_clone3,
                arguments.as_ptr(),
                size_of_val(&arguments),
            ))?;
            if child == 0 {
                libc::close(hold[1]);
                let mut byte = 0_u8;
                libc::read(hold[0], (&raw mut byte).cast(), 1);
                libc::syscall(libc::SYS_exit_group, 0);
            }
            Ok(Self {
                host_pid: child as i32,
                pidfd: OwnedFd::from_raw_fd(pidfd),
                _hold: held,
            })
        }
    }

    /// Its number.
    pub fn host_pid(&self) -> i32 {
        self.host_pid
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // SAFETY: no pointers; the descriptor is our own child's.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                0,
                0,
            );
        }
        // Nothing can be done about a child that cannot be waited for.
        drop(pidfd::reap(self.pidfd.as_fd()));
    }
}

/// # Safety
///
/// Both numbers are open descriptors that nobody else owns.
unsafe fn owned(pair: [RawFd; 2]) -> (OwnedFd, OwnedFd) {
    // SAFETY: the caller's promise.
    unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) }
}
