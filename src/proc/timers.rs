//! `/proc/PID/timers`: the POSIX timers of a process.

use super::text::{decimal, key_value, lines, malformed, number};
use crate::error::Result;

/// How a timer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// SIGEV_SIGNAL.
    Signal,
    /// SIGEV_NONE.
    None,
    /// SIGEV_THREAD; only the C library sees it as such.
    Thread,
}

/// One POSIX timer. How it is armed only timer_gettime(2) inside the process tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// The kernel's timer id.
    pub id: i32,
    /// Signal number.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// How it tells.
    pub notify: Notify,
    /// The thread that gets the signal (SIGEV_THREAD_ID), as /proc's pid namespace numbers it;
    /// `None` when any thread of the process may.
    pub tid: Option<i32>,
    /// The process, or that thread.
    pub target: i32,
    /// CLOCK_*; negative for the CPU clocks of processes and threads.
    pub clock: i32,
}

/// Parses a whole timers, newest timer first as the kernel lists them.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Vec<Timer>> {
    let mut timers: Vec<Timer> = Vec::new();
    for line in lines(text.as_ref()) {
        add(&mut timers, line).ok_or_else(|| malformed("a line of timers", line))?;
    }
    Ok(timers)
}

fn add(timers: &mut Vec<Timer>, line: &[u8]) -> Option<()> {
    let (key, value) = key_value(line)?;
    if key == b"ID" {
        timers.push(Timer {
            id: decimal(value)?,
            signal: 0,
            value: 0,
            notify: Notify::None,
            tid: None,
            target: 0,
            clock: 0,
        });
        return Some(());
    }
    let timer = timers.last_mut()?;
    match key {
        b"signal" => {
            let slash = value.iter().position(|&byte| byte == b'/')?;
            timer.signal = decimal(&value[..slash])?;
            // %px prints a null pointer as zeros too, always in hexadecimal.
            timer.value = number(&value[slash + 1..], 16)?;
        }
        b"notify" => {
            // `signal/pid.22182`, `signal/tid.22183`
            let slash = value.iter().position(|&byte| byte == b'/')?;
            let dot = value.iter().position(|&byte| byte == b'.')?;
            timer.notify = match &value[..slash] {
                b"signal" => Notify::Signal,
                b"none" => Notify::None,
                b"thread" => Notify::Thread,
                _ => return None,
            };
            timer.target = decimal(value.get(dot + 1..)?)?;
            timer.tid = (value.get(slash + 1..dot)? == b"tid").then_some(timer.target);
        }
        b"ClockID" => timer.clock = decimal(value)?,
        _ => {}
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read() {
        let timers = parse(
            "\
ID: 1
signal: 14/0000000000000000
notify: signal/pid.22182
ClockID: 0
ID: 0
signal: 34/00007f0012345678
notify: signal/tid.22183
ClockID: -6
Newer: thing
",
        )
        .unwrap();
        assert_eq!(
            timers,
            [
                Timer {
                    id: 1,
                    signal: 14,
                    value: 0,
                    notify: Notify::Signal,
                    tid: None,
                    target: 22182,
                    clock: 0
                },
                Timer {
                    id: 0,
                    signal: 34,
                    value: 0x7f00_1234_5678,
                    notify: Notify::Signal,
                    tid: Some(22183),
                    target: 22183,
                    clock: -6
                },
            ]
        );
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn garbage_is_an_error() {
        for text in [
            "x",
            "signal: 1/0",
            "ID: x",
            "ID: 1\nsignal: 1",
            "ID: 1\nnotify: a.b/c",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
