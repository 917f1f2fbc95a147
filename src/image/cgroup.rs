//! Records of control groups: `namespaces/cgroup.json`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The container's own subtree in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cgroup {
    /// `cpu,cpuacct`, `name=systemd`, or `unified`.
    pub hierarchy: String,
    /// Its top, from the root of the hierarchy: `/docker/ID`.
    pub path: String,
    /// The top first, parents before children.
    pub groups: Vec<Group>,
}

/// One control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// From the top of the subtree; empty for the top.
    pub path: String,
    /// Permission bits of its directory.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Files that limit it and differ from what a new group has, by name.
    pub settings: BTreeMap<String, String>,
    /// Processes in it, as the container numbers them.
    pub processes: Vec<i32>,
}
