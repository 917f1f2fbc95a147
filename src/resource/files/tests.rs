//! Round trips: a child holds files, they are captured, made anew, given to another child and
//! captured again; and the new ones behave as the old.

mod objects;
mod places;
mod terminals;

use super::*;
use crate::error::Refusals;
use crate::image::files::*;
use crate::sys::ns;
use crate::sys::testing::{Sleeper, sleeper};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek, pipe2, read, write};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Members in memory.
#[derive(Default)]
pub(super) struct Members(HashMap<String, Vec<u8>>);

impl Contents for Members {
    fn open(&self, member: &str) -> Result<Box<dyn Read + '_>> {
        let bytes = self.0.get(member).expect("a member that was captured");
        Ok(Box::new(bytes.as_slice()))
    }
}

pub(super) type Numbered<'a> = (BorrowedFd<'a>, i32);

pub(super) fn subject(child: &Sleeper) -> Subject {
    Subject {
        host_pid: child.pid,
        pid: 1,
        pidfd: child.pidfd.try_clone().unwrap(),
        comm: "sleeper".to_owned(),
    }
}

/// Captures children; also what was refused.
pub(super) fn capture(children: &[&Sleeper]) -> (Captured, Refusals) {
    let subjects: Vec<Subject> = children
        .iter()
        .enumerate()
        .map(|(index, child)| Subject {
            pid: index as i32 + 1,
            ..subject(child)
        })
        .collect();
    let mut refusals = Refusals::new();
    let mut capturer = Capturer::new(&subjects, CaptureOptions::default());
    capturer.tables(&mut refusals).unwrap();
    let captured = capturer.finish(&mut refusals).unwrap();
    (captured, refusals)
}

pub(super) fn members(captured: &Captured) -> Members {
    let mut members = Members::default();
    for (name, content) in &captured.contents {
        let mut bytes = Vec::new();
        content.write_to(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, content.len());
        members.0.insert(name.clone(), bytes);
    }
    members
}

/// Makes everything anew, with the children's own numbers as processes.
pub(super) fn rebuild(captured: &Captured, processes: BTreeMap<i32, i32>) -> Result<Rebuilt> {
    let members = members(captured);
    let namespace = ns::open_own(ns::Kind::Mnt).unwrap();
    let mut rebuilder = Rebuilder::new(
        &captured.files,
        Env {
            mount_namespace: namespace.as_fd(),
            processes,
            external: BTreeMap::new(),
            streams: [None, None, None],
            memory: BTreeMap::new(),
            contents: &members,
            strict: true,
        },
    )?;
    rebuilder.build()?;
    rebuilder.finish()
}

/// A child in that mount namespace.
pub(super) fn inhabitant(world: &OwnedFd, fds: &[Numbered<'_>]) -> Sleeper {
    let mut fds = fds.to_vec();
    fds.push((world.as_fd(), 400));
    sleeper(&fds, || crate::sys::testing::enter(400))
}

/// As [`rebuild`], there.
pub(super) fn rebuild_in(world: &OwnedFd, captured: &Captured) -> Result<Rebuilt> {
    rebuild_with(world, captured, &Members::default())
}

/// As [`rebuild_in`], with content.
pub(super) fn rebuild_with(
    world: &OwnedFd,
    captured: &Captured,
    members: &Members,
) -> Result<Rebuilt> {
    let mut rebuilder = Rebuilder::new(
        &captured.files,
        Env {
            mount_namespace: world.as_fd(),
            processes: BTreeMap::new(),
            external: BTreeMap::new(),
            streams: [None, None, None],
            memory: BTreeMap::new(),
            contents: members,
            strict: true,
        },
    )?;
    rebuilder.build()?;
    rebuilder.finish()
}

/// Captures a child with these files, rebuilds, captures a child with the new ones, and compares
/// the records. Hands back the new files in the order of `fds`.
pub(super) fn round_trip(fds: &[Numbered<'_>]) -> (Files, Vec<OwnedFd>) {
    let child = sleeper(fds, || 0);
    let (before, refusals) = capture(&[&child]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    let mut rebuilt = rebuild(&before, BTreeMap::from([(1, child.pid)])).unwrap();
    let table = &before.files.tables[&1];
    let of = |fd: i32| table.iter().find(|one| one.fd == fd).unwrap().file;
    let numbered: Vec<Numbered<'_>> = fds
        .iter()
        .map(|(_, fd)| (rebuilt.files[&of(*fd)].as_fd(), *fd))
        .collect();
    let copy = sleeper(&numbered, || 0);
    let (after, refusals) = capture(&[&copy]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    pretty_eq(&before.files, &after.files);
    assert_eq!(members(&before).0.len(), members(&after).0.len());
    let files = fds
        .iter()
        .map(|(_, fd)| {
            let id = of(*fd);
            let fd = rebuilt.files[&id].try_clone().unwrap();
            rebuilt.files.insert(id, fd.try_clone().unwrap());
            fd
        })
        .collect();
    (before.files, files)
}

/// Records are equal but for inode numbers, which are replaced by the order of their appearance.
fn pretty_eq(before: &Files, after: &Files) {
    let text = |files: &Files| {
        let mut value = serde_json::to_value(files).unwrap();
        let mut seen = Vec::new();
        normalise(&mut value, &mut seen);
        serde_json::to_string_pretty(&value).unwrap()
    };
    let (before, after) = (text(before), text(after));
    assert!(before == after, "before: {before}\nafter: {after}");
}

fn normalise(value: &mut serde_json::Value, seen: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            if map.len() == 2 && map.contains_key("dev") && map.contains_key("ino") {
                let text = serde_json::Value::Object(map.clone()).to_string();
                let index = seen.iter().position(|one| *one == text).unwrap_or_else(|| {
                    seen.push(text);
                    seen.len() - 1
                });
                *value = index.into();
                return;
            }
            map.remove("member");
            map.remove("atime");
            map.values_mut().for_each(|one| normalise(one, seen));
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(|one| normalise(one, seen)),
        _ => {}
    }
}

pub(super) fn open(path: &Path, flags: OFlag) -> OwnedFd {
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::S_IRWXU).unwrap()
}

pub(super) fn flags_of(fd: &OwnedFd) -> OFlag {
    OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap())
}

fn text_of(fd: &OwnedFd) -> String {
    let mut buffer = [0; 100];
    let len = read(fd, &mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..len]).into_owned()
}

#[test]
fn regular_files_keep_offset_and_flags_and_duplicates_share_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    std::fs::write(&path, "0123456789").unwrap();
    let append = open(&path, OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_NONBLOCK);
    lseek(&append, 4, Whence::SeekSet).unwrap();
    let again = append.try_clone().unwrap();
    let other = open(&path, OFlag::O_RDONLY);
    let fds = [(append.as_fd(), 3), (again.as_fd(), 4), (other.as_fd(), 17)];
    let (files, new) = round_trip(&fds);
    assert_eq!(files.open_files.len(), 2);
    assert_eq!(
        files.open_files[0].flags,
        ["O_RDWR", "O_APPEND", "O_NONBLOCK"]
    );
    assert_eq!(lseek(&append, 0, Whence::SeekCur).unwrap(), 4);
    assert_eq!(text_of(&new[0]), "456789");
    assert_eq!(lseek(&new[1], 0, Whence::SeekCur).unwrap(), 10);
    assert_eq!(text_of(&new[2]), "0123456789");
    assert!(flags_of(&new[1]).contains(OFlag::O_APPEND | OFlag::O_NONBLOCK));
}

#[test]
fn inherited_files_are_one_and_tables_of_two_processes_differ() {
    let directory = tempfile::tempdir().unwrap();
    let file = open(&directory.path().join("a"), OFlag::O_RDWR | OFlag::O_CREAT);
    let same = open(&directory.path().join("a"), OFlag::O_RDWR);
    let one = sleeper(&[(file.as_fd(), 3), (same.as_fd(), 5)], || 0);
    let two = sleeper(&[(file.as_fd(), 9)], || 0);
    let (captured, _) = capture(&[&one, &two]);
    let tables = &captured.files.tables;
    assert_eq!(tables[&1][0].file, tables[&2][0].file);
    assert_ne!(tables[&1][0].file, tables[&1][1].file);
    assert_eq!(captured.files.open_files.len(), 2);
}

#[test]
fn directories_devices_and_path_only_files_come_back() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("nowhere", directory.path().join("link")).unwrap();
    let fds = [
        open(directory.path(), OFlag::O_RDONLY | OFlag::O_DIRECTORY),
        open(Path::new("/dev/null"), OFlag::O_RDWR),
        open(Path::new("/dev/urandom"), OFlag::O_RDONLY),
        open(directory.path(), OFlag::O_PATH),
        open(
            &directory.path().join("link"),
            OFlag::O_PATH | OFlag::O_NOFOLLOW,
        ),
        open(Path::new("/proc/version"), OFlag::O_RDONLY),
    ];
    assert!(text_of(&fds[5]).starts_with("Linux"));
    let numbered: Vec<_> = fds.iter().zip(3..).map(|(fd, n)| (fd.as_fd(), n)).collect();
    let (files, new) = round_trip(&numbered);
    assert!(matches!(
        files.open_files[1].kind,
        FileKind::Device {
            major: 1,
            minor: 3,
            ..
        }
    ));
    assert_eq!(write(&new[1], b"gone").unwrap(), 4);
}

#[test]
fn eventfds_keep_counter_and_semaphore() {
    let plain = EventFd::from_value_and_flags(7, EfdFlags::EFD_NONBLOCK).unwrap();
    let semaphore = EventFd::from_value_and_flags(2, EfdFlags::EFD_SEMAPHORE).unwrap();
    semaphore.write(1 << 40).unwrap();
    let (_, new) = round_trip(&[(plain.as_fd(), 3), (semaphore.as_fd(), 4)]);
    assert_eq!(plain.read().unwrap(), 7, "looking took the counter");
    let mut buffer = [0; 8];
    read(&new[0], &mut buffer).unwrap();
    assert_eq!(u64::from_ne_bytes(buffer), 7);
    read(&new[1], &mut buffer).unwrap();
    assert_eq!(u64::from_ne_bytes(buffer), 1);
}

#[test]
fn pipes_keep_what_is_queued_and_their_size() {
    let (out, into) = pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(1 << 18)).unwrap();
    let queued: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    write(&into, &queued).unwrap();
    let (files, new) = round_trip(&[(out.as_fd(), 3), (into.as_fd(), 4)]);
    assert_eq!(files.pipes[0].capacity, 1 << 18);
    assert_eq!(files.pipes[0].pieces.len(), 1);
    for fd in [&out, &new[0]] {
        let mut buffer = vec![0; 1 << 18];
        assert_eq!(read(fd, &mut buffer).unwrap(), queued.len());
        assert_eq!(buffer[..queued.len()], queued);
    }
}

#[test]
fn packets_in_a_pipe_stay_packets_among_plain_bytes() {
    let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT).unwrap();
    for packet in [&b"a"[..], b"bc", &[7; 4096]] {
        write(&into, packet).unwrap();
    }
    // What was teed cannot be appended to; a packet written behind plain bytes would join them.
    let (scratch, scratch_in) = pipe2(OFlag::O_CLOEXEC).unwrap();
    write(&scratch_in, b"plain").unwrap();
    crate::sys::pipe::tee(scratch.as_fd(), into.as_fd(), 5).unwrap();
    write(&into, b"d").unwrap();
    write(&into, b"e").unwrap();
    let (files, new) = round_trip(&[(out.as_fd(), 3), (into.as_fd(), 4)]);
    let cut: Vec<_> = files.pipes[0]
        .pieces
        .iter()
        .map(|piece| (piece.len, piece.packet))
        .collect();
    assert_eq!(
        cut,
        [
            (1, true),
            (2, true),
            (4096, true),
            (5, false),
            (1, true),
            (1, true)
        ]
    );
    for fd in [&out, &new[0]] {
        let mut lens = Vec::new();
        for _ in 0..5 {
            lens.push(read(fd, &mut [0; 9000]).unwrap());
        }
        assert_eq!(lens, [1, 2, 4096, 6, 1]);
    }
}

#[test]
fn half_closed_pipes_stay_half_closed() {
    let (reader, into) = pipe2(OFlag::O_CLOEXEC).unwrap();
    write(&into, b"last words").unwrap();
    drop(into);
    let (out, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    drop(out);
    let (files, new) = round_trip(&[(reader.as_fd(), 3), (writer.as_fd(), 4)]);
    assert_eq!(files.pipes.len(), 2);
    assert_eq!(text_of(&new[0]), "last words");
    assert_eq!(text_of(&new[0]), "");
    assert_eq!(write(&new[1], b"x").unwrap_err(), nix::errno::Errno::EPIPE);
}

#[test]
fn a_pipe_whose_other_end_is_outside_is_external_and_taken_from_the_caller() {
    let (out, into) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let child = sleeper(&[(into.as_fd(), 1)], || 0);
    let (captured, refusals) = capture(&[&child]);
    assert!(refusals.as_slice().is_empty());
    let FileKind::External(external) = &captured.files.open_files[0].kind else {
        panic!("{:?}", captured.files);
    };
    assert!(external.key.starts_with("pipe:["));
    assert_eq!(external.stream, Some(1));
    assert!(captured.files.pipes.is_empty());
    let error = rebuild(&captured, BTreeMap::new()).err().unwrap();
    assert_eq!(error.code(), "E-EXTERNAL");
    let namespace = ns::open_own(ns::Kind::Mnt).unwrap();
    let env = Env {
        mount_namespace: namespace.as_fd(),
        processes: BTreeMap::new(),
        external: BTreeMap::from([(external.key.clone(), into)]),
        streams: [None, None, None],
        memory: BTreeMap::new(),
        contents: &Members::default(),
        strict: true,
    };
    let mut rebuilder = Rebuilder::new(&captured.files, env).unwrap();
    rebuilder.build().unwrap();
    let rebuilt = rebuilder.finish().unwrap();
    write(&rebuilt.files[&FileId(0)], b"hello").unwrap();
    assert_eq!(text_of(&out), "hello");
}

#[test]
fn fifos_keep_their_queue() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    let reader = open(&path, OFlag::O_RDONLY | OFlag::O_NONBLOCK);
    let writer = open(&path, OFlag::O_WRONLY);
    write(&writer, b"queued").unwrap();
    let child = sleeper(&[(reader.as_fd(), 3), (writer.as_fd(), 4)], || 0);
    let (captured, refusals) = capture(&[&child]);
    assert!(refusals.as_slice().is_empty());
    assert_eq!(text_of(&reader), "queued");
    drop((child, reader, writer));
    let rebuilt = rebuild(&captured, BTreeMap::new()).unwrap();
    assert_eq!(text_of(&rebuilt.files[&FileId(0)]), "queued");
    write(&rebuilt.files[&FileId(1)], b"more").unwrap();
    assert_eq!(text_of(&rebuilt.files[&FileId(0)]), "more");
}

#[test]
fn a_fifo_that_waits_for_its_first_writer_goes_on_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    let reader = open(&path, OFlag::O_RDONLY | OFlag::O_NONBLOCK);
    let ends = |fd: &OwnedFd| pipe::Sides::of(fd.as_fd(), libc::O_RDONLY).unwrap().alone;
    let child = sleeper(&[(reader.as_fd(), 3)], || 0);
    let (captured, _) = capture(&[&child]);
    drop((child, reader));
    let rebuilt = rebuild(&captured, BTreeMap::new()).unwrap();
    let reader = &rebuilt.files[&FileId(0)];
    assert!(!ends(reader));
    drop(open(&path, OFlag::O_WRONLY));
    assert!(ends(reader));
    let child = sleeper(&[(reader.as_fd(), 3)], || 0);
    let (captured, _) = capture(&[&child]);
    drop((child, rebuilt));
    let rebuilt = rebuild(&captured, BTreeMap::new()).unwrap();
    assert!(ends(&rebuilt.files[&FileId(0)]));
}

#[test]
fn deleted_files_come_back_without_a_name_and_are_shared() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sub/log");
    std::fs::create_dir(directory.path().join("sub")).unwrap();
    let one = open(&path, OFlag::O_RDWR | OFlag::O_CREAT);
    write(&one, b"written").unwrap();
    nix::unistd::ftruncate(&one, 1 << 30).unwrap();
    let two = open(&path, OFlag::O_RDONLY);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "the next one").unwrap();
    let (files, new) = round_trip(&[(one.as_fd(), 3), (two.as_fd(), 4)]);
    assert_eq!(files.ghosts.len(), 1);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "the next one");
    lseek(&new[0], 0, Whence::SeekSet).unwrap();
    write(&new[0], b"WRI").unwrap();
    let mut buffer = [0; 7];
    read(&new[1], &mut buffer).unwrap();
    assert_eq!(&buffer, b"WRItten");
    let names = std::fs::read_dir(directory.path().join("sub")).unwrap();
    assert_eq!(names.count(), 1);
}

#[test]
fn a_deleted_file_in_a_deleted_directory_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let sub = directory.path().join("a/b");
    std::fs::create_dir_all(&sub).unwrap();
    let file = open(&sub.join("c"), OFlag::O_RDWR | OFlag::O_CREAT);
    let dir = open(&sub, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
    std::fs::remove_dir_all(directory.path().join("a")).unwrap();
    round_trip(&[(file.as_fd(), 3), (dir.as_fd(), 4)]);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_file_whose_name_is_gone_is_found_by_its_other_name() {
    let directory = tempfile::tempdir().unwrap();
    let (old, other) = (directory.path().join("old"), directory.path().join("d/x"));
    std::fs::create_dir(directory.path().join("d")).unwrap();
    let file = open(&old, OFlag::O_RDWR | OFlag::O_CREAT);
    std::fs::hard_link(&old, &other).unwrap();
    std::fs::remove_file(&old).unwrap();
    // The search goes through the mount; give it a small one.
    let view = View::of(std::process::id().cast_signed()).unwrap();
    let status = crate::sys::statx::of(file.as_fd()).unwrap();
    let found = reference::search_for_test(directory.path(), &status).unwrap();
    assert_eq!(found.as_deref(), Some(Path::new("d/x")));
    drop(view);
}

#[test]
fn a_file_that_changed_since_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    std::fs::write(&path, "0123456789").unwrap();
    let file = open(&path, OFlag::O_RDONLY);
    let child = sleeper(&[(file.as_fd(), 3)], || 0);
    let (captured, _) = capture(&[&child]);
    std::fs::write(&path, "0").unwrap();
    let error = rebuild(&captured, BTreeMap::new()).err().unwrap();
    assert_eq!(error.code(), "E-FILE-CHANGED");
    assert!(error.to_string().contains("it had 10 bytes"), "{error}");
}

#[test]
fn locks_are_taken_again_by_file_and_named_by_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    std::fs::write(&path, "0123456789").unwrap();
    let flocked = open(&path, OFlag::O_RDWR);
    crate::sys::lock::flock(flocked.as_fd(), true).unwrap();
    let range = crate::sys::testing::record_lock(true, 3, 4);
    let ofd = open(&path, OFlag::O_RDWR);
    fcntl(&ofd, FcntlArg::F_OFD_SETLK(&range)).unwrap();
    let posix = open(&path, OFlag::O_RDWR);
    let fds = [(flocked.as_fd(), 3), (ofd.as_fd(), 4), (posix.as_fd(), 5)];
    let child = sleeper(&fds, || {
        let range = crate::sys::testing::record_lock(true, 8, 0);
        crate::sys::testing::set_record_lock(5, &range)
    });
    let (captured, refusals) = capture(&[&child]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    let kinds: Vec<_> = captured
        .files
        .open_files
        .iter()
        .map(|file| file.locks.iter().map(|lock| lock.kind).collect::<Vec<_>>())
        .collect();
    assert_eq!(
        kinds,
        [vec![LockKind::Flock], vec![LockKind::OpenFile], vec![]]
    );
    assert_eq!(
        captured.files.posix_locks,
        [PosixLock {
            pid: 1,
            fd: 5,
            exclusive: true,
            start: 8,
            end: None
        }]
    );
    let taken = rebuild(&captured, BTreeMap::new()).err().unwrap();
    assert_eq!(taken.code(), "E-LOCK-TAKEN");
    drop((child, flocked, ofd, posix));
    let rebuilt = rebuild(&captured, BTreeMap::new()).unwrap();
    assert_eq!(
        rebuilt.in_target[&1],
        [
            InTarget::Flock {
                fd: 3,
                exclusive: true
            },
            InTarget::PosixLock {
                fd: 5,
                exclusive: true,
                start: 8,
                len: 0
            }
        ]
    );
    let other = open(&path, OFlag::O_RDWR);
    assert!(fcntl(&other, FcntlArg::F_OFD_SETLK(&range)).is_err());
}

#[test]
fn the_owner_and_signal_of_a_file_come_back() {
    let (out, into) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let child = sleeper(&[(out.as_fd(), 3), (into.as_fd(), 4)], || 0);
    let owner = crate::sys::owner::Owner::Process(child.pid);
    crate::sys::owner::set_owner(out.as_fd(), owner).unwrap();
    crate::sys::owner::set_signal(out.as_fd(), libc::SIGURG).unwrap();
    fcntl(&out, FcntlArg::F_SETFL(OFlag::O_ASYNC)).unwrap();
    let (captured, _) = capture(&[&child]);
    let file = &captured.files.open_files[0];
    assert_eq!(file.owner, Some(FileOwner::Process(1)));
    assert!(file.flags.contains(&"O_ASYNC".to_owned()));
    let rebuilt = rebuild(&captured, BTreeMap::from([(1, child.pid)])).unwrap();
    let new = &rebuilt.files[&FileId(0)];
    assert_eq!(crate::sys::owner::owner(new.as_fd()).unwrap(), Some(owner));
    assert_eq!(
        crate::sys::owner::signal(new.as_fd()).unwrap(),
        libc::SIGURG
    );
    assert!(flags_of(new).contains(OFlag::O_ASYNC));
}

#[test]
fn what_cannot_be_taken_along_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    std::fs::write(&path, "x").unwrap();
    let leased = open(&path, OFlag::O_RDONLY);
    crate::sys::testing::lease(leased.as_fd());
    let secret = crate::sys::testing::io_uring();
    let fuse = open(Path::new("/dev/kmsg"), OFlag::O_RDONLY);
    let fds = [(leased.as_fd(), 3), (secret.as_fd(), 4), (fuse.as_fd(), 5)];
    let child = sleeper(&fds, || 0);
    let (_, refusals) = capture(&[&child]);
    let codes: Vec<_> = refusals.as_slice().iter().map(|one| one.code).collect();
    assert_eq!(codes, ["E-LEASE", "E-IOURING", "E-DEVICE"]);
    assert_eq!(refusals.as_slice()[1].object, "fd 4 of pid 1 (sleeper)");
}

#[test]
fn many_files_are_told_apart_quickly() {
    let files: Vec<EventFd> = (0..400).map(|_| EventFd::new().unwrap()).collect();
    let numbered: Vec<_> = files
        .iter()
        .zip(3..)
        .map(|(fd, n)| (fd.as_fd(), n))
        .collect();
    let child = sleeper(&numbered, || 0);
    let (captured, _) = capture(&[&child, &sleeper(&numbered, || 0)]);
    assert_eq!(captured.files.open_files.len(), 400);
    assert_eq!(captured.files.tables[&1], captured.files.tables[&2]);
}
