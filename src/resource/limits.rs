//! Resource limits.

use crate::error::{Error, Exit, Refusals, Result};
use crate::image::process::Limit;
use crate::proc::limits::Resource;
use crate::proc::read::Process;
use crate::tracee::batch::Batch;
use crate::tracee::calls;

/// The limits of a process, from outside: prlimit(2) on another user's process needs CAP_SYS_RESOURCE.
pub fn collect(host_pid: i32) -> Result<Vec<Limit>> {
    Ok(Process::new(host_pid)
        .limits()?
        .into_iter()
        .map(|limit| Limit {
            resource: limit.resource.name().to_owned(),
            soft: limit.soft,
            hard: limit.hard,
        })
        .collect())
}

fn resource(limit: &Limit) -> Result<Resource> {
    Resource::ALL
        .iter()
        .copied()
        .find(|known| known.name() == limit.resource)
        .ok_or_else(|| {
            Error::coded(
                "E-IMAGE-LIMIT",
                Exit::Image,
                format!("{} is no resource limit", limit.resource),
                "the image is damaged",
            )
        })
}

/// What this process cannot give: hard limits above its own need CAP_SYS_RESOURCE.
pub fn check(limits: &[Limit], may_raise: bool, who: &str, refusals: &mut Refusals) -> Result<()> {
    if may_raise {
        return Ok(());
    }
    let own = Process::new(std::process::id().cast_signed()).limits()?;
    for limit in limits {
        let resource = resource(limit)?;
        let Some(own) = own.iter().find(|one| one.resource == resource) else {
            continue;
        };
        let above = match (limit.hard, own.hard) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(wanted), Some(most)) => wanted > most,
        };
        if above {
            let text = |value: Option<u64>| value.map_or("unlimited".to_owned(), |n| n.to_string());
            refusals.add(
                "E-LIMIT",
                format!("{} of {who}", limit.resource),
                format!(
                    "its hard limit was {}, here it is {} and cannot be raised without CAP_SYS_RESOURCE",
                    text(limit.hard),
                    text(own.hard)
                ),
                format!("raise {} for this command", limit.resource),
            );
        }
    }
    Ok(())
}

/// Sets the limits, by the process itself.
pub fn rebuild(batch: &mut Batch, limits: &[Limit]) -> Result<()> {
    for limit in limits {
        let unlimited = u64::MAX;
        let new = batch.words(&[
            limit.soft.unwrap_or(unlimited),
            limit.hard.unwrap_or(unlimited),
        ]);
        batch.push(calls::Prlimit {
            pid: 0u64.into(),
            resource: (resource(limit)? as u32).into(),
            new: new.into(),
            old: 0u64.into(),
        });
    }
    Ok(())
}
