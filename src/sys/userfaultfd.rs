//! userfaultfd(2): what this kernel's can do.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

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

mod ioctl {
    nix::ioctl_readwrite!(
        /// UFFDIO_API.
        uffdio_api,
        0xaa,
        0x3f,
        super::Api
    );
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
