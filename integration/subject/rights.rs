//! Who a process is and what it may do.

use super::sys::{BpfFilter, call, errno};
use super::worker::{Worker, check_all};
use super::{Check, Child, SetUp, ensure};
use caps::{CapSet, Capability};
use std::collections::HashSet;
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("rights_ids", ids),
    ("rights_ids_of_threads", ids_of_threads),
    ("rights_capabilities", capabilities),
    ("rights_securebits", securebits),
    ("rights_seccomp", seccomp),
    ("rights_limits", limits),
    ("rights_scheduling", scheduling),
    ("rights_flags", flags),
];

/// Lets other users write answers.
fn open_root() -> std::io::Result<()> {
    fs::set_permissions("/", fs::Permissions::from_mode(0o777))
}

/// Real, effective, saved and file system ids, and groups.
#[derive(Debug, PartialEq)]
struct Ids {
    uids: [u32; 4],
    gids: [u32; 4],
    groups: Vec<u32>,
}

fn ids_now() -> Result<Ids, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let field = |name: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap_or_default().split_whitespace();
        words.filter_map(|word| word.parse().ok()).collect()
    };
    let four = |name| field(name).try_into().map_err(|_| "not four ids");
    Ok(Ids {
        uids: four("Uid:")?,
        gids: four("Gid:")?,
        groups: field("Groups:"),
    })
}

fn become_other(number: u32) -> std::io::Result<()> {
    let groups = [number, number + 1, number + 2];
    let count = groups.len();
    call!(libc::syscall(libc::SYS_setgroups, count, groups.as_ptr()))?;
    let (gid, uid) = (number + 10, number + 20);
    call!(libc::syscall(libc::SYS_setresgid, gid, gid + 1, gid + 2))?;
    // Last, with a file system id of its own as long as that is allowed.
    call!(libc::syscall(libc::SYS_setfsgid, gid))?;
    call!(libc::syscall(libc::SYS_setresuid, uid, uid + 1, uid + 2))?;
    call!(libc::syscall(libc::SYS_setfsuid, uid)).map(drop)
}

fn ids() -> Result<Check, Box<dyn Error>> {
    open_root()?;
    let mut children = Vec::new();
    for number in [1000, 2000, 65534] {
        children.push(Child::fork(move || {
            become_other(number)?;
            let before = ids_now()?;
            ensure!(
                before.uids == [number + 20, number + 21, number + 22, number + 20],
                "{before:?}"
            );
            Ok(Box::new(move |_| {
                let now = ids_now()?;
                ensure!(now == before, "{now:?}, not {before:?}");
                Ok(())
            }))
        })?);
    }
    Ok(Box::new(move |_| {
        children.iter_mut().try_for_each(Child::check)
    }))
}

/// Linux lets every thread be somebody else.
fn ids_of_threads() -> Result<Check, Box<dyn Error>> {
    let mut workers = Vec::new();
    for number in [1000, 2000, 3000] {
        workers.push(Worker::start(move || {
            become_other(number)?;
            let before = ids_now()?;
            Ok(move || match ids_now() {
                Ok(now) if now == before => Ok(()),
                other => Err(format!("{other:?}, not {before:?}")),
            })
        })?);
    }
    Ok(check_all(workers))
}

const SETS: [CapSet; 5] = [
    CapSet::Effective,
    CapSet::Permitted,
    CapSet::Inheritable,
    CapSet::Bounding,
    CapSet::Ambient,
];

fn capabilities_now() -> Result<Vec<HashSet<Capability>>, Box<dyn Error>> {
    Ok(SETS
        .into_iter()
        .map(|set| caps::read(None, set))
        .collect::<Result<_, _>>()?)
}

/// Five sets, all different.
fn capabilities() -> Result<Check, Box<dyn Error>> {
    let mut children = Vec::new();
    for user in [false, true] {
        open_root()?;
        children.push(Child::fork(move || {
            use Capability::*;
            caps::drop(None, CapSet::Bounding, CAP_MKNOD)?;
            caps::drop(None, CapSet::Bounding, CAP_NET_RAW)?;
            call!(libc::prctl(libc::PR_SET_KEEPCAPS, 1))?;
            if user {
                call!(libc::setresuid(1000, 1000, 1000))?;
            }
            let set = |all: &[Capability]| all.iter().copied().collect::<HashSet<_>>();
            caps::set(
                None,
                CapSet::Effective,
                &set(&[CAP_SETPCAP, CAP_CHOWN, CAP_KILL]),
            )?;
            let permitted = [
                CAP_SETPCAP,
                CAP_CHOWN,
                CAP_KILL,
                CAP_FOWNER,
                CAP_NET_BIND_SERVICE,
            ];
            caps::set(None, CapSet::Permitted, &set(&permitted))?;
            caps::set(None, CapSet::Inheritable, &set(&[CAP_CHOWN, CAP_FOWNER]))?;
            caps::set(None, CapSet::Ambient, &set(&[CAP_FOWNER]))?;
            caps::set(None, CapSet::Effective, &set(&[CAP_KILL]))?;
            let before = capabilities_now()?;
            ensure!(before[4].len() == 1 && before[2].len() == 2, "{before:?}");
            Ok(Box::new(move |_| {
                for ((set, before), now) in SETS.iter().zip(&before).zip(capabilities_now()?) {
                    ensure!(*before == now, "{set:?}: {now:?}, not {before:?}");
                }
                let keep = call!(libc::prctl(libc::PR_GET_KEEPCAPS))?;
                ensure!(keep == 1, "keepcaps is {keep}");
                Ok(())
            }))
        })?);
    }
    Ok(Box::new(move |_| {
        children.iter_mut().try_for_each(Child::check)
    }))
}

fn securebits() -> Result<Check, Box<dyn Error>> {
    let mut children = Vec::new();
    for bits in [0x2f_i32, 0x04, 0xc1] {
        children.push(Child::fork(move || {
            call!(libc::prctl(libc::PR_SET_SECUREBITS, bits))?;
            Ok(Box::new(move |_| {
                let now = call!(libc::prctl(libc::PR_GET_SECUREBITS))?;
                ensure!(now == bits, "securebits {now:#x}, not {bits:#x}");
                Ok(())
            }))
        })?);
    }
    Ok(Box::new(move |_| {
        children.iter_mut().try_for_each(Child::check)
    }))
}

/// Filters on top of each other, a thread with one more, and no_new_privs.
fn seccomp() -> Result<Check, Box<dyn Error>> {
    let refused = |number: i64| match call!(libc::syscall(number, 0, 0, 0, 0)) {
        Ok(_) => 0,
        Err(error) => errno(&error) as i32,
    };
    call!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
    BpfFilter::refusing(libc::SYS_acct, 77).install()?;
    BpfFilter::refusing(libc::SYS_quotactl, 78).install()?;
    let workers: Vec<Worker> = [79, 80]
        .into_iter()
        .map(|expected| {
            Worker::start(move || {
                BpfFilter::refusing(libc::SYS_swapoff, expected).install()?;
                Ok(move || match refused(libc::SYS_swapoff) {
                    now if now == expected => Ok(()),
                    now => Err(format!("swapoff: {now}, not {expected}")),
                })
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Box::new(move |_| {
        for (number, expected) in [(libc::SYS_acct, 77), (libc::SYS_quotactl, 78)] {
            ensure!(
                refused(number) == expected,
                "call {number}: {}",
                refused(number)
            );
        }
        ensure!(
            !(79..=80).contains(&refused(libc::SYS_swapoff)),
            "a thread's filter spread"
        );
        let set = call!(libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0))?;
        ensure!(set == 1, "no_new_privs is {set}");
        workers.iter().try_for_each(Worker::check)
    }))
}

fn limits() -> Result<Check, Box<dyn Error>> {
    let all = [
        (libc::RLIMIT_NOFILE, 300, 600),
        (libc::RLIMIT_CORE, 0, 0),
        (libc::RLIMIT_STACK, 3 << 20, 9 << 20),
        (libc::RLIMIT_FSIZE, 1 << 30, 1 << 31),
        (libc::RLIMIT_SIGPENDING, 200, 300),
        (libc::RLIMIT_CPU, 1_000_000, 2_000_000),
        (libc::RLIMIT_AS, 1 << 40, 1 << 41),
    ];
    for (which, rlim_cur, rlim_max) in all {
        call!(libc::setrlimit(which, &libc::rlimit { rlim_cur, rlim_max }))?;
    }
    Ok(Box::new(move |_| {
        for (which, soft, hard) in all {
            let mut now = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            call!(libc::getrlimit(which, &mut now))?;
            let now = (now.rlim_cur, now.rlim_max);
            ensure!(now == (soft, hard), "limit {which}: {now:?}");
        }
        Ok(())
    }))
}

/// Policy, niceness and processors, different for each thread.
fn scheduling() -> Result<Check, Box<dyn Error>> {
    let mut workers = Vec::new();
    for (policy, nice, cpu) in [
        (libc::SCHED_OTHER, 0, 0),
        (libc::SCHED_OTHER, 7, 1),
        (libc::SCHED_BATCH, 3, 0),
        (libc::SCHED_IDLE, 0, 1),
    ] {
        workers.push(Worker::start(move || {
            let parameter = libc::sched_param { sched_priority: 0 };
            call!(libc::sched_setscheduler(0, policy, &parameter))?;
            call!(libc::setpriority(libc::PRIO_PROCESS, 0, nice))?;
            let mut set = nix::sched::CpuSet::new();
            let free = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
            let cpu = if free.is_set(cpu)? { cpu } else { 0 };
            set.set(cpu)?;
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
            let slack = 60_000 + nice as u64 * 1000;
            call!(libc::prctl(libc::PR_SET_TIMERSLACK, slack))?;
            let now = move || -> Result<(i32, i32, bool, i32), Box<dyn Error>> {
                let affinity = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
                let policy = call!(libc::sched_getscheduler(0))?;
                let slack = call!(libc::prctl(libc::PR_GET_TIMERSLACK))?;
                let nice = call!(libc::getpriority(libc::PRIO_PROCESS, 0));
                Ok((policy, nice.unwrap_or(-1), affinity == set, slack))
            };
            let before = (policy, nice, true, slack as i32);
            Ok(move || match now() {
                Ok(now) if now == before => Ok(()),
                other => Err(format!(
                    "policy, nice, affinity, slack: {other:?}, not {before:?}"
                )),
            })
        })?);
    }
    Ok(check_all(workers))
}

/// dumpable, umask, oom_score_adj, personality, transparent huge pages, working directory.
fn flags() -> Result<Check, Box<dyn Error>> {
    fs::write("/proc/self/oom_score_adj", "321")?;
    fs::write("/proc/self/coredump_filter", "0x31")?;
    fs::create_dir_all("/somewhere/else")?;
    std::env::set_current_dir("/somewhere/else")?;
    let umask = nix::sys::stat::Mode::from_bits_truncate(0o137);
    nix::sys::stat::umask(umask);
    call!(libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0))?;
    call!(libc::personality(0x0004_0000))?;
    call!(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1))?;
    call!(libc::prctl(libc::PR_SET_DUMPABLE, 0))?;
    Ok(Box::new(move |_| {
        let dumpable = call!(libc::prctl(libc::PR_GET_DUMPABLE))?;
        ensure!(dumpable == 0, "dumpable is {dumpable}");
        let now = nix::sys::stat::umask(umask);
        ensure!(now == umask, "umask is {now:?}");
        let huge = call!(libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0))?;
        ensure!(huge == 1, "huge pages are not off");
        let personality = call!(libc::personality(0xffff_ffff))?;
        ensure!(personality == 0x0004_0000, "personality {personality:#x}");
        let mut reaper = 0_i32;
        call!(libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &mut reaper))?;
        ensure!(reaper == 1, "no subreaper");
        let adjustment = fs::read_to_string("/proc/self/oom_score_adj")?;
        ensure!(adjustment.trim() == "321", "oom_score_adj {adjustment}");
        let here = std::env::current_dir()?;
        ensure!(here.as_os_str() == "/somewhere/else", "in {here:?}");
        Ok(())
    }))
}
