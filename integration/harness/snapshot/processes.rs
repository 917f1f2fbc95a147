//! What /proc shows of one process and of its threads.

use super::{Scribe, fds, namespaces, split_link};
use crate::harness::tools::read;
use std::collections::BTreeMap;
use std::fs;

/// Fields of /proc/PID/stat (numbered from 1, as proc(5) does) that stay.
const STAT_FIELDS: [(usize, &str); 18] = [
    (18, "priority"),
    (19, "nice"),
    (26, "startcode"),
    (27, "endcode"),
    (28, "startstack"),
    (38, "exit_signal"),
    (40, "rt_priority"),
    (41, "policy"),
    (45, "start_data"),
    (46, "end_data"),
    (47, "start_brk"),
    (48, "arg_start"),
    (49, "arg_end"),
    (50, "env_start"),
    (51, "env_end"),
    (52, "exit_code"),
    (20, "threads"),
    (7, "tty"),
];

/// Lines of /proc/PID/status that change by themselves, or that are told elsewhere.
const STATUS_VARIES: [&str; 32] = [
    "State",
    "Tgid",
    "Ngid",
    "Pid",
    "PPid",
    "TracerPid",
    "FDSize",
    "NStgid",
    "NSpid",
    "NSpgid",
    "NSsid",
    "Kthread",
    "VmPeak",
    "VmSize",
    "VmHWM",
    "VmRSS",
    "RssAnon",
    "RssFile",
    "RssShmem",
    "VmData",
    "VmStk",
    "VmExe",
    "VmLib",
    "VmPTE",
    "VmSwap",
    "HugetlbPages",
    "SigQ",
    "x86_Thread_features",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
    "untag_mask",
    "x86_Thread_features_locked",
];

/// Files below /proc/PID that are told whole.
const WHOLE: [&str; 11] = [
    "comm",
    "limits",
    "oom_score_adj",
    "personality",
    "coredump_filter",
    "uid_map",
    "gid_map",
    "setgroups",
    "timerslack_ns",
    "cpuset",
    "projid_map",
];

/// Writes down the process that this host numbers `host_pid`.
pub fn write(scribe: &mut Scribe, host_pid: i32) {
    let proc = format!("/proc/{host_pid}");
    let at = format!("pid {}", scribe.pid(host_pid));
    let Some(status) = read(format!("{proc}/status")) else {
        return;
    };
    write_stat(scribe, &at, &format!("{proc}/stat"));
    if status.lines().any(|line| line.starts_with("State:\tZ")) {
        // Of one that is dead its parent can learn no more than this.
        let told = |line: &&str| {
            ["Name", "PPid", "NS", "State", "Uid"]
                .iter()
                .any(|name| line.starts_with(name))
        };
        let status: Vec<&str> = status.lines().filter(told).collect();
        write_status(scribe, &at, &status.join("\n"));
        return;
    }
    write_status(scribe, &at, &status);
    for file in WHOLE {
        if let Some(text) = read(format!("{proc}/{file}")) {
            scribe.put(format!("{at} {file}"), text.trim().replace('\n', " | "));
        }
    }
    for file in ["cmdline", "environ"] {
        let text = read(format!("{proc}/{file}")).unwrap_or_default();
        scribe.put(format!("{at} {file}"), text.replace('\0', " "));
    }
    let auxv = fs::read(format!("{proc}/auxv")).unwrap_or_default();
    scribe.put(format!("{at} auxv"), format!("{auxv:x?}"));
    for link in ["exe", "cwd", "root"] {
        let target = fs::read_link(format!("{proc}/{link}")).unwrap_or_default();
        scribe.put(format!("{at} {link}"), target.to_string_lossy());
    }
    for kind in [
        "cgroup",
        "ipc",
        "mnt",
        "net",
        "pid",
        "pid_for_children",
        "time",
        "user",
        "uts",
    ] {
        let link = fs::read_link(format!("{proc}/ns/{kind}")).unwrap_or_default();
        let link = link.to_string_lossy().into_owned();
        if let Some((kind, number)) = split_link(&link) {
            let name = scribe.name(&format!("namespace {kind}"), number);
            scribe.put(format!("{at} ns {kind}"), name);
        }
    }
    for line in read(format!("{proc}/cgroup")).unwrap_or_default().lines() {
        if let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] {
            scribe.put(format!("{at} cgroup {controllers}"), path);
        }
    }
    write_timers(scribe, &at, &proc);
    write_areas(scribe, &at, &proc);
    fds::write(scribe, &at, &proc);
    namespaces::write_mounts(scribe, &at, &proc);
    write_threads(scribe, &at, &proc);
}

fn write_status(scribe: &mut Scribe, at: &str, status: &str) {
    for line in status.lines() {
        let Some((field, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        let inner = value.split_whitespace().next_back().unwrap_or_default();
        match field {
            "PPid" => {
                let parent = scribe.pid(value.parse().unwrap_or(0));
                scribe.put(format!("{at} ppid"), parent.to_string());
            }
            "NStgid" | "NSpgid" | "NSsid" => scribe.put(format!("{at} {field}"), inner),
            // Whether it runs or sleeps is chance; stopped, dead and neither are not.
            "State" => {
                let state = if value.starts_with(['T', 'Z', 'X']) {
                    value
                } else {
                    "alive"
                };
                scribe.put(format!("{at} state"), state);
            }
            _ if STATUS_VARIES.contains(&field) => {}
            _ => scribe.put(format!("{at} status {field}"), value),
        }
    }
}

fn write_stat(scribe: &mut Scribe, at: &str, path: &str) {
    let stat = read(path).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return;
    };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    for (number, name) in STAT_FIELDS {
        let value = fields.get(number - 3).copied().unwrap_or_default();
        scribe.put(format!("{at} stat {name}"), value);
    }
    let foreground: i32 = fields
        .get(5)
        .and_then(|text| text.parse().ok())
        .unwrap_or(-1);
    let foreground = if foreground < 0 {
        -1
    } else {
        scribe.pid(foreground)
    };
    scribe.put(format!("{at} stat tpgid"), foreground.to_string());
}

fn write_timers(scribe: &mut Scribe, at: &str, proc: &str) {
    let text = read(format!("{proc}/timers")).unwrap_or_default();
    let mut id = String::new();
    for line in text.lines() {
        let Some((field, value)) = line.split_once(": ") else {
            continue;
        };
        if field == "ID" {
            id = value.to_owned();
        } else if let Some((how, host_pid)) = value.rsplit_once('.') {
            let pid = scribe.pid(host_pid.parse().unwrap_or(0));
            scribe.put(format!("{at} timer {id} {field}"), format!("{how}.{pid}"));
        } else {
            scribe.put(format!("{at} timer {id} {field}"), value);
        }
    }
}

#[derive(PartialEq, Clone)]
struct Area {
    start: u64,
    end: u64,
    perms: String,
    offset: u64,
    name: String,
    flags: String,
}

impl Area {
    /// The kernel joins neighbours when it can, and cannot always when it could have.
    fn is_continued_by(&self, next: &Self) -> bool {
        let follows = if self.name.starts_with('/') {
            self.offset + (self.end - self.start) == next.offset
        } else {
            true
        };
        self.end == next.start
            && follows
            && self.perms == next.perms
            && self.name == next.name
            && self.flags == next.flags
    }
}

fn write_areas(scribe: &mut Scribe, at: &str, proc: &str) {
    let text = read(format!("{proc}/smaps")).unwrap_or_default();
    let mut areas: Vec<Area> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(area) = areas.last_mut() {
                // "ac" says that memory was accounted for: once, when it became writable.
                let kept = flags.split_whitespace().filter(|flag| *flag != "ac");
                area.flags = kept.collect::<Vec<_>>().join(" ");
            }
        } else if let Some(area) = parse_area(line) {
            areas.push(area);
        }
    }
    let mut joined: Vec<Area> = Vec::new();
    for area in areas {
        match joined.last_mut() {
            Some(last) if last.is_continued_by(&area) => last.end = area.end,
            _ => joined.push(area),
        }
    }
    for area in joined {
        scribe.put(
            format!("{at} area {:012x}-{:012x}", area.start, area.end),
            format!(
                "{} {:x} {} [{}]",
                area.perms, area.offset, area.name, area.flags
            ),
        );
    }
}

fn parse_area(line: &str) -> Option<Area> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let perms = words.next()?.to_owned();
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let (_device, inode) = (words.next()?, words.next()?);
    let mut name = words.next().unwrap_or_default().trim().to_owned();
    if name.starts_with("/SYSV") {
        // The inode is the segment's id, which the program knows.
        name = format!("{name} id {inode}");
    }
    Some(Area {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        perms,
        offset,
        name,
        flags: String::new(),
    })
}

fn write_threads(scribe: &mut Scribe, at: &str, proc: &str) {
    let mut threads: BTreeMap<i32, String> = BTreeMap::new();
    for entry in fs::read_dir(format!("{proc}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let task = entry.path().to_string_lossy().into_owned();
        let status = read(format!("{task}/status")).unwrap_or_default();
        let inner = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .and_then(|line| line.split_whitespace().next_back()?.parse().ok());
        if let Some(tid) = inner {
            threads.insert(tid, task);
        }
    }
    for (tid, task) in threads {
        let at = format!("{at} tid {tid}");
        let status = read(format!("{task}/status")).unwrap_or_default();
        write_status(scribe, &at, &status);
        write_stat(scribe, &at, &format!("{task}/stat"));
        scribe.put(
            format!("{at} comm"),
            read(format!("{task}/comm")).unwrap_or_default(),
        );
    }
}
