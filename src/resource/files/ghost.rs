//! Files without a name: their content travels in the image, and they are made and unlinked again.

use super::Contents;
use super::reference::{reopen, split, type_name};
use super::view::device;
use super::view::{View, inode};
use crate::error::{Context, Error, Exit, Result};
use crate::image::PathBytes;
use crate::image::files::{Extent, Ghost, GhostId, Inode};
use crate::sys::statx;
use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, renameat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, Whence, ftruncate, lseek, symlinkat, unlinkat};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bulk data of the image that records name by member.
#[derive(Debug)]
pub enum Content {
    /// In memory.
    Bytes(Vec<u8>),
    /// Pieces of an open file, to be read at their offsets and written one after the other.
    File {
        /// An open file of our own.
        file: OwnedFd,
        /// Ascending.
        extents: Vec<Extent>,
    },
}

impl Content {
    /// In bytes.
    pub fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File { extents, .. } => extents.iter().map(|extent| extent.len).sum(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes it all to `out`. A file that has become shorter meanwhile is an error.
    pub fn write_to(&self, out: &mut dyn std::io::Write) -> Result<()> {
        match self {
            Content::Bytes(bytes) => out.write_all(bytes)?,
            Content::File { file, extents } => {
                let file = File::from(file.try_clone()?);
                let mut buffer = vec![0; 1 << 20];
                for extent in extents {
                    let (mut at, mut left) = (extent.offset, extent.len);
                    while left > 0 {
                        let len =
                            usize::try_from(left).map_or(buffer.len(), |n| n.min(buffer.len()));
                        file.read_exact_at(&mut buffer[..len], at)?;
                        out.write_all(&buffer[..len])?;
                        at += len as u64;
                        left -= len as u64;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The ghosts found so far: one per inode, however many refer to it.
#[derive(Default)]
pub(super) struct Ghosts {
    known: HashMap<Inode, GhostId>,
    pub records: Vec<Ghost>,
    pub contents: Vec<(String, Content)>,
}

impl Ghosts {
    pub fn capture(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &[u8],
        status: &statx::Status,
    ) -> Result<GhostId> {
        if let Some(id) = self.known.get(&inode(status)) {
            return Ok(*id);
        }
        let id = GhostId(u32::try_from(self.records.len()).unwrap_or(u32::MAX));
        let mut ghost = Ghost {
            id,
            inode: inode(status),
            path: path.into(),
            file_type: type_name(status.mode).to_owned(),
            mode: status.mode & 0o7777,
            uid: status.uid,
            gid: status.gid,
            rdev: status.rdev,
            size: status.size,
            atime: status.atime,
            mtime: status.mtime,
            xattrs: xattrs(fd)?,
            target: None,
            member: None,
            extents: Vec::new(),
        };
        match status.mode & libc::S_IFMT {
            libc::S_IFREG => {
                let file = reopen(fd, OFlag::O_RDONLY | OFlag::O_NOATIME)?;
                ghost.extents = extents(file.as_fd(), status.size)?;
                let member = format!("files/ghost-{}", id.0);
                let extents = ghost.extents.clone();
                self.contents
                    .push((member.clone(), Content::File { file, extents }));
                ghost.member = Some(member);
            }
            libc::S_IFLNK => {
                let target = nix::fcntl::readlinkat(fd, "").doing(|| "reading a symbolic link")?;
                ghost.target = Some(PathBytes(target.into_vec()));
            }
            _ => {}
        }
        self.known.insert(ghost.inode, id);
        self.records.push(ghost);
        Ok(id)
    }
}

/// Where the data of a file is; all of it where the file system does not tell.
fn extents(file: BorrowedFd<'_>, size: u64) -> Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = 0_i64;
    let end = size.cast_signed();
    while at < end {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL) => at,
            Err(errno) => return Err(errno).doing(|| "looking for data in a deleted file")?,
        };
        let stop = lseek(file, start, Whence::SeekHole).unwrap_or(end).min(end);
        if stop <= start {
            break;
        }
        extents.push(Extent {
            offset: start.cast_unsigned(),
            len: (stop - start).cast_unsigned(),
        });
        at = stop;
    }
    Ok(extents)
}

fn xattrs(fd: BorrowedFd<'_>) -> Result<Vec<(PathBytes, PathBytes)>> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    crate::sys::xattr::list(Path::new(&path))?
        .into_iter()
        .map(|name| {
            let value = crate::sys::xattr::get(Path::new(&path), &name)?;
            Ok((PathBytes(name), PathBytes(value)))
        })
        .collect()
}

/// A ghost on its way back: made at its first use, kept by an O_PATH descriptor until all who refer
/// to it have opened it.
pub(super) struct Made {
    record: Ghost,
    holder: Option<OwnedFd>,
}

impl Made {
    pub fn new(record: Ghost) -> Self {
        Self {
            record,
            holder: None,
        }
    }

    pub fn open(&mut self, view: &View, contents: &dyn Contents, flags: OFlag) -> Result<OwnedFd> {
        let holder = match self.holder.take() {
            Some(holder) => holder,
            None => make(&self.record, view, contents)
                .doing(|| format!("making the deleted file {} anew", self.record.path))?,
        };
        let holder = self.holder.insert(holder);
        if flags.contains(OFlag::O_PATH) {
            return Ok(holder.try_clone()?);
        }
        reopen(holder.as_fd(), flags)
    }
}

/// Makes the file under its old name and takes that name away again. What has that name by now
/// steps aside for the moment; directories that are gone exist for the moment.
fn make(ghost: &Ghost, view: &View, contents: &dyn Contents) -> Result<OwnedFd> {
    let (parent_path, name) = split(ghost.path.as_bytes());
    let (parent, made) = directory(view, parent_path)?;
    let times = statx::of(parent.as_fd())?;
    let aside = step_aside(parent.as_fd(), name)?;
    let is_directory = ghost.file_type == "directory";
    let result = create(ghost, parent.as_fd(), name, contents);
    let cleanup = if result.is_ok() {
        unlink(parent.as_fd(), name, is_directory)
    } else {
        let _ = unlink(parent.as_fd(), name, is_directory);
        Ok(())
    };
    let back = match aside {
        Some(aside) => renameat2(
            &parent,
            Path::new(&aside),
            &parent,
            Path::new(name),
            RenameFlags::RENAME_NOREPLACE,
        )
        .doing(|| "giving a file its name back"),
        None => Ok(()),
    };
    let times = set_times(parent.as_fd(), times.atime, times.mtime);
    let mut removed = Ok(());
    for (parent, name) in made.iter().rev() {
        removed = removed.and(unlink(parent.as_fd(), name, true));
    }
    let fd = match result {
        Ok(fd) => fd,
        Err(error) => return Err(error.and_cleanup(back).and_cleanup(removed)),
    };
    cleanup?;
    back?;
    times?;
    removed?;
    Ok(fd)
}

/// A directory (O_PATH), and those that had to be made on the way, outermost first.
fn directory(view: &View, path: &[u8]) -> Result<(OwnedFd, Vec<(OwnedFd, OsString)>)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    match view.open(path, flags, Mode::empty()) {
        Ok(fd) => Ok((fd, Vec::new())),
        Err(Errno::ENOENT) if path.len() > 1 => {
            let (parent, name) = split(path);
            let (parent, mut made) = directory(view, parent)?;
            mkdirat(&parent, Path::new(name), Mode::S_IRWXU)
                .doing(|| format!("making {} for a moment", PathBytes::from(path)))?;
            made.push((parent, name.to_owned()));
            Ok((view.open(path, flags, Mode::empty())?, made))
        }
        Err(errno) => Err(errno).doing(|| format!("opening {}", PathBytes::from(path))),
    }
}

fn step_aside(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OsString>> {
    let mut aside = OsString::from(".ocimig-");
    aside.push(name);
    aside = OsString::from_vec(aside.into_vec().into_iter().take(255).collect());
    match renameat2(
        parent,
        Path::new(name),
        parent,
        Path::new(&aside),
        RenameFlags::RENAME_NOREPLACE,
    ) {
        Ok(()) => Ok(Some(aside)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno).doing(|| {
            format!(
                "moving {} aside for a moment",
                PathBytes::from(name.as_bytes())
            )
        }),
    }
}

/// Creates the file and hands back an O_PATH descriptor.
fn create(
    ghost: &Ghost,
    parent: BorrowedFd<'_>,
    name: &OsStr,
    contents: &dyn Contents,
) -> Result<OwnedFd> {
    let path = Path::new(name);
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    let node = |kind: SFlag| {
        mknodat(parent, path, kind, private, device(ghost.rdev)).doing(|| "making a node")
    };
    match ghost.file_type.as_str() {
        "regular" => {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let file = nix::fcntl::openat(parent, path, flags, private)
                .doing(|| "creating it".to_owned())?;
            fill(ghost, file, contents)?;
        }
        "directory" => mkdirat(parent, path, Mode::S_IRWXU).doing(|| "making a directory")?,
        "fifo" => node(SFlag::S_IFIFO)?,
        "socket" => node(SFlag::S_IFSOCK)?,
        "char-device" => node(SFlag::S_IFCHR)?,
        "block-device" => node(SFlag::S_IFBLK)?,
        "symlink" => {
            let target = ghost.target.clone().unwrap_or_default();
            symlinkat(OsStr::from_bytes(target.as_bytes()), parent, path)
                .doing(|| "making a symbolic link")?;
        }
        other => {
            return Err(Error::coded(
                "E-IMAGE-GHOST",
                Exit::Image,
                format!("{other:?} is no type of file"),
                "restore with the engine that wrote the image",
            ));
        }
    }
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::openat(parent, path, flags, Mode::empty())?;
    nix::unistd::fchownat(
        parent,
        path,
        Some(Uid::from_raw(ghost.uid)),
        Some(Gid::from_raw(ghost.gid)),
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .doing(|| "setting its owner")?;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    if ghost.file_type != "symlink" {
        let mode = Mode::from_bits_truncate(ghost.mode);
        fchmodat(
            nix::fcntl::AT_FDCWD,
            link.as_str(),
            mode,
            FchmodatFlags::FollowSymlink,
        )
        .doing(|| "setting its mode")?;
    }
    for (name, value) in &ghost.xattrs {
        crate::sys::xattr::set(Path::new(&link), name.as_bytes(), value.as_bytes())?;
    }
    utimensat(
        parent,
        path,
        &TimeSpec::new(ghost.atime.0, i64::from(ghost.atime.1)),
        &TimeSpec::new(ghost.mtime.0, i64::from(ghost.mtime.1)),
        UtimensatFlags::NoFollowSymlink,
    )
    .doing(|| "setting its times")?;
    Ok(fd)
}

fn fill(ghost: &Ghost, file: OwnedFd, contents: &dyn Contents) -> Result<()> {
    ftruncate(&file, ghost.size.cast_signed()).doing(|| "setting its size")?;
    let (Some(member), false) = (&ghost.member, ghost.extents.is_empty()) else {
        return Ok(());
    };
    let file = File::from(file);
    let mut reader = contents.open(member)?;
    let mut buffer = vec![0; 1 << 20];
    for extent in &ghost.extents {
        let (mut at, mut left) = (extent.offset, extent.len);
        while left > 0 {
            let len = usize::try_from(left).map_or(buffer.len(), |n| n.min(buffer.len()));
            reader
                .read_exact(&mut buffer[..len])
                .doing(|| format!("reading {member}"))?;
            file.write_all_at(&buffer[..len], at)
                .doing(|| "writing its content")?;
            at += len as u64;
            left -= len as u64;
        }
    }
    Ok(())
}

fn set_times(directory: BorrowedFd<'_>, atime: (i64, u32), mtime: (i64, u32)) -> Result<()> {
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    utimensat(
        nix::fcntl::AT_FDCWD,
        link.as_str(),
        &TimeSpec::new(atime.0, i64::from(atime.1)),
        &TimeSpec::new(mtime.0, i64::from(mtime.1)),
        UtimensatFlags::FollowSymlink,
    )
    .doing(|| "setting the times of a directory")
}

/// Takes a name away.
pub(super) fn unlink(parent: BorrowedFd<'_>, name: &OsStr, directory: bool) -> Result<()> {
    let flags = if directory {
        UnlinkatFlags::RemoveDir
    } else {
        UnlinkatFlags::NoRemoveDir
    };
    unlinkat(parent, Path::new(name), flags)
        .doing(|| format!("removing the name {}", PathBytes::from(name.as_bytes())))
}
