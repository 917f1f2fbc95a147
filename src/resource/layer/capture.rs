//! A directory, as it is now, into a tar.

use super::{OPAQUE, WHITEOUT};
use crate::error::{Context, Refusals, Result};
use crate::image::PathBytes;
use crate::image::archive::entry::{Entry, Kind};
use crate::image::archive::tar;
use crate::sys::statx::{self, Status};
use crate::sys::xattr;
use nix::dir::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Whether a tree is the upper directory of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlay {
    /// A tree of files as they are.
    No,
    /// Character devices 0:0 hide names, `trusted.overlay.opaque` hides directories.
    Upper,
}

struct Walk<'a> {
    sink: &'a mut dyn Write,
    overlay: Overlay,
    /// The file system that is not left.
    device: (u32, u32),
    /// Inodes with several names, and the first of them.
    links: HashMap<u64, PathBytes>,
    what: &'a str,
    refusals: &'a mut Refusals,
}

/// Writes `root` itself, as `.`, and everything below it to `sink`. `what` names the tree in refusals.
/// Sockets are left out: a name without its server is nothing, and whoever has it bound makes it anew.
pub fn capture(
    root: BorrowedFd<'_>,
    overlay: Overlay,
    what: &str,
    sink: &mut dyn Write,
    refusals: &mut Refusals,
) -> Result<()> {
    let doing = || format!("taking {what} along");
    let top = openat(
        root,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .doing(doing)?;
    let mut walk = Walk {
        sink,
        overlay,
        device: statx::of(top.as_fd()).doing(doing)?.dev,
        links: HashMap::new(),
        what,
        refusals,
    };
    walk.root(top.as_fd()).doing(doing)?;
    let mut waiting = vec![(top, Vec::new())];
    while let Some((directory, path)) = waiting.pop() {
        // The deepest first, so that few directories are open at a time.
        let mut found = walk.directory(directory, &path).doing(doing)?;
        found.reverse();
        waiting.append(&mut found);
    }
    let end = [0; 2 * tar::BLOCK];
    walk.sink.write_all(&end).doing(doing)?;
    Ok(())
}

impl Walk<'_> {
    /// Owner, rights and the like of the top directory.
    fn root(&mut self, top: BorrowedFd<'_>) -> Result<()> {
        let status = statx::of(top)?;
        let location = PathBuf::from(format!("/proc/self/fd/{}/.", top.as_raw_fd()));
        let (xattrs, _) = self.xattrs(&location, ROOT)?;
        let entry = Entry {
            name: ROOT.into(),
            kind: Kind::Directory,
            mode: status.mode & 0o7777,
            uid: status.uid,
            gid: status.gid,
            mtime: status.mtime.0,
            mtime_nanoseconds: status.mtime.1,
            xattrs,
        };
        self.sink.write_all(&tar::encode(&entry))?;
        Ok(())
    }

    /// All names in one directory; the directories among them, open.
    fn directory(&mut self, directory: OwnedFd, path: &[u8]) -> Result<Vec<(OwnedFd, Vec<u8>)>> {
        let mut names = Vec::new();
        let mut listing = Dir::from_fd(directory.try_clone()?)?;
        for entry in listing.iter() {
            let name = entry?.file_name().to_owned();
            if name.as_bytes() != b"." && name.as_bytes() != b".." {
                names.push(name);
            }
        }
        names.sort();
        let mut directories = Vec::new();
        for name in names {
            let mut full = path.to_vec();
            if !full.is_empty() {
                full.push(b'/');
            }
            full.extend_from_slice(name.as_bytes());
            let status = statx::at(directory.as_fd(), &name)?;
            if status.dev != self.device {
                // A mount point: what is mounted there is another tree's.
                continue;
            }
            let below = self
                .entry(directory.as_fd(), &name, &full, &status)
                .doing(|| format!("at {}", PathBytes::from(&full)))?;
            directories.extend(below.map(|fd| (fd, full)));
        }
        Ok(directories)
    }

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
        status: &Status,
    ) -> Result<Option<OwnedFd>> {
        let kind = status.mode & libc::S_IFMT;
        if self.overlay == Overlay::Upper && kind == libc::S_IFCHR && status.rdev == (0, 0) {
            self.marker(path, WHITEOUT, name.to_bytes())?;
            return Ok(None);
        }
        let location = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
            .join(OsStr::from_bytes(name.to_bytes()));
        let mut entry = Entry {
            name: path.into(),
            kind: Kind::Fifo,
            mode: status.mode & 0o7777,
            uid: status.uid,
            gid: status.gid,
            mtime: status.mtime.0,
            mtime_nanoseconds: status.mtime.1,
            xattrs: Vec::new(),
        };
        if kind != libc::S_IFDIR && status.nlink > 1 {
            if let Some(first) = self.links.get(&status.ino) {
                entry.kind = Kind::HardLink {
                    target: first.clone(),
                };
                self.sink.write_all(&tar::encode(&entry))?;
                return Ok(None);
            }
            self.links.insert(status.ino, path.into());
        }
        let mut opaque = false;
        if kind != libc::S_IFLNK {
            (entry.xattrs, opaque) = self.xattrs(&location, path)?;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        match kind {
            libc::S_IFREG => {
                let file = openat(directory, name, flags | OFlag::O_NOATIME, Mode::empty())?;
                entry.kind = Kind::File { size: status.size };
                self.sink.write_all(&tar::encode(&entry))?;
                self.content(File::from(file), status.size)?;
            }
            libc::S_IFDIR => {
                let below = openat(directory, name, flags | OFlag::O_DIRECTORY, Mode::empty())?;
                entry.kind = Kind::Directory;
                self.sink.write_all(&tar::encode(&entry))?;
                if opaque {
                    let mut inside = path.to_vec();
                    inside.extend_from_slice(b"/x");
                    self.marker(&inside, OPAQUE, b"")?;
                }
                return Ok(Some(below));
            }
            libc::S_IFLNK => {
                let target = nix::fcntl::readlinkat(directory, name)?;
                entry.kind = Kind::Symlink {
                    target: PathBytes(target.into_vec()),
                };
                self.sink.write_all(&tar::encode(&entry))?;
            }
            libc::S_IFCHR | libc::S_IFBLK => {
                let (major, minor) = status.rdev;
                entry.kind = if kind == libc::S_IFCHR {
                    Kind::CharDevice { major, minor }
                } else {
                    Kind::BlockDevice { major, minor }
                };
                self.sink.write_all(&tar::encode(&entry))?;
            }
            libc::S_IFIFO => self.sink.write_all(&tar::encode(&entry))?,
            _ => {}
        }
        Ok(None)
    }

    /// An empty file whose name begins with `prefix`, in place of what is at `path`.
    fn marker(&mut self, path: &[u8], prefix: &[u8], name: &[u8]) -> Result<()> {
        let parent = path
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |at| at + 1);
        let mut full = path[..parent].to_vec();
        full.extend_from_slice(prefix);
        full.extend_from_slice(name);
        let mut entry = Entry::record("", 0, 0);
        entry.name = PathBytes(full);
        self.sink.write_all(&tar::encode(&entry))?;
        Ok(())
    }

    /// Extended attributes, and whether an overlay's say that the directory is opaque.
    fn xattrs(
        &mut self,
        location: &std::path::Path,
        path: &[u8],
    ) -> Result<(Vec<(PathBytes, PathBytes)>, bool)> {
        let mut found = Vec::new();
        let mut opaque = false;
        for name in xattr::list(location)? {
            let Some(own) = name.strip_prefix(b"trusted.overlay.") else {
                let value = xattr::get(location, &name)?;
                found.push((PathBytes(name), PathBytes(value)));
                continue;
            };
            match own {
                b"opaque" => opaque = xattr::get(location, &name)? != b"n",
                b"redirect" | b"metacopy" => self.refusals.add(
                    "E-ROOTFS-REDIRECT",
                    format!("{} in {}", PathBytes::from(path), self.what),
                    "the overlay keeps only what was changed about this file (redirect_dir, metacopy)",
                    "take the whole root file system with --rootfs full",
                ),
                // origin, impure, nlink, upper, uuid: the overlay's own notes.
                _ => {}
            }
        }
        Ok((found, opaque))
    }

    fn content(&mut self, mut file: File, size: u64) -> Result<()> {
        let mut buffer = vec![0; (size as usize).clamp(1, 1 << 20)];
        let mut left = size;
        while left > 0 {
            let most = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = file.read(&mut buffer[..most])?;
            if read == 0 {
                // Shorter than it was a moment ago: somebody outside writes to it.
                buffer[..most].fill(0);
            }
            let taken = if read == 0 { most } else { read };
            self.sink.write_all(&buffer[..taken])?;
            left -= taken as u64;
        }
        self.sink
            .write_all(&[0; tar::BLOCK][..tar::padding(size)])?;
        Ok(())
    }
}

/// The name of the top directory in a layer.
pub(super) const ROOT: &[u8] = b".";

/// A name for the C library.
pub(super) fn c_string(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| nix::errno::Errno::EINVAL.into())
}
