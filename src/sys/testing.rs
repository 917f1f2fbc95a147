//! For tests: a process that holds given descriptors and does nothing.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A child that sleeps until it is dropped.
#[derive(Debug)]
pub struct Sleeper {
    /// Its process number.
    pub pid: i32,
    /// A descriptor that stands for it.
    pub pidfd: OwnedFd,
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // SAFETY: kills and reaps our own child, which nobody else waits for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// Forks a child whose table holds exactly `fds` under those numbers (below 500), runs `setup` in it
/// (system calls only: other threads of the parent are gone in the middle of whatever they did; its
/// result must be 0), and sleeps.
pub fn sleeper(fds: &[(BorrowedFd<'_>, RawFd)], setup: impl FnOnce() -> i32) -> Sleeper {
    const HIGH: RawFd = 3000;
    let mut ready = [0; 2];
    let numbers: Vec<(RawFd, RawFd)> = fds.iter().map(|(fd, at)| (fd.as_raw_fd(), *at)).collect();
    // SAFETY: after fork the child makes system calls only (and `setup`, which promises the same)
    // and never returns; the parent reads from a pipe of its own.
    unsafe {
        assert_eq!(libc::pipe2(ready.as_mut_ptr(), libc::O_CLOEXEC), 0);
        let parent = libc::getpid();
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != parent {
                libc::_exit(1);
            }
            let signal = libc::dup2(ready[1], HIGH);
            for (index, (fd, _)) in numbers.iter().enumerate() {
                libc::dup2(*fd, HIGH + 1 + index as RawFd);
            }
            libc::syscall(libc::SYS_close_range, 0, HIGH - 1, 0);
            for (index, (_, at)) in numbers.iter().enumerate() {
                if libc::dup2(HIGH + 1 + index as RawFd, *at) != *at {
                    libc::_exit(2);
                }
            }
            libc::syscall(libc::SYS_close_range, HIGH + 1, u32::MAX, 0);
            if setup() != 0 {
                libc::_exit(3);
            }
            libc::write(signal, b"r".as_ptr().cast(), 1);
            libc::close(signal);
            loop {
                libc::pause();
            }
        }
        libc::close(ready[1]);
        let mut byte = 0_u8;
        let got = libc::read(ready[0], (&raw mut byte).cast(), 1);
        // The end of the pipe: the child has closed its own descriptor.
        let mut end = 0_u8;
        libc::read(ready[0], (&raw mut end).cast(), 1);
        libc::close(ready[0]);
        assert_eq!(got, 1, "the child could not set itself up");
        let pidfd = super::pidfd::open(pid).expect("our own child");
        Sleeper { pid, pidfd }
    }
}

/// A record lock for fcntl(2).
pub fn record_lock(exclusive: bool, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: if exclusive {
            libc::F_WRLCK as i16
        } else {
            libc::F_RDLCK as i16
        },
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

/// fcntl(fd, F_SETLK) by number; its result.
pub fn set_record_lock(fd: RawFd, lock: &libc::flock) -> i32 {
    // SAFETY: the kernel reads one flock structure.
    unsafe { libc::fcntl(fd, libc::F_SETLK, std::ptr::from_ref(lock)) }
}

/// Takes a read lease.
pub fn lease(fd: BorrowedFd<'_>) {
    // SAFETY: no pointers.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
    assert_eq!(result, 0);
}

/// A small io_uring.
pub fn io_uring() -> OwnedFd {
    let mut parameters = [0_u32; 30];
    // SAFETY: the kernel fills 120 bytes; the result is a new descriptor of our own.
    unsafe {
        let fd = libc::syscall(libc::SYS_io_uring_setup, 2, parameters.as_mut_ptr());
        assert!(fd >= 0);
        std::os::fd::FromRawFd::from_raw_fd(fd as RawFd)
    }
}

/// For `setup` of a [`sleeper`]: enters the mount namespace behind that number and closes it.
pub fn enter(fd: RawFd) -> i32 {
    // SAFETY: no pointers.
    unsafe { libc::setns(fd, libc::CLONE_NEWNS) | libc::close(fd) }
}

/// A shared, writable mapping; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: *mut libc::c_void,
    size: usize,
}

impl Mapping {
    /// Where it lies.
    pub fn address(&self) -> u64 {
        self.start as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which nobody holds a reference.
        unsafe { libc::munmap(self.start, self.size) };
    }
}

/// Maps the first `size` bytes of a file, without touching them.
pub fn map_shared(file: BorrowedFd<'_>, size: usize) -> Mapping {
    // SAFETY: a new mapping where the kernel likes.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    Mapping { start, size }
}
