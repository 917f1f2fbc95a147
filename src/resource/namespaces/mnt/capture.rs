//! The mount tree of a stopped container.
//!
//! First every mount that says for itself what it is becomes a *base*; then each of the others is a
//! part of a base with the same superblock, or begins one.

use super::groups;
use super::order::{below, order};
use super::peel::peel;
use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::PathBytes;
use crate::image::namespaces::mnt::{CgroupDirectory, Content, FileSystem, Mount, Mounts};
use crate::proc::cgroup::Membership;
use crate::proc::maps::Device;
use crate::proc::mountinfo;
use crate::proc::read::Process;
use crate::sys::{ns, statx, xattr};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What the request says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Mount points that lead to the host: by mount point (symbolic links of the container in it are
    /// followed), how the restoring side calls it. Mount points that are none do no harm.
    pub external: BTreeMap<Vec<u8>, String>,
    /// Paths that the runtime has covered with something empty, whatever that is on its host.
    pub masked: BTreeSet<Vec<u8>>,
    /// The container's cgroup paths by the controllers of their hierarchy, as mountinfo shows them
    /// (`freezer`, `cpu,cpuacct`; empty for v2). Those of the first process where there is none.
    pub cgroups: BTreeMap<String, String>,
}

/// A directory whose content is to be stored.
#[derive(Debug)]
pub struct Tree {
    /// Prefix of its pieces.
    pub pieces: String,
    /// Where it was, for messages.
    pub point: PathBytes,
    /// Its root, without what is mounted on it.
    pub root: OwnedFd,
}

/// What was captured.
#[derive(Debug)]
pub struct Captured {
    /// The record.
    pub mounts: Mounts,
    /// Contents to store.
    pub trees: Vec<Tree>,
}

/// File systems that a container can mount for itself and whose content is the kernel's, or is
/// recorded elsewhere.
pub(super) const KERNELS: [&str; 11] = [
    "proc",
    "sysfs",
    "mqueue",
    "devpts",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "fusectl",
    "binfmt_misc",
    "pstore",
];
/// Those that are one and the same everywhere: that the host has them too means nothing.
const SINGLE: [&str; 7] = [
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "fusectl",
    "binfmt_misc",
    "pstore",
];
/// Those that are one per namespace of another kind.
const PER_NAMESPACE: [(&str, ns::Kind); 3] = [
    ("sysfs", ns::Kind::Net),
    ("mqueue", ns::Kind::Ipc),
    ("proc", ns::Kind::Pid),
];
/// Those whose content is stored.
pub(super) const STORED: [&str; 2] = ["tmpfs", "ramfs"];
/// Those that can be taken along only as long as nothing is in them.
pub(super) const EMPTY: [&str; 2] = ["bpf", "hugetlbfs"];
/// What a file system shows among its options but does not take as one.
const NO_OPTIONS: [&[u8]; 2] = [b"rw", b"seclabel"];
/// Character devices that are the same everywhere.
pub(super) const DEVICES: [((u32, u32), &str); 6] = [
    ((1, 3), "null"),
    ((1, 5), "zero"),
    ((1, 7), "full"),
    ((1, 8), "random"),
    ((1, 9), "urandom"),
    ((5, 0), "tty"),
];

/// The mounts of the namespace that process `host_pid`, the container's first, is in. Nothing in it
/// changes: it is taken apart as a copy.
pub fn capture(host_pid: i32, options: &Options, refusals: &mut Refusals) -> Result<Captured> {
    let process = Process::new(host_pid);
    let found = process.mountinfo()?;
    let host = Process::new(std::process::id().cast_signed()).mountinfo()?;
    let root = open(
        &process.path("root"),
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .doing(|| format!("opening the root of process {host_pid}"))?;
    let namespace = ns::open(host_pid, ns::Kind::Mnt)?;
    let root_mount = statx::of(root.as_fd())?.mount;
    let Some(roots) = peel(namespace.as_fd(), root_mount, &found)? else {
        refusals.add(
            "E-MOUNT-ROOT",
            format!("root of process {host_pid}"),
            "the root of its mount namespace is another: it lives in a chroot, or something is \
             mounted over the root",
            "let the runtime use pivot_root",
        );
        return Ok(Captured {
            mounts: Mounts::default(),
            trees: Vec::new(),
        });
    };
    let found: Vec<&mountinfo::Mount> = order(&found).into_iter().map(|at| &found[at]).collect();
    let mut survey = Survey {
        host: &host,
        host_devices: host.iter().map(|one| one.device).collect(),
        shared: shared_namespaces(host_pid),
        cgroups: process.cgroup()?,
        external: resolved(root.as_fd(), &options.external),
        masked: resolved_set(root.as_fd(), &options.masked),
        options,
        roots,
        bases: Vec::new(),
        trees: Vec::new(),
    };
    let assigned = survey.assign(&found, refusals)?;
    let numbers: HashMap<u64, u32> = (0..).zip(&found).map(|(at, one)| (one.id, at)).collect();
    let mut mounts = Mounts {
        mounts: found
            .iter()
            .zip(assigned)
            .map(|(one, (file_system, path))| {
                record(one, numbers.get(&one.parent).copied(), file_system, path)
            })
            .collect(),
        file_systems: survey.bases.into_iter().map(|base| base.what).collect(),
        groups: Vec::new(),
    };
    for (at, reason) in groups::capture(&mut mounts, &found, &host) {
        let remedy = "make it private before the checkpoint";
        refusals.add("E-MOUNT-GROUP", object(found[at]), reason, remedy);
    }
    Ok(Captured {
        mounts,
        trees: survey.trees,
    })
}

fn record(one: &mountinfo::Mount, parent: Option<u32>, file_system: u32, path: PathBytes) -> Mount {
    Mount {
        parent: parent.unwrap_or(0),
        point: PathBytes::from(&one.mount_point),
        file_system,
        path,
        options: one
            .mount_options()
            .filter(|option| option != b"rw")
            .map(|option| String::from_utf8_lossy(&option).into_owned())
            .collect(),
        group: None,
        master: None,
        unbindable: one.unbindable,
    }
}

fn object(one: &mountinfo::Mount) -> String {
    format!(
        "mount of {} at {}",
        PathBytes::from(&one.fs_type),
        PathBytes::from(&one.mount_point)
    )
}

/// Kinds of namespaces that process `host_pid` shares with this one.
fn shared_namespaces(host_pid: i32) -> Vec<ns::Kind> {
    let link = |process: &str, kind: ns::Kind| {
        std::fs::read_link(format!("/proc/{process}/ns/{}", kind.name())).ok()
    };
    ns::Kind::ALL
        .into_iter()
        .filter(|&kind| link(&host_pid.to_string(), kind) == link("self", kind))
        .collect()
}

/// A path in the container as mountinfo has it, without symbolic links.
fn resolve(root: BorrowedFd<'_>, path: &[u8]) -> Vec<u8> {
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    let found = openat2(
        root,
        Path::new(OsStr::from_bytes(relative)),
        OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS),
    );
    let link = found
        .ok()
        .and_then(|fd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok());
    let Some(link) = link.map(|link| link.into_os_string().into_vec()) else {
        return path.to_vec();
    };
    // What is mounted there may be gone from the host.
    match link.strip_suffix(b" (deleted)") {
        Some(point) => point.to_vec(),
        None => link,
    }
}

fn resolved(root: BorrowedFd<'_>, paths: &BTreeMap<Vec<u8>, String>) -> BTreeMap<Vec<u8>, String> {
    let resolve = |(path, name): (&Vec<u8>, &String)| (resolve(root, path), name.clone());
    paths.iter().map(resolve).collect()
}

fn resolved_set(root: BorrowedFd<'_>, paths: &BTreeSet<Vec<u8>>) -> BTreeSet<Vec<u8>> {
    paths.iter().map(|path| resolve(root, path)).collect()
}

/// A superblock, or a part of one, whose meaning is known.
struct Base {
    device: Device,
    /// What its paths begin at.
    root: Vec<u8>,
    /// The parts of it that there are: all below `root`, or the directories whose content is stored.
    covers: Vec<Vec<u8>>,
    what: FileSystem,
}

type Refused = (&'static str, String, &'static str);

struct Survey<'a> {
    host: &'a [mountinfo::Mount],
    host_devices: HashSet<Device>,
    /// Namespaces that the container shares with the host.
    shared: Vec<ns::Kind>,
    cgroups: Vec<Membership>,
    external: BTreeMap<Vec<u8>, String>,
    masked: BTreeSet<Vec<u8>>,
    options: &'a Options,
    /// By id of the mount; what lies on it is gone.
    roots: HashMap<u64, OwnedFd>,
    bases: Vec<Base>,
    trees: Vec<Tree>,
}

impl Survey<'_> {
    /// For each mount which base it shows, and what of it.
    fn assign(
        &mut self,
        found: &[&mountinfo::Mount],
        refusals: &mut Refusals,
    ) -> Result<Vec<(u32, PathBytes)>> {
        let mut assigned: Vec<Option<(u32, PathBytes)>> = vec![None; found.len()];
        for (at, one) in found.iter().enumerate() {
            let what = match self.external.get(&one.mount_point) {
                _ if at == 0 => FileSystem::Root,
                Some(key) => FileSystem::External {
                    key: key.clone(),
                    host_path: self.host_path(one),
                },
                None => continue,
            };
            assigned[at] = Some((self.base(one, &one.root, what), PathBytes::default()));
        }
        // A part comes after the whole.
        let mut rest: Vec<usize> = (0..found.len())
            .filter(|&at| assigned[at].is_none())
            .collect();
        rest.sort_by_key(|&at| (found[at].root.len(), at));
        for at in rest {
            let one = found[at];
            let decided = match self.decide(one)? {
                Ok(decided) => decided,
                Err((code, reason, remedy)) => {
                    refusals.add(code, object(one), reason, remedy);
                    // Something has to stand for it.
                    (
                        self.base(one, &one.root, FileSystem::Root),
                        PathBytes::default(),
                    )
                }
            };
            assigned[at] = Some(decided);
        }
        for one in found {
            if one.mount_options().any(|option| option == b"idmapped") {
                refusals.add(
                    "E-MOUNT-IDMAPPED",
                    object(one),
                    "it maps user and group ids, and the kernel does not tell how",
                    "mount it without X-mount.idmap",
                );
            }
        }
        Ok(assigned.into_iter().flatten().collect())
    }

    fn base(&mut self, one: &mountinfo::Mount, root: &[u8], what: FileSystem) -> u32 {
        let number = u32::try_from(self.bases.len()).unwrap_or(u32::MAX);
        self.bases.push(Base {
            device: one.device,
            root: root.to_vec(),
            covers: vec![one.root.clone()],
            what,
        });
        number
    }

    fn decide(&mut self, one: &mountinfo::Mount) -> Result<Result<(u32, PathBytes), Refused>> {
        if one.is_deleted() || one.mount_point.ends_with(b"//deleted") {
            return Ok(Err((
                "E-MOUNT-DELETED",
                "the directory or file that is mounted there has been deleted".to_owned(),
                "unmount it before the checkpoint",
            )));
        }
        let part = (0..)
            .zip(&self.bases)
            .filter(|(_, base)| base.device == one.device)
            .filter(|(_, base)| {
                base.covers
                    .iter()
                    .any(|top| below(&one.root, top).is_some())
            })
            .filter_map(|(number, base)| Some((number, below(&one.root, &base.root)?)))
            .min_by_key(|(_, path)| path.len());
        if let Some((number, path)) = part {
            return Ok(Ok((number, path.into())));
        }
        let fs_type = String::from_utf8_lossy(&one.fs_type).into_owned();
        if fs_type == "cgroup" || fs_type == "cgroup2" {
            return Ok(self.cgroup(one));
        }
        let is_stored = STORED.contains(&&*fs_type);
        let is_empty = EMPTY.contains(&&*fs_type);
        if self.is_own(one, &fs_type) && (is_stored || is_empty || KERNELS.contains(&&*fs_type)) {
            return self.new_file_system(one, fs_type, is_stored, is_empty);
        }
        self.outside(one, &fs_type)
    }

    /// Whether the container has mounted it itself, as far as can be told.
    fn is_own(&self, one: &mountinfo::Mount, fs_type: &str) -> bool {
        let kind = PER_NAMESPACE.iter().find(|(name, _)| *name == fs_type);
        !self.host_devices.contains(&one.device)
            || SINGLE.contains(&fs_type)
            || kind.is_some_and(|(_, kind)| self.shared.contains(kind))
    }

    fn new_file_system(
        &mut self,
        one: &mountinfo::Mount,
        fs_type: String,
        is_stored: bool,
        is_empty: bool,
    ) -> Result<Result<(u32, PathBytes), Refused>> {
        let root = self.root(one)?;
        if is_empty && !is_empty_directory(root) {
            return Ok(Err((
                "E-MOUNT-CONTENT",
                format!("what is in a file system of type {fs_type} cannot be taken along"),
                "remove it before the checkpoint",
            )));
        }
        let mut options: Vec<PathBytes> = Vec::new();
        for option in one.super_options() {
            if !NO_OPTIONS.contains(&option.as_slice()) {
                options.push(PathBytes(option));
            }
        }
        if fs_type == "proc"
            && let Some(other) = self.bases.iter().find_map(|base| match &base.what {
                FileSystem::New {
                    fs_type, options, ..
                } if fs_type == "proc" => Some(options),
                _ => None,
            })
            && *other != options
        {
            return Ok(Err((
                "E-MOUNT-PROC",
                "another proc of the container has other options".to_owned(),
                "mount it with the same ones",
            )));
        }
        let path = PathBytes::from(below(&one.root, b"/").unwrap_or_default());
        let mut contents = Vec::new();
        if is_stored {
            if statx::of(root)?.mode & libc::S_IFMT != libc::S_IFDIR {
                return Ok(Err((
                    "E-MOUNT-HIDDEN",
                    format!("it is a file of a {fs_type} that is mounted nowhere any more"),
                    "unmount it before the checkpoint",
                )));
            }
            contents.push(self.content(one, path.clone())?);
        }
        let what = FileSystem::New {
            source: PathBytes::from(&one.source),
            options,
            fs_type,
            contents,
        };
        // Where only parts of it are mounted, each brings its own content.
        let again = self.bases.iter().position(|base| {
            base.device == one.device && matches!(&base.what, FileSystem::New { .. })
        });
        let Some(number) = again else {
            return Ok(Ok((self.base(one, b"/", what), path)));
        };
        let base = &mut self.bases[number];
        base.covers.push(one.root.clone());
        if let (FileSystem::New { contents, .. }, FileSystem::New { contents: new, .. }) =
            (&mut base.what, what)
        {
            contents.extend(new);
        }
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Ok((number, path)))
    }

    fn content(&mut self, one: &mountinfo::Mount, path: PathBytes) -> Result<Content> {
        let pieces = format!("files/mount-{}", self.trees.len());
        let root = self.root(one)?.try_clone_to_owned()?;
        let status = statx::of(root.as_fd())?;
        let link = format!("/proc/self/fd/{}", root.as_raw_fd());
        let mut xattrs = Vec::new();
        for name in xattr::list(Path::new(&link))? {
            let value = xattr::get(Path::new(&link), &name)?;
            xattrs.push((PathBytes(name), PathBytes(value)));
        }
        self.trees.push(Tree {
            pieces: pieces.clone(),
            point: PathBytes::from(&one.mount_point),
            root,
        });
        Ok(Content {
            path,
            pieces,
            mode: status.mode & 0o7777,
            uid: status.uid,
            gid: status.gid,
            mtime: status.mtime,
            xattrs,
        })
    }

    fn root(&self, one: &mountinfo::Mount) -> Result<BorrowedFd<'_>> {
        let root = self.roots.get(&one.id);
        root.map(AsFd::as_fd).ok_or_else(|| {
            Error::coded(
                "E-MOUNT-CHANGED",
                Exit::Failure,
                format!("{} was not there a moment ago", object(one)),
                "try again when nobody mounts anything in the container",
            )
        })
    }

    /// Something of the host's, of which only the place is recorded.
    fn outside(
        &mut self,
        one: &mountinfo::Mount,
        fs_type: &str,
    ) -> Result<Result<(u32, PathBytes), Refused>> {
        let status = statx::of(self.root(one)?)?;
        let is_device = status.mode & libc::S_IFMT == libc::S_IFCHR;
        let is_directory = status.mode & libc::S_IFMT == libc::S_IFDIR;
        let what = if is_device && DEVICES.iter().any(|(number, _)| *number == status.rdev) {
            FileSystem::Device {
                major: status.rdev.0,
                minor: status.rdev.1,
            }
        } else if is_directory && self.masked.contains(&one.mount_point) {
            // An empty directory of the runtime's.
            FileSystem::New {
                fs_type: "tmpfs".to_owned(),
                source: PathBytes::from("tmpfs"),
                options: vec![PathBytes::from("ro"), PathBytes::from("mode=755")],
                contents: Vec::new(),
            }
        } else if let Some(host_path) = self.host_path(one) {
            FileSystem::External {
                key: PathBytes::from(&one.mount_point).to_string(),
                host_path: Some(host_path),
            }
        } else {
            return Ok(Err(unknown(fs_type)));
        };
        Ok(Ok((self.base(one, &one.root, what), PathBytes::default())))
    }

    fn cgroup(&mut self, one: &mountinfo::Mount) -> Result<(u32, PathBytes), Refused> {
        let controllers: Vec<String> = if one.fs_type == b"cgroup2" {
            Vec::new()
        } else {
            // Besides controllers there are flags of the mount.
            const FLAGS: [&[u8]; 8] = [
                b"rw",
                b"ro",
                b"xattr",
                b"noprefix",
                b"clone_children",
                b"seclabel",
                b"cpuset_v2_mode",
                b"none",
            ];
            one.super_options()
                .filter(|option| !FLAGS.contains(&option.as_slice()))
                .filter(|option| !option.starts_with(b"release_agent="))
                .map(|option| String::from_utf8_lossy(&option).into_owned())
                .collect()
        };
        let given = self.options.cgroups.get(&controllers.join(","));
        let own = given.map(|path| path.clone().into_bytes()).or_else(|| {
            let same = |member: &&Membership| {
                member.controllers.len() == controllers.len()
                    && controllers.iter().all(|one| member.has(one))
            };
            self.cgroups.iter().find(same).map(|one| one.path.clone())
        });
        // A hierarchy without the container in it is the host's, all of it.
        let directory = match own.as_ref().and_then(|own| below(&one.root, own)) {
            Some(path) => CgroupDirectory::Container(path.into()),
            None if one.root.starts_with(b"/..") => {
                return Err((
                    "E-MOUNT-CGROUP",
                    "it shows cgroups outside of this program's cgroup namespace".to_owned(),
                    "run the checkpoint in the host's cgroup namespace",
                ));
            }
            None => CgroupDirectory::Host(below(&one.root, b"/").unwrap_or_default().into()),
        };
        let what = FileSystem::Cgroup {
            controllers,
            source: PathBytes::from(&one.source),
            directory,
        };
        Ok((self.base(one, &one.root, what), PathBytes::default()))
    }

    /// Where this process sees the same directory.
    fn host_path(&self, one: &mountinfo::Mount) -> Option<PathBytes> {
        self.host.iter().rev().find_map(|host| {
            if host.device != one.device {
                return None;
            }
            let inside = below(&one.root, &host.root)?;
            let mut path = host
                .mount_point
                .strip_suffix(b"/")
                .unwrap_or(&host.mount_point)
                .to_vec();
            if !inside.is_empty() {
                path.push(b'/');
                path.extend_from_slice(inside);
            }
            if path.is_empty() {
                path.push(b'/');
            }
            Some(PathBytes(path))
        })
    }
}

fn unknown(fs_type: &str) -> Refused {
    let (code, reason, remedy) = match fs_type {
        "nsfs" => (
            "E-MOUNT-NAMESPACE",
            "it keeps a namespace, which is not the container's own",
            "unmount it before the checkpoint",
        ),
        "autofs" => (
            "E-MOUNT-KIND",
            "an automounter, which is a process elsewhere, serves it",
            "unmount it, or name it with --external if the restoring side gives it",
        ),
        _ => (
            "E-MOUNT-KIND",
            "only this container has it, and its content cannot be taken along",
            "unmount it, or name it with --external if the restoring side gives it",
        ),
    };
    (
        code,
        format!("a file system of type {fs_type}: {reason}"),
        remedy,
    )
}

fn is_empty_directory(root: BorrowedFd<'_>) -> bool {
    let path = format!("/proc/self/fd/{}", root.as_raw_fd());
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
