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
