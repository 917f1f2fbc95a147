//! Where files are: overlays, other names, the outside.

use super::*;
use crate::sys::{inotify, kcmp};
use nix::mount::{MsFlags, mount};

/// A mount namespace in which `at` is a tmpfs with an overlay on `at/merged`, over a lower directory
/// that holds `file`, `gone` and `sub/deep`.
fn world(at: &Path) -> OwnedFd {
    ns::fresh_with(ns::Kind::Mnt, || {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), none)?;
        for name in ["lower/sub", "upper", "work", "merged"] {
            std::fs::create_dir_all(at.join(name))?;
        }
        for name in ["file", "gone", "sub/deep"] {
            std::fs::write(at.join("lower").join(name), name)?;
        }
        let name = at.display();
        let options = format!("lowerdir={name}/lower,upperdir={name}/upper,workdir={name}/work");
        mount(
            Some("overlay"),
            &at.join("merged"),
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        Ok(())
    })
    .unwrap()
}

struct Ground {
    world: OwnedFd,
    view: View,
    directory: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let world = world(directory.path());
        let view = View::new(world.as_fd()).unwrap();
        Self {
            world,
            view,
            directory,
        }
    }

    fn path(&self, name: &str) -> Vec<u8> {
        format!("{}/{name}", self.directory.path().display()).into_bytes()
    }

    fn open(&self, name: &str, flags: OFlag) -> OwnedFd {
        self.view
            .open(&self.path(name), flags, Mode::empty())
            .unwrap()
    }

    fn remove(&self, name: &str) {
        let (parent, name) = name.rsplit_once('/').unwrap();
        let parent = self.open(parent, OFlag::O_PATH);
        ghost::unlink(parent.as_fd(), std::ffi::OsStr::new(name), false).unwrap();
    }

    /// Captures what a child in the world holds.
    fn capture(&self, fds: &[Numbered<'_>]) -> (Captured, Refusals) {
        capture(&[&inhabitant(&self.world, fds)])
    }

    /// There, back, and there again.
    fn round_trip(&self, fds: &[Numbered<'_>]) -> (Files, Vec<OwnedFd>) {
        let (before, refusals) = self.capture(fds);
        assert!(refusals.as_slice().is_empty(), "{refusals:?}");
        let rebuilt = {
            let members = members(&before);
            rebuild_with(&self.world, &before, &members).unwrap()
        };
        let numbered: Vec<Numbered<'_>> = rebuilt
            .files
            .values()
            .zip(fds)
            .map(|(fd, old)| (fd.as_fd(), old.1))
            .collect();
        let (after, refusals) = self.capture(&numbered);
        assert!(refusals.as_slice().is_empty(), "{refusals:?}");
        pretty_eq(&before.files, &after.files);
        (before.files, rebuilt.files.into_values().collect())
    }
}

#[test]
fn files_of_an_overlay_come_back_copied_up_or_deleted() {
    let ground = Ground::new();
    let lower = ground.open("merged/file", OFlag::O_RDONLY);
    let upper = ground.open("merged/file", OFlag::O_RDWR | OFlag::O_APPEND);
    let gone = ground.open("merged/gone", OFlag::O_RDWR);
    let directory = ground.open("merged/sub", OFlag::O_RDONLY | OFlag::O_DIRECTORY);
    let untouched = ground.open("merged/sub/deep", OFlag::O_RDONLY);
    write(&upper, b"+").unwrap();
    ground.remove("merged/gone");
    let fds = [
        (lower.as_fd(), 3),
        (upper.as_fd(), 4),
        (gone.as_fd(), 5),
        (directory.as_fd(), 6),
        (untouched.as_fd(), 7),
    ];
    let (files, new) = ground.round_trip(&fds);
    assert_eq!(files.ghosts.len(), 1);
    assert_eq!(text_of(&new[2]), "gone");
    assert_eq!(text_of(&new[4]), "sub/deep");
}

#[test]
fn watches_on_an_overlay_are_found() {
    let ground = Ground::new();
    let instance = inotify::create().unwrap();
    for (name, wd) in [("merged", 1), ("merged/sub", 2), ("merged/sub/deep", 3)] {
        let file = ground.open(name, OFlag::O_PATH);
        inotify::watch(instance.as_fd(), file.as_fd(), wd, libc::IN_MODIFY).unwrap();
    }
    let (files, _) = ground.round_trip(&[(instance.as_fd(), 3)]);
    let FileKind::Inotify { watches } = &files.open_files[0].kind else {
        panic!("{files:?}");
    };
    let paths: Vec<_> = watches
        .iter()
        .map(|watch| watch.file.path.0.clone())
        .collect();
    assert_eq!(
        paths,
        ["merged", "merged/sub", "merged/sub/deep"].map(|name| ground.path(name))
    );
}

#[test]
fn a_file_whose_name_is_gone_comes_back_through_its_other_name() {
    let ground = Ground::new();
    let file = ground.open("lower/file", OFlag::O_RDWR);
    let linked = |from: &str, to: &str| {
        let from = ground.open(from, OFlag::O_PATH);
        let (parent, name) = to.rsplit_once('/').unwrap();
        let parent = ground.open(parent, OFlag::O_PATH);
        nix::unistd::linkat(&from, "", &parent, name, nix::fcntl::AtFlags::AT_EMPTY_PATH).unwrap();
    };
    linked("lower/file", "upper/other");
    ground.remove("lower/file");
    let (files, new) = ground.round_trip(&[(file.as_fd(), 3)]);
    let FileKind::Path(reference) = &files.open_files[0].kind else {
        panic!("{files:?}");
    };
    assert_eq!(reference.path.0, ground.path("upper/other"));
    assert_eq!(
        reference.opened_as.as_ref().map(|path| path.0.clone()),
        Some(ground.path("lower/file"))
    );
    let same = |one: &OwnedFd, two: &OwnedFd| {
        let [one, two] = [one, two].map(|fd| crate::sys::statx::of(fd.as_fd()).unwrap());
        (one.dev, one.ino) == (two.dev, two.ino)
    };
    assert!(same(&file, &new[0]));
    // Without any name it is a file without a name.
    ground.remove("upper/other");
    let (captured, refusals) = ground.capture(&[(file.as_fd(), 3)]);
    assert!(refusals.as_slice().is_empty());
    assert_eq!(captured.files.ghosts.len(), 1);
}

#[test]
fn files_outside_are_refused_but_for_standard_streams_and_what_is_named() {
    let ground = Ground::new();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let log = open(outside.path(), OFlag::O_RDWR);
    let null = open(Path::new("/dev/null"), OFlag::O_RDWR);
    let fds = [(null.as_fd(), 0), (log.as_fd(), 1), (log.as_fd(), 7)];
    let (captured, refusals) = ground.capture(&fds);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    assert!(matches!(
        &captured.files.open_files[0].kind,
        FileKind::Device { major: 1, minor: 3, file } if file.path.as_bytes() == b"/dev/null"
    ));
    let FileKind::External(external) = &captured.files.open_files[1].kind else {
        panic!("{:?}", captured.files);
    };
    assert_eq!(external.stream, Some(1));
    let (_, refusals) = ground.capture(&[(log.as_fd(), 7)]);
    assert_eq!(refusals.as_slice()[0].code, "E-FILE-OUTSIDE");
    assert!(refusals.as_slice()[0].remedy.contains(&external.key));

    let child = inhabitant(&ground.world, &[(log.as_fd(), 7)]);
    let subjects = [subject(&child)];
    let options = CaptureOptions {
        external: [external.key.clone()].into(),
    };
    let mut refusals = Refusals::new();
    let mut capturer = Capturer::new(&subjects, options);
    capturer.tables(&mut refusals).unwrap();
    capturer.finish(&mut refusals).unwrap();
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
}

#[test]
fn a_file_in_flight_is_adopted_and_known_again() {
    let (out, into) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let counter: OwnedFd = EventFd::from_value(3).unwrap().into();
    let child = sleeper(&[(out.as_fd(), 3)], || 0);
    let subjects = [subject(&child)];
    let mut refusals = Refusals::new();
    let mut capturer = Capturer::new(&subjects, CaptureOptions::default());
    capturer.tables(&mut refusals).unwrap();
    let mut adopt = |fd: &OwnedFd| {
        let fd = fd.try_clone().unwrap();
        capturer
            .adopt(fd, &subjects[0], "a file in flight", &mut refusals)
            .unwrap()
    };
    let ids = [&out, &into, &into, &counter].map(&mut adopt);
    assert_eq!(ids, [0, 1, 1, 2].map(FileId));
    let copy = capturer.duplicate(FileId(2)).unwrap();
    let own = std::process::id().cast_signed();
    let [one, two] = [&copy, &counter].map(|fd| {
        use std::os::fd::AsRawFd;
        u64::from(fd.as_raw_fd().cast_unsigned())
    });
    let order = kcmp::compare(kcmp::Kind::File, (own, one), (own, two)).unwrap();
    assert_eq!(order, std::cmp::Ordering::Equal);
    let captured = capturer.finish(&mut refusals).unwrap();
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    // With the writing end in flight the pipe leads nowhere outside.
    assert_eq!(captured.files.pipes.len(), 1);
}
