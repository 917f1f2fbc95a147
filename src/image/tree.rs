//! Records of how processes belong together.

use serde::{Deserialize, Serialize};

/// Where a process stands among the others. Numbers as in the container's PID namespace; 0 is somebody
/// outside.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its number.
    pub pid: i32,
    /// Its parent; 0 for the first process and for those that were put into the namespace.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// What its parent is sent at its end (SIGCHLD is 17); 0 is nothing.
    pub exit_signal: i32,
    /// It adopts the orphans among its descendants (PR_SET_CHILD_SUBREAPER).
    pub subreaper: bool,
    /// It has ended and waits for its parent to ask: the status as in wait(2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zombie: Option<i32>,
}
