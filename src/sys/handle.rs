//! open_by_handle_at(2).

use crate::error::Result;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAX_HANDLE: usize = 128;

#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MAX_HANDLE],
}

/// Opens (O_PATH) the file with that handle on the file system that `mount` lies on. ESTALE where it
/// is gone, EOPNOTSUPP where the file system has no way from handles to files.
pub fn open(mount: BorrowedFd<'_>, kind: u32, bytes: &[u8]) -> Result<OwnedFd, Errno> {
    if bytes.len() > MAX_HANDLE {
        return Err(Errno::EINVAL);
    }
    let mut handle = Handle {
        bytes: bytes.len() as libc::c_uint,
        kind: kind.cast_signed(),
        handle: [0; MAX_HANDLE],
    };
    handle.handle[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: `handle` has room for as many bytes as it says; the result is a new descriptor.
    unsafe {
        let fd = Errno::result(libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut handle,
            libc::O_PATH | libc::O_CLOEXEC,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as libc::c_int))
    }
}
