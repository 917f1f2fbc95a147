//! kcmp(2): do two processes share a kernel object?

use crate::error::Result;
use nix::errno::Errno;
use std::cmp::Ordering;

/// What to compare; the values of `<linux/kcmp.h>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Open file descriptions; the indices are descriptors.
    File = 0,
    /// Address spaces.
    Vm = 1,
    /// Descriptor tables.
    Files = 2,
    /// Root, cwd and umask.
    Fs = 3,
    /// Signal dispositions.
    Sighand = 4,
    /// What is undone in semaphores at the end (SEM_UNDO).
    Undo = 6,
}

/// Orders the kernel objects of two processes (a total order while both live, kcmp(2)).
pub fn compare(kind: Kind, first: (i32, u64), second: (i32, u64)) -> Result<Ordering> {
    // SAFETY: no pointers are passed for these kinds.
    let order = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            first.0,
            second.0,
            kind as libc::c_int,
            first.1,
            second.1,
        )
    })?;
    Ok(match order {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    })
}

#[repr(C)]
struct EpollSlot {
    epoll: u32,
    target: u32,
    nth: u32,
}

const EPOLL_TFD: libc::c_int = 7;

/// Orders the open file `file` (process, descriptor) against what the epoll instance `epoll`
/// (process, descriptor) holds as the `nth` registration under number `target`; KCMP_EPOLL_TFD.
/// The order is that of [`Kind::File`]. ENOENT where there is no such registration.
pub fn compare_epoll(
    file: (i32, u64),
    epoll: (i32, u64),
    target: i32,
    nth: u32,
) -> Result<Ordering> {
    let slot = EpollSlot {
        epoll: u32::try_from(epoll.1).map_err(|_| Errno::EBADF)?,
        target: target.cast_unsigned(),
        nth,
    };
    // SAFETY: the kernel reads one kcmp_epoll_slot.
    let order = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            file.0,
            epoll.0,
            EPOLL_TFD,
            file.1,
            &raw const slot,
        )
    })?;
    Ok(match order {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    })
}
