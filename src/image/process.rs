//! Records of processes and threads: `processes/PID.json`.

use super::PathBytes;
use super::bytes::Bytes;
use super::files::FileReference;
use super::memory::Memory;
use super::tree::Member;
use serde::{Deserialize, Serialize};

/// A process. Numbers of processes and threads are as in the container's PID namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Its place among the others.
    pub member: Member,
    /// Its name, for readers; every thread has its own.
    pub comm: PathBytes,
    /// Stopped by this signal (state T).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<i32>,
    /// What remains of a zombie is above. All others have the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alive: Option<Alive>,
}

/// What a process is that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alive {
    /// The leader first.
    pub threads: Vec<Thread>,
    /// Where it stands in the file system.
    pub place: Place,
    /// Signal handlers that are not the default.
    pub handlers: Vec<Handler>,
    /// Signals that wait for any thread.
    pub pending: Vec<Pending>,
    /// Timers.
    pub timers: Timers,
    /// Resource limits.
    pub limits: Vec<Limit>,
    /// Everything else that the process has as a whole.
    pub attributes: Attributes,
    /// Its controlling terminal: [`Pty::id`](super::files::Pty::id), in the record of a session's
    /// leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Terminal>,
    /// Its memory.
    pub memory: Memory,
}

/// A session's terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// Number of the device: major, minor.
    pub device: (u32, u32),
    /// The process group in its foreground.
    pub foreground: i32,
}

/// Where a process stands in the file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Working directory.
    pub cwd: Option<FileReference>,
    /// Root directory, where it is not that of the mount namespace (chroot).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<FileReference>,
    /// File mode creation mask.
    pub umask: u32,
}

/// What happens at a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handler {
    /// The signal's number.
    pub signal: i32,
    /// Address of the handler; 0 is the default, 1 ignores.
    pub handler: u64,
    /// SA_* bits.
    pub flags: u64,
    /// Where it returns to.
    pub restorer: u64,
    /// Blocked meanwhile; bit n-1 for signal n.
    pub mask: u64,
}

/// A signal that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// The signal's number.
    pub signal: i32,
    /// si_code.
    pub code: i32,
    /// The whole siginfo_t, 128 bytes.
    pub info: Bytes,
}

/// Timers of a process. Times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timers {
    /// ITIMER_REAL, ITIMER_VIRTUAL and ITIMER_PROF: (remaining, interval).
    pub interval: [(u64, u64); 3],
    /// Ascending by number.
    pub posix: Vec<PosixTimer>,
}

/// A timer of timer_create(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosixTimer {
    /// Its number.
    pub id: i32,
    /// CLOCK_*, as given.
    pub clock: i32,
    /// sigev_notify, with SIGEV_THREAD_ID.
    pub notify: i32,
    /// The signal.
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// The thread that is told (SIGEV_THREAD_ID).
    pub tid: Option<i32>,
    /// Until the next expiration; 0 is disarmed.
    pub remaining: u64,
    /// Between expirations; 0 is once.
    pub interval: u64,
}

/// A resource limit; `None` is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// `RLIMIT_NOFILE`.
    pub resource: String,
    /// Soft limit.
    pub soft: Option<u64>,
    /// Hard limit.
    pub hard: Option<u64>,
}

/// What a process has as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attributes {
    /// PR_SET_DUMPABLE.
    pub dumpable: i32,
    /// What PR_GET_THP_DISABLE tells: 1 disabled, with 2 but where it is asked for.
    pub thp_disabled: u32,
    /// PR_SET_MEMORY_MERGE.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub merge_memory: bool,
    /// What ARCH_REQ_XCOMP_PERM has allowed it to use beyond the ordinary; bit n for component n.
    #[serde(default)]
    pub processor_features: u64,
    /// PR_SET_MDWE bits.
    pub memory_deny_write_execute: u32,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `/proc/PID/coredump_filter`.
    pub coredump_filter: u64,
    /// membarrier(2) registrations, as MEMBARRIER_CMD_GET_REGISTRATIONS tells them.
    pub membarrier: u32,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thread {
    /// Its number.
    pub tid: i32,
    /// Its name.
    pub comm: PathBytes,
    /// General registers.
    pub registers: Registers,
    /// It is in a call that ends when a time is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<Sleep>,
    /// Everything else of the processor.
    pub extended: Vec<Component>,
    /// Blocked signals; bit n-1 for signal n.
    pub blocked: u64,
    /// Signals that wait for this thread.
    pub pending: Vec<Pending>,
    /// Alternate signal stack: address, size, SS_* flags.
    pub alternate_stack: (u64, u64, u32),
    /// PR_SET_PDEATHSIG.
    pub parent_death_signal: i32,
    /// set_tid_address(2).
    pub clear_child_tid: u64,
    /// set_robust_list(2): head, length.
    pub robust_list: (u64, u64),
    /// rseq(2): address, length, signature; address 0 is none.
    pub rseq: (u64, u32, u32),
    /// Rights.
    pub credentials: Credentials,
    /// How it gets the processor.
    pub scheduling: Scheduling,
    /// Seccomp filters in the order of their installation, by their place in
    /// `objects/seccomp.json`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seccomp: Vec<u32>,
    /// personality(2).
    pub personality: u32,
    /// What it has told the kernel about itself.
    #[serde(default)]
    pub controls: Controls,
}

/// What is left of a sleep. The arguments of the call are in the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sleep {
    /// The call.
    pub call: SleepingCall,
    /// Nanoseconds.
    pub remaining: u64,
}

/// Calls that the kernel goes on with after an interruption, for the time that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of the calls")]
pub enum SleepingCall {
    Nanosleep,
    ClockNanosleep,
    Poll,
    Futex,
}

/// What a thread has told the kernel about itself by prctl(2) and its kin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Controls {
    /// PR_SET_TSC: 1 is on, 2 raises SIGSEGV.
    pub tsc: u32,
    /// PR_MCE_KILL: 0 late, 1 early, 2 as the host says.
    pub machine_check: u32,
    /// PR_SET_IO_FLUSHER.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub io_flusher: bool,
    /// What is not left to the processor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub speculation: Vec<Speculation>,
    /// set_mempolicy(2), where it is not the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<MemoryPolicy>,
}

impl Default for Controls {
    fn default() -> Self {
        Self {
            tsc: 1,
            machine_check: 2,
            io_flusher: false,
            speculation: Vec::new(),
            memory_policy: None,
        }
    }
}

/// A choice of PR_SET_SPECULATION_CTRL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speculation {
    /// PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH …, by number.
    pub which: u32,
    /// PR_SPEC_DISABLE and its kin, by their bit.
    pub state: u32,
}

/// From which NUMA nodes memory is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryPolicy {
    /// MPOL_* with its flags.
    pub mode: u32,
    /// Bit n of word m is node 64 m + n.
    pub nodes: Vec<u64>,
}

/// General registers of x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the processor's names")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub orig_rax: u64,
    pub cs: u64,
    pub ss: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}

/// A component of the processor's extended state (XSAVE) that is not in its initial state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its number: 0 x87, 1 SSE, 2 AVX, 5-7 AVX-512, 9 PKRU …
    pub number: u32,
    /// Its bytes. Of 0 and 1 together, under number 0: the 512 bytes of FXSAVE.
    pub bytes: Bytes,
}

/// The rights of a thread. Capability sets: bit n is capability n.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Real, effective, saved, file system.
    pub uids: [u32; 4],
    /// Likewise.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable.
    pub inheritable: u64,
    /// Permitted.
    pub permitted: u64,
    /// Effective.
    pub effective: u64,
    /// Bounding.
    pub bounding: u64,
    /// Ambient.
    pub ambient: u64,
    /// SECBIT_* bits.
    pub securebits: u32,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}

/// How a thread gets the processor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduling {
    /// SCHED_*, by number.
    pub policy: u32,
    /// SCHED_FLAG_* bits.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// SCHED_DEADLINE: runtime, deadline and period in nanoseconds. For the ordinary policies the first
    /// is the length of a slice, 0 for the host's.
    pub deadline: (u64, u64, u64),
    /// Allowed processors, as a list: `0-1,4`. Empty for all that the host has.
    pub affinity: String,
    /// ioprio_get(2).
    pub io_priority: i32,
    /// PR_SET_TIMERSLACK, in nanoseconds.
    pub timer_slack: u64,
}
