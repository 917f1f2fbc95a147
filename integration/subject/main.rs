//! A program that sets up one kind of state, says `ready`, and then, whenever it is asked,
//! checks that this state is still as it was: `intact` or `damaged: …`.
//!
//! `subject KIND` asks nothing of what it checks: it is asked for the n-th time by the file
//! `/trigger-n`, which holds for how many milliseconds it did not run, and answers with the
//! line `n: intact`. `subject list` prints the kinds.

mod basic;
mod events;
mod fds;
mod mappings;
mod memory;
mod processor;
mod rights;
mod signals;
mod sleep;
mod sockets;
mod spaces;
mod sys;
mod threads;
mod timers;
mod tree;
mod worker;

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Whether the state is as it was; the text says what is not.
type Verdict = Result<(), Box<dyn Error>>;

/// Checks the state; is given how long the program did not run.
type Check = Box<dyn FnMut(Duration) -> Verdict>;

/// Sets the state up.
type SetUp = fn() -> Result<Check, Box<dyn Error>>;

/// All kinds, in the order of the tests.
fn kinds() -> Vec<(&'static str, SetUp)> {
    [
        basic::KINDS,
        sleep::KINDS,
        memory::KINDS,
        mappings::KINDS,
        signals::KINDS,
        timers::KINDS,
        tree::KINDS,
        threads::KINDS,
        rights::KINDS,
        fds::KINDS,
        events::KINDS,
        sockets::KINDS,
        processor::KINDS,
        spaces::KINDS,
    ]
    .concat()
}

/// Fails with a text, formatted as `format!` does, unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+).into());
        }
    };
}
use ensure;

fn main() -> ExitCode {
    let kind = std::env::args().nth(1).unwrap_or_default();
    if kind == "list" {
        for (name, _) in kinds() {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    }
    let Some((_, set_up)) = kinds().into_iter().find(|(name, _)| *name == kind) else {
        eprintln!("usage: subject KIND; subject list");
        return ExitCode::from(2);
    };
    match set_up() {
        Ok(check) => {
            say("ready");
            serve(check, |number, verdict| {
                say(&format!("{number}: {verdict}"))
            })
        }
        Err(error) => {
            say(&format!("cannot set {kind} up: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Checks whenever asked, for ever.
fn serve(mut check: Check, mut answer: impl FnMut(u32, &str)) -> ! {
    for number in 1.. {
        let trigger = format!("/trigger-{number}");
        while !Path::new(&trigger).exists() {
            thread::sleep(Duration::from_millis(5));
        }
        let gap = fs::read_to_string(&trigger)
            .ok()
            .and_then(|text| text.parse().ok());
        match check(Duration::from_millis(gap.unwrap_or(0))) {
            Ok(()) => answer(number, "intact"),
            Err(error) => answer(number, &format!("damaged: {error}")),
        }
    }
    unreachable!("the numbers do not end");
}

/// Prints a whole line at once.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that is gone is no damage of ours.
    let _ = out.write_all(format!("{line}\n").as_bytes());
    let _ = out.flush();
}

/// Waits a few seconds for something that should be so at once.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> Verdict {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        ensure!(Instant::now() < deadline, "{what}: not in time");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A forked child that checks itself when its parent is asked to.
struct Child {
    pid: i32,
    asked: u32,
}

impl Child {
    /// Forks; the child sets itself up, and both go on once it has.
    fn fork(
        set_up: impl FnOnce() -> Result<Check, Box<dyn Error>>,
    ) -> Result<Self, Box<dyn Error>> {
        let pid = sys::fork()?;
        if pid == 0 {
            let own = std::process::id();
            match set_up() {
                Ok(check) => {
                    let _ = fs::write(format!("/answer-{own}-0"), "intact");
                    serve(check, |number, verdict| {
                        let draft = format!("/draft-{own}-{number}");
                        let _ = fs::write(&draft, verdict);
                        let _ = fs::rename(draft, format!("/answer-{own}-{number}"));
                    })
                }
                Err(error) => {
                    let _ = fs::write(format!("/answer-{own}-0"), error.to_string());
                    std::process::exit(1);
                }
            }
        }
        let child = Self { pid, asked: 0 };
        child.answer()?;
        Ok(child)
    }

    /// The child's verdict on itself, to be asked for once in every check.
    fn check(&mut self) -> Verdict {
        self.asked += 1;
        self.answer()
    }

    fn answer(&self) -> Verdict {
        let path = format!("/answer-{}-{}", self.pid, self.asked);
        let mut verdict = String::new();
        eventually(&format!("the answer of child {}", self.pid), || {
            verdict = fs::read_to_string(&path).unwrap_or_default();
            !verdict.is_empty()
        })?;
        ensure!(verdict == "intact", "child {}: {verdict}", self.pid);
        Ok(())
    }
}
