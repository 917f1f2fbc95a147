//! Control groups: where a container sits in every hierarchy, which processes are in its subtree,
//! how it is frozen, and how the subtree is recorded and rebuilt.
//!
//! The container's own subtree is all that is ever looked at: on hosts with many thousand stale
//! cgroups a walk from the root of a hierarchy takes minutes.

pub mod freezer;
pub mod tree;

use crate::error::{Context, Error, Exit, Result};
use crate::proc::unescape_octal;
use crate::sys::nsfs;
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The two interfaces that Linux has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// One hierarchy per controller (or several).
    V1,
    /// The unified hierarchy.
    V2,
}

/// One mounted hierarchy of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Which interface.
    pub version: Version,
    /// What is bound to it: `["cpu", "cpuacct"]`, `["name=systemd"]`; empty for v2.
    pub controllers: Vec<String>,
    /// Where it is mounted here.
    pub mount_point: PathBuf,
    /// The cgroup that the mount shows, `/` for the whole hierarchy.
    pub root: String,
}

impl Hierarchy {
    /// The directory of the cgroup `path`; `None` when the mount does not show it, or when it lies
    /// above this process's cgroup namespace.
    pub fn directory(&self, path: &str) -> Option<PathBuf> {
        if path.split('/').any(|part| part == "..") {
            return None;
        }
        let below = if self.root == "/" {
            path
        } else {
            path.strip_prefix(&self.root)
                .filter(|rest| rest.is_empty() || rest.starts_with('/'))?
        };
        Some(self.mount_point.join(below.trim_start_matches('/')))
    }

    /// `cpu,cpuacct`, `name=systemd`, or `unified`.
    pub fn name(&self) -> String {
        match self.version {
            Version::V1 => self.controllers.join(","),
            Version::V2 => "unified".into(),
        }
    }
}

/// The hierarchies that are mounted on this host.
#[derive(Debug, Clone, Default)]
pub struct Hierarchies(pub Vec<Hierarchy>);

impl Hierarchies {
    /// Reads /proc/self/mountinfo.
    pub fn of_this_host() -> Result<Self> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read_to_string(path).doing(|| format!("reading {path}"))?;
        Ok(Self::parse(&text))
    }

    /// Finds the cgroup mounts in the text of a mountinfo file. A hierarchy that is mounted more
    /// than once counts once, by the mount that shows most of it.
    pub fn parse(mountinfo: &str) -> Self {
        let mut found: Vec<Hierarchy> = Vec::new();
        for hierarchy in mountinfo.lines().filter_map(parse_mount) {
            let known = found.iter_mut().find(|known| {
                known.version == hierarchy.version && known.controllers == hierarchy.controllers
            });
            match known {
                Some(known) if known.root.len() > hierarchy.root.len() => *known = hierarchy,
                Some(_) => {}
                None => found.push(hierarchy),
            }
        }
        Self(found)
    }

    /// The hierarchy of a line of /proc/PID/cgroup.
    fn of_line(&self, line: &Line) -> Option<&Hierarchy> {
        self.0.iter().find(|hierarchy| {
            if line.controllers.is_empty() {
                hierarchy.version == Version::V2
            } else {
                hierarchy.version == Version::V1
                    && line
                        .controllers
                        .iter()
                        .all(|one| hierarchy.controllers.contains(one))
            }
        })
    }
}

/// Mount options that say how, not what.
const NOT_CONTROLLERS: [&str; 8] = [
    "rw",
    "ro",
    "xattr",
    "noprefix",
    "clone_children",
    "cpuset_v2_mode",
    "none",
    "favordynmods",
];

fn parse_mount(line: &str) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, mount_point) = (mount.next()?, mount.next()?);
    let mut file_system = file_system.split(' ');
    let version = match file_system.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let controllers = match version {
        Version::V2 => Vec::new(),
        Version::V1 => file_system
            .nth(1)?
            .split(',')
            .filter(|option| {
                !NOT_CONTROLLERS.contains(option) && !option.starts_with("release_agent=")
            })
            .map(String::from)
            .collect(),
    };
    Some(Hierarchy {
        version,
        controllers,
        mount_point: unescape(mount_point).into(),
        root: unescape(root),
    })
}

/// mountinfo writes blanks, tabs, newlines and backslashes as `\040` and so on. Names of cgroups and
/// of their mount points that are not UTF-8 are nobody's.
fn unescape(text: &str) -> String {
    String::from_utf8_lossy(&unescape_octal(text.as_bytes())).into_owned()
}

/// One line of /proc/PID/cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    /// Empty for v2.
    controllers: Vec<String>,
    path: String,
}

fn parse_lines(text: &str) -> Vec<Line> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            let path = fields.next()?;
            Some(Line {
                controllers: controllers
                    .split(',')
                    .filter(|one| !one.is_empty())
                    .map(String::from)
                    .collect(),
                path: path.strip_suffix(" (deleted)").unwrap_or(path).into(),
            })
        })
        .collect()
}

fn lines_of(process: &str) -> Result<Vec<Line>> {
    let path = format!("/proc/{process}/cgroup");
    let text = std::fs::read_to_string(&path).doing(|| format!("reading {path}"))?;
    Ok(parse_lines(&text))
}

/// One cgroup in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The hierarchy.
    pub hierarchy: Hierarchy,
    /// The path in it, as /proc/PID/cgroup says it: `/`, `/docker/ID`.
    pub path: String,
    /// The directory on this host.
    pub directory: PathBuf,
}

impl Place {
    fn new(hierarchy: &Hierarchy, path: &str) -> Option<Self> {
        Some(Self {
            hierarchy: hierarchy.clone(),
            path: path.into(),
            directory: hierarchy.directory(path)?,
        })
    }

    /// The root of a hierarchy belongs to the host, never to a container.
    pub fn is_root(&self) -> bool {
        self.path == "/"
    }

    /// Every cgroup of the subtree, this one first, parents before children.
    pub fn subtree(&self) -> Result<Vec<PathBuf>> {
        subtree(&self.directory)
    }

    /// Every process of the subtree, as this host numbers them.
    pub fn processes(&self) -> Result<BTreeSet<i32>> {
        self.members("cgroup.procs")
    }

    /// Every thread of the subtree, as this host numbers them.
    pub fn threads(&self) -> Result<BTreeSet<i32>> {
        self.members(match self.hierarchy.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        })
    }

    fn members(&self, file: &str) -> Result<BTreeSet<i32>> {
        let mut members = BTreeSet::new();
        for directory in self.subtree()? {
            members.extend(read_members(&directory.join(file))?);
        }
        Ok(members)
    }
}

/// The cgroups below and including `top`, parents before children.
fn subtree(top: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![top.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next).cloned() {
        next += 1;
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Removed while we look: it held nothing any more.
            Err(error) if next > 1 && error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).doing(|| format!("listing {}", directory.display())),
        };
        let mut children = Vec::new();
        for entry in entries {
            let Ok(entry) = entry else { break };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                children.push(entry.path());
            }
        }
        children.sort();
        found.extend(children);
    }
    Ok(found)
}

/// The numbers in a `cgroup.procs`, `tasks` or `cgroup.threads` file. None when the cgroup is gone,
/// or is a threaded one, whose processes the domain above lists.
fn read_members(file: &Path) -> Result<Vec<i32>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error)
            if matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP)
            ) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error).doing(|| format!("reading {}", file.display())),
    }
}

/// The cgroups of one container, one place per hierarchy.
#[derive(Debug, Clone)]
pub struct Cgroups {
    /// The top of the container's subtree in each hierarchy; where the container has none of its
    /// own, the cgroup that it shares with others.
    pub places: Vec<Place>,
    /// The init process that these were found for, as this host numbers it.
    pub host_pid: i32,
}

impl Cgroups {
    /// The cgroups of the container whose init is `host_pid`. `known` are tops that its runtime
    /// recorded (paths in the hierarchy: `/docker/ID`); a hierarchy without one gets the deepest
    /// cgroup that holds init and all of `members` (other processes of the container, as this
    /// host numbers them): init may have moved itself into a cgroup of its own, as systemd does.
    pub fn of_container(host_pid: i32, known: &[String], members: &[i32]) -> Result<Self> {
        let hierarchies = Hierarchies::of_this_host()?;
        let mut tops = lines_of(&host_pid.to_string())?;
        for top in &mut tops {
            let recorded = known
                .iter()
                .filter(|path| path.len() > 1 && is_below(&top.path, path))
                .max_by_key(|path| path.len());
            if let Some(path) = recorded {
                top.path.clone_from(path);
                continue;
            }
            for member in members {
                // A process that ended meanwhile is in no cgroup.
                let Ok(lines) = lines_of(&member.to_string()) else {
                    continue;
                };
                let line = lines.iter().find(|one| one.controllers == top.controllers);
                if let Some(line) = line {
                    top.path = common(&top.path, &line.path);
                }
            }
        }
        let places = tops
            .iter()
            .filter_map(|line| Place::new(hierarchies.of_line(line)?, &line.path))
            .collect();
        Ok(Self { places, host_pid })
    }

    /// The places that are the container's own: not a root, and holding no process of another pid
    /// namespace (those nested in the container's count as its own).
    pub fn own(&self) -> Result<Vec<Place>> {
        let namespace = PidNamespace::of(self.host_pid)?;
        let mut own = Vec::new();
        for place in self.places.iter().filter(|place| !place.is_root()) {
            if namespace.holds_all(place)? {
                own.push(place.clone());
            }
        }
        Ok(own)
    }

    /// Every process in the container's own subtrees, as this host numbers them, and the container's
    /// pid namespace holds them all.
    pub fn processes(&self) -> Result<BTreeSet<i32>> {
        let mut processes = BTreeSet::new();
        for place in self.own()? {
            processes.extend(place.processes()?);
        }
        Ok(processes)
    }
}

/// Whether the cgroup `path` is `top` or lies below it.
fn is_below(path: &str, top: &str) -> bool {
    top == "/"
        || path
            .strip_prefix(top)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The deepest cgroup that both paths lie in.
fn common(first: &str, second: &str) -> String {
    let shared: Vec<&str> = first
        .split('/')
        .zip(second.split('/'))
        .take_while(|(one, other)| one == other)
        .map(|(one, _)| one)
        .collect();
    match shared.join("/") {
        path if path.is_empty() => "/".into(),
        path => path,
    }
}

/// A pid namespace, to ask who is in it.
struct PidNamespace {
    device: u64,
    inode: u64,
}

impl PidNamespace {
    fn of(host_pid: i32) -> Result<Self> {
        let path = format!("/proc/{host_pid}/ns/pid");
        let metadata = std::fs::metadata(&path).doing(|| format!("looking at {path}"))?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Whether the process is in this namespace or in one nested in it. A process that is gone, or
    /// a zombie that has left its namespaces, disturbs nobody: yes.
    fn holds(&self, host_pid: i32) -> Result<bool> {
        let path = format!("/proc/{host_pid}/ns/pid");
        let mut namespace = match File::open(&path) {
            Ok(file) => file,
            Err(error)
                if matches!(
                    error.raw_os_error().map(Errno::from_raw),
                    Some(Errno::ENOENT | Errno::ESRCH)
                ) =>
            {
                return Ok(true);
            }
            Err(error) => return Err(error).doing(|| format!("opening {path}")),
        };
        loop {
            let metadata = namespace
                .metadata()
                .doing(|| format!("looking at {path}"))?;
            if (metadata.dev(), metadata.ino()) == (self.device, self.inode) {
                return Ok(true);
            }
            match nsfs::parent(namespace.as_fd()).doing(|| format!("asking for {path}'s parent"))? {
                Some(parent) => namespace = File::from(parent),
                None => return Ok(false),
            }
        }
    }

    /// Whether all processes of the place's subtree are in this namespace. Asked again for a short
    /// while where not: `runc exec` puts a process into the cgroup a moment before it enters the
    /// pid namespace.
    fn holds_all(&self, place: &Place) -> Result<bool> {
        for attempt in 0..10 {
            if attempt > 0 {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            let mut stranger = false;
            for host_pid in place.processes()? {
                stranger |= !self.holds(host_pid)?;
            }
            if !stranger {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Refuses when this process is itself in the subtree of `place`: it would freeze itself.
fn refuse_self(place: &Place) -> Result<()> {
    let inside = lines_of("self")?.iter().any(|line| {
        Hierarchies(vec![place.hierarchy.clone()])
            .of_line(line)
            .is_some()
            && is_below(&line.path, &place.path)
    });
    if inside {
        return Err(Error::coded(
            "E-SELF-FREEZE",
            Exit::Usage,
            format!(
                "this process is itself in the container's cgroup {} and would stop with it",
                place.directory.display()
            ),
            "run ocimig outside of the container",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
90 31 0:34 /docker/1 /run/a\\040b rw,relatime - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hierarchies_are_found_once_each_with_their_controllers() {
        let found = Hierarchies::parse(HYBRID).0;
        let names: Vec<_> = found.iter().map(Hierarchy::name).collect();
        assert_eq!(names, ["cpu,cpuacct", "freezer", "name=systemd", "unified"]);
        assert_eq!(found[1].root, "/");
    }

    #[test]
    fn a_mount_that_shows_a_part_translates_paths_or_says_it_cannot() {
        let hierarchy = Hierarchy {
            version: Version::V1,
            controllers: vec!["freezer".into()],
            mount_point: "/m".into(),
            root: "/docker".into(),
        };
        assert_eq!(hierarchy.directory("/docker/1"), Some("/m/1".into()));
        assert_eq!(hierarchy.directory("/docker"), Some("/m".into()));
        assert_eq!(hierarchy.directory("/docker2"), None);
        assert_eq!(hierarchy.directory("/../x"), None);
    }

    #[test]
    fn lines_of_all_kinds_are_read() {
        let lines = parse_lines("9:name=systemd:/a:b\n3:cpu,cpuacct:/x (deleted)\n0::/\nnonsense");
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].path, "/a:b");
        assert_eq!(lines[1].path, "/x");
        assert!(lines[2].controllers.is_empty());
    }

    #[test]
    fn the_common_cgroup_is_a_whole_path() {
        assert_eq!(common("/a/b", "/a/bc"), "/a");
        assert_eq!(common("/a/b", "/c"), "/");
        assert_eq!(common("/a/b", "/a/b/c"), "/a/b");
        assert_eq!(common("/", "/a"), "/");
        assert!(is_below("/a/b", "/a") && !is_below("/ab", "/a") && is_below("/a", "/"));
    }

    #[test]
    fn the_cgroups_of_a_process_that_shares_its_pid_namespace_with_others_are_not_its_own() {
        let cgroups = Cgroups::of_container(std::process::id() as i32, &[], &[1]).unwrap();
        assert!(!cgroups.places.is_empty());
        for place in cgroups.own().unwrap() {
            assert!(!place.is_root(), "{place:?}");
        }
    }
}
