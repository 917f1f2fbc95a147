//! Running a closure inside another process's namespaces, on a thread of its own.

use crate::error::{Context, Error, Result};
use nix::sched::{CloneFlags, setns, unshare};
use std::os::fd::BorrowedFd;

/// Runs `work` on a fresh thread that has first entered the namespaces behind `namespaces`
/// (`/proc/PID/ns/*` descriptors, entered in the order given; mnt, net, uts, ipc, cgroup and time
/// can be entered by a thread, user and pid cannot: setns(2)). The thread unshares its file-system
/// attributes first (setns of a mount namespace requires it) and ends with the closure, so the
/// caller's own namespaces never change. After entering a mount namespace, `/` and the working
/// directory are the root of that namespace.
pub fn inside<T: Send>(
    namespaces: &[BorrowedFd<'_>],
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_FS).doing(|| "unsharing file-system attributes")?;
                for namespace in namespaces {
                    setns(namespace, CloneFlags::empty()).doing(|| "entering a namespace")?;
                }
                work()
            })
            .join()
            .unwrap_or_else(|_| Err(Error::bug("a namespace thread panicked")))
    })
}
