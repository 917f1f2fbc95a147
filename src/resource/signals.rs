//! Signals: handlers, queues, masks, alternate stacks.

use crate::error::{Context, Result};
use crate::image::bytes::Bytes;
use crate::image::process::{Handler, Pending, Thread};
use crate::proc::read::Process;
use crate::sys::ptrace::{self, Queue, SIGINFO_SIZE};
use crate::tracee::batch::{Answers, Batch, Data};
use crate::tracee::calls;

/// `struct sigaction` of the kernel: handler, flags, restorer, mask.
const ACTION: usize = 32;
const LAST: i32 = 64;
/// Where a timer's siginfo_t holds the kernel's own count of how often the timer was set.
const TIMER_PRIVATE: std::ops::Range<usize> = 32..36;

/// What a process has to be asked about its handlers.
#[derive(Debug)]
pub struct Ask {
    actions: Vec<(i32, Data)>,
}

/// Asks for all handlers: also that of a signal whose action is the default can have flags and a mask,
/// which /proc does not show.
pub fn ask(batch: &mut Batch) -> Ask {
    let actions = settable()
        .map(|signal| {
            let old = batch.space(ACTION);
            batch.push(calls::RtSigaction {
                signal: signal.into(),
                action: 0u64.into(),
                old: old.into(),
            });
            (signal, old)
        })
        .collect();
    Ask { actions }
}

/// The signals that can have a handler.
fn settable() -> impl Iterator<Item = i32> {
    (1..=LAST).filter(|one| *one != libc::SIGKILL && *one != libc::SIGSTOP)
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

impl Ask {
    /// The handlers.
    pub fn handlers(&self, answers: &Answers) -> Vec<Handler> {
        self.actions
            .iter()
            .filter_map(|(signal, data)| {
                let words = answers.words(*data);
                let [handler, flags, restorer, mask] = words.try_into().ok()?;
                let found = Handler {
                    signal: *signal,
                    handler,
                    flags,
                    restorer,
                    mask,
                };
                let is_default = (handler, flags, mask) == (0, 0, 0);
                (!is_default).then_some(found)
            })
            .collect()
    }
}

/// The signals in a queue of a stopped thread, the oldest first.
pub fn pending(host_tid: i32, queue: Queue) -> Result<Vec<Pending>> {
    let status = Process::new(host_tid).status()?;
    let mask = match queue {
        Queue::Thread => status.signal_pending,
        Queue::Process => status.signal_shared_pending,
    };
    pending_of(host_tid, queue, mask)
}

/// The same, with the signals that /proc shows in that queue.
pub(super) fn pending_of(host_tid: i32, queue: Queue, mask: u64) -> Result<Vec<Pending>> {
    let mut found = queued(host_tid, queue)?;
    let known = found.iter().fold(0, |known, one| known | bit(one.signal));
    let kept = !bit(libc::SIGKILL) & !bit(libc::SIGSTOP) & !known;
    // A standard signal for which there was no room is pending all the same; it is delivered as one
    // that user 0 has sent (kernel/signal.c, collect_signal).
    for signal in (1..=LAST).filter(|signal| mask & kept & bit(*signal) != 0) {
        let mut info = vec![0; SIGINFO_SIZE];
        info[..4].copy_from_slice(&signal.to_le_bytes());
        found.push(Pending {
            signal,
            code: libc::SI_USER,
            info: Bytes(info),
        });
    }
    Ok(found)
}

fn queued(host_tid: i32, queue: Queue) -> Result<Vec<Pending>> {
    let found = ptrace::peek_signals(host_tid, queue)
        .doing(|| format!("looking at the signals of thread {host_tid}"))?;
    Ok(found
        .into_iter()
        .map(|mut info| {
            let word = |at: usize| {
                i32::from_le_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]])
            };
            let (signal, code) = (word(0), word(8));
            if code == libc::SI_TIMER {
                info[TIMER_PRIVATE].fill(0);
            }
            Pending {
                signal,
                code,
                info: Bytes(info.to_vec()),
            }
        })
        // A process that is dying anyway does not come so far; one that is stopped by SIGSTOP is in
        // its group-stop, which is recorded as such.
        .filter(|one| one.signal != libc::SIGKILL && one.signal != libc::SIGSTOP)
        .collect())
}

/// Sets all handlers; those that are not listed are the default.
pub fn rebuild_handlers(batch: &mut Batch, handlers: &[Handler]) {
    for signal in settable() {
        let words = match handlers.iter().find(|one| one.signal == signal) {
            Some(one) => [one.handler, one.flags, one.restorer, one.mask],
            None => [0; 4],
        };
        let action = batch.words(&words);
        batch.push(calls::RtSigaction {
            signal: signal.into(),
            action: action.into(),
            old: 0u64.into(),
        });
    }
}

/// Takes away whatever waits: the ends of stand-ins and zombies have been told to their parents by now.
pub fn drain(batch: &mut Batch) {
    let set = batch.words(&[u64::MAX]);
    let now = batch.words(&[0, 0]);
    for _ in 0..DRAINED {
        batch.push_tolerant(calls::RtSigtimedwait {
            set: set.into(),
            info: 0u64.into(),
            timeout: now.into(),
        });
    }
}

/// Standard signals do not queue up: no more than one of each can wait.
const DRAINED: usize = 4;

/// Lets signals wait for the process; only its first thread may do that with any si_code
/// (rt_sigqueueinfo(2)).
pub fn rebuild_process(batch: &mut Batch, pid: i32, pending: &[Pending]) {
    for one in pending {
        let info = batch.bytes(&one.info.0);
        batch.push(calls::RtSigqueueinfo {
            pid: pid.into(),
            signal: one.signal.into(),
            info: info.into(),
        });
    }
}

/// Lets signals wait for the thread, and gives it its alternate stack.
pub fn rebuild_thread(batch: &mut Batch, pid: i32, thread: &Thread) {
    let (address, size, flags) = thread.alternate_stack;
    // SS_ONSTACK is told, not set: the thread's stack pointer decides.
    let flags = u64::from(flags & !(libc::SS_ONSTACK as u32));
    let stack = batch.words(&[address, flags, size]);
    batch.push(calls::Sigaltstack {
        stack: stack.into(),
        old: 0u64.into(),
    });
    for one in &thread.pending {
        let info = batch.bytes(&one.info.0);
        batch.push(calls::RtTgsigqueueinfo {
            pid: pid.into(),
            tid: thread.tid.into(),
            signal: one.signal.into(),
            info: info.into(),
        });
    }
}

/// A signal that none of these queues holds: batches of the process end with it.
pub fn free_signal<'p>(pending: impl Iterator<Item = &'p Pending>) -> i32 {
    let taken = pending.fold(0, |taken, one| taken | bit(one.signal.clamp(1, LAST)));
    [libc::SIGURG, libc::SIGWINCH]
        .into_iter()
        .chain(settable())
        .find(|one| taken & bit(*one) == 0)
        .unwrap_or(libc::SIGURG)
}
