//! The mount tree of a stopped container.

use crate::error::{Context, Refusals, Result};
use crate::image::PathBytes;
use crate::image::namespaces::mnt::{Content, Mount, Mounts, What};
use crate::proc::mountinfo;
use crate::proc::read::Process;
use crate::sys::{mount, ns, statx};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What the request says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Mount points that lead to the host: by mount point, how the restoring side calls it.
    pub external: BTreeMap<Vec<u8>, String>,
    /// The container's cgroup paths by the controllers of their hierarchy, as mountinfo shows them
    /// (`freezer`, `cpu,cpuacct`; empty for v2).
    pub cgroups: BTreeMap<String, String>,
}

/// A file system whose content is to be stored.
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

/// File systems that a container can mount for itself and whose content is the kernel's.
const KERNELS: [&str; 12] = [
    "proc",
    "sysfs",
    "mqueue",
    "devpts",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "fusectl",
    "bpf",
    "binfmt_misc",
    "pstore",
];
/// Those that are one and the same everywhere, or one per namespace of another kind: that the host has
/// them too means nothing.
const SINGLE: [&str; 9] = [
    "sysfs",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "fusectl",
    "binfmt_misc",
    "pstore",
    "mqueue",
];

/// The mounts that process `host_pid`, the container's first, sees.
pub fn capture(host_pid: i32, options: &Options, refusals: &mut Refusals) -> Result<Captured> {
    let found = Process::new(host_pid).mountinfo()?;
    let own = Process::new(std::process::id().cast_signed()).mountinfo()?;
    let order = in_order(&found);
    let mut walk = Walk {
        host: &own,
        host_devices: own.iter().map(|one| one.device).collect(),
        options,
        found: &found,
        order: &order,
        numbers: order
            .iter()
            .enumerate()
            .map(|(number, one)| (one.id, number as u32))
            .collect(),
        mounts: Vec::with_capacity(order.len()),
        trees: Vec::new(),
        refusals,
    };
    for number in 0..order.len() {
        walk.mount(number)?;
    }
    let roots = roots_of(host_pid, &walk.trees)?;
    let mut mounts = Mounts {
        mounts: walk.mounts,
    };
    let mut trees = Vec::new();
    for ((number, pieces, point), root) in walk.trees.into_iter().zip(roots) {
        let status = statx::of(root.as_fd())?;
        if let What::New { content, .. } = &mut mounts.mounts[number].what {
            *content = Some(Content {
                pieces: pieces.clone(),
                mode: status.mode & 0o7777,
                uid: status.uid,
                gid: status.gid,
            });
        }
        trees.push(Tree {
            pieces,
            point: point.as_slice().into(),
            root,
        });
    }
    Ok(Captured { mounts, trees })
}

/// The first in the list, which is in the order in which they were mounted (since Linux 6.8; before, it
/// is that of the tree), that has what `found` shows a part of.
fn owner<'m>(
    list: &'m [mountinfo::Mount],
    found: &mountinfo::Mount,
) -> Option<&'m mountinfo::Mount> {
    list.iter()
        .take_while(|other| other.id != found.id)
        .find(|other| other.device == found.device && below(&found.root, &other.root).is_some())
}

/// In an order in which they can be made: after what they lie on and what they show a part of.
fn in_order(found: &[mountinfo::Mount]) -> Vec<mountinfo::Mount> {
    let known: HashSet<u64> = found.iter().map(|one| one.id).collect();
    let mut placed: HashSet<u64> = HashSet::new();
    let mut order = Vec::with_capacity(found.len());
    let mut rest: Vec<&mountinfo::Mount> = found.iter().collect();
    while !rest.is_empty() {
        let before = rest.len();
        rest.retain(|one| {
            let is_root = !known.contains(&one.parent) || one.parent == one.id;
            let parent_is_there = is_root || placed.contains(&one.parent);
            let owner_is_there = owner(found, one).is_none_or(|other| placed.contains(&other.id));
            let ready = parent_is_there && owner_is_there;
            if ready {
                placed.insert(one.id);
                order.push((*one).clone());
            }
            !ready
        });
        if rest.len() == before {
            // Never seen: a mount below a part of itself. Nothing would be lost silently: `bind` says so.
            order.extend(rest.drain(..).cloned());
        }
    }
    order
}

/// Clones of the mounts, so that what is mounted on them does not hide their content.
fn roots_of(host_pid: i32, trees: &[(usize, String, Vec<u8>)]) -> Result<Vec<OwnedFd>> {
    if trees.is_empty() {
        return Ok(Vec::new());
    }
    let namespace = ns::open(host_pid, ns::Kind::Mnt)?;
    ns::inside(&[namespace.as_fd()], || {
        trees
            .iter()
            .map(|(_, _, point)| {
                let path = Path::new(OsStr::from_bytes(point));
                let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
                let place = open(path, flags, Mode::empty())
                    .doing(|| format!("opening {} in the container", path.display()))?;
                mount::clone_tree(place.as_fd())
            })
            .collect()
    })
}

struct Walk<'a> {
    host: &'a [mountinfo::Mount],
    host_devices: HashSet<crate::proc::maps::Device>,
    options: &'a Options,
    found: &'a [mountinfo::Mount],
    order: &'a [mountinfo::Mount],
    numbers: HashMap<u64, u32>,
    mounts: Vec<Mount>,
    /// Number of the mount, prefix of its pieces, mount point.
    trees: Vec<(usize, String, Vec<u8>)>,
    refusals: &'a mut Refusals,
}

impl Walk<'_> {
    fn mount(&mut self, number: usize) -> Result<()> {
        let found = &self.order[number];
        let what = if number == 0 {
            What::Root
        } else {
            match self.what(number) {
                Ok(what) => what,
                Err((code, reason, remedy)) => {
                    let object = format!(
                        "mount of {} at {}",
                        String::from_utf8_lossy(&found.fs_type),
                        PathBytes::from(&found.mount_point)
                    );
                    self.refusals.add(code, object, reason, remedy);
                    // Something has to stand for it, for the numbers of the others.
                    What::External {
                        key: PathBytes::from(&found.mount_point).to_string(),
                        host_path: None,
                    }
                }
            }
        };
        let parent = self.numbers.get(&found.parent).copied().unwrap_or(0);
        self.mounts.push(Mount {
            parent: if number == 0 { 0 } else { parent },
            point: PathBytes::from(&found.mount_point),
            options: found
                .mount_options()
                .filter(|option| option != b"rw")
                .map(|option| String::from_utf8_lossy(&option).into_owned())
                .collect(),
            propagation: match (found.shared, found.master, found.unbindable) {
                (Some(_), _, _) => "shared",
                (None, Some(_), _) => "slave",
                (None, None, true) => "unbindable",
                (None, None, false) => "private",
            }
            .to_owned(),
            what,
        });
        Ok(())
    }

    fn what(&mut self, number: usize) -> Result<What, (&'static str, String, &'static str)> {
        let found = &self.order[number];
        let point = &found.mount_point;
        if let Some(key) = self.options.external.get(point) {
            return Ok(What::External {
                key: key.clone(),
                host_path: self.host_path(found),
            });
        }
        if found.is_deleted() {
            return Err((
                "E-MOUNT-DELETED",
                "what is mounted there has been deleted on the host".to_owned(),
                "unmount it before the checkpoint",
            ));
        }
        let fs_type = String::from_utf8_lossy(&found.fs_type).into_owned();
        if fs_type == "cgroup" || fs_type == "cgroup2" {
            return Ok(self.cgroup(found));
        }
        if let Some(bind) = self.bind(number) {
            return Ok(bind);
        }
        let is_whole = found.root == b"/";
        let is_own = !self.host_devices.contains(&found.device) || SINGLE.contains(&&*fs_type);
        if is_whole && is_own && (fs_type == "tmpfs" || KERNELS.contains(&&*fs_type)) {
            if fs_type == "tmpfs" {
                let pieces = format!("files/tmpfs-{number}");
                self.trees.push((number, pieces, point.clone()));
            }
            return Ok(What::New {
                source: PathBytes::from(&found.source),
                options: found
                    .super_options()
                    .map(PathBytes)
                    .filter(|option| option.as_bytes() != b"rw")
                    .collect(),
                fs_type,
                content: None,
            });
        }
        if let Some(path) = self.host_path(found) {
            return Ok(What::External {
                key: PathBytes::from(point).to_string(),
                host_path: Some(path),
            });
        }
        Err((
            "E-MOUNT-KIND",
            format!(
                "a file system of type {fs_type} that only this container has cannot be taken along"
            ),
            "unmount it, or name it with --external if the restoring side gives it",
        ))
    }

    /// A part of what an earlier mount has.
    fn bind(&self, number: usize) -> Option<What> {
        let found = &self.order[number];
        let owner = owner(self.found, found)?;
        let of = *self.numbers.get(&owner.id)?;
        let inside = below(&found.root, &owner.root)?;
        ((of as usize) < number).then(|| What::Bind {
            of,
            path: inside.into(),
        })
    }

    fn cgroup(&self, found: &mountinfo::Mount) -> What {
        let controllers: Vec<String> = if found.fs_type == b"cgroup2" {
            Vec::new()
        } else {
            // Besides controllers there are flags of the mount.
            const FLAGS: [&[u8]; 6] = [
                b"rw",
                b"ro",
                b"xattr",
                b"noprefix",
                b"clone_children",
                b"seclabel",
            ];
            found
                .super_options()
                .filter(|option| !FLAGS.contains(&option.as_slice()))
                .map(|option| String::from_utf8_lossy(&option).into_owned())
                .collect()
        };
        let own = self.options.cgroups.get(&controllers.join(","));
        let path = own
            .and_then(|own| below(&found.root, own.as_bytes()))
            .unwrap_or_default();
        What::Cgroup {
            controllers,
            path: path.into(),
        }
    }

    /// Where this process sees the same directory.
    fn host_path(&self, found: &mountinfo::Mount) -> Option<PathBytes> {
        self.host.iter().rev().find_map(|host| {
            if host.device != found.device {
                return None;
            }
            let inside = below(&found.root, &host.root)?;
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

/// What of `path` lies below `top`, without a slash in front; empty when they are the same.
fn below<'p>(path: &'p [u8], top: &[u8]) -> Option<&'p [u8]> {
    let top = top.strip_suffix(b"/").unwrap_or(top);
    let rest = path.strip_prefix(top)?;
    match rest.first() {
        None => Some(rest),
        Some(b'/') => Some(&rest[1..]),
        Some(_) => None,
    }
}
