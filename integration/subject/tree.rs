//! Who is whose child, leader, and in which state.

use super::sys::{call, fork};
use super::{Check, Child, SetUp, ensure, eventually};
use std::error::Error;
use std::fs;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::time::Duration;

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("tree_children", children),
    ("tree_orphans", orphans),
    ("tree_zombies", zombies),
    ("tree_sessions", sessions),
    ("tree_stopped", stopped),
    ("tree_death_signals", death_signals),
];

/// What getppid, getsid and getpgrp say.
fn relations() -> (i32, i32, i32) {
    let result = || -> std::io::Result<_> {
        Ok((
            call!(libc::getppid())?,
            call!(libc::getsid(0))?,
            call!(libc::getpgrp())?,
        ))
    };
    result().unwrap_or_default()
}

/// A check that this process is still related as it is now.
fn relations_stay() -> Check {
    let before = (std::process::id(), relations());
    Box::new(move |_| {
        let now = (std::process::id(), relations());
        ensure!(
            now == before,
            "pid, (ppid, sid, pgrp): {now:?}, not {before:?}"
        );
        Ok(())
    })
}

/// A check of this process and of `children`.
fn family(mut children: Vec<Child>) -> Check {
    let mut own = relations_stay();
    Box::new(move |gap| {
        own(gap)?;
        children.iter_mut().try_for_each(Child::check)
    })
}

/// Three generations.
fn children() -> Result<Check, Box<dyn Error>> {
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(Child::fork(|| {
            let mut grandchildren = Vec::new();
            for _ in 0..2 {
                grandchildren.push(Child::fork(|| {
                    Ok(family(vec![Child::fork(|| Ok(relations_stay()))?]))
                })?);
            }
            Ok(family(grandchildren))
        })?);
    }
    Ok(family(all))
}

/// Forks a child that forks `count` and exits; waits until all are somebody else's.
fn abandon(count: usize) -> Result<Vec<Child>, Box<dyn Error>> {
    let adopter = std::process::id() as i32;
    let place = format!("/orphans-{adopter}");
    let between = fork()?;
    if between == 0 {
        let between = std::process::id() as i32;
        let orphan = move || -> Result<Check, Box<dyn Error>> {
            // Its answer to the birth has to be given by the one that exits.
            let mut own: Option<Check> = None;
            Ok(Box::new(move |gap| {
                let parent = relations().0;
                ensure!(parent != between, "the parent did not exit");
                own.get_or_insert_with(relations_stay)(gap)
            }))
        };
        let pids: Vec<String> = (0..count)
            .filter_map(|_| Child::fork(orphan).ok())
            .map(|child| child.pid.to_string())
            .collect();
        let _ = fs::write(&place, pids.join(" "));
        std::process::exit(0);
    }
    call!(libc::waitpid(between, null_mut(), 0))?;
    let pids = fs::read_to_string(&place)?;
    let children: Vec<Child> = pids
        .split(' ')
        .filter_map(|pid| pid.parse().ok())
        .map(|pid| Child { pid, asked: 0 })
        .collect();
    ensure!(children.len() == count, "orphans: {pids}");
    for child in &children {
        eventually("adoption", || parent(child.pid) == Some(adopter))?;
    }
    Ok(children)
}

/// Fields of /proc/PID/stat from the state on.
fn stat(pid: i32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split(' ').map(str::to_owned).collect()
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid).get(1)?.parse().ok()
}

fn state(pid: i32) -> String {
    stat(pid).first().cloned().unwrap_or_default()
}

/// Some adopted by the first process, some by a subreaper.
fn orphans() -> Result<Check, Box<dyn Error>> {
    let mut all = abandon(3)?;
    all.push(Child::fork(|| {
        call!(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1))?;
        let mut orphans = family(abandon(2)?);
        Ok(Box::new(move |gap| {
            let mut set = 0_i32;
            call!(libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &mut set))?;
            ensure!(set == 1, "no subreaper any more");
            orphans(gap)
        }))
    })?);
    Ok(family(all))
}

/// Exited and killed.
fn zombies() -> Result<Check, Box<dyn Error>> {
    let mut dead = Vec::new();
    for ending in [0, 7, 255, -libc::SIGKILL, -libc::SIGUSR1] {
        let pid = fork()?;
        if pid == 0 {
            if ending < 0 {
                drop(call!(libc::raise(-ending)));
            }
            std::process::exit(ending);
        }
        eventually("a zombie", || state(pid) == "Z")?;
        dead.push((pid, ending));
    }
    Ok(Box::new(move |_| {
        for (pid, ending) in &dead {
            // SAFETY: zeros are valid, to be overwritten.
            let mut info: libc::siginfo_t = unsafe { zeroed() };
            let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            call!(libc::waitid(libc::P_PID, *pid as u32, &mut info, how))?;
            let (code, status) = (info.si_code, call!(info.si_status())?);
            let expected = match ending {
                0.. => (libc::CLD_EXITED, *ending),
                _ => (libc::CLD_KILLED, -ending),
            };
            ensure!((code, status) == expected, "zombie {pid}: {code}, {status}");
        }
        Ok(())
    }))
}

/// Sessions and groups, with leaders and without.
fn sessions() -> Result<Check, Box<dyn Error>> {
    let mut all = Vec::new();
    all.push(Child::fork(|| {
        call!(libc::setsid())?;
        let mut members = vec![Child::fork(|| Ok(relations_stay()))?];
        members.push(Child::fork(|| {
            call!(libc::setpgid(0, 0))?;
            Ok(family(vec![Child::fork(|| Ok(relations_stay()))?]))
        })?);
        let group = members[1].pid;
        members.push(Child::fork(move || {
            call!(libc::setpgid(0, group))?;
            Ok(relations_stay())
        })?);
        Ok(family(members))
    })?);
    // A session and a group whose leaders are dead.
    let leader = fork()?;
    if leader == 0 {
        let left = || -> Result<Vec<Child>, Box<dyn Error>> {
            call!(libc::setsid())?;
            let mut left = vec![Child::fork(|| Ok(session_stays()))?];
            let between = fork()?;
            if between == 0 {
                call!(libc::setpgid(0, 0))?;
                let member = Child::fork(|| Ok(session_stays()))?;
                fs::write("/member", member.pid.to_string())?;
                std::process::exit(0);
            }
            call!(libc::waitpid(between, null_mut(), 0))?;
            let pid = fs::read_to_string("/member")?.parse()?;
            left.push(Child { pid, asked: 0 });
            Ok(left)
        };
        let pids: Vec<String> = left()
            .unwrap_or_default()
            .iter()
            .map(|child| child.pid.to_string())
            .collect();
        let _ = fs::write("/left", pids.join(" "));
        std::process::exit(0);
    }
    call!(libc::waitpid(leader, null_mut(), 0))?;
    let left = fs::read_to_string("/left")?;
    let left: Vec<Child> = left
        .split(' ')
        .filter_map(|pid| pid.parse().ok())
        .map(|pid| Child { pid, asked: 0 })
        .collect();
    ensure!(left.len() == 2, "{} are left of the session", left.len());
    all.extend(left);
    Ok(family(all))
}

/// Like [`relations_stay`], whoever the parent is.
fn session_stays() -> Check {
    let (_, sid, pgrp) = relations();
    Box::new(move |_| {
        let (_, sid_now, pgrp_now) = relations();
        ensure!(
            (sid_now, pgrp_now) == (sid, pgrp),
            "session {sid_now}, group {pgrp_now}"
        );
        Ok(())
    })
}

/// Whether the parent is told once more that `pid` stopped or continued.
fn is_told(pid: i32, how: i32) -> std::io::Result<bool> {
    // SAFETY: zeros are valid, to be overwritten.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    call!(libc::waitid(
        libc::P_PID,
        pid as u32,
        &mut info,
        how | libc::WNOHANG
    ))?;
    Ok(info.si_signo == libc::SIGCHLD)
}

fn stop(pid: i32, signal: i32) -> super::Verdict {
    call!(libc::kill(pid, signal))?;
    eventually("the stop", || state(pid) == "T")?;
    eventually("word of the stop", || {
        is_told(pid, libc::WSTOPPED).unwrap_or(false)
    })
}

/// Stopped children: they stay so, and nobody is told again.
fn stopped() -> Result<Check, Box<dyn Error>> {
    let mut all = Vec::new();
    for signal in [libc::SIGSTOP, libc::SIGTSTP] {
        let child = Child::fork(|| {
            // In an orphaned process group SIGTSTP stops nobody.
            call!(libc::setpgid(0, 0))?;
            std::thread::spawn(|| std::thread::sleep(Duration::from_secs(1_000_000)));
            Ok(relations_stay())
        })?;
        stop(child.pid, signal)?;
        all.push((child, signal));
    }
    Ok(Box::new(move |_| {
        for (child, signal) in &mut all {
            ensure!(
                state(child.pid) == "T",
                "{} is {}",
                child.pid,
                state(child.pid)
            );
            ensure!(!is_told(child.pid, libc::WSTOPPED)?, "told of a stop again");
            ensure!(!is_told(child.pid, libc::WCONTINUED)?, "told of going on");
            call!(libc::kill(child.pid, libc::SIGCONT))?;
            eventually("word of going on", || {
                is_told(child.pid, libc::WCONTINUED).unwrap_or(false)
            })?;
            child.check()?;
            stop(child.pid, *signal)?;
        }
        Ok(())
    }))
}

/// PR_SET_PDEATHSIG, and a child that ends with another signal than SIGCHLD.
fn death_signals() -> Result<Check, Box<dyn Error>> {
    let mut all = Vec::new();
    for signal in [libc::SIGUSR1, libc::SIGTERM] {
        all.push(Child::fork(move || {
            call!(libc::prctl(libc::PR_SET_PDEATHSIG, signal))?;
            Ok(Box::new(move |_| {
                let mut now = 0_i32;
                call!(libc::prctl(libc::PR_GET_PDEATHSIG, &mut now))?;
                ensure!(now == signal, "parent death signal {now}");
                Ok(())
            }))
        })?);
    }
    let other = call!(libc::syscall(libc::SYS_clone, libc::SIGUSR2, 0, 0, 0, 0))?;
    if other == 0 {
        loop {
            drop(call!(libc::pause()));
        }
    }
    let mut family = family(all);
    Ok(Box::new(move |gap| {
        ensure!(
            parent(other as i32) == Some(std::process::id() as i32),
            "the clone is gone"
        );
        family(gap)
    }))
}
