//! Where the pages come from: read chunk by chunk, in the order of their numbers.

use crate::error::{Context, Error, Result};
use crate::image::memory::{ANONYMOUS, CHUNK_PAGES, PAGE, PageRun};
use crate::sys::remote;
use crate::tracee::memory_of;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A run of private pages in a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub host_pid: i32,
    pub start: u64,
    pub pages: u64,
    /// Whether other processes may have the same pages.
    pub shared: bool,
}

impl Piece {
    pub fn end(&self) -> u64 {
        self.start + self.pages * PAGE
    }
}

#[derive(Debug)]
pub(super) struct SharedSource {
    pub object: String,
    pub file: File,
    /// (page, how many, number)
    pub pages: Vec<(u64, u64, u64)>,
}

/// All stored pages of a container.
#[derive(Debug, Default)]
pub struct Source {
    pub(super) pieces: Vec<Piece>,
    pub(super) shared: Vec<SharedSource>,
}

/// A chunk on its way into an image.
#[derive(Debug)]
pub struct Filled<'a> {
    /// Of which object.
    pub object: &'a str,
    /// Which one.
    pub number: u64,
    /// The pages that were read, those that are known left out.
    pub bytes: Vec<u8>,
    /// Runs that were not read: (page in the chunk, how many, place in the parent), ascending.
    pub known: &'a [(u64, u64, u64)],
}

/// Takes one chunk.
pub type Sink<'a> = dyn FnMut(Filled<'_>) -> Result<()> + 'a;

/// Pages that need not be read, since the parent image has them as they are: by process, ascending by
/// address; the place is one in the parent's object.
#[derive(Debug, Default)]
pub struct Known(pub BTreeMap<i32, Vec<PageRun>>);

impl Known {
    /// How many.
    pub fn pages(&self) -> u64 {
        self.0.values().flatten().map(|run| run.pages).sum()
    }

    /// Of `pages` pages at `start`: how many belong together, and where the parent has them.
    fn look(&self, host_pid: i32, start: u64, pages: u64) -> (u64, Option<u64>) {
        let Some(runs) = self.0.get(&host_pid) else {
            return (pages, None);
        };
        let at = runs.partition_point(|run| run.end() <= start);
        match runs.get(at) {
            Some(run) if run.start <= start => {
                let count = pages.min((run.end() - start) / PAGE);
                (count, Some(run.index + (start - run.start) / PAGE))
            }
            Some(run) => (pages.min((run.start - start) / PAGE), None),
            None => (pages, None),
        }
    }
}

impl Source {
    /// Adds an object whose pages are read from a file: (page, how many, place in the object).
    pub fn add(&mut self, object: String, file: File, pages: Vec<(u64, u64, u64)>) {
        self.shared.push(SharedSource {
            object,
            file,
            pages,
        });
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        let private: u64 = self.pieces.iter().map(|piece| piece.pages).sum();
        let shared: u64 = self
            .shared
            .iter()
            .flat_map(|shared| &shared.pages)
            .map(|run| run.1)
            .sum();
        (private + shared) * PAGE
    }

    /// Reads everything once that is not known, and hands it to `sink`, chunk by chunk.
    pub fn read(&self, known: &Known, sink: &mut Sink<'_>) -> Result<()> {
        for shared in &self.shared {
            shared.read(sink)?;
        }
        let mut reader = Reader::default();
        let mut chunk = Chunk::new(ANONYMOUS);
        for piece in &self.pieces {
            let mut start = piece.start;
            while start < piece.end() {
                let pages = chunk.room().min((piece.end() - start) / PAGE);
                let (pages, place) = known.look(piece.host_pid, start, pages);
                match place {
                    Some(there) => chunk.know(pages, there),
                    None => reader.read(piece, start, chunk.take(pages))?,
                }
                chunk.hand_over_if_full(sink)?;
                start += pages * PAGE;
            }
        }
        chunk.hand_over(sink)
    }
}

impl SharedSource {
    fn read(&self, sink: &mut Sink<'_>) -> Result<()> {
        let mut chunk = Chunk::new(&self.object);
        for &(first, count, _) in &self.pages {
            let mut page = first;
            while page < first + count {
                let pages = chunk.room().min(first + count - page);
                let mut bytes = chunk.take(pages);
                let mut offset = page * PAGE;
                // The last page may end before its end.
                while !bytes.is_empty() {
                    match self
                        .file
                        .read_at(bytes, offset)
                        .doing(|| "reading shared memory")?
                    {
                        0 => break,
                        read => {
                            offset += read as u64;
                            bytes = &mut bytes[read..];
                        }
                    }
                }
                chunk.hand_over_if_full(sink)?;
                page += pages;
            }
        }
        chunk.hand_over(sink)
    }
}

/// The chunk that is being filled.
struct Chunk<'a> {
    object: &'a str,
    number: u64,
    /// Pages in it, known ones included.
    pages: u64,
    bytes: Vec<u8>,
    known: Vec<(u64, u64, u64)>,
}

impl<'a> Chunk<'a> {
    fn new(object: &'a str) -> Self {
        Self {
            object,
            number: 0,
            pages: 0,
            bytes: Vec::new(),
            known: Vec::new(),
        }
    }

    /// Pages that it still takes.
    fn room(&self) -> u64 {
        CHUNK_PAGES - self.pages
    }

    /// The next `pages` pages, to be filled.
    fn take(&mut self, pages: u64) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes.reserve_exact((CHUNK_PAGES * PAGE) as usize);
        }
        self.pages += pages;
        let at = self.bytes.len();
        self.bytes.resize(at + (pages * PAGE) as usize, 0);
        &mut self.bytes[at..]
    }

    /// The next `pages` pages are in the parent.
    fn know(&mut self, pages: u64, there: u64) {
        self.known.push((self.pages, pages, there));
        self.pages += pages;
    }

    fn hand_over_if_full(&mut self, sink: &mut Sink<'_>) -> Result<()> {
        if self.room() == 0 {
            self.hand_over(sink)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, sink: &mut Sink<'_>) -> Result<()> {
        if self.pages > 0 {
            sink(Filled {
                object: self.object,
                number: self.number,
                bytes: std::mem::take(&mut self.bytes),
                known: &self.known,
            })?;
            self.known.clear();
            self.pages = 0;
            self.number += 1;
        }
        Ok(())
    }
}

/// Reads pages of processes, with `/proc/PID/mem` where an area may not be read.
///
/// And where pages are shared since fork: process_vm_readv(2) pins what it reads, and to pin a page
/// of several processes the kernel first gives the one that is read a copy of its own (seen on Linux
/// 6.18). A container would come out of a checkpoint with more memory than it went in with. Reading
/// `/proc/PID/mem` leaves the page where it is. Proved by the kind `memory_after_fork`.
#[derive(Default)]
struct Reader {
    memory: Option<(i32, File)>,
}

impl Reader {
    fn read(&mut self, piece: &Piece, mut address: u64, mut bytes: &mut [u8]) -> Result<()> {
        let host_pid = piece.host_pid;
        if piece.shared {
            return self.read_forced(host_pid, address, bytes);
        }
        while !bytes.is_empty() {
            let read = match remote::read(host_pid, address, bytes) {
                Ok(read) if read > 0 => read,
                Ok(_) | Err(Errno::EFAULT) => {
                    // One page: the areas around may be readable.
                    let page = bytes.len().min(PAGE as usize);
                    self.read_forced(host_pid, address, &mut bytes[..page])?;
                    page
                }
                Err(errno) => {
                    return Err(Error::from(errno))
                        .doing(|| format!("reading process {host_pid} at {address:#x}"));
                }
            };
            address += read as u64;
            bytes = &mut bytes[read..];
        }
        Ok(())
    }

    fn read_forced(&mut self, host_pid: i32, address: u64, bytes: &mut [u8]) -> Result<()> {
        let file = match &self.memory {
            Some((pid, file)) if *pid == host_pid => file,
            _ => &self.memory.insert((host_pid, memory_of(host_pid)?)).1,
        };
        file.read_exact_at(bytes, address)
            .doing(|| format!("reading process {host_pid} at {address:#x}"))
    }
}
