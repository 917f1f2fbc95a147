//! POSIX message queues.
//!
//! Nothing reads a message of such a queue but taking it, so queues that hold some are refused.

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::PathBytes;
use crate::image::namespaces::ipc::PosixQueue;
use crate::sys::mount::Configuration;
use crate::sys::mqueue::{self, Attributes};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// The file system of the calling thread's namespace, which need not be mounted anywhere.
fn file_system() -> Result<Option<OwnedFd>> {
    match Configuration::new("mqueue").and_then(Configuration::mount) {
        Ok(mount) => Ok(Some(mount)),
        // A kernel without them.
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error).doing(|| "looking at POSIX message queues"),
    }
}

pub(super) fn capture(refusals: &mut Refusals) -> Result<Vec<PosixQueue>> {
    let Some(mount) = file_system()? else {
        return Ok(Vec::new());
    };
    let root = openat(
        &mount,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .doing(|| "opening the directory of POSIX message queues")?;
    let path = format!("/proc/self/fd/{}", root.as_raw_fd());
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).doing(|| "listing POSIX message queues")? {
        let name = entry.doing(|| "listing POSIX message queues")?.file_name();
        let shown = name.to_string_lossy().into_owned();
        let queue = read(root.as_fd(), &name, &shown, refusals);
        found.push(queue.doing(|| format!("reading POSIX message queue /{shown}"))?);
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn read(
    root: BorrowedFd<'_>,
    name: &OsStr,
    shown: &str,
    refusals: &mut Refusals,
) -> Result<PosixQueue> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(root, name, flags, Mode::empty())?);
    let attributes = mqueue::attributes(file.as_fd())?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let mut refuse = |code, reason: &str, remedy: &str| {
        refusals.add(
            code,
            format!("POSIX message queue /{shown}"),
            reason,
            remedy,
        );
    };
    if attributes.messages != 0 {
        refuse(
            "E-MQUEUE-MESSAGES",
            "it holds messages, which nobody can read without taking them",
            "let them be received first",
        );
    }
    if text.split_whitespace().any(|word| {
        word.strip_prefix("NOTIFY_PID:")
            .is_some_and(|pid| pid != "0")
    }) {
        refuse(
            "E-MQUEUE-NOTIFY",
            "a process waits to be notified of its first message (mq_notify)",
            "let it receive messages instead",
        );
    }
    let status = fstat(&file)?;
    Ok(PosixQueue {
        name: PathBytes(name.as_bytes().to_vec()),
        uid: status.st_uid,
        gid: status.st_gid,
        mode: status.st_mode & 0o7777,
        capacity: attributes.capacity.cast_unsigned(),
        message_size: attributes.message_size.cast_unsigned(),
    })
}

pub(super) fn rebuild(queues: &[PosixQueue]) -> Result<()> {
    for queue in queues {
        make(queue).doing(|| format!("making POSIX message queue /{}", queue.name))?;
    }
    Ok(())
}

fn make(queue: &PosixQueue) -> Result<()> {
    let broken = || {
        let reason = format!("not a POSIX message queue: {queue:?}");
        Error::coded("E-IMAGE-VALUE", Exit::Image, reason, "")
    };
    let name = CString::new(queue.name.as_bytes()).map_err(|_| broken())?;
    let attributes = Attributes {
        capacity: queue.capacity.try_into().map_err(|_| broken())?,
        message_size: queue.message_size.try_into().map_err(|_| broken())?,
        messages: 0,
    };
    let fd = mqueue::create(&name, 0o600, &attributes)?;
    let owner = (Uid::from_raw(queue.uid), Gid::from_raw(queue.gid));
    fchown(&fd, Some(owner.0), Some(owner.1))?;
    Ok(fchmod(&fd, Mode::from_bits_truncate(queue.mode))?)
}
