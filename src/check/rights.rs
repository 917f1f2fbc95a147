//! What this process may do: capabilities, limits, security modules.

use super::ground::{Ground, Outcome, text};
use super::{Finding, Question, State, needed, useful};
use caps::{CapSet, Capability};
use nix::sys::resource::{Resource, getrlimit};

pub(super) const QUESTIONS: &[Question] = &[
    needed(
        "yama",
        |_| match text("/proc/sys/kernel/yama/ptrace_scope").as_deref() {
            None => Outcome::Ok("not in this kernel".to_owned()),
            Some("3") => Outcome::Missing("ptrace_scope is 3".to_owned()),
            Some(scope) => Outcome::Ok(format!("ptrace_scope is {scope}")),
        },
        "no process can be held",
        "boot with kernel.yama.ptrace_scope below 3; it cannot be lowered",
    ),
    useful(
        "security-module",
        security_module,
        "the labels of a container's processes are not kept: they come back with ocimig's own",
        "run the container without a profile of that module",
    ),
    useful(
        "open-files",
        open_files,
        "a container with more open files, or with higher numbers or limits of them, cannot be restored",
        "raise the hard limit of open files (ulimit -Hn) before ocimig is started",
    ),
];

fn security_module(_: &Ground) -> Outcome {
    let label = text("/proc/self/attr/current").unwrap_or_default();
    let label = label.trim_end_matches('\0').trim();
    let modules = text("/sys/kernel/security/lsm").unwrap_or_default();
    if label.is_empty() || label == "unconfined" {
        return Outcome::Ok(modules);
    }
    Outcome::Limited(format!("this process has the label {label}"))
}

fn open_files(_: &Ground) -> Outcome {
    /// What runtimes give to a container that asks for many.
    const MANY: u64 = 1 << 20;
    let may_raise = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE);
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= MANY || may_raise.unwrap_or(false) => {
            Outcome::Ok(hard.to_string())
        }
        Ok((_, hard)) => Outcome::Limited(format!("the hard limit is {hard}")),
        Err(errno) => Outcome::Missing(errno.to_string()),
    }
}

/// What a capability is needed for, and whether nothing works without it.
fn purpose(capability: Capability) -> (&'static str, bool) {
    match capability {
        Capability::CAP_SYS_ADMIN => ("namespaces, mounts and page frames are out of reach", true),
        Capability::CAP_SYS_PTRACE => ("processes of other users cannot be held", true),
        Capability::CAP_SETUID | Capability::CAP_SETGID => (
            "processes cannot come back as the user that they were",
            true,
        ),
        Capability::CAP_SYS_CHROOT => ("processes cannot come back with their own root", true),
        Capability::CAP_DAC_OVERRIDE | Capability::CAP_DAC_READ_SEARCH => {
            ("files of other users cannot be opened", false)
        }
        Capability::CAP_CHOWN | Capability::CAP_FOWNER | Capability::CAP_FSETID => {
            ("files cannot come back with their owner and mode", false)
        }
        Capability::CAP_SETFCAP => ("files cannot come back with their capabilities", false),
        Capability::CAP_MKNOD => ("device files cannot be made", false),
        Capability::CAP_KILL => ("processes of other users cannot be ended", false),
        Capability::CAP_SETPCAP => ("bounding sets and securebits cannot be put back", false),
        Capability::CAP_NET_ADMIN => (
            "networks cannot be set up and TCP connections cannot be kept",
            false,
        ),
        Capability::CAP_NET_BIND_SERVICE => ("sockets on ports below 1024 cannot be bound", false),
        Capability::CAP_SYS_TIME => ("the clocks of a container cannot be put back", false),
        Capability::CAP_SYS_NICE => ("higher priorities cannot be put back", false),
        Capability::CAP_IPC_LOCK => ("locked memory cannot be locked again", false),
        Capability::CAP_IPC_OWNER => ("System V objects of other users cannot be read", false),
        Capability::CAP_LEASE => ("leases of other users' files cannot be taken", false),
        Capability::CAP_SYS_RESOURCE => (
            "hard limits above ocimig's own, a lower oom_score_adj, and pipes and message queues \
             larger than the system's limits cannot be put back",
            false,
        ),
        Capability::CAP_CHECKPOINT_RESTORE => ("nothing more: CAP_SYS_ADMIN does it too", false),
        _ => ("nothing else", false),
    }
}

/// One finding for each capability that the kernel knows.
pub(super) fn capabilities() -> Vec<Finding> {
    let own = caps::read(None, CapSet::Effective).unwrap_or_default();
    let mut all: Vec<Capability> = caps::runtime::thread_all_supported().into_iter().collect();
    all.sort_by_key(|capability| capability.index());
    all.into_iter()
        .map(|capability| capability_finding(capability, own.contains(&capability)))
        .collect()
}

fn capability_finding(capability: Capability, is_there: bool) -> Finding {
    let (cost, indispensable) = purpose(capability);
    let name = capability.to_string();
    let unless_there = |text: String| if is_there { String::new() } else { text };
    Finding {
        state: if is_there { State::Ok } else { State::Missing },
        seen: String::new(),
        cost: unless_there(format!(
            "a container whose processes hold it cannot be restored; {cost}"
        )),
        remedy: unless_there(format!("run ocimig with {name}")),
        indispensable,
        name: name.to_lowercase().replace('_', "-"),
    }
}
