//! Interval timers and POSIX timers.

use crate::error::{Refusals, Result};
use crate::image::process::{PosixTimer, Timers};
use crate::proc::read::Process;
use crate::proc::timers::{Notify, Timer};
use crate::tracee::batch::{Answer, Answers, Batch, Data};
use crate::tracee::calls;

const SIGEV_THREAD_ID: i32 = 4;
/// `PR_TIMER_CREATE_RESTORE_IDS` of `<linux/prctl.h>`, since Linux 6.15.
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
/// Without it, numbers are reached by making and deleting timers up to this one.
const MOST_TRIES: i32 = 4096;

/// What a process has to be asked about its timers.
#[derive(Debug)]
pub struct Ask {
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
    Ok(Ask { interval, posix })
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
        let interval = self.interval.map(|data| match answers.words(data)[..] {
            [interval, micros, value, value_micros] => (
                value * SECOND + value_micros * 1000,
                interval * SECOND + micros * 1000,
            ),
            _ => (0, 0),
        });
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
    if timers.posix.is_empty() {
        return;
    }
    let mode = |batch: &mut Batch, on: u64| {
        batch.push_tolerant(calls::Prctl {
            option: PR_TIMER_CREATE_RESTORE_IDS.into(),
            arg2: on.into(),
            arg3: 0u64.into(),
            arg4: 0u64.into(),
            arg5: 0u64.into(),
        });
    };
    mode(batch, 1);
    for timer in &timers.posix {
        push_timer(batch, timer);
    }
    mode(batch, 0);
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

/// Whether timers with these numbers can be made by a kernel without PR_TIMER_CREATE_RESTORE_IDS.
pub fn reachable_without_restore_ids(timers: &Timers) -> bool {
    timers.posix.iter().all(|timer| timer.id < MOST_TRIES)
}
