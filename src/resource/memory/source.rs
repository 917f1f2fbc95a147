//! Where the pages come from: read chunk by chunk, in the order of their numbers.

use crate::error::{Context, Error, Result};
use crate::image::memory::{ANONYMOUS, CHUNK_PAGES, PAGE};
use crate::sys::remote;
use crate::tracee::memory_of;
use nix::errno::Errno;
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

/// Takes one chunk: object, number, bytes.
pub type Sink<'a> = dyn FnMut(&str, u64, Vec<u8>) -> Result<()> + 'a;

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

    /// Reads everything once and hands it to `sink`, chunk by chunk.
    pub fn read(&self, sink: &mut Sink<'_>) -> Result<()> {
        for shared in &self.shared {
            shared.read(sink)?;
        }
        let mut reader = Reader::default();
        let mut chunk = Chunk::new(ANONYMOUS);
        for piece in &self.pieces {
            let mut start = piece.start;
            while start < piece.end() {
                let pages = chunk.room().min((piece.end() - start) / PAGE);
                reader.read(piece, start, chunk.take(pages))?;
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
    bytes: Vec<u8>,
}

impl<'a> Chunk<'a> {
    fn new(object: &'a str) -> Self {
        Self {
            object,
            number: 0,
            bytes: Vec::new(),
        }
    }

    /// Pages that it still takes.
    fn room(&self) -> u64 {
        CHUNK_PAGES - self.bytes.len() as u64 / PAGE
    }

    /// The next `pages` pages, to be filled.
    fn take(&mut self, pages: u64) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes.reserve_exact((CHUNK_PAGES * PAGE) as usize);
        }
        let at = self.bytes.len();
        self.bytes.resize(at + (pages * PAGE) as usize, 0);
        &mut self.bytes[at..]
    }

    fn hand_over_if_full(&mut self, sink: &mut Sink<'_>) -> Result<()> {
        if self.room() == 0 {
            self.hand_over(sink)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, sink: &mut Sink<'_>) -> Result<()> {
        if !self.bytes.is_empty() {
            sink(self.object, self.number, std::mem::take(&mut self.bytes))?;
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
