//! The areas of an address space, each with its kind and what of it the image holds.

use super::view::{Amount, path};
use crate::image::memory::{Area, Backing, Memory, Objects, PAGE, Shared, SharedKind};
use serde::Serialize;
use std::collections::HashMap;

/// An area.
#[derive(Debug, Serialize)]
pub struct Region {
    /// First address, in hexadecimal.
    pub start: String,
    /// The address after the last.
    pub end: String,
    /// As in `/proc/PID/maps`.
    pub perms: String,
    /// `anonymous`, `heap`, `stack`, `file`, `shared`, `memfd`, `system-v`, `vdso`,
    /// `vvar`.
    pub kind: &'static str,
    /// The file or name; empty where there is none.
    pub name: String,
    /// Where in the file or object it begins, in bytes.
    pub offset: u64,
    /// As in [`Area::attributes`].
    pub attributes: Vec<String>,
    /// In bytes.
    #[serde(flatten)]
    pub amount: Amount,
}

/// All areas of an address space.
pub fn regions(memory: &Memory, objects: &Objects) -> Vec<Region> {
    let mut runs = memory.pages.as_slice();
    memory
        .areas
        .iter()
        .map(|area| {
            let (kind, name, offset) = what(area, memory, objects);
            // Both are ascending: what ends before this area is of no later one.
            while let Some((first, rest)) = runs.split_first()
                && run_end(first.start, first.pages) <= area.start
            {
                runs = rest;
            }
            let stored = runs
                .iter()
                .take_while(|run| run.start < area.end)
                .map(|run| {
                    let end = run_end(run.start, run.pages).min(area.end);
                    end.saturating_sub(run.start.max(area.start))
                })
                .fold(0, u64::saturating_add);
            Region {
                start: format!("{:x}", area.start),
                end: format!("{:x}", area.end),
                perms: area.perms.clone(),
                kind,
                name,
                offset,
                attributes: area.attributes.clone(),
                amount: Amount {
                    size: area.end.saturating_sub(area.start),
                    stored,
                },
            }
        })
        .collect()
}

fn run_end(start: u64, pages: u64) -> u64 {
    start.saturating_add(pages.saturating_mul(PAGE))
}

fn what(area: &Area, memory: &Memory, objects: &Objects) -> (&'static str, String, u64) {
    let program = &memory.program;
    let holds = |address| (area.start..area.end).contains(&address);
    match area.backing {
        Backing::Anonymous => {
            let name = area.name.as_ref().map(path).unwrap_or_default();
            let heap = area.start < program.brk && program.start_brk < area.end;
            match () {
                () if heap => ("heap", name, 0),
                () if holds(program.start_stack) => ("stack", name, 0),
                () => ("anonymous", name, 0),
            }
        }
        Backing::File { file, offset, .. } => {
            let file = objects.files.get(file as usize);
            let name = file.map(|file| match file.ghost {
                Some(_) => format!("{} (deleted)", path(&file.path)),
                None => path(&file.path),
            });
            ("file", name.unwrap_or_default(), offset)
        }
        Backing::Shared { object, offset, .. } => match objects.shared.get(object as usize) {
            Some(shared) => {
                let (kind, name) = of_shared(shared);
                (kind, name, offset)
            }
            None => ("shared", String::new(), offset),
        },
        Backing::SystemV { id, offset } => ("system-v", format!("segment {id}"), offset),
        Backing::Vdso if area.perms.contains('x') => ("vdso", String::new(), 0),
        Backing::Vdso => ("vvar", String::new(), 0),
    }
}

fn of_shared(shared: &Shared) -> (&'static str, String) {
    match &shared.kind {
        SharedKind::Anonymous => ("shared", shared.object()),
        SharedKind::Memfd { name } => ("memfd", path(name)),
    }
}

/// Shared memory, which belongs to no process alone.
#[derive(Debug, Serialize)]
pub struct SharedMemory {
    /// Its name in the image.
    pub object: String,
    /// `shared` or `memfd`.
    pub kind: &'static str,
    /// The name of a memory file.
    pub name: String,
    /// Processes that map it, ascending.
    pub processes: Vec<i32>,
    /// In bytes.
    #[serde(flatten)]
    pub amount: Amount,
}

/// All shared memory; `mapped` has for each of `objects` who maps it.
pub fn shared(objects: &Objects, mut mapped: HashMap<u32, Vec<i32>>) -> Vec<SharedMemory> {
    objects
        .shared
        .iter()
        .zip(0..)
        .map(|(shared, number)| {
            let (kind, name) = of_shared(shared);
            let pages = shared.pages.iter().map(|run| run.1);
            SharedMemory {
                object: shared.object(),
                kind,
                name: if kind == "memfd" { name } else { String::new() },
                processes: mapped.remove(&number).unwrap_or_default(),
                amount: Amount {
                    size: shared.size,
                    stored: pages.fold(0, u64::saturating_add).saturating_mul(PAGE),
                },
            }
        })
        .collect()
}
