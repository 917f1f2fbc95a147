//! What goes wrong from outside is told clearly, each with its code, and changes nothing.

use super::left::{assert_free, assert_nothing, assert_only};
use super::{Ended, container, run};
use crate::harness::{Config, Container, Ground, Image, Rootfs, patience, unique};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file system of its own at a new place of `ground`.
fn mounted(ground: &Ground, options: &str) -> PathBuf {
    let place = ground.fresh("mounted");
    fs::create_dir(&place).unwrap();
    crate::harness::run(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "ocimig-test"])
            .arg(&place),
    );
    place
}

/// A checkpoint into `output` fails with `code`, and the container goes on.
fn assert_checkpoint_fails(container: &mut Container, output: &Path, exit: i32, code: &str) {
    let ended = run(&mut container.checkpoint_command(output), patience());
    ended.assert_failed(&output.display().to_string(), exit, code);
    assert_free(container, code);
    container.assert_intact();
}

#[test]
fn a_full_disk() {
    let ground = Ground::new();
    let mut container = container(&ground, "none");
    for size in ["64k", "512k"] {
        let before = container.snapshot();
        let place = mounted(&ground, &format!("size={size}"));
        let output = place.join("image.tar");
        let ended = run(&mut container.checkpoint_command(&output), patience());
        ended.assert_failed("a full disk", 5, "E-OUTPUT-FULL");
        assert_only(&place, &[], "a full disk");
        assert_free(&container, "a full disk");
        before.assert_same(&container.snapshot());
        container.assert_intact();
    }
}

#[test]
fn a_target_that_cannot_be_written() {
    let ground = Ground::new();
    let mut container = container(&ground, "none");
    let read_only = mounted(&ground, "ro");
    let output = read_only.join("image.tar");
    assert_checkpoint_fails(&mut container, &output, 5, "E-OUTPUT-READ-ONLY");
    let output = ground.path().join("no/such/directory/image.tar");
    assert_checkpoint_fails(&mut container, &output, 5, "E-OUTPUT-DIRECTORY");
    let output = ground.path().to_owned();
    assert_checkpoint_fails(&mut container, &output, 2, "E-OUTPUT-NAME");
}

#[test]
fn an_older_image_is_not_touched_by_a_failure() {
    let ground = Ground::new();
    let mut container = container(&ground, "none");
    let place = mounted(&ground, "size=256k");
    let output = place.join("image.tar");
    fs::write(&output, "an older image").unwrap();
    assert_checkpoint_fails(&mut container, &output, 5, "E-OUTPUT-FULL");
    assert_eq!(fs::read_to_string(&output).unwrap(), "an older image");
}

#[test]
fn a_pipe_that_closes() {
    let ground = Ground::new();
    let mut container = container(&ground, "none");
    let mut child = container
        .checkpoint_command(Path::new("-"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut image = child.stdout.take().unwrap();
    image.read_exact(&mut [0; 1000]).unwrap();
    drop(image);
    let output = child.wait_with_output().unwrap();
    let ended = Ended {
        status: output.status,
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    ended.assert_failed("a pipe that closes", 5, "E-OUTPUT-PIPE");
    assert_free(&container, "a pipe that closes");
    container.assert_intact();
}

#[test]
fn what_is_not_there() {
    let ground = Ground::new();
    let output = ground.path().join("image.tar");
    let ocimig = || Command::new(env!("CARGO_BIN_EXE_ocimig"));
    let mut command = ocimig();
    command.args(["checkpoint", "no-such-container", "--output"]);
    let ended = run(command.arg(&output), patience());
    ended.assert_failed("no such container", 4, "E-NO-CONTAINER");
    let mut command = ocimig();
    let own = std::process::id().to_string();
    command.args(["checkpoint", "--pid", &own, "--output"]);
    let ended = run(command.arg(&output), patience());
    ended.assert_failed("this process", 3, "E-SELF");
    let mut command = ocimig();
    command.arg("restore").arg(&output).arg("--bundle");
    let bundle = ground.path().join("bundle");
    let ended = run(
        command.arg(&bundle).args(["--id", "x", "--detach"]),
        patience(),
    );
    ended.assert_failed("no such image", 4, "E-IMAGE-MISSING");
    assert!(!bundle.exists() && !output.exists());
}

/// A small container's image.
fn image(ground: &Ground) -> Image {
    let mut container = Container::start(
        ground,
        Rootfs::Small,
        &Config::new(["/bin/subject", "idle"]),
    );
    container.stdout().wait_for_line("ready");
    let image = container.checkpoint(&[]);
    container.wait_until_gone();
    image
}

/// A restore fails with one of `codes`, and leaves nothing.
fn assert_restore_fails(ground: &Ground, image: &Image, what: &str, exit: i32, codes: &[&str]) {
    let (bundle, id, mark) = (
        ground.fresh("bundle"),
        unique("ocimig-test"),
        unique("mark"),
    );
    let mut command = image.restore_command(&bundle, &id);
    let ended = run(command.env("MARK", &mark), patience());
    let (status, errors) = (ended.status, &ended.errors);
    assert_eq!(status.code(), Some(exit), "{what}: {status}\n{errors}");
    let told = codes.iter().any(|code| errors.contains(code));
    assert!(told, "{what}: none of {codes:?} in\n{errors}");
    assert_nothing(&mark, &bundle, &id, what);
}

#[test]
fn a_truncated_image() {
    let ground = Ground::new();
    let whole = image(&ground);
    let bytes = fs::read(&whole.path).unwrap();
    let copy = whole.copy_at(ground.fresh("image"));
    let mut lengths = vec![
        0,
        1,
        511,
        512,
        5000,
        bytes.len() - 1025,
        bytes.len() - 10_000,
    ];
    lengths.extend((1..12).map(|part| bytes.len() / 12 * part));
    // Between two members, which is where a copy by pieces ends.
    lengths.extend((1..12).map(|part| bytes.len() / 12 * part / 4096 * 4096));
    let codes = ["E-IMAGE-TRUNCATED", "E-IMAGE-INCOMPLETE", "E-IMAGE-NOT"];
    for length in lengths {
        fs::write(&copy.path, &bytes[..length]).unwrap();
        let what = format!("cut to {length} of {} bytes", bytes.len());
        assert_restore_fails(&ground, &copy, &what, 5, &codes);
    }
}

/// The members of a tar: name, place and length of the content.
fn members(path: &Path) -> Vec<(String, u64, u64)> {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        (name, entry.raw_file_position(), entry.size())
    });
    entries.collect()
}

fn flip(path: &Path, position: u64) {
    let mut file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(position)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(position)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
}

#[test]
fn a_flipped_bit_in_any_member() {
    let ground = Ground::new();
    let whole = image(&ground);
    let copy = whole.copy_at(ground.fresh("image"));
    fs::copy(&whole.path, &copy.path).unwrap();
    for (name, position, size) in members(&whole.path) {
        for place in [
            position,
            position + size / 2,
            position + size.saturating_sub(1),
        ] {
            if size == 0 {
                continue;
            }
            flip(&copy.path, place);
            let what = format!("a bit at {} of {name}", place - position);
            assert_restore_fails(&ground, &copy, &what, 5, &["E-IMAGE-"]);
            flip(&copy.path, place);
        }
    }
    assert_eq!(
        fs::read(&copy.path).unwrap(),
        fs::read(&whole.path).unwrap()
    );
}

/// The image with `new` in place of `old`, which is as long, in its first member.
fn with_header(ground: &Ground, image: &Image, old: &str, new: &str) -> Image {
    assert_eq!(old.len(), new.len());
    let copy = image.copy_at(ground.fresh("image"));
    let mut bytes = fs::read(&image.path).unwrap();
    let place = bytes
        .windows(old.len())
        .position(|window| window == old.as_bytes());
    let place = place.unwrap_or_else(|| panic!("no {old} in the image"));
    bytes[place..place + old.len()].copy_from_slice(new.as_bytes());
    fs::write(&copy.path, bytes).unwrap();
    copy
}

#[test]
fn an_image_of_another_architecture_or_a_newer_format() {
    let ground = Ground::new();
    let image = image(&ground);
    let other = with_header(&ground, &image, "\"x86_64\"", "\"mips64\"");
    let codes = ["E-ARCHITECTURE"];
    assert_restore_fails(&ground, &other, "another architecture", 6, &codes);
    let newer = with_header(&ground, &image, "\"format\": 1", "\"format\": 9");
    assert_restore_fails(&ground, &newer, "a newer format", 5, &["E-IMAGE-NEWER"]);
}

#[test]
fn a_bundle_or_an_id_that_is_taken() {
    let ground = Ground::new();
    let image = image(&ground);
    let bundle = ground.fresh("bundle");
    fs::create_dir(&bundle).unwrap();
    fs::write(bundle.join("precious"), "data").unwrap();
    let ended = run(
        &mut image.restore_command(&bundle, &unique("ocimig-test")),
        patience(),
    );
    ended.assert_failed("an existing bundle", 2, "E-BUNDLE-EXISTS");
    assert_only(&bundle, &["precious"], "an existing bundle");

    let mut running = image.restore(&ground);
    let bundle = ground.fresh("bundle");
    let ended = run(
        &mut image.restore_command(&bundle, running.id()),
        patience(),
    );
    ended.assert_failed("an id that is taken", 6, "E-CGROUP-EXISTS");
    assert!(!bundle.exists(), "the bundle of a failed restore is there");
    running.assert_intact();
}

#[test]
fn a_missing_base() {
    let ground = Ground::new();
    let image = image(&ground);
    let bundle = ground.fresh("bundle");
    let mut command = image.restore_command_without_base(&bundle, &unique("ocimig-test"));
    let ended = run(&mut command, patience());
    ended.assert_failed("no base", 2, "E-ROOTFS-BASE");
    let mut command = image.restore_command_without_base(&bundle, &unique("ocimig-test"));
    let ended = run(command.args(["--rootfs", "/no/such/base"]), patience());
    ended.assert_failed("a base that is not there", 2, "E-ROOTFS-BASE");
    assert!(!bundle.exists(), "the bundle of a failed restore is there");
}
