//! One file per kind of state, both directions: how it is captured and how it is rebuilt.

pub mod cgroup;
pub mod files;
pub mod memory;
pub mod namespaces;
pub mod sockets;
pub mod tree;
