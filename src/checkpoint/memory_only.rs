//! A checkpoint of the memory only, while the container runs: a later checkpoint then finds most of
//! its pages there. Nothing is stopped, nobody is told, and nothing of ours is in any process.

use super::stop::Scope;
use super::write;
use crate::error::{Refusals, Result};
use crate::image::archive::{Output as ArchiveOutput, Writer};
use crate::image::memory::DISTINCT;
use crate::request::{Checkpoint, CheckpointReport, Output, Phase, Progress, Watcher};
use crate::resource::memory::increment::{Distinct, Increment};
use crate::resource::memory::live;
use std::collections::BTreeSet;
use std::time::Instant;

/// Reads the memory of all of `scope` into an image.
pub fn run(
    request: &Checkpoint,
    scope: Scope,
    mut increment: Increment,
    watcher: &mut dyn Watcher,
) -> Result<CheckpointReport> {
    let begun = Instant::now();
    // What cannot be taken along is the concern of the checkpoint that follows.
    let host_pids = scope.walk(&mut Refusals::new())?;
    let mut header = write::header(super::identity(request), request.options().compression)?;
    header.memory_only = true;
    let output = match request.output() {
        Output::File(path) => ArchiveOutput::File(path.clone()),
        Output::Stream(fd) => ArchiveOutput::Stream(fd.try_clone()?),
    };
    let mut writer = Writer::create(output, &header)?;
    let mut distinct = Distinct::default();
    let mut seen = BTreeSet::new();
    let mut done = 0;
    let mut store = |number: u64, chunk: Vec<u8>| {
        let chunk = increment.take(DISTINCT, number, chunk);
        writer.piece(&format!("memory/{DISTINCT}"), number, chunk)
    };
    for &host_pid in &host_pids {
        live::read(host_pid, &mut seen, &mut |pages| {
            done += pages.len() as u64;
            watcher.progress(Progress {
                phase: Phase::Transferring,
                done,
                total: None,
            });
            distinct.take(pages, &mut store)
        })?;
    }
    distinct.finish(&mut store)?;
    let read = begun.elapsed();
    let report = CheckpointReport {
        processes: host_pids.len(),
        memory_dump: read,
        pages_scanned: done / crate::image::memory::PAGE,
        pages_skipped_parent: increment.skipped,
        pages_written: increment.scanned - increment.skipped,
        ..CheckpointReport::default()
    };
    increment.finish(&mut writer)?;
    let image_bytes = writer.finish()?.bytes;
    Ok(CheckpointReport {
        image_bytes,
        memory_write: begun.elapsed() - read,
        ..report
    })
}
