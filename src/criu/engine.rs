//! What does the work behind the messages; tests put something else here.

use crate::error::Result;
use crate::request::{Checkpoint, CheckpointReport, Restore, Restored, Watcher};

/// Checkpoints and restores.
pub trait Engine {
    /// See [`crate::checkpoint::run`].
    fn checkpoint(
        &mut self,
        request: &Checkpoint,
        watcher: &mut dyn Watcher,
    ) -> Result<CheckpointReport>;

    /// See [`crate::restore::run`].
    fn restore(&mut self, request: &Restore, watcher: &mut dyn Watcher) -> Result<Restored>;
}

/// This crate's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Own;

impl Engine for Own {
    fn checkpoint(
        &mut self,
        request: &Checkpoint,
        watcher: &mut dyn Watcher,
    ) -> Result<CheckpointReport> {
        crate::checkpoint::run(request, watcher)
    }

    fn restore(&mut self, request: &Restore, watcher: &mut dyn Watcher) -> Result<Restored> {
        crate::restore::run(request, watcher)
    }
}
