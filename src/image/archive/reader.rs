//! Reading an image, whoever made it.

use super::entry::Kind;
use super::name::{self, Coding};
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
/// An image has at most so many members.
const MOST_MEMBERS: usize = 1 << 24;

/// A member.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    size: u64,
    digest: [u8; 32],
}

/// An image. Several threads may read from it.
#[derive(Debug)]
pub struct Reader {
    file: File,
    header: Header,
    /// In the order of the tar.
    names: Vec<String>,
    members: HashMap<String, Place>,
    /// (prefix, index) of pieces to their coding.
    pieces: HashMap<String, Vec<Option<Coding>>>,
}

impl Reader {
    /// Opens an image and reads its list of members; the content of each is verified when it is read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).doing(|| format!("opening {}", path.display()))?;
        Self::from_file(file).doing(|| format!("reading {}", path.display()))
    }

    /// The same with a file that is open. One that cannot be read at any place (a pipe) is copied to a
    /// temporary file first, as is a gzipped one.
    pub fn from_file(mut file: File) -> Result<Self> {
        if file.seek(SeekFrom::Start(0)).is_err() {
            file = spill(&mut file)?;
        }
        let mut magic = [0; 2];
        let read = file.read_at(&mut magic, 0)?;
        if read == 2 && magic == [0x1f, 0x8b] {
            file = spill(&mut MultiGzDecoder::new(BufReader::with_capacity(
                PIECE, &file,
            )))?;
        }
        let mut index = Index::read(&file)?;
        let header = index.header(&file)?;
        let manifest = index.manifest(&file)?;
        index.verify(&manifest)?;
        let mut members = HashMap::with_capacity(manifest.members.len());
        let mut pieces: HashMap<String, Vec<Option<Coding>>> = HashMap::new();
        let mut names = Vec::with_capacity(manifest.members.len());
        for (listed, (_, offset, size)) in manifest.members.into_iter().zip(index.entries) {
            let digest = blake3::Hash::from_hex(&listed.blake3)
                .map_err(|_| error::damaged("the manifest holds a digest that is none"))?;
            if let Some((prefix, number, coding)) = name::parse_piece(&listed.name) {
                let known = pieces.entry(prefix.to_owned()).or_default();
                let number = usize::try_from(number)
                    .ok()
                    .filter(|number| *number < MOST_MEMBERS)
                    .ok_or_else(|| error::unknown_member(&listed.name))?;
                if known.len() <= number {
                    known.resize(number + 1, None);
                }
                known[number] = Some(coding);
            }
            names.push(listed.name.clone());
            let place = Place {
                offset,
                size,
                digest: *digest.as_bytes(),
            };
            if members.insert(listed.name.clone(), place).is_some() {
                return Err(error::damaged(format!(
                    "there are two members {}",
                    listed.name
                )));
            }
        }
        Ok(Self {
            file,
            header,
            names,
            members,
            pieces,
        })
    }

    /// The first member.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The names of all members but the manifest, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether there is such a member.
    pub fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// Bytes of a member as it is stored.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.members.get(name).map(|place| place.size)
    }

    /// A member, whole and verified.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let place = self
            .members
            .get(name)
            .ok_or_else(|| error::missing_member(name))?;
        if place.size > LARGEST_RECORD {
            return Err(error::too_large(name, place.size, LARGEST_RECORD));
        }
        let mut bytes = vec![0; place.size as usize];
        self.file
            .read_exact_at(&mut bytes, place.offset)
            .doing(|| format!("reading member {name}"))?;
        if blake3::hash(&bytes).as_bytes() != &place.digest {
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
        let place = *self
            .members
            .get(name)
            .ok_or_else(|| error::missing_member(name))?;
        Ok(MemberReader {
            reader: self,
            name: name.to_owned(),
            place,
            done: 0,
            hasher: blake3::Hasher::new(),
        })
    }

    /// How many pieces `prefix` has.
    pub fn pieces(&self, prefix: &str) -> usize {
        self.pieces.get(prefix).map_or(0, Vec::len)
    }

    /// A piece, verified and decompressed.
    pub fn piece(&self, prefix: &str, index: u64) -> Result<Vec<u8>> {
        let coding = usize::try_from(index)
            .ok()
            .and_then(|index| self.pieces.get(prefix)?.get(index).copied().flatten())
            .ok_or_else(|| error::missing_member(&format!("{prefix}/{index:06}")))?;
        let name = name::piece(prefix, index, coding);
        codec::decode(&name, coding, self.bytes(&name)?)
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
        for name in &self.names {
            match name::parse_piece(name) {
                Some((prefix, index, _)) => drop(self.piece(prefix, index)?),
                None => {
                    std::io::copy(&mut self.read(name)?, &mut std::io::sink())
                        .map_err(unwrap_error)?;
                }
            }
        }
        Ok(())
    }
}

/// An error of ours that went through [`Read`].
fn unwrap_error(error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => own,
        Err(error) => error.into(),
    }
}

/// What the headers of a tar say.
struct Index {
    /// Name, where the content begins, its size.
    entries: Vec<(String, u64, u64)>,
    manifest: Option<(u64, u64, String)>,
}

impl Index {
    fn read(file: &File) -> Result<Self> {
        let length = file.metadata()?.len();
        let mut index = Self {
            entries: Vec::new(),
            manifest: None,
        };
        let mut at = 0;
        let mut records = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            if at + BLOCK as u64 > length {
                return Err(index.ends_early());
            }
            file.read_exact_at(&mut block, at)?;
            let flaw = |flaw: tar::Flaw| {
                if at == 0 {
                    error::not_an_image(format!("its first block {flaw}"))
                } else {
                    error::damaged(format!("the header at byte {at} {flaw}"))
                }
            };
            match tar::parse_block(&block).map_err(flaw)? {
                Block::Zeros if at == 0 => return Err(error::not_an_image("it begins with zeros")),
                Block::Zeros => break,
                Block::Pax(size) => {
                    if size > tar::LONGEST_PAX {
                        return Err(flaw("has an extended header that is too long"));
                    }
                    if at + BLOCK as u64 + size > length {
                        return Err(index.ends_early());
                    }
                    let mut some = vec![0; size as usize];
                    file.read_exact_at(&mut some, at + BLOCK as u64)?;
                    records.extend_from_slice(&some);
                    if records.len() as u64 > 2 * tar::LONGEST_PAX {
                        return Err(flaw("has extended headers without end"));
                    }
                    at += BLOCK as u64 + size + tar::padding(size) as u64;
                }
                Block::Member(block) => {
                    let (entry, digest) =
                        tar::parse_member(&block, &std::mem::take(&mut records)).map_err(flaw)?;
                    let Kind::File { size } = entry.kind else {
                        return Err(flaw("is of something else than a file"));
                    };
                    if !name::has_a_place(entry.name.as_bytes()) {
                        return Err(error::unknown_member(&entry.name.to_string()));
                    }
                    let name = String::from_utf8(entry.name.0)
                        .map_err(|_| error::unknown_member("with a name that is no text"))?;
                    let content = at + BLOCK as u64;
                    let end = content
                        .checked_add(size)
                        .and_then(|end| end.checked_add(tar::padding(size) as u64))
                        .filter(|end| *end <= length)
                        .ok_or_else(|| index.ends_early())?;
                    if name == name::MANIFEST {
                        index.manifest = Some((content, size, digest.unwrap_or_default()));
                    } else if index.manifest.is_some() {
                        return Err(error::damaged("something follows the manifest"));
                    } else {
                        index.entries.push((name, content, size));
                    }
                    if index.entries.len() > MOST_MEMBERS {
                        return Err(error::damaged("it has members without end"));
                    }
                    at = end;
                }
            }
        }
        Ok(index)
    }

    fn ends_early(&self) -> Error {
        if self.entries.is_empty() {
            return error::not_an_image("it ends before its first member does");
        }
        error::truncated("it ends in the middle")
    }

    /// The first member. Its format is looked at before anything else is understood.
    fn header(&self, file: &File) -> Result<Header> {
        let Some((first, offset, size)) = self.entries.first() else {
            return Err(error::not_an_image("it is empty"));
        };
        if first != name::HEADER {
            return Err(error::not_an_image(format!("its first member is {first}")));
        }
        if *size > LARGEST_RECORD {
            return Err(error::too_large(first, *size, LARGEST_RECORD));
        }
        let mut bytes = vec![0; *size as usize];
        file.read_exact_at(&mut bytes, *offset)?;
        let glance: Glance = serde_json::from_slice(&bytes)
            .map_err(|why| error::not_an_image(format!("{first}: {why}")))?;
        if glance.format > FORMAT {
            return Err(error::newer(glance.format, &glance.engine));
        }
        if glance.format < OLDEST_FORMAT {
            return Err(error::older(glance.format, &glance.engine));
        }
        serde_json::from_slice(&bytes).map_err(|why| error::bad_record(format!("{first}: {why}")))
    }

    fn manifest(&mut self, file: &File) -> Result<Manifest> {
        let (offset, size, digest) = self.manifest.take().ok_or_else(error::incomplete)?;
        if size > LARGEST_RECORD * 4 {
            return Err(error::too_large(name::MANIFEST, size, LARGEST_RECORD * 4));
        }
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, offset)?;
        if blake3::hash(&bytes).to_hex().as_str() != digest {
            return Err(error::damaged("the manifest is not what was written"));
        }
        serde_json::from_slice(&bytes)
            .map_err(|why| error::bad_record(format!("{}: {why}", name::MANIFEST)))
    }

    /// The manifest lists exactly what is there, in its order.
    fn verify(&self, manifest: &Manifest) -> Result<()> {
        let same = self.entries.len() == manifest.members.len()
            && self
                .entries
                .iter()
                .zip(&manifest.members)
                .all(|(found, listed)| found.0 == listed.name && found.2 == listed.size);
        if same {
            Ok(())
        } else {
            Err(error::damaged(
                "the manifest does not list the members that are there",
            ))
        }
    }
}

/// Copies a stream to a file without a name.
fn spill(stream: &mut dyn Read) -> Result<File> {
    let mut file = tempfile::tempfile().doing(|| "making a temporary file for the image")?;
    std::io::copy(stream, &mut file).map_err(|why| match why.kind() {
        std::io::ErrorKind::UnexpectedEof => error::truncated("the gzip stream ends in the middle"),
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => {
            error::damaged(format!("the gzip stream: {why}"))
        }
        _ => Error::from(why).doing("copying the image to a temporary file"),
    })?;
    Ok(file)
}

struct MemberReader<'r> {
    reader: &'r Reader,
    name: String,
    place: Place,
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
        if self.done == self.place.size && self.hasher.finalize().as_bytes() != &self.place.digest {
            return Err(std::io::Error::other(error::damaged(format!(
                "member {} is not what was written",
                self.name
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
            if self.next >= self.reader.pieces(&self.prefix) as u64 {
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
