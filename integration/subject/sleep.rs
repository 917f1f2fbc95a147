//! Calls that wait: none may fail with EINTR, end early, or end late.

use super::sys::{call, errno};
use super::{Check, SetUp, ensure, eventually};
use nix::errno::Errno;
use std::error::Error;
use std::io::{Read, Write};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("sleep_relative", relative),
    ("sleep_absolute", absolute),
    ("sleep_poll", poll),
    ("sleep_select", select),
    ("sleep_futex", futex),
    ("sleep_short", short),
    ("sleep_endless", endless),
];

/// How long each call waits.
const WAIT: Duration = Duration::from_millis(1200);

/// How much later than asked for a call may return on a busy machine.
const LATE: Duration = Duration::from_millis(900);

/// A thread that makes one call over and over.
struct Sleeper {
    name: &'static str,
    rounds: Arc<AtomicU64>,
    trouble: Arc<Mutex<Option<String>>>,
    longest: Arc<AtomicU64>,
}

impl Sleeper {
    /// Starts it `phase` later; `sleep` waits for [`WAIT`] in whatever way.
    fn start(
        name: &'static str,
        phase: Duration,
        sleep: impl Fn() -> Result<(), String> + Send + 'static,
    ) -> Self {
        let sleeper = Self {
            name,
            rounds: Arc::default(),
            trouble: Arc::default(),
            longest: Arc::default(),
        };
        let (rounds, trouble) = (Arc::clone(&sleeper.rounds), Arc::clone(&sleeper.trouble));
        let longest = Arc::clone(&sleeper.longest);
        thread::spawn(move || {
            thread::sleep(phase);
            loop {
                let begin = Instant::now();
                let result = sleep();
                let took = begin.elapsed();
                let early = (took < WAIT).then(|| format!("ended after {took:?} already"));
                if let Some(text) = result.err().or(early) {
                    trouble.lock().unwrap().get_or_insert(text);
                }
                longest.fetch_max(took.as_millis() as u64, Ordering::SeqCst);
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        });
        sleeper
    }

    /// Waits until what it was doing is done, and judges it.
    fn check(&self, gap: Duration) -> Result<(), Box<dyn Error>> {
        let before = self.rounds.load(Ordering::SeqCst);
        let deadline = Instant::now() + 3 * WAIT + LATE + gap;
        while self.rounds.load(Ordering::SeqCst) == before {
            ensure!(Instant::now() < deadline, "{} does not return", self.name);
            thread::sleep(Duration::from_millis(5));
        }
        let trouble = self.trouble.lock().unwrap();
        ensure!(
            trouble.is_none(),
            "{} {}",
            self.name,
            trouble.as_deref().unwrap_or_default()
        );
        let longest = Duration::from_millis(self.longest.swap(0, Ordering::SeqCst));
        ensure!(
            longest < WAIT + LATE + gap,
            "{} took {longest:?}",
            self.name
        );
        Ok(())
    }
}

fn check_all(sleepers: Vec<Sleeper>) -> Check {
    Box::new(move |gap| sleepers.iter().try_for_each(|sleeper| sleeper.check(gap)))
}

/// Four threads that make the same call at different times.
fn four(
    name: &'static str,
    sleep: impl Fn() -> std::io::Result<()> + Send + Copy + 'static,
) -> Result<Check, Box<dyn Error>> {
    let phases = (0..4_u32).map(|number| WAIT / 4 * number);
    let sleepers = phases.map(|phase| {
        Sleeper::start(name, phase, move || {
            sleep().map_err(|error| error.to_string())
        })
    });
    Ok(check_all(sleepers.collect()))
}

fn relative() -> Result<Check, Box<dyn Error>> {
    four("nanosleep", || {
        let wait = timespec(WAIT);
        call!(libc::nanosleep(&wait, null_mut())).map(drop)
    })
}

fn absolute() -> Result<Check, Box<dyn Error>> {
    four("clock_nanosleep", || {
        let clock = libc::CLOCK_MONOTONIC;
        let mut now = timespec(Duration::ZERO);
        call!(libc::clock_gettime(clock, &mut now))?;
        let until = Duration::new(now.tv_sec as u64, now.tv_nsec as u32) + WAIT;
        let until = timespec(until);
        match call!(libc::clock_nanosleep(
            clock,
            libc::TIMER_ABSTIME,
            &until,
            null_mut()
        ))? {
            0 => Ok(()),
            errno => Err(std::io::Error::from_raw_os_error(errno)),
        }
    })
}

fn poll() -> Result<Check, Box<dyn Error>> {
    four("poll", || {
        let count = call!(libc::poll(null_mut(), 0, WAIT.as_millis() as i32))?;
        assert_eq!(count, 0, "an event out of nothing");
        Ok(())
    })
}

fn select() -> Result<Check, Box<dyn Error>> {
    four("select", || {
        let mut wait = libc::timeval {
            tv_sec: WAIT.as_secs() as i64,
            tv_usec: i64::from(WAIT.subsec_micros()),
        };
        call!(libc::select(
            0,
            null_mut(),
            null_mut(),
            null_mut(),
            &mut wait
        ))
        .map(drop)
    })
}

fn futex() -> Result<Check, Box<dyn Error>> {
    four("futex", || {
        let word = AtomicU32::new(0);
        let wait = timespec(WAIT);
        let how = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let result = call!(libc::syscall(libc::SYS_futex, word.as_ptr(), how, 0, &wait));
        match result {
            Err(error) if errno(&error) == Errno::ETIMEDOUT => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(std::io::Error::other("nobody woke it")),
        }
    })
}

/// Sleeps so short that most moments are in one or between two.
fn short() -> Result<Check, Box<dyn Error>> {
    static ROUNDS: AtomicU64 = AtomicU64::new(0);
    static WRONG: AtomicU64 = AtomicU64::new(0);
    for number in 0..3_u64 {
        thread::spawn(move || {
            let whole = Duration::from_millis(7 + number * 5);
            loop {
                let begin = Instant::now();
                let wait = timespec(whole);
                let failed = call!(libc::nanosleep(&wait, null_mut())).is_err();
                let early = begin.elapsed() < whole;
                WRONG.fetch_add(u64::from(failed || early), Ordering::SeqCst);
                ROUNDS.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    Ok(Box::new(|_| {
        let before = ROUNDS.load(Ordering::SeqCst);
        eventually("sleeps", || ROUNDS.load(Ordering::SeqCst) > before + 4)?;
        let wrong = WRONG.load(Ordering::SeqCst);
        ensure!(wrong == 0, "{wrong} sleeps failed or ended early");
        Ok(())
    }))
}

/// Calls that wait for ever, until something happens: none may see an error.
fn endless() -> Result<Check, Box<dyn Error>> {
    let (told, tell) = std::sync::mpsc::channel::<String>();
    let mut pokes: Vec<Box<dyn FnMut() -> std::io::Result<()>>> = Vec::new();
    let start = |name: &'static str, mut wait: Box<dyn FnMut() -> std::io::Result<()> + Send>| {
        let told = told.clone();
        thread::spawn(move || {
            loop {
                let text = match wait() {
                    Ok(()) => name.to_owned(),
                    Err(error) => format!("{name}: {error}"),
                };
                if told.send(text).is_err() {
                    return;
                }
            }
        });
    };
    let (mut reader, mut writer) = std::io::pipe()?;
    start("read", Box::new(move || reader.read_exact(&mut [0])));
    pokes.push(Box::new(move || writer.write_all(b"x")));
    let listener = std::os::unix::net::UnixListener::bind("/endless")?;
    start("accept", Box::new(move || listener.accept().map(drop)));
    pokes.push(Box::new(|| {
        std::os::unix::net::UnixStream::connect("/endless").map(drop)
    }));
    let (receiver, sender) = std::os::unix::net::UnixDatagram::pair()?;
    start(
        "recv",
        Box::new(move || receiver.recv(&mut [0; 8]).map(drop)),
    );
    pokes.push(Box::new(move || sender.send(b"x").map(drop)));
    let (watched, mut waker) = std::io::pipe()?;
    let watched: &'static _ = Box::leak(Box::new(watched));
    start(
        "poll",
        Box::new(move || {
            let mut entry = libc::pollfd {
                fd: std::os::fd::AsRawFd::as_raw_fd(watched),
                events: libc::POLLIN,
                revents: 0,
            };
            call!(libc::poll(&mut entry, 1, -1))?;
            (&mut &*watched).read_exact(&mut [0])
        }),
    );
    pokes.push(Box::new(move || waker.write_all(b"x")));
    Ok(Box::new(move |_| {
        for poke in &mut pokes {
            poke()?;
        }
        let mut names = Vec::new();
        for _ in 0..pokes.len() {
            names.push(tell.recv_timeout(Duration::from_secs(10))?);
        }
        names.sort();
        ensure!(names == ["accept", "poll", "read", "recv"], "{names:?}");
        ensure!(tell.try_recv().is_err(), "a call returned for nothing");
        Ok(())
    }))
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
