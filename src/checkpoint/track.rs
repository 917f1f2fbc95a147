//! Written pages, told apart by write protection between a pre-dump and what follows it.
//!
//! Each process makes a userfaultfd, which is fetched and then closed in it. Its private memory is
//! registered with WP_ASYNC: the kernel lifts the protection of a page when it is written, by itself,
//! and PAGEMAP_SCAN tells which are still protected. That lasts as long as somebody holds the
//! userfaultfd: a small process of ours does, which ends with the container, when the next checkpoint
//! comes, or after an hour.
//!
//! Whatever is not known to be unchanged is read: an area that came later, was moved, or is a child's is
//! not registered; a tracker that has died leaves nothing registered. And a page that another
//! image has under that address is what this image needs only if it has not been written since
//! before it was read, which is the order here.

use super::stop::{Container, Held};
use crate::error::{Context, Error, Result};
use crate::image::archive::Reader;
use crate::image::memory::{PAGE, PLACES, PageRun, Places};
use crate::proc::read::Process;
use crate::resource::memory::Known;
use crate::sys::pagemap::{self, Masks, category};
use crate::sys::{pidfd, userfaultfd};
use crate::tracee::batch::Batch;
use crate::tracee::calls;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::setsid;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What this program is called when it is a tracker.
pub const NAME: &str = "ocimig-tracker";
/// Where trackers leave word of themselves.
const RUN: &str = "/run/ocimig/trackers";
/// How long a tracker stays.
const LIFETIME: Duration = Duration::from_secs(3600);

/// A process by its number on this host and its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Who {
    host_pid: i32,
    start_time: u64,
}

impl Who {
    /// The process of that number now.
    pub fn is(host_pid: i32) -> Result<Self> {
        Ok(Self {
            host_pid,
            start_time: Process::new(host_pid).stat()?.starttime,
        })
    }

    /// Where its pages are.
    pub fn with(self, runs: Vec<PageRun>) -> Places {
        Places {
            host_pid: self.host_pid,
            start_time: self.start_time,
            runs,
        }
    }

    fn lives(self) -> bool {
        Self::is(self.host_pid).is_ok_and(|now| now == self)
    }
}

/// What a tracker leaves for the next checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Word {
    tracker: Who,
    processes: BTreeSet<Who>,
    /// Of the image that was written meanwhile.
    identity: String,
}

fn word_of(top: Who) -> PathBuf {
    PathBuf::from(RUN).join(format!("{}-{}.json", top.host_pid, top.start_time))
}

/// Processes whose private memory is write-protected.
pub struct Armed {
    held: Vec<OwnedFd>,
    pidfds: Vec<OwnedFd>,
    processes: BTreeSet<Who>,
}

/// Protects the memory of held processes. One that cannot be tracked is left out.
pub fn arm(container: &mut Container) -> Result<Armed> {
    let mut armed = Armed {
        held: Vec::new(),
        pidfds: Vec::new(),
        processes: BTreeSet::new(),
    };
    let Container {
        processes,
        subjects,
        ..
    } = container;
    let mut made = Vec::new();
    for (held, subject) in processes.iter_mut().zip(subjects.iter()) {
        match make(held, subject.pidfd.as_fd()) {
            Ok(fd) => made.push((held.host_pid, fd, subject.pidfd.try_clone()?)),
            Err(error) => tracing::info!("pid {} is not tracked: {error}", held.pid),
        }
    }
    container.leave()?;
    for (host_pid, fd, pidfd) in made {
        let who = Who::is(host_pid)?;
        match protect(host_pid, fd.as_fd()) {
            Ok(()) => {
                armed.held.push(fd);
                armed.pidfds.push(pidfd);
                armed.processes.insert(who);
            }
            Err(error) => tracing::info!("process {host_pid} is not tracked: {error}"),
        }
    }
    Ok(armed)
}

/// A userfaultfd of that process, which has it no more.
fn make(held: &mut Held, process: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut batch = Batch::new();
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | userfaultfd::USER_MODE_ONLY;
    let made = batch.push_tolerant(calls::Userfaultfd {
        flags: flags.into(),
    });
    let there = held.run(0, &batch)?.result(made)?;
    let fetched = pidfd::getfd(process, there.0);
    let mut batch = Batch::new();
    batch.push(calls::Close { fd: there.into() });
    held.run(0, &batch)?;
    fetched
}

fn protect(host_pid: i32, fd: BorrowedFd<'_>) -> Result<()> {
    let process = Process::new(host_pid);
    let areas = process.maps()?;
    // The kernel may be about to write into pages that it holds for asynchronous input and output.
    if areas.iter().any(|area| {
        area.path.starts_with(b"/[aio]") || area.path.starts_with(b"anon_inode:[io_uring]")
    }) {
        return Err(Error::from(nix::errno::Errno::EBUSY)).doing(|| "it has asynchronous I/O");
    }
    userfaultfd::enable(fd, userfaultfd::WP_ASYNC | userfaultfd::WP_UNPOPULATED)
        .doing(|| "enabling asynchronous write protection")?;
    for area in areas.iter().filter(|area| !area.perms.shared) {
        // The kernel's own areas, and those that the process itself has registered, are not taken.
        if let Err(errno) = userfaultfd::register(fd, area.start, area.size()) {
            tracing::trace!("area {:x} is not tracked: {errno}", area.start);
        }
    }
    let pagemap = open_pagemap(host_pid)?;
    let masks = Masks {
        all: category::WP_ALLOWED,
        any: category::PRESENT | category::SWAPPED,
        report: category::WP_ALLOWED,
        ..Masks::default()
    };
    let end = crate::tracee::arch::TASK_SIZE;
    pagemap::scan_each(pagemap.as_fd(), 0, end, masks, pagemap::WP_MATCHING, |_| {})
        .doing(|| "protecting pages")
}

fn open_pagemap(host_pid: i32) -> Result<File> {
    let path = format!("/proc/{host_pid}/pagemap");
    File::open(&path).doing(|| format!("opening {path}"))
}

impl Armed {
    /// Starts the process that keeps all of it.
    pub fn hand_over(self, top: Who) -> Result<Tracker> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0(NAME).arg(word_of(top));
        for fd in &self.pidfds {
            command.arg(fd.as_raw_fd().to_string());
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/");
        let all = || self.held.iter().chain(&self.pidfds);
        for fd in all() {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        let child = command.spawn();
        for fd in all() {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        Ok(Tracker {
            child: Some(child.doing(|| "starting a tracker")?),
            top,
            processes: self.processes,
        })
    }
}

/// The process that keeps memory protected. Dropped before [`Tracker::stay`], it ends.
pub struct Tracker {
    child: Option<Child>,
    top: Who,
    processes: BTreeSet<Who>,
}

impl Tracker {
    /// The image is complete: the next checkpoint may lean on it.
    pub fn stay(mut self, identity: String) -> Result<()> {
        let Some(child) = &self.child else {
            return Ok(());
        };
        let word = Word {
            tracker: Who::is(child.id().cast_signed())?,
            processes: std::mem::take(&mut self.processes),
            identity,
        };
        DirBuilder::new().recursive(true).mode(0o700).create(RUN)?;
        let path = word_of(self.top);
        let text = serde_json::to_vec(&word).map_err(std::io::Error::from)?;
        std::fs::write(&path, text).doing(|| format!("writing {}", path.display()))?;
        self.child = None;
        Ok(())
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child
            && let Err(error) = child.kill().and_then(|()| child.wait().map(drop))
        {
            tracing::warn!("ending a tracker: {error}");
        }
    }
}

/// Ends with the processes whose pidfds are named, or after some time, and takes back its word, whose
/// path is the first argument.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let word = arguments.next().unwrap_or_default();
    let pidfds: Vec<i32> = arguments
        .filter_map(|text| text.to_str()?.parse().ok())
        .collect();
    let _ = setsid();
    let own = match pidfd::open(std::process::id().cast_signed()) {
        Ok(own) => own,
        Err(_) => return ExitCode::FAILURE,
    };
    let mut waited: Vec<OwnedFd> = pidfds
        .into_iter()
        .filter_map(|fd| pidfd::getfd(own.as_fd(), fd).ok())
        .collect();
    let until = Instant::now() + LIFETIME;
    while !waited.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let mut fds: Vec<PollFd<'_>> = waited
            .iter()
            .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, timeout).is_err() {
            continue;
        }
        let ended: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        let mut ended = ended.into_iter();
        waited.retain(|_| !ended.next().unwrap_or(false));
    }
    // It may never have been given.
    let _ = std::fs::remove_file(word);
    ExitCode::SUCCESS
}

/// What a tracker of a container knows.
pub struct Tracked {
    word: Word,
    path: PathBuf,
    places: Vec<Places>,
}

/// Looks for the tracker of a container. One that does not belong to the parent image is ended: its
/// registrations would be taken for the container's own.
pub fn find(top: Who, parent: Option<&Reader>) -> Result<Option<Tracked>> {
    let path = word_of(top);
    let Ok(text) = std::fs::read(&path) else {
        return Ok(None);
    };
    let Ok(word) = serde_json::from_slice::<Word>(&text) else {
        std::fs::remove_file(&path)?;
        return Ok(None);
    };
    let mut tracked = Tracked {
        word,
        path,
        places: Vec::new(),
    };
    match parent {
        Some(parent)
            if tracked.word.tracker.lives()
                && parent.identity() == tracked.word.identity
                && parent.has(PLACES) =>
        {
            tracked.places = parent.record(PLACES)?;
            Ok(Some(tracked))
        }
        _ => {
            tracked.end()?;
            Ok(None)
        }
    }
}

impl Tracked {
    /// Which pages of held processes are as the parent has them. Ends the tracker.
    pub fn unchanged(self) -> Result<Known> {
        let mut known = BTreeMap::new();
        for places in &self.places {
            let who = Who {
                host_pid: places.host_pid,
                start_time: places.start_time,
            };
            if self.word.processes.contains(&who) && who.lives() {
                let runs = intersect(&protected(who.host_pid)?, &places.runs);
                known.insert(who.host_pid, runs);
            }
        }
        self.end()?;
        let known = Known(known);
        tracing::info!(
            "{} pages are known to be as the parent image has them",
            known.pages()
        );
        Ok(known)
    }

    /// Ends the tracker: nothing is protected any more.
    pub fn end(self) -> Result<()> {
        let tracker = self.word.tracker;
        if tracker.lives()
            && let Ok(process) = pidfd::open(tracker.host_pid)
        {
            pidfd::send_signal(process.as_fd(), libc::SIGKILL)?;
            let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            // Its files are closed before it can be waited for.
            poll(&mut fds, PollTimeout::from(10_000u16)).doing(|| "waiting for a tracker's end")?;
        }
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("removing {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Pages that are still protected: (start, end), ascending.
fn protected(host_pid: i32) -> Result<Vec<(u64, u64)>> {
    let pagemap = open_pagemap(host_pid)?;
    let masks = Masks {
        inverted: category::WRITTEN,
        all: category::WP_ALLOWED | category::WRITTEN,
        any: category::PRESENT | category::SWAPPED,
        report: category::WP_ALLOWED,
    };
    let mut found = Vec::new();
    let end = crate::tracee::arch::TASK_SIZE;
    pagemap::scan_each(pagemap.as_fd(), 0, end, masks, 0, |region| {
        found.push((region.start, region.end));
    })?;
    Ok(found)
}

/// The parts of `runs` that lie in `ranges`; both ascending.
fn intersect(ranges: &[(u64, u64)], runs: &[PageRun]) -> Vec<PageRun> {
    let mut found = Vec::new();
    let mut from = 0;
    for run in runs {
        while ranges.get(from).is_some_and(|range| range.1 <= run.start) {
            from += 1;
        }
        for &(start, end) in ranges[from..]
            .iter()
            .take_while(|range| range.0 < run.end())
        {
            let (start, end) = (start.max(run.start), end.min(run.end()));
            found.push(PageRun {
                start,
                pages: (end - start) / PAGE,
                index: run.index + (start - run.start) / PAGE,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, pages: u64, index: u64) -> PageRun {
        PageRun {
            start: start * PAGE,
            pages,
            index,
        }
    }

    #[test]
    fn what_is_protected_and_has_a_place_is_known() {
        let ranges = [(0, 3), (5, 6), (8, 20)].map(|(start, end)| (start * PAGE, end * PAGE));
        let runs = [run(1, 8, 100), run(9, 2, 7), run(30, 1, 9)];
        assert_eq!(
            intersect(&ranges, &runs),
            [run(1, 2, 100), run(5, 1, 104), run(8, 1, 107), run(9, 2, 7)]
        );
        assert!(intersect(&[], &runs).is_empty());
    }
}
