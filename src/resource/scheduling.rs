//! How threads get the processor. All of it is read and set from outside.

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::process::Scheduling;
use crate::sys::sched::{self, Attributes};

/// How a thread of this host is scheduled. Its timer slack has to be asked of itself.
pub fn collect(host_tid: i32) -> Result<Scheduling> {
    let doing = || format!("asking how thread {host_tid} is scheduled");
    let found = sched::attributes(host_tid).doing(doing)?;
    // For the ordinary policies the kernel tells the length of a slice there since 6.12. What everyone
    // gets is not a wish of this thread.
    let own = sched::attributes(0).doing(doing)?;
    let runtime = match is_ordinary(found.policy) && own.runtime == found.runtime {
        true => 0,
        false => found.runtime,
    };
    let processors = sched::affinity(host_tid).doing(doing)?;
    let is_kept = processors != online()?;
    Ok(Scheduling {
        policy: found.policy,
        flags: found.flags,
        nice: found.nice,
        priority: found.priority,
        deadline: (runtime, found.deadline, found.period),
        affinity: if is_kept {
            list(&processors)
        } else {
            String::new()
        },
        io_priority: sched::io_priority(host_tid).doing(doing)?,
        timer_slack: 0,
    })
}

fn is_ordinary(policy: u32) -> bool {
    let policy = policy.cast_signed();
    [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE].contains(&policy)
}

/// The processors of this host, ascending.
fn online() -> Result<Vec<usize>> {
    let path = "/sys/devices/system/cpu/online";
    let text = std::fs::read_to_string(path).doing(|| format!("reading {path}"))?;
    parse(text.trim()).doing(|| format!("reading {path}"))
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

/// Names threads that are kept to processors of which this host has none.
pub fn check(wanted: &Scheduling, who: &str, refusals: &mut Refusals) {
    let (Ok(processors), Ok(online)) = (parse(&wanted.affinity), online()) else {
        return;
    };
    if !processors.is_empty() && !processors.iter().any(|one| online.contains(one)) {
        refusals.add(
            "E-AFFINITY",
            who,
            format!(
                "it is kept to processors {}; this host has {}",
                wanted.affinity,
                list(&online)
            ),
            "restore it on a host that has one of them",
        );
    }
}

/// Schedules a thread so.
pub fn rebuild(host_tid: i32, wanted: &Scheduling) -> Result<()> {
    let doing = || format!("scheduling thread {host_tid}");
    let processors = match wanted.affinity.is_empty() {
        true => online()?,
        false => parse(&wanted.affinity)?,
    };
    if sched::affinity(host_tid).doing(doing)? != processors
        && let Err(errno) = sched::set_affinity(host_tid, &processors)
    {
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
    let mut own = sched::attributes(host_tid).doing(doing)?;
    if is_ordinary(own.policy) && runtime == 0 {
        own.runtime = 0;
    }
    if own != attributes.sized() {
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
