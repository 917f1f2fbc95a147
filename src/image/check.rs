//! What must hold of records before anybody builds from them. An image comes from anywhere: addresses
//! and counts that do not fit together are found here, so that what is built later may calculate.

use super::archive::Reader;
use super::memory::{ANONYMOUS, Backing, CHUNK_PAGES, Memory, Objects, PAGE};
use super::process::{Alive, Process};
use crate::error::{Error, Exit, Result};
use std::collections::BTreeSet;

/// Numbers of processes and threads are below (PID_MAX_LIMIT).
const MOST_PIDS: i32 = 4 << 20;
/// Addresses of processes are below, on every x86-64.
const ADDRESSES: u64 = 1 << 56;
/// Parts of the vdso, at most.
const VDSO_PARTS: usize = 16;

/// Checks the records of all processes against each other and against the pages that are there;
/// `E-IMAGE-RECORD` names the first that does not fit.
pub fn check(reader: &Reader, processes: &[Process], objects: &Objects) -> Result<()> {
    let stored = |object: &str| {
        let pieces = reader.pieces(&format!("memory/{object}"));
        pieces.saturating_mul(CHUNK_PAGES)
    };
    check_all(&stored, processes, objects)
}

fn check_all(stored: &dyn Fn(&str) -> u64, processes: &[Process], objects: &Objects) -> Result<()> {
    check_objects(stored, objects).map_err(|why| wrong("objects/memory.json", &why))?;
    let (mut pids, mut tids) = (BTreeSet::new(), BTreeSet::new());
    for process in processes {
        let name = format!("processes/{}.json", process.member.pid);
        check_process(process, objects, &mut pids, &mut tids).map_err(|why| wrong(&name, &why))?;
    }
    Ok(())
}

fn wrong(name: &str, why: &str) -> Error {
    Error::coded(
        "E-IMAGE-RECORD",
        Exit::Image,
        format!("{name}: {why}"),
        "restore the image as ocimig checkpoint wrote it",
    )
}

/// Why a record is refused.
type Check = std::result::Result<(), String>;

fn require(holds: bool, why: impl Fn() -> String) -> Check {
    match holds {
        true => Ok(()),
        false => Err(why()),
    }
}

fn check_objects(stored: &dyn Fn(&str) -> u64, objects: &Objects) -> Check {
    require(objects.anonymous_pages <= stored(ANONYMOUS), || {
        format!(
            "{} pages, but not as many are there",
            objects.anonymous_pages
        )
    })?;
    let mut names = BTreeSet::new();
    for shared in &objects.shared {
        let name = shared.object();
        let what = |why: &str| format!("{name}: {why}");
        require(names.insert(name.clone()), || what("is there twice"))?;
        require(shared.size < ADDRESSES, || what("is too large"))?;
        let there = stored(&name);
        let mut last = 0;
        for &(page, count, index) in &shared.pages {
            let end = page.checked_add(count);
            let fits = end.is_some_and(|end| end <= shared.size.div_ceil(PAGE));
            require(fits && page >= last && count > 0, || {
                what("has pages that do not follow each other within it")
            })?;
            let end_index = index.checked_add(count);
            require(end_index.is_some_and(|end| end <= there), || {
                what("has pages that are not there")
            })?;
            last = end.unwrap_or(last);
        }
    }
    Ok(())
}

fn check_process(
    process: &Process,
    objects: &Objects,
    pids: &mut BTreeSet<i32>,
    tids: &mut BTreeSet<i32>,
) -> Check {
    let pid = process.member.pid;
    require((1..=MOST_PIDS).contains(&pid), || {
        "no number of a process".into()
    })?;
    require(pids.insert(pid), || "is there twice".into())?;
    require(
        process.alive.is_some() != process.member.zombie.is_some(),
        || "is neither alive nor a zombie, or both".into(),
    )?;
    let Some(alive) = &process.alive else {
        return require(tids.insert(pid), || "is a thread too".into());
    };
    require(!alive.threads.is_empty(), || "has no thread".into())?;
    for thread in &alive.threads {
        let tid = thread.tid;
        require((1..=MOST_PIDS).contains(&tid), || {
            format!("{tid} is no thread")
        })?;
        require(tids.insert(tid), || format!("thread {tid} is there twice"))?;
    }
    check_signals(alive)?;
    check_memory(&alive.memory, objects)
}

fn check_signals(alive: &Alive) -> Check {
    let exists = |signal: i32| (1..=64).contains(&signal);
    let handled = alive.handlers.iter().map(|handler| handler.signal);
    for signal in handled {
        require(exists(signal), || format!("a handler of signal {signal}"))?;
    }
    let threads = alive.threads.iter().flat_map(|thread| &thread.pending);
    for pending in alive.pending.iter().chain(threads) {
        let signal = pending.signal;
        require(exists(signal) && pending.info.0.len() == 128, || {
            format!("signal {signal} waits in a way that no signal does")
        })?;
    }
    Ok(())
}

fn check_memory(memory: &Memory, objects: &Objects) -> Check {
    let mut last = 0;
    for area in &memory.areas {
        let what = || format!("area {:x}-{:x}", area.start, area.end);
        let in_order = last <= area.start && area.start < area.end && area.end <= ADDRESSES;
        require(in_order && is_aligned(&[area.start, area.end]), || {
            format!("{} does not follow the one before", what())
        })?;
        last = area.end;
        let perms = area.perms.as_bytes();
        let allowed: [&[u8]; 4] = [b"r-", b"w-", b"x-", b"ps"];
        let known = perms.len() == 4 && perms.iter().zip(allowed).all(|(one, of)| of.contains(one));
        require(known, || format!("{} has unknown permissions", what()))?;
        let (there, offset) = match area.backing {
            Backing::File { file, offset, .. } => ((file as usize) < objects.files.len(), offset),
            Backing::Shared { object, offset, .. } => {
                ((object as usize) < objects.shared.len(), offset)
            }
            Backing::SystemV { offset, .. } => (true, offset),
            Backing::Anonymous | Backing::Vdso => (true, 0),
        };
        // Offsets of files reach to 2^63.
        let length = area.end - area.start;
        let ends = offset.checked_add(length).is_some_and(|end| end >> 63 == 0);
        require(there && ends && is_aligned(&[offset]), || {
            format!("{} maps what is not there", what())
        })?;
    }
    let runs = memory.pages.iter().map(|run| (run.start, run.pages));
    check_runs(runs).map_err(|why| format!("pages: {why}"))?;
    for run in &memory.pages {
        let end = run.index.checked_add(run.pages);
        require(
            end.is_some_and(|end| end <= objects.anonymous_pages),
            || format!("the pages at {:x} are not there", run.start),
        )?;
    }
    check_runs(memory.guards.iter().copied()).map_err(|why| format!("guards: {why}"))?;
    let Some(vdso) = &memory.vdso else {
        return Ok(());
    };
    let parts = vdso.parts.iter().copied();
    let parts = parts.map(|(offset, length)| (vdso.start.saturating_add(offset), length / PAGE));
    let few = (1..=VDSO_PARTS).contains(&vdso.parts.len());
    require(few && vdso.start < ADDRESSES, || {
        "a vdso of no or many parts".into()
    })?;
    check_runs(parts).map_err(|why| format!("vdso: {why}"))
}

fn is_aligned(addresses: &[u64]) -> bool {
    addresses.iter().all(|address| address % PAGE == 0)
}

/// Whether runs of pages, (address, how many), follow each other below the end of all addresses.
fn check_runs(runs: impl Iterator<Item = (u64, u64)>) -> Check {
    let mut last = 0;
    for (start, pages) in runs {
        let end = pages
            .checked_mul(PAGE)
            .and_then(|size| size.checked_add(start));
        let end = end.filter(|end| *end <= ADDRESSES && pages > 0 && start >= last);
        let end = end.filter(|_| is_aligned(&[start]));
        last = end.ok_or_else(|| format!("{start:x} does not follow the one before"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::bytes::Bytes;
    use crate::image::files::Inode;
    use crate::image::memory::{Area, PageRun, Shared, SharedKind, Vdso};
    use crate::image::process::{Handler, Pending, Thread};
    use crate::image::tree::Member;

    const START: u64 = 0x7000_0000_0000;

    fn area(start: u64, pages: u64, backing: Backing) -> Area {
        Area {
            start,
            end: start + pages * PAGE,
            perms: "rw-p".into(),
            backing,
            name: None,
            attributes: Vec::new(),
        }
    }

    fn run(start: u64, pages: u64, index: u64) -> PageRun {
        PageRun {
            start,
            pages,
            index,
        }
    }

    fn whole() -> (Vec<Process>, Objects) {
        let shared = Backing::Shared {
            object: 0,
            offset: PAGE,
            writable: true,
        };
        let memory = Memory {
            areas: vec![
                area(START, 4, Backing::Anonymous),
                area(START + 4 * PAGE, 1, shared),
            ],
            pages: vec![run(START, 2, 0), run(START + 2 * PAGE, 1, 5)],
            guards: vec![(START + 3 * PAGE, 1)],
            vdso: Some(Vdso {
                start: START + 8 * PAGE,
                parts: vec![(0, PAGE), (PAGE, PAGE)],
                digest: String::new(),
            }),
            ..Memory::default()
        };
        let handler = Handler {
            signal: 15,
            handler: 1,
            flags: 0,
            restorer: 0,
            mask: 0,
        };
        let pending = Pending {
            signal: 64,
            code: 0,
            info: Bytes(vec![0; 128]),
        };
        let thread = |tid| Thread {
            tid,
            ..Thread::default()
        };
        let alive = Process {
            member: Member {
                pid: 1,
                ..Member::default()
            },
            alive: Some(Alive {
                threads: vec![thread(1), thread(9)],
                handlers: vec![handler],
                pending: vec![pending],
                memory,
                ..Alive::default()
            }),
            ..Process::default()
        };
        let zombie = Process {
            member: Member {
                pid: 7,
                zombie: Some(0),
                ..Member::default()
            },
            ..Process::default()
        };
        let shared = Shared {
            inode: Inode { dev: 1, ino: 2 },
            kind: SharedKind::Anonymous,
            size: 3 * PAGE - 5,
            pages: vec![(0, 1, 0), (2, 1, 1)],
        };
        let objects = Objects {
            anonymous_pages: 6,
            files: Vec::new(),
            shared: vec![shared],
        };
        (vec![alive, zombie], objects)
    }

    fn refused(change: impl Fn(&mut Alive, &mut Objects)) -> bool {
        let (mut processes, mut objects) = whole();
        if let Some(alive) = &mut processes[0].alive {
            change(alive, &mut objects);
        }
        let error = check_all(&|_| 256, &processes, &objects).err();
        error.is_some_and(|error| error.code() == "E-IMAGE-RECORD")
    }

    #[test]
    fn records_that_fit_together_are_taken() {
        assert!(!refused(|_, _| {}));
    }

    #[test]
    fn memory_that_no_process_can_have_is_refused() {
        type Change = fn(&mut Memory);
        let changes: [Change; 16] = [
            |memory| memory.areas.swap(0, 1),
            |memory| memory.areas[0].end = memory.areas[0].start,
            |memory| memory.areas[0].end += PAGE,
            |memory| memory.areas[0].start += 1,
            |memory| memory.areas[1].end = u64::MAX - PAGE + 1,
            |memory| memory.areas[0].perms = "rwzp".into(),
            |memory| memory.areas[0].perms = "rw".into(),
            |memory| memory.pages[0].pages = u64::MAX,
            |memory| memory.pages[0].pages = 0,
            |memory| memory.pages[0].index = u64::MAX,
            |memory| memory.pages[1].index = 6,
            |memory| memory.pages[1].start = START + PAGE,
            |memory| memory.pages[1].start += 1,
            |memory| memory.guards[0].1 = 1 << 60,
            |memory| {
                memory.vdso = Some(Vdso {
                    start: u64::MAX,
                    parts: vec![(u64::MAX, 1)],
                    digest: String::new(),
                })
            },
            |memory| memory.vdso.iter_mut().for_each(|vdso| vdso.parts.clear()),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(refused(|alive, _| change(&mut alive.memory)), "{number}");
        }
        for (file, offset) in [(0, 0), (u32::MAX, 0)] {
            let backing = Backing::File {
                file,
                offset,
                writable: false,
            };
            assert!(refused(|alive, _| alive.memory.areas[0].backing = backing));
        }
        for (object, offset) in [(1, 0), (0, 1), (0, u64::MAX - PAGE + 1)] {
            let backing = Backing::Shared {
                object,
                offset,
                writable: false,
            };
            assert!(refused(|alive, _| alive.memory.areas[0].backing = backing));
        }
    }

    #[test]
    fn pages_that_are_not_there_are_refused() {
        type Change = fn(&mut Objects);
        let changes: [Change; 8] = [
            |objects| objects.anonymous_pages = 257,
            |objects| objects.shared.push(objects.shared[0].clone()),
            |objects| objects.shared[0].size = u64::MAX,
            |objects| objects.shared[0].size = PAGE,
            |objects| objects.shared[0].pages[0] = (u64::MAX, 1, 0),
            |objects| objects.shared[0].pages[0] = (1, 2, 0),
            |objects| objects.shared[0].pages[1] = (2, 1, 256),
            |objects| objects.shared[0].pages[1] = (2, 1, u64::MAX),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(refused(|_, objects| change(objects)), "{number}");
        }
    }

    #[test]
    fn processes_and_signals_that_do_not_exist_are_refused() {
        type Change = fn(&mut Alive);
        let changes: [Change; 7] = [
            |alive| alive.threads.clear(),
            |alive| alive.threads[1].tid = 1,
            |alive| alive.threads[1].tid = 7,
            |alive| alive.threads[1].tid = -1,
            |alive| alive.handlers[0].signal = 65,
            |alive| alive.pending[0].signal = 0,
            |alive| alive.pending[0].info.0.truncate(127),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(refused(|alive, _| change(alive)), "{number}");
        }
        let (mut processes, objects) = whole();
        processes[1].member.pid = 1;
        assert!(check_all(&|_| 256, &processes, &objects).is_err());
        processes[1].member.pid = i32::MAX;
        assert!(check_all(&|_| 256, &processes, &objects).is_err());
        processes[1].member.pid = 7;
        processes[1].member.zombie = None;
        assert!(check_all(&|_| 256, &processes, &objects).is_err());
    }
}
