//! Records of seccomp filters: `objects/seccomp.json`.

use super::bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// SECCOMP_FILTER_FLAG_* bits.
    pub flags: u64,
    /// Classic BPF, 8 bytes an instruction.
    pub program: Bytes,
}
