//! A mount tree in a new namespace.
//!
//! Every mount is made detached and then attached below its parent by descriptor, so that what covers a
//! path does not matter. Attributes come last: a mount point may have to be made, and content unpacked,
//! in what is read-only in the end. Nothing is seen by the host: the namespace is private from its
//! first moment, and if anything fails it ends with the thread that made it.

use crate::error::{Context, Error, Exit, Result};
use crate::image::PathBytes;
use crate::image::namespaces::mnt::{Content, Mount, Mounts, What};
use crate::resource::layer::{Whiteouts, unpack};
use crate::sys::mount::{self, Attributes, Configuration, Propagation};
use crate::sys::ns;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{Gid, Uid, fchdir, fchownat, pivot_root};
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What the mounts need of the world around them.
pub struct Env<'a> {
    /// The root file system, as this process sees it.
    pub root: &'a Path,
    /// Where this process sees what an external mount asks for: its key, where it was.
    pub external: &'a (dyn Fn(&Mount, &str, Option<&PathBytes>) -> Result<PathBuf> + Sync),
    /// A detached mount of proc, made in the new PID namespace.
    pub proc: Option<OwnedFd>,
    /// The new net namespace, if it is a new one: sysfs shows it.
    pub net: Option<BorrowedFd<'a>>,
    /// The new ipc namespace, if it is a new one: mqueue shows it.
    pub ipc: Option<BorrowedFd<'a>>,
    /// The new cgroup namespace, if it is a new one.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Where this process sees the new container's cgroup in the hierarchy with these controllers.
    pub cgroup_directory: &'a (dyn Fn(&[String]) -> Result<PathBuf> + Sync),
    /// The pieces of a layer.
    pub content: &'a (dyn Fn(&str) -> Box<dyn Read + 'a> + Sync),
}

/// Builds the tree in a new mount namespace.
pub fn rebuild<'a>(record: &'a Mounts, env: &'a Env<'a>) -> Result<OwnedFd> {
    let fresh = fresh_file_systems(record, env)?;
    ns::fresh_with(ns::Kind::Mnt, || {
        // What the host mounts later may arrive; what is mounted here must not leave.
        nix::mount::mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_SLAVE,
            None::<&str>,
        )
        .doing(|| "making the new mount namespace private")?;
        let mut tree = Tree {
            record,
            env,
            made: Vec::with_capacity(record.mounts.len()),
        };
        for (number, fresh) in fresh.into_iter().enumerate() {
            let mount = &record.mounts[number];
            tree.add(mount, fresh)
                .doing(|| format!("mounting {}", mount.point))?;
        }
        tree.finish()
    })
}

/// File systems that show the namespace in which they are made, or anything at all that needs no path.
fn fresh_file_systems(record: &Mounts, env: &Env<'_>) -> Result<Vec<Option<OwnedFd>>> {
    record
        .mounts
        .iter()
        .map(|mount| {
            let doing = || format!("making the file system of {}", mount.point);
            let namespace = match &mount.what {
                What::New { fs_type, .. } if fs_type == "sysfs" => env.net,
                What::New { fs_type, .. } if fs_type == "mqueue" => env.ipc,
                What::Cgroup { .. } => env.cgroup,
                _ => None,
            };
            let make = || match &mount.what {
                What::New { fs_type, .. } if fs_type == "proc" => match &env.proc {
                    // Detached mounts can be cloned since Linux 6.15 only.
                    Some(proc) => {
                        mount::clone_tree(proc.as_fd()).or_else(|_| Ok(proc.try_clone()?))
                    }
                    None => Err(Error::bug("a proc mount without a PID namespace")),
                },
                What::New {
                    fs_type,
                    source,
                    options,
                    content,
                } => new_file_system(fs_type, source, options, content.is_some()),
                What::Cgroup { controllers, .. } => new_cgroup(controllers),
                _ => Err(Error::bug("no file system of its own")),
            };
            let is_new = match &mount.what {
                What::New { .. } => true,
                What::Cgroup { path, .. } => env.cgroup.is_some() && path.as_bytes().is_empty(),
                _ => false,
            };
            if !is_new {
                return Ok(None);
            }
            let made = match namespace {
                Some(namespace) => ns::inside(&[namespace], make),
                None => make(),
            };
            made.map(Some).doing(doing)
        })
        .collect()
}

fn new_file_system(
    fs_type: &str,
    source: &PathBytes,
    options: &[PathBytes],
    content_follows: bool,
) -> Result<OwnedFd> {
    let file_system = Configuration::new(fs_type)?;
    file_system.text(b"source", source.as_bytes())?;
    for option in options {
        let option = option.as_bytes();
        if option == b"ro" && content_follows {
            continue;
        }
        match option.iter().position(|byte| *byte == b'=') {
            Some(at) => file_system.text(&option[..at], &option[at + 1..])?,
            None => match file_system.flag(option) {
                // Shown, but not an option that can be given.
                Err(error) if error.errno() == Some(Errno::EINVAL) && option != b"ro" => {}
                other => other?,
            },
        }
    }
    file_system.mount()
}

fn new_cgroup(controllers: &[String]) -> Result<OwnedFd> {
    if controllers.is_empty() {
        return Configuration::new("cgroup2")?.mount();
    }
    let file_system = Configuration::new("cgroup")?;
    file_system.text(b"source", b"cgroup")?;
    for controller in controllers {
        match controller.split_once('=') {
            // A named hierarchy has no controllers.
            Some((key, value)) => {
                file_system.flag(b"none")?;
                file_system.text(key.as_bytes(), value.as_bytes())?;
            }
            None => file_system.flag(controller.as_bytes())?,
        }
    }
    file_system.mount()
}

struct Tree<'a> {
    record: &'a Mounts,
    env: &'a Env<'a>,
    /// By number; each descriptor is the mount's root.
    made: Vec<OwnedFd>,
}

impl Tree<'_> {
    fn add(&mut self, mount: &Mount, fresh: Option<OwnedFd>) -> Result<()> {
        let own = match (&mount.what, fresh) {
            (_, Some(fresh)) => fresh,
            (What::Root, None) => clone_path(self.env.root)?,
            (What::External { key, host_path }, None) => {
                clone_path(&(self.env.external)(mount, key, host_path.as_ref())?)?
            }
            (What::Bind { of, path }, None) => {
                let source = self.mount(*of)?;
                let place = walk(source, path.as_bytes(), OFlag::O_PATH)
                    .doing(|| format!("opening {path} of mount {of}"))?;
                mount::clone_tree(place.as_fd())?
            }
            (What::Cgroup { controllers, path }, None) => {
                let mut directory = (self.env.cgroup_directory)(controllers)?;
                directory.push(OsStr::from_bytes(path.as_bytes()));
                clone_path(&directory)?
            }
            (What::New { .. }, None) => return Err(Error::bug("a file system was not made")),
        };
        if let What::New {
            content: Some(content),
            ..
        } = &mount.what
        {
            self.fill(own.as_fd(), content)?;
        }
        if self.made.is_empty() {
            let place = open(
                self.env.root,
                OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?;
            mount::attach(own.as_fd(), place.as_fd())?;
        } else {
            let place = self.mount_point(mount, own.as_fd())?;
            mount::attach(own.as_fd(), place.as_fd())?;
        }
        self.made.push(own);
        Ok(())
    }

    fn mount(&self, number: u32) -> Result<BorrowedFd<'_>> {
        match self.made.get(number as usize) {
            Some(made) => Ok(made.as_fd()),
            None => Err(Error::coded(
                "E-IMAGE-MOUNT",
                Exit::Image,
                format!("there is no mount {number} yet"),
                "the image is damaged",
            )),
        }
    }

    /// Where a mount goes, below the root of its parent; made where it is missing.
    fn mount_point(&self, mount: &Mount, own: BorrowedFd<'_>) -> Result<OwnedFd> {
        let parent = self.mount(mount.parent)?;
        let above = self
            .record
            .mounts
            .get(mount.parent as usize)
            .map_or(&b"/"[..], |parent| parent.point.as_bytes());
        let above = above.strip_suffix(b"/").unwrap_or(above);
        let relative = mount
            .point
            .as_bytes()
            .strip_prefix(above)
            .map(|rest| rest.strip_prefix(b"/").unwrap_or(rest))
            .ok_or_else(|| {
                Error::coded(
                    "E-IMAGE-MOUNT",
                    Exit::Image,
                    format!("{} does not lie on its parent", mount.point),
                    "the image is damaged",
                )
            })?;
        match walk(parent, relative, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {
                make_mount_point(parent, relative, is_directory(own)?)?;
                Ok(walk(parent, relative, OFlag::O_PATH)?)
            }
            other => Ok(other?),
        }
    }

    fn fill(&self, root: BorrowedFd<'_>, content: &Content) -> Result<()> {
        let directory = openat(
            root,
            ".",
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        unpack(
            &mut (self.env.content)(&content.pieces),
            directory.as_fd(),
            Whiteouts::Remove,
        )?;
        fchownat(
            &directory,
            ".",
            Some(Uid::from_raw(content.uid)),
            Some(Gid::from_raw(content.gid)),
            nix::fcntl::AtFlags::empty(),
        )?;
        fchmodat(
            &directory,
            ".",
            Mode::from_bits_truncate(content.mode),
            FchmodatFlags::FollowSymlink,
        )?;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        for (mount, made) in self.record.mounts.iter().zip(&self.made) {
            let doing = || format!("setting the options of {}", mount.point);
            if let What::New {
                options,
                content: Some(_),
                ..
            } = &mount.what
                && options.iter().any(|option| option.as_bytes() == b"ro")
            {
                let file_system = Configuration::of(made.as_fd()).doing(doing)?;
                file_system.flag(b"ro").doing(doing)?;
                file_system.reconfigure().doing(doing)?;
            }
            mount::set_attributes(made.as_fd(), attributes(&mount.options)).doing(doing)?;
            let propagation = match mount.propagation.as_str() {
                "slave" => Propagation::Slave,
                "shared" => Propagation::Shared,
                "unbindable" => Propagation::Unbindable,
                _ => Propagation::Private,
            };
            if propagation != Propagation::Slave {
                mount::set_propagation(made.as_fd(), Propagation::Private, false).doing(doing)?;
            }
            if propagation != Propagation::Private {
                mount::set_propagation(made.as_fd(), propagation, false).doing(doing)?;
            }
        }
        let Some(root) = self.made.first() else {
            return Err(Error::coded(
                "E-IMAGE-MOUNT",
                Exit::Image,
                "the image has no root mount",
                "the image is damaged",
            ));
        };
        // The trick of pivot_root(2): the old root comes to lie on top of the new one, and is taken off.
        fchdir(root).doing(|| "entering the new root")?;
        pivot_root(".", ".").doing(|| "changing the root")?;
        umount2(".", MntFlags::MNT_DETACH).doing(|| "leaving the host's mounts")?;
        nix::unistd::chdir("/").doing(|| "entering the new root")
    }
}

/// A path on one mount; neither links nor other mounts are followed.
fn walk(root: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    openat2(
        root,
        Path::new(OsStr::from_bytes(path)),
        OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
            .resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_SYMLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            ),
    )
}

fn make_mount_point(root: BorrowedFd<'_>, path: &[u8], directory: bool) -> Result<()> {
    let mut parent = walk(root, b"", OFlag::O_PATH)?;
    let mut parts = path.split(|byte| *byte == b'/').peekable();
    while let Some(part) = parts.next() {
        let name = Path::new(OsStr::from_bytes(part));
        let is_last = parts.peek().is_none();
        if is_last && !directory {
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

/// A detached copy of the mount at a path of the host's, with that path as its root.
fn clone_path(path: &Path) -> Result<OwnedFd> {
    let place = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .doing(|| format!("opening {}", path.display()))?;
    mount::clone_tree(place.as_fd()).doing(|| format!("binding {}", path.display()))
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
