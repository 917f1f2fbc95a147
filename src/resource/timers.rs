//! Interval timers and POSIX timers.

use crate::error::{Refusals, Result};
use crate::image::process::{PosixTimer, Timers};
use crate::proc::read::Process;
use crate::proc::timers::{Notify, Timer};
use crate::sys::timer::{PR_TIMER_CREATE_RESTORE_IDS, restores_ids};
use crate::tracee::batch::{Answer, Answers, Batch, Data};
use crate::tracee::calls;
use std::time::Duration;

const SIGEV_THREAD_ID: i32 = 4;
/// On a kernel that cannot make timers with chosen numbers, those below this one are reached by making
/// and deleting timers.
const MOST_TRIES: i32 = 2048;

/// What a process has to be asked about its timers.
#[derive(Debug)]
pub struct Ask {
    host_pid: i32,
    interval: [Data; 3],
    posix: Vec<(Timer, Answer<()>, Data)>,
}

/// Pushes the questions.
pub fn ask(batch: &mut Batch, host_pid: i32) -> Result<Ask> {
    let interval = [0u64, 1, 2].map(|which| {
        let value = batch.space(32);
        batch.push(calls::Getitimer {
            which: which.into(),
            value: value.into(),
        });
        value
    });
    let posix = Process::new(host_pid)
        .timers()?
        .into_iter()
        .map(|timer| {
            let value = batch.space(32);
            let answer = batch.push_tolerant(calls::TimerGettime {
                id: timer.id.into(),
                value: value.into(),
            });
            (timer, answer, value)
        })
        .collect();
    Ok(Ask {
        host_pid,
        interval,
        posix,
    })
}

const SECOND: u64 = 1_000_000_000;

impl Ask {
    /// The timers. `own_tid` gives the number in the container of a thread of this host.
    pub fn collect(
        &self,
        answers: &Answers,
        own_tid: impl Fn(i32) -> Option<i32>,
        object: impl Fn() -> String,
        refusals: &mut Refusals,
    ) -> Timers {
        // struct itimerval: interval, then value, in seconds and microseconds.
        let mut interval = self.interval.map(|data| match answers.words(data)[..] {
            [interval, micros, value, value_micros] => (
                value * SECOND + value_micros * 1000,
                interval * SECOND + micros * 1000,
            ),
            _ => (0, 0),
        });
        // When it is set, the kernel adds a tick to a timer of processor time (kernel/time/itimer.c,
        // set_cpu_itimer). It would grow with every checkpoint.
        let tick = tick();
        for (remaining, _) in interval.iter_mut().skip(1).filter(|(left, _)| *left != 0) {
            *remaining = remaining.saturating_sub(tick).max(1000);
        }
        let host_tids = Process::new(self.host_pid).threads().unwrap_or_default();
        let tids: Vec<i32> = host_tids.into_iter().filter_map(&own_tid).collect();
        let mut posix = Vec::new();
        for (timer, answer, data) in &self.posix {
            let (interval, remaining) = match (answers.result(*answer), &answers.words(*data)[..]) {
                (Ok(()), [interval, nanos, value, value_nanos]) => {
                    (interval * SECOND + nanos, value * SECOND + value_nanos)
                }
                _ => (0, 0),
            };
            let tid = timer.tid.map(&own_tid);
            if tid == Some(None) {
                refusals.add(
                    "E-TIMER-THREAD",
                    format!("timer {} of {}", timer.id, object()),
                    "it tells a thread that has ended",
                    "let the program delete the timer",
                );
                continue;
            }
            if let Some(owner) = foreign_clock(timer.clock, &tids) {
                refusals.add(
                    "E-TIMER-CLOCK",
                    format!("timer {} of {}", timer.id, object()),
                    format!("it runs on the processor time of another process, {owner}"),
                    "let the program delete the timer",
                );
                continue;
            }
            let notify = match timer.notify {
                Notify::Signal => 0,
                Notify::None => 1,
                Notify::Thread => 2,
            };
            posix.push(PosixTimer {
                id: timer.id,
                clock: timer.clock,
                notify: notify | if tid.is_some() { SIGEV_THREAD_ID } else { 0 },
                signal: timer.signal,
                value: timer.value,
                tid: tid.flatten(),
                remaining,
                interval,
            });
        }
        posix.sort_by_key(|timer| timer.id);
        Timers { interval, posix }
    }
}

/// The length of a tick of this kernel: the resolution of its coarse clocks.
fn tick() -> u64 {
    use nix::time::{ClockId, clock_getres};
    clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_or(0, |found| Duration::from(found).as_nanos() as u64)
}

/// Whose processor time a clock counts, if not that of one of the threads `tids`; `<linux/posix-timers.h>`
/// has the layout of such numbers.
fn foreign_clock(clock: i32, tids: &[i32]) -> Option<i32> {
    let owner = !(clock >> 3);
    (clock < 0 && owner != 0 && !tids.contains(&owner)).then_some(owner)
}

/// Names what this kernel cannot make again.
pub fn check(timers: &Timers, who: &str, refusals: &mut Refusals) {
    let last = timers.posix.last().map_or(0, |timer| timer.id);
    if last >= MOST_TRIES && !restores_ids() {
        refusals.add(
            "E-TIMER-NUMBER",
            format!("timer {last} of {who}"),
            "this kernel cannot make timers with chosen numbers, and this one is too high to be reached",
            "restore it on Linux 6.15 or later",
        );
    }
}

/// Makes the timers, with their numbers, and arms them. All threads exist by now.
pub fn rebuild(batch: &mut Batch, timers: &Timers) {
    for (which, (remaining, interval)) in timers.interval.iter().enumerate() {
        if *remaining == 0 {
            continue;
        }
        let micros = |nanos: u64| [nanos / SECOND, nanos % SECOND / 1000];
        let [value, value_micros] = micros((*remaining).max(1000));
        let [interval, interval_micros] = micros(*interval);
        let data = batch.words(&[interval, interval_micros, value, value_micros]);
        batch.push(calls::Setitimer {
            which: which.into(),
            value: data.into(),
        });
    }
    rebuild_posix(batch, &timers.posix, restores_ids());
}

fn rebuild_posix(batch: &mut Batch, timers: &[PosixTimer], restores_ids: bool) {
    if timers.is_empty() {
        return;
    }
    if !restores_ids {
        // A process counts its timers from 0 on and never gives a number twice.
        let mut next = 0;
        for timer in timers {
            for skipped in next..timer.id.min(MOST_TRIES) {
                push_skipped(batch, skipped);
            }
            push_timer(batch, timer);
            next = timer.id.saturating_add(1);
        }
        return;
    }
    let mode = |batch: &mut Batch, on: u64| {
        batch.push(calls::Prctl {
            option: PR_TIMER_CREATE_RESTORE_IDS.into(),
            arg2: on.into(),
            arg3: 0u64.into(),
            arg4: 0u64.into(),
            arg5: 0u64.into(),
        });
    };
    mode(batch, 1);
    for timer in timers {
        push_timer(batch, timer);
    }
    mode(batch, 0);
}

fn push_skipped(batch: &mut Batch, id: i32) {
    const SIGEV_NONE: u64 = 1;
    let event = batch.words(&[0, SIGEV_NONE << 32, 0, 0, 0, 0, 0, 0]);
    let number = batch.space(4);
    batch.push(calls::TimerCreate {
        clock: libc::CLOCK_MONOTONIC.into(),
        event: event.into(),
        id: number.into(),
    });
    batch.push(calls::TimerDelete { id: id.into() });
}

fn push_timer(batch: &mut Batch, timer: &PosixTimer) {
    // struct sigevent: value, signal and notify as two halves of a word, then the thread.
    let event = batch.words(&[
        timer.value,
        u64::from(timer.signal.cast_unsigned()) | u64::from(timer.notify.cast_unsigned()) << 32,
        u64::from(timer.tid.unwrap_or(0).cast_unsigned()),
        0,
        0,
        0,
        0,
        0,
    ]);
    let id = batch.bytes(&timer.id.to_le_bytes());
    batch.push(calls::TimerCreate {
        clock: timer.clock.into(),
        event: event.into(),
        id: id.into(),
    });
    if timer.remaining == 0 {
        return;
    }
    let value = batch.words(&[
        timer.interval / SECOND,
        timer.interval % SECOND,
        timer.remaining / SECOND,
        timer.remaining % SECOND,
    ]);
    batch.push(calls::TimerSettime {
        id: timer.id.into(),
        flags: 0u64.into(),
        value: value.into(),
    });
}

#[cfg(test)]
pub(super) fn rebuild_without_restore_ids(batch: &mut Batch, timers: &[PosixTimer]) {
    rebuild_posix(batch, timers, false);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_another_process_is_known_by_its_number() {
        let clock_of = |pid: i32| !pid << 3 | 2;
        assert_eq!(foreign_clock(clock_of(0), &[7]), None);
        assert_eq!(foreign_clock(clock_of(7), &[7, 9]), None);
        assert_eq!(foreign_clock(clock_of(9) | 4, &[7, 9]), None);
        assert_eq!(foreign_clock(clock_of(12), &[7, 9]), Some(12));
        assert_eq!(foreign_clock(libc::CLOCK_PROCESS_CPUTIME_ID, &[]), None);
    }
}
