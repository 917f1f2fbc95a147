//! Whatever fails, whenever: the container goes on as it was, and nothing of a restore stays.
//!
//! `OCIMIG_FAULT` (see `ocimig::fault`) lets the program die or fail at every point that has a name;
//! SIGKILL comes at moments that have none.

#[allow(
    dead_code,
    unused_imports,
    reason = "each test target uses a part of the harness"
)]
mod harness;

#[path = "nothing_lost/checkpoint.rs"]
mod checkpoint;
#[path = "nothing_lost/errors.rs"]
mod errors;
#[path = "nothing_lost/left.rs"]
mod left;
#[path = "nothing_lost/restore.rs"]
mod restore;

use harness::{Config, Container, Ground, Rootfs};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A container with something of everything in it; `mark` is in the environment of its processes.
fn container(ground: &Ground, mark: &str) -> Container {
    let mut config = Config::new(["/bin/subject", "mixed"]);
    config.lo = true;
    config.env.push(format!("MARK={mark}"));
    let mut container = Container::start(ground, Rootfs::Small, &config);
    container.stdout().wait_for_line("ready");
    container.assert_intact();
    container
}

/// How a command ended, and what it said.
struct Ended {
    status: ExitStatus,
    errors: String,
}

impl Ended {
    /// Panics unless it was SIGKILL that ended it.
    fn assert_killed(&self, where_: &str) {
        let signal = self.status.signal();
        let (status, errors) = (self.status, &self.errors);
        assert_eq!(signal, Some(9), "{where_}: {status}\n{errors}");
    }

    /// Panics unless it failed with this code, and said it.
    fn assert_failed(&self, what: &str, exit: i32, code: &str) {
        let (status, errors) = (self.status, &self.errors);
        assert_eq!(status.code(), Some(exit), "{what}: {status}\n{errors}");
        assert!(errors.contains(code), "{what}: no {code} in\n{errors}");
    }
}

/// Runs a command to its end, or kills it after `patience`.
fn run(command: &mut Command, patience: Duration) -> Ended {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let errors = child.stderr.take().unwrap();
    // A reader of its own: a process that is left over would hold the pipe open for ever.
    let said = thread::spawn(move || {
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut { errors }, &mut text);
        text
    });
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            break child.wait().unwrap();
        }
        thread::sleep(Duration::from_micros(200));
    };
    let until = Instant::now() + Duration::from_secs(5);
    while !said.is_finished() && Instant::now() < until {
        thread::sleep(Duration::from_millis(2));
    }
    let errors = if said.is_finished() {
        said.join().unwrap()
    } else {
        "(somebody holds its standard error open)".into()
    };
    Ended { status, errors }
}

/// Like [`run`], with a fault.
fn run_with_fault(command: &mut Command, mark: &str, fault: &str) -> Ended {
    command
        .env("MARK", mark)
        .env(ocimig::fault::VARIABLE, fault);
    run(command, harness::patience())
}

/// Numbers that look like chance and are the same in every run.
struct Chance(u64);

impl Chance {
    /// One below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit.max(1)
    }
}
