//! The time namespace: CLOCK_MONOTONIC and CLOCK_BOOTTIME go on where they stood.
//!
//! Kernel facts this rests on, each seen on Linux 6.18 (and proved by the tests below):
//!
//! - unshare(CLONE_NEWTIME) works on any thread; it changes only the namespace of the thread's
//!   future *children*, `time_for_children`.
//! - The offsets can be written until the first process is inside; afterwards EACCES. They are
//!   relative to the host's clocks, not to the writer's. CAP_SYS_TIME is needed.
//! - `/proc/self/timens_offsets` is the main thread's; another thread's is `/proc/TID/…` (there is
//!   none under `/proc/thread-self`). It shows `time_for_children`, as writing it sets that.
//! - A descriptor of `/proc/thread-self/ns/time_for_children` keeps the namespace.
//! - setns into it fails with EUSERS on a thread of a multi-threaded process; a process with one
//!   thread and an address space of its own, so a bare fork of the conductor too, may enter.

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::namespaces::time::Time;
use crate::sys::ns::{self, Kind};
use nix::time::{ClockId, clock_gettime};
use std::fs;
use std::os::fd::OwnedFd;

const NS: i128 = 1_000_000_000;

/// What a time namespace adds to the host's clocks, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offsets {
    /// Added to CLOCK_MONOTONIC.
    pub monotonic_ns: i64,
    /// Added to CLOCK_BOOTTIME.
    pub boottime_ns: i64,
}

/// What the clocks of process `host_pid` show now.
pub fn capture(host_pid: i32, refusals: &mut Refusals) -> Result<Time> {
    let link = |name: &str| {
        let path = format!("/proc/{host_pid}/ns/{name}");
        fs::read_link(&path).doing(|| format!("reading {path}"))
    };
    if link("time")? != link("time_for_children")? {
        refusals.add(
            "E-TIMENS-CHILDREN",
            format!("process {host_pid}"),
            "its children would be in another time namespace than itself",
            "let it start its child first",
        );
    }
    let host = host_clocks()?;
    let offsets = read_offsets(&host_pid.to_string())?;
    Ok(Time {
        monotonic_ns: host.monotonic_ns + offsets.monotonic_ns,
        boottime_ns: host.boottime_ns + offsets.boottime_ns,
    })
}

/// The offsets with which this host's clocks, from now on, go on from the recorded ones.
pub fn offsets(record: &Time) -> Result<Offsets> {
    let host = host_clocks()?;
    let difference = |recorded: i64, host: i64| {
        recorded
            .checked_sub(host)
            .filter(|_| recorded >= 0)
            .ok_or_else(|| {
                Error::coded(
                    "E-IMAGE-VALUE",
                    Exit::Image,
                    format!("a recorded clock value makes no sense: {recorded} ns"),
                    "",
                )
            })
    };
    Ok(Offsets {
        monotonic_ns: difference(record.monotonic_ns, host.monotonic_ns)?,
        boottime_ns: difference(record.boottime_ns, host.boottime_ns)?,
    })
}

/// A new time namespace that nobody is in yet, with these offsets. A single-threaded process enters
/// it with setns(fd, 0); see the module documentation.
pub fn new_time_namespace(offsets: &Offsets) -> Result<OwnedFd> {
    ns::fresh_with(Kind::Time, || {
        let path = format!("/proc/{}/timens_offsets", nix::unistd::gettid());
        fs::write(&path, format_offsets(offsets))
            .doing(|| format!("writing {path} (needs CAP_SYS_TIME)"))
    })
}

/// The clocks as the initial time namespace shows them, wherever this process may be.
fn host_clocks() -> Result<Offsets> {
    let own = read_offsets(&nix::unistd::gettid().to_string())?;
    let read = |clock: ClockId, offset: i64| -> Result<i64> {
        let time = clock_gettime(clock).doing(|| "clock_gettime")?;
        Ok(time.tv_sec() * NS as i64 + time.tv_nsec() - offset)
    };
    Ok(Offsets {
        monotonic_ns: read(ClockId::CLOCK_MONOTONIC, own.monotonic_ns)?,
        boottime_ns: read(ClockId::CLOCK_BOOTTIME, own.boottime_ns)?,
    })
}

fn read_offsets(process: &str) -> Result<Offsets> {
    let path = format!("/proc/{process}/timens_offsets");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        // A kernel without time namespaces.
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound
                && !fs::exists("/proc/self/ns/time").unwrap_or(false) =>
        {
            return Ok(Offsets::default());
        }
        Err(error) => return Err(error).doing(|| format!("reading {path}")),
    };
    parse_offsets(&text).ok_or_else(|| {
        Error::coded(
            "E-PROC-FORMAT",
            Exit::Host,
            format!("{path} cannot be understood: {text:?}"),
            "report this with the kernel version",
        )
    })
}

fn parse_offsets(text: &str) -> Option<Offsets> {
    let mut offsets = Offsets::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let clock = words.next()?;
        let seconds: i128 = words.next()?.parse().ok()?;
        let nanoseconds: i128 = words.next()?.parse().ok()?;
        let total = i64::try_from(seconds.checked_mul(NS)?.checked_add(nanoseconds)?).ok()?;
        match clock {
            "monotonic" => offsets.monotonic_ns = total,
            "boottime" => offsets.boottime_ns = total,
            _ => {}
        }
    }
    Some(offsets)
}

fn format_offsets(offsets: &Offsets) -> String {
    let line = |clock: &str, total: i64| {
        let (seconds, rest) = (total.div_euclid(NS as i64), total.rem_euclid(NS as i64));
        format!("{clock} {seconds} {rest}\n")
    };
    line("monotonic", offsets.monotonic_ns) + &line("boottime", offsets.boottime_ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ns::open;
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    const SECOND: i64 = NS as i64;

    #[test]
    fn offsets_survive_the_way_through_text() {
        for value in [0, 1, -1, 5 * SECOND + 7, -5 * SECOND - 7] {
            let offsets = Offsets {
                monotonic_ns: value,
                boottime_ns: -value,
            };
            assert_eq!(parse_offsets(&format_offsets(&offsets)), Some(offsets));
        }
        assert_eq!(
            parse_offsets("monotonic        5000         7\nboottime         9000         0\n"),
            Some(Offsets {
                monotonic_ns: 5000 * SECOND + 7,
                boottime_ns: 9000 * SECOND
            })
        );
        assert_eq!(parse_offsets("monotonic x\n"), None);
    }

    #[test]
    fn clocks_go_on_from_the_recorded_values() {
        let record = Time {
            monotonic_ns: 1_000_000 * SECOND,
            boottime_ns: 3_000_000 * SECOND,
        };
        let fd = new_time_namespace(&offsets(&record).unwrap()).unwrap();
        // nsenter is a single-threaded process that enters and forks.
        let mut child = Command::new("nsenter")
            .arg(format!(
                "--time=/proc/{}/fd/{}",
                std::process::id(),
                fd.as_raw_fd()
            ))
            .args([
                "sh",
                "-c",
                "read up rest </proc/uptime; echo $up; read line",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        let uptime: f64 = line.trim().parse().unwrap();
        assert!((3_000_000.0..3_000_060.0).contains(&uptime), "{uptime}");
        let mut refusals = Refusals::new();
        let again = capture(child.id() as i32, &mut refusals).unwrap();
        assert!(refusals.as_slice().is_empty());
        assert!((0..60 * SECOND).contains(&(again.monotonic_ns - record.monotonic_ns)));
        assert!((0..60 * SECOND).contains(&(again.boottime_ns - record.boottime_ns)));
        assert!(open(child.id() as i32, Kind::Time).is_ok());
        child.stdin.take();
        child.wait().unwrap();
    }
}
