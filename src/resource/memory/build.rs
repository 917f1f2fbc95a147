//! Address spaces again: what a bare process maps and what is written into it.
//!
//! A process that was forked from one that is already filled holds its pages (copy on write); of those
//! it keeps what the image says that both have, and only the difference is mapped and written. So
//! [`build`] is one function for both: without an inheritance everything is the difference.

use super::attributes;
use crate::error::{Context, Error, Exit, Result};
use crate::image::files::{Files, Inode};
use crate::image::memory::{Area, Backing, Memory, Objects, PAGE, PageRun, SharedKind};
use crate::resource::files::{Opener, create_memory_file};
use crate::sys::shared_memory;
use crate::tracee::bare::{Bare, Feed};
use crate::tracee::batch::{Arg, Batch, RemoteFd};
use crate::tracee::calls;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::fill::{Pages, fill, fill_shared};

/// Makes all shared memory and fills it; by identity. Memory files get no seals yet.
pub fn make_shared(
    objects: &Objects,
    files: &Files,
    pages: &Pages<'_>,
) -> Result<BTreeMap<Inode, OwnedFd>> {
    let mut made = BTreeMap::new();
    for object in &objects.shared {
        let doing = || format!("making shared memory {} anew", object.object());
        let record = files
            .memory_files
            .iter()
            .find(|file| file.inode == object.inode);
        let fd = match (&object.kind, record) {
            (_, Some(record)) => create_memory_file(record),
            (SharedKind::Memfd { name }, None) => {
                shared_memory::memory_file(name.as_bytes(), object.size)
            }
            (SharedKind::Anonymous, None) => shared_memory::anonymous(object.size),
        }
        .doing(doing)?;
        fill_shared(fd.as_fd(), object, pages).doing(doing)?;
        made.insert(object.inode, fd);
    }
    Ok(made)
}

/// What areas map: a file or shared memory, for reading alone or for writing too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mapped {
    File(u32, bool),
    Shared(u32, bool),
}

fn mapped(area: &Area) -> Option<(Mapped, u64)> {
    match area.backing {
        Backing::File {
            file,
            offset,
            writable,
        } => Some((Mapped::File(file, writable), offset)),
        Backing::Shared {
            object,
            offset,
            writable,
        } => Some((Mapped::Shared(object, writable), offset)),
        Backing::Anonymous | Backing::SystemV { .. } | Backing::Vdso => None,
    }
}

/// Every file and piece of shared memory that areas map, open in the conductor.
#[derive(Debug, Default)]
pub struct Opened(BTreeMap<Mapped, OwnedFd>);

/// Opens what the areas of these address spaces map.
pub fn open<'m>(
    memories: impl Iterator<Item = &'m Memory>,
    objects: &Objects,
    shared: &BTreeMap<Inode, OwnedFd>,
    opener: &mut Opener<'_>,
) -> Result<Opened> {
    let damaged =
        |what: String| Error::coded("E-IMAGE-MEMORY", Exit::Image, what, "the image is damaged");
    let mut opened = BTreeMap::new();
    for area in memories.flat_map(|memory| &memory.areas) {
        let Some((what, _)) = mapped(area) else {
            continue;
        };
        if opened.contains_key(&what) {
            continue;
        }
        let fd = match what {
            Mapped::File(file, writable) => {
                let reference = objects
                    .files
                    .get(file as usize)
                    .ok_or_else(|| damaged(format!("there is no mapped file {file}")))?;
                let access = if writable {
                    libc::O_RDWR
                } else {
                    libc::O_RDONLY
                };
                opener.open(reference, access)?
            }
            Mapped::Shared(object, writable) => {
                let fd = objects
                    .shared
                    .get(object as usize)
                    .and_then(|object| shared.get(&object.inode))
                    .ok_or_else(|| damaged(format!("there is no shared memory {object}")))?;
                if writable {
                    fd.try_clone()?
                } else {
                    shared_memory::read_only(fd.as_fd())?
                }
            }
        };
        opened.insert(what, fd);
    }
    Ok(Opened(opened))
}

/// Maps and fills the address space of `bare`. `inherited` is what it was forked with. `conductor` is a
/// descriptor of the bare process that stands for this one (a pidfd).
pub fn build(
    bare: &mut Bare,
    memory: &Memory,
    inherited: Option<&Memory>,
    opened: &Opened,
    conductor: RemoteFd,
    pages: &Pages<'_>,
) -> Result<()> {
    let empty = Memory::default();
    let inherited = inherited.unwrap_or(&empty);
    let pieces = pieces(&inherited.areas, &memory.areas);
    let fds = fetch(bare, &pieces, opened, conductor)?;
    let mut feed = Feed::new(bare);
    for piece in &pieces {
        if piece.what == What::Remove {
            feed.push(calls::Munmap {
                address: piece.start.into(),
                length: (piece.end - piece.start).into(),
            })?;
        }
    }
    // A segment is attached as a whole, so it comes before what lies beside its remains.
    for piece in &pieces {
        if let What::Map(area) = piece.what
            && let Backing::SystemV { id, offset } = area.backing
        {
            attach(&mut feed, area, id, offset)?;
        }
    }
    for piece in &pieces {
        if let What::Map(area) = piece.what {
            map(&mut feed, piece, area, &fds)?;
        }
    }
    for (start, end) in absent(&inherited.pages, &memory.pages, &pieces) {
        feed.push(calls::Madvise {
            address: start.into(),
            length: (end - start).into(),
            advice: libc::MADV_DONTNEED.into(),
        })?;
    }
    for fd in fds.values() {
        feed.push(calls::Close { fd: (*fd).into() })?;
    }
    feed.run()?;
    let runs = missing(&inherited.pages, &memory.pages, &pieces);
    fill(bare.host_pid, &memory.areas, &runs, pages)
        .doing(|| format!("filling the memory of process {}", bare.pid))?;
    // Only now: a private area that is made read-only before it has pages is no longer accounted
    // (mm/mprotect.c). One that never has any had some once.
    let mut feed = Feed::new(bare);
    for piece in &pieces {
        if let What::Map(area) = piece.what
            && has(area, attributes::ACCOUNTED)
        {
            let first = memory.pages.partition_point(|run| run.end() <= piece.start);
            let has_pages = memory
                .pages
                .get(first)
                .is_some_and(|run| run.start < piece.end);
            if !has_pages && area.backing == Backing::Anonymous {
                for advice in [MADV_POPULATE_WRITE, libc::MADV_DONTNEED] {
                    feed.push(calls::Madvise {
                        address: piece.start.into(),
                        length: PAGE.into(),
                        advice: advice.into(),
                    })?;
                }
            }
            feed.push(calls::Mprotect {
                address: piece.start.into(),
                length: (piece.end - piece.start).into(),
                protection: protection(&area.perms).into(),
            })?;
        }
    }
    feed.run()
}

/// What happens to a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What<'a> {
    /// Both have it: it stays.
    Keep,
    /// Only the parent has it.
    Remove,
    /// It is mapped; what the parent has there is removed before.
    Map(&'a Area),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece<'a> {
    start: u64,
    end: u64,
    what: What<'a>,
}

/// Cuts both address spaces at all of their borders.
fn pieces<'a>(inherited: &'a [Area], wanted: &'a [Area]) -> Vec<Piece<'a>> {
    let areas = |areas: &'a [Area]| areas.iter().filter(|area| area.backing != Backing::Vdso);
    let borders: BTreeSet<u64> = areas(inherited)
        .chain(areas(wanted))
        .flat_map(|area| [area.start, area.end])
        .collect();
    let borders: Vec<u64> = borders.into_iter().collect();
    let mut old = areas(inherited).peekable();
    let mut new = areas(wanted).peekable();
    let mut pieces: Vec<Piece<'a>> = Vec::new();
    let mut add = |start, end, what| match pieces.last_mut() {
        Some(last) if last.end == start && last.what == what => last.end = end,
        _ => pieces.push(Piece { start, end, what }),
    };
    for border in borders.windows(2) {
        let (start, end) = (border[0], border[1]);
        while old.next_if(|area| area.end <= start).is_some() {}
        while new.next_if(|area| area.end <= start).is_some() {}
        let here = |area: &&'a Area| area.start <= start;
        match (
            old.peek().copied().filter(here),
            new.peek().copied().filter(here),
        ) {
            (None, None) => {}
            (Some(_), None) => add(start, end, What::Remove),
            (None, Some(area)) => add(start, end, What::Map(area)),
            (Some(known), Some(area)) if alike(known, area) => add(start, end, What::Keep),
            (Some(_), Some(area)) => {
                add(start, end, What::Remove);
                add(start, end, What::Map(area));
            }
        }
    }
    pieces
}

/// Whether a piece of one area can serve as a piece of the other.
fn alike(one: &Area, other: &Area) -> bool {
    let place =
        |area: &Area| mapped(area).map(|(what, offset)| (what, offset.wrapping_sub(area.start)));
    let bases = matches!(
        (one.backing, other.backing),
        (Backing::Anonymous, Backing::Anonymous)
            | (Backing::File { .. }, Backing::File { .. })
            | (Backing::Shared { .. }, Backing::Shared { .. })
    );
    bases
        && place(one) == place(other)
        && one.perms == other.perms
        && one.name == other.name
        && one.attributes == other.attributes
}

/// Gives the process descriptors of what it is going to map.
fn fetch(
    bare: &mut Bare,
    pieces: &[Piece<'_>],
    opened: &Opened,
    conductor: RemoteFd,
) -> Result<BTreeMap<Mapped, RemoteFd>> {
    let wanted: BTreeSet<Mapped> = pieces
        .iter()
        .filter_map(|piece| match piece.what {
            What::Map(area) => mapped(area).map(|(what, _)| what),
            _ => None,
        })
        .collect();
    let mut batch = Batch::new();
    let mut asked = Vec::new();
    for what in wanted {
        let fd = opened
            .0
            .get(&what)
            .ok_or_else(|| Error::bug("a mapped file was not opened"))?;
        let answer = batch.push(calls::PidfdGetfd {
            pidfd: conductor.into(),
            fd: fd.as_raw_fd().into(),
        });
        asked.push((what, answer));
    }
    let answers = bare.run(&batch).doing(|| "fetching mapped files")?;
    Ok(asked
        .into_iter()
        .map(|(what, answer)| (what, answers.get(answer)))
        .collect())
}

fn protection(perms: &str) -> i32 {
    let bit = |at: usize, letter: u8, bit: i32| match perms.as_bytes().get(at) {
        Some(found) if *found == letter => bit,
        _ => 0,
    };
    bit(0, b'r', libc::PROT_READ) | bit(1, b'w', libc::PROT_WRITE) | bit(2, b'x', libc::PROT_EXEC)
}

fn is_shared(area: &Area) -> bool {
    area.perms.ends_with('s')
}

fn has(area: &Area, attribute: &str) -> bool {
    area.attributes.iter().any(|known| known == attribute)
}

fn attach(feed: &mut Feed<'_>, area: &Area, id: i32, offset: u64) -> Result<()> {
    let protection = protection(&area.perms);
    let mut flags = 0;
    if protection & libc::PROT_WRITE == 0 {
        flags |= libc::SHM_RDONLY;
    }
    if protection & libc::PROT_EXEC != 0 {
        flags |= libc::SHM_EXEC;
    }
    if offset != 0 {
        return Err(Error::coded(
            "E-MEMORY-SYSV-PART",
            Exit::Image,
            format!("only a later part of System V segment {id} is attached"),
            "attach segments as a whole",
        ));
    }
    feed.push(calls::Shmat {
        id: id.into(),
        address: area.start.into(),
        flags: flags.into(),
    })
}

/// MAP_DROPPABLE of `<linux/mman.h>`, since Linux 6.11.
const MAP_DROPPABLE: i32 = 0x08;

fn map(
    feed: &mut Feed<'_>,
    piece: &Piece<'_>,
    area: &Area,
    fds: &BTreeMap<Mapped, RemoteFd>,
) -> Result<()> {
    let length = piece.end - piece.start;
    let mut flags = libc::MAP_FIXED_NOREPLACE
        | if has(area, "droppable") {
            MAP_DROPPABLE
        } else if is_shared(area) {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
    for (name, flag) in [
        ("growsdown", libc::MAP_GROWSDOWN),
        ("noreserve", libc::MAP_NORESERVE),
    ] {
        if has(area, name) {
            flags |= flag;
        }
    }
    let (fd, offset): (Arg, u64) = match (area.backing, mapped(area)) {
        (Backing::Anonymous, _) => {
            flags |= libc::MAP_ANONYMOUS;
            ((-1).into(), 0)
        }
        (_, Some((what, offset))) => {
            let fd = fds
                .get(&what)
                .ok_or_else(|| Error::bug("a mapped file was not fetched"))?;
            ((*fd).into(), offset + (piece.start - area.start))
        }
        // Attached before.
        _ => return Ok(()),
    };
    let accounted = has(area, attributes::ACCOUNTED);
    let first = if accounted { libc::PROT_WRITE } else { 0 };
    feed.push(calls::Mmap {
        address: piece.start.into(),
        length: length.into(),
        protection: (protection(&area.perms) | first).into(),
        flags: flags.into(),
        fd,
        offset: offset.into(),
    })?;
    if let Some(name) = &area.name {
        feed.with(name.as_bytes().len(), |batch| {
            let text = batch.string(name.as_bytes());
            // A kernel without CONFIG_ANON_VMA_NAME has no names; they are for readers only.
            batch.push_tolerant(calls::Prctl {
                option: PR_SET_VMA.into(),
                arg2: 0u64.into(),
                arg3: piece.start.into(),
                arg4: length.into(),
                arg5: text.into(),
            });
        })?;
    }
    for advice in attributes::ALL.iter().filter(|one| has(area, one.name)) {
        if let Some(number) = advice.advice
            && !advice.is_late()
        {
            feed.push(calls::Madvise {
                address: piece.start.into(),
                length: length.into(),
                advice: number.into(),
            })?;
        }
    }
    Ok(())
}

/// `MADV_POPULATE_WRITE` of `<linux/mman.h>`, since Linux 5.14.
const MADV_POPULATE_WRITE: i32 = 23;
/// `PR_SET_VMA` of `<linux/prctl.h>`; its only sub-option, PR_SET_VMA_ANON_NAME, is 0.
const PR_SET_VMA: i32 = 0x5356_4d41;
/// `MADV_GUARD_INSTALL` of `<linux/mman.h>`, since Linux 6.13.
const MADV_GUARD_INSTALL: i32 = 102;
/// `MLOCK_ONFAULT` of `<linux/mman.h>`.
const MLOCK_ONFAULT: i32 = 1;

/// What has to wait until all forks are made and all pages are written: locks, guard pages, what fork
/// shall do, seals, and what the kernel remembers of the program. `exe` is the program's file, open in
/// the conductor.
pub fn finish(
    bare: &mut Bare,
    memory: &Memory,
    exe: Option<BorrowedFd<'_>>,
    conductor: RemoteFd,
) -> Result<()> {
    let mut feed = Feed::new(bare);
    for &(start, count) in &memory.guards {
        feed.push(calls::Madvise {
            address: start.into(),
            length: (count * PAGE).into(),
            advice: MADV_GUARD_INSTALL.into(),
        })?;
    }
    for area in &memory.areas {
        let (address, length): (Arg, Arg) = (area.start.into(), (area.end - area.start).into());
        for advice in attributes::ALL.iter().filter(|one| has(area, one.name)) {
            if let Some(number) = advice.advice
                && advice.is_late()
            {
                feed.push(calls::Madvise {
                    address,
                    length,
                    advice: number.into(),
                })?;
            }
        }
        if has(area, "locked") {
            let flags = if has(area, "lock-on-fault") {
                MLOCK_ONFAULT
            } else {
                0
            };
            feed.push(calls::Mlock {
                address,
                length,
                flags: flags.into(),
            })?;
        }
    }
    remember(&mut feed, memory, exe, conductor)?;
    for area in memory.areas.iter().filter(|area| has(area, "sealed")) {
        feed.push(calls::Mseal {
            address: area.start.into(),
            length: (area.end - area.start).into(),
        })?;
    }
    feed.run()
}

/// prctl(PR_SET_MM, PR_SET_MM_MAP): the one form that needs no CAP_SYS_RESOURCE.
fn remember(
    feed: &mut Feed<'_>,
    memory: &Memory,
    exe: Option<BorrowedFd<'_>>,
    conductor: RemoteFd,
) -> Result<()> {
    const PR_SET_MM: i32 = 35;
    const PR_SET_MM_MAP: i32 = 14;
    let program = &memory.program;
    let auxv: Vec<u64> = program
        .auxv
        .iter()
        .flat_map(|&(kind, value)| [kind, value])
        .collect();
    // The number of the program's file is known only once it has been fetched, and it is half of a
    // word: so it is fetched first, in a batch of its own.
    let exe = match exe {
        None => None,
        Some(exe) => Some(feed.fetch(conductor, exe)?),
    };
    let exe_fd = exe.map_or(u32::MAX, |fd| fd.0.cast_unsigned());
    feed.with(auxv.len() * 8 + 256, |batch| {
        let auxv_data = batch.words(&auxv);
        let map = batch.words(&[
            program.start_code,
            program.end_code,
            program.start_data,
            program.end_data,
            program.start_brk,
            program.brk,
            program.start_stack,
            program.arg_start,
            program.arg_end,
            program.env_start,
            program.env_end,
            0,
            (auxv.len() as u64 * 8) | u64::from(exe_fd) << 32,
        ]);
        if !auxv.is_empty() {
            batch.pointer(map, 11, auxv_data);
        }
        batch.push(calls::Prctl {
            option: PR_SET_MM.into(),
            arg2: PR_SET_MM_MAP.into(),
            arg3: map.into(),
            arg4: MM_MAP_SIZE.into(),
            arg5: 0u64.into(),
        });
    })?;
    if let Some(fd) = exe {
        feed.push(calls::Close { fd: fd.into() })?;
    }
    Ok(())
}

/// `sizeof(struct prctl_mm_map)`.
const MM_MAP_SIZE: u64 = 13 * 8;

/// The runs of `wanted` that the process does not hold already, cut at the pieces.
fn missing(inherited: &[PageRun], wanted: &[PageRun], pieces: &[Piece<'_>]) -> Vec<PageRun> {
    let mut runs = Vec::new();
    for (run, piece) in cut(wanted, pieces) {
        if piece.what != What::Keep {
            runs.push(run);
            continue;
        }
        // Take away what the parent has at the same place, with the same content.
        let mut from = run.start;
        let first = inherited.partition_point(|known| known.end() <= run.start);
        for known in &inherited[first..] {
            if known.start >= run.end() {
                break;
            }
            let start = known.start.max(run.start);
            let end = known.end().min(run.end());
            let same = known.index + (start - known.start) / PAGE
                == run.index + (start - run.start) / PAGE;
            if same {
                if from < start {
                    runs.push(part(&run, from, start));
                }
                from = end;
            }
        }
        if from < run.end() {
            runs.push(part(&run, from, run.end()));
        }
    }
    runs
}

fn part(run: &PageRun, start: u64, end: u64) -> PageRun {
    PageRun {
        start,
        pages: (end - start) / PAGE,
        index: run.index + (start - run.start) / PAGE,
    }
}

/// The runs, cut at the borders of pieces that are kept or mapped.
fn cut<'p, 'a>(
    runs: &'p [PageRun],
    pieces: &'p [Piece<'a>],
) -> impl Iterator<Item = (PageRun, &'p Piece<'a>)> {
    runs.iter().flat_map(move |run| {
        let first = pieces.partition_point(|piece| piece.end <= run.start);
        pieces[first..]
            .iter()
            .take_while(|piece| piece.start < run.end())
            .filter(|piece| piece.what != What::Remove)
            .map(move |piece| {
                let start = piece.start.max(run.start);
                (part(run, start, piece.end.min(run.end())), piece)
            })
    })
}

/// Ranges in kept pieces where the parent has a page of its own and the process has none.
fn absent(inherited: &[PageRun], wanted: &[PageRun], pieces: &[Piece<'_>]) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for (run, piece) in cut(inherited, pieces) {
        if piece.what != What::Keep {
            continue;
        }
        let mut from = run.start;
        let first = wanted.partition_point(|known| known.end() <= run.start);
        for known in &wanted[first..] {
            if known.start >= run.end() {
                break;
            }
            if from < known.start {
                ranges.push((from, known.start));
            }
            from = from.max(known.end());
        }
        if from < run.end() {
            ranges.push((from, run.end()));
        }
    }
    ranges
}
