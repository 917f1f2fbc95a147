//! Records of the mnt namespace: the mount tree, `namespaces/mnt.json`.

use crate::image::PathBytes;
use serde::{Deserialize, Serialize};

/// All mounts that the root of the container reaches.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mounts {
    /// What the mounts show; each once, however many mounts show parts of it.
    pub file_systems: Vec<FileSystem>,
    /// Groups of mounts that events spread between, masters before their slaves.
    pub groups: Vec<Group>,
    /// In an order in which they can be made: the root first, parents before their children, and what
    /// another one hides before that.
    pub mounts: Vec<Mount>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Which of the mounts it lies on; its own number for the root.
    pub parent: u32,
    /// Where, from the container's root.
    pub point: PathBytes,
    /// Which of the file systems it shows.
    pub file_system: u32,
    /// What of it, from its root; empty is all.
    pub path: PathBytes,
    /// Attributes of the mount by name: `ro`, `nosuid`, `nodev`, `noexec`, `noatime`, `nodiratime`,
    /// `relatime`, `nosymfollow`.
    pub options: Vec<String>,
    /// The group that it is a peer in.
    pub group: Option<u32>,
    /// The group that it gets events from without being a peer; that of a peer's group is the
    /// group's own.
    pub master: Option<u32>,
    /// It cannot be bound elsewhere.
    pub unbindable: bool,
}

/// Mounts that pass events on to each other; mount_namespaces(7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// All of them show this file system.
    pub file_system: u32,
    /// The group that it gets events from.
    pub master: Option<u32>,
    /// It has members outside of the container: whoever shares the host's mount.
    pub outside: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum FileSystem {
    /// The root file system.
    Root,
    /// Something of the host's, which the restoring side gives.
    External {
        /// How it is asked for: the mount point, unless the caller gave it another name.
        key: String,
        /// Where it was on the host of the checkpoint, if it could be found.
        host_path: Option<PathBytes>,
    },
    /// A device node that is the same on every host: null, zero, full, random, urandom, tty.
    Device {
        /// Its number.
        major: u32,
        /// Its number.
        minor: u32,
    },
    /// A file system of the container's own.
    New {
        /// Its type: `proc`, `tmpfs`, `devpts` …
        fs_type: String,
        /// What it calls its source.
        source: PathBytes,
        /// Its options: `size=64k`.
        options: Vec<PathBytes>,
        /// What is in it. One, of the whole, unless only parts of it are mounted.
        contents: Vec<Content>,
    },
    /// A hierarchy of control groups.
    Cgroup {
        /// Its controllers, or its name, as the file system shows them; empty for v2.
        controllers: Vec<String>,
        /// What it calls its source.
        source: PathBytes,
        /// Which directory of it.
        directory: CgroupDirectory,
    },
}

/// A directory of a hierarchy of control groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum CgroupDirectory {
    /// This path below the container's own; empty is that itself.
    Container(PathBytes),
    /// This path from the root of the hierarchy, which the container's own is below.
    Host(PathBytes),
}

/// A directory with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Which directory, from the root of the file system; empty is that itself.
    pub path: PathBytes,
    /// Prefix of the pieces of a layer with everything below it.
    pub pieces: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds of last modification.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(PathBytes, PathBytes)>,
}
