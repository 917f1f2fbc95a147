//! The story of a checkpoint, in order.
//!
//! ```text
//! find → guard → FREEZE → hold every thread → collect everything
//!      → anything that cannot be taken along? say all of it, let everything go
//!      → write → sync → kill, or let go
//! ```
//!
//! Until the image is complete and on the disk nothing is killed, and whatever fails lets the container
//! go on as it was: every value that holds something of it gives it back when it is dropped. Should this
//! process be killed, the kernel lets the traced threads go, and the guard thaws the cgroup.

pub mod collect;
mod memory_only;
pub mod stop;
pub mod track;
mod write;

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::fault;
use crate::image::archive::{Output as ArchiveOutput, Reader, Writer};
use crate::image::header::Container as Identity;
use crate::proc::read::Process;
use crate::request::{
    After, CgroupMode, Checkpoint, CheckpointReport, EmptyNamespace, Extent, External, Facts,
    NetworkLock, Output, Phase, Progress, Rootfs, Stage, Target, Tcp, Watcher,
};
use crate::resource::cgroup::Cgroups;
use crate::resource::cgroup::freezer::Freezer;
use crate::resource::layer::{self, Overlay};
use crate::resource::memory::Known;
use crate::resource::memory::increment::Increment;
use crate::resource::namespaces::mnt;
use crate::resource::sockets::{self, Choices, Hold};
use crate::sys::guard::Guard;
use collect::{Collected, Options};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use stop::Scope;

/// How often a container is looked at that is in the middle of something.
const TRIES: u32 = 8;
/// How long it goes on in between, the first time.
const PAUSE: Duration = Duration::from_millis(5);

/// What the members are called that hold files without a name.
const GHOSTS: &str = "files/ghost-";

/// Checkpoints a container.
pub fn run(request: &Checkpoint, watcher: &mut dyn Watcher) -> Result<CheckpointReport> {
    let mut locked = false;
    let result = attempt(request, watcher, &mut locked);
    match result {
        Err(error) if locked => {
            let told = watcher.notify(Stage::NetworkUnlock, &Facts::default());
            Err(error.and_cleanup(told))
        }
        result => result,
    }
}

/// `locked` says whether somebody was told that the network is locked, and not yet that it is not.
fn attempt(
    request: &Checkpoint,
    watcher: &mut dyn Watcher,
    locked: &mut bool,
) -> Result<CheckpointReport> {
    let init = match request.target() {
        Target::Pid(pid) => *pid,
        Target::Container { id, .. } => {
            return Err(Error::bug(format!("container {id} was not looked up")));
        }
    };
    let scope = scope(init)?;
    fault::point("found")?;
    let options = request.options();
    let parent = open_parent(request)?;
    let increment = increment(request, parent.as_ref())?;
    let mut tracked = track::find(track::Who::is(init)?, parent.as_ref())?;
    drop(parent);
    if options.extent == Extent::MemoryOnly {
        return memory_only::run(request, scope, (increment, tracked), watcher);
    }
    let config = read_config(request)?;
    let cgroups = Cgroups::of_container(init, &known_cgroups(request), &[])?;
    // The cgroup of a tree of processes that is no container may hold others too.
    let mut freezer = match scope {
        Scope::Namespace(_) => Freezer::find(&cgroups)?,
        Scope::Tree(_) => None,
    };
    let guard = match &freezer {
        Some(freezer) => Some(Guard::start(freezer.undo()?)?),
        None => None,
    };
    fault::point("guarded")?;
    watcher.notify(Stage::PreDump, &Facts::default())?;
    let mut external = None;
    let mut tries = 0;
    let (begun, freezing, container, collected, root, refusals, known) = loop {
        let begun = Instant::now();
        watcher.progress(progress(Phase::Freezing));
        if let Some(freezer) = &mut freezer {
            freezer.freeze(options.freeze_timeout)?;
        }
        fault::point("frozen")?;
        let mut refusals = Refusals::new();
        let mut container = stop::hold(scope, freezer.as_mut(), &mut refusals)?;
        let freezing = begun.elapsed();
        fault::point("thawed-into-trap")?;
        let external = match &external {
            Some(known) => known,
            None => {
                *locked = true;
                watcher.notify(Stage::NetworkLock, &Facts::default())?;
                watcher.notify(Stage::QueryExtFiles, &Facts::default())?;
                let mut all = options.external.clone();
                all.append(&mut watcher.external());
                external.insert(all)
            }
        };
        watcher.progress(progress(Phase::Collecting));
        // What was unchanged at the first try need not be at the next.
        let known = match tracked.take() {
            Some(tracked) => tracked.unchanged()?,
            None => Known::default(),
        };
        let collect_options = collect_options(request, external, &cgroups, config.as_ref())?;
        let collected = collect::collect(&mut container, &collect_options, &mut refusals)?;
        fault::point("collected")?;
        refuse_large_ghosts(&collected, options.ghost_limit, &mut refusals);
        let root = root_layer(init, options.rootfs, &mut refusals)?;
        tries += 1;
        if !refusals.will_pass() || tries >= TRIES {
            break (begun, freezing, container, collected, root, refusals, known);
        }
        // What stands in the way is gone in a moment, if the container goes on for one.
        tracing::debug!("trying again: {:?}", refusals.as_slice());
        drop(collected);
        if let Some(freezer) = &mut freezer {
            freezer.as_found()?;
        }
        container.release()?;
        std::thread::sleep(PAUSE * tries);
    };
    refusals.into_result()?;
    fault::point("refused-check")?;
    let mut report = CheckpointReport {
        processes: collected.processes.len(),
        freezing,
        pages_written: collected.pages.size() / crate::image::memory::PAGE,
        ..CheckpointReport::default()
    };
    if !options.dry_run {
        write_image(
            request,
            &collected,
            config.as_ref(),
            root,
            (increment, &known),
            watcher,
            &mut report,
        )?;
    }
    fault::point("renamed")?;
    let held = hold_connections(request, init, &collected)?;
    watcher.notify(Stage::PostDump, &Facts::default())?;
    end(request, container, freezer, collected, watcher)?;
    *locked = false;
    if let Some(held) = held {
        held.stay()?;
    }
    report.frozen = begun.elapsed();
    fault::point("released")?;
    if let Some(guard) = guard {
        guard.end()?;
    }
    Ok(report)
}

/// Files without a name go into the image whole, which a caller may not want.
fn refuse_large_ghosts(collected: &Collected, limit: Option<u64>, refusals: &mut Refusals) {
    for (member, content) in &collected.contents {
        let size = content.len();
        if limit.is_some_and(|limit| size > limit) && member.starts_with(GHOSTS) {
            refusals.add(
                "E-GHOST-LIMIT",
                format!("a file without a name ({member})"),
                format!("it has {size} bytes, more than the limit"),
                "raise the limit (ghost-limit)",
            );
        }
    }
}

/// Holds back packets of kept connections in a network namespace that outlives the container.
fn hold_connections(
    request: &Checkpoint,
    init: i32,
    collected: &Collected,
) -> Result<Option<Hold>> {
    let options = request.options();
    let connections = sockets::outside(&collected.sockets);
    let outlives = collected
        .namespaces
        .iter()
        .any(|one| one.kind == "net" && (one.host || one.external.is_some()));
    let wanted = options.after == After::Kill
        && !options.dry_run
        && options.network_lock == NetworkLock::Nftables;
    if connections.is_empty() || !outlives || !wanted {
        return Ok(None);
    }
    let namespace = crate::sys::ns::open(init, crate::sys::ns::Kind::Net)?;
    sockets::hold(namespace.as_fd(), &connections).map(Some)
}

fn progress(phase: Phase) -> Progress {
    Progress {
        phase,
        done: 0,
        total: None,
    }
}

/// A container, or any process with its descendants.
fn scope(host_pid: i32) -> Result<Scope> {
    let process = Process::new(host_pid);
    let status = process.status().map_err(|error| {
        if process.exists() {
            error
        } else {
            Error::coded(
                "E-NO-PROCESS",
                Exit::NotFound,
                format!("there is no process {host_pid}"),
                "give the number of the container's first process, as this host numbers it",
            )
        }
    })?;
    let own = std::fs::read_link("/proc/self/ns/pid").doing(|| "reading /proc/self/ns/pid")?;
    let path = process.path("ns/pid");
    let theirs = std::fs::read_link(&path).doing(|| format!("reading {}", path.display()))?;
    if own == theirs {
        return Ok(Scope::Tree(host_pid));
    }
    if status.own_pid() == 1 {
        return Ok(Scope::Namespace(host_pid));
    }
    Err(Error::coded(
        "E-NO-INIT",
        Exit::Refused,
        format!("process {host_pid} is in another PID namespace and not the first of it"),
        "give the number of that namespace's first process",
    ))
}

fn read_config(request: &Checkpoint) -> Result<Option<serde_json::Value>> {
    let Some(bundle) = &request.options().description.bundle else {
        return Ok(None);
    };
    let path = bundle.join("config.json");
    let doing = || format!("reading {}", path.display());
    let bytes = std::fs::read(&path).doing(doing)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|why| {
        Error::coded(
            "E-CONFIG",
            Exit::Failure,
            format!("{} is no JSON: {why}", path.display()),
            "repair the bundle",
        )
    })
}

/// The cgroup that the caller names, as a path in its hierarchy.
fn known_cgroups(request: &Checkpoint) -> Vec<String> {
    let Some(directory) = &request.options().freeze_cgroup else {
        return Vec::new();
    };
    let Ok(hierarchies) = crate::resource::cgroup::Hierarchies::of_this_host() else {
        return Vec::new();
    };
    hierarchies
        .0
        .iter()
        .filter_map(|hierarchy| {
            let top = hierarchy.directory("/")?;
            let inside = directory.strip_prefix(&top).ok()?;
            Some(format!("/{}", inside.display()))
        })
        .collect()
}

fn collect_options(
    request: &Checkpoint,
    external: &[External],
    cgroups: &Cgroups,
    config: Option<&serde_json::Value>,
) -> Result<Options> {
    let options = request.options();
    let mut mounts = mnt::Options {
        cgroups: cgroups
            .places
            .iter()
            .map(|place| (place.hierarchy.name(), place.path.clone()))
            .collect(),
        external: config.map_or_else(BTreeMap::new, mnt::external_of_spec),
        masked: config.map_or_else(BTreeSet::new, mnt::masked_of_spec),
    };
    for one in external {
        if let External::Mount { point, name } = one {
            mounts
                .external
                .insert(point.as_os_str().as_bytes().to_vec(), name.clone());
        }
    }
    Ok(Options {
        files: external
            .iter()
            .filter(|one| {
                matches!(
                    one,
                    External::File { .. } | External::Terminal { .. } | External::Unix { .. }
                )
            })
            .map(ToString::to_string)
            .collect(),
        sockets: Choices {
            tcp_established: options.tcp == Tcp::Keep,
            tcp_close: options.tcp == Tcp::Drop,
            ext_unix_sk: options.external_unix,
        },
        mounts,
        namespaces: external
            .iter()
            .filter_map(|one| match one {
                External::Namespace { kind, inode, name } => {
                    Some((kind.clone(), *inode, name.clone()))
                }
                _ => None,
            })
            .collect(),
        empty_net: options.empty_namespaces.contains(&EmptyNamespace::Net),
        cgroups: (options.cgroups != CgroupMode::Ignore).then(|| cgroups.clone()),
        shell_job: options.shell_job,
    })
}

/// What is taken of the root file system.
enum Root {
    Nothing,
    /// The upper directory of an overlay.
    Upper(File),
    /// All of the root mount.
    Whole(std::os::fd::OwnedFd),
}

fn root_layer(init: i32, wanted: Rootfs, refusals: &mut Refusals) -> Result<Root> {
    if wanted == Rootfs::None {
        return Ok(Root::Nothing);
    }
    let mounts = Process::new(init).mountinfo()?;
    let own = Process::new(std::process::id().cast_signed()).mountinfo()?;
    let Some(root) = mounts.iter().find(|mount| mount.mount_point == b"/") else {
        return Err(Error::bug("the container has no root mount"));
    };
    let shares_root = own.iter().any(|mount| {
        mount.mount_point == b"/" && mount.device == root.device && mount.root == root.root
    });
    if shares_root {
        // It runs on the host's own root.
        return Ok(Root::Nothing);
    }
    let upper = root
        .super_options()
        .find_map(|option| option.strip_prefix(b"upperdir=").map(<[u8]>::to_vec))
        .filter(|_| root.fs_type == b"overlay" && wanted != Rootfs::Full);
    if let Some(upper) = upper {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(&upper));
        return match File::open(&path) {
            Ok(directory) => Ok(Root::Upper(directory)),
            Err(error) => {
                refusals.add(
                    "E-ROOTFS-UPPER",
                    format!("the upper directory {} of the root", path.display()),
                    format!("it cannot be opened here: {error}"),
                    "take the whole root with --rootfs full, or nothing of it with --rootfs none",
                );
                Ok(Root::Nothing)
            }
        };
    }
    if wanted == Rootfs::Diff {
        refusals.add(
            "E-ROOTFS-NO-OVERLAY",
            "the root file system",
            "it is no overlay, so nobody knows what the container changed",
            "take the whole root with --rootfs full",
        );
        return Ok(Root::Nothing);
    }
    let namespace = crate::sys::ns::open(init, crate::sys::ns::Kind::Mnt)?;
    let whole = crate::sys::ns::inside(&[namespace.as_fd()], || {
        let top = File::open("/").doing(|| "opening the container's root")?;
        crate::sys::mount::clone_tree(top.as_fd())
    })?;
    Ok(Root::Whole(whole))
}

/// The image that this one leans on.
fn open_parent(request: &Checkpoint) -> Result<Option<Reader>> {
    let parent = request.options().parent.as_ref();
    parent
        .map(|parent| Reader::open(&parent.image).doing(|| "opening the parent image"))
        .transpose()
}

/// What may be left out, because the parent image has it.
fn increment(request: &Checkpoint, image: Option<&Reader>) -> Result<Increment> {
    let options = request.options();
    let keep_digests = options.track_memory || options.extent == Extent::MemoryOnly;
    let recorded_as = options.parent.as_ref().map(|one| one.recorded_as.as_path());
    Increment::new(image.zip(recorded_as), keep_digests).doing(|| "reading the parent image")
}

fn identity(request: &Checkpoint) -> Identity {
    let description = &request.options().description;
    Identity {
        id: description.id.clone().unwrap_or_default(),
        name: description.name.clone(),
        runtime: description.runtime.clone(),
    }
}

fn write_image(
    request: &Checkpoint,
    collected: &Collected,
    config: Option<&serde_json::Value>,
    root: Root,
    (mut increment, known): (Increment, &Known),
    watcher: &mut dyn Watcher,
    report: &mut CheckpointReport,
) -> Result<()> {
    let header = write::header(identity(request), request.options().compression)?;
    let output = match request.output() {
        Output::File(path) => ArchiveOutput::File(path.clone()),
        Output::Stream(fd) => ArchiveOutput::Stream(fd.try_clone()?),
    };
    let mut writer = Writer::create(output, &header)?;
    if !request.options().sync {
        writer = writer.without_sync();
    }
    let mut refusals = Refusals::new();
    write::records(&mut writer, collected, config)?;
    write::contents(&mut writer, collected, &mut refusals)?;
    match root {
        Root::Nothing => {}
        Root::Upper(upper) => {
            let mut pieces = writer.pieces("rootfs/diff");
            layer::capture(
                upper.as_fd(),
                Overlay::Upper,
                "the root file system",
                &mut pieces,
                &mut refusals,
            )?;
            pieces.finish()?;
        }
        Root::Whole(whole) => {
            let mut pieces = writer.pieces("rootfs/full");
            layer::capture(
                whole.as_fd(),
                Overlay::No,
                "the root file system",
                &mut pieces,
                &mut refusals,
            )?;
            pieces.finish()?;
        }
    }
    refusals.into_result()?;
    fault::point("metadata-written")?;
    let begun = Instant::now();
    write::pages(&mut writer, collected, (&mut increment, known), watcher)?;
    report.memory_dump = begun.elapsed();
    report.pages_scanned = increment.scanned;
    report.pages_skipped_parent = increment.skipped;
    report.pages_written = increment.scanned - increment.skipped;
    increment.finish(&mut writer)?;
    fault::point("pages-written")?;
    watcher.progress(progress(Phase::Syncing));
    let begun = Instant::now();
    report.image_bytes = writer.finish()?.bytes;
    report.memory_write = begun.elapsed();
    Ok(())
}

/// The image is complete: the container ends, or goes on.
fn end(
    request: &Checkpoint,
    container: stop::Container,
    freezer: Option<Freezer>,
    collected: Collected,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let options = request.options();
    if options.dry_run || options.after != After::Kill {
        if let Some(mut freezer) = freezer {
            // A container that was paused is frozen again before its threads are let go.
            freezer.as_found()?;
            freezer.forget();
        }
        if options.after == After::Stop {
            for subject in &container.subjects {
                crate::sys::pidfd::send_signal(subject.pidfd.as_fd(), libc::SIGSTOP)?;
            }
        }
        container.release()?;
        drop(collected);
        watcher.notify(Stage::NetworkUnlock, &Facts::default())?;
        return Ok(());
    }
    collected.outside.silence()?;
    container.kill()?;
    collected.outside.gone();
    if let Some(freezer) = freezer {
        freezer.forget();
    }
    Ok(())
}
