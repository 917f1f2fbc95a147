//! Interval timers and POSIX timers.

use super::signals::{block, handle, has, set};
use super::sys::{call, signal_value};
use super::{Check, SetUp, ensure, eventually};
use std::error::Error;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[("timer_interval", interval), ("timer_posix", posix)];

static ALARMS: AtomicU64 = AtomicU64::new(0);

extern "C" fn alarm(_signal: i32) {
    ALARMS.fetch_add(1, Ordering::SeqCst);
}

/// Whether what is left of `whole` since `begin` is neither more nor less than it can be.
fn ensure_left(what: &str, left: Duration, whole: Duration, begin: Instant) -> super::Verdict {
    let least = whole.saturating_sub(begin.elapsed() + Duration::from_secs(2));
    ensure!((least..=whole).contains(&left), "{what}: {left:?} is left");
    Ok(())
}

fn interval() -> Result<Check, Box<dyn Error>> {
    handle(
        libc::SIGALRM,
        alarm as *const () as usize,
        libc::SA_RESTART,
        &[],
    )?;
    let begin = Instant::now();
    let second = |tv_sec, tv_usec| libc::timeval { tv_sec, tv_usec };
    let timers = [
        (libc::ITIMER_REAL, second(0, 300_000), second(0, 300_000)),
        (libc::ITIMER_VIRTUAL, second(0, 0), second(1000, 0)),
        (libc::ITIMER_PROF, second(77, 5000), second(2000, 0)),
    ];
    for (which, it_interval, it_value) in timers {
        let value = libc::itimerval {
            it_interval,
            it_value,
        };
        call!(libc::setitimer(which, &value, null_mut()))?;
    }
    Ok(Box::new(move |_| {
        for (which, interval, whole) in timers {
            // SAFETY: zeros are valid, to be overwritten.
            let mut now: libc::itimerval = unsafe { zeroed() };
            call!(libc::getitimer(which, &mut now))?;
            let same = now.it_interval.tv_sec == interval.tv_sec
                && now.it_interval.tv_usec / 1000 == interval.tv_usec / 1000;
            ensure!(same, "interval {:?} of {which}", now.it_interval.tv_usec);
            let duration = |value: libc::timeval| {
                Duration::from_micros(value.tv_sec as u64 * 1_000_000 + value.tv_usec as u64)
            };
            let (left, whole) = (
                duration(now.it_value),
                duration(whole) + Duration::from_millis(10),
            );
            ensure_left(&format!("timer {which}"), left, whole, begin)?;
        }
        let before = ALARMS.load(Ordering::SeqCst);
        eventually("two alarms", || ALARMS.load(Ordering::SeqCst) >= before + 2)
    }))
}

/// timer_create(2), with the kernel's own id.
fn create(clock: i32, notify: i32, signal: i32, value: usize) -> std::io::Result<i32> {
    // SAFETY: zeros are valid; the fields that matter follow.
    let mut event: libc::sigevent = unsafe { zeroed() };
    event.sigev_notify = notify;
    event.sigev_signo = signal;
    event.sigev_value.sival_ptr = value as *mut libc::c_void;
    event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
    let mut id = 0_i32;
    call!(libc::syscall(
        libc::SYS_timer_create,
        clock,
        &event,
        &mut id
    ))?;
    Ok(id)
}

fn set_time(id: i32, interval: Duration, value: Duration) -> std::io::Result<()> {
    let spec = |duration: Duration| libc::timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    };
    let value = libc::itimerspec {
        it_interval: spec(interval),
        it_value: spec(value),
    };
    let none = null_mut::<libc::itimerspec>();
    call!(libc::syscall(libc::SYS_timer_settime, id, 0, &value, none)).map(drop)
}

fn time(id: i32) -> std::io::Result<(Duration, Duration)> {
    // SAFETY: zeros are valid, to be overwritten.
    let mut now: libc::itimerspec = unsafe { zeroed() };
    call!(libc::syscall(libc::SYS_timer_gettime, id, &mut now))?;
    let duration = |spec: libc::timespec| Duration::new(spec.tv_sec as u64, spec.tv_nsec as u32);
    Ok((duration(now.it_interval), duration(now.it_value)))
}

/// Ids with gaps, all ways to be notified, a disarmed one, and one whose signal waits unread.
fn posix() -> Result<Check, Box<dyn Error>> {
    let (waiting, thread) = (libc::SIGRTMIN() + 8, libc::SIGRTMIN() + 9);
    block(&[waiting, thread])?;
    let (second, long) = (Duration::from_secs(1), Duration::from_secs(1000));
    // So often that a signal of theirs waits whenever somebody looks.
    let (fast, faster) = (Duration::from_millis(30), Duration::from_millis(20));
    let begin = Instant::now();
    let all = [
        create(libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, waiting, 0x1111)?,
        create(libc::CLOCK_MONOTONIC, libc::SIGEV_NONE, 0, 0)?,
        create(libc::CLOCK_REALTIME, libc::SIGEV_NONE, 0, 0)?,
        create(libc::CLOCK_MONOTONIC, libc::SIGEV_NONE, 0, 0)?,
        create(libc::CLOCK_REALTIME, libc::SIGEV_THREAD_ID, thread, 0x2222)?,
        create(libc::CLOCK_PROCESS_CPUTIME_ID, libc::SIGEV_NONE, 0, 0)?,
        create(libc::CLOCK_BOOTTIME, libc::SIGEV_NONE, 0, 0)?,
    ];
    let [often, deleted, once, also_deleted, threads, cpu, disarmed] = all;
    call!(libc::syscall(libc::SYS_timer_delete, deleted))?;
    call!(libc::syscall(libc::SYS_timer_delete, also_deleted))?;
    let expected = [
        (often, faster, faster),
        (once, Duration::ZERO, long),
        (threads, fast, fast),
        (cpu, second, long),
        (disarmed, Duration::ZERO, Duration::ZERO),
    ];
    for (id, interval, value) in expected {
        set_time(id, interval, value)?;
    }
    Ok(Box::new(move |_| {
        for (id, interval, whole) in expected {
            let (interval_now, left) = time(id)?;
            ensure!(
                interval_now == interval,
                "timer {id}: every {interval_now:?}"
            );
            ensure_left(&format!("timer {id}"), left, whole, begin)?;
        }
        for (signal, value) in [(waiting, 0x1111), (thread, 0x2222)] {
            for _ in 0..2 {
                // SAFETY: zeros are valid, to be overwritten.
                let mut info: libc::siginfo_t = unsafe { zeroed() };
                let limit = libc::timespec {
                    tv_sec: 10,
                    tv_nsec: 0,
                };
                call!(libc::sigtimedwait(&set(&[signal]), &mut info, &limit))?;
                ensure!(
                    info.si_code == libc::SI_TIMER,
                    "{signal} with code {}",
                    info.si_code
                );
                let got = signal_value(&info);
                ensure!(got == value, "{signal} with {got:#x}");
            }
        }
        // What is visible from outside must not be a matter of how fast the test is.
        eventually("the next signals of the timers", || {
            // SAFETY: zeros are a valid set, to be overwritten.
            let mut pending: libc::sigset_t = unsafe { zeroed() };
            call!(libc::sigpending(&mut pending)).is_ok()
                && [waiting, thread].iter().all(|one| has(&pending, *one))
        })
    }))
}
