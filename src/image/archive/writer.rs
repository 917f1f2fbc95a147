//! Writing an image in one pass.

use super::entry::Entry;
use super::name::{self, Coding};
use super::tar::{self, BLOCK};
use super::target::{Output, Target, write_error};
use super::{Digest, Listed, Manifest, PIECE, codec};
use crate::error::{Context, Error, Exit, Result};
use crate::image::header::{Compression, Header};
use flate2::write::GzEncoder;
use nix::errno::Errno;
use serde::Serialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};

enum Sink {
    Plain(BufWriter<File>),
    Gzip(Box<GzEncoder<BufWriter<File>>>),
}

impl Sink {
    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Sink::Plain(sink) => sink.write_all(bytes),
            Sink::Gzip(sink) => sink.write_all(bytes),
        }
    }

    fn into_file(self) -> std::io::Result<File> {
        let sink = match self {
            Sink::Plain(sink) => sink,
            Sink::Gzip(sink) => sink.finish()?,
        };
        sink.into_inner()
            .map_err(std::io::IntoInnerError::into_error)
    }
}

/// A piece that was compressed and digested.
struct Done {
    coding: Coding,
    bytes: Vec<u8>,
    digest: blake3::Hash,
}

struct Job {
    bytes: Vec<u8>,
    done: Sender<Result<Done>>,
}

/// What has been handed over and not written.
struct Waiting {
    prefix: String,
    index: u64,
    done: Receiver<Result<Done>>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the image, before gzip.
    pub bytes: u64,
    /// Members.
    pub members: usize,
}

/// Writes an image. Dropped without [`Writer::finish`], it leaves nothing behind.
pub struct Writer {
    sink: Option<Sink>,
    target: Option<Target>,
    created: i64,
    position: u64,
    manifest: Manifest,
    jobs: Option<SyncSender<Job>>,
    waiting: VecDeque<Waiting>,
    most_waiting: usize,
    spare: Vec<Vec<u8>>,
    sync: bool,
}

impl Writer {
    /// Begins an image with its header.
    pub fn create(output: Output, header: &Header) -> Result<Self> {
        let (file, target) = output.open()?;
        let buffered = BufWriter::with_capacity(256 << 10, file);
        let sink = if header.compression == Compression::Gzip {
            Sink::Gzip(Box::new(GzEncoder::new(
                buffered,
                flate2::Compression::fast(),
            )))
        } else {
            Sink::Plain(buffered)
        };
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .clamp(1, 8);
        let mut writer = Self {
            sink: Some(sink),
            target,
            created: header.created.cast_signed(),
            position: 0,
            manifest: Manifest::default(),
            jobs: Some(start_workers(workers, header.compression)?),
            waiting: VecDeque::new(),
            most_waiting: 2 * workers + 2,
            spare: Vec::new(),
            sync: true,
        };
        writer.record(name::HEADER, header)?;
        Ok(writer)
    }

    /// Leaves it to the kernel when the disk has the image: it is complete as long as the host runs.
    pub fn without_sync(mut self) -> Self {
        self.sync = false;
        self
    }

    /// Writes a record as JSON.
    pub fn record<T: Serialize>(&mut self, name: &str, record: &T) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(record)
            .map_err(|why| Error::bug(format!("record {name} cannot be written: {why}")))?;
        json.push(b'\n');
        self.bytes(name, &json)
    }

    /// Writes a member.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.flush_pieces()?;
        self.member(name, bytes, blake3::hash(bytes), false)
    }

    /// Writes a member of `size` bytes that is read from `content`.
    pub fn stream(&mut self, name: &str, size: u64, content: &mut dyn Read) -> Result<()> {
        self.fill(name, size, &mut |out| {
            let mut buffer = vec![0; PIECE.min(size as usize).max(1)];
            let mut content = content.take(size);
            loop {
                match content.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(read) => out.write_all(&buffer[..read])?,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        return Err(error).doing(|| format!("reading what becomes {name}"));
                    }
                }
            }
        })
    }

    /// Writes a member of `size` bytes that `source` writes.
    pub fn fill(
        &mut self,
        name: &str,
        size: u64,
        source: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        self.flush_pieces()?;
        self.head(name, size, false)?;
        let mut content = Content {
            writer: self,
            left: size,
            hasher: blake3::Hasher::new(),
        };
        source(&mut content)?;
        let (left, digest) = (content.left, content.hasher.finalize());
        if left > 0 {
            return Err(changed(format!(
                "what becomes {name} ended {left} bytes early"
            )));
        }
        self.pad(size)?;
        self.list(name, size, digest);
        Ok(())
    }

    /// Writes piece `index` of what `prefix` names, at most [`PIECE`] bytes: compressed by another
    /// thread, and written before whatever comes next.
    pub fn piece(&mut self, prefix: &str, index: u64, bytes: Vec<u8>) -> Result<()> {
        if bytes.len() > PIECE {
            return Err(Error::bug(format!("a piece of {} bytes", bytes.len())));
        }
        while self.waiting.len() >= self.most_waiting {
            self.write_piece()?;
        }
        let (done, waits) = channel();
        let jobs = self
            .jobs
            .as_ref()
            .ok_or_else(|| Error::bug("the image is finished"))?;
        jobs.send(Job { bytes, done })
            .map_err(|_| Error::bug("the threads that compress have ended"))?;
        self.waiting.push_back(Waiting {
            prefix: prefix.to_owned(),
            index,
            done: waits,
        });
        Ok(())
    }

    /// [`PIECE`] bytes to fill for [`Writer::piece`], whatever they hold: memory that was used before
    /// need not be cleared and faulted in again.
    pub fn buffer(&mut self) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(PIECE, 0);
        buffer
    }

    /// Takes bytes and cuts them into pieces.
    pub fn pieces<'w>(&'w mut self, prefix: &str) -> PieceWriter<'w> {
        PieceWriter {
            writer: self,
            prefix: prefix.to_owned(),
            index: 0,
            bytes: Vec::new(),
        }
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn write_piece(&mut self) -> Result<()> {
        let Some(next) = self.waiting.pop_front() else {
            return Ok(());
        };
        let done = next
            .done
            .recv()
            .map_err(|_| Error::bug("a thread that compresses has ended"))??;
        let name = name::piece(&next.prefix, next.index, done.coding);
        self.member(&name, &done.bytes, done.digest, done.coding == Coding::Raw)?;
        if done.bytes.capacity() >= PIECE && self.spare.len() < self.most_waiting {
            self.spare.push(done.bytes);
        }
        Ok(())
    }

    fn flush_pieces(&mut self) -> Result<()> {
        while !self.waiting.is_empty() {
            self.write_piece()?;
        }
        Ok(())
    }

    fn member(
        &mut self,
        name: &str,
        bytes: &[u8],
        digest: blake3::Hash,
        aligned: bool,
    ) -> Result<()> {
        let size = bytes.len() as u64;
        self.head(name, size, aligned)?;
        self.write(bytes)?;
        self.pad(size)?;
        self.list(name, size, digest);
        Ok(())
    }

    fn head(&mut self, name: &str, size: u64, aligned: bool) -> Result<()> {
        if !name::has_a_place(name.as_bytes()) {
            return Err(Error::bug(format!("{name:?} is no name of a member")));
        }
        if aligned {
            let comment = tar::align(self.position, 4096);
            self.write(&comment)?;
        }
        let head = tar::encode(&Entry::record(name, size, self.created));
        self.write(&head)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let zeros = [0; BLOCK];
        self.write(&zeros[..tar::padding(size)])
    }

    fn list(&mut self, name: &str, size: u64, digest: blake3::Hash) {
        self.manifest.members.push(Listed {
            name: name.to_owned(),
            size,
            blake3: Digest(digest),
        });
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let sink = self
            .sink
            .as_mut()
            .ok_or_else(|| Error::bug("the image is finished"))?;
        sink.write_all(bytes)
            .map_err(write_error)
            .doing(|| "writing the image")?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Writes the manifest, has the disk store everything, and gives the file its name.
    pub fn finish(mut self) -> Result<Written> {
        self.flush_pieces()?;
        self.jobs = None;
        let mut json = serde_json::to_vec(&self.manifest)
            .map_err(|why| Error::bug(format!("the manifest cannot be written: {why}")))?;
        json.push(b'\n');
        let digest = blake3::hash(&json).to_hex().to_string();
        let entry = Entry::record(name::MANIFEST, json.len() as u64, self.created);
        let head = tar::encode_with_digest(&entry, Some(&digest));
        self.write(&head)?;
        self.write(&json)?;
        self.pad(json.len() as u64)?;
        self.write(&[0; 2 * BLOCK])?;
        let sink = self
            .sink
            .take()
            .ok_or_else(|| Error::bug("the image is finished"))?;
        let file = sink
            .into_file()
            .map_err(write_error)
            .doing(|| "writing the image")?;
        let written = Written {
            bytes: self.position,
            members: self.manifest.members.len() + 1,
        };
        match self.target.take() {
            None if self.sync => sync(&file)?,
            None => {}
            Some(target) => target.place(&file, self.sync)?,
        }
        Ok(written)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(target) = self.target.take() {
            target.remove();
        }
    }
}

/// What [`Writer::fill`] gives to its source.
struct Content<'w> {
    writer: &'w mut Writer,
    left: u64,
    hasher: blake3::Hasher,
}

impl Write for Content<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| std::io::Error::other(changed("a file grew".to_owned())))?;
        self.hasher.update(bytes);
        self.writer.write(bytes).map_err(std::io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn changed(what: String) -> Error {
    Error::coded(
        "E-CONTENT-CHANGED",
        Exit::Failure,
        what,
        "see who changes it while it is written, and take the checkpoint again",
    )
}

/// Has the kernel store what can be stored; a pipe or a terminal cannot.
fn sync(file: &File) -> Result<()> {
    match file.sync_all() {
        Err(error)
            if matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::EINVAL | Errno::ENOTSUP)
            ) =>
        {
            Ok(())
        }
        done => done.map_err(write_error).doing(|| "storing the image"),
    }
}

/// Threads that compress and digest; they end when the queue is dropped.
fn start_workers(count: usize, compression: Compression) -> Result<SyncSender<Job>> {
    let (jobs, queue) = sync_channel::<Job>(2 * count);
    let queue = Arc::new(Mutex::new(queue));
    for number in 0..count {
        let queue = queue.clone();
        let work = move || {
            loop {
                let job = match queue.lock() {
                    Ok(queue) => queue.recv(),
                    Err(_) => return,
                };
                let Ok(job) = job else { return };
                let result = codec::encode(job.bytes, compression).map(|(coding, bytes)| Done {
                    coding,
                    digest: blake3::hash(&bytes),
                    bytes,
                });
                // A writer that was dropped waits for nothing.
                let _ = job.done.send(result);
            }
        };
        let started = std::thread::Builder::new()
            .name(format!("compress-{number}"))
            .spawn(work);
        // One is enough.
        if let (0, Err(error)) = (number, started) {
            return Err(error).doing(|| "starting a thread that compresses");
        }
    }
    Ok(jobs)
}

/// See [`Writer::pieces`].
pub struct PieceWriter<'w> {
    writer: &'w mut Writer,
    prefix: String,
    index: u64,
    bytes: Vec<u8>,
}

impl PieceWriter<'_> {
    fn hand_over(&mut self) -> Result<()> {
        if !self.bytes.is_empty() {
            self.writer
                .piece(&self.prefix, self.index, std::mem::take(&mut self.bytes))?;
            self.index += 1;
        }
        Ok(())
    }

    /// Hands over what is left; how many pieces there are.
    pub fn finish(mut self) -> Result<u64> {
        self.hand_over()?;
        Ok(self.index)
    }
}

impl Write for PieceWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.capacity() == 0 {
            self.bytes = self.writer.spare.pop().unwrap_or_default();
            self.bytes.clear();
            self.bytes.reserve_exact(PIECE);
        }
        let taken = bytes.len().min(PIECE - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        if self.bytes.len() == PIECE {
            self.hand_over().map_err(std::io::Error::other)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
