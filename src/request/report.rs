//! What the engine answers.

use std::os::fd::OwnedFd;
use std::time::Duration;

/// What a checkpoint did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Processes in the image.
    pub processes: usize,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// From the first attempt to freeze until everything was frozen.
    pub freezing: Duration,
    /// From the first attempt to freeze until everything ran again or was killed.
    pub frozen: Duration,
    /// Finding out which pages there are and reading them.
    pub memory_dump: Duration,
    /// Waiting for pages to be written.
    pub memory_write: Duration,
    /// Pages that were looked at, by the page size of the host.
    pub pages_scanned: u64,
    /// Pages that the parent has as they are.
    pub pages_skipped_parent: u64,
    /// Pages that were written.
    pub pages_written: u64,
    /// The same of memory that is shared between processes or with files.
    pub shared_pages_scanned: u64,
    /// See above.
    pub shared_pages_skipped_parent: u64,
    /// See above.
    pub shared_pages_written: u64,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Processes that were made.
    pub processes: usize,
    /// From the first birth to the last.
    pub forking: Duration,
    /// All of it.
    pub restoring: Duration,
    /// Pages that were compared with what a parent process has.
    pub pages_compared: u64,
    /// Pages that were left as they came from a parent process.
    pub pages_skipped_cow: u64,
    /// Pages that were filled.
    pub pages_restored: u64,
}

/// A container that goes on.
#[derive(Debug)]
pub struct Restored {
    /// The init, as this process's PID namespace numbers it.
    pub host_pid: i32,
    /// Stands for the init: the caller waits on it. It is a child of this process, or of its parent
    /// where a sibling was asked for. `None` for a dry run.
    pub init: Option<OwnedFd>,
    /// The id it goes by.
    pub id: String,
    /// What was done.
    pub report: RestoreReport,
}
