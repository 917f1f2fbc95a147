//! Images that hold only what their parent does not.
//!
//! Pages are told apart by their content, BLAKE3 of each: what a page holds decides, not where it lies
//! or who has it. So a child is right whatever happened between the two images, and a parent may have
//! been read from running processes.
//!
//! The way out: [`Increment`] takes chunks on their way into an image and leaves out the pages that the
//! parent has. The way back: [`Layers`] puts chunks together again.

use super::source::Filled;
use crate::error::{Context, Error, Exit, Result};
use crate::image::PathBytes;
use crate::image::archive::{Reader, Writer};
use crate::image::memory::{
    CHUNK_PAGES, DIGESTS, DISTINCT, INHERITED, Inherited, InheritedRun, PAGE,
};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

const DIGEST: usize = blake3::OUT_LEN;
/// Images that lean on one another at most.
const DEEPEST: usize = 512;
/// Chunks of a parent that are kept.
const KEPT: usize = 8;

type Digest = [u8; DIGEST];

/// What is left out on the way into an image.
#[derive(Default)]
pub struct Increment {
    known: HashMap<Digest, (u32, u64)>,
    inherited: Option<Inherited>,
    digests: Option<BTreeMap<String, Vec<u8>>>,
    /// The parent's object that [`Places`](crate::image::memory::Places) are in, and the digests of
    /// its pages where this image keeps some as well.
    distinct: Option<(u32, Vec<Digest>)>,
    /// Pages that were looked at.
    pub scanned: u64,
    /// Pages that the parent has.
    pub skipped: u64,
}

impl Increment {
    /// Against `parent`, which a restore will find at `recorded_as`. With `keep_digests` the image may
    /// become a parent itself.
    pub fn new(parent: Option<(&Reader, &Path)>, keep_digests: bool) -> Result<Self> {
        let mut increment = Self {
            digests: keep_digests.then(BTreeMap::new),
            ..Self::default()
        };
        if let Some((image, recorded_as)) = parent {
            increment.lean_on(image, recorded_as)?;
        }
        Ok(increment)
    }

    fn lean_on(&mut self, image: &Reader, recorded_as: &Path) -> Result<()> {
        let mut inherited = Inherited {
            image: PathBytes::from(recorded_as.as_os_str().as_bytes()),
            identity: image.identity(),
            ..Inherited::default()
        };
        let objects: Vec<&str> = image
            .prefixes()
            .filter_map(|prefix| prefix.strip_prefix(DIGESTS)?.strip_prefix('/'))
            .collect();
        if objects.is_empty() {
            return Err(Error::coded(
                "E-IMAGE-PARENT",
                Exit::Image,
                "it was not made to be the parent of another image",
                "use one that a pre-dump wrote, or a dump with track-mem",
            ));
        }
        for object in objects {
            let source = inherited.sources.len() as u32;
            inherited.sources.push(object.to_owned());
            let prefix = format!("{DIGESTS}/{object}");
            let mut list = Vec::new();
            let mut page = 0;
            for index in 0..image.pieces(&prefix) {
                for digest in image.piece(&prefix, index)?.as_chunks::<DIGEST>().0 {
                    self.known.entry(*digest).or_insert((source, page));
                    page += 1;
                    if object == DISTINCT && self.digests.is_some() {
                        list.push(*digest);
                    }
                }
            }
            if object == DISTINCT {
                self.distinct = Some((source, list));
            }
        }
        self.inherited = Some(inherited);
        Ok(())
    }

    /// Takes a chunk of an object, all of whose chunks come in order, and hands back what of it has to
    /// be stored.
    pub fn take(&mut self, filled: Filled<'_>) -> Result<Vec<u8>> {
        let Filled {
            object,
            number,
            bytes: mut chunk,
            known,
        } = filled;
        let read = chunk.len() / PAGE as usize;
        let skipped: u64 = known.iter().map(|run| run.1).sum();
        self.scanned += read as u64 + skipped;
        if self.inherited.is_none() && self.digests.is_none() {
            return Ok(chunk);
        }
        let first = number * CHUNK_PAGES;
        let mut known = known.iter().copied().peekable();
        let (mut page, mut kept) = (0, 0);
        for at in 0..read {
            while let Some((_, pages, there)) = known.next_if(|run| run.0 == page) {
                self.inherit_known(object, first + page, pages, there)?;
                page += pages;
            }
            let range = at * PAGE as usize..(at + 1) * PAGE as usize;
            let digest: Digest = blake3::hash(&chunk[range.clone()]).into();
            self.note(object, &digest);
            match self.known.get(&digest) {
                Some(&(source, there)) => self.inherit(object, first + page, source, there),
                None => {
                    chunk.copy_within(range, kept * PAGE as usize);
                    kept += 1;
                }
            }
            page += 1;
        }
        for (_, pages, there) in known {
            self.inherit_known(object, first + page, pages, there)?;
            page += pages;
        }
        chunk.truncate(kept * PAGE as usize);
        Ok(chunk)
    }

    fn note(&mut self, object: &str, digest: &Digest) {
        if let Some(digests) = &mut self.digests {
            match digests.get_mut(object) {
                Some(list) => list.extend_from_slice(digest),
                None => {
                    digests.insert(object.to_owned(), digest.to_vec());
                }
            }
        }
    }

    /// Pages that were not looked at: the parent has them at `there` in its distinct pages.
    fn inherit_known(&mut self, object: &str, page: u64, pages: u64, there: u64) -> Result<()> {
        let bug = || Error::bug("a page that the parent cannot have is said to be there");
        let (source, digests) = self.distinct.as_ref().ok_or_else(bug)?;
        let source = *source;
        let digests = match self.digests.is_some() {
            true => digests
                .get(there as usize..(there + pages) as usize)
                .ok_or_else(bug)?
                .to_vec(),
            false => Vec::new(),
        };
        for digest in &digests {
            self.note(object, digest);
        }
        for at in 0..pages {
            self.inherit(object, page + at, source, there + at);
        }
        Ok(())
    }

    /// Notes that the parent has a page.
    fn inherit(&mut self, object: &str, page: u64, source: u32, there: u64) {
        let Some(inherited) = &mut self.inherited else {
            return;
        };
        self.skipped += 1;
        let runs = match inherited.objects.get_mut(object) {
            Some(runs) => runs,
            None => inherited.objects.entry(object.to_owned()).or_default(),
        };
        match runs.last_mut() {
            Some(last)
                if last.page + last.pages == page
                    && last.source == source
                    && last.there + last.pages == there =>
            {
                last.pages += 1;
            }
            _ => runs.push(InheritedRun {
                page,
                pages: 1,
                source,
                there,
            }),
        }
    }

    /// Writes what a restore and a child have to know.
    pub fn finish(self, writer: &mut Writer) -> Result<()> {
        if let Some(inherited) = &self.inherited {
            writer.record(INHERITED, inherited)?;
        }
        for (object, digests) in self.digests.unwrap_or_default() {
            for (index, part) in digests
                .chunks(CHUNK_PAGES as usize * PAGE as usize)
                .enumerate()
            {
                writer.piece(&format!("{DIGESTS}/{object}"), index as u64, part.to_vec())?;
            }
        }
        Ok(())
    }
}

/// Every different page once, cut into chunks: what an image of the memory only holds.
#[derive(Default)]
pub struct Distinct {
    seen: HashMap<Digest, u64>,
    chunk: Vec<u8>,
    next: u64,
}

impl Distinct {
    /// Takes pages; hands whole chunks of new ones to `sink` (number, bytes), and the number of each page
    /// to `placed`.
    pub fn take(
        &mut self,
        pages: &[u8],
        sink: &mut dyn FnMut(u64, Vec<u8>) -> Result<()>,
        placed: &mut dyn FnMut(u64),
    ) -> Result<()> {
        for page in pages.chunks_exact(PAGE as usize) {
            let next = self.seen.len() as u64;
            let entry = self.seen.entry(blake3::hash(page).into());
            placed(*match &entry {
                Entry::Occupied(occupied) => occupied.get(),
                Entry::Vacant(_) => &next,
            });
            if let Entry::Vacant(vacant) = entry {
                vacant.insert(next);
                self.chunk.extend_from_slice(page);
                if self.chunk.len() as u64 == CHUNK_PAGES * PAGE {
                    self.hand_over(sink)?;
                }
            }
        }
        Ok(())
    }

    /// Hands the rest over.
    pub fn finish(mut self, sink: &mut dyn FnMut(u64, Vec<u8>) -> Result<()>) -> Result<()> {
        match self.chunk.is_empty() && self.next > 0 {
            true => Ok(()),
            false => self.hand_over(sink),
        }
    }

    fn hand_over(&mut self, sink: &mut dyn FnMut(u64, Vec<u8>) -> Result<()>) -> Result<()> {
        sink(self.next, std::mem::take(&mut self.chunk))?;
        self.next += 1;
        Ok(())
    }
}

/// An image with all that it leans on.
pub struct Layers<'a> {
    image: Image<'a>,
    below: Option<(Inherited, Box<Layers<'static>>)>,
    kept: Mutex<VecDeque<Kept>>,
}

type Kept = ((String, u64), Arc<Vec<u8>>);

enum Image<'a> {
    Borrowed(&'a Reader),
    Owned(Box<Reader>),
}

impl Image<'_> {
    fn reader(&self) -> &Reader {
        match self {
            Image::Borrowed(reader) => reader,
            Image::Owned(reader) => reader,
        }
    }
}

impl<'a> Layers<'a> {
    /// Finds the parents of `image`, which lies in `directory`.
    pub fn new(image: &'a Reader, directory: &Path) -> Result<Self> {
        Self::stack(Image::Borrowed(image), directory, DEEPEST)
    }

    fn stack<'i>(image: Image<'i>, directory: &Path, left: usize) -> Result<Layers<'i>> {
        let below = match image.reader().has(INHERITED) {
            false => None,
            true => {
                let inherited: Inherited = image.reader().record(INHERITED)?;
                check(&inherited)?;
                let path = directory.join(std::ffi::OsStr::from_bytes(inherited.image.as_bytes()));
                let parent = open_parent(&inherited, &path, left)
                    .doing(|| format!("reading the parent image {}", path.display()))?;
                Some((inherited, Box::new(parent)))
            }
        };
        Ok(Layers {
            image,
            below,
            kept: Mutex::default(),
        })
    }

    /// Chunk `number` of an object, whole.
    pub fn chunk(&self, object: &str, number: u64) -> Result<Vec<u8>> {
        let own = self
            .image
            .reader()
            .piece(&format!("memory/{object}"), number)?;
        let Some((inherited, below)) = &self.below else {
            return Ok(own);
        };
        let Some(runs) = inherited.objects.get(object) else {
            return Ok(own);
        };
        let first = number * CHUNK_PAGES;
        let end = first + CHUNK_PAGES;
        let at = runs.partition_point(|run| run.page + run.pages <= first);
        if runs.get(at).is_none_or(|run| run.page >= end) {
            return Ok(own);
        }
        let mut chunk = Vec::with_capacity((CHUNK_PAGES * PAGE) as usize);
        let mut own = own.as_slice();
        for run in runs[at..].iter().take_while(|run| run.page < end) {
            let start = run.page.max(first);
            let stop = (run.page + run.pages).min(end);
            // Stored pages up to the run, then the run.
            let before = ((start - first) * PAGE) as usize;
            let missing = before.saturating_sub(chunk.len());
            let (part, rest) = own.split_at_checked(missing).ok_or_else(too_short)?;
            chunk.extend_from_slice(part);
            own = rest;
            let source = inherited
                .sources
                .get(run.source as usize)
                .ok_or_else(too_short)?;
            below.append(
                source,
                run.there + (start - run.page),
                stop - start,
                &mut chunk,
            )?;
        }
        chunk.extend_from_slice(own);
        if chunk.len() as u64 > CHUNK_PAGES * PAGE {
            return Err(too_short());
        }
        Ok(chunk)
    }

    /// Appends `pages` pages of an object.
    fn append(&self, object: &str, mut page: u64, pages: u64, into: &mut Vec<u8>) -> Result<()> {
        let end = page + pages;
        while page < end {
            let chunk = self.cached(object, page / CHUNK_PAGES)?;
            let from = page % CHUNK_PAGES;
            let count = (CHUNK_PAGES - from).min(end - page);
            let range = (from * PAGE) as usize..((from + count) * PAGE) as usize;
            into.extend_from_slice(chunk.get(range).ok_or_else(too_short)?);
            page += count;
        }
        Ok(())
    }

    fn cached(&self, object: &str, number: u64) -> Result<Arc<Vec<u8>>> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock()
            .iter()
            .find(|((name, at), _)| name == object && *at == number)
            .map(|(_, chunk)| chunk.clone());
        if let Some(chunk) = known {
            return Ok(chunk);
        }
        let chunk = Arc::new(self.chunk(object, number)?);
        let mut kept = lock();
        kept.push_back(((object.to_owned(), number), chunk.clone()));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(chunk)
    }
}

fn open_parent(inherited: &Inherited, path: &Path, left: usize) -> Result<Layers<'static>> {
    let Some(left) = left.checked_sub(1) else {
        return Err(Error::coded(
            "E-IMAGE-PARENT",
            Exit::Image,
            "too many images lean on one another",
            "take a checkpoint without a parent",
        ));
    };
    // An image is not to be trusted: what it names may be a pipe that nobody writes to.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Error::coded(
            "E-IMAGE-PARENT",
            Exit::Image,
            "it is no regular file",
            "put the image that was the parent there",
        ));
    }
    let parent = Reader::open(path)?;
    if parent.identity() != inherited.identity {
        return Err(Error::coded(
            "E-IMAGE-PARENT",
            Exit::Image,
            "it is not the image that was the parent",
            "put that one there",
        ));
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    Layers::stack(Image::Owned(Box::new(parent)), directory, left)
}

/// Numbers of an image are not to be trusted.
fn check(inherited: &Inherited) -> Result<()> {
    let sane = inherited.objects.values().all(|runs| {
        let mut from = 0;
        runs.iter().all(|run| {
            let end = run.page.checked_add(run.pages);
            let there = run
                .there
                .checked_add(run.pages)
                .and_then(|end| end.checked_mul(PAGE));
            let fine = run.page >= from && run.pages > 0 && there.is_some();
            match end {
                Some(end) if fine && end.checked_mul(PAGE).is_some() => {
                    from = end;
                    true
                }
                _ => false,
            }
        })
    });
    match sane {
        true => Ok(()),
        false => Err(too_short()),
    }
}

fn too_short() -> Error {
    Error::coded(
        "E-IMAGE-MEMORY",
        Exit::Image,
        "pages that another image should have are not there",
        "the image, or its parent, is damaged",
    )
}

#[cfg(test)]
#[path = "increment_tests.rs"]
mod tests;
