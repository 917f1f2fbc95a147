//! `/proc/PID/status`: who a process is and what it may do.

use super::text::{decimal, key_value, lines, malformed, number, words};
use crate::error::Result;

/// The state letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// R
    Running,
    /// S
    Sleeping,
    /// D
    DiskSleep,
    /// T: by a signal.
    Stopped,
    /// t: by a tracer.
    Tracing,
    /// Z
    Zombie,
    /// X
    Dead,
    /// I: an idle kernel thread.
    Idle,
    /// Any other letter.
    Other(char),
}

impl State {
    /// Reads the letter of status and stat.
    pub fn from_letter(letter: u8) -> Self {
        match letter {
            b'R' => Self::Running,
            b'S' => Self::Sleeping,
            b'D' => Self::DiskSleep,
            b'T' => Self::Stopped,
            b't' => Self::Tracing,
            b'Z' => Self::Zombie,
            b'X' | b'x' => Self::Dead,
            b'I' => Self::Idle,
            other => Self::Other(other as char),
        }
    }
}

/// Real, effective, saved and file-system id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ids {
    /// Real.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved.
    pub saved: u32,
    /// For access to files.
    pub fs: u32,
}

/// What the kernel says of one thread. Ids are as the reader's user namespace sees them; pids
/// without `ns` as the pid namespace of the mounted /proc sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// comm, unescaped.
    pub name: Vec<u8>,
    /// File mode creation mask; `None` where the kernel has no fs to show (zombies).
    pub umask: Option<u32>,
    /// State letter.
    pub state: State,
    /// Thread group.
    pub tgid: i32,
    /// Thread.
    pub pid: i32,
    /// Parent.
    pub ppid: i32,
    /// Who traces it; 0 for nobody.
    pub tracer_pid: i32,
    /// User ids.
    pub uid: Ids,
    /// Group ids.
    pub gid: Ids,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Thread group in each pid namespace, from /proc's own down to the process's own. The four
    /// lists are empty where the kernel has no pid namespaces.
    pub ns_tgid: Vec<i32>,
    /// Thread, likewise.
    pub ns_pid: Vec<i32>,
    /// Process group, likewise.
    pub ns_pgid: Vec<i32>,
    /// Session, likewise.
    pub ns_sid: Vec<i32>,
    /// Whether it is a kernel thread; `None` before Linux 6.4.
    pub kernel_thread: Option<bool>,
    /// Address space in bytes; `None` for kernel threads and zombies, which have none.
    pub vm_size: Option<u64>,
    /// Resident in bytes.
    pub vm_rss: Option<u64>,
    /// Locked in bytes.
    pub vm_locked: Option<u64>,
    /// Swapped out in bytes.
    pub vm_swap: Option<u64>,
    /// Number of threads.
    pub threads: u32,
    /// Pending for the thread; bit n-1 is signal n, in all masks.
    pub signal_pending: u64,
    /// Pending for the process.
    pub signal_shared_pending: u64,
    /// Blocked.
    pub signal_blocked: u64,
    /// Ignored.
    pub signal_ignored: u64,
    /// Caught.
    pub signal_caught: u64,
    /// Capability sets; bit n is capability n.
    pub cap_inheritable: u64,
    /// Permitted.
    pub cap_permitted: u64,
    /// Effective.
    pub cap_effective: u64,
    /// Bounding.
    pub cap_bounding: u64,
    /// Ambient.
    pub cap_ambient: u64,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Number of filters.
    pub seccomp_filters: u32,
    /// Whether transparent huge pages are allowed (PR_SET_THP_DISABLE); `true` where unknown.
    pub thp_enabled: bool,
    /// Speculation_Store_Bypass, in the kernel's words; empty where unknown.
    pub speculation_store_bypass: String,
    /// SpeculationIndirectBranch, in the kernel's words; empty where unknown.
    pub speculation_indirect_branch: String,
    /// Allowed processors, as a list: `0-1,4`.
    pub cpus_allowed_list: String,
    /// Allowed memory nodes, as a list.
    pub mems_allowed_list: String,
}

impl Status {
    /// The pid in the innermost namespace, the one that the process itself sees.
    pub fn own_pid(&self) -> i32 {
        self.ns_pid.last().copied().unwrap_or(self.pid)
    }

    /// A status of which nothing is known yet.
    fn unknown() -> Self {
        Self {
            name: Vec::new(),
            umask: None,
            state: State::Other('?'),
            tgid: 0,
            pid: 0,
            ppid: 0,
            tracer_pid: 0,
            uid: Ids::default(),
            gid: Ids::default(),
            groups: Vec::new(),
            ns_tgid: Vec::new(),
            ns_pid: Vec::new(),
            ns_pgid: Vec::new(),
            ns_sid: Vec::new(),
            kernel_thread: None,
            vm_size: None,
            vm_rss: None,
            vm_locked: None,
            vm_swap: None,
            threads: 0,
            signal_pending: 0,
            signal_shared_pending: 0,
            signal_blocked: 0,
            signal_ignored: 0,
            signal_caught: 0,
            cap_inheritable: 0,
            cap_permitted: 0,
            cap_effective: 0,
            cap_bounding: 0,
            cap_ambient: 0,
            no_new_privs: false,
            seccomp: 0,
            seccomp_filters: 0,
            thp_enabled: true,
            speculation_store_bypass: String::new(),
            speculation_indirect_branch: String::new(),
            cpus_allowed_list: String::new(),
            mems_allowed_list: String::new(),
        }
    }

    /// Takes in one line; `None` when a known key has a value that is none.
    fn add(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"Name" => self.name = unescape_name(value),
            b"Umask" => self.umask = Some(u32::try_from(number(value, 8)?).ok()?),
            b"State" => self.state = State::from_letter(*value.first()?),
            b"Tgid" => self.tgid = decimal(value)?,
            b"Pid" => self.pid = decimal(value)?,
            b"PPid" => self.ppid = decimal(value)?,
            b"TracerPid" => self.tracer_pid = decimal(value)?,
            b"Uid" => self.uid = ids(value)?,
            b"Gid" => self.gid = ids(value)?,
            b"Groups" => self.groups = list(value)?,
            b"NStgid" => self.ns_tgid = list(value)?,
            b"NSpid" => self.ns_pid = list(value)?,
            b"NSpgid" => self.ns_pgid = list(value)?,
            b"NSsid" => self.ns_sid = list(value)?,
            b"Kthread" => self.kernel_thread = Some(value == b"1"),
            b"VmSize" => self.vm_size = Some(kilobytes(value)?),
            b"VmRSS" => self.vm_rss = Some(kilobytes(value)?),
            b"VmLck" => self.vm_locked = Some(kilobytes(value)?),
            b"VmSwap" => self.vm_swap = Some(kilobytes(value)?),
            b"Threads" => self.threads = decimal(value)?,
            b"NoNewPrivs" => self.no_new_privs = value == b"1",
            b"Seccomp" => self.seccomp = decimal(value)?,
            b"Seccomp_filters" => self.seccomp_filters = decimal(value)?,
            b"THP_enabled" => self.thp_enabled = value == b"1",
            _ => {
                if let Some(mask) = self.mask(key) {
                    *mask = number(value, 16)?;
                } else if let Some(words) = self.words(key) {
                    *words = String::from_utf8_lossy(value).into_owned();
                }
            }
        }
        Some(())
    }

    fn mask(&mut self, key: &[u8]) -> Option<&mut u64> {
        Some(match key {
            b"SigPnd" => &mut self.signal_pending,
            b"ShdPnd" => &mut self.signal_shared_pending,
            b"SigBlk" => &mut self.signal_blocked,
            b"SigIgn" => &mut self.signal_ignored,
            b"SigCgt" => &mut self.signal_caught,
            b"CapInh" => &mut self.cap_inheritable,
            b"CapPrm" => &mut self.cap_permitted,
            b"CapEff" => &mut self.cap_effective,
            b"CapBnd" => &mut self.cap_bounding,
            b"CapAmb" => &mut self.cap_ambient,
            _ => return None,
        })
    }

    fn words(&mut self, key: &[u8]) -> Option<&mut String> {
        Some(match key {
            b"Speculation_Store_Bypass" => &mut self.speculation_store_bypass,
            b"SpeculationIndirectBranch" => &mut self.speculation_indirect_branch,
            b"Cpus_allowed_list" => &mut self.cpus_allowed_list,
            b"Mems_allowed_list" => &mut self.mems_allowed_list,
            _ => return None,
        })
    }
}

/// Parses `/proc/PID/status` or `/proc/PID/task/TID/status`.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Status> {
    let mut status = Status::unknown();
    for line in lines(text.as_ref()) {
        // A line without a colon is nothing that any kernel wrote so far; pass it over.
        let Some((key, value)) = key_value(line) else {
            continue;
        };
        status
            .add(key, value)
            .ok_or_else(|| malformed("a line of status", line))?;
    }
    if status.pid == 0 {
        return Err(malformed("status without Pid", text.as_ref()));
    }
    Ok(status)
}

fn ids(value: &[u8]) -> Option<Ids> {
    let all: Vec<u32> = list(value)?;
    let &[real, effective, saved, fs] = all.as_slice() else {
        return None;
    };
    Some(Ids {
        real,
        effective,
        saved,
        fs,
    })
}

fn list<T: std::str::FromStr>(value: &[u8]) -> Option<Vec<T>> {
    words(value).map(decimal).collect()
}

fn kilobytes(value: &[u8]) -> Option<u64> {
    words(value)
        .next()
        .and_then(decimal::<u64>)?
        .checked_mul(1024)
}

/// The kernel escapes line feed and backslash in the name as `\n` and `\\` (proc_task_name with
/// escape), other unprintable bytes not at all.
fn unescape_name(value: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&first, after)) = rest.split_first() {
        let (byte, used) = match (first, after.first()) {
            (b'\\', Some(b'n')) => (b'\n', 1),
            (b'\\', Some(b'\\')) => (b'\\', 1),
            _ => (first, 0),
        };
        name.push(byte);
        rest = &after[used..];
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
Name:\ta b\\n:\\\\)
Umask:\t0027
State:\tt (tracing stop)
Tgid:\t13646
Ngid:\t0
Pid:\t13647
PPid:\t13641
TracerPid:\t99
Uid:\t0\t1\t2\t3
Gid:\t4\t5\t6\t4294967294
FDSize:\t256
Groups:\t4 24 1000 
NStgid:\t13646\t1
NSpid:\t13647\t2
NSpgid:\t13641\t0
NSsid:\t10192\t0
Kthread:\t0
VmSize:\t    3060 kB
VmLck:\t       8 kB
VmRSS:\t    1768 kB
VmSwap:\t       4 kB
THP_enabled:\t0
untag_mask:\t0xffffffffffffffff
Threads:\t2
SigQ:\t0/96365
SigPnd:\t0000000000000001
ShdPnd:\t0000000000000002
SigBlk:\t0000000000000004
SigIgn:\t0000000000001000
SigCgt:\t8000000000000000
CapInh:\t0000000000000001
CapPrm:\t000001fffeffffff
CapEff:\t000001fffefffffe
CapBnd:\t000001fffefffffd
CapAmb:\t0000000000000002
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t3
Speculation_Store_Bypass:\tthread vulnerable
SpeculationIndirectBranch:\talways enabled
Cpus_allowed:\t3
Cpus_allowed_list:\t0-1
Mems_allowed_list:\t0
Brand_new:\tvalue
a line without the usual mark
";

    #[test]
    fn every_field_is_read() {
        let status = parse(SAMPLE).unwrap();
        assert_eq!(status.name, b"a b\n:\\)");
        assert_eq!(status.umask, Some(0o27));
        assert_eq!(status.state, State::Tracing);
        assert_eq!(
            [status.tgid, status.pid, status.ppid, status.tracer_pid],
            [13646, 13647, 13641, 99]
        );
        assert_eq!(
            status.uid,
            Ids {
                real: 0,
                effective: 1,
                saved: 2,
                fs: 3
            }
        );
        assert_eq!(status.gid.fs, 4_294_967_294);
        assert_eq!(status.groups, [4, 24, 1000]);
        assert_eq!(status.ns_tgid, [13646, 1]);
        assert_eq!(status.own_pid(), 2);
        assert_eq!(status.ns_pgid, [13641, 0]);
        assert_eq!(status.ns_sid, [10192, 0]);
        assert_eq!(status.kernel_thread, Some(false));
        assert_eq!(status.vm_rss, Some(1768 * 1024));
        assert_eq!(status.threads, 2);
        assert_eq!(
            [
                status.signal_pending,
                status.signal_shared_pending,
                status.signal_blocked,
                status.signal_ignored,
                status.signal_caught
            ],
            [1, 2, 4, 0x1000, 1 << 63]
        );
        assert_eq!(
            [
                status.cap_inheritable,
                status.cap_permitted,
                status.cap_effective,
                status.cap_bounding,
                status.cap_ambient
            ],
            [1, 0x1ff_feff_ffff, 0x1ff_feff_fffe, 0x1ff_feff_fffd, 2]
        );
        assert!(status.no_new_privs && !status.thp_enabled);
        assert_eq!((status.seccomp, status.seccomp_filters), (2, 3));
        assert_eq!(status.cpus_allowed_list, "0-1");
    }

    #[test]
    fn a_zombie_has_no_memory_and_no_umask() {
        let status = parse("Name:\tx\nState:\tZ (zombie)\nPid:\t7\nGroups:\t \n").unwrap();
        assert_eq!(status.state, State::Zombie);
        assert_eq!((status.umask, status.vm_size), (None, None));
        assert_eq!(status.own_pid(), 7);
    }

    #[test]
    fn our_own_status_is_ours() {
        let status = parse(std::fs::read("/proc/self/status").unwrap()).unwrap();
        assert_eq!(status.tgid, std::process::id() as i32);
    }

    #[test]
    fn a_known_key_with_garbage_is_an_error() {
        for text in [
            "",
            "Pid:\tx\n",
            "Pid:\t1\nUid:\t1 2\n",
            "Pid:\t1\nSigBlk:\tzz\n",
        ] {
            assert_eq!(parse(text).unwrap_err().code(), "E-PROC-FORMAT", "{text}");
        }
    }
}
