//! Records of namespaces, one file per kind.

pub mod ipc;
pub mod mnt;
pub mod net;
pub mod time;
pub mod uts;

use serde::{Deserialize, Serialize};

/// One namespace that the container's processes are in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// `mnt`, `net`, …, as in `/proc/PID/ns`.
    pub kind: String,
    /// The kernel's number of it, to tell namespaces of one image apart.
    pub inode: u64,
    /// It is the host's own: nothing of it is recorded, and the restored processes use the new
    /// host's.
    pub host: bool,
    /// The name under which the caller of the restore gives another one in its place: nothing of it is
    /// made anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
}
