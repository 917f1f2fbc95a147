//! What the engine tells while it works.

use super::External;
use crate::error::Result;
use std::os::fd::BorrowedFd;

/// A moment of a checkpoint or a restore at which somebody else may have something to do.
///
/// A checkpoint goes through `PreDump`, `NetworkLock`, `QueryExtFiles`, `PostDump`, and through
/// `NetworkUnlock` where it failed after `NetworkLock` or leaves the container running.
///
/// A restore goes through `PreRestore`, `SetupNamespaces`, `PostSetupNamespaces`,
/// `OrphanPtsMaster` (once for every terminal whose master was outside), `PostRestore`,
/// `NetworkUnlock`, `PreResume`, `PostResume`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before anything is touched. Not in an image of the memory only, which has no stages at all.
    PreDump,
    /// The processes are frozen, and the container has a network namespace of its own.
    NetworkLock,
    /// Right after it (and without it): [`Watcher::external`] may add to what is allowed to be
    /// outside.
    QueryExtFiles,
    /// The image is complete and synced; the processes are still frozen. An error leaves them
    /// alive.
    PostDump,
    /// The traffic goes on.
    NetworkUnlock,
    /// Pages can be asked for. Not sent by a checkpoint that writes all of them.
    StatusReady,
    /// Before the first process is born.
    PreRestore,
    /// The init is there with its namespaces, and nothing else is; the pid is with it.
    SetupNamespaces,
    /// What is in the namespaces (mounts and all) is made.
    PostSetupNamespaces,
    /// A terminal whose master was outside has a new master, which is with it.
    OrphanPtsMaster,
    /// The processes are complete, and none of them runs yet; the pid is with it.
    PostRestore,
    /// They are about to go on. An error is only logged.
    PreResume,
    /// They go on. An error is only logged.
    PostResume,
}

/// What comes with a stage.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// The init as this process's PID namespace numbers it: with `SetupNamespaces` and
    /// `PostRestore`; a front that runs programs may be given it at every stage where there is one.
    pub pid: Option<i32>,
    /// With `OrphanPtsMaster`.
    pub master: Option<BorrowedFd<'a>>,
}

/// What is going on, for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Freezing the container.
    Freezing,
    /// Asking what there is.
    Collecting,
    /// Writing the image, or reading it.
    Transferring,
    /// Making sure that the image is on the disk.
    Syncing,
    /// Making processes and what they have.
    Building,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is going on.
    pub phase: Phase,
    /// Bytes that are done in this phase.
    pub done: u64,
    /// Bytes that there are to do, where that is known.
    pub total: Option<u64>,
}

/// Is told what happens in the middle.
pub trait Watcher {
    /// A stage is reached. An error ends the checkpoint or the restore, which undoes what it did:
    /// that error is what the front gets back.
    fn notify(&mut self, stage: Stage, facts: &Facts<'_>) -> Result<()>;

    /// What became allowed to be outside during [`Stage::QueryExtFiles`]; asked once, after it.
    fn external(&mut self) -> Vec<External> {
        Vec::new()
    }

    /// It goes on. Called often; must be cheap.
    fn progress(&mut self, _progress: Progress) {}
}

/// Nobody wants to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Watcher for Silent {
    fn notify(&mut self, _stage: Stage, _facts: &Facts<'_>) -> Result<()> {
        Ok(())
    }
}
