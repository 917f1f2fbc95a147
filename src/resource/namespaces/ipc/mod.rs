//! The ipc namespace: System V shared memory, semaphores and message queues; POSIX message queues.
//!
//! Everything is read from a thread inside the namespace, with calls that take nothing: messages are
//! copied (MSG_COPY), semaphores read, segments opened through somebody who has attached them. Only
//! a segment that holds something and that nobody has attached must be attached for a moment, which
//! shows in its times and in its last user.
//!
//! What the kernel lets nobody set does not come back: times of last use, numbers of the processes
//! that used something last or made it.
//!
//! What is undone in semaphores when a process ends is found as [`undo`] says.
//!
//! The way back has two parts, since a segment that is marked for removal vanishes when its last
//! user leaves, and has none yet when it is made: [`rebuild`], then the processes attach by number,
//! then [`finish`].

mod posix;
mod queues;
mod segments;
mod semaphores;
mod settings;
pub mod undo;

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::namespaces::ipc::{Identity, Ipc};
use crate::proc::sysvipc;
use crate::resource::memory::fill::Pages;
use crate::sys;
use crate::sys::sysv::Permissions;
pub use segments::Content;
use std::fs;
use std::os::fd::BorrowedFd;

/// An ipc namespace, and where the content of its segments is to be read.
#[derive(Debug)]
pub struct Captured {
    /// What goes into the image.
    pub record: Ipc,
    /// The stored pages of segments, to be handed to
    /// [`Source::add`](crate::resource::memory::Source::add).
    pub contents: Vec<Content>,
}

/// Reads what is in the ipc namespace behind `namespace`. `host_pids` are the container's processes,
/// all of them frozen and in that namespace; `asker` has asked them what they would undo in
/// semaphores.
pub fn capture(
    namespace: BorrowedFd<'_>,
    host_pids: &[i32],
    asker: undo::Asker,
    refusals: &mut Refusals,
) -> Result<Captured> {
    let mapped = segments::mapped(host_pids)?;
    let (mut captured, found) = sys::ns::inside(&[namespace], || {
        let mut refusals = Refusals::new();
        let captured = capture_here(&mapped, &mut refusals)?;
        Ok((captured, refusals))
    })
    .doing(|| "capturing the ipc namespace")?;
    refusals.append(found);
    captured.record.adjustments = asker.finish(host_pids, refusals)?;
    Ok(captured)
}

fn capture_here(mapped: &segments::Mapped, refusals: &mut Refusals) -> Result<Captured> {
    let settings = settings::read();
    let (segments, contents) = segments::capture(mapped, &settings, refusals)?;
    let record = Ipc {
        semaphores: semaphores::capture()?,
        adjustments: Vec::new(),
        queues: queues::capture(refusals)?,
        posix_queues: posix::capture(refusals)?,
        segments,
        settings,
    };
    Ok(Captured { record, contents })
}

/// Makes a new ipc namespace what the record says, from a thread that is inside it.
pub fn rebuild(record: &Ipc, pages: &Pages<'_>) -> Result<()> {
    let rebuild = || {
        // What there is may be more than a limit that was lowered later.
        settings::raise()?;
        segments::rebuild(&record.segments, pages)?;
        semaphores::rebuild(&record.semaphores)?;
        queues::rebuild(&record.queues)?;
        posix::rebuild(&record.posix_queues)?;
        settings::write(&record.settings)
    };
    rebuild().doing(|| "rebuilding the ipc namespace")
}

/// Names the segments that processes of a container without an ipc namespace of its own have
/// attached: they are the host's, and others may use them.
pub fn refuse_host_segments(host_pids: &[i32], refusals: &mut Refusals) -> Result<()> {
    for (id, path) in segments::mapped(host_pids)? {
        refusals.add(
            "E-SHM-HOST",
            format!("System V segment {id} ({})", path.display()),
            "it belongs to the host's ipc namespace, which the container shares",
            "run the container in an ipc namespace of its own, or detach the segment",
        );
    }
    Ok(())
}

/// What has to wait until all processes have attached their segments, from a thread that is inside
/// the namespace.
pub fn finish(record: &Ipc) -> Result<()> {
    let finish = || {
        segments::remove(&record.segments)?;
        settings::write_last(&record.settings)
    };
    finish().doing(|| "rebuilding the ipc namespace")
}

/// The numbers of all objects of a kind (`shm`, `sem`, `msg`) in the calling thread's namespace.
fn list(kind: &str) -> Result<Vec<sysvipc::Row>> {
    let path = format!("/proc/sysvipc/{kind}");
    let text = fs::read(&path).doing(|| format!("reading {path}"))?;
    sysvipc::parse(text).doing(|| format!("reading {path}"))
}

fn number(row: &sysvipc::Row, name: &str) -> i64 {
    row.get(name).copied().unwrap_or_default()
}

fn id(row: &sysvipc::Row, name: &str) -> Result<i32> {
    i32::try_from(number(row, name)).map_err(|_| Error::bug("the number of a System V object"))
}

fn identity(id: i32, permissions: &Permissions) -> Identity {
    Identity {
        id,
        key: permissions.key,
        uid: permissions.uid,
        gid: permissions.gid,
        creator_uid: permissions.cuid,
        creator_gid: permissions.cgid,
        mode: permissions.mode & 0o777,
    }
}

fn permissions(identity: &Identity) -> Permissions {
    Permissions {
        key: identity.key,
        uid: identity.uid,
        gid: identity.gid,
        cuid: identity.creator_uid,
        cgid: identity.creator_gid,
        mode: identity.mode & 0o777,
    }
}

/// Makes an object with its old number, as its old maker. `make` gets key and permission bits.
fn with_number(
    kind: &str,
    identity: &Identity,
    make: impl FnOnce(i32, u32) -> Result<i32>,
) -> Result<()> {
    let path = format!("/proc/sys/kernel/{kind}_next_id");
    fs::write(&path, identity.id.to_string()).doing(|| {
        format!(
            "writing {path} (needs a kernel with CHECKPOINT_RESTORE and CAP_CHECKPOINT_RESTORE)"
        )
    })?;
    let id = sys::sysv::as_user(identity.creator_uid, identity.creator_gid, || {
        make(identity.key, identity.mode & 0o777)
    })?;
    if id != identity.id {
        return Err(Error::coded(
            "E-IMAGE-VALUE",
            Exit::Image,
            format!("number {} of kind {kind} is there twice", identity.id),
            "",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
