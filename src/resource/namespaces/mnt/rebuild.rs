//! A mount tree in a new namespace.
//!
//! Every file system is made first, or borrowed from the host, and staged where nothing lies on it.
//! A mount is a clone of a part of one, attached below its parent by descriptor, so that what covers a
//! path does not matter. Attributes come last: a mount point may have to be made in what is read-only
//! in the end. Until then all is private. Nothing is seen by the host: the namespace shares nothing from
//! its first moment, and if anything fails it ends with the thread that made it.

use super::file_system::{self, walk};
use crate::error::{Context, Error, Exit, Result};
use crate::image::PathBytes;
use crate::image::namespaces::mnt::{FileSystem, Group, Mount, Mounts};
use crate::sys::mount::{self, Attributes, Configuration, Propagation};
use crate::sys::ns;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where this process sees what an external mount asks for: the first mount that shows it, its key,
/// where it was on the host of the checkpoint.
pub type FindExternal<'a> = dyn Fn(&Mount, &str, Option<&PathBytes>) -> Result<PathBuf> + 'a;

/// What the mounts need of the world around them.
pub struct Env<'a> {
    /// The root file system.
    pub root: Root<'a>,
    /// Finds what external mounts ask for.
    pub external: &'a FindExternal<'a>,
    /// A detached mount of proc, made in the new PID namespace, if it is a new one.
    pub proc: Option<OwnedFd>,
    /// The new net namespace, if it is a new one: sysfs shows it.
    pub net: Option<BorrowedFd<'a>>,
    /// The new ipc namespace, if it is a new one: mqueue shows it.
    pub ipc: Option<BorrowedFd<'a>>,
    /// The new cgroup namespace, if it is a new one.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Where this process sees the new container's cgroup in the hierarchy with these controllers.
    pub cgroup_directory: &'a dyn Fn(&[String]) -> Result<PathBuf>,
    /// The pieces of a layer.
    pub content: &'a dyn Fn(&str) -> Box<dyn Read + 'a>,
}

/// Where the root file system comes from. Paths are as this process sees them.
#[derive(Debug, Clone, Copy)]
pub enum Root<'a> {
    /// A directory.
    Directory(&'a Path),
    /// An overlay that is mounted in the new namespace alone.
    Overlay {
        /// What it is the root file system of, for messages.
        point: &'a Path,
        /// What it lies on.
        lower: &'a Path,
        /// What the container changed.
        upper: &'a Path,
        /// For the overlay's own use, beside `upper`.
        work: &'a Path,
    },
}

/// What was made.
#[derive(Debug)]
pub struct Rebuilt {
    /// The namespace; it lives as long as a process is in it or this descriptor is open.
    pub namespace: OwnedFd,
    /// Terminals whose nodes are mounted somewhere (/dev/console), and which therefore had to be made
    /// already: for [`Opener::give_master`](crate::resource::files::Opener::give_master).
    pub terminals: Vec<Terminal>,
    /// Mount points in /proc or /sys that this kernel does not have; nothing is there to be covered.
    pub skipped: Vec<PathBytes>,
}

/// The master of a new pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    /// Where its devpts is mounted.
    pub devpts: PathBytes,
    /// Its number there.
    pub index: u32,
    /// It lives as long as this does.
    pub master: OwnedFd,
}

/// Builds the tree in a new mount namespace.
pub fn rebuild(record: &Mounts, env: &Env<'_>) -> Result<Rebuilt> {
    check(record)?;
    let mut bases = Vec::with_capacity(record.file_systems.len());
    for (number, what) in (0..).zip(&record.file_systems) {
        let Some(first) = record.mounts.iter().find(|one| one.file_system == number) else {
            return Err(damaged(format!("file system {number} is mounted nowhere")));
        };
        let base = file_system::make(what, first, env)
            .doing(|| format!("making or finding what is mounted on {}", first.point))?;
        bases.push(base);
    }
    let terminals = file_system::terminals(record, &bases)?;
    let mut skipped = Vec::new();
    let namespace = ns::fresh_with(ns::Kind::Mnt, || {
        let tree = Tree::new(record, bases)?;
        skipped = tree.build()?;
        Ok(())
    })?;
    Ok(Rebuilt {
        namespace,
        terminals,
        skipped,
    })
}

fn damaged(reason: impl Into<String>) -> Error {
    Error::coded("E-IMAGE-MOUNT", Exit::Image, reason, "the image is damaged")
}

/// That numbers lead to something that is made before.
fn check(record: &Mounts) -> Result<()> {
    let (systems, groups) = (record.file_systems.len(), record.groups.len());
    let has = |number: u32, len: usize| (number as usize) < len;
    for (number, group) in record.groups.iter().enumerate() {
        if !has(group.file_system, systems)
            || group.master.is_some_and(|master| !has(master, number))
        {
            return Err(damaged(format!(
                "group {number} has no file system or no master"
            )));
        }
    }
    for (number, mount) in record.mounts.iter().enumerate() {
        let parent_is_there = has(mount.parent, number.max(1));
        let groups_are_there = [mount.group, mount.master]
            .iter()
            .flatten()
            .all(|&group| has(group, groups));
        if !parent_is_there || !groups_are_there || !has(mount.file_system, systems) {
            return Err(damaged(format!(
                "mount {number} refers to something that is not there"
            )));
        }
    }
    if record.mounts.is_empty() {
        return Err(damaged("there is no root mount"));
    }
    Ok(())
}

struct Tree<'a> {
    record: &'a Mounts,
    /// By file system. Private, and nothing lies on them.
    bases: Vec<OwnedFd>,
    /// By group: a mount of the whole file system that is in it.
    seeds: Vec<OwnedFd>,
    staging: OwnedFd,
    /// By number, `None` where skipped; each descriptor is the mount's root.
    made: Vec<Option<OwnedFd>>,
}

impl<'a> Tree<'a> {
    /// In the new namespace: stages the file systems and makes the groups.
    fn new(record: &'a Mounts, bases: Vec<OwnedFd>) -> Result<Self> {
        let top = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .doing(|| "opening the root of the new mount namespace")?;
        mount::set_propagation(top.as_fd(), Propagation::Private, true)
            .doing(|| "making the new mount namespace private")?;
        let staging = Configuration::new("tmpfs")?.mount()?;
        // Any directory but the root does, and this one is on every host.
        let place = open("/proc", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .doing(|| "opening /proc")?;
        mount::attach(staging.as_fd(), place.as_fd()).doing(|| "mounting a place to build in")?;
        for (number, base) in bases.iter().enumerate() {
            // Only what is attached can be cloned before Linux 6.15.
            let name = format!("file-system-{number}");
            make_mount_point(
                staging.as_fd(),
                name.as_bytes(),
                is_directory(base.as_fd())?,
            )?;
            let place = walk(staging.as_fd(), name.as_bytes(), OFlag::O_PATH)?;
            mount::attach(base.as_fd(), place.as_fd()).doing(|| "staging a file system")?;
        }
        let mut tree = Self {
            record,
            bases,
            seeds: Vec::with_capacity(record.groups.len()),
            staging,
            made: Vec::with_capacity(record.mounts.len()),
        };
        for group in &record.groups {
            let seed = tree.seed(group).doing(|| "making a group of mounts")?;
            tree.seeds.push(seed);
        }
        for base in &tree.bases {
            mount::set_propagation(base.as_fd(), Propagation::Private, false)?;
        }
        Ok(tree)
    }

    /// A detached mount that is a member. A clone of what the host shares is in the host's group.
    fn seed(&self, group: &Group) -> Result<OwnedFd> {
        let seed = mount::clone_tree(self.bases[group.file_system as usize].as_fd())?;
        if !group.outside {
            mount::set_propagation(seed.as_fd(), Propagation::Private, false)?;
        }
        if let Some(master) = group.master {
            mount::join_group(self.seeds[master as usize].as_fd(), seed.as_fd())?;
            mount::set_propagation(seed.as_fd(), Propagation::Slave, false)?;
        }
        mount::set_propagation(seed.as_fd(), Propagation::Shared, false)?;
        Ok(seed)
    }

    /// Makes all mounts and leaves the calling thread in the new tree; the mount points skipped.
    fn build(mut self) -> Result<Vec<PathBytes>> {
        let mut skipped = Vec::new();
        for mount in &self.record.mounts {
            let made = self
                .mount(mount)
                .doing(|| format!("mounting {}", mount.point))?;
            if made.is_none() {
                skipped.push(mount.point.clone());
            }
            self.made.push(made);
        }
        for (number, what) in self.record.file_systems.iter().enumerate() {
            file_system::finish(what, self.bases[number].as_fd())
                .doing(|| format!("making file system {number} read-only"))?;
        }
        for (mount, made) in self.finished() {
            mount::set_attributes(made, attributes(&mount.options))
                .doing(|| format!("setting the options of {}", mount.point))?;
        }
        let root = self.made.first().and_then(Option::as_ref);
        let root = root.ok_or_else(|| damaged("the root cannot be left out"))?;
        mount::become_root(root.as_fd())?;
        for (mount, made) in self.finished() {
            self.propagate(mount, made)
                .doing(|| format!("setting the propagation of {}", mount.point))?;
        }
        Ok(skipped)
    }

    fn finished(&self) -> impl Iterator<Item = (&Mount, BorrowedFd<'_>)> {
        let mounts = self.record.mounts.iter().zip(&self.made);
        mounts.filter_map(|(mount, made)| Some((mount, made.as_ref()?.as_fd())))
    }

    fn mount(&self, mount: &Mount) -> Result<Option<OwnedFd>> {
        let source = self.bases[mount.file_system as usize].as_fd();
        let source = walk(source, mount.path.as_bytes(), OFlag::O_PATH)
            .doing(|| format!("opening {:?}, which is to be mounted", mount.path))?;
        let own = mount::clone_tree(source.as_fd())?;
        if self.made.is_empty() {
            make_mount_point(self.staging.as_fd(), b"root", true)?;
            let place = walk(self.staging.as_fd(), b"root", OFlag::O_PATH)?;
            mount::attach(own.as_fd(), place.as_fd())?;
            return Ok(Some(own));
        }
        let Some(place) = self.mount_point(mount, is_directory(own.as_fd())?)? else {
            return Ok(None);
        };
        mount::attach(own.as_fd(), place.as_fd())?;
        Ok(Some(own))
    }

    /// Where a mount goes, below the root of its parent; made where it is missing, `None` where
    /// there is nothing to be covered.
    fn mount_point(&self, mount: &Mount, directory: bool) -> Result<Option<OwnedFd>> {
        let parent = &self.record.mounts[mount.parent as usize];
        let Some(above) = &self.made[mount.parent as usize] else {
            return Ok(None);
        };
        let relative = super::order::below(mount.point.as_bytes(), parent.point.as_bytes())
            .ok_or_else(|| damaged(format!("{} does not lie on its parent", mount.point)))?;
        match walk(above.as_fd(), relative, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {}
            other => return Ok(Some(other?)),
        }
        if let FileSystem::New { fs_type, .. } =
            &self.record.file_systems[parent.file_system as usize]
            && ["proc", "sysfs"].contains(&fs_type.as_str())
        {
            return Ok(None);
        }
        make_mount_point(above.as_fd(), relative, directory)
            .doing(|| "making the mount point, which is missing")?;
        Ok(Some(walk(above.as_fd(), relative, OFlag::O_PATH)?))
    }

    fn propagate(&self, mount: &Mount, made: BorrowedFd<'_>) -> Result<()> {
        if let Some(group) = mount.group {
            mount::join_group(self.seeds[group as usize].as_fd(), made)?;
        } else if let Some(master) = mount.master {
            mount::join_group(self.seeds[master as usize].as_fd(), made)?;
            mount::set_propagation(made, Propagation::Slave, false)?;
        }
        if mount.unbindable {
            mount::set_propagation(made, Propagation::Unbindable, false)?;
        }
        Ok(())
    }
}

fn make_mount_point(root: BorrowedFd<'_>, path: &[u8], directory: bool) -> Result<()> {
    let mut parent = walk(root, b"", OFlag::O_PATH)?;
    let mut parts = path.split(|byte| *byte == b'/').peekable();
    while let Some(part) = parts.next() {
        let name = Path::new(OsStr::from_bytes(part));
        if parts.peek().is_none() && !directory {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat(&parent, name, flags, Mode::from_bits_truncate(0o644))?;
            return Ok(());
        }
        match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        parent = walk(parent.as_fd(), part, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    }
    Ok(())
}

fn is_directory(mount: BorrowedFd<'_>) -> Result<bool> {
    Ok(crate::sys::statx::of(mount)?.mode & libc::S_IFMT == libc::S_IFDIR)
}

fn attributes(options: &[String]) -> Attributes {
    let mut attributes = 0;
    for option in options {
        attributes |= match option.as_str() {
            "ro" => libc::MOUNT_ATTR_RDONLY,
            "nosuid" => libc::MOUNT_ATTR_NOSUID,
            "nodev" => libc::MOUNT_ATTR_NODEV,
            "noexec" => libc::MOUNT_ATTR_NOEXEC,
            "noatime" => libc::MOUNT_ATTR_NOATIME,
            "nodiratime" => libc::MOUNT_ATTR_NODIRATIME,
            "nosymfollow" => libc::MOUNT_ATTR_NOSYMFOLLOW,
            _ => 0,
        };
    }
    let relative = options.iter().any(|option| option == "relatime");
    let never = options.iter().any(|option| option == "noatime");
    if !relative && !never {
        attributes |= libc::MOUNT_ATTR_STRICTATIME;
    }
    attributes
}
