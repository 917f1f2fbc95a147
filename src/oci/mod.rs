//! OCI bundles, the state directories of runtimes, root file systems as layers.

pub mod bundle;
pub mod rootfs;
pub mod runtime;
