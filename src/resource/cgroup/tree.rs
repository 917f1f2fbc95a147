//! The subtree of a container: recorded and rebuilt.
//!
//! Of the files of a control group those are recorded that a person or a runtime writes to limit it. The
//! rest counts, tells or acts.

use super::{Cgroups, Hierarchies, Place, Version, read_members};
use crate::error::{Context, Error, Exit, Result};
use crate::image::cgroup::{Cgroup, Group};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files that limit a group, in the order in which they are written: what bounds another comes first.
const SETTINGS: [&str; 29] = [
    "cpuset.cpus",
    "cpuset.mems",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "memory.swappiness",
    "memory.oom_control",
    "memory.max",
    "memory.high",
    "memory.low",
    "memory.min",
    "memory.swap.max",
    "memory.oom.group",
    "cpu.shares",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.rt_period_us",
    "cpu.rt_runtime_us",
    "cpu.weight",
    "cpu.max",
    "cpu.idle",
    "pids.max",
    "blkio.weight",
    "io.weight",
    "io.max",
    "net_cls.classid",
    "net_prio.ifpriomap",
    "devices.list",
    "notify_on_release",
];

fn settings(directory: &Path) -> BTreeMap<String, String> {
    SETTINGS
        .iter()
        .filter_map(|name| {
            let text = fs::read_to_string(directory.join(name)).ok()?;
            Some(((*name).to_owned(), text.trim_end().to_owned()))
        })
        .collect()
}

/// Records the container's own subtrees. `numbers` are its processes: host to container.
pub fn capture(cgroups: &Cgroups, numbers: &BTreeMap<i32, i32>) -> Result<Vec<Cgroup>> {
    cgroups
        .own()?
        .iter()
        .map(|place| subtree(place, numbers))
        .collect()
}

fn subtree(place: &Place, numbers: &BTreeMap<i32, i32>) -> Result<Cgroup> {
    let mut groups = Vec::new();
    for directory in place.subtree()? {
        let doing = || format!("recording the cgroup {}", directory.display());
        let metadata = directory.metadata().doing(doing)?;
        let path = directory
            .strip_prefix(&place.directory)
            .unwrap_or(Path::new(""));
        groups.push(Group {
            path: path.to_string_lossy().into_owned(),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            settings: settings(&directory),
            processes: read_members(&directory.join("cgroup.procs"))
                .doing(doing)?
                .iter()
                .filter_map(|host_pid| numbers.get(host_pid).copied())
                .collect(),
        });
    }
    Ok(Cgroup {
        hierarchy: place.hierarchy.name(),
        path: place.path.clone(),
        groups,
    })
}

/// Control groups that were made, with their processes still to come. Dropped before [`Made::keep`], it
/// removes them.
#[derive(Debug, Default)]
pub struct Made {
    /// Directories of our making, parents before children.
    directories: Vec<PathBuf>,
    /// Directory and who goes there.
    members: Vec<(PathBuf, Vec<i32>)>,
}

/// What becomes of groups that are there, and of those that are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// None may hold a process; all of them get their settings.
    Own,
    /// None may be there.
    Strict,
    /// Those that are not there are made and get their settings.
    Missing,
    /// The same, and those that are there get theirs too.
    All,
    /// All must be there; they get their settings.
    Settings,
    /// All must be there, and are left as they are.
    Join,
}

/// Makes the subtrees again. `rename` replaces the last part of every top that is called so: a container
/// that is restored under another id has groups of that name. E-CGROUP-EXISTS when one is there and holds
/// processes.
pub fn rebuild(records: &[Cgroup], rename: Option<(&str, &str)>) -> Result<Made> {
    rebuild_at(
        records,
        &|record| renamed(&record.path, rename),
        Policy::Own,
    )
}

/// What [`rebuild`] would have to make, parents first.
pub fn missing(records: &[Cgroup], rename: Option<(&str, &str)>) -> Result<Vec<PathBuf>> {
    let hierarchies = Hierarchies::of_this_host()?;
    let mut missing: Vec<PathBuf> = Vec::new();
    for record in records {
        let hierarchy = hierarchies
            .0
            .iter()
            .find(|one| one.name() == record.hierarchy);
        let path = renamed(&record.path, rename);
        let Some(top) = hierarchy.and_then(|hierarchy| hierarchy.directory(&path)) else {
            continue;
        };
        for group in &record.groups {
            let directory = top.join(&group.path);
            let absent = directory.ancestors().take_while(|above| !above.exists());
            let mut absent: Vec<PathBuf> = absent.map(Path::to_owned).collect();
            absent.reverse();
            for path in absent {
                if !missing.contains(&path) {
                    missing.push(path);
                }
            }
        }
    }
    Ok(missing)
}

/// Makes the subtrees again, each where `top` says (from the root of its hierarchy).
pub fn rebuild_at(
    records: &[Cgroup],
    top: &dyn Fn(&Cgroup) -> String,
    policy: Policy,
) -> Result<Made> {
    let hierarchies = Hierarchies::of_this_host()?;
    let mut made = Made::default();
    for record in records {
        let Some(hierarchy) = hierarchies
            .0
            .iter()
            .find(|one| one.name() == record.hierarchy)
        else {
            tracing::warn!("this host has no cgroup hierarchy {}", record.hierarchy);
            continue;
        };
        let path = top(record);
        let Some(top) = hierarchy.directory(&path) else {
            return Err(Error::coded(
                "E-CGROUP-PATH",
                Exit::Host,
                format!(
                    "{path} cannot be reached in the hierarchy {}",
                    record.hierarchy
                ),
                "mount the whole hierarchy",
            ));
        };
        for group in &record.groups {
            if Path::new(&group.path)
                .components()
                .any(|part| !matches!(part, std::path::Component::Normal(_)))
            {
                return Err(Error::coded(
                    "E-IMAGE-CGROUP",
                    Exit::Image,
                    format!("{:?} leads out of the container's cgroup", group.path),
                    "the image is damaged",
                ));
            }
            let directory = top.join(&group.path);
            let directory = if group.path.is_empty() {
                top.clone()
            } else {
                directory
            };
            made.group(&directory, group, hierarchy.version, policy)
                .doing(|| format!("making the cgroup {}", directory.display()))?;
        }
    }
    Ok(made)
}

fn renamed(path: &str, rename: Option<(&str, &str)>) -> String {
    match (rename, path.rsplit_once('/')) {
        (Some((old, new)), Some((above, last))) if last == old && old != new => {
            format!("{above}/{new}")
        }
        _ => path.to_owned(),
    }
}

impl Made {
    fn group(
        &mut self,
        directory: &Path,
        group: &Group,
        version: Version,
        policy: Policy,
    ) -> Result<()> {
        let there = directory.exists();
        let refused =
            |code, reason: &str, remedy: &str| Err(Error::coded(code, Exit::Host, reason, remedy));
        match policy {
            Policy::Own if !read_members(&directory.join("cgroup.procs"))?.is_empty() => {
                return refused(
                    "E-CGROUP-EXISTS",
                    "it holds processes",
                    "end the container that has it, or restore under another id (--id)",
                );
            }
            Policy::Strict if there => {
                return refused(
                    "E-CGROUP-EXISTS",
                    "it is there already",
                    "remove it, or use another mode of managing cgroups than strict",
                );
            }
            Policy::Settings | Policy::Join if !there => {
                return refused(
                    "E-CGROUP-MISSING",
                    "it is not there",
                    "make it, or use the mode soft of managing cgroups",
                );
            }
            _ => {}
        }
        let set = match policy {
            Policy::Missing => !there,
            Policy::Join => false,
            Policy::Own | Policy::Strict | Policy::All | Policy::Settings => true,
        };
        self.make(directory)?;
        if !group.processes.is_empty() {
            self.members
                .push((directory.to_owned(), group.processes.clone()));
        }
        if set {
            apply(directory, group, version)?;
        }
        Ok(())
    }

    fn make(&mut self, directory: &Path) -> Result<()> {
        let mut missing: Vec<&Path> = directory
            .ancestors()
            .take_while(|above| !above.exists())
            .collect();
        while let Some(next) = missing.pop() {
            fs::create_dir(next).doing(|| format!("making {}", next.display()))?;
            self.directories.push(next.to_owned());
            inherit_cpuset(next)?;
        }
        Ok(())
    }

    /// Moves a process that was just born to its groups; what it forks is born there.
    pub fn enter(&self, pid: i32, host_pid: i32) -> Result<()> {
        for (directory, members) in &self.members {
            if members.contains(&pid) {
                move_to(directory, host_pid)?;
            }
        }
        Ok(())
    }

    /// The container goes on: its groups stay.
    pub fn keep(mut self) {
        self.directories.clear();
    }
}

/// Gives a group what was recorded of it.
fn apply(directory: &Path, group: &Group, version: Version) -> Result<()> {
    let new = settings(directory);
    for name in SETTINGS {
        let Some(value) = group.settings.get(name) else {
            continue;
        };
        if new.get(name) != Some(value) && !value.is_empty() {
            write(directory, name, value)?;
        }
    }
    if version == Version::V1 {
        inherit_cpuset(directory)?;
    }
    std::os::unix::fs::chown(directory, Some(group.uid), Some(group.gid))?;
    Ok(())
}

fn move_to(directory: &Path, host_pid: i32) -> Result<()> {
    let path = directory.join("cgroup.procs");
    fs::write(&path, host_pid.to_string())
        .doing(|| format!("moving process {host_pid} to {}", directory.display()))
}

impl Drop for Made {
    fn drop(&mut self) {
        for directory in self.directories.iter().rev() {
            // The processes may need a moment to be gone.
            for _ in 0..100 {
                match fs::remove_dir(directory) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// A new group of v1's cpuset has no processors, and takes no process.
fn inherit_cpuset(directory: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = directory.join(name);
        let Ok(text) = fs::read_to_string(&file) else {
            return Ok(());
        };
        let above = directory.parent().map(|parent| parent.join(name));
        if text.trim().is_empty()
            && let Some(Ok(inherited)) = above.map(fs::read_to_string)
            && !inherited.trim().is_empty()
        {
            fs::write(&file, inherited.trim())
                .doing(|| format!("writing {} to {}", inherited.trim(), file.display()))?;
        }
    }
    Ok(())
}

/// Writes a setting as it was read. One that this host cannot give is said, and the container goes on
/// without: it is a limit of what it may use, not a part of what it is.
fn write(directory: &Path, name: &str, value: &str) -> Result<()> {
    let put = |file: &str, text: &str| fs::write(directory.join(file), text);
    let result = match name {
        "devices.list" => put("devices.deny", "a").and_then(|()| {
            value
                .lines()
                .try_for_each(|line| put("devices.allow", line))
        }),
        "memory.oom_control" => {
            let disable = value
                .lines()
                .find_map(|line| line.strip_prefix("oom_kill_disable "));
            disable.map_or(Ok(()), |flag| put(name, flag))
        }
        "io.max" | "net_prio.ifpriomap" => value.lines().try_for_each(|line| put(name, line)),
        _ => put(name, value),
    };
    if let Err(error) = result {
        tracing::warn!(
            "setting {name} of {} to {:?}: {error}",
            directory.display(),
            value
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_a_path_is_renamed() {
        let rename = Some(("a", "b"));
        assert_eq!(renamed("/docker/a", rename), "/docker/b");
        assert_eq!(renamed("/a/c", rename), "/a/c");
        assert_eq!(renamed("/a", None), "/a");
    }

    #[test]
    fn groups_are_made_with_their_settings_and_removed_again() {
        let name = format!("ocimig-unit-{}", std::process::id());
        let record = |hierarchy: &str, settings: &[(&str, &str)]| Cgroup {
            hierarchy: hierarchy.into(),
            path: format!("/{name}"),
            groups: ["", "below"]
                .map(|path| Group {
                    path: path.into(),
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                    settings: settings
                        .iter()
                        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                        .collect(),
                    processes: Vec::new(),
                })
                .to_vec(),
        };
        let records = [record("pids", &[("pids.max", "77")])];
        let made = rebuild(&records, None).unwrap();
        let top = made.directories.first().unwrap().clone();
        let read = fs::read_to_string(top.join("below/pids.max")).unwrap();
        assert_eq!(read.trim(), "77");
        drop(made);
        assert!(!top.exists());
        let mut evil = records[0].clone();
        evil.groups[1].path = "../elsewhere".into();
        assert_eq!(rebuild(&[evil], None).unwrap_err().code(), "E-IMAGE-CGROUP");
        assert!(!top.exists());
    }
}
