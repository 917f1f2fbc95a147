//! Records of the uts namespace.

use serde::{Deserialize, Serialize};

/// The names a uts namespace carries; uname(2). Kernel release and version are the host's and are
/// recorded in the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uts {
    /// nodename, at most 64 bytes.
    pub hostname: String,
    /// NIS domain name, `(none)` where nobody set it.
    pub domainname: String,
}
