//! userfaultfd(2): what this kernel's can do.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// UFFD_USER_MODE_ONLY: what any process may ask for. With [`WP_ASYNC`] nobody handles faults anyway.
pub const USER_MODE_ONLY: i32 = 1;

/// UFFD_FEATURE_WP_UNPOPULATED: pages that were never filled can be write-protected.
pub const WP_UNPOPULATED: u64 = 1 << 13;
/// UFFD_FEATURE_WP_ASYNC: the kernel itself lifts the protection of a page that is written.
pub const WP_ASYNC: u64 = 1 << 15;

#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// UFFDIO_REGISTER_MODE_WP.
const MODE_WP: u64 = 1 << 1;

mod ioctl {
    nix::ioctl_readwrite!(
        /// UFFDIO_REGISTER.
        uffdio_register,
        0xaa,
        0x00,
        super::Register
    );
    nix::ioctl_readwrite!(
        /// UFFDIO_API.
        uffdio_api,
        0xaa,
        0x3f,
        super::Api
    );
}

/// UFFDIO_API: what is done with faults of the process that made `fd`.
pub fn enable(fd: BorrowedFd<'_>, features: u64) -> Result<(), Errno> {
    let mut api = Api {
        api: 0xaa,
        features,
        ..Api::default()
    };
    // SAFETY: a structure of the kernel's layout that lives through the call.
    unsafe { ioctl::uffdio_api(fd.as_raw_fd(), &mut api) }.map(drop)
}

/// UFFDIO_REGISTER for write protection, of a whole area of the process that made `fd`; whoever calls.
pub fn register(fd: BorrowedFd<'_>, start: u64, len: u64) -> Result<(), Errno> {
    let mut register = Register {
        start,
        len,
        mode: MODE_WP,
        ioctls: 0,
    };
    // SAFETY: a structure of the kernel's layout that lives through the call; nothing of this process
    // is touched.
    unsafe { ioctl::uffdio_register(fd.as_raw_fd(), &mut register) }.map(drop)
}

/// The features that the kernel offers this process; UFFDIO_API. EPERM without CAP_SYS_PTRACE where
/// vm.unprivileged_userfaultfd is 0.
pub fn features() -> Result<u64, Errno> {
    // SAFETY: no pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })?;
    // SAFETY: a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let mut api = Api {
        api: 0xaa,
        ..Api::default()
    };
    // SAFETY: a structure of the kernel's layout that lives through the call.
    unsafe { ioctl::uffdio_api(fd.as_raw_fd(), &mut api) }?;
    Ok(api.features)
}
