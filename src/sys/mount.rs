//! Mounts by descriptor: open_tree(2), move_mount(2), fsopen(2), mount_setattr(2).

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Mount attributes, [`libc::MOUNT_ATTR_RDONLY`] and so on.
pub type Attributes = u64;

/// Every attribute that [`set_attributes`] can clear, the access-time modes as a whole.
pub const ALL_ATTRIBUTES: Attributes = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR__ATIME
    | libc::MOUNT_ATTR_NODIRATIME
    | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// How events spread between a mount and others; mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// A peer group.
    Shared,
    /// Of the group that it has been a peer in; without one, private.
    Slave,
    /// None.
    Private,
    /// None, and it cannot be bound elsewhere.
    Unbindable,
}

impl Propagation {
    fn flag(self) -> u64 {
        match self {
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// A detached copy of the one mount that `file` lies on, with `file` as its root. The mount must be
/// in the caller's mount namespace or, since Linux 6.15, detached itself.
pub fn clone_tree(file: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: the path is a NUL-terminated constant; the result is a new descriptor.
    let fd = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            file.as_raw_fd(),
            c"".as_ptr(),
            flags as libc::c_ulong,
        )
    })
    .doing(|| "cloning a mount")?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches `mount` (detached, or somewhere in the caller's namespace) on top of the directory or
/// file `onto`.
pub fn attach(mount: BorrowedFd<'_>, onto: BorrowedFd<'_>) -> Result<()> {
    move_mount(mount, onto, 0)
}

/// Makes `to`, so far private, what `from` is: a peer, or a slave of the same group, or both. Each may
/// be attached or detached; they must be of one file system, and the root of `from` must contain
/// that of `to`.
pub fn join_group(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    move_mount(from, to, libc::MOVE_MOUNT_SET_GROUP)
}

fn move_mount(from: BorrowedFd<'_>, to: BorrowedFd<'_>, flags: libc::c_uint) -> Result<()> {
    let flags = flags | libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: the paths are NUL-terminated constants.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_raw_fd(),
            c"".as_ptr(),
            to.as_raw_fd(),
            c"".as_ptr(),
            flags as libc::c_ulong,
        )
    })
    .doing(|| "moving a mount")?;
    Ok(())
}

/// Gives one mount (not what is mounted on it) exactly these attributes.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes) -> Result<()> {
    mount_setattr(mount, false, ALL_ATTRIBUTES, attributes, 0)
}

/// Changes the propagation of one mount, or with `recursive` of all that is mounted on it as well.
pub fn set_propagation(
    mount: BorrowedFd<'_>,
    propagation: Propagation,
    recursive: bool,
) -> Result<()> {
    mount_setattr(mount, recursive, 0, 0, propagation.flag())
}

fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    clear: Attributes,
    set: Attributes,
    propagation: u64,
) -> Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: 0,
    };
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a constant; `attributes` lives through the call and its size is given.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            (libc::AT_EMPTY_PATH | recursive) as libc::c_ulong,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
    .doing(|| "changing the attributes of a mount")?;
    Ok(())
}

/// The id of the mount that `file` lies on, as mountinfo shows it.
pub fn mount_id(file: BorrowedFd<'_>) -> Result<u64> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a constant, `found` has room for the answer.
    Errno::result(unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_MNT_ID,
            found.as_mut_ptr(),
        )
    })
    .doing(|| "asking for a mount id")?;
    // SAFETY: zeroed, then filled by the kernel; every bit pattern is valid.
    Ok(unsafe { found.assume_init() }.stx_mnt_id)
}

/// A file system being configured; fsopen(2), fspick(2).
#[derive(Debug)]
pub struct Configuration(OwnedFd);

impl Configuration {
    /// For a new superblock, or, where the type has one per namespace, the one of the caller's.
    pub fn new(fs_type: &str) -> Result<Self> {
        let name = CString::new(fs_type).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `name` is NUL-terminated; the result is a new descriptor.
        let fd = Errno::result(unsafe {
            libc::syscall(libc::SYS_fsopen, name.as_ptr(), libc::FSOPEN_CLOEXEC)
        })
        .doing(|| format!("asking for a file system of type {fs_type}"))?;
        // SAFETY: a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// For changing the superblock behind a mount.
    pub fn of(mount: BorrowedFd<'_>) -> Result<Self> {
        // SAFETY: the path is a constant; the result is a new descriptor.
        let fd = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_fspick,
                mount.as_raw_fd(),
                c"".as_ptr(),
                libc::FSPICK_CLOEXEC | libc::FSPICK_EMPTY_PATH,
            )
        })
        .doing(|| "asking for the file system behind a mount")?;
        // SAFETY: a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// Sets an option without a value.
    pub fn flag(&self, key: &[u8]) -> Result<()> {
        let key = CString::new(key).map_err(|_| Errno::EINVAL)?;
        self.command(libc::FSCONFIG_SET_FLAG, Some(&key), None)
            .doing(|| format!("setting the option {}", key.to_string_lossy()))
    }

    /// Sets an option to a text; `source` is one too.
    pub fn text(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let key = CString::new(key).map_err(|_| Errno::EINVAL)?;
        let value = CString::new(value).map_err(|_| Errno::EINVAL)?;
        self.command(libc::FSCONFIG_SET_STRING, Some(&key), Some(&value))
            .doing(|| {
                let (key, value) = (key.to_string_lossy(), value.to_string_lossy());
                format!("setting the option {key}={value}")
            })
    }

    /// Makes or finds the superblock and hands out a detached mount of it.
    pub fn mount(self) -> Result<OwnedFd> {
        self.command(libc::FSCONFIG_CMD_CREATE, None, None)
            .doing(|| "making the file system")?;
        // SAFETY: no pointers; the result is a new descriptor.
        let fd = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.0.as_raw_fd(),
                libc::FSMOUNT_CLOEXEC,
                0,
            )
        })
        .doing(|| "mounting the file system")?;
        // SAFETY: a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }

    /// Applies the options to the superblock that [`Configuration::of`] picked.
    pub fn reconfigure(self) -> Result<()> {
        self.command(libc::FSCONFIG_CMD_RECONFIGURE, None, None)
            .doing(|| "changing the file system")
    }

    fn command(
        &self,
        command: libc::fsconfig_command,
        key: Option<&CStr>,
        value: Option<&CStr>,
    ) -> Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are NUL-terminated or null.
        let result = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                command,
                pointer(key),
                pointer(value),
                0,
            )
        });
        match (result, self.complaint()) {
            (Ok(_), _) => Ok(()),
            (Err(errno), None) => Err(errno.into()),
            (Err(errno), Some(complaint)) => Err(errno).doing(|| complaint),
        }
    }

    /// What the kernel has to say about the last failure.
    fn complaint(&self) -> Option<String> {
        let mut text = [0; 256];
        let len = nix::unistd::read(&self.0, &mut text).ok()?;
        let text = String::from_utf8_lossy(&text[..len]);
        Some(format!("the kernel says {:?}", text.trim()))
    }
}

/// Makes the directory of `root`, a mount somewhere in the calling thread's mount namespace, the
/// root of that namespace, and takes everything else away from it. Nothing of the old tree that
/// the new one shares with others (propagation) may be left in it: make both private first. Nothing
/// may lie on the root of the old tree. Only for a thread with file-system attributes of its own.
pub fn become_root(root: BorrowedFd<'_>) -> Result<()> {
    nix::unistd::fchdir(root).doing(|| "entering the new root")?;
    // The old root lands on top of the new one, where the second call takes it from; pivot_root(2).
    nix::unistd::pivot_root(".", ".").doing(|| "changing the root of a mount namespace")?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH).doing(|| "leaving the old root")?;
    nix::unistd::chdir("/").doing(|| "entering the root")?;
    // In the root, ".." is what lies uppermost on it, which is where others enter the namespace.
    let uppermost = nix::fcntl::open(
        "/..",
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .doing(|| "opening the root")?;
    if mount_id(uppermost.as_fd())? != mount_id(root)? {
        return Err(Error::bug("the old root was left on the new one"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::mountinfo;
    use crate::sys::ns;
    use nix::fcntl::{OFlag, open, openat};
    use nix::sys::stat::{Mode, mkdirat};

    fn path(dir: BorrowedFd<'_>, name: &str) -> OwnedFd {
        openat(dir, name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn a_tree_is_made_from_detached_mounts_and_becomes_the_root() {
        let tmpfs = Configuration::new("tmpfs").unwrap();
        tmpfs.text(b"size", b"64k").unwrap();
        tmpfs.text(b"source", b"of my own").unwrap();
        let root = tmpfs.mount().unwrap();
        mkdirat(&root, "a", Mode::S_IRWXU).unwrap();
        mkdirat(&root, "b", Mode::S_IRWXU).unwrap();
        let proc = open("/proc", OFlag::O_PATH, Mode::empty()).unwrap();
        let mut mounts = Vec::new();
        let namespace = ns::fresh_with(ns::Kind::Mnt, || {
            let old = open("/", OFlag::O_PATH, Mode::empty())?;
            set_propagation(old.as_fd(), Propagation::Private, true)?;
            attach(root.as_fd(), old.as_fd())?;
            let seed = clone_tree(root.as_fd())?;
            let a = clone_tree(path(root.as_fd(), "a").as_fd())?;
            attach(a.as_fd(), path(root.as_fd(), "b").as_fd())?;
            set_attributes(
                a.as_fd(),
                libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME,
            )?;
            Configuration::of(root.as_fd())?.flag(b"ro")?;
            become_root(root.as_fd())?;
            // A root that is shared already cannot be pivoted to in this way.
            set_propagation(seed.as_fd(), Propagation::Shared, false)?;
            join_group(seed.as_fd(), root.as_fd())?;
            join_group(seed.as_fd(), a.as_fd())?;
            let info = openat(
                &proc,
                "thread-self/mountinfo",
                OFlag::O_RDONLY,
                Mode::empty(),
            )?;
            let mut text = Vec::new();
            std::io::Read::read_to_end(&mut std::fs::File::from(info), &mut text)?;
            mounts = mountinfo::parse(text)?;
            assert_eq!(mount_id(a.as_fd())?, mounts[1].id);
            Ok(())
        })
        .unwrap();
        drop(namespace);
        assert_eq!(mounts.len(), 2, "{mounts:?}");
        assert_eq!(mounts[0].mount_point, b"/");
        assert_eq!(mounts[0].source, b"of my own");
        assert_eq!(mounts[1].mount_point, b"/b");
        assert_eq!(mounts[1].root, b"/a");
        assert_eq!(mounts[1].options, b"ro,noatime");
        assert!(mounts[0].shared.is_some());
        assert_eq!(mounts[1].shared, mounts[0].shared);
    }

    #[test]
    fn the_kernels_own_words_are_in_the_error() {
        let tmpfs = Configuration::new("tmpfs").unwrap();
        let error = tmpfs.text(b"nonsense", b"1").unwrap_err().to_string();
        assert!(
            error.contains("nonsense") && error.contains("kernel says"),
            "{error}"
        );
    }
}
