//! The image of a collected container, in one pass.

use super::collect::Collected;
use crate::error::{Context, Refusals, Result};
use crate::image::archive::Writer;
use crate::image::header::Compression;
use crate::image::header::{Container, FORMAT, Header, Host};
use crate::image::memory::PAGE;
use crate::request::{Phase, Progress, Watcher};
use crate::resource::layer::{self, Overlay};
use crate::resource::memory::Known;
use crate::resource::memory::increment::Increment;
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// The first member.
pub fn header(container: Container, compression: Compression) -> Result<Header> {
    let uname = nix::sys::utsname::uname().doing(|| "uname")?;
    let cpu = std::fs::read_to_string("/proc/cpuinfo").doing(|| "reading /proc/cpuinfo")?;
    let field = |name: &str| {
        cpu.lines()
            .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))
            .map(str::trim)
            .unwrap_or_default()
            .to_owned()
    };
    let mut features: Vec<String> = field("flags")
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    features.sort();
    Ok(Header {
        format: FORMAT,
        engine: concat!("ocimig ", env!("CARGO_PKG_VERSION")).to_owned(),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        host: Host {
            kernel: uname.release().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            page_size: PAGE,
            cpu_model: field("model name"),
            cpu_features: features,
            xsave_components: crate::resource::threads::xstate_components(),
        },
        container,
        compression,
        memory_only: false,
        requires: Vec::new(),
    })
}

/// Writes the records.
pub fn records(
    writer: &mut Writer,
    collected: &Collected,
    config: Option<&serde_json::Value>,
) -> Result<()> {
    if let Some(config) = config {
        writer.record("config.json", config)?;
    }
    for process in &collected.processes {
        writer.record(&format!("processes/{}.json", process.member.pid), process)?;
    }
    writer.record("objects/files.json", &collected.files)?;
    writer.record("objects/sockets.json", &collected.sockets)?;
    writer.record("objects/memory.json", &collected.memory)?;
    writer.record("objects/seccomp.json", &collected.seccomp)?;
    writer.record("namespaces/list.json", &collected.namespaces)?;
    writer.record("namespaces/time.json", &collected.time)?;
    if let Some(uts) = &collected.uts {
        writer.record("namespaces/uts.json", uts)?;
    }
    if let Some(net) = &collected.net {
        writer.record("namespaces/net.json", net)?;
    }
    if let Some(ipc) = &collected.ipc {
        writer.record("namespaces/ipc.json", ipc)?;
    }
    if !collected.cgroups.is_empty() {
        writer.record("namespaces/cgroup.json", &collected.cgroups)?;
    }
    if let Some(mounts) = &collected.mounts {
        writer.record("namespaces/mnt.json", mounts)?;
    }
    Ok(())
}

/// Writes what records only name: queues, deleted files, file systems of the container's own.
pub fn contents(writer: &mut Writer, collected: &Collected, refusals: &mut Refusals) -> Result<()> {
    for (member, content) in &collected.contents {
        writer
            .fill(member, content.len(), &mut |out| content.write_to(out))
            .doing(|| format!("writing {member}"))?;
    }
    for tree in &collected.trees {
        let mut pieces = writer.pieces(&tree.pieces);
        let what = format!("the file system at {}", tree.point);
        layer::capture(tree.root.as_fd(), Overlay::No, &what, &mut pieces, refusals)?;
        pieces.finish()?;
    }
    Ok(())
}

/// Writes the pages that no parent has.
pub fn pages(
    writer: &mut Writer,
    collected: &Collected,
    (increment, known): (&mut Increment, &Known),
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let total = collected.pages.size();
    let mut done = 0;
    let mut half = false;
    collected.pages.read(known, &mut |filled| {
        let skipped: u64 = filled.known.iter().map(|run| run.1).sum();
        done += filled.bytes.len() as u64 + skipped * PAGE;
        let (name, number) = (format!("memory/{}", filled.object), filled.number);
        let bytes = increment.take(filled)?;
        writer.piece(&name, number, bytes)?;
        if done >= total / 2 && !std::mem::replace(&mut half, true) {
            crate::fault::point("pages-half")?;
        }
        watcher.progress(Progress {
            phase: Phase::Transferring,
            done,
            total: Some(total),
        });
        Ok(())
    })
}
