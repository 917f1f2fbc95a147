//! The system calls of the benchmark.

use super::Result;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::NonNull;

const PAGE: usize = 4096;

/// Processes whose parents have ended become children of this one.
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    Ok(())
}

/// Makes the process that is started the first of a session.
pub fn in_own_session(command: &mut Command) -> &mut Command {
    // SAFETY: setsid(2) may be called between fork and exec.
    unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) }
}

/// A signal that is waited for.
pub struct Awaited(SigSet);

/// Blocks the signal by which a workload is asked whether everything is in place.
pub fn block_signal() -> Result<Awaited> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGUSR1);
    set.thread_block()?;
    Ok(Awaited(set))
}

impl Awaited {
    pub fn wait(&self) -> Result<()> {
        self.0.wait()?;
        Ok(())
    }
}

/// Standard input, output and error become /dev/null; what else was inherited is closed.
pub fn let_go_of_streams() -> Result<()> {
    // SAFETY: nothing of this program has descriptors above these three.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    nix::errno::Errno::result(done)?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    for fd in 0..3 {
        // SAFETY: both are descriptors of this process; nothing else uses these three any more.
        let done = unsafe { libc::dup2(null.as_raw_fd(), fd) };
        nix::errno::Errno::result(done)?;
    }
    Ok(())
}

/// Forks a child that does `change` and waits for ever.
pub fn fork_waiting(change: &dyn Fn()) -> Result<i32> {
    // SAFETY: there is one thread.
    match unsafe { fork()? } {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        ForkResult::Child => {
            let _ = let_go_of_streams();
            change();
            loop {
                nix::unistd::pause();
            }
        }
    }
}

/// Whether a process is there and no zombie.
pub fn is_running(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z") && !stat.contains(") X"))
}

/// A process and all its descendants.
pub fn tree(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut next = 0;
    while next < all.len() {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", all[next]));
        for task in tasks.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            let numbers = children.unwrap_or_default();
            all.extend(
                numbers
                    .split_whitespace()
                    .filter_map(|one| one.parse::<i32>().ok()),
            );
        }
        next += 1;
    }
    all
}

/// Kills these processes, all of which are descendants, and waits for all children.
pub fn end(pids: &[i32]) {
    for pid in pids {
        let _ = nix::sys::signal::kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    reap();
}

/// Waits for all children, which somebody killed.
pub fn reap() {
    while waitpid(None, None).is_ok() {}
}

/// Has a workload look at itself; its exit status.
pub fn ask(pid: i32) -> Result<i32> {
    nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGUSR1)?;
    match waitpid(Pid::from_raw(pid), None)? {
        WaitStatus::Exited(_, status) => Ok(status),
        other => Err(format!("the workload ended so: {other:?}").into()),
    }
}

/// Pages of anonymous memory.
pub struct Pages {
    start: NonNull<libc::c_void>,
    count: usize,
}

impl Pages {
    pub fn map(count: usize) -> Result<Self> {
        let length = NonZeroUsize::new(count * PAGE).ok_or("no pages")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel puts it.
        let start = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE)? };
        Ok(Self { start, count })
    }

    fn page(&self, number: usize) -> *mut u8 {
        assert!(number < self.count);
        // SAFETY: within the mapping, which lives as long as the process.
        unsafe { self.start.as_ptr().cast::<u8>().add(number * PAGE) }
    }

    pub fn write(&self, number: usize, value: u64) {
        // SAFETY: the page is mapped and writable until `protect`, which nobody calls before this.
        unsafe { self.page(number).cast::<u64>().write_volatile(value) }
    }

    pub fn fill(&self, number: usize, bytes: &[u8; PAGE]) {
        // SAFETY: as in `write`; the source is no part of the mapping.
        unsafe {
            self.page(number)
                .copy_from_nonoverlapping(bytes.as_ptr(), PAGE);
        }
    }

    pub fn read(&self, number: usize) -> u64 {
        // SAFETY: the page is mapped and readable.
        unsafe { self.page(number).cast::<u64>().read_volatile() }
    }

    /// Makes a page read-only.
    pub fn protect(&self, number: usize) -> Result<()> {
        let page = NonNull::new(self.page(number).cast()).ok_or("no page")?;
        // SAFETY: one page of the mapping, which nothing writes to any more.
        unsafe { mprotect(page, PAGE, ProtFlags::PROT_READ)? };
        Ok(())
    }
}
