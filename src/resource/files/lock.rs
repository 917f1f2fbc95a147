//! File locks: flock(2) and OFD locks belong to the open file, POSIX locks to a process.

use super::flags;
use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::files::{FileLock, LockKind, PosixLock};
use crate::proc::fdinfo::Fdinfo;
use crate::proc::locks::{LockAccess, LockKind as Shown};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The POSIX locks seen so far. Each is shown with every descriptor of its process for the open file
/// it was set through; one of them can set it again.
#[derive(Default)]
pub(super) struct PosixLocks(BTreeMap<Held, Option<i32>>);

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    pid: i32,
    inode: (u32, u32, u64),
    start: u64,
    end: Option<u64>,
    exclusive: bool,
}

impl PosixLocks {
    pub fn see(&mut self, pid: i32, fd: i32, info: &Fdinfo) {
        let bits = info.flags.cast_signed();
        for lock in &info.locks {
            if lock.kind != Shown::Posix {
                continue;
            }
            let exclusive = lock.access == LockAccess::Write;
            let able = if exclusive {
                flags::writes(bits)
            } else {
                flags::reads(bits)
            };
            let held = Held {
                pid,
                inode: (lock.device.major, lock.device.minor, lock.inode),
                start: lock.start,
                end: lock.end,
                exclusive,
            };
            let setter = self.0.entry(held).or_default();
            if setter.is_none() && able {
                *setter = Some(fd);
            }
        }
    }

    pub fn finish(self, refusals: &mut Refusals) -> Vec<PosixLock> {
        let mut locks = Vec::new();
        for (held, fd) in self.0 {
            match fd {
                Some(fd) => locks.push(PosixLock {
                    pid: held.pid,
                    fd,
                    exclusive: held.exclusive,
                    start: held.start,
                    end: held.end,
                }),
                None => refusals.add(
                    "E-LOCK-POSIX",
                    format!("the lock of pid {} on inode {}", held.pid, held.inode.2),
                    "no descriptor that could set it again is open",
                    "let the program unlock the file",
                ),
            }
        }
        locks
    }
}

/// The locks of the open file itself; leases are refused.
pub(super) fn capture(
    info: &Fdinfo,
    object: impl Fn() -> String,
    refusals: &mut Refusals,
) -> Vec<FileLock> {
    let mut locks = Vec::new();
    for lock in &info.locks {
        let kind = match lock.kind {
            Shown::Posix => continue,
            Shown::Flock => LockKind::Flock,
            Shown::OpenFile => LockKind::OpenFile,
            Shown::Lease | Shown::Other => {
                refusals.add(
                    "E-LEASE",
                    object(),
                    "it holds a lease or delegation on the file",
                    "let the program give the lease back (F_SETLEASE, F_UNLCK)",
                );
                continue;
            }
        };
        locks.push(FileLock {
            kind,
            exclusive: lock.access == LockAccess::Write,
            start: lock.start,
            end: lock.end,
        });
    }
    locks
}

/// Takes the lock for the open file; never waits.
pub(super) fn rebuild(fd: BorrowedFd<'_>, lock: &FileLock) -> Result<()> {
    let taken = match lock.kind {
        LockKind::Flock => crate::sys::lock::flock(fd, lock.exclusive),
        LockKind::OpenFile => {
            let range = record(lock)?;
            fcntl(fd, FcntlArg::F_OFD_SETLK(&range)).map(|_| ())
        }
    };
    match taken {
        Err(Errno::EAGAIN | Errno::EACCES) => Err(Error::coded(
            "E-LOCK-TAKEN",
            Exit::Host,
            "another process on this host holds the lock",
            "end that process first",
        ))
        .doing(|| format!("locking descriptor {}", fd.as_raw_fd())),
        other => other.doing(|| "locking a file"),
    }
}

/// l_start and l_len of a range.
pub(super) fn range(start: u64, end: Option<u64>) -> Result<(i64, i64)> {
    let bad = || {
        Error::coded(
            "E-IMAGE-LOCK",
            Exit::Image,
            "a lock's range is out of bounds",
            "the image is damaged",
        )
    };
    let len = match end {
        None => 0,
        Some(end) => end
            .checked_sub(start)
            .and_then(|len| i64::try_from(len).ok()?.checked_add(1))
            .ok_or_else(bad)?,
    };
    Ok((i64::try_from(start).map_err(|_| bad())?, len))
}

fn record(lock: &FileLock) -> Result<libc::flock> {
    let (start, len) = range(lock.start, lock.end)?;
    Ok(libc::flock {
        l_type: if lock.exclusive {
            libc::F_WRLCK as i16
        } else {
            libc::F_RDLCK as i16
        },
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    })
}
