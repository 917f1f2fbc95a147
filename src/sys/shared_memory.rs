//! Memory that processes share by a descriptor: memfd_create(2), and what mmap(MAP_SHARED |
//! MAP_ANONYMOUS) makes.

use crate::error::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A memory file of `size` bytes that takes seals.
pub fn memory_file(name: &[u8], size: u64) -> Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(name.as_c_str(), flags).doing(|| "making a memory file")?;
    nix::unistd::ftruncate(&fd, size.cast_signed()).doing(|| "giving a memory file its size")?;
    Ok(fd)
}

/// Shared anonymous memory of `size` bytes, by a descriptor for reading and writing; what maps it shows
/// `/dev/zero (deleted)`. The kernel hands such a descriptor out only through `/proc/self/map_files`,
/// which needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
pub fn anonymous(size: u64) -> Result<OwnedFd> {
    let length = usize::try_from(size).map_err(|_| Errno::ENOMEM)?;
    // SAFETY: a new mapping that nobody else knows, removed below before anybody can have used it.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_NONE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(Errno::last()).doing(|| format!("mapping {size} bytes of shared memory"));
    }
    let start = address as usize;
    let end = start + length.next_multiple_of(4096);
    let path = format!("/proc/self/map_files/{start:x}-{end:x}");
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .doing(|| format!("opening {path}"));
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(address, length) };
    Ok(opened?.into())
}

/// The same memory, for reading only.
pub fn read_only(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(
        path.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .doing(|| format!("reopening {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn anonymous_memory_can_be_written_by_its_descriptor() {
        let file = File::from(anonymous(10_000).unwrap());
        // The kernel rounds up to whole pages.
        assert_eq!(file.metadata().unwrap().len(), 12_288);
        file.write_all_at(b"here", 9_000).unwrap();
        let mut back = [0; 4];
        file.read_exact_at(&mut back, 9_000).unwrap();
        assert_eq!(&back, b"here");
    }
}
