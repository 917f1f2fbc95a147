//! Pages on their way back: read from the image by several threads, written into processes.

use crate::error::{Context, Error, Exit, Result};
use crate::image::memory::{ANONYMOUS, Area, CHUNK_PAGES, PAGE, PageRun, Shared};
use crate::sys::remote;
use crate::tracee::memory_of;
use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Where chunks come from: the object's name and the chunk's number.
pub type Chunks<'a> = dyn Fn(&str, u64) -> Result<Vec<u8>> + Sync + 'a;

/// Does something with the runs in one chunk: they, its number, its bytes.
type Work<'a> = dyn Fn(&[PageRun], u64, &[u8]) -> Result<()> + Sync + 'a;

/// Chunks that are kept: small processes share theirs with others.
const KEPT: usize = 16;

/// A chunk by its object's name and its number.
type Kept = ((String, u64), Arc<Vec<u8>>);

/// The stored pages of an image.
pub struct Pages<'a> {
    chunks: &'a Chunks<'a>,
    kept: Mutex<VecDeque<Kept>>,
    threads: usize,
}

impl<'a> Pages<'a> {
    /// Read by `chunks`, which several threads may call at once.
    pub fn new(chunks: &'a Chunks<'a>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            chunks,
            kept: Mutex::default(),
            threads: threads.min(8),
        }
    }

    /// Writes an object's pages (page in the file, how many, place in the object) into a file of
    /// `size` bytes.
    pub fn fill(
        &self,
        file: &File,
        object: &str,
        size: u64,
        stored: &[(u64, u64, u64)],
    ) -> Result<()> {
        let runs: Vec<PageRun> = stored
            .iter()
            .map(|&(page, pages, index)| PageRun {
                start: page * PAGE,
                pages,
                index,
            })
            .collect();
        self.each_chunk(object, &runs, &|parts, number, chunk| {
            for part in parts {
                let bytes = bytes(part, number, chunk);
                // The last page may end before its end.
                let room = size.saturating_sub(part.start);
                let bytes = bytes.get(..room as usize).unwrap_or(bytes);
                file.write_all_at(bytes, part.start)?;
            }
            Ok(())
        })
    }

    fn chunk(&self, object: &str, number: u64) -> Result<Arc<Vec<u8>>> {
        let lock = || {
            self.kept
                .lock()
                .map_err(|_| Error::bug("a thread that reads pages panicked"))
        };
        let known = lock()?
            .iter()
            .find(|((known, at), _)| known == object && *at == number)
            .map(|(_, chunk)| chunk.clone());
        if let Some(chunk) = known {
            return Ok(chunk);
        }
        let chunk = Arc::new((self.chunks)(object, number)?);
        let mut kept = lock()?;
        kept.push_back(((object.to_owned(), number), chunk.clone()));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(chunk)
    }

    /// Does `work` with every chunk that holds a part of `runs` (place, pages, number), once each.
    fn each_chunk(&self, object: &str, runs: &[PageRun], work: &Work<'_>) -> Result<()> {
        let parts = by_chunk(runs);
        let next = AtomicUsize::new(0);
        let walk = || -> Result<()> {
            while let Some((number, parts)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let chunk = self.chunk(object, *number)?;
                let needed = parts
                    .iter()
                    .map(|part| part.index + part.pages - number * CHUNK_PAGES)
                    .max()
                    .unwrap_or(0)
                    * PAGE;
                if (chunk.len() as u64) < needed {
                    return Err(Error::coded(
                        "E-IMAGE-MEMORY",
                        Exit::Image,
                        format!("chunk {number} of object {object} is too short"),
                        "the image is damaged",
                    ));
                }
                work(parts, *number, &chunk)?;
            }
            Ok(())
        };
        if parts.len() < 4 || self.threads < 2 {
            return walk();
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads).map(|_| scope.spawn(walk)).collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::bug("a thread that writes pages panicked")))
            })
        })
    }
}

/// The runs cut at the borders of chunks, in order of chunks.
fn by_chunk(runs: &[PageRun]) -> Vec<(u64, Vec<PageRun>)> {
    let mut parts = Vec::new();
    for run in runs {
        let mut done = 0;
        while done < run.pages {
            let index = run.index + done;
            let pages = (CHUNK_PAGES - index % CHUNK_PAGES).min(run.pages - done);
            parts.push(PageRun {
                start: run.start + done * PAGE,
                pages,
                index,
            });
            done += pages;
        }
    }
    parts.sort_by_key(|part| (part.index / CHUNK_PAGES, part.start));
    parts
        .chunk_by(|one, other| one.index / CHUNK_PAGES == other.index / CHUNK_PAGES)
        .map(|parts| (parts[0].index / CHUNK_PAGES, parts.to_vec()))
        .collect()
}

/// The bytes of `part` in chunk `number`.
fn bytes<'c>(part: &PageRun, number: u64, chunk: &'c [u8]) -> &'c [u8] {
    let at = ((part.index - number * CHUNK_PAGES) * PAGE) as usize;
    chunk
        .get(at..at + (part.pages * PAGE) as usize)
        .unwrap_or(&[])
}

/// Writes private pages into a process whose areas are mapped.
pub(super) fn fill(
    host_pid: i32,
    areas: &[Area],
    runs: &[PageRun],
    pages: &Pages<'_>,
) -> Result<()> {
    if runs.is_empty() {
        return Ok(());
    }
    let memory = memory_of(host_pid)?;
    pages.each_chunk(ANONYMOUS, runs, &|parts, number, chunk| {
        let mut gather = Gather::default();
        for part in parts {
            let bytes = bytes(part, number, chunk);
            if is_writable(areas, part) {
                gather.add(host_pid, part.start, bytes)?;
            } else {
                write_forced(&memory, part.start, bytes)?;
            }
        }
        gather.write(host_pid)
    })
}

/// Whether the process itself could write all of it: /proc/PID/mem can write the rest.
fn is_writable(areas: &[Area], part: &PageRun) -> bool {
    let first = areas.partition_point(|area| area.end <= part.start);
    areas[first..]
        .iter()
        .take_while(|area| area.start < part.end())
        .all(|area| area.perms.as_bytes().get(1) == Some(&b'w'))
}

/// Writes to a copy of pages that the process may not write: what debuggers do (FOLL_FORCE).
fn write_forced(memory: &File, address: u64, bytes: &[u8]) -> Result<()> {
    memory
        .write_all_at(bytes, address)
        .doing(|| format!("writing protected memory at {address:#x}"))
}

/// Pieces that are written by one process_vm_writev(2).
#[derive(Default)]
struct Gather<'c> {
    pieces: Vec<(u64, &'c [u8])>,
}

impl<'c> Gather<'c> {
    fn add(&mut self, host_pid: i32, address: u64, bytes: &'c [u8]) -> Result<()> {
        self.pieces.push((address, bytes));
        if self.pieces.len() == remote::MOST_PIECES {
            self.write(host_pid)?;
        }
        Ok(())
    }

    fn write(&mut self, host_pid: i32) -> Result<()> {
        remote::write_scattered(host_pid, &self.pieces).doing(|| {
            format!(
                "writing the memory of process {host_pid} at {:#x}",
                self.pieces.first().map_or(0, |piece| piece.0)
            )
        })?;
        self.pieces.clear();
        Ok(())
    }
}

/// Writes the pages of a piece of shared memory.
pub(super) fn fill_shared(fd: BorrowedFd<'_>, object: &Shared, pages: &Pages<'_>) -> Result<()> {
    let file = File::from(fd.try_clone_to_owned()?);
    pages.fill(&file, &object.object(), object.size, &object.pages)
}
