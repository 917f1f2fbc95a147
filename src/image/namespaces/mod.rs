//! Records of namespaces, one file per kind.

pub mod ipc;
pub mod mnt;
pub mod net;
pub mod time;
pub mod uts;
