//! Sleeps that were interrupted: the kernel goes on with them by restart_syscall(2), from what only the
//! task itself holds (`struct restart_block`).
//!
//! Two calls tell the remaining time by themselves, if they were asked to: nanosleep and clock_nanosleep
//! write it to memory. For the rest, and for poll and futex, the thread is let sleep on for a moment, and
//! its timer in `/proc/timer_list` tells: it is one that is there while this thread sleeps and is not
//! when it does not.
//!
//! The restored thread begins the same call anew, for the remaining time, and is interrupted. Then it is
//! what the old one was, and its registers and memory need no change.

use crate::error::{Context, Result};
use crate::image::process::{Registers, Sleep, SleepingCall};
use crate::proc::read::timer_list;
use crate::proc::timer_list::{Running, TimerList};
use crate::sys::ptrace::UserRegs;
use crate::sys::remote;
use crate::tracee::arch::restart;
use crate::tracee::bare::Bare;
use crate::tracee::batch::{Batch, Data};
use crate::tracee::{Asleep, Scratch, Stopped, calls};

const SECOND: u64 = 1_000_000_000;
/// Looks at the timers, until one is left that was seen twice; others come and go.
const MOST_LOOKS: usize = 8;

/// Whether a thread was interrupted in a call that the kernel would restart from a restart block.
pub(super) fn is_interrupted(own: &UserRegs) -> bool {
    own.orig_rax as i64 >= 0 && own.rax as i64 == restart::ERESTART_RESTARTBLOCK
}

/// What is left of the sleep of a stopped thread of the process `host_pid`, if it sleeps for a time.
/// A sleep that has ended meanwhile is over: the registers say so. `None` also where nothing tells the
/// time; the call is then made again as it was.
pub fn find(stopped: &mut Stopped, scratch: &Scratch, host_pid: i32) -> Result<Option<Sleep>> {
    let own = *stopped.registers();
    if !is_interrupted(&own) {
        return Ok(None);
    }
    let Some(call) = call_of(host_pid, &own) else {
        return Ok(None);
    };
    let told = match call {
        SleepingCall::Nanosleep => own.rsi,
        SleepingCall::ClockNanosleep => own.r10,
        SleepingCall::Poll if (own.rdx as i32) < 0 => return Ok(None),
        // A wait without end, or until a time of the clock: the same call says the same.
        SleepingCall::Futex if own.r10 == 0 || is_absolute(own.rsi) => return Ok(None),
        SleepingCall::Poll | SleepingCall::Futex => 0,
    };
    let remaining = match told {
        0 => left(stopped, scratch)?,
        address => duration_at(host_pid, address),
    };
    Ok(remaining.map(|remaining| Sleep { call, remaining }))
}

/// FUTEX_WAIT_BITSET.
fn is_absolute(operation: u64) -> bool {
    operation & 0x7f == libc::FUTEX_WAIT_BITSET as u64
}

fn words_at(host_pid: i32, address: u64) -> Option<[u64; 2]> {
    let mut bytes = [0; 16];
    let read = remote::read(host_pid, address, &mut bytes);
    let words = u128::from_le_bytes(bytes);
    (read == Ok(bytes.len())).then_some([words as u64, (words >> 64) as u64])
}

fn duration_at(host_pid: i32, address: u64) -> Option<u64> {
    let [seconds, nanoseconds] = words_at(host_pid, address)?;
    Some(seconds.saturating_mul(SECOND).saturating_add(nanoseconds))
}

/// The time until a thread's own timer expires.
fn left(stopped: &mut Stopped, scratch: &Scratch) -> Result<Option<u64>> {
    let Ok(mut others) = timer_list() else {
        return Ok(None);
    };
    let mut batch = Batch::new();
    batch.push_tolerant(calls::RestartSyscall {});
    let mut candidates: Vec<Running> = Vec::new();
    for _ in 0..MOST_LOOKS {
        let seen = match stopped
            .run_asleep(scratch, &batch, timer_list)
            .doing(|| "letting a thread sleep on")?
        {
            Asleep::Interrupted(seen) => seen?,
            Asleep::Over(result) => {
                let mut own = *stopped.registers();
                own.rax = result;
                own.orig_rax = u64::MAX;
                stopped.set_registers(own);
                return Ok(None);
            }
        };
        let after = timer_list()?;
        let mut found = own_timers(&seen, &others, &after);
        // Its time is the same every time (its place in memory need not be), that of others is not.
        let known = |one: &Running| candidates.iter().any(|other| other.expires == one.expires);
        if found.iter().any(known) {
            found.retain(known);
            if let [only] = found[..] {
                return Ok(Some(only.expires.saturating_sub(seen.now)));
            }
        }
        candidates = found;
        others = after;
    }
    Ok(None)
}

/// Timers that ran while the thread slept, and neither before nor after.
fn own_timers(during: &TimerList, before: &TimerList, after: &TimerList) -> Vec<Running> {
    let is_others = |one: &Running| {
        before.sleepers.binary_search(one).is_ok() || after.sleepers.binary_search(one).is_ok()
    };
    let found = during.sleepers.iter().filter(|one| !is_others(one));
    found.copied().collect()
}

fn number(call: SleepingCall) -> i64 {
    match call {
        SleepingCall::Nanosleep => libc::SYS_nanosleep,
        SleepingCall::ClockNanosleep => libc::SYS_clock_nanosleep,
        SleepingCall::Poll => libc::SYS_poll,
        SleepingCall::Futex => libc::SYS_futex,
    }
}

/// Writes into the registers of an interrupted thread how it goes on: `sleep` is what [`find`] has
/// found. Without that the call is made again as it was.
pub(super) fn normalize(host_pid: i32, own: &mut UserRegs, sleep: Option<Sleep>) {
    if let Some(sleep) = sleep {
        own.orig_rax = number(sleep.call) as u64;
        return;
    }
    let known = match own.orig_rax as i64 {
        libc::SYS_restart_syscall => call_of(host_pid, own).map(number),
        known => Some(known),
    };
    match known {
        Some(number) => {
            own.rax = number as u64;
            own.rip = own.rip.wrapping_sub(2);
        }
        // As after a signal: a program has to expect it.
        None => own.rax = (-i64::from(libc::EINTR)) as u64,
    }
    own.orig_rax = u64::MAX;
}

/// A call that was restarted before shows restart_syscall's number. Which one it was stands in the code
/// in front of its `syscall` instruction (`mov eax, 35`), else in its arguments.
fn call_of(host_pid: i32, own: &UserRegs) -> Option<SleepingCall> {
    const MOV_EAX: u8 = 0xb8;
    let by_number = |number: i64| ALL.into_iter().find(|call| self::number(*call) == number);
    if own.orig_rax as i64 != libc::SYS_restart_syscall {
        return by_number(own.orig_rax as i64);
    }
    let mut code = [0; 32];
    let start = own.rip.wrapping_sub(2 + code.len() as u64);
    if remote::read(host_pid, start, &mut code) == Ok(code.len()) {
        let found = code.windows(5).rev().find_map(|window| {
            let number = u32::from_le_bytes([window[1], window[2], window[3], window[4]]);
            let found = by_number(number.into());
            found.filter(|_| window[0] == MOV_EAX)
        });
        if found.is_some() {
            return found;
        }
    }
    let is_duration = |word: u64| {
        let nanoseconds = words_at(host_pid, word).map(|words| words[1]);
        nanoseconds.is_some_and(|nanoseconds| nanoseconds < SECOND)
    };
    // The address space starts above all small numbers.
    let is_pointer = |word: u64| word >= 0x1000;
    let call = if !is_pointer(own.rdi) && own.rsi <= 1 && is_duration(own.rdx) {
        SleepingCall::ClockNanosleep
    } else if is_pointer(own.rdi) && is_futex_wait(own.rsi) && is_duration(own.r10) {
        SleepingCall::Futex
    } else if is_duration(own.rdi) && (own.rsi == 0 || is_pointer(own.rsi)) {
        SleepingCall::Nanosleep
    } else if own.rsi < 0x10_0000 {
        SleepingCall::Poll
    } else {
        return None;
    };
    Some(call)
}

fn is_futex_wait(operation: u64) -> bool {
    let command = operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u64;
    command == libc::FUTEX_WAIT as u64 || command == libc::FUTEX_WAIT_BITSET as u64
}

const ALL: [SleepingCall; 4] = [
    SleepingCall::Nanosleep,
    SleepingCall::ClockNanosleep,
    SleepingCall::Poll,
    SleepingCall::Futex,
];

/// Puts a restored thread to sleep for the rest of its time. Everything that it waits for is in place:
/// memory, descriptors. What it has to be released with.
pub(super) fn rebuild(
    bare: &mut Bare,
    index: usize,
    registers: &Registers,
    sleep: Sleep,
) -> Result<Registers> {
    let mut batch = Batch::new();
    let duration = batch.words(&[sleep.remaining / SECOND, sleep.remaining % SECOND]);
    push(&mut batch, registers, sleep, duration);
    let thread = bare
        .threads
        .get_mut(index)
        .ok_or_else(|| crate::error::Error::bug("a thread is missing"))?;
    let slept = thread
        .run_asleep(&bare.scratch, &batch, || ())
        .doing(|| "putting a thread back to sleep")?;
    let mut registers = *registers;
    if let Asleep::Over(result) = slept {
        registers.rax = result;
        registers.orig_rax = u64::MAX;
    }
    Ok(registers)
}

fn push(batch: &mut Batch, own: &Registers, sleep: Sleep, duration: Data) {
    match sleep.call {
        SleepingCall::Nanosleep => {
            batch.push_tolerant(calls::Nanosleep {
                request: duration.into(),
                remaining: own.rsi.into(),
            });
        }
        SleepingCall::ClockNanosleep => {
            batch.push_tolerant(calls::ClockNanosleep {
                clock: own.rdi.into(),
                flags: own.rsi.into(),
                request: duration.into(),
                remaining: own.r10.into(),
            });
        }
        SleepingCall::Poll => {
            let milliseconds = sleep.remaining.div_ceil(1_000_000);
            batch.push_tolerant(calls::Poll {
                descriptors: own.rdi.into(),
                count: own.rsi.into(),
                timeout: milliseconds.min(i32::MAX as u64).into(),
            });
        }
        SleepingCall::Futex => {
            batch.push_tolerant(calls::FutexWait {
                address: own.rdi.into(),
                operation: own.rsi.into(),
                value: own.rdx.into(),
                timeout: duration.into(),
            });
        }
    }
}
