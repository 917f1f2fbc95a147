//! Reading an image, whoever made it.

use super::entry::Kind;
use super::name::{self, Coding};
use super::spill::spill;
use super::tar::{self, BLOCK, Block};
use super::{Manifest, PIECE, codec, error};
use crate::error::{Context, Error, Result};
use crate::image::header::{FORMAT, Glance, Header, OLDEST_FORMAT};
use flate2::read::MultiGzDecoder;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A record has at most so many bytes.
const LARGEST_RECORD: u64 = 256 << 20;
/// The manifest has at most so many bytes.
const LARGEST_MANIFEST: u64 = 1 << 30;
/// An image has at most so many members: 4 TiB of memory.
const MOST_MEMBERS: usize = 1 << 22;
/// Their names have at most so many bytes together.
const LONGEST_NAMES: usize = 64 * MOST_MEMBERS;

/// A member.
#[derive(Debug)]
struct Place {
    name: String,
    offset: u64,
    size: u64,
    digest: blake3::Hash,
}

/// An image. Several threads may read from it.
#[derive(Debug)]
pub struct Reader {
    file: File,
    header: Header,
    /// In the order of the tar.
    places: Vec<Place>,
    /// Indices of `places`, ascending by name.
    by_name: Vec<u32>,
    /// By prefix, how many there are.
    pieces: HashMap<String, u64>,
}

impl Reader {
    /// Opens an image and reads its list of members; the content of each is verified when it is read.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("reading {}", path.display());
        let file = File::open(path)
            .map_err(error::cannot_open)
            .doing(|| format!("opening {}", path.display()))?;
        if file.metadata().doing(doing)?.is_dir() {
            return Err(error::not_an_image("it is a directory")).doing(doing);
        }
        Self::read_from(file, path.parent()).doing(doing)
    }

    /// The same with a file that is open. One that cannot be read at any place (a pipe) is copied to a
    /// temporary file first, as is a gzipped one.
    pub fn from_file(file: File) -> Result<Self> {
        Self::read_from(file, None)
    }

    fn read_from(mut file: File, beside: Option<&Path>) -> Result<Self> {
        let beside = beside.filter(|directory| !directory.as_os_str().is_empty());
        if file.seek(SeekFrom::Start(0)).is_err() {
            file = spill(&mut file, beside)?;
        }
        let mut magic = [0; 2];
        if file.read_at(&mut magic, 0)? == 2 && magic == [0x1f, 0x8b] {
            file.seek(SeekFrom::Start(0))?;
            let mut plain = MultiGzDecoder::new(BufReader::with_capacity(PIECE, &file));
            file = spill(&mut plain, beside)?;
        }
        let index = Index::read(&file)?;
        let manifest = index.manifest(&file)?;
        let places: Vec<_> = manifest
            .members
            .iter()
            .zip(index.entries)
            .map(|(listed, entry)| Place {
                name: entry.name,
                offset: entry.offset,
                size: entry.size,
                digest: listed.blake3.0,
            })
            .collect();
        let reader = Self {
            file,
            header: index.header,
            by_name: sort(&places)?,
            pieces: count(&places)?,
            places,
        };
        reader.check_codings()?;
        Ok(reader)
    }

    /// No piece is there in two codings.
    fn check_codings(&self) -> Result<()> {
        for place in &self.places {
            if let Some((prefix, index, coding)) = name::parse_piece(&place.name)
                && self.find_piece(prefix, index).map(|found| found.0) != Some(coding)
            {
                return Err(twice(&place.name));
            }
        }
        Ok(())
    }

    fn place(&self, name: &str) -> Option<&Place> {
        self.by_name
            .binary_search_by(|&index| self.places[index as usize].name.as_str().cmp(name))
            .ok()
            .map(|found| &self.places[self.by_name[found] as usize])
    }

    fn known(&self, name: &str) -> Result<&Place> {
        self.place(name).ok_or_else(|| error::missing_member(name))
    }

    /// The first member.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Tells this image from every other: BLAKE3 over the list of its members, in hexadecimal.
    pub fn identity(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for place in &self.places {
            hasher.update(&(place.name.len() as u64).to_le_bytes());
            hasher.update(place.name.as_bytes());
            hasher.update(&place.size.to_le_bytes());
            hasher.update(place.digest.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The names of all members but the manifest, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|place| place.name.as_str())
    }

    /// Whether there is such a member.
    pub fn has(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    /// Bytes of a member as it is stored.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.place(name).map(|place| place.size)
    }

    /// Bytes of the whole tar, not gzipped.
    pub fn length(&self) -> Result<u64> {
        end_of(&self.file)
    }

    /// A member, whole and verified.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.whole(self.known(name)?, LARGEST_RECORD)
    }

    fn whole(&self, place: &Place, limit: u64) -> Result<Vec<u8>> {
        let name = &place.name;
        if place.size > limit {
            return Err(error::too_large(name, place.size, limit));
        }
        let mut bytes = vec![0; place.size as usize];
        self.file
            .read_exact_at(&mut bytes, place.offset)
            .doing(|| format!("reading member {name}"))?;
        if blake3::hash(&bytes) != place.digest {
            return Err(error::damaged(format!(
                "member {name} is not what was written"
            )));
        }
        Ok(bytes)
    }

    /// A record.
    pub fn record<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let bytes = self.bytes(name)?;
        serde_json::from_slice(&bytes).map_err(|why| error::bad_record(format!("{name}: {why}")))
    }

    /// A member that need not be there.
    pub fn optional<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T> {
        if self.has(name) {
            self.record(name)
        } else {
            Ok(T::default())
        }
    }

    /// Reads a member from its beginning; the last read fails where the content is not what was written.
    pub fn read(&self, name: &str) -> Result<impl Read + '_> {
        Ok(MemberReader {
            reader: self,
            place: self.known(name)?,
            done: 0,
            hasher: blake3::Hasher::new(),
        })
    }

    /// How many pieces `prefix` has.
    pub fn pieces(&self, prefix: &str) -> u64 {
        self.pieces.get(prefix).copied().unwrap_or(0)
    }

    /// What has pieces, in no order.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.pieces.keys().map(String::as_str)
    }

    fn find_piece(&self, prefix: &str, index: u64) -> Option<(Coding, &Place)> {
        Coding::ALL
            .into_iter()
            .find_map(|coding| Some((coding, self.place(&name::piece(prefix, index, coding))?)))
    }

    /// A piece, verified and decompressed: at most [`PIECE`] bytes.
    pub fn piece(&self, prefix: &str, index: u64) -> Result<Vec<u8>> {
        let (coding, place) = self
            .find_piece(prefix, index)
            .ok_or_else(|| error::missing_member(&format!("{prefix}/{index:06}")))?;
        codec::decode(
            &place.name,
            coding,
            self.whole(place, codec::LARGEST_STORED)?,
        )
    }

    /// All pieces of `prefix`, one after the other.
    pub fn read_pieces<'r>(&'r self, prefix: &str) -> PieceReader<'r> {
        PieceReader {
            reader: self,
            prefix: prefix.to_owned(),
            next: 0,
            piece: Vec::new(),
            at: 0,
        }
    }

    /// Verifies the content of every member.
    pub fn verify(&self) -> Result<()> {
        for place in &self.places {
            match name::parse_piece(&place.name) {
                Some((prefix, index, _)) => drop(self.piece(prefix, index)?),
                None => drop(std::io::copy(
                    &mut self.read(&place.name)?,
                    &mut std::io::sink(),
                )?),
            }
        }
        Ok(())
    }
}

/// Indices of `places` in the order of their names, of which none is there twice.
fn sort(places: &[Place]) -> Result<Vec<u32>> {
    let mut by_name: Vec<u32> = (0..places.len() as u32).collect();
    let name = |index: u32| places[index as usize].name.as_str();
    by_name.sort_unstable_by(|one, other| name(*one).cmp(name(*other)));
    match by_name
        .windows(2)
        .find(|pair| name(pair[0]) == name(pair[1]))
    {
        Some(pair) => Err(twice(name(pair[0]))),
        None => Ok(by_name),
    }
}

/// How many pieces there are of each prefix; none is left out.
fn count(places: &[Place]) -> Result<HashMap<String, u64>> {
    let mut pieces: HashMap<&str, (u64, u64)> = HashMap::new();
    for place in places {
        if let Some((prefix, number, _)) = name::parse_piece(&place.name) {
            let (count, last) = pieces.entry(prefix).or_default();
            *count += 1;
            *last = number.max(*last);
        }
    }
    pieces
        .into_iter()
        .map(|(prefix, (count, last))| match last < count {
            true => Ok((prefix.to_owned(), count)),
            false => Err(error::missing_member(&format!(
                "a piece before {prefix}/{last:06}"
            ))),
        })
        .collect()
}

fn twice(name: &str) -> Error {
    error::damaged(format!("member {name} is there twice"))
}

fn end_of(mut file: &File) -> Result<u64> {
    // Block devices have a length too, but not in their metadata.
    file.seek(SeekFrom::End(0)).doing(|| "measuring the image")
}

/// A member that a header of the tar speaks of.
struct Found {
    name: String,
    offset: u64,
    size: u64,
}

/// What the headers of a tar say.
struct Index {
    header: Header,
    /// The header is the first.
    entries: Vec<Found>,
    /// Where it is, its size and digest.
    manifest: (u64, u64, String),
}

impl Index {
    fn read(file: &File) -> Result<Self> {
        let mut walk = Walk {
            file,
            length: end_of(file)?,
            at: 0,
            records: Vec::new(),
        };
        // The format is looked at before anything else is understood.
        let first = match walk.next()? {
            Some((first, _)) if first.name == name::HEADER => first,
            Some((first, _)) => {
                let why = format!("its first member is {}", first.name);
                return Err(error::not_an_image(why));
            }
            None => return Err(error::not_an_image("it begins with zeros")),
        };
        let header = read_header(file, &first)?;
        let mut names = first.name.len();
        let mut entries = vec![first];
        let mut manifest = None;
        while let Some((found, digest)) = walk.next()? {
            if manifest.is_some() {
                return Err(error::damaged("something follows the manifest"));
            }
            if found.name == name::MANIFEST {
                manifest = Some((found.offset, found.size, digest.unwrap_or_default()));
                continue;
            }
            names += found.name.len();
            entries.push(found);
            if entries.len() > MOST_MEMBERS || names > LONGEST_NAMES {
                return Err(error::damaged("it has members without end"));
            }
        }
        Ok(Self {
            header,
            entries,
            manifest: manifest.ok_or_else(error::incomplete)?,
        })
    }

    /// The manifest, which lists exactly what is there, in its order.
    fn manifest(&self, file: &File) -> Result<Manifest> {
        let (offset, size, digest) = &self.manifest;
        if *size > LARGEST_MANIFEST {
            return Err(error::too_large(name::MANIFEST, *size, LARGEST_MANIFEST));
        }
        let mut bytes = vec![0; *size as usize];
        file.read_exact_at(&mut bytes, *offset)
            .doing(|| "reading the manifest")?;
        if blake3::hash(&bytes).to_hex().as_str() != digest {
            return Err(error::damaged("the manifest is not what was written"));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|why| error::bad_record(format!("{}: {why}", name::MANIFEST)))?;
        let same = self.entries.len() == manifest.members.len()
            && self
                .entries
                .iter()
                .zip(&manifest.members)
                .all(|(found, listed)| found.name == listed.name && found.size == listed.size);
        if !same {
            return Err(error::damaged(
                "the manifest does not list the members that are there",
            ));
        }
        Ok(manifest)
    }
}

fn read_header(file: &File, first: &Found) -> Result<Header> {
    if first.size > LARGEST_RECORD {
        return Err(error::too_large(&first.name, first.size, LARGEST_RECORD));
    }
    let mut bytes = vec![0; first.size as usize];
    file.read_exact_at(&mut bytes, first.offset)
        .doing(|| "reading the header")?;
    let glance: Glance = serde_json::from_slice(&bytes)
        .map_err(|why| error::not_an_image(format!("{}: {why}", first.name)))?;
    if glance.format > FORMAT {
        return Err(error::newer(glance.format, &glance.engine));
    }
    if glance.format < OLDEST_FORMAT {
        return Err(error::older(glance.format, &glance.engine));
    }
    serde_json::from_slice(&bytes)
        .map_err(|why| error::bad_record(format!("{}: {why}", first.name)))
}

/// Walks along the headers of a tar.
struct Walk<'f> {
    file: &'f File,
    length: u64,
    /// Of the next header.
    at: u64,
    /// Of the pax headers before it.
    records: Vec<u8>,
}

impl Walk<'_> {
    /// The next member and the digest in its pax header; `None` at the end of the tar.
    fn next(&mut self) -> Result<Option<(Found, Option<String>)>> {
        loop {
            let start = self.at;
            let mut block = [0; BLOCK];
            self.advance(BLOCK as u64)?;
            self.file.read_exact_at(&mut block, start)?;
            let flaw = |flaw: tar::Flaw| match start {
                0 => error::not_an_image(format!("its first block {flaw}")),
                _ => error::damaged(format!("the header at byte {start} {flaw}")),
            };
            match tar::parse_block(&block).map_err(flaw)? {
                Block::Zeros => return Ok(None),
                Block::Pax(size) => {
                    if self.records.len() as u64 + size > tar::LONGEST_PAX {
                        return Err(flaw("has an extended header that is too long"));
                    }
                    let mut some = vec![0; size as usize];
                    self.advance(size + tar::padding(size) as u64)?;
                    self.file.read_exact_at(&mut some, start + BLOCK as u64)?;
                    self.records.extend_from_slice(&some);
                }
                Block::Member(block) => {
                    let records = std::mem::take(&mut self.records);
                    let (entry, digest) = tar::parse_member(&block, &records).map_err(flaw)?;
                    let Kind::File { size } = entry.kind else {
                        return Err(flaw("is of something else than a file"));
                    };
                    if !name::has_a_place(entry.name.as_bytes()) {
                        return Err(error::unknown_member(&entry.name.to_string()));
                    }
                    let name = String::from_utf8(entry.name.0)
                        .map_err(|_| error::unknown_member("with a name that is no text"))?;
                    let offset = self.at;
                    self.advance(size)?;
                    self.advance(tar::padding(size) as u64)?;
                    return Ok(Some((Found { name, offset, size }, digest)));
                }
            }
        }
    }

    fn advance(&mut self, bytes: u64) -> Result<()> {
        match self.at.checked_add(bytes) {
            Some(end) if end <= self.length => {
                self.at = end;
                Ok(())
            }
            _ if self.at <= BLOCK as u64 => {
                Err(error::not_an_image("it ends before its first member does"))
            }
            _ => Err(error::truncated("it ends in the middle")),
        }
    }
}

struct MemberReader<'r> {
    reader: &'r Reader,
    place: &'r Place,
    done: u64,
    hasher: blake3::Hasher,
}

impl Read for MemberReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.place.size - self.done;
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self
            .reader
            .file
            .read_at(&mut buffer[..most], self.place.offset + self.done)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&buffer[..read]);
        self.done += read as u64;
        if self.done == self.place.size && self.hasher.finalize() != self.place.digest {
            return Err(std::io::Error::other(error::damaged(format!(
                "member {} is not what was written",
                self.place.name
            ))));
        }
        Ok(read)
    }
}

/// See [`Reader::read_pieces`].
pub struct PieceReader<'r> {
    reader: &'r Reader,
    prefix: String,
    next: u64,
    piece: Vec<u8>,
    at: usize,
}

impl Read for PieceReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.piece.len() {
            if self.next >= self.reader.pieces(&self.prefix) {
                return Ok(0);
            }
            self.piece = self
                .reader
                .piece(&self.prefix, self.next)
                .map_err(std::io::Error::other)?;
            self.next += 1;
            self.at = 0;
        }
        let taken = buffer.len().min(self.piece.len() - self.at);
        buffer[..taken].copy_from_slice(&self.piece[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}
