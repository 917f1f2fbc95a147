//! Calls that wait: none may fail with EINTR, end early, or end late.

use super::{Check, SetUp, ensure, sys::call};
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[("sleep_relative", relative)];

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

fn relative() -> Result<Check, Box<dyn Error>> {
    let phases = (0..4_u32).map(|number| WAIT / 4 * number);
    let sleepers = phases.map(|phase| {
        Sleeper::start("nanosleep", phase, || {
            let wait = timespec(WAIT);
            call!(libc::nanosleep(&wait, std::ptr::null_mut()))
                .map(drop)
                .map_err(|error| error.to_string())
        })
    });
    Ok(check_all(sleepers.collect()))
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
