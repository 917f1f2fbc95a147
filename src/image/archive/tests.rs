//! Whole images, and images that are not whole any more.

use super::*;
use crate::image::header::{Compression, Container, FORMAT, Header, Host};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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

/// Bytes that nothing compresses.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn write(path: &Path, compression: Compression) -> Written {
    let mut writer = Writer::create(Output::File(path.to_owned()), &header(compression)).unwrap();
    writer.record("processes/1.json", &vec![1, 2, 3]).unwrap();
    writer.piece("memory/anonymous", 0, vec![7; PIECE]).unwrap();
    writer.piece("memory/anonymous", 1, noise(PIECE)).unwrap();
    writer.bytes("files/queue", b"abc").unwrap();
    writer
        .stream("files/ghost-1", 5000, &mut &noise(5000)[..])
        .unwrap();
    let mut layer = writer.pieces("rootfs/layer");
    layer.write_all(&noise(PIECE + 77)).unwrap();
    assert_eq!(layer.finish().unwrap(), 2);
    writer.finish().unwrap()
}

fn check(reader: &Reader) {
    assert_eq!(
        reader.record::<Vec<i32>>("processes/1.json").unwrap(),
        [1, 2, 3]
    );
    assert_eq!(reader.piece("memory/anonymous", 0).unwrap(), vec![7; PIECE]);
    assert_eq!(reader.piece("memory/anonymous", 1).unwrap(), noise(PIECE));
    let mut read = Vec::new();
    reader
        .read("files/ghost-1")
        .unwrap()
        .read_to_end(&mut read)
        .unwrap();
    assert_eq!(read, noise(5000));
    read.clear();
    reader
        .read_pieces("rootfs/layer")
        .read_to_end(&mut read)
        .unwrap();
    assert_eq!(read, noise(PIECE + 77));
    reader.verify().unwrap();
}

#[test]
fn an_image_comes_back_in_every_compression_and_nobody_else_can_read_it() {
    let directory = tempfile::tempdir().unwrap();
    for (name, compression) in Compression::ALL {
        let path = directory.path().join(name);
        write(&path, compression);
        check(&Reader::open(&path).unwrap());
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // Nothing else was left there.
    assert_eq!(directory.path().read_dir().unwrap().count(), 4);
}

#[test]
fn raw_pieces_lie_aligned_and_tar_can_list_and_unpack_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    write(&path, Compression::Zstd);
    let mut archive = ::tar::Archive::new(std::fs::File::open(&path).unwrap());
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".raw") {
            assert_eq!(entry.raw_file_position() % 4096, 0, "{name}");
        }
        names.push(name);
    }
    assert_eq!(names.first().unwrap(), "ocimig.json");
    assert_eq!(names.last().unwrap(), "manifest.json");
    assert!(
        names.contains(&"memory/anonymous/000000.zst".to_owned()),
        "{names:?}"
    );
    assert!(
        names.contains(&"memory/anonymous/000001.raw".to_owned()),
        "{names:?}"
    );
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    let mut writer = Writer::create(Output::File(path), &header(Compression::Zstd)).unwrap();
    writer.piece("memory/anonymous", 0, noise(PIECE)).unwrap();
    drop(writer);
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_truncated_image_is_refused_wherever_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    write(&path, Compression::Zstd);
    let whole = std::fs::read(&path).unwrap();
    // The end of a tar, two blocks of zeros, can be cut: nothing of the image is lost.
    let content = whole.len() - 1024;
    for length in (0..content)
        .step_by(9973)
        .chain([content - 1, content - 512])
    {
        std::fs::write(&path, &whole[..length]).unwrap();
        let code = Reader::open(&path).unwrap_err().code();
        assert!(
            ["E-IMAGE-NOT", "E-IMAGE-TRUNCATED", "E-IMAGE-INCOMPLETE"].contains(&code),
            "{length}: {code}"
        );
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is_and_never_makes_the_reader_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    for compression in [Compression::Zstd, Compression::Gzip] {
        write(&path, compression);
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len())
            .step_by(40_009)
            .chain((0..1500).step_by(13))
        {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            let opened = Reader::open(&path);
            if let Ok(reader) = opened.and_then(|one| one.verify().map(|()| one)) {
                // What carries nothing may change: padding, comments for alignment, gzip's time.
                check(&reader);
            }
        }
    }
}

#[test]
fn another_format_is_refused_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    for (format, code) in [(FORMAT + 1, "E-IMAGE-NEWER"), (0, "E-IMAGE-OLDER")] {
        let header = Header {
            format,
            ..header(Compression::None)
        };
        let writer = Writer::create(Output::File(path.clone()), &header).unwrap();
        writer.finish().unwrap();
        let error = Reader::open(&path).unwrap_err();
        assert_eq!(error.code(), code);
        assert!(
            error.to_string().contains(&format!("format {format}")),
            "{error}"
        );
    }
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    for content in [&b""[..], b"hello", &[0; 4096], &[0x1f, 0x8b, 8, 0]] {
        std::fs::write(&path, content).unwrap();
        let code = Reader::open(&path).unwrap_err().code();
        assert!(
            ["E-IMAGE-NOT", "E-IMAGE-TRUNCATED"].contains(&code),
            "{content:?}: {code}"
        );
    }
}

#[test]
fn a_full_disk_and_a_closed_pipe_are_named() {
    let (read, write) = nix::unistd::pipe().unwrap();
    drop(read);
    let writer = Writer::create(Output::Stream(write), &header(Compression::None)).unwrap();
    assert_eq!(writer.finish().unwrap_err().code(), "E-OUTPUT-PIPE");
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let writer = Writer::create(Output::Stream(full.into()), &header(Compression::None)).unwrap();
    assert_eq!(writer.finish().unwrap_err().code(), "E-OUTPUT-FULL");
}

#[test]
fn content_that_is_shorter_or_longer_than_it_was_is_not_written_as_if_it_were_whole() {
    for content in [&b"abc"[..], b"abcde"] {
        let (_read, write) = nix::unistd::pipe().unwrap();
        let mut writer = Writer::create(Output::Stream(write), &header(Compression::None)).unwrap();
        let done = writer.fill("files/x", 4, &mut |out| Ok(out.write_all(content)?));
        assert_eq!(done.unwrap_err().code(), "E-CONTENT-CHANGED");
    }
}

#[test]
fn a_failing_output_ends_what_fills_a_member() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut writer =
        Writer::create(Output::Stream(full.into()), &header(Compression::None)).unwrap();
    let size = 4 * PIECE as u64;
    let done = writer.fill("files/x", size, &mut |out| {
        let bytes = vec![0; PIECE];
        for _ in 0..4 {
            out.write_all(&bytes)?;
        }
        Ok(())
    });
    assert_eq!(done.unwrap_err().code(), "E-OUTPUT-FULL");
}
