//! The format: plain data and the tar around it. Knows nobody. A diff in this folder is a format
//! change.

pub mod archive;
pub mod bytes;
pub mod cgroup;
pub mod check;
pub mod files;
pub mod header;
pub mod memory;
pub mod namespaces;
pub mod path;
pub mod process;
pub mod seccomp;
pub mod sockets;
pub mod tree;

pub use path::PathBytes;
