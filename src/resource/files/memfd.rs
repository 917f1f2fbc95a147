//! memfd_create(2). Its pages are memory and stored with the memory; here is what makes the file.

use super::kind::Found;
use super::reference::reopen;
use super::view::inode;
use crate::error::{Context, Error, Exit, Result};
use crate::image::files::MemoryFile;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{Gid, Uid, fchown, ftruncate};
use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};

const SEALS: [(&str, i32); 6] = [
    ("F_SEAL_SEAL", 1),
    ("F_SEAL_SHRINK", 2),
    ("F_SEAL_GROW", 4),
    ("F_SEAL_WRITE", 8),
    ("F_SEAL_FUTURE_WRITE", 16),
    ("F_SEAL_EXEC", 32),
];

/// What a link in /proc says of a memory file: its name.
pub(super) fn name(link: &[u8]) -> Option<&[u8]> {
    let name = link.strip_prefix(b"/memfd:")?;
    Some(name.strip_suffix(b" (deleted)").unwrap_or(name))
}

/// The record, and a descriptor of our own to read the content by.
pub(super) fn capture(found: &Found<'_>) -> Result<(MemoryFile, OwnedFd)> {
    let file_system = fstatfs(found.fd).doing(|| "asking for its file system")?;
    let huge = file_system.filesystem_type() == HUGETLBFS_MAGIC;
    let seals = fcntl(found.fd, FcntlArg::F_GET_SEALS).doing(|| "asking for its seals")?;
    let record = MemoryFile {
        inode: inode(&found.status),
        name: name(&found.link).unwrap_or_default().into(),
        size: found.status.size,
        seals: SEALS
            .iter()
            .filter(|seal| seals & seal.1 != 0)
            .map(|seal| seal.0.to_owned())
            .collect(),
        huge_page: huge.then(|| file_system.block_size().cast_unsigned()),
        mode: found.status.mode & 0o7777,
        uid: found.status.uid,
        gid: found.status.gid,
    };
    Ok((record, reopen(found.fd, OFlag::O_RDONLY)?))
}

/// Makes the file anew, empty but of its size, and without its seals: see [`seal`].
pub fn create(record: &MemoryFile) -> Result<OwnedFd> {
    let doing = || format!("making memory file {} anew", record.name);
    let name = CString::new(record.name.as_bytes())
        .map_err(|_| Errno::EINVAL)
        .doing(doing)?;
    let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if let Some(size) = record.huge_page {
        flags |= MFdFlags::MFD_HUGETLB;
        flags |= MFdFlags::from_bits_retain(size.trailing_zeros() << 26);
    }
    // MFD_EXEC, since Linux 6.3: without it the host's vm.memfd_noexec decides.
    let executable = flags | MFdFlags::from_bits_retain(0x10);
    let fd = match memfd_create(name.as_c_str(), executable) {
        Err(Errno::EINVAL) => memfd_create(name.as_c_str(), flags),
        other => other,
    }
    .doing(doing)?;
    ftruncate(&fd, record.size.cast_signed()).doing(doing)?;
    fchown(
        &fd,
        Some(Uid::from_raw(record.uid)),
        Some(Gid::from_raw(record.gid)),
    )
    .doing(doing)?;
    fchmod(&fd, Mode::from_bits_truncate(record.mode)).doing(doing)?;
    Ok(fd)
}

/// Sets the seals, once the content is in place and no writable mapping of ours is left.
pub fn seal(record: &MemoryFile, fd: BorrowedFd<'_>) -> Result<()> {
    let mut bits = 0;
    for name in &record.seals {
        bits |= SEALS
            .iter()
            .find(|seal| seal.0 == name)
            .ok_or_else(|| {
                Error::coded(
                    "E-IMAGE-SEAL",
                    Exit::Image,
                    format!("{name:?} is no seal"),
                    "restore with the engine that wrote the image",
                )
            })?
            .1;
    }
    if bits != 0 {
        fcntl(fd, FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(bits)))
            .doing(|| format!("sealing memory file {}", record.name))?;
    }
    Ok(())
}
