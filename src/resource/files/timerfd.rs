//! timerfd(2).
//!
//! A timer goes on with the time that it had left. One that was set to a moment of the wall clock
//! keeps that moment; other clocks go on in the container's time namespace where they stopped.

use super::kind::Found;
use crate::error::{Context, Error, Exit, Result};
use crate::image::files::{FileKind, Timerfd};
use crate::proc::Process;
use crate::sys::timerfd as sys;
use std::os::fd::{AsFd, OwnedFd};

const CLOCKS: [(&str, i32); 5] = [
    ("CLOCK_REALTIME", libc::CLOCK_REALTIME),
    ("CLOCK_MONOTONIC", libc::CLOCK_MONOTONIC),
    ("CLOCK_BOOTTIME", libc::CLOCK_BOOTTIME),
    ("CLOCK_REALTIME_ALARM", libc::CLOCK_REALTIME_ALARM),
    ("CLOCK_BOOTTIME_ALARM", libc::CLOCK_BOOTTIME_ALARM),
];

pub(super) fn capture(found: &Found<'_>) -> Result<FileKind> {
    // First the time, which brings the number of expirations up to date, then that.
    let (remaining, interval) = sys::get(found.fd).doing(|| "reading a timer")?;
    let shown = Process::new(found.place.host_pid)
        .fdinfo(found.place.fd)?
        .timerfd
        .ok_or_else(|| found.unreadable("clockid"))?;
    let (name, clock) = CLOCKS
        .iter()
        .find(|clock| clock.1 == shown.clock)
        .ok_or_else(|| found.unreadable("clockid"))?;
    let flag = |flag: i32| shown.settime_flags.cast_signed() & flag != 0;
    let absolute = flag(libc::TFD_TIMER_ABSTIME);
    let wall = name.starts_with("CLOCK_REALTIME");
    let deadline = if absolute && wall && remaining != 0 {
        Some(now(*clock)? + remaining)
    } else {
        None
    };
    Ok(FileKind::Timerfd(Timerfd {
        clock: (*name).to_owned(),
        ticks: shown.ticks,
        remaining,
        interval,
        deadline,
        absolute,
        cancel_on_set: flag(libc::TFD_TIMER_CANCEL_ON_SET),
    }))
}

/// The alarm clocks show the same time as those without alarm.
fn now(clock: i32) -> Result<u64> {
    sys::now(match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        other => other,
    })
}

pub(super) fn rebuild(record: &Timerfd) -> Result<OwnedFd> {
    let clock = CLOCKS
        .iter()
        .find(|clock| clock.0 == record.clock)
        .ok_or_else(|| {
            Error::coded(
                "E-IMAGE-CLOCK",
                Exit::Image,
                format!("{:?} is no clock", record.clock),
                "restore with the engine that wrote the image",
            )
        })?
        .1;
    let timer = sys::create(clock).doing(|| format!("making a timer on {}", record.clock))?;
    let mut flags = 0;
    let mut value = record.remaining;
    if record.absolute {
        flags |= libc::TFD_TIMER_ABSTIME;
        value = match record.deadline {
            Some(deadline) => deadline,
            None if value == 0 => 0,
            None => now(clock)?.saturating_add(value),
        };
    }
    if record.cancel_on_set {
        flags |= libc::TFD_TIMER_CANCEL_ON_SET;
    }
    sys::set(timer.as_fd(), flags, value, record.interval).doing(|| "setting a timer")?;
    if record.ticks != 0 {
        sys::set_ticks(timer.as_fd(), record.ticks).doing(|| "setting a timer's expirations")?;
    }
    Ok(timer)
}
