//! Handlers, masks, alternate stacks and what is pending.

use super::sys::{Area, PAGE, call, signal_value};
use super::worker::{Worker, check_all};
use super::{Check, SetUp, ensure, eventually};
use std::error::Error;
use std::mem::zeroed;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("signal_handlers", handlers),
    ("signal_masks", masks),
    ("signal_pending", pending),
    ("signal_pending_thread", pending_thread),
    ("signal_altstack", altstack),
    ("signal_in_handler", in_handler),
];

/// How often [`count`] ran.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Where on the stack [`note_stack`] last ran.
static STACK: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_signal: i32) {
    COUNT.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn note_stack(_signal: i32) {
    let local = 0_u8;
    STACK.store(&raw const local as usize, Ordering::SeqCst);
}

/// A set of signals.
pub fn set(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: a set of zeros is an empty set.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    for signal in signals {
        drop(call!(libc::sigaddset(&mut set, *signal)));
    }
    set
}

/// Whether it is in the set.
pub fn has(set: &libc::sigset_t, signal: i32) -> bool {
    call!(libc::sigismember(set, signal)).is_ok_and(|member| member == 1)
}

/// Blocks `signals` in this thread.
pub fn block(signals: &[i32]) -> std::io::Result<()> {
    call!(libc::sigprocmask(
        libc::SIG_BLOCK,
        &set(signals),
        null_mut()
    ))
    .map(drop)
}

/// Sets a handler.
pub fn handle(signal: i32, handler: usize, flags: i32, masked: &[i32]) -> std::io::Result<()> {
    // SAFETY: zeros are a valid action; the fields that matter follow.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    action.sa_mask = set(masked);
    call!(libc::sigaction(signal, &action, null_mut())).map(drop)
}

fn handlers() -> Result<Check, Box<dyn Error>> {
    let count = count as *const () as usize;
    let real_time = libc::SIGRTMIN() + 5;
    let expected = [
        (
            libc::SIGUSR1,
            count,
            libc::SA_RESTART | libc::SA_NODEFER,
            vec![libc::SIGUSR2],
        ),
        (libc::SIGUSR2, libc::SIG_IGN, 0, vec![]),
        (
            libc::SIGTERM,
            count,
            libc::SA_ONSTACK,
            vec![libc::SIGHUP, real_time],
        ),
        (libc::SIGHUP, libc::SIG_DFL, libc::SA_RESTART, vec![]),
        (
            libc::SIGCHLD,
            count,
            libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT,
            vec![],
        ),
        (real_time, count, libc::SA_NODEFER, vec![libc::SIGRTMAX()]),
    ];
    for (signal, handler, flags, masked) in &expected {
        handle(*signal, *handler, *flags, masked)?;
    }
    Ok(Box::new(move |_| {
        for (signal, handler, flags, masked) in &expected {
            // SAFETY: zeros are a valid action, to be overwritten.
            let mut action: libc::sigaction = unsafe { zeroed() };
            call!(libc::sigaction(*signal, null(), &mut action))?;
            ensure!(
                action.sa_sigaction == *handler,
                "another handler for {signal}"
            );
            let flags_now = action.sa_flags & !0x0400_0000;
            ensure!(flags_now == *flags, "flags {flags_now:#x} for {signal}");
            for other in 1..=64 {
                let is = has(&action.sa_mask, other);
                ensure!(
                    is == masked.contains(&other),
                    "mask of {signal}: {other} {is}"
                );
            }
        }
        for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGTERM, real_time] {
            let before = COUNT.load(Ordering::SeqCst);
            call!(libc::raise(signal))?;
            let ran = COUNT.load(Ordering::SeqCst) - before;
            ensure!(
                ran == u64::from(signal != libc::SIGUSR2),
                "{signal} ran {ran} times"
            );
        }
        Ok(())
    }))
}

fn masks() -> Result<Check, Box<dyn Error>> {
    let mut workers = Vec::new();
    for number in 0..6_i32 {
        workers.push(Worker::start(move || {
            let blocked = [libc::SIGUSR1 + number % 3, 34 + number, 64 - number];
            block(&blocked)?;
            Ok(move || {
                // SAFETY: zeros are a valid set, to be overwritten.
                let mut now: libc::sigset_t = unsafe { zeroed() };
                call!(libc::sigprocmask(libc::SIG_BLOCK, null(), &mut now))
                    .map_err(|e| e.to_string())?;
                for signal in 1..=64 {
                    if has(&now, signal) != blocked.contains(&signal) {
                        return Err(format!(
                            "signal {signal} in the mask: {}",
                            has(&now, signal)
                        ));
                    }
                }
                Ok(())
            })
        })?);
    }
    Ok(check_all(workers))
}

/// Takes a pending signal without waiting.
fn take(signals: &[i32]) -> std::io::Result<libc::siginfo_t> {
    // SAFETY: zeros are valid, to be overwritten.
    let (mut info, now): (libc::siginfo_t, libc::timespec) = unsafe { (zeroed(), zeroed()) };
    // glibc's own shows SI_TKILL as SI_USER.
    let call = libc::SYS_rt_sigtimedwait;
    call!(libc::syscall(call, &set(signals), &mut info, &now, 8))?;
    Ok(info)
}

fn queue(signal: i32, value: usize) -> std::io::Result<()> {
    let value = libc::sigval {
        sival_ptr: value as *mut libc::c_void,
    };
    call!(libc::sigqueue(libc::getpid(), signal, value)).map(drop)
}

/// Queues a whole `siginfo` for this thread.
fn queue_for_thread(signal: i32, value: usize) -> std::io::Result<()> {
    // SAFETY: zeros are valid; the fields of SI_QUEUE are set below.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    info.si_signo = signal;
    info.si_code = libc::SI_QUEUE;
    let words = (&raw mut info).cast::<usize>();
    // SAFETY: si_value of SI_QUEUE lies at byte 24 of the 128 of a siginfo.
    unsafe { words.add(3).write(value) };
    let (pid, tid) = (std::process::id(), nix::unistd::gettid().as_raw());
    call!(libc::syscall(
        libc::SYS_rt_tgsigqueueinfo,
        pid,
        tid,
        signal,
        &info
    ))
    .map(drop)
}

fn leave_exited_child() -> std::io::Result<i32> {
    let pid = super::sys::fork()?;
    if pid == 0 {
        std::process::exit(7);
    }
    call!(libc::waitpid(pid, null_mut(), 0))
}

fn pending() -> Result<Check, Box<dyn Error>> {
    let real_time = libc::SIGRTMIN() + 3;
    let blocked = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGCHLD, real_time];
    block(&blocked)?;
    let fill = move || -> Result<i32, Box<dyn Error>> {
        call!(libc::kill(libc::getpid(), libc::SIGUSR1))?;
        queue(libc::SIGUSR2, 0x1234_5678_9abc)?;
        for number in 1..=4 {
            queue(real_time, number * 11)?;
        }
        Ok(leave_exited_child()?)
    };
    let mut child = fill()?;
    Ok(Box::new(move |_| {
        let own = std::process::id() as i32;
        let info = take(&[libc::SIGUSR1])?;
        let sender = call!(info.si_pid())?;
        ensure!(
            info.si_code == libc::SI_USER && sender == own,
            "USR1 by {sender}, {}",
            info.si_code
        );
        let info = take(&[libc::SIGUSR2])?;
        ensure!(
            info.si_code == libc::SI_QUEUE,
            "USR2 with code {}",
            info.si_code
        );
        ensure!(
            signal_value(&info) == 0x1234_5678_9abc,
            "USR2 with {:#x}",
            signal_value(&info)
        );
        for number in 1..=4 {
            let info = take(&[real_time])?;
            ensure!(
                signal_value(&info) == number * 11,
                "{number}: {}",
                signal_value(&info)
            );
        }
        let info = take(&[libc::SIGCHLD])?;
        let (pid, status) = (call!(info.si_pid())?, call!(info.si_status())?);
        ensure!(
            info.si_code == libc::CLD_EXITED,
            "CHLD with code {}",
            info.si_code
        );
        ensure!(pid == child && status == 7, "CHLD of {pid} with {status}");
        ensure!(take(&blocked).is_err(), "more is pending than was sent");
        child = fill()?;
        Ok(())
    }))
}

fn pending_thread() -> Result<Check, Box<dyn Error>> {
    let mut workers = Vec::new();
    for number in 0..4_usize {
        workers.push(Worker::start(move || {
            let real_time = libc::SIGRTMIN() + 2 + number as i32;
            let signals = [libc::SIGUSR1, real_time];
            block(&signals)?;
            let fill = move || -> std::io::Result<()> {
                call!(libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1))?;
                (0..3).try_for_each(|step| queue_for_thread(real_time, number * 100 + step))
            };
            fill()?;
            let check = move || -> Result<(), Box<dyn Error>> {
                let info = take(&[libc::SIGUSR1])?;
                ensure!(
                    info.si_code == libc::SI_TKILL,
                    "USR1 with code {}",
                    info.si_code
                );
                for step in 0..3 {
                    let info = take(&[real_time])?;
                    ensure!(
                        signal_value(&info) == number * 100 + step,
                        "{}",
                        signal_value(&info)
                    );
                }
                ensure!(take(&signals).is_err(), "more than was sent");
                Ok(fill()?)
            };
            Ok(move || check().map_err(|error| error.to_string()))
        })?);
    }
    Ok(check_all(workers))
}

fn set_altstack(area: Area) -> std::io::Result<()> {
    let stack = libc::stack_t {
        ss_sp: area.pointer(),
        ss_flags: 0,
        ss_size: area.len,
    };
    call!(libc::sigaltstack(&stack, null_mut())).map(drop)
}

fn altstack() -> Result<Check, Box<dyn Error>> {
    handle(
        libc::SIGUSR1,
        note_stack as *const () as usize,
        libc::SA_ONSTACK,
        &[],
    )?;
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(Worker::start(|| {
            let area = Area::private(16 * PAGE)?;
            set_altstack(area)?;
            Ok(move || {
                // SAFETY: zeros are valid, to be overwritten.
                let mut now: libc::stack_t = unsafe { zeroed() };
                call!(libc::sigaltstack(null(), &mut now)).map_err(|e| e.to_string())?;
                if now.ss_sp != area.pointer() || now.ss_size != area.len || now.ss_flags != 0 {
                    return Err(format!("altstack {:?}, {} bytes", now.ss_sp, now.ss_size));
                }
                call!(libc::raise(libc::SIGUSR1)).map_err(|e| e.to_string())?;
                let ran_at = STACK.load(Ordering::SeqCst);
                if !(area.start..area.start + area.len).contains(&ran_at) {
                    return Err(format!("the handler ran at {ran_at:#x}"));
                }
                Ok(())
            })
        })?);
    }
    Ok(check_all(workers))
}

extern "C" fn dawdle(_signal: i32) {
    let moment = libc::timespec {
        tv_sec: 0,
        tv_nsec: 4_000_000,
    };
    for _ in 0..20 {
        drop(call!(libc::nanosleep(&moment, null_mut())));
    }
    COUNT.fetch_add(1, Ordering::SeqCst);
}

/// Threads that nearly always are inside a handler, on an alternate stack.
fn in_handler() -> Result<Check, Box<dyn Error>> {
    handle(
        libc::SIGUSR1,
        dawdle as *const () as usize,
        libc::SA_ONSTACK,
        &[],
    )?;
    let trouble: &'static AtomicU64 = Box::leak(Box::default());
    for _ in 0..3 {
        let stack = Area::private(16 * PAGE)?;
        std::thread::spawn(move || {
            let mut failed = set_altstack(stack).is_err();
            let mut sum = 0.5_f64;
            for round in 1_u64.. {
                let before = sum;
                failed |= call!(libc::raise(libc::SIGUSR1)).is_err();
                sum = std::hint::black_box(sum) + 1.0;
                failed |= sum.to_bits() != (before + 1.0).to_bits()
                    || sum.to_bits() != (round as f64 + 0.5).to_bits();
                trouble.fetch_add(u64::from(failed), Ordering::SeqCst);
            }
        });
    }
    Ok(Box::new(move |_| {
        let before = COUNT.load(Ordering::SeqCst);
        eventually("six handlers to end", || {
            COUNT.load(Ordering::SeqCst) >= before + 6
        })?;
        ensure!(
            trouble.load(Ordering::SeqCst) == 0,
            "a value changed across a handler"
        );
        Ok(())
    }))
}
