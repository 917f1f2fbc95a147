//! The real runc, crun, podman and containerd, which believe that they call CRIU.
//!
//! `cargo test --test runtimes podman` runs the tests of one of them.

#[allow(
    dead_code,
    unused_imports,
    reason = "each test target uses a part of the harness"
)]
mod harness;

#[path = "runtimes/command.rs"]
mod command;
#[path = "runtimes/containerd.rs"]
mod containerd;
#[path = "runtimes/hooks.rs"]
mod hooks;
#[path = "runtimes/podman.rs"]
mod podman;
#[path = "runtimes/register.rs"]
mod register;
#[path = "runtimes/runc.rs"]
mod runc;

use harness::{Ground, Output, patience};
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Counts from 0 into `/out` and to standard output.
const COUNT: &str =
    "i=0; while true; do echo $i >> /out; echo Hello $i; i=$((i+1)); sleep 0.05; done";

/// A `PATH` in which `criu` is ours.
fn path_with_criu(ground: &Ground) -> OsString {
    let bin = ground.path().join("bin");
    if !bin.exists() {
        std::fs::create_dir(&bin).unwrap();
        for name in ["criu", "ocimig-runtime", "ocimig-runc", "ocimig-crun"] {
            symlink(env!("CARGO_BIN_EXE_ocimig"), bin.join(name)).unwrap();
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(bin).chain(std::env::split_paths(&path));
    std::env::join_paths(all).unwrap()
}

/// `program` with such a `PATH`.
fn with_criu(ground: &Ground, program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path_with_criu(ground));
    command
}

/// Waits until `found` finds something.
fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not in time");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The last number that was counted, after a check that none is missing or doubled.
fn counted(out: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(out).ok()?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut last = None;
    for (expected, line) in (0u64..).zip(whole.lines()) {
        assert_eq!(line.parse(), Ok(expected), "{}", out.display());
        last = Some(expected);
    }
    last
}

/// Waits until it has counted three further.
fn counts_on(out: &Path) {
    let from = counted(out).unwrap_or(0);
    eventually("counting on", || counted(out).filter(|now| *now > from + 2));
}

/// The lines of a log that runtimes take for errors.
fn errors_in(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .filter(|line| line.contains("Error"))
        .map(str::to_owned)
        .collect()
}

/// Checks what callers look for in an images directory.
fn assert_images(directory: &Path) {
    for name in ["inventory.img", "ocimig.tar"] {
        assert!(directory.join(name).exists(), "{name} is missing");
    }
}

/// An output and the writer that a program is given.
fn output() -> (Output, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Output::collect(reader), writer)
}

/// A directory for images.
fn images(ground: &Ground) -> PathBuf {
    let directory = ground.fresh("images");
    std::fs::create_dir(&directory).unwrap();
    directory
}
