//! Which pages are stored, and under which numbers.

use super::source::Piece;
use crate::error::{Context, Error, Result};
use crate::image::memory::{Area, Backing, PAGE, PageRun};
use crate::sys::pagemap::{self, Entry, Masks, PageRegion, category};
use nix::errno::Errno;
use nix::unistd::Whence;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;

/// The private pages of one address space.
#[derive(Debug)]
pub(super) struct Space {
    host_pid: i32,
    pagemap: File,
    /// Runs of pages that no file holds, ascending: (start, end).
    runs: Vec<(u64, u64)>,
    /// Guard pages: (start, pages).
    pub guards: Vec<(u64, u64)>,
}

/// The highest address that a scan looks at.
const END: u64 = crate::tracee::arch::TASK_SIZE;

/// Finds the pages that have to be stored. The zero page is no page, and one that belongs to a file
/// is in the file.
pub(super) fn scan(host_pid: i32, areas: &[Area]) -> Result<Space> {
    let path = format!("/proc/{host_pid}/pagemap");
    let pagemap = File::open(&path).doing(|| format!("opening {path}"))?;
    let found = private(&pagemap)?;
    let mut space = Space {
        host_pid,
        pagemap,
        runs: Vec::with_capacity(found.len()),
        guards: Vec::new(),
    };
    let mut areas = areas
        .iter()
        .filter(|area| area.backing != Backing::Vdso)
        .peekable();
    for region in found {
        let mut from = region.start;
        while from < region.end {
            while areas.next_if(|area| area.end <= from).is_some() {}
            let Some(area) = areas.peek() else { break };
            let start = from.max(area.start);
            let end = region.end.min(area.end);
            if start < end {
                if region.categories & category::GUARD != 0 {
                    space.guards.push((start, (end - start) / PAGE));
                } else {
                    push(&mut space.runs, start, end);
                }
            }
            from = area.end.max(from + PAGE);
        }
    }
    Ok(space)
}

/// The pages that no file holds, and guard pages, of a whole address space.
pub(super) fn private(pagemap: &File) -> Result<Vec<PageRegion>> {
    let mut masks = Masks {
        inverted: category::FILE | category::PFN_ZERO,
        all: category::FILE | category::PFN_ZERO,
        any: category::PRESENT | category::SWAPPED,
        report: category::PRESENT | category::GUARD,
    };
    match pagemap::scan(pagemap.as_fd(), 0, END, masks, 0) {
        // Guard pages are unknown before Linux 6.15.
        Err(error) if error.errno() == Some(Errno::EINVAL) => {
            masks.report = category::PRESENT;
            pagemap::scan(pagemap.as_fd(), 0, END, masks, 0)
        }
        other => other,
    }
}

fn push(runs: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    match runs.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => runs.push((start, end)),
    }
}

/// All pages with their numbers.
pub(super) struct Numbered {
    /// By address space.
    pub runs: Vec<Vec<PageRun>>,
    /// Where to read them, ascending by number.
    pub pieces: Vec<Piece>,
    /// How many there are.
    pub total: u64,
}

/// Gives every page a number; pages with one frame get one.
///
/// The kernel may move a page to another frame, and give its frame to another page, while we look.
/// So the frames of shared pages are read twice: one that had the same frame both times had it in
/// between, when the others were read. Where any has moved, nothing is shared: an image that is
/// larger is better than one that is wrong.
pub(super) fn number(spaces: &[Space]) -> Result<Numbered> {
    if spaces.len() > 1 {
        let mut shared = Vec::new();
        let numbered = number_with(spaces, Some(&mut shared))?;
        if unmoved(spaces, &shared)? {
            return Ok(numbered);
        }
        tracing::debug!("pages moved while they were looked at: none is stored as shared");
    }
    number_with(spaces, None)
}

/// (space, address, frame) of a page whose frame was relied on.
type Relied = (usize, u64, u64);

fn number_with(spaces: &[Space], mut shared: Option<&mut Vec<Relied>>) -> Result<Numbered> {
    let mut numbered = Numbered {
        runs: Vec::with_capacity(spaces.len()),
        pieces: Vec::new(),
        total: 0,
    };
    let mut frames: HashMap<u64, u64> = HashMap::new();
    for (number, space) in spaces.iter().enumerate() {
        let mut runs = Vec::with_capacity(space.runs.len());
        for &(start, end) in &space.runs {
            match &mut shared {
                None => {
                    let at = Place {
                        host_pid: space.host_pid,
                        shared: spaces.len() > 1,
                    };
                    numbered.take(at, &mut runs, start, end);
                }
                Some(relied) => {
                    let mut from = start;
                    let own = Place {
                        host_pid: space.host_pid,
                        shared: false,
                    };
                    each_entry(space, start, end, |address, entry| {
                        let frame = entry
                            .frame()
                            .filter(|_| entry.present() && !entry.exclusive());
                        let Some(frame) = frame else { return };
                        numbered.take(own, &mut runs, from, address);
                        from = address + PAGE;
                        relied.push((number, address, frame));
                        match frames.get(&frame) {
                            Some(&index) => extend(&mut runs, address, 1, index),
                            None => {
                                frames.insert(frame, numbered.total);
                                let at = Place {
                                    shared: true,
                                    ..own
                                };
                                numbered.take(at, &mut runs, address, from);
                            }
                        }
                    })?;
                    numbered.take(own, &mut runs, from, end);
                }
            }
        }
        numbered.runs.push(runs);
    }
    Ok(numbered)
}

/// Whose pages are numbered, and whether others may have them as well.
#[derive(Clone, Copy)]
struct Place {
    host_pid: i32,
    shared: bool,
}

impl Numbered {
    /// Gives new numbers to the pages of `start..end`.
    fn take(&mut self, at: Place, runs: &mut Vec<PageRun>, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let pages = (end - start) / PAGE;
        let index = self.total;
        extend(runs, start, pages, index);
        self.total += pages;
        match self.pieces.last_mut() {
            Some(last)
                if last.end() == start
                    && last.host_pid == at.host_pid
                    && last.shared == at.shared =>
            {
                last.pages += pages;
            }
            _ => self.pieces.push(Piece {
                host_pid: at.host_pid,
                start,
                pages,
                shared: at.shared,
            }),
        }
    }
}

fn extend(runs: &mut Vec<PageRun>, start: u64, pages: u64, index: u64) {
    match runs.last_mut() {
        Some(last) if last.end() == start && last.index + last.pages == index => {
            last.pages += pages;
        }
        _ => runs.push(PageRun {
            start,
            pages,
            index,
        }),
    }
}

fn each_entry(space: &Space, start: u64, end: u64, mut each: impl FnMut(u64, Entry)) -> Result<()> {
    const AT_ONCE: u64 = 8192;
    let mut from = start;
    while from < end {
        let pages = ((end - from) / PAGE).min(AT_ONCE);
        let entries = pagemap::entries(space.pagemap.as_fd(), from, from + pages * PAGE, PAGE)
            .doing(|| format!("reading the pagemap of process {}", space.host_pid))?;
        for (number, entry) in entries.into_iter().enumerate() {
            each(from + number as u64 * PAGE, entry);
        }
        from += pages * PAGE;
    }
    Ok(())
}

fn unmoved(spaces: &[Space], relied: &[Relied]) -> Result<bool> {
    let mut rest = relied;
    while let Some(&(number, start, _)) = rest.first() {
        let space = spaces
            .get(number)
            .ok_or_else(|| Error::bug("a page of no address space"))?;
        // As long as the pages lie one behind the other.
        let count = rest
            .iter()
            .enumerate()
            .take_while(|(at, page)| page.0 == number && page.1 == start + *at as u64 * PAGE)
            .count();
        let (these, others) = rest.split_at(count);
        let mut same = true;
        let mut expected = these.iter();
        each_entry(space, start, start + count as u64 * PAGE, |_, entry| {
            let frame = expected.next().map(|page| page.2);
            same &= entry.frame() == frame && entry.present();
        })?;
        if !same {
            return Ok(false);
        }
        rest = others;
    }
    Ok(true)
}

/// The pages of a piece of shared memory that hold something: (page, how many, number), ascending.
pub fn extents(file: &File, size: u64) -> Result<Vec<(u64, u64, u64)>> {
    let mut found = Vec::new();
    let mut total = 0;
    let mut from = 0i64;
    loop {
        let start = match nix::unistd::lseek(file, from, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = nix::unistd::lseek(file, start, Whence::SeekHole)?;
        let first = start as u64 / PAGE;
        let last = (end as u64).min(size).div_ceil(PAGE);
        if last > first {
            found.push((first, last - first, total));
            total += last - first;
        }
        from = end;
    }
    Ok(found)
}
