//! Descriptors and open files.
//!
//! The way out: a [`Capturer`] walks the descriptor tables of stopped processes, finds out which
//! descriptors are one open file, and describes each open file once. It looks at duplicates
//! (pidfd_getfd) and at /proc, and changes nothing: no offset moves, no queue is emptied.
//!
//! The way back: a [`Rebuilder`] makes every open file once, in the conductor; the processes then
//! fetch them under their old numbers.
//!
//! One file per kind of open file, both directions.

mod capture;
mod device;
mod epoll;
mod eventfd;
mod flags;
mod ghost;
mod identity;
mod inotify;
mod kind;
mod lock;
mod memfd;
mod namespace;
mod pidfd;
mod pipe;
mod pty;
mod rebuild;
mod reference;
mod signalfd;
mod timerfd;
mod view;

pub use capture::{CaptureOptions, Captured, Capturer, SocketFile};
pub use ghost::Content;
pub use memfd::{create as create_memory_file, seal as seal_memory_file};
pub use rebuild::{Env, InTarget, Rebuilder, Rebuilt};
pub use reference::{Located, Opener};
pub use view::View;

use crate::error::Result;
use std::io::Read;
use std::os::fd::OwnedFd;

/// A stopped process of the container.
#[derive(Debug)]
pub struct Subject {
    /// Its number on this host.
    pub host_pid: i32,
    /// Its number in the container's pid namespace.
    pub pid: i32,
    /// A descriptor that stands for it.
    pub pidfd: OwnedFd,
    /// Its name, for messages.
    pub comm: String,
}

/// Where a rebuilder finds the bulk data that records name as members.
pub trait Contents {
    /// Opens a member for reading from its beginning.
    fn open(&self, member: &str) -> Result<Box<dyn Read + '_>>;
}

#[cfg(test)]
mod tests;
