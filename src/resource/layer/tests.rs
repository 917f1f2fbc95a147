//! There and back.

use super::*;
use crate::error::Refusals;
use crate::image::archive::entry::{Entry, Kind};
use crate::image::archive::tar;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn taken(root: &Path, overlay: Overlay) -> Vec<u8> {
    let mut layer = Vec::new();
    let mut refusals = Refusals::new();
    let top = File::open(root).unwrap();
    capture(top.as_fd(), overlay, "a test", &mut layer, &mut refusals).unwrap();
    assert_eq!(refusals.as_slice(), []);
    layer
}

#[test]
fn every_kind_of_file_comes_back_with_what_it_has() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let old = |name: &[u8]| from.path().join(OsStr::from_bytes(name));
    let long = "l".repeat(120);
    fs::create_dir_all(from.path().join("dir").join(&long)).unwrap();
    fs::write(old(b"dir/a"), b"content").unwrap();
    fs::set_permissions(old(b"dir/a"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(old(b"dir/a"), old(b"linked")).unwrap();
    fs::write(old(b"not \xff text"), b"x").unwrap();
    symlink("/etc/passwd", old(b"link")).unwrap();
    File::create(old(b"sparse"))
        .unwrap()
        .set_len(10 << 20)
        .unwrap();
    nix::unistd::mkfifo(
        &old(b"fifo"),
        nix::sys::stat::Mode::from_bits_truncate(0o640),
    )
    .unwrap();
    nix::sys::stat::mknod(
        &old(b"null"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        libc::makedev(1, 3),
    )
    .unwrap();
    std::os::unix::fs::chown(old(b"dir/a"), Some(1234), Some(5678)).unwrap();
    fs::set_permissions(old(b"dir/a"), fs::Permissions::from_mode(0o4755)).unwrap();
    crate::sys::xattr::set(&old(b"dir"), b"user.note", b"hello").unwrap();

    fs::set_permissions(from.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(from.path(), Some(7), Some(8)).unwrap();

    let layer = taken(from.path(), Overlay::No);
    let target = File::open(to.path()).unwrap();
    unpack(&mut &layer[..], target.as_fd(), Whiteouts::Remove).unwrap();

    for name in [
        &b"."[..],
        b"dir",
        b"dir/a",
        b"linked",
        b"not \xff text",
        b"link",
        b"sparse",
        b"fifo",
        b"null",
    ] {
        let one = old(name).symlink_metadata().unwrap();
        let other = to
            .path()
            .join(OsStr::from_bytes(name))
            .symlink_metadata()
            .unwrap();
        let facts = |found: &fs::Metadata| {
            let size = if found.is_dir() { 0 } else { found.size() };
            (
                (found.mode(), found.uid(), found.gid(), found.rdev(), size),
                (found.mtime(), found.mtime_nsec()),
            )
        };
        assert_eq!(facts(&one), facts(&other), "{name:?}");
    }
    let ino = |name: &str| to.path().join(name).metadata().unwrap().ino();
    assert_eq!(ino("dir/a"), ino("linked"));
    assert!(to.path().join("sparse").metadata().unwrap().blocks() < 100);
    assert!(to.path().join("dir").join(&long).is_dir());
    assert_eq!(
        fs::read_link(to.path().join("link")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert_eq!(
        crate::sys::xattr::get(&to.path().join("dir"), b"user.note").unwrap(),
        b"hello"
    );
    // And the same tar once more.
    assert_eq!(taken(to.path(), Overlay::No).len(), layer.len());
}

#[test]
fn an_upper_directory_becomes_a_layer_with_whiteouts_and_an_upper_directory_again() {
    let upper = tempfile::tempdir().unwrap();
    fs::create_dir(upper.path().join("opaque")).unwrap();
    crate::sys::xattr::set(
        &upper.path().join("opaque"),
        b"trusted.overlay.opaque",
        b"y",
    )
    .unwrap();
    fs::write(upper.path().join("opaque/new"), b"n").unwrap();
    let gone = upper.path().join("gone");
    nix::sys::stat::mknod(
        &gone,
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::empty(),
        0,
    )
    .unwrap();
    let layer = taken(upper.path(), Overlay::Upper);

    let again = tempfile::tempdir().unwrap();
    unpack(
        &mut &layer[..],
        File::open(again.path()).unwrap().as_fd(),
        Whiteouts::Overlay,
    )
    .unwrap();
    assert_eq!(taken(again.path(), Overlay::Upper), layer);

    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("opaque")).unwrap();
    fs::write(copy.path().join("opaque/old"), b"o").unwrap();
    fs::create_dir_all(copy.path().join("gone/below")).unwrap();
    unpack(
        &mut &layer[..],
        File::open(copy.path()).unwrap().as_fd(),
        Whiteouts::Remove,
    )
    .unwrap();
    assert!(!copy.path().join("gone").exists());
    assert!(!copy.path().join("opaque/old").exists());
    assert_eq!(fs::read(copy.path().join("opaque/new")).unwrap(), b"n");
}

#[test]
fn no_name_and_no_link_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    let entry = |name: &str, kind: Kind| {
        let mut entry = Entry::record("x", 0, 0);
        entry.name = name.into();
        entry.kind = kind;
        tar::encode(&entry)
    };
    let file = || Kind::File { size: 0 };
    let link = Kind::Symlink {
        target: outside.path().as_os_str().as_bytes().into(),
    };
    let hard = Kind::HardLink {
        target: "../../../etc/passwd".into(),
    };
    let evil: [Vec<u8>; 5] = [
        entry("../evil", file()),
        entry("/evil", file()),
        entry("a/../../evil", file()),
        [entry("link", link), entry("link/evil", file())].concat(),
        entry("evil", hard),
    ];
    for mut layer in evil {
        layer.extend([0; 1024]);
        let target = tempfile::tempdir().unwrap();
        let top = File::open(target.path()).unwrap();
        unpack(&mut &layer[..], top.as_fd(), Whiteouts::Remove).unwrap_err();
        assert_eq!(outside.path().read_dir().unwrap().count(), 0);
    }
}
