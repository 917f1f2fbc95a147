//! Thin safe wrappers over kernel interfaces that nix lacks. All `unsafe` of the crate lives here.

#![expect(
    unsafe_code,
    reason = "the one place where it may; every use carries its SAFETY line"
)]

pub mod child;
pub mod clone;
pub mod descriptor;
pub mod epoll;
pub mod guard;
pub mod handle;
pub mod inotify;
pub mod kcmp;
pub mod lock;
pub mod mount;
pub mod mqueue;
pub mod netlink;
pub mod ns;
pub mod nsfs;
pub mod owner;
pub mod pagemap;
pub mod pidfd;
pub mod pipe;
pub mod prctl;
pub mod ptrace;
pub mod remote;
pub mod sched;
pub mod scratch;
pub mod shared_memory;
pub mod signalfd;
pub mod sock_diag;
pub mod socket;
pub mod statx;
pub mod sysv;
pub mod tcp_repair;
#[cfg(test)]
pub mod testing;
pub mod timer;
pub mod timerfd;
pub mod tty;
pub mod undo;
pub mod userfaultfd;
pub mod uts;
pub mod xattr;
