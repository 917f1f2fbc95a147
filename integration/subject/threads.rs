//! Threads and what each has of its own.

use super::sys::{call, thread_words};
use super::worker::{Worker, check_all};
use super::{Check, SetUp, ensure};
use std::cell::Cell;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("thread_locals", locals),
    ("thread_rseq", restartable_sequences),
    ("thread_robust_list", robust_list),
    ("thread_join", join),
    ("thread_thousand", thousand),
];

thread_local! {
    static LOCAL: Cell<u64> = const { Cell::new(0) };
}

/// Names, ids and thread-local data.
fn locals() -> Result<Check, Box<dyn Error>> {
    let mut workers = Vec::new();
    for number in 0..12_u64 {
        workers.push(Worker::start(move || {
            let name = std::ffi::CString::new(format!("worker {number}"))?;
            call!(libc::prctl(libc::PR_SET_NAME, name.as_ptr()))?;
            let (tid, mut expected) = (nix::unistd::gettid(), number << 40 | 1);
            LOCAL.set(expected);
            Ok(move || {
                let mut now = [0_u8; 16];
                call!(libc::prctl(libc::PR_GET_NAME, now.as_mut_ptr()))
                    .map_err(|e| e.to_string())?;
                if !now.starts_with(name.as_bytes_with_nul()) {
                    return Err(format!("another name: {now:?}"));
                }
                if nix::unistd::gettid() != tid {
                    return Err(format!("thread id {}", nix::unistd::gettid()));
                }
                if LOCAL.get() != expected {
                    return Err(format!("thread-local data {}", LOCAL.get()));
                }
                expected += 1;
                LOCAL.set(expected);
                Ok(())
            })
        })?);
    }
    Ok(check_all(workers))
}

/// The kernel keeps the number of the processor up to date in the registered area.
fn restartable_sequences() -> Result<Check, Box<dyn Error>> {
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(Worker::start(|| {
            let check = || -> Result<(), Box<dyn Error>> {
                let free = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
                for cpu in
                    (0..nix::sched::CpuSet::count()).filter(|cpu| free.is_set(*cpu) == Ok(true))
                {
                    let mut one = nix::sched::CpuSet::new();
                    one.set(cpu)?;
                    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one)?;
                    let shown = thread_words::rseq_cpu();
                    ensure!(
                        shown == cpu as u32,
                        "on processor {cpu}, but the area says {shown}"
                    );
                }
                nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &free)?;
                Ok(())
            };
            check()?;
            Ok(move || check().map_err(|error| error.to_string()))
        })?);
    }
    Ok(check_all(workers))
}

/// The list head that the kernel walks when a thread dies.
fn robust_list() -> Result<Check, Box<dyn Error>> {
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(Worker::start(|| {
            let head = || -> std::io::Result<(usize, usize)> {
                let (mut head, mut len) = (0_usize, 0_usize);
                call!(libc::syscall(
                    libc::SYS_get_robust_list,
                    0,
                    &mut head,
                    &mut len
                ))?;
                Ok((head, len))
            };
            let before = head()?;
            ensure!(before.0 != 0, "no list is registered");
            Ok(move || match head() {
                Ok(now) if now == before => Ok(()),
                other => Err(format!("the list was {before:x?}, is {other:x?}")),
            })
        })?);
    }
    Ok(check_all(workers))
}

/// The end of a thread wakes who waits for it.
fn join() -> Result<Check, Box<dyn Error>> {
    let start = || {
        let (go, wait) = channel::<u64>();
        let thread = thread::spawn(move || wait.recv().unwrap_or(0) * 3);
        (go, thread)
    };
    let mut waiting: Vec<_> = (0..4).map(|_| start()).collect();
    let mut round = 0_u64;
    Ok(Box::new(move |_| {
        round += 1;
        for (go, thread) in waiting.drain(..) {
            go.send(round)?;
            let result = thread.join().map_err(|_| "a thread panicked")?;
            ensure!(result == round * 3, "a thread returned {result}");
        }
        waiting = (0..4).map(|_| start()).collect();
        Ok(())
    }))
}

/// A thousand threads, all waiting in the same futex.
fn thousand() -> Result<Check, Box<dyn Error>> {
    static SUM: AtomicU64 = AtomicU64::new(0);
    let mut asks = Vec::new();
    for number in 0..1000_u64 {
        let (ask, asked) = channel::<()>();
        let builder = thread::Builder::new().stack_size(64 * 1024);
        builder.spawn(move || {
            let local = std::hint::black_box(number * number);
            for () in asked {
                SUM.fetch_add(local, Ordering::SeqCst);
            }
        })?;
        asks.push(ask);
    }
    Ok(Box::new(move |_| {
        SUM.store(0, Ordering::SeqCst);
        for ask in &asks {
            ask.send(())?;
        }
        let expected = (0..1000_u64).map(|number| number * number).sum();
        super::eventually("all threads", || SUM.load(Ordering::SeqCst) == expected)
    }))
}
