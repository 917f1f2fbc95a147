//! F_GETOWN_EX and F_GETSIG: whom an open file signals, and how; fcntl(2).

use crate::error::Result;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Whom; numbers as in the caller's pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A thread.
    Thread(i32),
    /// A process.
    Process(i32),
    /// A process group.
    Group(i32),
}

#[repr(C)]
struct Raw {
    kind: libc::c_int,
    id: libc::pid_t,
}

const F_SETOWN_EX: libc::c_int = 15;
const F_GETOWN_EX: libc::c_int = 16;
const F_SETSIG: libc::c_int = 10;
const F_GETSIG: libc::c_int = 11;

/// The owner; `None` where there is none, or it is dead, or not in the caller's pid namespace.
pub fn owner(fd: BorrowedFd<'_>) -> Result<Option<Owner>> {
    let mut raw = Raw { kind: 0, id: 0 };
    // SAFETY: the kernel fills one f_owner_ex.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut raw) })?;
    Ok(match (raw.kind, raw.id) {
        (_, 0) => None,
        (0, id) => Some(Owner::Thread(id)),
        (1, id) => Some(Owner::Process(id)),
        (_, id) => Some(Owner::Group(id)),
    })
}

/// Sets the owner.
pub fn set_owner(fd: BorrowedFd<'_>, owner: Owner) -> Result<()> {
    let raw = match owner {
        Owner::Thread(id) => Raw { kind: 0, id },
        Owner::Process(id) => Raw { kind: 1, id },
        Owner::Group(id) => Raw { kind: 2, id },
    };
    // SAFETY: the kernel reads one f_owner_ex.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const raw) })?;
    Ok(())
}

/// The signal; 0 stands for SIGIO.
pub fn signal(fd: BorrowedFd<'_>) -> Result<i32> {
    // SAFETY: no pointers.
    Ok(Errno::result(unsafe {
        libc::fcntl(fd.as_raw_fd(), F_GETSIG)
    })?)
}

/// Sets the signal.
pub fn set_signal(fd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, signal) })?;
    Ok(())
}
