//! All that a front can ask the engine for, checked on construction.
//!
//! A front (`cli`, `criu`, the hooks) turns what its caller wrote into a [`Checkpoint`] or a
//! [`Restore`]; the engine reads it and never sees an argument, a message or a configuration file:
//!
//! ```text
//! checkpoint::run(&request::Checkpoint, &mut dyn Watcher) -> Result<CheckpointReport>
//! restore::run(&request::Restore, &mut dyn Watcher)       -> Result<Restored>
//! ```
//!
//! What happens in the middle the engine tells a [`Watcher`].

mod checkpoint;
mod external;
mod report;
mod restore;
mod watcher;

pub use checkpoint::{
    After, Checkpoint, CheckpointOptions, Description, Extent, Output, Parent, Rootfs, Target,
};
pub use external::External;
pub use report::{CheckpointReport, RestoreReport, Restored};
pub use restore::{
    CgroupRoot, CpuCheck, ExternalMount, Inherited, JoinNamespace, Place, Restore, RestoreOptions,
    Veth,
};
pub use watcher::{Facts, Phase, Progress, Silent, Stage, Watcher};

use crate::error::{Error, Exit};

/// What becomes of TCP connections that lead outside. Those with both ends inside are always kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tcp {
    /// Refused by name.
    #[default]
    Refuse,
    /// Kept as they are.
    Keep,
    /// Closed: the processes find them reset.
    Drop,
}

/// How packets of kept connections are held back while their owner is away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkLock {
    /// By a table of nftables of our own.
    #[default]
    Nftables,
    /// Not at all: the caller does it.
    Skip,
}

/// What of cgroups is recorded and made anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// Nothing: the processes are born in the cgroups of the restoring process and stay there.
    Ignore,
    /// The cgroups are expected to be there; processes are moved into them.
    None,
    /// The cgroups are expected to be there; processes are moved and properties are set.
    Props,
    /// Cgroups that are not there are made and get their properties; those that are there are left
    /// as they are.
    #[default]
    Soft,
    /// Cgroups that are not there are made; properties are set on all of them.
    Full,
    /// None of the cgroups may be there; all are made.
    Strict,
}

/// A namespace kind whose content is not recorded: it comes back new and empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyNamespace {
    /// The network namespace; only `lo` is there, and up if it was.
    Net,
}

fn wrong(reason: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::coded("E-REQUEST", Exit::Usage, reason, remedy)
}
