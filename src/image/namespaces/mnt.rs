//! Records of the mnt namespace: the mount tree, `namespaces/mnt.json`.

use crate::image::PathBytes;
use serde::{Deserialize, Serialize};

/// All mounts that the root of the container reaches.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mounts {
    /// Parents before their children; the first is the root.
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
    /// What is mounted.
    pub what: What,
    /// Attributes of the mount by name: `ro`, `nosuid`, `nodev`, `noexec`, `noatime`, `nodiratime`,
    /// `relatime`, `nosymfollow`.
    pub options: Vec<String>,
    /// How events spread: `private`, `slave`, `shared`, `unbindable`.
    pub propagation: String,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum What {
    /// The root file system.
    Root,
    /// Something of the host's, which the restoring side gives.
    External {
        /// How it is asked for: the mount point, unless the caller gave it another name.
        key: String,
        /// Where it was on the host of the checkpoint, if it could be found.
        host_path: Option<PathBytes>,
    },
    /// A file system of the container's own.
    New {
        /// Its type: `proc`, `tmpfs`, `devpts` …
        fs_type: String,
        /// What it calls its source.
        source: PathBytes,
        /// Its options: `size=64k`.
        options: Vec<PathBytes>,
        /// Its content: where its pieces are, and mode, uid and gid of its root.
        content: Option<Content>,
    },
    /// A directory or file of what another mount has.
    Bind {
        /// Which of the mounts.
        of: u32,
        /// What of it, from the root of that mount; empty is all.
        path: PathBytes,
    },
    /// A hierarchy of control groups.
    Cgroup {
        /// Its controllers, as the file system names them; empty for v2.
        controllers: Vec<String>,
        /// Where the mount's root is below the container's cgroup; empty is that itself.
        path: PathBytes,
    },
}

/// What is in a file system of the container's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Prefix of the pieces of a layer.
    pub pieces: String,
    /// Permission bits of its root directory.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}
