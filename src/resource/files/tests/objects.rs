//! Kernel objects that are no files: epoll, timers, signals, watches, memory, processes.

use super::*;
use crate::sys::epoll::{self, Registration};
use crate::sys::{inotify, pidfd, signalfd, timerfd};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::time::Duration;

fn register(epoll: &OwnedFd, file: &OwnedFd, number: i32, events: EpollFlags, data: u64) {
    epoll::register(&[Registration {
        epoll: epoll.as_fd(),
        file: file.as_fd(),
        number,
        events: events.bits().cast_unsigned(),
        data,
    }])
    .unwrap();
}

/// What an instance reports now, by data.
fn reported(epoll: &OwnedFd) -> Vec<(u64, EpollFlags)> {
    let epoll = Epoll(epoll.try_clone().unwrap());
    let mut events = [EpollEvent::empty(); 10];
    let count = epoll.wait(&mut events, EpollTimeout::ZERO).unwrap();
    let mut list: Vec<_> = events[..count]
        .iter()
        .map(|event| (event.data(), event.events()))
        .collect();
    list.sort();
    list
}

#[test]
fn epoll_registrations_keep_their_numbers_also_of_closed_and_reused_ones() {
    let epoll = epoll::create().unwrap();
    let (out, into) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (second, second_in) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let counter: OwnedFd = EventFd::from_value(1).unwrap().into();
    register(&epoll, &out, 4, EpollFlags::EPOLLIN, 44);
    register(
        &epoll,
        &into,
        5,
        EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
        55,
    );
    // Registered as 30, closed there, still open as 6.
    register(&epoll, &counter, 30, EpollFlags::EPOLLIN, u64::MAX);
    // Registered as 4 too, while 4 is another file.
    register(&epoll, &counter, 4, EpollFlags::EPOLLIN, 66);
    register(&epoll, &second, 7, EpollFlags::EPOLLIN, 77);
    let fds = [
        (epoll.as_fd(), 3),
        (out.as_fd(), 4),
        (into.as_fd(), 5),
        (counter.as_fd(), 6),
        (second.as_fd(), 7),
        (second_in.as_fd(), 8),
    ];
    let (files, new) = round_trip(&fds);
    let FileKind::Epoll { items } = &files.open_files[0].kind else {
        panic!("{files:?}");
    };
    let mut list: Vec<_> = items
        .iter()
        .map(|item| (item.data, item.fd, item.file.0))
        .collect();
    list.sort_unstable();
    let expected = [
        (44, 4, 1),
        (55, 5, 2),
        (66, 4, 3),
        (77, 7, 4),
        (u64::MAX, 30, 3),
    ];
    assert_eq!(list, expected);
    for epoll in [&epoll, &new[0]] {
        let data: Vec<_> = reported(epoll).iter().map(|event| event.0).collect();
        assert_eq!(data, [55, 66, u64::MAX]);
    }
    write(&new[2], b"x").unwrap();
    assert!(reported(&new[0]).contains(&(44, EpollFlags::EPOLLIN)));
}

#[test]
fn a_spent_one_shot_stays_spent() {
    let epoll = epoll::create().unwrap();
    let counter: OwnedFd = EventFd::from_value(1).unwrap().into();
    let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
    register(&epoll, &counter, 4, events, 4);
    assert_eq!(reported(&epoll).len(), 1);
    assert!(reported(&epoll).is_empty());
    let (_, new) = round_trip(&[(epoll.as_fd(), 3), (counter.as_fd(), 4)]);
    assert!(reported(&new[0]).is_empty());
}

#[test]
fn epolls_watch_epolls() {
    let (outer, inner) = (epoll::create().unwrap(), epoll::create().unwrap());
    let counter: OwnedFd = EventFd::from_value(1).unwrap().into();
    register(&outer, &inner, 4, EpollFlags::EPOLLIN, 4);
    register(&inner, &counter, 5, EpollFlags::EPOLLIN, 5);
    let fds = [(outer.as_fd(), 3), (inner.as_fd(), 4), (counter.as_fd(), 5)];
    let (_, new) = round_trip(&fds);
    assert_eq!(reported(&new[0]), [(4, EpollFlags::EPOLLIN)]);
}

#[test]
fn a_registration_of_what_nobody_holds_is_refused() {
    let epoll = epoll::create().unwrap();
    let counter: OwnedFd = EventFd::from_value(1).unwrap().into();
    register(&epoll, &counter, 4, EpollFlags::EPOLLIN, 4);
    let child = sleeper(&[(epoll.as_fd(), 3)], || 0);
    let (_, refusals) = capture(&[&child]);
    assert_eq!(refusals.as_slice()[0].code, "E-EPOLL-TARGET");
}

/// Records of timers but for what time changes.
fn timer(files: &Files, id: u32) -> Timerfd {
    match &files.open_files[id as usize].kind {
        FileKind::Timerfd(timer) => timer.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn timers_go_on_with_the_time_they_had_left() {
    const SECOND: u64 = 1_000_000_000;
    let make = |clock: i32, flags: i32, value: u64, interval: u64| {
        let timer = timerfd::create(clock).unwrap();
        timerfd::set(timer.as_fd(), flags, value, interval).unwrap();
        timer
    };
    let wall = timerfd::now(libc::CLOCK_REALTIME).unwrap() + 100 * SECOND;
    let later = timerfd::now(libc::CLOCK_MONOTONIC).unwrap() + 60 * SECOND;
    let absolute = libc::TFD_TIMER_ABSTIME;
    let timers = [
        make(libc::CLOCK_MONOTONIC, 0, 50 * SECOND, 7 * SECOND),
        make(
            libc::CLOCK_REALTIME,
            absolute | libc::TFD_TIMER_CANCEL_ON_SET,
            wall,
            0,
        ),
        make(libc::CLOCK_MONOTONIC, absolute, later, 0),
        make(libc::CLOCK_BOOTTIME, 0, 0, 0),
        make(libc::CLOCK_MONOTONIC, 0, 1, 0),
        make(libc::CLOCK_MONOTONIC, 0, 1, 3_000_000),
    ];
    std::thread::sleep(Duration::from_millis(20));
    let numbered: Vec<_> = timers
        .iter()
        .zip(3..)
        .map(|(fd, n)| (fd.as_fd(), n))
        .collect();
    let child = sleeper(&numbered, || 0);
    let (before, _) = capture(&[&child]);
    let rebuilt = rebuild(&before, BTreeMap::new()).unwrap();
    let again: Vec<_> = rebuilt
        .files
        .values()
        .zip(3..)
        .map(|(fd, n)| (fd.as_fd(), n))
        .collect();
    let copy = sleeper(&again, || 0);
    let (after, _) = capture(&[&copy]);
    let near = |a: u64, b: u64| a.abs_diff(b) < SECOND;
    for id in 0..5 {
        let (old, new) = (timer(&before.files, id), timer(&after.files, id));
        assert!(near(old.remaining, new.remaining), "{old:?} {new:?}");
        assert!(near(old.deadline.unwrap_or(0), new.deadline.unwrap_or(0)));
        assert_eq!(old.ticks, new.ticks);
        assert_eq!(old.clock, new.clock);
        assert_eq!(
            (old.interval, old.absolute, old.cancel_on_set),
            (new.interval, new.absolute, new.cancel_on_set)
        );
    }
    assert!(near(timer(&before.files, 1).deadline.unwrap(), wall));
    assert_eq!(timer(&after.files, 4).ticks, 1);
    assert!(
        timer(&before.files, 5).ticks >= 5,
        "{:?}",
        timer(&before.files, 5)
    );
    let mut buffer = [0; 8];
    read(&rebuilt.files[&FileId(4)], &mut buffer).unwrap();
    assert_eq!(u64::from_ne_bytes(buffer), 1);
}

#[test]
fn signalfds_keep_their_mask() {
    let mask = 1 << (libc::SIGUSR1 - 1) | 1 << 63;
    let signalfd = signalfd::create(mask).unwrap();
    let (files, _) = round_trip(&[(signalfd.as_fd(), 3)]);
    assert_eq!(files.open_files[0].kind, FileKind::Signalfd { mask });
}

#[test]
fn inotify_watches_keep_their_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let instance = inotify::create().unwrap();
    let path_only = |path: &Path| open(path, OFlag::O_PATH);
    let mask = libc::IN_CREATE | libc::IN_MODIFY | libc::IN_ONESHOT;
    for (path, wd) in [(directory.path(), 1_000_007), (file.as_path(), 3)] {
        inotify::watch(instance.as_fd(), path_only(path).as_fd(), wd, mask).unwrap();
    }
    let (files, new) = round_trip(&[(instance.as_fd(), 3)]);
    let FileKind::Inotify { watches } = &files.open_files[0].kind else {
        panic!("{files:?}");
    };
    let numbers: Vec<_> = watches.iter().map(|watch| (watch.wd, watch.mask)).collect();
    assert_eq!(numbers, [(3, mask), (1_000_007, mask)]);
    std::fs::write(directory.path().join("new"), "").unwrap();
    let mut buffer = [0; 300];
    read(&new[0], &mut buffer).unwrap();
    assert_eq!(
        i32::from_ne_bytes(buffer[..4].try_into().unwrap()),
        1_000_007
    );
}

#[test]
fn unread_inotify_events_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let instance = inotify::create().unwrap();
    let watched = open(directory.path(), OFlag::O_PATH);
    inotify::watch(instance.as_fd(), watched.as_fd(), 1, libc::IN_CREATE).unwrap();
    std::fs::write(directory.path().join("new"), "").unwrap();
    let child = sleeper(&[(instance.as_fd(), 3)], || 0);
    let (_, refusals) = capture(&[&child]);
    assert_eq!(refusals.as_slice()[0].code, "E-INOTIFY-QUEUED");
}

#[test]
fn memory_files_are_described_and_opened_again_from_what_the_memory_made() {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = memfd_create("a name", flags).unwrap();
    write(&memory, b"content").unwrap();
    fcntl(
        &memory,
        FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::F_SEAL_SHRINK),
    )
    .unwrap();
    let child = sleeper(&[(memory.as_fd(), 3)], || 0);
    let (captured, refusals) = capture(&[&child]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    let record = &captured.files.memory_files[0];
    assert_eq!(record.name.as_bytes(), b"a name");
    assert_eq!(
        (record.size, &*record.seals),
        (7, &["F_SEAL_SHRINK".to_owned()][..])
    );
    let mut content = [0; 7];
    read(&captured.memory[&record.inode], &mut content).unwrap();
    assert_eq!(&content, b"content");

    let made = create_memory_file(record).unwrap();
    nix::sys::uio::pwrite(&made, &content, 0).unwrap();
    seal_memory_file(record, made.as_fd()).unwrap();
    let namespace = ns::open_own(ns::Kind::Mnt).unwrap();
    let env = Env {
        mount_namespace: namespace.as_fd(),
        processes: BTreeMap::new(),
        external: BTreeMap::new(),
        streams: [None, None, None],
        memory: BTreeMap::from([(record.inode, made)]),
        contents: &Members::default(),
        strict: true,
    };
    let mut rebuilder = Rebuilder::new(&captured.files, env).unwrap();
    rebuilder.build().unwrap();
    let rebuilt = rebuilder.finish().unwrap();
    let copy = sleeper(&[(rebuilt.files[&FileId(0)].as_fd(), 3)], || 0);
    let (again, _) = capture(&[&copy]);
    pretty_eq(&captured.files, &again.files);
}

#[test]
fn pidfds_stand_for_the_same_process_and_for_the_same_dead_one() {
    let child = sleeper(&[], || 0);
    let dead = pidfd::of_dead().unwrap();
    let same = pidfd::of_dead().unwrap();
    let nonblocking = pidfd::open_with(child.pid, OFlag::O_NONBLOCK.bits()).unwrap();
    let fds = [
        (nonblocking.as_fd(), 3),
        (dead.as_fd(), 4),
        (same.as_fd(), 5),
    ];
    let holder = sleeper(&fds, || 0);
    let (captured, refusals) = capture(&[&child, &holder]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    let processes = BTreeMap::from([(1, child.pid), (2, holder.pid)]);
    let rebuilt = rebuild(&captured, processes).unwrap();
    let numbered: Vec<_> = rebuilt
        .files
        .values()
        .zip(3..)
        .map(|(fd, n)| (fd.as_fd(), n))
        .collect();
    let copy = sleeper(&numbered, || 0);
    let (again, _) = capture(&[&child, &copy]);
    let kinds = |captured: &Captured| -> Vec<_> {
        let files = &captured.files.open_files;
        files
            .iter()
            .map(|file| (file.kind.clone(), file.flags.clone()))
            .collect()
    };
    let (before, after) = (kinds(&captured), kinds(&again));
    assert_eq!(before[0].0, FileKind::Pidfd(PidfdTarget::Process(1)));
    assert_eq!(before[0], after[0]);
    assert!(matches!(after[1].0, FileKind::Pidfd(PidfdTarget::Gone(_))));
    assert_ne!(after[1].0, after[2].0);
    drop(child);
}

#[test]
fn a_pidfd_of_an_outsider_is_refused() {
    let own = pidfd::open(std::process::id().cast_signed()).unwrap();
    let child = sleeper(&[(own.as_fd(), 3)], || 0);
    let (_, refusals) = capture(&[&child]);
    assert_eq!(refusals.as_slice()[0].code, "E-PIDFD-OUTSIDE");
}

#[test]
fn namespace_descriptors_come_back_by_a_process_that_is_in() {
    let own = ns::open_own(ns::Kind::Net).unwrap();
    let other = ns::fresh(ns::Kind::Net).unwrap();
    round_trip(&[(own.as_fd(), 3)]);
    let child = sleeper(&[(other.as_fd(), 3)], || 0);
    let (_, refusals) = capture(&[&child]);
    assert_eq!(refusals.as_slice()[0].code, "E-NAMESPACE-OUTSIDE");
}
