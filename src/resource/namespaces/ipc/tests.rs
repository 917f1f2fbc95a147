use super::*;
use crate::image::bytes::Bytes;
use crate::image::memory::{CHUNK_PAGES, PAGE};
use crate::image::namespaces::ipc::{Message, MessageQueue, PosixQueue, Segment, SemaphoreSet};
use crate::resource::memory::{Known, Source};
use crate::sys::ns::{Kind, fresh_with, inside};
use crate::sys::{mqueue, sysv};
use crate::tracee::{self, Scratch, find_syscall};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

type Chunks = BTreeMap<(String, u64), Vec<u8>>;

fn codes(refusals: &Refusals) -> Vec<&'static str> {
    refusals.as_slice().iter().map(|r| r.code).collect()
}

fn captured_with(
    namespace: BorrowedFd<'_>,
    host_pids: &[i32],
    refusals: &mut Refusals,
) -> Result<Captured> {
    let asker = undo::Asker::new(namespace)?;
    capture(namespace, host_pids, asker, refusals)
}

/// What is in a namespace, with the chunks of all pages.
fn captured(namespace: &OwnedFd) -> (Ipc, Chunks) {
    let mut refusals = Refusals::new();
    let found = captured_with(namespace.as_fd(), &[], &mut refusals).unwrap();
    assert_eq!(refusals.as_slice(), []);
    let mut source = Source::default();
    for content in found.contents {
        source.add(content.object, content.file, content.pages);
    }
    let mut chunks = Chunks::new();
    source
        .read(&Known::default(), &mut |filled| {
            chunks.insert((filled.object.to_owned(), filled.number), filled.bytes);
            Ok(())
        })
        .unwrap();
    let json = serde_json::to_string(&found.record).unwrap();
    (serde_json::from_str(&json).unwrap(), chunks)
}

fn rebuilt(record: &Ipc, chunks: &Chunks) -> OwnedFd {
    let read = |object: &str, number| Ok(chunks[&(object.to_owned(), number)].clone());
    let pages = Pages::new(&read);
    fresh_with(Kind::Ipc, || rebuild(record, &pages)).unwrap()
}

/// Sets up, captures, rebuilds in a new namespace, captures again.
fn comes_back(set_up: impl FnOnce() -> Result<()> + Send) -> (OwnedFd, Ipc) {
    let namespace = fresh_with(Kind::Ipc, set_up).unwrap();
    let (record, chunks) = captured(&namespace);
    // Looking changes nothing.
    assert_eq!(captured(&namespace), (record.clone(), chunks.clone()));
    let again = rebuilt(&record, &chunks);
    inside(&[again.as_fd()], || finish(&record)).unwrap();
    assert_eq!(captured(&again), (record.clone(), chunks));
    (again, record)
}

fn identity_of(id: i32, key: i32) -> Identity {
    Identity {
        id,
        key,
        uid: 11,
        gid: 12,
        creator_uid: 13,
        creator_gid: 14,
        mode: 0o640,
    }
}

fn segment_of(id: i32, key: i32, size: u64) -> Segment {
    Segment {
        identity: identity_of(id, key),
        size,
        attached: 0,
        removed: false,
        locked: false,
        pages: Vec::new(),
        tail: None,
    }
}

fn made(segment: &Segment) -> Result<()> {
    segments::rebuild(
        std::slice::from_ref(segment),
        &Pages::new(&|_, _| Ok(vec![])),
    )
}

#[test]
fn segments_come_back_with_number_key_owner_and_content() {
    let size = 3 * CHUNK_PAGES * PAGE + 1000;
    let (fd, record) = comes_back(|| {
        made(&segment_of(7 << 15, 0x1234, size))?;
        let file = sysv::open_segment(7 << 15, true)?;
        file.write_all_at(&vec![7; 2 << 20], 5 * PAGE)?;
        file.write_all_at(b"the end", size - 7)?;
        sysv::write_tail(&file, size, b"beyond")?;
        sysv::lock_segment(7 << 15)?;
        made(&segment_of((9 << 15) + 5, -5, 100))
    });
    assert_eq!(record.segments.len(), 2);
    let first = &record.segments[0];
    assert_eq!(first.identity, identity_of(7 << 15, 0x1234));
    assert!(first.locked);
    assert!(first.tail.as_ref().unwrap().0.starts_with(b"beyond"));
    assert_eq!(record.segments[1], segment_of((9 << 15) + 5, -5, 100));
    inside(&[fd.as_fd()], || {
        // One that was never used was not attached in passing, unless it might have been of huge pages.
        let rows = list("shm")?;
        assert!(number(&rows[1], "atime") == 0 || segments::may_be_huge());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_locked_segment_keeps_its_place() {
    let (_, record) = comes_back(|| {
        made(&segment_of(0, 0, 5000))?;
        sysv::lock_segment(0)
    });
    // SHM_LOCK alone fills no page of an unused segment.
    assert!(record.segments[0].locked);
}

#[test]
fn an_attached_segment_that_is_marked_for_removal_lives_on_with_its_users() {
    const ID: i32 = 3 << 15;
    let chunks = Chunks::new();
    let record = Ipc {
        segments: vec![Segment {
            removed: true,
            attached: 1,
            ..segment_of(ID, 0, 5000)
        }],
        ..Ipc::default()
    };
    let namespace = rebuilt(&record, &chunks);
    let own = std::process::id().cast_signed();
    inside(&[namespace.as_fd()], || {
        let _attached = sysv::testing::Attached::new(ID)?;
        finish(&record)?;
        let rows = list("shm")?;
        let before = (number(&rows[0], "atime"), number(&rows[0], "lpid"));
        let mut refusals = Refusals::new();
        let found = captured_with(namespace.as_fd(), &[own], &mut refusals)?;
        assert_eq!(found.record.segments, record.segments);
        refuse_host_segments(&[own], &mut refusals)?;
        assert_eq!(codes(&refusals), ["E-SHM-HOST"]);
        // It was opened through its user, not attached.
        let rows = list("shm")?;
        assert_eq!(
            before,
            (number(&rows[0], "atime"), number(&rows[0], "lpid"))
        );
        Ok(())
    })
    .unwrap();
    assert_eq!(captured(&namespace).0.segments, []);
}

#[test]
fn semaphores_come_back_with_their_values() {
    let set = |id, key, values: &[u16]| SemaphoreSet {
        identity: identity_of(id, key),
        values: values.to_vec(),
    };
    let sets = [set(5 << 15, 77, &[0, 1, 32767]), set(1, 0, &[4])];
    let (_, record) = comes_back(|| semaphores::rebuild(&sets));
    assert_eq!(record.semaphores, sets);
}

#[test]
fn message_queues_come_back_with_their_messages() {
    let message = |kind, text: &[u8]| Message {
        kind,
        text: Bytes(text.to_vec()),
    };
    let queue = MessageQueue {
        identity: identity_of((2 << 15) + 1, 99),
        limit: 5000,
        messages: vec![
            message(5, b"first"),
            message(i64::MAX, b""),
            message(5, &[0xff; 4000]),
            message(1, b"last"),
        ],
    };
    // More than the limit allows, since that was lowered later; and a lowered limit for all.
    let over = MessageQueue {
        identity: identity_of(0, 0),
        limit: 3,
        messages: vec![message(1, &[1; 8192])],
    };
    let queues = [over, queue];
    let (_, record) = comes_back(|| {
        queues::rebuild(&queues)?;
        fs::write("/proc/sys/kernel/msgmnb", "1000")?;
        Ok(())
    });
    assert_eq!(record.queues, queues);
    assert_eq!(record.settings["kernel/msgmnb"], "1000");
}

#[test]
fn a_message_that_the_kernel_does_not_copy_is_refused() {
    let namespace = fresh_with(Kind::Ipc, || {
        let id = sysv::new_queue(0, 0o600)?;
        sysv::send(id, 1, &[7; 200])?;
        Ok(fs::write("/proc/sys/kernel/msgmax", "100")?)
    })
    .unwrap();
    let mut refusals = Refusals::new();
    captured_with(namespace.as_fd(), &[], &mut refusals).unwrap();
    assert_eq!(codes(&refusals), ["E-MSG-LENGTH"]);
}

#[test]
fn posix_queues_come_back_and_messages_in_them_are_refused() {
    let queue = PosixQueue {
        name: "a b\u{e4}".into(),
        uid: 3,
        gid: 4,
        mode: 0o606,
        capacity: 9,
        message_size: 77,
    };
    let (fd, record) = comes_back(|| posix::rebuild(std::slice::from_ref(&queue)));
    assert_eq!(record.posix_queues, [queue]);
    let refusals = inside(&[fd.as_fd()], || {
        let attributes = mqueue::Attributes {
            capacity: 3,
            message_size: 10,
            messages: 0,
        };
        let full = mqueue::create(c"full", 0o600, &attributes)?;
        mqueue::testing::send(full.as_fd(), b"x");
        let notify = mqueue::create(c"notify", 0o600, &attributes)?;
        mqueue::testing::notify(notify.as_fd());
        let mut refusals = Refusals::new();
        captured_with(fd.as_fd(), &[], &mut refusals)?;
        Ok(refusals)
    })
    .unwrap();
    let mut found = codes(&refusals);
    found.sort_unstable();
    assert_eq!(found, ["E-MQUEUE-MESSAGES", "E-MQUEUE-NOTIFY"]);
}

#[test]
fn settings_come_back() {
    let (fd, record) = comes_back(|| {
        for (name, value) in [
            ("kernel/shmmax", "4096"),
            ("kernel/sem", "10\t20\t30\t40"),
            ("kernel/shm_rmid_forced", "1"),
            ("fs/mqueue/msg_default", "3"),
            ("fs/mqueue/queues_max", "5"),
        ] {
            fs::write(format!("/proc/sys/{name}"), value)?;
        }
        Ok(())
    });
    assert_eq!(record.settings["kernel/sem"], "10\t20\t30\t40");
    let settings = inside(&[fd.as_fd()], || Ok(settings::read())).unwrap();
    assert_eq!(settings, record.settings);
}

#[test]
fn a_segment_that_would_vanish_is_refused() {
    let namespace = fresh_with(Kind::Ipc, || made(&segment_of(0, 0, 5000))).unwrap();
    let mut refusals = Refusals::new();
    inside(&[namespace.as_fd()], || {
        // Setting it removes those whose makers have ended.
        fs::write("/proc/sys/kernel/shm_rmid_forced", "1")?;
        made(&segment_of(1, 0, 5000))?;
        captured_with(namespace.as_fd(), &[], &mut refusals)?;
        Ok(())
    })
    .unwrap();
    assert_eq!(codes(&refusals), ["E-SHM-FORCED"]);
}

#[test]
fn numbers_that_are_there_twice_and_strange_settings_are_refused() {
    let mut record = Ipc {
        segments: vec![segment_of(5, 0, 1), segment_of(5, 0, 1)],
        ..Ipc::default()
    };
    let pages = Pages::new(&|_, _| Ok(vec![]));
    let failure = fresh_with(Kind::Ipc, || rebuild(&record, &pages)).unwrap_err();
    assert_eq!(failure.code(), "E-IMAGE-VALUE");
    record.segments.clear();
    record.settings.insert("kernel/hostname".into(), "x".into());
    let failure = fresh_with(Kind::Ipc, || rebuild(&record, &pages)).unwrap_err();
    assert_eq!(failure.code(), "E-IMAGE-VALUE");
}

#[test]
fn a_process_that_undoes_semaphores_and_was_not_asked_is_refused() {
    let namespace = fresh_with(Kind::Ipc, || {
        let set = SemaphoreSet {
            identity: identity_of(0, 7),
            values: vec![1],
        };
        semaphores::rebuild(&[set])
    })
    .unwrap();
    for (undo, expected) in [(true, vec!["E-SEM-UNDO"]), (false, vec![])] {
        let ns = namespace.as_fd();
        let sleeper = crate::sys::testing::sleeper(&[(ns, 9)], || {
            if undo {
                sysv::testing::undoing(9, 0, &[-1])
            } else {
                sysv::testing::undoing(9, 0, &[])
            }
        });
        let mut refusals = Refusals::new();
        let found = captured_with(ns, &[sleeper.pid], &mut refusals).unwrap();
        assert_eq!(codes(&refusals), expected);
        assert_eq!(found.record.semaphores[0].values, [u16::from(!undo)]);
        drop(sleeper);
    }
}

/// Asks a process of a test for its adjustments, or has it take those of `give` first.
fn adjustments(
    namespace: BorrowedFd<'_>,
    host_pid: i32,
    give: Option<&Ipc>,
) -> Vec<crate::image::namespaces::ipc::Adjustment> {
    let mut stopped = tracee::seize(host_pid, false)
        .unwrap()
        .wait(Instant::now() + Duration::from_secs(20))
        .unwrap();
    let areas = crate::proc::Process::new(host_pid).maps().unwrap();
    let vdso = areas.iter().find(|area| area.path == b"[vdso]").unwrap();
    let instruction = find_syscall(host_pid, vdso.start, vdso.end)
        .unwrap()
        .unwrap();
    let tids = vec![(host_pid, host_pid)];
    let room = 4096;
    let urg = libc::SIGURG;
    let mut scratch =
        Scratch::map(&mut stopped, host_pid, tids, instruction, urg, None, room).unwrap();
    if let Some(record) = give {
        let mut batch = tracee::batch::Batch::new();
        undo::give_back(record, 1, &mut batch);
        stopped.run(&scratch, &batch).unwrap();
    }
    let mut refusals = Refusals::new();
    let mut asker = undo::Asker::new(namespace).unwrap();
    let room = scratch.room();
    asker
        .ask(
            (host_pid, 1),
            room,
            &mut |batch| stopped.run(&scratch, batch),
            &mut refusals,
        )
        .unwrap();
    scratch.unmap(&mut stopped).unwrap();
    stopped.release().unwrap();
    let found = capture(namespace, &[host_pid], asker, &mut refusals).unwrap();
    assert_eq!(refusals.as_slice(), []);
    found.record.adjustments
}

#[test]
fn what_a_process_would_undo_is_found_and_given_back() {
    // (value before, what the process does with SEM_UNDO)
    let cases: [(u16, i16); 9] = [
        (5, 0),
        (5, -3),
        (0, 7),
        (32767, -32767),
        (0, 32767),
        (1, -1),
        (9, 1),
        (20000, -12345),
        (3, 11),
    ];
    let set = SemaphoreSet {
        identity: identity_of(3, 7),
        values: cases.map(|case| case.0).to_vec(),
    };
    let sets = [set];
    let made = || fresh_with(Kind::Ipc, || semaphores::rebuild(&sets)).unwrap();
    let namespace = made();
    let ns = namespace.as_fd();
    let moves = cases.map(|case| case.1);
    let sleeper = crate::sys::testing::sleeper(&[(ns, 9)], || sysv::testing::undoing(9, 3, &moves));
    let found = adjustments(ns, sleeper.pid, None);
    let expected: Vec<_> = (0_u16..)
        .zip(cases)
        .filter(|(_, case)| case.1 != 0)
        .map(|(number, case)| (number, -i32::from(case.1)))
        .collect();
    let pairs: Vec<_> = found.iter().map(|one| (one.semaphore, one.value)).collect();
    assert_eq!(pairs, expected);
    let (mut record, chunks) = captured(&namespace);
    record.adjustments = found.clone();
    drop(sleeper);

    let again = rebuilt(&record, &chunks);
    let ns = again.as_fd();
    let sleeper = crate::sys::testing::sleeper(&[(ns, 9)], || sysv::testing::undoing(9, 3, &[]));
    assert_eq!(adjustments(ns, sleeper.pid, Some(&record)), found);
    assert_eq!(captured(&again).0.semaphores, record.semaphores);
    drop(sleeper);
    // The kernel undoes it, and all is as it was at the very first.
    assert_eq!(captured(&again).0.semaphores, sets);
}
