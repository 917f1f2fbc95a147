//! What is known of an image, ready to be printed; with `--json` this is what programs get, so a change
//! here is a change for them.

use super::command_line::Pages;
use super::descriptors::{Describer, Line};
use super::namespaces::{Namespace, namespaces};
use super::regions::{Region, SharedMemory, regions, shared};
use crate::error::{Error, Exit, Result};
use crate::image::PathBytes;
use crate::image::archive::Reader;
use crate::image::files::Files;
use crate::image::header::Header;
use crate::image::memory::{Backing, Objects, PAGE};
use crate::image::process::{Alive, Process};
use crate::image::sockets::Sockets;
use serde::Serialize;
use std::collections::HashMap;

/// Bytes in a process and of those in the image.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Amount {
    /// Bytes of addresses or of content.
    pub size: u64,
    /// Bytes of those that the image holds, before compression.
    pub stored: u64,
}

/// Members of one kind.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Part {
    /// How many.
    pub members: u64,
    /// Their bytes in the image.
    pub bytes: u64,
}

/// How large everything is.
#[derive(Debug, Default, Serialize)]
pub struct Sizes {
    /// The whole tar, not gzipped.
    pub image: u64,
    /// Bytes of memory that are stored, before compression.
    pub pages: u64,
    /// Pieces of memory.
    pub memory: Part,
    /// Pieces of the root file system.
    pub rootfs: Part,
    /// Contents of deleted files, of pipes, of file systems in memory.
    pub contents: Part,
    /// Everything that is JSON.
    pub records: Part,
}

/// A thread.
#[derive(Debug, Serialize)]
pub struct Thread {
    /// Its number.
    pub tid: i32,
    /// Its name.
    pub name: String,
}

/// A process.
#[derive(Debug, Serialize)]
pub struct ProcessView {
    /// Its number.
    pub pid: i32,
    /// Its parent; 0 is somebody outside.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// Its name.
    pub name: String,
    /// `running`, `stopped` or `zombie`.
    pub state: &'static str,
    /// The status of a zombie, as in wait(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    /// Its command line; empty where the image does not have it.
    pub command: Vec<String>,
    /// The file of its program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Its working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Effective user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Effective group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The leader first.
    pub threads: Vec<Thread>,
    /// All regions together; pages that processes share count for each.
    pub memory: Amount,
    /// Ascending by address.
    pub regions: Vec<Region>,
    /// Ascending by number.
    pub descriptors: Vec<Line>,
}

/// A member.
#[derive(Debug, Serialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its bytes in the image.
    pub bytes: u64,
}

/// Everything that is shown.
#[derive(Debug, Serialize)]
pub struct View {
    /// The first member, as it is.
    pub header: Header,
    /// How large everything is.
    pub sizes: Sizes,
    /// Ascending by number.
    pub processes: Vec<ProcessView>,
    /// Memory that belongs to no process alone.
    pub shared_memory: Vec<SharedMemory>,
    /// What the processes are in.
    pub namespaces: Vec<Namespace>,
    /// In the order of the tar.
    pub members: Vec<Member>,
}

impl View {
    pub fn of(reader: &Reader) -> Result<Self> {
        let objects: Objects = reader.optional("objects/memory.json")?;
        let files: Files = reader.optional("objects/files.json")?;
        let sockets = reader
            .names()
            .filter(|name| name.starts_with("objects/sockets") && name.ends_with(".json"))
            .map(|name| reader.record(name))
            .collect::<Result<Vec<Sockets>>>()?;
        let describer = Describer::new(&files, &sockets);
        let mut pages = Pages::of(reader);
        let mut mapped: HashMap<u32, Vec<i32>> = HashMap::new();
        let mut processes = Vec::new();
        for process in process_records(reader)? {
            note_shared(&process, &mut mapped);
            processes.push(of_process(&process, &objects, &describer, &mut pages)?);
        }
        processes.sort_by_key(|process| process.pid);
        let members: Vec<_> = reader
            .names()
            .map(|name| Member {
                name: name.to_owned(),
                bytes: reader.size(name).unwrap_or(0),
            })
            .collect();
        Ok(Self {
            header: reader.header().clone(),
            sizes: sizes(&members, &objects, reader.length()?),
            processes,
            shared_memory: shared(&objects, mapped),
            namespaces: namespaces(reader)?,
            members,
        })
    }

    /// Leaves out all processes but one.
    pub fn only(&mut self, pid: i32) -> Result<()> {
        self.processes.retain(|process| process.pid == pid);
        if self.processes.is_empty() {
            return Err(Error::coded(
                "E-NO-SUCH-PROCESS",
                Exit::NotFound,
                format!("the image holds no process {pid}"),
                "ocimig inspect without --process lists all of them",
            ));
        }
        Ok(())
    }
}

/// The records of all processes.
pub fn process_records(reader: &Reader) -> Result<Vec<Process>> {
    let names = reader.names();
    names
        .filter(|name| name.starts_with("processes/") && name.ends_with(".json"))
        .map(|name| reader.record(name))
        .collect()
}

fn note_shared(process: &Process, mapped: &mut HashMap<u32, Vec<i32>>) {
    let areas = process.alive.iter().flat_map(|alive| &alive.memory.areas);
    for area in areas {
        if let Backing::Shared { object, .. } = area.backing {
            let pids = mapped.entry(object).or_default();
            if pids.last() != Some(&process.member.pid) {
                pids.push(process.member.pid);
            }
        }
    }
}

fn of_process(
    process: &Process,
    objects: &Objects,
    describer: &Describer<'_>,
    pages: &mut Pages<'_>,
) -> Result<ProcessView> {
    let member = &process.member;
    let state = match (&process.alive, process.stopped) {
        (None, _) => "zombie",
        (Some(_), Some(_)) => "stopped",
        (Some(_), None) => "running",
    };
    let mut view = ProcessView {
        pid: member.pid,
        ppid: member.ppid,
        pgid: member.pgid,
        sid: member.sid,
        name: path(&process.comm),
        state,
        status: member.zombie,
        command: Vec::new(),
        program: None,
        directory: None,
        uid: None,
        gid: None,
        threads: Vec::new(),
        memory: Amount::default(),
        regions: Vec::new(),
        descriptors: Vec::new(),
    };
    if let Some(alive) = &process.alive {
        fill(&mut view, alive, objects);
        view.command = pages.command_line(&alive.memory)?;
        view.descriptors = describer.table(member.pid);
    }
    Ok(view)
}

fn fill(view: &mut ProcessView, alive: &Alive, objects: &Objects) {
    let memory = &alive.memory;
    view.program = memory.program.exe.as_ref().map(|exe| path(&exe.path));
    view.directory = alive.place.cwd.as_ref().map(|cwd| path(&cwd.path));
    if let Some(leader) = alive.threads.first() {
        view.uid = Some(leader.credentials.uids[1]);
        view.gid = Some(leader.credentials.gids[1]);
    }
    let threads = alive.threads.iter().map(|thread| Thread {
        tid: thread.tid,
        name: path(&thread.comm),
    });
    view.threads = threads.collect();
    view.regions = regions(memory, objects);
    for region in &view.regions {
        let Amount { size, stored } = region.amount;
        view.memory.size = view.memory.size.saturating_add(size);
        view.memory.stored = view.memory.stored.saturating_add(stored);
    }
}

fn sizes(members: &[Member], objects: &Objects, image: u64) -> Sizes {
    let runs = objects.shared.iter().flat_map(|shared| &shared.pages);
    let shared = runs.map(|run| run.1).fold(0, u64::saturating_add);
    let pages = objects.anonymous_pages.saturating_add(shared);
    let mut sizes = Sizes {
        image,
        pages: pages.saturating_mul(PAGE),
        ..Sizes::default()
    };
    for member in members {
        let part = match member.name.split_once('/') {
            Some(("memory", _)) => &mut sizes.memory,
            Some(("rootfs", _)) => &mut sizes.rootfs,
            _ if member.name.ends_with(".json") => &mut sizes.records,
            _ => &mut sizes.contents,
        };
        part.members += 1;
        part.bytes = part.bytes.saturating_add(member.bytes);
    }
    sizes
}

/// A path or name as text: an image may hold names that would do things to a terminal.
pub fn path(name: &PathBytes) -> String {
    printable(&name.to_string())
}

/// Text in which control characters are shown, not obeyed.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}
