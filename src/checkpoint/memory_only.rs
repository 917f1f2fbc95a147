//! A checkpoint of the memory only, while the container runs: a later checkpoint then finds most of
//! its pages there. The container is stopped for the moment that it takes to protect its pages
//! ([`super::track`]); what is read afterwards, while it runs, is what it holds until it writes there.

use super::stop::{self, Scope};
use super::track::{self, Tracked, Tracker, Who};
use super::write;
use crate::error::{Refusals, Result};
use crate::image::archive::{Output as ArchiveOutput, Reader, Writer};
use crate::image::memory::{DISTINCT, PAGE, PLACES, PageRun, Places};
use crate::request::{Checkpoint, CheckpointReport, Output, Phase, Progress, Watcher};
use crate::resource::cgroup::Cgroups;
use crate::resource::cgroup::freezer::Freezer;
use crate::resource::memory::increment::{Distinct, Increment};
use crate::resource::memory::{Filled, live};
use crate::sys::guard::Guard;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Reads the memory of all of `scope` into an image.
pub fn run(
    request: &Checkpoint,
    scope: Scope,
    (mut increment, earlier): (Increment, Option<Tracked>),
    watcher: &mut dyn Watcher,
) -> Result<CheckpointReport> {
    let begun = Instant::now();
    if let Some(earlier) = earlier {
        earlier.end()?;
    }
    let tracked = match request.output() {
        Output::File(_) => track_from_now(request, scope),
        // Nobody can lean on what is not there.
        Output::Stream(_) => Ok((None, Duration::ZERO)),
    };
    let (tracker, frozen) = tracked.unwrap_or_else(|error| {
        tracing::warn!("written pages are not tracked, but compared: {error}");
        (None, Duration::ZERO)
    });
    // What cannot be taken along is the concern of the checkpoint that follows.
    let host_pids = scope.walk(&mut Refusals::new())?;
    let mut header = write::header(super::identity(request), request.options().compression)?;
    header.memory_only = true;
    let output = match request.output() {
        Output::File(path) => ArchiveOutput::File(path.clone()),
        Output::Stream(fd) => ArchiveOutput::Stream(fd.try_clone()?),
    };
    let mut writer = Writer::create(output, &header)?;
    if !request.options().sync {
        writer = writer.without_sync();
    }
    let (done, places) = read(&host_pids, &mut writer, &mut increment, watcher)?;
    let read = begun.elapsed();
    let report = CheckpointReport {
        processes: host_pids.len(),
        freezing: frozen,
        frozen,
        memory_dump: read,
        pages_scanned: done / PAGE,
        pages_skipped_parent: increment.skipped,
        pages_written: increment.scanned - increment.skipped,
        ..CheckpointReport::default()
    };
    if tracker.is_some() {
        writer.record(PLACES, &places)?;
    }
    increment.finish(&mut writer)?;
    let image_bytes = writer.finish()?.bytes;
    if let (Some(tracker), Output::File(path)) = (tracker, request.output()) {
        tracker.stay(Reader::open(path)?.identity())?;
    }
    Ok(CheckpointReport {
        image_bytes,
        memory_write: begun.elapsed() - read,
        ..report
    })
}

/// Writes every different page once; returns how many bytes were read, and where each page is.
fn read(
    host_pids: &[i32],
    writer: &mut Writer,
    increment: &mut Increment,
    watcher: &mut dyn Watcher,
) -> Result<(u64, Vec<Places>)> {
    let mut distinct = Distinct::default();
    let mut seen = BTreeSet::new();
    let mut done = 0;
    let mut all = Vec::new();
    let mut store = |number: u64, bytes: Vec<u8>| {
        let bytes = increment.take(Filled {
            object: DISTINCT,
            number,
            bytes,
            known: &[],
        })?;
        writer.piece(&format!("memory/{DISTINCT}"), number, bytes)
    };
    for &host_pid in host_pids {
        // Those that have ended meanwhile have nothing.
        let Ok(who) = Who::is(host_pid) else { continue };
        let mut runs: Vec<PageRun> = Vec::new();
        live::read(host_pid, &mut seen, &mut |address, pages| {
            done += pages.len() as u64;
            watcher.progress(Progress {
                phase: Phase::Transferring,
                done,
                total: None,
            });
            let mut next = address;
            distinct.take(pages, &mut store, &mut |index| {
                if let Some(start) = next {
                    place(&mut runs, start, index);
                    next = Some(start + PAGE);
                }
            })
        })?;
        all.push(who.with(runs));
    }
    distinct.finish(&mut store)?;
    Ok((done, all))
}

fn place(runs: &mut Vec<PageRun>, start: u64, index: u64) {
    match runs.last_mut() {
        Some(last) if last.end() == start && last.index + last.pages == index => last.pages += 1,
        _ => runs.push(PageRun {
            start,
            pages: 1,
            index,
        }),
    }
}

/// Stops the container, protects its pages, and lets it go on; says how long it stood.
fn track_from_now(request: &Checkpoint, scope: Scope) -> Result<(Option<Tracker>, Duration)> {
    let top = Who::is(scope.top())?;
    let known = super::known_cgroups(request);
    let mut freezer = match scope {
        Scope::Namespace(init) => Freezer::find(&Cgroups::of_container(init, &known, &[])?)?,
        Scope::Tree(_) => None,
    };
    let guard = match &freezer {
        Some(freezer) => Some(Guard::start(freezer.undo()?)?),
        None => None,
    };
    let begun = Instant::now();
    if let Some(freezer) = &mut freezer {
        freezer.freeze(request.options().freeze_timeout)?;
    }
    let mut container = stop::hold(scope, freezer.as_mut(), &mut Refusals::new())?;
    let armed = track::arm(&mut container);
    if let Some(mut freezer) = freezer {
        freezer.as_found()?;
        freezer.forget();
    }
    container.release()?;
    let frozen = begun.elapsed();
    if let Some(guard) = guard {
        guard.end()?;
    }
    Ok((Some(armed?.hand_over(top)?), frozen))
}
