//! A tar into a directory, whoever made the tar.

use super::capture::{ROOT, c_string};
use super::{OPAQUE, WHITEOUT};
use crate::error::{Context, Error, Exit, Result};
use crate::image::PathBytes;
use crate::image::archive::entry::{Entry, Kind};
use crate::image::archive::tar::{self, BLOCK, Block};
use crate::sys::xattr;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What becomes of the markers in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// What they hide is removed: the layer goes on top of a copy of the one below.
    Remove,
    /// They become an overlay's: the layer is going to be an upper directory.
    Overlay,
}

/// Unpacks a layer into `target`. No name leads out of it, symbolic links in it are not followed.
pub fn unpack(layer: &mut dyn Read, target: BorrowedFd<'_>, whiteouts: Whiteouts) -> Result<()> {
    let mut unpacking = Unpacking {
        layer,
        target,
        whiteouts,
        directories: Vec::new(),
    };
    while let Some(entry) = unpacking.next()? {
        unpacking
            .entry(&entry)
            .doing(|| format!("unpacking {}", entry.name))?;
    }
    // A directory's times change with everything that is put into it.
    while let Some((path, entry)) = unpacking.directories.pop() {
        let (parent, name) = unpacking.parent(&path)?;
        times(parent.as_fd(), &name, &entry)?;
    }
    // What is behind the end of the tar belongs to the digest of the stream.
    std::io::copy(unpacking.layer, &mut std::io::sink())?;
    Ok(())
}

struct Unpacking<'a> {
    layer: &'a mut dyn Read,
    target: BorrowedFd<'a>,
    whiteouts: Whiteouts,
    directories: Vec<(Vec<u8>, Entry)>,
}

fn damaged(why: impl Into<String>) -> Error {
    Error::coded(
        "E-IMAGE-LAYER",
        Exit::Image,
        why,
        "the image is damaged, or was made to do harm",
    )
}

impl Unpacking<'_> {
    fn next(&mut self) -> Result<Option<Entry>> {
        let mut records = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            self.layer.read_exact(&mut block)?;
            match tar::parse_block(&block).map_err(damaged)? {
                Block::Zeros => return Ok(None),
                Block::Pax(size) => {
                    if size > tar::LONGEST_PAX || records.len() as u64 > tar::LONGEST_PAX {
                        return Err(damaged("an extended header is too long"));
                    }
                    let at = records.len();
                    records.resize(at + size as usize, 0);
                    self.layer.read_exact(&mut records[at..])?;
                    self.layer
                        .read_exact(&mut [0; BLOCK][..tar::padding(size)])?;
                }
                Block::Member(block) => {
                    let (entry, _) = tar::parse_member(&block, &records).map_err(damaged)?;
                    let is_root = entry.name.as_bytes() == ROOT && entry.kind == Kind::Directory;
                    let is_bad = !is_root
                        && entry
                            .name
                            .as_bytes()
                            .split(|byte| *byte == b'/')
                            .any(|part| {
                                part.is_empty()
                                    || part == b"."
                                    || part == b".."
                                    || part.contains(&0)
                            });
                    if is_bad {
                        return Err(damaged(format!("a file is called {}", entry.name)));
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The directory that a path lies in, and its last part.
    fn parent(&self, path: &[u8]) -> Result<(OwnedFd, CString)> {
        let at = path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = match at {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b"."[..], path),
        };
        let fd = openat2(
            self.target,
            Path::new(OsStr::from_bytes(parent)),
            OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS),
        )
        .doing(|| format!("opening {}", PathBytes::from(parent)))?;
        Ok((fd, c_string(name)?))
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let path = entry.name.as_bytes();
        let (parent, name) = self.parent(path)?;
        let parent = parent.as_fd();
        if name.as_bytes() == OPAQUE {
            return self.opaque(path);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            let hidden = c_string(hidden)?;
            remove(parent, &hidden)?;
            if self.whiteouts == Whiteouts::Overlay {
                mknodat(parent, hidden.as_c_str(), SFlag::S_IFCHR, Mode::empty(), 0)?;
            }
            return Ok(());
        }
        if path == ROOT {
            attributes(parent, &name, entry)?;
            self.directories.push((path.to_vec(), entry.clone()));
            return Ok(());
        }
        if entry.kind == Kind::Directory {
            return self.directory(entry, parent, &name);
        }
        remove(parent, &name)?;
        let mode = Mode::from_bits_truncate(entry.mode);
        match &entry.kind {
            Kind::File { size } => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let file = openat(
                    parent,
                    name.as_c_str(),
                    flags,
                    Mode::from_bits_truncate(0o600),
                )?;
                self.content(File::from(file), *size)?;
            }
            Kind::HardLink { target } => {
                let (from, old) = self.parent(target.as_bytes())?;
                linkat(
                    &from,
                    old.as_c_str(),
                    parent,
                    name.as_c_str(),
                    LinkatFlags::empty(),
                )
                .doing(|| format!("linking to {target}"))?;
                return Ok(());
            }
            Kind::Symlink { target } => {
                symlinkat(
                    OsStr::from_bytes(target.as_bytes()),
                    parent,
                    name.as_c_str(),
                )?;
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                let kind = match entry.kind {
                    Kind::CharDevice { .. } => SFlag::S_IFCHR,
                    _ => SFlag::S_IFBLK,
                };
                let device = libc::makedev(*major, *minor);
                mknodat(parent, name.as_c_str(), kind, mode, device)?;
            }
            Kind::Fifo => mknodat(parent, name.as_c_str(), SFlag::S_IFIFO, mode, 0)?,
            Kind::Directory => {}
        }
        attributes(parent, &name, entry)?;
        times(parent, &name, entry)
    }

    fn directory(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &CString) -> Result<()> {
        match mkdirat(parent, name.as_c_str(), Mode::from_bits_truncate(0o700)) {
            Err(Errno::EEXIST) => {
                let is_directory = openat(
                    parent,
                    name.as_c_str(),
                    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                    Mode::empty(),
                );
                if is_directory.is_err() {
                    remove(parent, name)?;
                    mkdirat(parent, name.as_c_str(), Mode::from_bits_truncate(0o700))?;
                }
            }
            other => other?,
        }
        attributes(parent, name, entry)?;
        self.directories
            .push((entry.name.as_bytes().to_vec(), entry.clone()));
        Ok(())
    }

    /// The directory that holds the marker hides what is below it.
    fn opaque(&mut self, path: &[u8]) -> Result<()> {
        let directory = &path[..path.len() - OPAQUE.len()];
        let directory = directory.strip_suffix(b"/").unwrap_or(directory);
        if directory.is_empty() {
            return Ok(());
        }
        let (parent, name) = self.parent(directory)?;
        match self.whiteouts {
            Whiteouts::Overlay => xattr::set(
                &location(parent.as_fd(), &name),
                b"trusted.overlay.opaque",
                b"y",
            ),
            Whiteouts::Remove => {
                let below = location(parent.as_fd(), &name);
                for entry in std::fs::read_dir(&below)? {
                    let name = c_string(entry?.file_name().as_bytes())?;
                    let fd = openat(
                        &parent,
                        Path::new(OsStr::from_bytes(
                            below.file_name().unwrap_or_default().as_bytes(),
                        )),
                        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                        Mode::empty(),
                    )?;
                    remove(fd.as_fd(), &name)?;
                }
                Ok(())
            }
        }
    }

    /// Blocks of zeros become holes.
    fn content(&mut self, mut file: File, size: u64) -> Result<()> {
        const PAGE: usize = 4096;
        let mut buffer = vec![0; (size as usize).clamp(1, 1 << 20)];
        let mut done = 0;
        while done < size {
            let most = buffer
                .len()
                .min(usize::try_from(size - done).unwrap_or(usize::MAX));
            self.layer.read_exact(&mut buffer[..most])?;
            for block in buffer[..most].chunks(PAGE) {
                if block.iter().all(|byte| *byte == 0) {
                    std::io::Seek::seek_relative(&mut file, block.len() as i64)?;
                } else {
                    file.write_all(block)?;
                }
            }
            done += most as u64;
        }
        file.set_len(size)?;
        self.layer
            .read_exact(&mut [0; BLOCK][..tar::padding(size)])?;
        Ok(())
    }
}

fn location(parent: BorrowedFd<'_>, name: &CString) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()))
        .join(OsStr::from_bytes(name.as_bytes()))
}

/// Removes whatever has that name, with all that is below it; nothing is no error.
fn remove(parent: BorrowedFd<'_>, name: &CString) -> Result<()> {
    match unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    // std's does not follow links either, whatever happens meanwhile.
    std::fs::remove_dir_all(location(parent, name))?;
    Ok(())
}

fn attributes(parent: BorrowedFd<'_>, name: &CString, entry: &Entry) -> Result<()> {
    fchownat(
        parent,
        name.as_c_str(),
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    if matches!(entry.kind, Kind::Symlink { .. }) {
        return Ok(());
    }
    // Changing the owner takes set-id bits and capabilities away.
    fchmodat(
        parent,
        name.as_c_str(),
        Mode::from_bits_truncate(entry.mode),
        FchmodatFlags::FollowSymlink,
    )?;
    for (key, value) in &entry.xattrs {
        xattr::set(&location(parent, name), key.as_bytes(), value.as_bytes())
            .doing(|| format!("setting {key}"))?;
    }
    Ok(())
}

fn times(parent: BorrowedFd<'_>, name: &CString, entry: &Entry) -> Result<()> {
    let modified = TimeSpec::new(entry.mtime, i64::from(entry.mtime_nanoseconds));
    utimensat(
        parent,
        name.as_c_str(),
        &TimeSpec::new(0, libc::UTIME_OMIT),
        &modified,
        UtimensatFlags::NoFollowSymlink,
    )?;
    Ok(())
}
