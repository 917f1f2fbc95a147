//! The one place where the test program steps outside of safe Rust: system calls as values, and
//! memory at addresses that it chose itself.

use nix::errno::Errno;
use std::io;

/// A libc call as a value: `call!(libc::getpid())`, an errno where it returns -1.
macro_rules! call {
    ($call:expr) => {{
        // SAFETY: every pointer that the test program hands to the kernel is to something that
        // lives across the call; the kernel checks the rest.
        #[allow(unused_unsafe, reason = "some calls are safe in libc")]
        let result = unsafe { $call };
        if result == -1 {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }};
}
pub(crate) use call;

/// fork(2), called while there is a single thread.
pub fn fork() -> io::Result<i32> {
    call!(libc::fork())
}

/// The errno of an error of [`call!`].
pub fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// An area of memory that stays mapped as long as the program runs.
#[derive(Clone, Copy)]
pub struct Area {
    /// Where it begins.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
}

/// The size of a page.
pub const PAGE: usize = 4096;

impl Area {
    /// mmap(2) of `len` bytes; `fd` -1 for anonymous memory.
    pub fn map(len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> io::Result<Self> {
        // SAFETY: the kernel chooses the place; nothing that exists is replaced.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start as usize,
            len,
        })
    }

    /// Anonymous private memory, readable and writable.
    pub fn private(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Self::map(len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    }

    /// Its address for the kernel.
    pub fn pointer(self) -> *mut libc::c_void {
        self.start as *mut libc::c_void
    }

    /// The part from `page` on, `pages` long.
    pub fn pages(self, page: usize, pages: usize) -> Self {
        assert!((page + pages) * PAGE <= self.len);
        Self {
            start: self.start + page * PAGE,
            len: pages * PAGE,
        }
    }

    /// mprotect(2).
    pub fn protect(self, prot: i32) -> io::Result<()> {
        call!(libc::mprotect(self.pointer(), self.len, prot)).map(drop)
    }

    /// madvise(2).
    pub fn advise(self, advice: i32) -> io::Result<()> {
        call!(libc::madvise(self.pointer(), self.len, advice)).map(drop)
    }

    /// The word at `index`, read for real.
    pub fn get(self, index: usize) -> u64 {
        assert!((index + 1) * 8 <= self.len);
        // SAFETY: inside of an area that stays mapped; callers made it readable.
        unsafe { (self.start as *const u64).add(index).read_volatile() }
    }

    /// Sets the word at `index`.
    pub fn set(self, index: usize, value: u64) {
        assert!((index + 1) * 8 <= self.len);
        // SAFETY: inside of an area that stays mapped; callers made it writable.
        unsafe { (self.start as *mut u64).add(index).write_volatile(value) }
    }

    /// Fills it with what [`Area::check`] expects for the same `seed`.
    pub fn fill(self, seed: u64) {
        for index in 0..self.len / 8 {
            self.set(index, word(seed, index));
        }
    }

    /// Whether it holds what [`Area::fill`] wrote.
    pub fn check(self, what: &str, seed: u64) -> Result<(), String> {
        self.check_with(what, |index| word(seed, index))
    }

    /// Whether it holds nothing but zeros.
    pub fn check_zero(self, what: &str) -> Result<(), String> {
        self.check_with(what, |_| 0)
    }

    fn check_with(self, what: &str, expected: impl Fn(usize) -> u64) -> Result<(), String> {
        for index in 0..self.len / 8 {
            let (found, expected) = (self.get(index), expected(index));
            if found != expected {
                let address = self.start + index * 8;
                return Err(format!(
                    "{what}: {found:#x} at {address:#x}, not {expected:#x}"
                ));
            }
        }
        Ok(())
    }
}

/// The word number `index` of the pattern `seed`; never 0.
pub fn word(seed: u64, index: usize) -> u64 {
    let mixed = (seed << 32 ^ index as u64).wrapping_add(1);
    let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29) | 1
}
