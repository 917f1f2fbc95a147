//! statx(2): what a file is and on which mount it was opened.

use crate::error::Result;
use nix::errno::Errno;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What the kernel says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Inode number.
    pub ino: u64,
    /// In bytes.
    pub size: u64,
    /// Device (major, minor) of the file system.
    pub dev: (u32, u32),
    /// Device (major, minor) that a device node stands for.
    pub rdev: (u32, u32),
    /// Last access: seconds, nanoseconds.
    pub atime: (i64, u32),
    /// Last modification: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// The mount, as the first column of mountinfo has it.
    pub mount: u64,
}

/// The status of an open file (O_PATH allowed).
pub fn of(fd: BorrowedFd<'_>) -> Result<Status> {
    statx(fd, c"", libc::AT_EMPTY_PATH)
}

/// The status of `name` in the directory `dir`; a symbolic link is not followed.
pub fn at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Status> {
    statx(dir, name, libc::AT_SYMLINK_NOFOLLOW)
}

fn statx(dir: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<Status> {
    let mut raw = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `name` is NUL-terminated, `raw` is a statx structure that the kernel fills; all bit
    // patterns (also the zeroes it started with) are valid.
    let raw = unsafe {
        Errno::result(libc::statx(
            dir.as_raw_fd(),
            name.as_ptr(),
            flags | libc::AT_NO_AUTOMOUNT,
            libc::STATX_BASIC_STATS | libc::STATX_MNT_ID,
            raw.as_mut_ptr(),
        ))?;
        raw.assume_init()
    };
    Ok(Status {
        mode: u32::from(raw.stx_mode),
        nlink: raw.stx_nlink,
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        ino: raw.stx_ino,
        size: raw.stx_size,
        dev: (raw.stx_dev_major, raw.stx_dev_minor),
        rdev: (raw.stx_rdev_major, raw.stx_rdev_minor),
        atime: (raw.stx_atime.tv_sec, raw.stx_atime.tv_nsec),
        mtime: (raw.stx_mtime.tv_sec, raw.stx_mtime.tv_nsec),
        mount: raw.stx_mnt_id,
    })
}
