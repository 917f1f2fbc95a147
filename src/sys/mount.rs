//! Mounts by descriptor: open_tree(2), move_mount(2), fsopen(2), mount_setattr(2).

use crate::error::{Context, Result};
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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

/// Makes `to`, so far private, what `from` is: a peer, or a slave of the same group, or both. Both
/// must be attached, be of one file system, and the root of `from` must contain that of `to`.
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
