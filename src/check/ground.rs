//! What the questions stand on: a child that does nothing, held by ptrace, and a file.

use crate::error::{Context, Error, Result};
use crate::sys::{clone, ptrace};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs::File;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All is there.
    Ok(String),
    /// Some of it is.
    Limited(String),
    /// Nothing is.
    Missing(String),
}

impl Outcome {
    /// There with nothing to say about it, or not there, and why.
    pub fn of<T, E: Into<Error>>(result: Result<T, E>) -> Self {
        Self::told(result, |_| String::new())
    }

    /// As [`Outcome::of`]; `tell` says what was seen.
    pub fn told<T, E: Into<Error>>(result: Result<T, E>, tell: impl FnOnce(T) -> String) -> Self {
        match result {
            Ok(value) => Outcome::Ok(tell(value)),
            Err(error) => Outcome::Missing(error.into().to_string()),
        }
    }
}

/// A child of ours that is stopped.
#[derive(Debug)]
pub struct Child {
    /// Its number on this host.
    pub host_pid: i32,
}

impl Child {
    fn start() -> Result<Self> {
        let host_pid = clone::bare(0, &[]).doing(|| "forking a child")?;
        let child = Self { host_pid };
        ptrace::seize(host_pid, ptrace::options::EXITKILL).doing(|| "seizing a child")?;
        ptrace::interrupt(host_pid).doing(|| "interrupting a child")?;
        ptrace::wait(host_pid, true).doing(|| "waiting for a child to stop")?;
        Ok(child)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        end(self.host_pid);
    }
}

/// Ends a child of ours that only waits to be ended. Nothing can be done should that fail.
pub fn end(host_pid: i32) {
    let pid = Pid::from_raw(host_pid);
    if kill(pid, Signal::SIGKILL).is_ok() {
        while waitpid(pid, Some(WaitPidFlag::__WALL)).is_ok_and(|status| {
            !matches!(
                status,
                nix::sys::wait::WaitStatus::Signaled(..) | nix::sys::wait::WaitStatus::Exited(..)
            )
        }) {}
    }
}

/// See the module documentation. ptrace answers only to the thread that made it.
#[derive(Debug)]
pub struct Ground {
    /// Open in the child as well, under the same number.
    pub file: Option<File>,
    /// The child, or why there is none.
    pub child: Result<Child>,
}

impl Ground {
    /// Starts the child.
    pub fn new() -> Self {
        Self {
            file: File::open("/dev/null").ok(),
            child: Child::start(),
        }
    }

    /// Asks something of the child.
    pub fn ask<T, E: Into<Error>>(&self, question: impl FnOnce(i32) -> Result<T, E>) -> Result<T> {
        match &self.child {
            Ok(child) => question(child.host_pid).map_err(Into::into),
            Err(error) => Err(Error::coded(
                "E-HOST-PTRACE",
                crate::error::Exit::Host,
                error.to_string(),
                "",
            )),
        }
    }
}

/// The trimmed text of a file; nothing where it cannot be read.
pub fn text(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}
