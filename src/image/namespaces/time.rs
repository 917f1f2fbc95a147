//! Records of the time namespace.

use serde::{Deserialize, Serialize};

/// What the container's clocks showed when it was frozen. A restored container gets a time
/// namespace in which they go on from here, whatever the clocks of the new host show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Time {
    /// CLOCK_MONOTONIC (and its kin), in nanoseconds.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME, in nanoseconds.
    pub boottime_ns: i64,
}
