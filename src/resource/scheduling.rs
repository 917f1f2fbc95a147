//! How threads get the processor. All of it is read and set from outside.

use crate::error::{Context, Error, Exit, Result};
use crate::image::process::Scheduling;
use crate::sys::sched::{self, Attributes};

/// How a thread of this host is scheduled. Its timer slack has to be asked of itself.
pub fn collect(host_tid: i32) -> Result<Scheduling> {
    let doing = || format!("asking how thread {host_tid} is scheduled");
    let found = sched::attributes(host_tid).doing(doing)?;
    Ok(Scheduling {
        policy: found.policy,
        flags: found.flags,
        nice: found.nice,
        priority: found.priority,
        deadline: (found.runtime, found.deadline, found.period),
        affinity: list(&sched::affinity(host_tid).doing(doing)?),
        io_priority: sched::io_priority(host_tid).doing(doing)?,
        timer_slack: 0,
    })
}

/// `0-3,8`
fn list(processors: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &cpu in processors {
        match runs.last_mut() {
            Some(last) if last.1 + 1 == cpu => last.1 = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let runs: Vec<String> = runs
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    runs.join(",")
}

fn parse(text: &str) -> Result<Vec<usize>> {
    const MOST: usize = 8192;
    let bad = || {
        Error::coded(
            "E-IMAGE-AFFINITY",
            Exit::Image,
            format!("{text:?} is no list of processors"),
            "the image is damaged",
        )
    };
    let mut processors = Vec::new();
    for run in text.split(',').filter(|run| !run.is_empty()) {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let first: usize = first.parse().map_err(|_| bad())?;
        let last: usize = last.parse().map_err(|_| bad())?;
        if first > last || last >= MOST {
            return Err(bad());
        }
        processors.extend(first..=last);
    }
    Ok(processors)
}

/// Schedules a thread so. Where this host has none of its processors, it may use all.
pub fn rebuild(host_tid: i32, wanted: &Scheduling) -> Result<()> {
    let doing = || format!("scheduling thread {host_tid}");
    let processors = parse(&wanted.affinity)?;
    if let Err(errno) = sched::set_affinity(host_tid, &processors) {
        tracing::warn!(
            "thread {host_tid} cannot be kept to processors {}: {errno}",
            wanted.affinity
        );
    }
    let (runtime, deadline, period) = wanted.deadline;
    let attributes = Attributes {
        policy: wanted.policy,
        flags: wanted.flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime,
        deadline,
        period,
        ..Attributes::default()
    };
    if sched::attributes(host_tid).doing(doing)? != attributes.sized() {
        sched::set_attributes(host_tid, attributes).doing(doing)?;
    }
    if sched::io_priority(host_tid).doing(doing)? != wanted.io_priority {
        sched::set_io_priority(host_tid, wanted.io_priority).doing(doing)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_come_back() {
        for processors in [&[][..], &[0], &[0, 1, 2, 5], &[3, 5, 6, 7, 100]] {
            assert_eq!(parse(&list(processors)).unwrap(), processors);
        }
        for text in ["x", "3-1", "0-99999999", "-1"] {
            assert_eq!(parse(text).unwrap_err().code(), "E-IMAGE-AFFINITY");
        }
    }
}
