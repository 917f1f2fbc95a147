//! What mounts show: made anew, filled, or borrowed from the host.

use super::capture::{DEVICES, EMPTY, KERNELS, STORED};
use super::rebuild::{Env, Root, Terminal};
use crate::error::{Context, Error, Exit, Result};
use crate::image::PathBytes;
use crate::image::namespaces::mnt::{CgroupDirectory, Content, FileSystem, Mount, Mounts};
use crate::proc::read::Process;
use crate::resource::layer::{Whiteouts, unpack};
use crate::sys::mount::{self, Configuration};
use crate::sys::{ns, statx, tty, xattr};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// No more than this many terminals are opened until the wanted number comes.
const MAX_TERMINALS: u32 = 4096;

/// A detached mount of it, filled, still writable. `first` is the first mount that shows
/// it.
pub(super) fn make(what: &FileSystem, first: &Mount, env: &Env<'_>) -> Result<OwnedFd> {
    match what {
        FileSystem::Root => root(env.root),
        FileSystem::External { key, host_path } => {
            borrow(&(env.external)(first, key, host_path.as_ref())?)
        }
        FileSystem::Device { major, minor } => device((*major, *minor)),
        FileSystem::Cgroup {
            controllers,
            source,
            directory,
        } => cgroup(controllers, source, directory, env),
        FileSystem::New {
            fs_type,
            source,
            options,
            contents,
        } => {
            let mut known = KERNELS.iter().chain(&STORED).chain(&EMPTY);
            if !known.any(|one| one == fs_type) {
                // One with a source could show a disk of the host's.
                return Err(Error::coded(
                    "E-IMAGE-MOUNT",
                    Exit::Image,
                    format!("a file system of type {fs_type} is never made for a container"),
                    "the image is damaged, or was made to do harm",
                ));
            }
            let fill_first = !contents.is_empty();
            let make = || new(fs_type, source, options, fill_first);
            let made = match fs_type.as_str() {
                "proc" if env.proc.is_some() => proc(env, options)?,
                "sysfs" => inside(env.net, make)?,
                "mqueue" => inside(env.ipc, make)?,
                _ => make()?,
            };
            for content in contents {
                fill(made.as_fd(), content, env)
                    .doing(|| format!("filling {} with {}", first.point, content.pieces))?;
            }
            Ok(made)
        }
    }
}

/// What has to wait until it is filled and all mount points are there.
pub(super) fn finish(what: &FileSystem, base: BorrowedFd<'_>) -> Result<()> {
    if let FileSystem::New {
        options, contents, ..
    } = what
        && !contents.is_empty()
        && options.iter().any(|option| option.as_bytes() == b"ro")
    {
        let file_system = Configuration::of(base)?;
        file_system.flag(b"ro")?;
        file_system.reconfigure()?;
    }
    Ok(())
}

fn root(root: Root<'_>) -> Result<OwnedFd> {
    let (point, lower, upper, work) = match root {
        Root::Directory(path) => return borrow(path),
        Root::Overlay {
            point,
            lower,
            upper,
            work,
        } => (point, lower, upper, work),
    };
    let make = || {
        let overlay = Configuration::new("overlay")?;
        overlay.text(b"source", b"overlay")?;
        for (key, path) in [
            (&b"lowerdir"[..], lower),
            (b"upperdir", upper),
            (b"workdir", work),
        ] {
            overlay.text(key, path.as_os_str().as_bytes())?;
        }
        overlay.mount()
    };
    make().doing(|| format!("mounting an overlay for {}", point.display()))
}

/// A detached copy of the mount at a path of the host's, with that path as its root.
fn borrow(path: &Path) -> Result<OwnedFd> {
    let place = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .doing(|| format!("opening {}", path.display()))?;
    mount::clone_tree(place.as_fd()).doing(|| format!("binding {}", path.display()))
}

fn inside(
    namespace: Option<BorrowedFd<'_>>,
    make: impl FnOnce() -> Result<OwnedFd> + Send,
) -> Result<OwnedFd> {
    match namespace {
        Some(namespace) => ns::inside(&[namespace], make),
        None => make(),
    }
}

fn device(number: (u32, u32)) -> Result<OwnedFd> {
    let known = DEVICES.iter().find(|(known, _)| *known == number);
    let Some((_, name)) = known else {
        return Err(Error::coded(
            "E-IMAGE-MOUNT",
            Exit::Image,
            format!("device {}:{} is not one of every host", number.0, number.1),
            "the image is damaged",
        ));
    };
    let path = Path::new("/dev").join(name);
    let made = borrow(&path)?;
    let status = statx::of(made.as_fd())?;
    if status.mode & libc::S_IFMT != libc::S_IFCHR || status.rdev != number {
        return Err(Error::coded(
            "E-HOST-DEVICE",
            Exit::Host,
            format!("{} is not device {}:{}", path.display(), number.0, number.1),
            "restore on a host with an ordinary /dev",
        ));
    }
    Ok(made)
}

fn configure(file_system: &Configuration, options: &[PathBytes], skip: &[u8]) -> Result<()> {
    for option in options.iter().map(PathBytes::as_bytes) {
        match option.iter().position(|byte| *byte == b'=') {
            _ if option == skip => {}
            Some(at) => file_system.text(&option[..at], &option[at + 1..])?,
            None => file_system.flag(option)?,
        }
    }
    Ok(())
}

fn new(
    fs_type: &str,
    source: &PathBytes,
    options: &[PathBytes],
    fill_first: bool,
) -> Result<OwnedFd> {
    let file_system = Configuration::new(fs_type)?;
    if !source.as_bytes().is_empty() {
        file_system.text(b"source", source.as_bytes())?;
    }
    configure(&file_system, options, if fill_first { b"ro" } else { b"" })?;
    file_system.mount()
}

/// The one of the new PID namespace, with the options of the old one.
fn proc(env: &Env<'_>, options: &[PathBytes]) -> Result<OwnedFd> {
    let Some(proc) = &env.proc else {
        return Err(Error::bug("a proc mount without a PID namespace"));
    };
    if !options.is_empty() {
        let file_system = Configuration::of(proc.as_fd())?;
        // The kernel refuses what cannot be changed any more, unless it is so already.
        configure(&file_system, options, b"")?;
        file_system.reconfigure()?;
    }
    // Detached mounts can be cloned since Linux 6.15 only.
    mount::clone_tree(proc.as_fd()).or_else(|_| Ok(proc.try_clone()?))
}

fn cgroup(
    controllers: &[String],
    source: &PathBytes,
    directory: &CgroupDirectory,
    env: &Env<'_>,
) -> Result<OwnedFd> {
    match directory {
        CgroupDirectory::Container(path) => {
            if env.cgroup.is_some() && path.as_bytes().is_empty() {
                return inside(env.cgroup, || new_cgroup(controllers, source));
            }
            let directory = (env.cgroup_directory)(controllers)?;
            borrow(&directory.join(relative(path)?))
        }
        // Mounting it would change its options for the whole host, or make a hierarchy.
        CgroupDirectory::Host(path) => borrow(&hierarchy(controllers)?.join(relative(path)?)),
    }
}

/// A path of the image's that is to be followed on the host.
fn relative(path: &PathBytes) -> Result<&Path> {
    let relative = Path::new(OsStr::from_bytes(path.as_bytes()));
    let normal = |part| matches!(part, std::path::Component::Normal(_));
    if relative.components().all(normal) {
        return Ok(relative);
    }
    Err(Error::coded(
        "E-IMAGE-MOUNT",
        Exit::Image,
        format!("{path} is no path of a cgroup"),
        "the image is damaged, or was made to do harm",
    ))
}

/// Where this process sees the root of a hierarchy.
fn hierarchy(controllers: &[String]) -> Result<PathBuf> {
    let mounts = Process::new(std::process::id().cast_signed()).mountinfo()?;
    let found = mounts.iter().find(|one| {
        let options: Vec<Vec<u8>> = one.super_options().collect();
        let has = |name: &String| options.iter().any(|option| option == name.as_bytes());
        one.root == b"/"
            && one.fs_type
                == if controllers.is_empty() {
                    &b"cgroup2"[..]
                } else {
                    b"cgroup"
                }
            && controllers.iter().all(has)
    });
    let found = found.ok_or_else(|| {
        let name = if controllers.is_empty() {
            "of version 2".to_owned()
        } else {
            format!("with {}", controllers.join(","))
        };
        Error::coded(
            "E-HOST-CGROUP",
            Exit::Host,
            format!("no cgroup hierarchy {name} is mounted on this host"),
            "mount it, or restore on a host that has it",
        )
    })?;
    Ok(PathBuf::from(OsStr::from_bytes(&found.mount_point)))
}

fn new_cgroup(controllers: &[String], source: &PathBytes) -> Result<OwnedFd> {
    let version = if controllers.is_empty() {
        "cgroup2"
    } else {
        "cgroup"
    };
    let file_system = Configuration::new(version)?;
    if !source.as_bytes().is_empty() {
        file_system.text(b"source", source.as_bytes())?;
    }
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

fn fill(base: BorrowedFd<'_>, content: &Content, env: &Env<'_>) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mut directory = walk(base, b"", flags)?;
    for part in content.path.as_bytes().split(|byte| *byte == b'/') {
        if part.is_empty() {
            continue;
        }
        let name = Path::new(OsStr::from_bytes(part));
        match mkdirat(&directory, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        directory = walk(directory.as_fd(), part, flags)?;
    }
    unpack(
        &mut (env.content)(&content.pieces),
        directory.as_fd(),
        Whiteouts::Remove,
    )?;
    fchownat(
        &directory,
        ".",
        Some(Uid::from_raw(content.uid)),
        Some(Gid::from_raw(content.gid)),
        AtFlags::empty(),
    )?;
    let mode = Mode::from_bits_truncate(content.mode);
    fchmodat(&directory, ".", mode, FchmodatFlags::FollowSymlink)?;
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    for (name, value) in &content.xattrs {
        xattr::set(Path::new(&link), name.as_bytes(), value.as_bytes())?;
    }
    let modified = TimeSpec::new(content.mtime.0, i64::from(content.mtime.1));
    utimensat(
        AT_FDCWD,
        link.as_str(),
        &TimeSpec::new(0, libc::UTIME_OMIT),
        &modified,
        UtimensatFlags::FollowSymlink,
    )?;
    Ok(())
}

/// Makes the terminals whose nodes are to be mounted somewhere.
pub(super) fn terminals(record: &Mounts, bases: &[OwnedFd]) -> Result<Vec<Terminal>> {
    let mut wanted: Vec<(u32, u32)> = Vec::new();
    for mount in &record.mounts {
        let what = &record.file_systems[mount.file_system as usize];
        let index = std::str::from_utf8(mount.path.as_bytes()).map(str::parse);
        if let (FileSystem::New { fs_type, .. }, Ok(Ok(index))) = (what, index)
            && fs_type == "devpts"
        {
            wanted.push((mount.file_system, index));
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    let mut made = Vec::new();
    let mut surplus = Vec::new();
    for (file_system, index) in wanted {
        let whole = record
            .mounts
            .iter()
            .find(|mount| mount.file_system == file_system && mount.path.as_bytes().is_empty());
        let devpts = whole.map(|mount| mount.point.clone()).unwrap_or_default();
        let master = terminal(bases[file_system as usize].as_fd(), index, &mut surplus)
            .doing(|| format!("making terminal {devpts}/{index} anew"))?;
        made.push(Terminal {
            devpts,
            index,
            master,
        });
    }
    Ok(made)
}

fn terminal(devpts: BorrowedFd<'_>, wanted: u32, surplus: &mut Vec<OwnedFd>) -> Result<OwnedFd> {
    for _ in 0..MAX_TERMINALS {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = openat(devpts, "ptmx", flags, Mode::empty()).doing(|| "opening its ptmx")?;
        match tty::index(master.as_fd()).doing(|| "asking for its number")? {
            index if index == wanted => return Ok(master),
            index if index > wanted => break,
            _ => surplus.push(master),
        }
    }
    Err(Error::coded(
        "E-PTY-INDEX",
        Exit::Host,
        format!("number {wanted} could not be had in a new devpts"),
        "raise kernel.pty.max",
    ))
}

/// A path on one mount; neither links nor other mounts are followed.
pub(super) fn walk(root: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    if path.is_empty() && flags.contains(OFlag::O_PATH) {
        // A file has no ".".
        return root
            .try_clone_to_owned()
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
    }
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
