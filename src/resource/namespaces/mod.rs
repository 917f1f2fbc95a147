//! Namespaces: mnt, net, uts, ipc, time, cgroup.

pub mod ipc;
pub mod mnt;
pub mod net;
pub mod time;
pub mod uts;
