//! System V semaphores.

use super::{id, identity, list, permissions, with_number};
use crate::error::{Context, Refusals, Result};
use crate::image::namespaces::ipc::SemaphoreSet;
use crate::sys::child::Idle;
use crate::sys::{kcmp, sysv};
use std::cmp::Ordering;

pub(super) fn capture() -> Result<Vec<SemaphoreSet>> {
    let rows = list("sem")?;
    rows.iter()
        .map(|row| {
            let id = id(row, "semid")?;
            let (permissions, values) =
                sysv::semaphores(id).doing(|| format!("reading semaphore set {id}"))?;
            Ok(SemaphoreSet {
                identity: identity(id, &permissions),
                values,
            })
        })
        .collect()
}

/// The kernel shows no process's list of what it will undo when it ends (SEM_UNDO), but kcmp(2) tells
/// whether two processes have the same one, and so whether one has none, as a fresh child of ours.
/// The start of a thread makes an empty list too, so that having one is a suspicion and no more.
pub(super) fn refuse_undo(
    host_pids: &[i32],
    sets: &[SemaphoreSet],
    refusals: &mut Refusals,
) -> Result<()> {
    if sets.is_empty() {
        return Ok(());
    }
    let without = Idle::start().doing(|| "starting a process to compare with")?;
    for &host_pid in host_pids {
        let order = kcmp::compare(kcmp::Kind::Undo, (without.host_pid(), 0), (host_pid, 0))
            .doing(|| format!("asking for the semaphore adjustments of process {host_pid}"))?;
        if order != Ordering::Equal {
            refusals.add(
                "E-SEM-UNDO",
                format!("process {host_pid}"),
                "it has used semaphores with SEM_UNDO, and what would be undone at its end is not \
                 shown by the kernel",
                "checkpoint before it uses them, or without SEM_UNDO",
            );
        }
    }
    Ok(())
}

pub(super) fn rebuild(sets: &[SemaphoreSet]) -> Result<()> {
    for set in sets {
        let id = set.identity.id;
        make(set).doing(|| format!("making semaphore set {id}"))?;
    }
    Ok(())
}

fn make(set: &SemaphoreSet) -> Result<()> {
    with_number("sem", &set.identity, |key, mode| {
        sysv::new_semaphores(key, set.values.len(), mode)
    })?;
    sysv::set_semaphores(set.identity.id, &permissions(&set.identity), &set.values)
}
