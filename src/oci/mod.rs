//! OCI bundles, the state directories of runtimes, root file systems as layers.

pub mod hook;
pub mod register;
pub mod runtime;
pub mod runtime_front;
mod watch;
