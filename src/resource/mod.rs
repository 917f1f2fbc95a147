//! One file per kind of state, both directions: how it is captured and how it is rebuilt.

pub mod attributes;
pub mod cgroup;
pub mod controls;
pub mod credentials;
pub mod files;
pub mod layer;
pub mod limits;
pub mod memory;
pub mod namespaces;
pub mod scheduling;
pub mod seccomp;
pub mod signals;
pub mod sockets;
#[cfg(test)]
mod state_tests;
pub mod threads;
pub mod timers;
pub mod tree;
