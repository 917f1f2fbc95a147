//! clone3(2): bare children that do nothing but wait to be seized.

use nix::errno::Errno;

/// `struct clone_args` of `<linux/sched.h>`, all eleven words.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneArgs {
    /// CLONE_* flags without the exit signal.
    pub flags: u64,
    /// Where to store a pidfd (CLONE_PIDFD).
    pub pidfd: u64,
    /// Where to store the TID in the child's memory.
    pub child_tid: u64,
    /// Where to store the TID in the parent's memory.
    pub parent_tid: u64,
    /// Sent to the parent at exit.
    pub exit_signal: u64,
    /// Lowest byte of the stack; 0: the caller's.
    pub stack: u64,
    /// Its size.
    pub stack_size: u64,
    /// Thread-local storage.
    pub tls: u64,
    /// Address of the wanted PIDs, innermost namespace first.
    pub set_tid: u64,
    /// How many.
    pub set_tid_size: u64,
    /// A cgroup2 directory (CLONE_INTO_CGROUP).
    pub cgroup: u64,
}

impl CloneArgs {
    /// As the kernel reads it.
    pub fn words(&self) -> [u64; 11] {
        [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ]
    }
}

/// Forks a child that waits for ever, to be seized and turned into something else. It dies with the
/// calling thread (PR_SET_PDEATHSIG) until it is seized with PTRACE_O_EXITKILL. `set_tid` are the PIDs
/// that it shall have, innermost PID namespace first. Returns its PID as the caller's namespace has it.
///
/// EEXIST when a PID is taken, EPERM without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
pub fn bare(flags: u64, set_tid: &[i32]) -> Result<i32, Errno> {
    let exit_signal = if flags & libc::CLONE_PARENT as u64 != 0 {
        0
    } else {
        libc::SIGCHLD as u64
    };
    let arguments = CloneArgs {
        flags,
        exit_signal,
        // The kernel refuses an address without a number (EINVAL), and an empty slice has one.
        set_tid: if set_tid.is_empty() {
            0
        } else {
            set_tid.as_ptr() as u64
        },
        set_tid_size: set_tid.len() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM the child has a copy of this thread's stack and makes nothing but
    // system calls, so no lock that another thread held can matter.
    unsafe {
        let pid = libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<CloneArgs>(),
        );
        if pid == 0 {
            libc::syscall(
                libc::SYS_prctl,
                libc::PR_SET_PDEATHSIG,
                libc::SIGKILL,
                0,
                0,
                0,
            );
            loop {
                libc::syscall(libc::SYS_pause);
            }
        }
        Errno::result(pid).map(|pid| pid as i32)
    }
}

/// The rseq registration of the calling thread as (address, length, signature), as glibc 2.35 and
/// later make it for every thread; length 0 when there is none. The kernel does not tell a thread its
/// own, and the registered length is not the size that glibc publishes: 32 at least.
pub fn own_rseq() -> (u64, u32, u32) {
    // SAFETY: weak look-ups of two variables of glibc; both are plain integers that never change.
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>();
        if offset.is_null() || size.is_null() || *size == 0 {
            return (0, 0, 0);
        }
        let thread_pointer: u64;
        std::arch::asm!("mov {}, fs:0", out(reg) thread_pointer, options(nostack, readonly));
        (
            thread_pointer.wrapping_add_signed(*offset as i64),
            (*size).max(32),
            0x5305_3053,
        )
    }
}
