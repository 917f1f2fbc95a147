//! Images made to hurt, and images that time and chance have changed.

use super::entry::{Entry, Kind};
use super::tar;
use super::*;
use crate::error::Result;
use crate::image::PathBytes;
use crate::image::header::{Compression, Container, FORMAT, Header, Host};
use std::fs::File;
use std::io::Write;

fn header(compression: Compression) -> Header {
    Header {
        format: FORMAT,
        engine: "ocimig 0.1.0".into(),
        created: 1_700_000_000,
        host: Host::default(),
        container: Container::default(),
        compression,
        memory_only: false,
        requires: Vec::new(),
    }
}

/// A tar of these members, with a manifest that lists them truthfully.
fn forge(members: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut header = serde_json::to_vec(&header(Compression::None)).unwrap();
    header.push(b'\n');
    let first = (
        Entry::record("ocimig.json", header.len() as u64, 0),
        &header[..],
    );
    let mut bytes = Vec::new();
    let mut manifest = Manifest::default();
    for (entry, content) in std::iter::once(&first).chain(members) {
        push(&mut bytes, tar::encode(entry), content);
        manifest.members.push(Listed {
            name: entry.name.to_string(),
            size: entry.size(),
            blake3: Digest(blake3::hash(content)),
        });
    }
    let json = serde_json::to_vec(&manifest).unwrap();
    let digest = blake3::hash(&json).to_hex().to_string();
    let entry = Entry::record("manifest.json", json.len() as u64, 0);
    push(
        &mut bytes,
        tar::encode_with_digest(&entry, Some(&digest)),
        &json,
    );
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn push(bytes: &mut Vec<u8>, head: Vec<u8>, content: &[u8]) {
    bytes.extend(head);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(tar::BLOCK), 0);
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn open(bytes: &[u8]) -> Result<Reader> {
    Reader::from_file(file_of(bytes))
}

fn of_kind(name: &str, kind: Kind) -> Entry {
    Entry {
        kind,
        ..Entry::record(name, 0, 0)
    }
}

#[test]
fn members_that_have_no_place_are_refused() {
    assert!(open(&forge(&[(Entry::record("files/x", 3, 0), b"abc")])).is_ok());
    let target = PathBytes::from("/etc/shadow");
    let device = Kind::CharDevice { major: 1, minor: 1 };
    for (entry, code) in [
        (
            Entry::record("../etc/passwd", 0, 0),
            "E-IMAGE-MEMBER-UNKNOWN",
        ),
        (Entry::record("/etc/passwd", 0, 0), "E-IMAGE-MEMBER-UNKNOWN"),
        (
            Entry::record("files/../../x", 0, 0),
            "E-IMAGE-MEMBER-UNKNOWN",
        ),
        (Entry::record("elsewhere/x", 0, 0), "E-IMAGE-MEMBER-UNKNOWN"),
        (
            of_kind(
                "files/x",
                Kind::Symlink {
                    target: target.clone(),
                },
            ),
            "E-IMAGE-DAMAGED",
        ),
        (
            of_kind("files/x", Kind::HardLink { target }),
            "E-IMAGE-DAMAGED",
        ),
        (of_kind("files/x", device), "E-IMAGE-DAMAGED"),
        (of_kind("files/x", Kind::Fifo), "E-IMAGE-DAMAGED"),
        (of_kind("files/x", Kind::Directory), "E-IMAGE-DAMAGED"),
    ] {
        let error = open(&forge(&[(entry.clone(), b"")])).unwrap_err();
        assert_eq!(error.code(), code, "{entry:?}: {error}");
    }
}

#[test]
fn a_member_is_there_once_and_a_piece_in_one_coding() {
    let entry = |name| (Entry::record(name, 1, 0), &b"x"[..]);
    for names in [
        ["files/x", "files/x"],
        ["memory/a/000000.raw", "memory/a/000000.zst"],
        ["memory/a/000000.lz4", "memory/a/000000.raw"],
        ["ocimig.json", "files/x"],
    ] {
        let error = open(&forge(&names.map(entry))).unwrap_err();
        assert!(
            error.to_string().contains("is there twice"),
            "{names:?}: {error}"
        );
    }
    let between = [
        "memory/a/000000.lz4",
        "memory/a/000000.m",
        "memory/a/000000.zst",
    ];
    assert!(open(&forge(&between.map(entry))).is_err());
}

#[test]
fn sizes_and_numbers_without_end_cost_nothing() {
    // More than there is.
    for size in [4096, 1 << 40, u64::MAX, u64::MAX - 511] {
        let error = open(&forge(&[(Entry::record("files/x", size, 0), b"")])).unwrap_err();
        assert_eq!(error.code(), "E-IMAGE-TRUNCATED", "{size}: {error}");
    }
    // A hole of a terabyte is no record to read, nor a piece.
    for name in ["processes/1.json", "memory/a/000000.raw"] {
        let size = 1 << 40;
        let mut bytes = forge(&[]);
        let manifest = forge(&[(Entry::record(name, size, 0), b"")]);
        let head = tar::encode(&Entry::record(name, size, 0));
        let at = manifest
            .windows(head.len())
            .position(|some| some == head)
            .unwrap();
        bytes.truncate(at);
        bytes.extend(&head);
        let mut file = file_of(&bytes);
        use std::io::Seek;
        file.seek(std::io::SeekFrom::Start(bytes.len() as u64 + size))
            .unwrap();
        file.write_all(&manifest[at + head.len()..]).unwrap();
        let reader = Reader::from_file(file).unwrap();
        let error = match name.strip_suffix("/000000.raw") {
            Some(prefix) => reader.piece(prefix, 0).unwrap_err(),
            None => reader.record::<Vec<u8>>(name).unwrap_err(),
        };
        assert_eq!(error.code(), "E-IMAGE-TOO-LARGE", "{error}");
    }
    // A number says nothing about how many there are.
    for name in [
        "memory/a/18446744073709551615.raw",
        "memory/b/4294967296.raw",
        "memory/c/000001.raw",
    ] {
        let error = open(&forge(&[(Entry::record(name, 0, 0), b"")])).unwrap_err();
        assert_eq!(error.code(), "E-IMAGE-MEMBER-MISSING", "{name}: {error}");
    }
}

#[test]
fn a_newer_image_is_refused_by_its_format_whatever_else_is_new_in_it() {
    let header = br#"{"format": 2, "engine": "ocimig 9.0", "more": [1]}"#;
    let mut bytes = Vec::new();
    let first = Entry::record("ocimig.json", header.len() as u64, 0);
    push(&mut bytes, tar::encode(&first), header);
    push(
        &mut bytes,
        tar::encode(&of_kind("things/new", Kind::Fifo)),
        b"",
    );
    let error = open(&bytes).unwrap_err();
    assert_eq!(error.code(), "E-IMAGE-NEWER");
    assert!(error.to_string().contains("ocimig 9.0"), "{error}");
}

#[test]
fn the_manifest_must_say_what_is_there() {
    let whole = forge(&[(Entry::record("files/x", 3, 0), b"abc")]);
    let without = forge(&[]);
    // The members of one, the manifest of the other.
    let find = |bytes: &[u8]| {
        let head = b"././@PaxHeader";
        bytes
            .windows(head.len())
            .position(|some| some == head)
            .unwrap()
    };
    let mut mixed = whole[..find(&whole)].to_vec();
    mixed.extend(&without[find(&without)..]);
    assert_eq!(open(&mixed).unwrap_err().code(), "E-IMAGE-DAMAGED");
    let mut none = whole[..find(&whole)].to_vec();
    none.resize(none.len() + 1024, 0);
    assert_eq!(open(&none).unwrap_err().code(), "E-IMAGE-INCOMPLETE");
    let mut more = whole[..whole.len() - 1024].to_vec();
    push(
        &mut more,
        tar::encode(&Entry::record("files/y", 1, 0)),
        b"y",
    );
    more.resize(more.len() + 1024, 0);
    assert_eq!(open(&more).unwrap_err().code(), "E-IMAGE-DAMAGED");
}

/// A small image of every kind of member, in memory.
fn small(compression: Compression) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    let mut writer = Writer::create(Output::New(path.clone()), &header(compression)).unwrap();
    writer.record("processes/1.json", &vec![1, 2, 3]).unwrap();
    let text = |bytes: usize| b"some text ".iter().copied().cycle().take(bytes).collect();
    writer.piece("memory/anonymous", 0, text(9000)).unwrap();
    writer.piece("memory/anonymous", 1, vec![1, 2, 3]).unwrap();
    let long = format!("files/{}", "n".repeat(150));
    writer.stream(&long, 700, &mut &[7; 700][..]).unwrap();
    writer.finish().unwrap();
    std::fs::read(path).unwrap()
}

/// xorshift64*.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % limit
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        match self.below(7) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.below(256) as u8,
            2 => bytes.truncate(at + 1),
            3 => drop(bytes.drain(at..(at + 1 + self.below(600)).min(bytes.len()))),
            4 => {
                let length = self.below(600).min(bytes.len() - at);
                let some = bytes[at..at + length].to_vec();
                let to = self.below(bytes.len());
                bytes.splice(to..to, some);
            }
            // A number in a header, and a checksum that agrees.
            5 => {
                let block = at / tar::BLOCK * tar::BLOCK;
                if let Some(block) = bytes.get_mut(block..block + tar::BLOCK) {
                    let field = [100, 108, 116, 124, 136, 156, 257, 329][self.below(8)];
                    block[field + self.below(8)] = b"0123456789-+\0 \xff\x80"[self.below(16)];
                    tar::reseal(block);
                }
            }
            _ => {
                let block = at / tar::BLOCK * tar::BLOCK;
                let end = (block + tar::BLOCK).min(bytes.len());
                bytes[block..end].fill(0);
            }
        }
    }
}

#[test]
fn chance_never_makes_the_reader_panic_and_what_it_accepts_is_what_was_written() {
    for (seed, compression) in [
        (1, Compression::Zstd),
        (2, Compression::Lz4),
        (3, Compression::None),
        (4, Compression::Gzip),
    ] {
        let whole = small(compression);
        let original = open(&whole).unwrap();
        let mut chance = Chance(seed);
        let mut refused = 0;
        for round in 0..1500 {
            let mut bytes = whole.clone();
            for _ in 0..=chance.below(3) {
                chance.mutate(&mut bytes);
            }
            let opened = open(&bytes).and_then(|one| one.verify().map(|()| one));
            let Ok(reader) = opened else {
                refused += 1;
                continue;
            };
            // What carries nothing may change; members may be left out by nobody but a forger.
            assert_eq!(reader.header(), original.header(), "{seed}/{round}");
            assert!(reader.names().eq(original.names()), "{seed}/{round}");
            for name in original.names() {
                assert_eq!(
                    reader.bytes(name).unwrap(),
                    original.bytes(name).unwrap(),
                    "{seed}/{round}: {name}"
                );
            }
        }
        assert!(refused > 500, "{refused}");
    }
}

#[test]
fn what_unpacks_to_more_than_a_disk_holds_is_given_up_before_the_disk_is_full() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let work = || {
        // A small disk that only this thread sees.
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        let room = tempfile::tempdir().unwrap();
        let size = Some("size=80m");
        mount(
            Some("x"),
            room.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            size,
        )
        .unwrap();
        let error = spill::spill(&mut std::io::repeat(0), Some(room.path())).unwrap_err();
        let disk = nix::sys::statvfs::statvfs(room.path()).unwrap();
        assert_eq!(disk.blocks_free(), disk.blocks());
        nix::mount::umount(room.path()).unwrap();
        error.code()
    };
    let code = std::thread::spawn(work).join().unwrap();
    assert_eq!(code, "E-IMAGE-UNPACK-FULL");
}
