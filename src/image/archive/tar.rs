//! Tar headers: POSIX ustar with pax records, as GNU tar, bsdtar and Go write and read them.
//!
//! Own code, because headers must be computed apart from writing them (workers write chunks in
//! parallel at offsets of their own) and be padded to an alignment. Only what [`encode`] writes is
//! read back: everything else is a [`Flaw`].

use super::entry::{Entry, Kind};
use crate::image::PathBytes;

/// Tar counts in blocks of so many bytes.
pub const BLOCK: usize = 512;
/// The longest extended header that is read.
pub const LONGEST_PAX: u64 = 1 << 20;
/// What octal fields of 7 digits hold.
const SEVEN_DIGITS: u64 = 0o7777777;
/// What octal fields of 11 digits hold.
const ELEVEN_DIGITS: u64 = 0o77777777777;
/// What the comment begins with in which the manifest's own digest stands. (A key of our own would do
/// as well, but GNU tar warns of keys that it does not know.)
const DIGEST: &[u8] = b"blake3 ";

/// Why a header is refused.
pub type Flaw = &'static str;

/// Bytes of zeros after `size` bytes of content.
pub fn padding(size: u64) -> usize {
    (size.wrapping_neg() % BLOCK as u64) as usize
}

/// The header blocks of `entry`: a pax header where it needs one, then its own.
pub fn encode(entry: &Entry) -> Vec<u8> {
    encode_with_digest(entry, None)
}

/// As [`encode`], with the digest of the content in the pax header.
pub fn encode_with_digest(entry: &Entry, digest: Option<&str>) -> Vec<u8> {
    let mut records = Vec::new();
    let mut name = entry.name.0.clone();
    if entry.kind == Kind::Directory {
        name.push(b'/');
    }
    if name.len() > 100 {
        record(&mut records, b"path", &name);
    }
    let (typeflag, target, (major, minor)) = match &entry.kind {
        Kind::File { .. } => (b'0', &[][..], (0, 0)),
        Kind::HardLink { target } => (b'1', &target.0[..], (0, 0)),
        Kind::Symlink { target } => (b'2', &target.0[..], (0, 0)),
        Kind::CharDevice { major, minor } => (b'3', &[][..], (*major, *minor)),
        Kind::BlockDevice { major, minor } => (b'4', &[][..], (*major, *minor)),
        Kind::Directory => (b'5', &[][..], (0, 0)),
        Kind::Fifo => (b'6', &[][..], (0, 0)),
    };
    if target.len() > 100 {
        record(&mut records, b"linkpath", target);
    }
    let size = entry.size();
    for (key, value, most) in [
        ("size", size, ELEVEN_DIGITS),
        ("uid", entry.uid.into(), SEVEN_DIGITS),
        ("gid", entry.gid.into(), SEVEN_DIGITS),
    ] {
        if value > most {
            record(&mut records, key.as_bytes(), value.to_string().as_bytes());
        }
    }
    let plain_mtime = u64::try_from(entry.mtime)
        .ok()
        .filter(|&mtime| mtime <= ELEVEN_DIGITS && entry.mtime_nanoseconds == 0);
    if plain_mtime.is_none() {
        let text = decimal_time(entry.mtime, entry.mtime_nanoseconds);
        record(&mut records, b"mtime", text.as_bytes());
    }
    for (key, value) in &entry.xattrs {
        let mut full = b"SCHILY.xattr.".to_vec();
        full.extend(escape_key(&key.0));
        record(&mut records, &full, &value.0);
    }
    if let Some(digest) = digest {
        let comment = [DIGEST, digest.as_bytes()].concat();
        record(&mut records, b"comment", &comment);
    }
    let mut blocks = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        push_pax(&mut blocks, &records);
    }
    blocks.extend(
        Fields {
            name: &name,
            mode: entry.mode.into(),
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            size,
            mtime: plain_mtime.unwrap_or_else(|| u64::try_from(entry.mtime).unwrap_or(0)),
            typeflag,
            target,
            device: (typeflag == b'3' || typeflag == b'4').then_some((major, minor)),
        }
        .block(),
    );
    blocks
}

/// Bytes to put in front of a plain header at tar offset `position`, so that what follows the header
/// lies at a multiple of `alignment` (a multiple of 512): nothing, or a pax header with a comment.
pub fn align(position: u64, alignment: u64) -> Vec<u8> {
    let header_end = position + BLOCK as u64;
    let mut missing = (header_end.wrapping_neg() % alignment) as usize;
    if missing == 0 {
        return Vec::new();
    }
    if missing == BLOCK {
        missing += alignment as usize;
    }
    let mut blocks = Vec::with_capacity(missing);
    let length = missing - BLOCK;
    let mut body = format!("{length} comment=").into_bytes();
    body.resize(length - 1, b' ');
    body.push(b'\n');
    push_pax(&mut blocks, &body);
    blocks
}

fn push_pax(blocks: &mut Vec<u8>, records: &[u8]) {
    blocks.extend(
        Fields {
            name: b"././@PaxHeader",
            mode: 0,
            uid: 0,
            gid: 0,
            size: records.len() as u64,
            mtime: 0,
            typeflag: b'x',
            target: b"",
            device: None,
        }
        .block(),
    );
    blocks.extend_from_slice(records);
    blocks.resize(blocks.len() + padding(records.len() as u64), 0);
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Seconds and nanoseconds as pax writes them: -1 s + 900,000,000 ns is `-0.100000000`.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)
}

fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds: u32 = format!("{fraction:0<9}").parse().ok()?;
    match (negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

/// An xattr name as part of a pax key: GNU tar escapes `=` and `%`.
fn escape_key(key: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(key.len());
    for &byte in key {
        match byte {
            b'=' => escaped.extend_from_slice(b"%3D"),
            b'%' => escaped.extend_from_slice(b"%25"),
            byte => escaped.push(byte),
        }
    }
    escaped
}

fn unescape_key(key: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(key.len());
    let mut rest = key;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            (b'%', [b'3', b'D', ..]) => plain.push(b'='),
            (b'%', [b'2', b'5', ..]) => plain.push(b'%'),
            (b'%', _) => return None,
            (byte, _) => {
                plain.push(byte);
                continue;
            }
        }
        rest = &after[2..];
    }
    Some(plain)
}

struct Fields<'a> {
    name: &'a [u8],
    mode: u64,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    typeflag: u8,
    target: &'a [u8],
    device: Option<(u32, u32)>,
}

impl Fields<'_> {
    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        copy(&mut block[0..100], self.name);
        octal(&mut block[100..108], self.mode);
        octal(&mut block[108..116], self.uid.min(SEVEN_DIGITS));
        octal(&mut block[116..124], self.gid.min(SEVEN_DIGITS));
        octal(&mut block[124..136], self.size.min(ELEVEN_DIGITS));
        octal(&mut block[136..148], self.mtime.min(ELEVEN_DIGITS));
        block[156] = self.typeflag;
        copy(&mut block[157..257], self.target);
        block[257..265].copy_from_slice(b"ustar\x0000");
        if let Some((major, minor)) = self.device {
            octal(&mut block[329..337], major.into());
            octal(&mut block[337..345], minor.into());
        }
        let sum = checksum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

fn copy(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
}

/// The sum of all bytes, those of the checksum taken as blanks.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    let own: u32 = block[148..156].iter().map(|&byte| u32::from(byte)).sum();
    sum - own + 8 * u32::from(b' ')
}

/// Gives a header block that was changed a checksum that agrees.
#[cfg(test)]
pub fn reseal(block: &mut [u8]) {
    if let Some(whole) = block.first_chunk::<BLOCK>() {
        let sum = format!("{:06o}\0 ", checksum(whole));
        block[148..156].copy_from_slice(sum.as_bytes());
    }
}

/// What one block at the place of a header is.
pub enum Block {
    /// Zeros: the end of the archive.
    Zeros,
    /// A pax header with so many bytes of records.
    Pax(u64),
    /// The header of a member.
    Member(Box<[u8; BLOCK]>),
}

/// Reads one block at the place of a header.
pub fn parse_block(block: &[u8; BLOCK]) -> Result<Block, Flaw> {
    if block.iter().all(|&byte| byte == 0) {
        return Ok(Block::Zeros);
    }
    if &block[257..265] != b"ustar\x0000" {
        return Err("is no ustar header");
    }
    let sum = std::str::from_utf8(&block[148..154])
        .ok()
        .and_then(|text| u32::from_str_radix(text, 8).ok());
    if sum != Some(checksum(block)) {
        return Err("has a wrong checksum");
    }
    if block[345..500].iter().any(|&byte| byte != 0) {
        return Err("has a name prefix");
    }
    match block[156] {
        b'x' => Ok(Block::Pax(parse_octal(&block[124..136])?)),
        b'0'..=b'6' => Ok(Block::Member(Box::new(*block))),
        _ => Err("has a type that has no place in an image"),
    }
}

/// The member that a header and the records of the pax header before it (may be empty) describe, and
/// the digest that those hold.
pub fn parse_member(block: &[u8; BLOCK], records: &[u8]) -> Result<(Entry, Option<String>), Flaw> {
    let mut pax = Pax::default();
    pax.read(records)?;
    let mut name = pax.path.unwrap_or_else(|| text(&block[0..100]).to_vec());
    let target = PathBytes(
        pax.linkpath
            .unwrap_or_else(|| text(&block[157..257]).to_vec()),
    );
    let small = |field: &[u8], pax: Option<u64>| {
        u32::try_from(match pax {
            Some(value) => value,
            None => parse_octal(field)?,
        })
        .map_err(|_| "has a number that is too large")
    };
    let size = match pax.size {
        Some(size) => size,
        None => parse_octal(&block[124..136])?,
    };
    let (major, minor) = match block[156] {
        b'3' | b'4' => (
            small(&block[329..337], None)?,
            small(&block[337..345], None)?,
        ),
        _ => (0, 0),
    };
    let kind = match block[156] {
        b'0' => Kind::File { size },
        b'1' => Kind::HardLink { target },
        b'2' => Kind::Symlink { target },
        b'3' => Kind::CharDevice { major, minor },
        b'4' => Kind::BlockDevice { major, minor },
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return Err("has a type that has no place in an image"),
    };
    if size != 0 && !matches!(kind, Kind::File { .. }) {
        return Err("has content that its type does not allow");
    }
    if kind == Kind::Directory && name.pop() != Some(b'/') {
        return Err("is a directory whose name does not say so");
    }
    let mode = small(&block[100..108], None)?;
    if mode > 0o7777 {
        return Err("has mode bits that do not exist");
    }
    let (mtime, mtime_nanoseconds) = match pax.mtime {
        Some(time) => time,
        None => (parse_octal(&block[136..148])? as i64, 0),
    };
    let entry = Entry {
        name: PathBytes(name),
        kind,
        mode,
        uid: small(&block[108..116], pax.uid)?,
        gid: small(&block[116..124], pax.gid)?,
        mtime,
        mtime_nanoseconds,
        xattrs: pax.xattrs,
    };
    Ok((entry, pax.digest))
}

/// A field's text: up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0);
    &field[..end.unwrap_or(field.len())]
}

fn parse_octal(field: &[u8]) -> Result<u64, Flaw> {
    let digits = text(field);
    if digits.is_empty() || digits.len() > 12 {
        return Err("has a number that is none");
    }
    digits.iter().try_fold(0, |value, &digit| match digit {
        b'0'..=b'7' => Ok(value * 8 + u64::from(digit - b'0')),
        _ => Err("has a number that is none"),
    })
}

#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    linkpath: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(PathBytes, PathBytes)>,
    digest: Option<String>,
}

impl Pax {
    fn read(&mut self, mut records: &[u8]) -> Result<(), Flaw> {
        const FLAW: Flaw = "has a pax record that is none";
        while !records.is_empty() {
            let blank = records
                .iter()
                .take(8)
                .position(|&byte| byte == b' ')
                .ok_or(FLAW)?;
            let length: usize = number(&records[..blank]).ok_or(FLAW)? as usize;
            if length > records.len() || length < blank + 3 {
                return Err(FLAW);
            }
            let (record, rest) = records.split_at(length);
            let body = record[blank + 1..].strip_suffix(b"\n").ok_or(FLAW)?;
            let equals = body.iter().position(|&byte| byte == b'=').ok_or(FLAW)?;
            self.take(&body[..equals], &body[equals + 1..])
                .ok_or(FLAW)?;
            records = rest;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.linkpath = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(parse_time(std::str::from_utf8(value).ok()?)?),
            b"comment" => {
                if let Some(digest) = value.strip_prefix(DIGEST) {
                    self.digest = Some(String::from_utf8(digest.to_vec()).ok()?);
                }
            }
            _ => {
                let key = unescape_key(key.strip_prefix(b"SCHILY.xattr.")?)?;
                self.xattrs
                    .push((PathBytes(key), PathBytes(value.to_vec())));
            }
        }
        Some(())
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    if text.starts_with('+') {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(blocks: &[u8]) -> Entry {
        let mut records = &[][..];
        let mut at = 0;
        loop {
            let block: &[u8; BLOCK] = blocks[at..at + BLOCK].try_into().unwrap();
            at += BLOCK;
            match parse_block(block).unwrap() {
                Block::Zeros => panic!("zeros"),
                Block::Pax(size) => {
                    records = &blocks[at..at + size as usize];
                    at += size as usize + padding(size);
                }
                Block::Member(block) => {
                    assert_eq!(at, blocks.len());
                    return parse_member(&block, records).unwrap().0;
                }
            }
        }
    }

    #[test]
    fn every_kind_of_file_comes_back_with_all_its_metadata() {
        let file = Entry::record("files/x", 77, 1_700_000_000);
        let long = PathBytes(b"rootfs/\xff".iter().copied().chain([b'y'; 200]).collect());
        let kinds = [
            Kind::File { size: 0 },
            Kind::File { size: 1 << 40 },
            Kind::HardLink {
                target: long.clone(),
            },
            Kind::Symlink {
                target: PathBytes::from("../../etc/passwd"),
            },
            Kind::CharDevice {
                major: 4095,
                minor: 0xfffff,
            },
            Kind::BlockDevice { major: 8, minor: 1 },
            Kind::Directory,
            Kind::Fifo,
        ];
        for kind in kinds {
            let entry = Entry {
                kind: kind.clone(),
                ..file.clone()
            };
            assert_eq!(back(&encode(&entry)), entry);
            let entry = Entry {
                name: long.clone(),
                kind,
                mode: 0o7755,
                uid: u32::MAX,
                gid: 0o10000000,
                mtime: -1,
                mtime_nanoseconds: 900_000_001,
                xattrs: vec![
                    (PathBytes::from("user.a=b%c"), PathBytes(vec![0, 10, 255])),
                    (
                        PathBytes::from("security.capability"),
                        PathBytes(vec![1; 20]),
                    ),
                ],
            };
            assert_eq!(back(&encode(&entry)), entry);
        }
    }

    #[test]
    fn a_name_of_exactly_a_hundred_bytes_needs_no_pax_header() {
        for (length, blocks) in [(100, 1), (101, 3)] {
            let entry = Entry::record(&"n".repeat(length), 1, 0);
            let encoded = encode(&entry);
            assert_eq!(encoded.len(), blocks * BLOCK);
            assert_eq!(back(&encoded), entry);
        }
    }

    #[test]
    fn whatever_the_position_content_comes_to_lie_aligned() {
        let entry = Entry::record("memory/a/000000.raw", 4096, 0);
        for position in (0..16384).step_by(BLOCK) {
            let mut blocks = align(position, 4096);
            blocks.extend(encode(&entry));
            assert_eq!((position + blocks.len() as u64) % 4096, 0, "{position}");
            assert!(blocks.len() <= 4096 + 2 * BLOCK);
            assert_eq!(back(&blocks), entry);
        }
    }

    #[test]
    fn times_come_back_whatever_their_sign() {
        for (seconds, nanoseconds) in [
            (0, 1),
            (-1, 0),
            (-1, 999_999_999),
            (-5, 1),
            (i64::MAX, 5),
            (i64::MIN + 1, 0),
        ] {
            let text = decimal_time(seconds, nanoseconds);
            assert_eq!(parse_time(&text), Some((seconds, nanoseconds)), "{text}");
        }
        for text in [
            "",
            "-",
            ".",
            "1.",
            "+1",
            "1.1234567890",
            "99999999999999999999",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn broken_pax_records_are_flaws() {
        let block = encode(&Entry::record("x.json", 0, 0));
        let block: &[u8; BLOCK] = block[..].try_into().unwrap();
        for records in [
            &b"6 a=b\n"[..],
            b"999 path=x\n",
            b"0 path=x\n",
            b"3 =\n",
            b"11 path=abc",
            b"path=x\n",
            b"12 size=+12\n",
            b"18446744073709551616 path=x\n",
            b"30 SCHILY.xattr.user.bad%41=xy\n",
        ] {
            assert!(
                parse_member(block, records).is_err(),
                "{:?}",
                String::from_utf8_lossy(records)
            );
        }
    }
}
