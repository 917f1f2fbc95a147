//! inotify(7) on borrowed descriptors, with chosen watch numbers.

use crate::error::Result;
use nix::errno::Errno;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `_IOW('I', 0, __s32)`, since Linux 4.16
const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;

/// A new instance, close-on-exec and non-blocking.
pub fn create() -> Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Watches what `file` (O_PATH allowed) refers to, under the number `wd`.
pub fn watch(inotify: BorrowedFd<'_>, file: BorrowedFd<'_>, wd: i32, mask: u32) -> Result<()> {
    let path =
        CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the first call takes a number by value, the second a NUL-terminated path.
    let got = unsafe {
        Errno::result(libc::ioctl(
            inotify.as_raw_fd(),
            INOTIFY_IOC_SETNEXTWD,
            libc::c_long::from(wd),
        ))?;
        Errno::result(libc::inotify_add_watch(
            inotify.as_raw_fd(),
            path.as_ptr(),
            mask,
        ))?
    };
    if got == wd {
        Ok(())
    } else {
        Err(Errno::EEXIST.into())
    }
}
