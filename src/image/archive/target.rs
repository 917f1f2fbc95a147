//! Where an image goes, and how it gets its name only when it is complete.

use crate::error::{Context, Error, Exit, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::unistd::linkat;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where an image goes.
#[derive(Debug)]
pub enum Output {
    /// A file, which appears under this name only when it is complete. One that is there is replaced
    /// then; a FIFO or a device that is there is written to.
    File(PathBuf),
    /// The same, but nothing may be there: `E-OUTPUT-EXISTS`.
    New(PathBuf),
    /// A pipe, a socket, an open file.
    Stream(OwnedFd),
}

impl Output {
    /// The file to write to, and what gives it its name in the end.
    pub(super) fn open(self) -> Result<(File, Option<Target>)> {
        match self {
            Output::Stream(fd) => Ok((File::from(fd), None)),
            Output::New(path) => Target::create(path, false),
            Output::File(path) => Target::create(path, true),
        }
    }
}

/// A file on its way.
#[derive(Debug)]
pub struct Target {
    /// Its name so far; `None` where it has none at all and vanishes with its last descriptor.
    temporary: Option<PathBuf>,
    /// Its name in the end.
    path: PathBuf,
    replace: bool,
}

impl Target {
    fn create(path: PathBuf, replace: bool) -> Result<(File, Option<Self>)> {
        let doing = || format!("creating {}", path.display());
        if path.file_name().is_none() || path.is_dir() {
            return Err(no_file_name(&path)).doing(doing);
        }
        let (is_link, there) = (path.is_symlink(), path.metadata().ok());
        if let Some(there) = &there
            && !there.is_file()
        {
            let file = OpenOptions::new().write(true).open(&path);
            return Ok((file.map_err(write_error).doing(doing)?, None));
        }
        if !replace && (is_link || there.is_some()) {
            return Err(exists()).doing(doing);
        }
        // A link stays, and what it leads to is replaced.
        let path = match (is_link, path.canonicalize()) {
            (true, Ok(real)) => real,
            _ => path,
        };
        let unnamed = OpenOptions::new()
            .write(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_TMPFILE)
            .open(parent(&path));
        let (file, temporary) = match unnamed {
            Ok(file) => (file, None),
            // Not every file system has files without names.
            Err(_) => Self::named(&path)?,
        };
        let target = Self {
            temporary,
            path,
            replace,
        };
        Ok((file, Some(target)))
    }

    fn named(path: &Path) -> Result<(File, Option<PathBuf>)> {
        let mut number = std::process::id();
        loop {
            let temporary = temporary_name(path, number);
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)
            {
                Ok(file) => return Ok((file, Some(temporary))),
                // Left by somebody who was killed, or by another writer of this process.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    number = number.wrapping_add(1);
                }
                Err(error) => {
                    return Err(write_error(error))
                        .doing(|| format!("creating {}", path.display()));
                }
            }
        }
    }

    /// With `sync` has the disk store the content, then gives the file its name and has that stored
    /// too.
    pub fn place(mut self, file: &File, sync: bool) -> Result<()> {
        let stored = match sync {
            true => file.sync_all().map_err(write_error),
            false => Ok(()),
        };
        let done = stored
            .doing(|| format!("storing {}", self.path.display()))
            .and_then(|()| {
                self.name(file)
                    .doing(|| format!("naming {}", self.path.display()))
            });
        if done.is_err() {
            self.remove();
            return done;
        }
        if !sync {
            return Ok(());
        }
        let directory = parent(&self.path);
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .doing(|| format!("storing {}", directory.display()))
    }

    fn name(&mut self, file: &File) -> Result<()> {
        if self.temporary.is_none() {
            match link(file, &self.path) {
                Ok(()) => return Ok(()),
                Err(Errno::EEXIST) if self.replace => {}
                Err(errno) => return Err(naming_error(errno)),
            }
            // A link replaces nothing, a rename does; so take a name first.
            let mut number = std::process::id();
            self.temporary = loop {
                let temporary = temporary_name(&self.path, number);
                match link(file, &temporary) {
                    Ok(()) => break Some(temporary),
                    Err(Errno::EEXIST) => number = number.wrapping_add(1),
                    Err(errno) => return Err(naming_error(errno)),
                }
            };
        }
        if let Some(temporary) = &self.temporary {
            let flags = if self.replace {
                RenameFlags::empty()
            } else {
                RenameFlags::RENAME_NOREPLACE
            };
            renameat2(AT_FDCWD, temporary, AT_FDCWD, &self.path, flags).map_err(naming_error)?;
        }
        Ok(())
    }

    /// Leaves nothing behind.
    pub fn remove(&self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

fn link(file: &File, path: &Path) -> Result<(), Errno> {
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(
        AT_FDCWD,
        itself.as_str(),
        AT_FDCWD,
        path,
        AtFlags::AT_SYMLINK_FOLLOW,
    )
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `.NAME.ocimig-NUMBER` beside the file.
fn temporary_name(path: &Path, number: u32) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let mut temporary = std::ffi::OsString::from(".");
    // The name and the number have to fit into 255 bytes.
    let kept = name.as_bytes().len().min(200);
    temporary.push(std::ffi::OsStr::from_bytes(&name.as_bytes()[..kept]));
    temporary.push(format!(".ocimig-{number}"));
    parent(path).join(temporary)
}

fn no_file_name(path: &Path) -> Error {
    Error::coded(
        "E-OUTPUT-NAME",
        Exit::Usage,
        format!("{} names no file", path.display()),
        "give the name of the image to write",
    )
}

fn exists() -> Error {
    Error::coded(
        "E-OUTPUT-EXISTS",
        Exit::Image,
        "there is something of this name already",
        "remove it first, or give another name with --output",
    )
}

fn naming_error(errno: Errno) -> Error {
    match errno {
        Errno::EEXIST => exists(),
        _ => write_error(errno.into()),
    }
}

/// The failures of writing that a person can do something about.
pub fn write_error(error: std::io::Error) -> Error {
    let (code, reason, remedy) = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT) => (
            "E-OUTPUT-FULL",
            "there is no space left for the image",
            "make room, or write it elsewhere with --output",
        ),
        Some(Errno::EFBIG) => (
            "E-OUTPUT-TOO-LARGE",
            "a file there may not be as large as the image",
            "write it elsewhere with --output, or raise the limit of file sizes",
        ),
        Some(Errno::EROFS) => (
            "E-OUTPUT-READ-ONLY",
            "the file system is mounted read-only",
            "write the image elsewhere with --output",
        ),
        Some(Errno::EPIPE) => (
            "E-OUTPUT-PIPE",
            "nobody reads the image any more",
            "see why the program behind the pipe has ended",
        ),
        Some(Errno::ENOENT | Errno::ENOTDIR) => (
            "E-OUTPUT-DIRECTORY",
            "there is no such directory",
            "make the directory first, or write the image elsewhere with --output",
        ),
        Some(Errno::EACCES | Errno::EPERM) => (
            "E-OUTPUT-DENIED",
            "the image may not be written there",
            "write the image elsewhere with --output",
        ),
        _ => return error.into(),
    };
    Error::coded(code, Exit::Image, reason, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    fn names(directory: &Path) -> Vec<String> {
        directory
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Both ways: with a file that has no name, and where that cannot be.
    fn ways(path: &Path, replace: bool) -> [(File, Target); 2] {
        let (file, target) = Target::create(path.to_owned(), replace).unwrap();
        let (other, temporary) = Target::named(path).unwrap();
        let named = Target {
            temporary,
            path: path.to_owned(),
            replace,
        };
        [(file, target.unwrap()), (other, named)]
    }

    #[test]
    fn a_file_gets_its_name_only_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        for (mut file, target) in ways(&path, true) {
            file.write_all(b"new").unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            let _ = std::fs::remove_file(&path);
            target.place(&file, true).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
        }
        assert_eq!(names(directory.path()), ["image.tar"]);
        for (file, target) in ways(&path, true) {
            std::fs::write(&path, b"old").unwrap();
            target.place(&file, true).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"");
        }
        assert_eq!(names(directory.path()), ["image.tar"]);
    }

    #[test]
    fn nothing_is_replaced_unasked_even_if_it_came_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        for (file, target) in ways(&path, false) {
            std::fs::write(&path, b"old").unwrap();
            assert_eq!(
                target.place(&file, true).unwrap_err().code(),
                "E-OUTPUT-EXISTS"
            );
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["image.tar"]);
        let error = Output::New(path).open().unwrap_err();
        assert_eq!(error.code(), "E-OUTPUT-EXISTS");
    }

    #[test]
    fn links_and_devices_stay_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let (link, real) = (directory.path().join("link"), directory.path().join("real"));
        std::fs::write(&real, b"old").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let (file, target) = Output::File(link.clone()).open().unwrap();
        target.unwrap().place(&file, true).unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&real).unwrap(), b"");
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&fifo)
            .unwrap();
        let (_, target) = Output::File(fifo.clone()).open().unwrap();
        assert!(target.is_none());
        assert!(fifo.metadata().unwrap().file_type().is_fifo());
        drop(reader);
    }

    #[test]
    fn what_cannot_be_written_is_said_by_name() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), b"").unwrap();
        for (path, code) in [
            ("missing/image.tar", "E-OUTPUT-DIRECTORY"),
            ("file/image.tar", "E-OUTPUT-DIRECTORY"),
            ("", "E-OUTPUT-NAME"),
            ("..", "E-OUTPUT-NAME"),
        ] {
            let error = Output::File(directory.path().join(path))
                .open()
                .unwrap_err();
            assert_eq!(error.code(), code, "{path}: {error}");
        }
        for (errno, code) in [
            (Errno::EROFS, "E-OUTPUT-READ-ONLY"),
            (Errno::EDQUOT, "E-OUTPUT-FULL"),
            (Errno::EFBIG, "E-OUTPUT-TOO-LARGE"),
            (Errno::EACCES, "E-OUTPUT-DENIED"),
            (Errno::EIO, "E-FAILED"),
        ] {
            assert_eq!(write_error(errno.into()).code(), code);
        }
        // The longest names have a temporary name too.
        let long = directory.path().join("n".repeat(255));
        let (_, temporary) = Target::named(&long).unwrap();
        assert!(temporary.unwrap().file_name().unwrap().len() <= 255);
    }
}
