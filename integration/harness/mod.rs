//! What every integration test stands on: containers made with a real runtime, the engine's
//! command line, and the outside judge.
//!
//! - [`Ground`]: a tmpfs of the test's own; all bundles and images lie in it.
//! - [`Container`]: a container that runc or crun runs, or that `ocimig restore` brought back.
//! - [`Snapshot`]: what /proc shows of it from outside, to be compared before and after.

mod config;
mod container;
mod ground;
mod rootfs;
mod snapshot;
mod tools;

pub use config::Config;
pub use container::{Container, Image};
pub use ground::{Ground, mounts_below, unique};
pub use rootfs::Rootfs;
pub use snapshot::Snapshot;
pub use tools::{Output, patience, read, run, subject, try_run};
