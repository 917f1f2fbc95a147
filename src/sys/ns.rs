//! Namespaces: opening, making and entering them, on threads of their own.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The kinds of namespaces, by the names of `/proc/PID/ns/*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Control group root.
    Cgroup,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mounts.
    Mnt,
    /// Network devices, addresses, routes, sockets.
    Net,
    /// Process numbers.
    Pid,
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME offsets.
    Time,
    /// User and group ids, capabilities.
    User,
    /// Host and domain name.
    Uts,
}

impl Kind {
    /// Every kind, in the order of their names.
    pub const ALL: [Kind; 8] = [
        Kind::Cgroup,
        Kind::Ipc,
        Kind::Mnt,
        Kind::Net,
        Kind::Pid,
        Kind::Time,
        Kind::User,
        Kind::Uts,
    ];

    /// The name of the file in `/proc/PID/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Cgroup => "cgroup",
            Kind::Ipc => "ipc",
            Kind::Mnt => "mnt",
            Kind::Net => "net",
            Kind::Pid => "pid",
            Kind::Time => "time",
            Kind::User => "user",
            Kind::Uts => "uts",
        }
    }

    /// The `CLONE_NEW*` bit of this kind; clone(2).
    pub fn clone_flag(self) -> i32 {
        match self {
            Kind::Cgroup => libc::CLONE_NEWCGROUP,
            Kind::Ipc => libc::CLONE_NEWIPC,
            Kind::Mnt => libc::CLONE_NEWNS,
            Kind::Net => libc::CLONE_NEWNET,
            Kind::Pid => libc::CLONE_NEWPID,
            Kind::Time => libc::CLONE_NEWTIME,
            Kind::User => libc::CLONE_NEWUSER,
            Kind::Uts => libc::CLONE_NEWUTS,
        }
    }
}

/// Opens the namespace of that kind of process `host_pid`.
pub fn open(host_pid: i32, kind: Kind) -> Result<OwnedFd> {
    let path = format!("/proc/{host_pid}/ns/{}", kind.name());
    Ok(File::open(&path)
        .doing(|| format!("opening {path}"))?
        .into())
}

/// Opens the calling thread's own namespace of that kind. For [`Kind::Time`] and [`Kind::Pid`] that
/// is the one which the thread's *children* will be in, since these cannot be changed under a
/// running thread.
pub fn open_own(kind: Kind) -> Result<OwnedFd> {
    let suffix = match kind {
        Kind::Time | Kind::Pid => "_for_children",
        _ => "",
    };
    let path = format!("/proc/thread-self/ns/{}{suffix}", kind.name());
    Ok(File::open(&path)
        .doing(|| format!("opening {path}"))?
        .into())
}

/// Moves the calling thread (for time and pid: its future children) into a new namespace.
pub fn unshare_own(kind: Kind) -> Result<()> {
    // SAFETY: no pointers; with a single CLONE_NEW* bit the call changes nothing that Rust relies
    // on (CLONE_FILES and the like are not passed).
    Errno::result(unsafe { libc::unshare(kind.clone_flag()) })
        .doing(|| format!("making a new {} namespace", kind.name()))?;
    Ok(())
}

/// A new namespace, made on a thread that ends at once; it lives as long as the descriptor does.
/// Works for cgroup (its root is the cgroup of the calling *thread's process*), ipc, mnt, net, uts
/// and time (with zero offsets); a user namespace needs a single-threaded caller, and a pid
/// namespace ends with the first process in it.
pub fn fresh(kind: Kind) -> Result<OwnedFd> {
    fresh_with(kind, || Ok(()))
}

/// As [`fresh`]; `fill` runs inside the new namespace (for time: before anybody is in it).
pub fn fresh_with(kind: Kind, fill: impl FnOnce() -> Result<()> + Send) -> Result<OwnedFd> {
    on_thread(|| {
        unshare_own(kind)?;
        // A filled mount namespace need not have a /proc to open it from.
        let namespace = open_own(kind)?;
        fill()?;
        Ok(namespace)
    })
}

/// Runs `work` on a fresh thread that has first entered the namespaces behind `namespaces`
/// (`/proc/PID/ns/*` descriptors, entered in the order given; mnt, net, uts, ipc and cgroup
/// can be entered by a thread; user, pid and time cannot: setns(2)). The thread unshares its
/// file-system attributes first (setns of a mount namespace requires it) and ends with the closure,
/// so the caller's own namespaces never change. After entering a mount namespace, `/` and the
/// working directory are the root of that namespace.
pub fn inside<T: Send>(
    namespaces: &[BorrowedFd<'_>],
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    on_thread(|| {
        for namespace in namespaces {
            setns(namespace, CloneFlags::empty()).doing(|| "entering a namespace")?;
        }
        work()
    })
}

/// A thread with file-system attributes of its own, so that whatever it unshares ends with it.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_FS).doing(|| "unsharing file-system attributes")?;
                work()
            })
            .join()
            .unwrap_or_else(|_| Err(Error::bug("a namespace thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_fresh_namespace_outlives_its_thread_and_can_be_entered() {
        for kind in [Kind::Uts, Kind::Ipc, Kind::Net, Kind::Cgroup, Kind::Mnt] {
            let link = || std::fs::read_link(format!("/proc/thread-self/ns/{}", kind.name()));
            let own = link().unwrap();
            let fd = fresh(kind).unwrap();
            let there = inside(&[fd.as_fd()], || Ok(link()?)).unwrap();
            assert_ne!(own, there);
            assert_eq!(own, link().unwrap());
        }
    }
}
