//! Holding processes, and making them anew.

use super::ground::{Ground, Outcome, end, text};
use super::{Question, needed, useful};
use crate::error::Result;
use crate::proc::Process;
use crate::resource::cgroup::{Cgroups, Version};
use crate::sys::{clone, kcmp, pidfd, prctl, ptrace, remote, timer};
use nix::errno::Errno;
use std::cmp::Ordering;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

pub(super) const QUESTIONS: &[Question] = &[
    needed(
        "machine",
        machine,
        "images are made for x86-64 with pages of 4 KiB only",
        "use such a machine",
    ),
    needed(
        "proc",
        |_| Outcome::of(Process::new(std::process::id() as i32).status()),
        "nothing of a process can be seen",
        "mount proc on /proc, of the PID namespace that ocimig runs in",
    ),
    needed(
        "ptrace",
        |ground| Outcome::of(ground.ask(ptrace::registers)),
        "no process can be held and asked",
        "run ocimig as root with CAP_SYS_PTRACE, and not under a seccomp filter that forbids ptrace",
    ),
    needed(
        "ptrace-xsave",
        |ground| {
            Outcome::told(ground.ask(ptrace::xstate), |area| {
                format!("{} bytes", area.len())
            })
        },
        "floating-point and vector registers cannot be read",
        "use a processor with XSAVE",
    ),
    needed(
        "ptrace-rseq",
        |ground| Outcome::of(ground.ask(ptrace::rseq)),
        "restartable sequences, which every program of glibc 2.35 registers, cannot be read",
        "use Linux 5.13 or later with CONFIG_RSEQ",
    ),
    useful(
        "ptrace-seccomp",
        seccomp,
        "processes under a seccomp filter are refused",
        "use a kernel with CONFIG_SECCOMP_FILTER and CONFIG_CHECKPOINT_RESTORE, with CAP_SYS_ADMIN",
    ),
    useful(
        "ptrace-suspend-seccomp",
        |ground| {
            let all = ptrace::options::EXITKILL | ptrace::options::SUSPEND_SECCOMP;
            let set = |pid| {
                ptrace::set_options(pid, all)?;
                ptrace::set_options(pid, ptrace::options::EXITKILL)
            };
            Outcome::of(ground.ask(set))
        },
        "processes whose seccomp filter forbids what they are asked cannot be checkpointed",
        "run ocimig with CAP_SYS_ADMIN and under no seccomp filter itself",
    ),
    useful(
        "ptrace-syscall-dispatch",
        |ground| Outcome::of(ground.ask(ptrace::dispatches_system_calls)),
        "nobody can tell whether a process turns its system calls into signals, as Wine does",
        "use Linux 6.4 or later",
    ),
    needed(
        "process-vm",
        |ground| {
            let here = [7u8; 8];
            let mut there = [0u8; 8];
            let address = here.as_ptr() as u64;
            Outcome::of(ground.ask(|pid| remote::read(pid, address, &mut there)))
        },
        "the memory of a process cannot be read",
        "use a kernel with CONFIG_CROSS_MEMORY_ATTACH",
    ),
    needed(
        "pidfd-getfd",
        |ground| {
            let number = ground.file.as_ref().map_or(0, AsRawFd::as_raw_fd);
            Outcome::of(ground.ask(|pid| pidfd::getfd(pidfd::open(pid)?.as_fd(), number)))
        },
        "the descriptors of a process cannot be looked at",
        "use Linux 5.6 or later, with CAP_SYS_PTRACE",
    ),
    needed(
        "kcmp",
        compare,
        "what processes share (open files, memory) cannot be told from what they have twice",
        "use a kernel with CONFIG_KCMP",
    ),
    needed(
        "clone3-set-tid",
        choose_pid,
        "processes cannot come back under their old numbers",
        "use Linux 5.5 or later, with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
    ),
    useful(
        "pid-max",
        highest_pid,
        "a process whose number was higher cannot come back",
        "sysctl kernel.pid_max=4194304",
    ),
    needed(
        "mm-map",
        |_| Outcome::of(prctl::mm_map_size()),
        "heap, stack, arguments and environment of a process cannot be put back",
        "use a kernel with CONFIG_CHECKPOINT_RESTORE",
    ),
    useful(
        "timer-ids",
        |_| {
            if timer::restores_ids() {
                Outcome::Ok(String::new())
            } else {
                Outcome::Limited("PR_TIMER_CREATE_RESTORE_IDS is unknown".to_owned())
            }
        },
        "a POSIX timer gets its number by making and removing others; a high number is refused",
        "use Linux 6.15 or later",
    ),
    useful(
        "cgroup-freezer",
        freezer,
        "a container is stopped process by process, and one that forks fast may not stand still",
        "mount the v1 freezer or cgroup2",
    ),
];

/// A process without a filter, like our child, is EINVAL, but so is every process where the kernel was
/// built without: whether it was, its list of actions tells.
fn seccomp(ground: &Ground) -> Outcome {
    let asked = ground.ask(|pid| ptrace::seccomp_filter(pid, 0));
    let has_filters = text("/proc/sys/kernel/seccomp/actions_avail").is_some();
    match asked {
        Err(error) if error.errno() == Some(Errno::EINVAL) && has_filters => {
            Outcome::of(prctl::mm_map_size())
        }
        other => Outcome::of(other),
    }
}

fn machine(_: &Ground) -> Outcome {
    let release = text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let page = page.ok().flatten().unwrap_or(0);
    let seen = format!(
        "Linux {release}, {}, pages of {page} bytes",
        std::env::consts::ARCH
    );
    if std::env::consts::ARCH == "x86_64" && page == 4096 {
        Outcome::Ok(seen)
    } else {
        Outcome::Missing(seen)
    }
}

fn compare(ground: &Ground) -> Outcome {
    let own = std::process::id() as i32;
    let asked = ground.ask(|pid| kcmp::compare(kcmp::Kind::Vm, (own, 0), (pid, 0)));
    match asked {
        Ok(Ordering::Equal) => Outcome::Missing("a child has our own memory".to_owned()),
        other => Outcome::of(other),
    }
}

/// The kernel gives the next free number to who asks for none, so a high one disturbs nobody.
fn choose_pid(_: &Ground) -> Outcome {
    let highest = highest().unwrap_or(32768);
    let free = (300..highest)
        .rev()
        .filter(|pid| !Process::new(*pid).exists());
    for pid in free.take(16) {
        match clone::bare(0, &[pid]) {
            Ok(child) => {
                end(child);
                return if child == pid {
                    Outcome::Ok(String::new())
                } else {
                    Outcome::Missing(format!("asked for {pid}, got {child}"))
                };
            }
            // Somebody's thread.
            Err(Errno::EEXIST) => {}
            Err(errno) => return Outcome::of(Err::<(), _>(errno)),
        }
    }
    Outcome::Limited("no free number was found".to_owned())
}

fn highest() -> Option<i32> {
    text("/proc/sys/kernel/pid_max")?.parse().ok()
}

fn highest_pid(_: &Ground) -> Outcome {
    const MOST: i32 = 4 << 20;
    match highest() {
        Some(highest) if highest >= MOST => Outcome::Ok(highest.to_string()),
        Some(highest) => Outcome::Limited(highest.to_string()),
        None => Outcome::Missing("kernel.pid_max cannot be read".to_owned()),
    }
}

/// Freezes and thaws an empty cgroup of our own.
fn freezer(_: &Ground) -> Outcome {
    let own = std::process::id() as i32;
    let cgroups = match Cgroups::of_container(own, &[], &[]) {
        Ok(cgroups) => cgroups,
        Err(error) => return Outcome::Missing(error.to_string()),
    };
    let mut working = Vec::new();
    let mut failed = Vec::new();
    for place in cgroups.places {
        let version = place.hierarchy.version;
        let is_freezer = |name: &String| name == "freezer";
        if version == Version::V1 && !place.hierarchy.controllers.iter().any(is_freezer) {
            continue;
        }
        let name = match version {
            Version::V1 => "v1 freezer",
            Version::V2 => "cgroup.freeze",
        };
        match try_freezer(&place.directory, version) {
            Ok(()) => working.push(name.to_owned()),
            Err(error) => failed.push(format!("{name}: {error}")),
        }
    }
    match (working.is_empty(), failed.is_empty()) {
        (false, _) => Outcome::Ok(working.join(", ")),
        (true, false) => Outcome::Missing(failed.join(", ")),
        (true, true) => Outcome::Missing("no hierarchy has one".to_owned()),
    }
}

fn try_freezer(parent: &Path, version: Version) -> Result<()> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = parent.join(format!("ocimig-check-{}-{count}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let (file, frozen, thawed) = match version {
        Version::V1 => ("freezer.state", "FROZEN", "THAWED"),
        Version::V2 => ("cgroup.freeze", "1", "0"),
    };
    let file = directory.join(file);
    let tried = std::fs::write(&file, frozen).and_then(|()| std::fs::write(&file, thawed));
    let removed = std::fs::remove_dir(&directory);
    Ok(tried.and(removed)?)
}
