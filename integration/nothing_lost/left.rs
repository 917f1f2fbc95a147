//! What must not be left behind.

use crate::harness::{Container, mounts_below, read};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Waits a moment for what has to be so soon; `look` says what is not.
fn soon(what: &str, mut look: impl FnMut() -> Vec<String>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let wrong = look();
        if wrong.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {wrong:#?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Nobody is frozen, stopped or traced.
pub fn assert_free(container: &Container, what: &str) {
    soon(what, || {
        let mut wrong = Vec::new();
        for host_pid in container.host_pids() {
            for task in directories(Path::new(&format!("/proc/{host_pid}/task"))) {
                let status = read(task.join("status")).unwrap_or_default();
                for line in status.lines() {
                    let traced = line.starts_with("TracerPid:") && !line.ends_with("\t0");
                    let stopped = line.starts_with("State:\tt") || line.starts_with("State:\tT");
                    if traced || stopped {
                        wrong.push(format!("{}: {line}", task.display()));
                    }
                }
            }
            wrong.extend(frozen(host_pid));
        }
        wrong
    });
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The frozen cgroups of a process.
fn frozen(host_pid: i32) -> Vec<String> {
    let mut wrong = Vec::new();
    let groups = read(format!("/proc/{host_pid}/cgroup")).unwrap_or_default();
    for line in groups.lines() {
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else {
            continue;
        };
        let (file, bad) = match controllers {
            "freezer" => (format!("/sys/fs/cgroup/freezer{path}/freezer.state"), "FR"),
            "" => (
                format!("/sys/fs/cgroup/unified{path}/cgroup.events"),
                "frozen 1",
            ),
            _ => continue,
        };
        let state = read(&file).unwrap_or_default();
        if state.contains(bad) {
            wrong.push(format!("{file}: {state}"));
        }
    }
    wrong
}

/// No process has `mark` in its environment, but for those of `container`.
pub fn assert_no_process(mark: &str, container: Option<&Container>, what: &str) {
    soon(what, || {
        let own = container.map(Container::host_pids).unwrap_or_default();
        let marked = marked(mark).into_iter().filter(|pid| !own.contains(pid));
        marked.map(describe).collect()
    });
}

/// The processes with `mark` in their environment.
pub fn marked(mark: &str) -> Vec<i32> {
    let wanted = format!("MARK={mark}");
    let mut found = Vec::new();
    for process in directories(Path::new("/proc")) {
        let environ = fs::read(process.join("environ")).unwrap_or_default();
        let is_marked = environ
            .split(|byte| *byte == 0)
            .any(|word| word == wanted.as_bytes());
        let name = process.file_name().and_then(|name| name.to_str());
        if let (true, Some(pid)) = (is_marked, name.and_then(|name| name.parse().ok())) {
            found.push(pid);
        }
    }
    found
}

fn describe(pid: i32) -> String {
    let comm = read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let status = read(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find(|line| line.starts_with("State:"));
    format!(
        "process {pid} {} {}",
        comm.trim(),
        state.unwrap_or_default()
    )
}

/// Nothing of a restore into `bundle` under `id` is left: no process, no mount, no namespace, no
/// cgroup, no directory.
pub fn assert_nothing(mark: &str, bundle: &Path, id: &str, what: &str) {
    assert_no_process(mark, None, what);
    soon(what, || {
        let mut wrong = Vec::new();
        if bundle.exists() {
            wrong.push(format!("{} is there", bundle.display()));
        }
        for mount in mounts_below(bundle) {
            wrong.push(format!("{} is mounted", mount.display()));
        }
        wrong.extend(in_namespaces_with(bundle));
        for hierarchy in directories(Path::new("/sys/fs/cgroup")) {
            wrong.extend(groups_called(&hierarchy, id, 3));
        }
        wrong
    });
}

/// Processes of another mount namespace that see `bundle`: those would keep it alive.
fn in_namespaces_with(bundle: &Path) -> Vec<String> {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let text = bundle.to_string_lossy();
    let mut wrong = Vec::new();
    for process in directories(Path::new("/proc")) {
        let other = fs::read_link(process.join("ns/mnt")).ok();
        if other.is_none() || other == own {
            continue;
        }
        let mounts = read(process.join("mountinfo")).unwrap_or_default();
        if mounts.contains(&*text) {
            wrong.push(format!("{} sees the bundle", process.display()));
        }
    }
    wrong
}

fn groups_called(place: &Path, id: &str, depth: u32) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name() == id {
            found.push(format!("the cgroup {}", entry.path().display()));
        } else if depth > 0 {
            found.extend(groups_called(&entry.path(), id, depth - 1));
        }
    }
    found
}

/// Nothing is in a directory but `allowed`.
pub fn assert_only(directory: &Path, allowed: &[&str], what: &str) {
    let names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !allowed.contains(&name.as_str()))
        .collect();
    assert!(names.is_empty(), "{what}: {names:?} was left behind");
}
