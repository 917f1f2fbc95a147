//! One member of the tar with all that Linux knows about a file.

use crate::image::PathBytes;

/// A member with full metadata, as the root file system is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name in the tar without a slash at either end: `rootfs/etc/passwd`.
    pub name: PathBytes,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits, at most 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, whole seconds since 1970.
    pub mtime: i64,
    /// Modification time, nanoseconds within the second.
    pub mtime_nanoseconds: u32,
    /// Extended attributes, name and value; ACLs and file capabilities are among them.
    pub xattrs: Vec<(PathBytes, PathBytes)>,
}

/// The kinds of files that a tar holds. (A bound Unix socket has no content and no place in a tar.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes of content.
        size: u64,
    },
    /// A second name of a regular file that came earlier.
    HardLink {
        /// Name of the earlier member in the tar: `rootfs/usr/bin/perl`.
        target: PathBytes,
    },
    /// A symbolic link.
    Symlink {
        /// What it says.
        target: PathBytes,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

impl Entry {
    /// A regular file of root, mode 0600, as all records are.
    pub fn record(name: &str, size: u64, mtime: i64) -> Self {
        Self {
            name: PathBytes::from(name),
            kind: Kind::File { size },
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime,
            mtime_nanoseconds: 0,
            xattrs: Vec::new(),
        }
    }

    /// Bytes of content in the tar.
    pub fn size(&self) -> u64 {
        match self.kind {
            Kind::File { size } => size,
            _ => 0,
        }
    }
}
