//! System V semaphores.

use super::{id, identity, list, permissions, with_number};
use crate::error::{Context, Result};
use crate::image::namespaces::ipc::SemaphoreSet;
use crate::sys::sysv;

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
