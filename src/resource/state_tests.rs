//! State goes from one bare process to another and is the same there: what is asked of the first is
//! rebuilt in the second and asked again.

use super::{attributes, limits, scheduling, seccomp, signals, threads, timers};
use crate::error::{Refusals, Result};
use crate::image::bytes::Bytes;
use crate::image::process::{Alive, Component, Controls, Limit, MemoryPolicy, PosixTimer, Thread};
use crate::image::seccomp::Filter;
use crate::proc::read::Process;
use crate::proc::status::State;
use crate::sys::clone::own_rseq;
use crate::sys::ptrace::{self, Event, Queue};
use crate::tracee::bare::{self, Bare, Vdso, Zone};
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::{Asleep, calls};

/// A PID namespace of bare processes, gone when it is dropped.
struct Ground {
    init: Bare,
    /// The process under test.
    bare: Bare,
    filters: seccomp::Collector,
}

const ZONE: Zone = Zone { start: 0x1000_0000 };
const PID: i32 = 7;
const SECOND: i32 = 9;
/// Mapped in every process under test, for what the kernel writes to memory.
const PAGE: u64 = 0x2000_0000;

impl Drop for Ground {
    fn drop(&mut self) {
        let init = nix::unistd::Pid::from_raw(self.init.host_pid);
        let _ = nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL);
        while let Ok(Some((found, event))) = ptrace::wait(-1, true) {
            if found == self.init.host_pid && matches!(event, Event::Gone(_)) {
                break;
            }
        }
    }
}

fn own_vdso() -> Vdso {
    let areas = Process::new(std::process::id().cast_signed())
        .maps()
        .unwrap();
    let parts: Vec<(u64, u64)> = areas
        .iter()
        .filter(|area| area.path.starts_with(b"[vvar") || area.path == b"[vdso]")
        .map(|area| (area.start, area.end))
        .collect();
    let start = parts[0].0;
    Vdso {
        start,
        parts: parts
            .iter()
            .map(|(from, to)| (from - start, to - from))
            .collect(),
        code: parts.last().unwrap().0 - start,
    }
}

impl Ground {
    fn new() -> Self {
        let mut init =
            bare::spawn(libc::CLONE_NEWPID as u64, 1, ZONE, &own_vdso(), own_rseq()).unwrap();
        let bare = init.fork(PID, libc::SIGCHLD, false).unwrap();
        let mut ground = Self {
            init,
            bare,
            filters: seccomp::Collector::default(),
        };
        ground.run(|batch| {
            batch.push(calls::Mmap {
                address: PAGE.into(),
                length: 4096u64.into(),
                protection: 3u64.into(),
                flags: ((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64).into(),
                fd: (-1).into(),
                offset: 0u64.into(),
            });
        });
        ground.bare.spawn_threads(&[SECOND]).unwrap();
        ground
    }

    fn run(&mut self, push: impl FnOnce(&mut Batch)) -> Answers {
        self.run_in(0, push)
    }

    fn run_in(&mut self, index: usize, push: impl FnOnce(&mut Batch)) -> Answers {
        let mut batch = Batch::new();
        push(&mut batch);
        self.bare.run_in(index, &batch).unwrap()
    }

    fn filters(&mut self) -> seccomp::Collector {
        std::mem::take(&mut self.filters)
    }

    fn status(&self, index: usize) -> crate::proc::status::Status {
        let host_tid = self.bare.threads[index].host_tid();
        Process::new(self.bare.host_pid)
            .thread(host_tid)
            .status()
            .unwrap()
    }

    fn thread(&mut self, index: usize, refusals: &mut Refusals) -> Thread {
        let mut batch = Batch::new();
        let ask = threads::ask(&mut batch);
        let answers = self.bare.run_in(index, &batch).unwrap();
        let tid = [PID, SECOND][index];
        let status = self.status(index);
        let host_pid = self.bare.host_pid;
        let bare = &mut self.bare;
        let sleep = threads::sleep(&mut bare.threads[index], &bare.scratch, host_pid).unwrap();
        let stopped = &bare.threads[index];
        let mut thread = ask
            .collect(&answers, stopped, tid, &status, host_pid, sleep)
            .unwrap();
        ask.refuse(&answers, &thread, "the thread", refusals);
        let host_tid = stopped.host_tid();
        thread.seccomp = self
            .filters
            .thread(host_tid, &status, || "the thread".into(), refusals)
            .unwrap();
        thread
    }

    /// Everything that the rooms here know of it.
    fn ask(&mut self) -> Alive {
        let mut refusals = Refusals::new();
        let found = self.ask_all(&mut refusals);
        refusals.into_result().unwrap();
        found
    }

    fn ask_all(&mut self, refusals: &mut Refusals) -> Alive {
        let host_pid = self.bare.host_pid;
        let mut batch = Batch::new();
        let handlers = signals::ask(&mut batch);
        let clocks = timers::ask(&mut batch, host_pid).unwrap();
        let whole = attributes::ask(&mut batch);
        let answers = self.bare.run(&batch).unwrap();
        let numbers = [
            (self.bare.threads[0].host_tid(), PID),
            (self.bare.threads[1].host_tid(), SECOND),
        ];
        let own = |host_tid| {
            let found = numbers.iter().find(|(host, _)| *host == host_tid);
            found.map(|(_, tid)| *tid)
        };
        Alive {
            threads: vec![self.thread(0, refusals), self.thread(1, refusals)],
            handlers: handlers.handlers(&answers),
            pending: signals::pending(host_pid, Queue::Process).unwrap(),
            timers: clocks.collect(&answers, own, || "pid 7".into(), refusals),
            limits: limits::collect(host_pid).unwrap(),
            attributes: whole.collect(&answers, host_pid).unwrap(),
            ..Alive::default()
        }
    }

    /// A process in a namespace of its own that is made what `alive` says.
    fn rebuilt(alive: &Alive, filters: seccomp::Collector) -> Self {
        let mut ground = Self::new();
        ground.rebuild(alive, &filters.finish()).unwrap();
        ground
    }

    /// As a restore does it.
    fn rebuild(&mut self, alive: &Alive, filters: &[Filter]) -> Result<()> {
        let held = self.status(0).cap_permitted;
        let all = alive.threads.iter().flat_map(|thread| &thread.pending);
        let home = signals::free_signal(alive.pending.iter().chain(all));
        self.bare.set_home_signal(home);
        let mut batch = Batch::new();
        attributes::rebuild(&mut batch, &alive.attributes, false);
        signals::rebuild_handlers(&mut batch, &alive.handlers);
        signals::rebuild_process(&mut batch, PID, &alive.pending);
        limits::rebuild(&mut batch, &alive.limits)?;
        timers::rebuild(&mut batch, &alive.timers);
        self.bare.run(&batch)?;
        let shared = seccomp::shared(&alive.threads);
        for (index, thread) in alive.threads.iter().enumerate() {
            let mut batch = Batch::new();
            seccomp::rebuild_thread(&mut batch, thread, index == 0, shared, filters)?;
            threads::rebuild(&mut batch, PID, thread, held);
            if index == 0 {
                attributes::rebuild_last(&mut batch, &alive.attributes);
            }
            self.bare.run_in(index, &batch)?;
            scheduling::rebuild(self.bare.threads[index].host_tid(), &thread.scheduling)?;
        }
        for (index, thread) in alive.threads.iter().enumerate() {
            threads::finish_in(&mut self.bare, index, thread)?;
        }
        attributes::rebuild_outside(self.bare.host_pid, &alive.attributes)
    }
}

/// What differs, one line each; equal records are too long to read side by side.
fn assert_same(before: &Alive, after: &Alive) {
    let text = |alive: &Alive| -> Vec<String> {
        let json = serde_json::to_string_pretty(alive).unwrap();
        json.lines().map(str::to_owned).collect()
    };
    let (before, after) = (text(before), text(after));
    let differing: Vec<_> = before
        .iter()
        .zip(&after)
        .filter(|(one, other)| one != other)
        .collect();
    assert!(differing.is_empty(), "{differing:#?}");
    assert_eq!(before.len(), after.len());
}

#[test]
fn a_bare_process_is_rebuilt_as_it_is() {
    let mut first = Ground::new();
    assert_goes_over(&mut first);
}

/// Asks, rebuilds, asks again; what was found.
fn assert_goes_over(first: &mut Ground) -> Alive {
    let before = first.ask();
    let mut second = Ground::rebuilt(&before, first.filters());
    let after = second.ask();
    assert_same(&without_running(&before), &without_running(&after));
    before
}

/// Timers that run go on between two looks.
fn without_running(alive: &Alive) -> Alive {
    const HOUR: u64 = 3_600_000_000_000;
    let mut alive = alive.clone();
    let posix = alive.timers.posix.iter_mut().map(|one| &mut one.remaining);
    let interval = alive.timers.interval.iter_mut().map(|(left, _)| left);
    let sleeps = alive
        .threads
        .iter_mut()
        .filter_map(|one| one.sleep.as_mut());
    let sleeps = sleeps.map(|one| &mut one.remaining);
    for remaining in posix
        .chain(interval)
        .chain(sleeps)
        .filter(|left| **left != 0)
    {
        // What was an hour, or ten minutes, is so again; a little more where the kernel rounds up.
        let unit = if *remaining > HOUR / 2 {
            HOUR
        } else {
            HOUR / 6
        };
        *remaining = (*remaining + unit / 2) / unit * unit;
    }
    alive
}

fn info(signal: i32, code: i32, value: u64) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[0..4].copy_from_slice(&signal.to_le_bytes());
    bytes[8..12].copy_from_slice(&code.to_le_bytes());
    bytes[16..20].copy_from_slice(&7u32.to_le_bytes());
    bytes[24..32].copy_from_slice(&value.to_le_bytes());
    bytes
}

fn prctl(batch: &mut Batch, option: i32, arguments: [u64; 3]) {
    batch.push(calls::Prctl {
        option: option.into(),
        arg2: arguments[0].into(),
        arg3: arguments[1].into(),
        arg4: arguments[2].into(),
        arg5: 0u64.into(),
    });
}

fn push_action(batch: &mut Batch, signal: i32, words: [u64; 4]) {
    let action = batch.words(&words);
    batch.push(calls::RtSigaction {
        signal: signal.into(),
        action: action.into(),
        old: 0u64.into(),
    });
}

const RESTORER: u64 = 0x0400_0000;

#[test]
fn handlers_go_over_with_masks_and_flags_also_those_of_the_default() {
    let mut first = Ground::new();
    first.run(|batch| {
        // Not those of the test's own program.
        signals::rebuild_handlers(batch, &[]);
        let siginfo = RESTORER | 4 | 0x0800_0000 | 0x1000_0000;
        push_action(batch, libc::SIGUSR1, [0x1234_5678, siginfo, 0x77, 0xff00]);
        push_action(batch, libc::SIGURG, [0x1234_0000, RESTORER, 0x77, u64::MAX]);
        push_action(batch, libc::SIGPIPE, [1, 0, 0, 0]);
        push_action(batch, libc::SIGHUP, [0, RESTORER | 0x1000_0000, 0x77, 2]);
        push_action(batch, 64, [0x9999, RESTORER | 0x8000_0000, 0x77, 1]);
        let no_zombies = 2;
        push_action(batch, libc::SIGCHLD, [0, no_zombies, 0, 0]);
    });
    let found = assert_goes_over(&mut first);
    let signals: Vec<i32> = found.handlers.iter().map(|one| one.signal).collect();
    assert_eq!(
        signals,
        [
            libc::SIGHUP,
            libc::SIGUSR1,
            libc::SIGPIPE,
            libc::SIGCHLD,
            libc::SIGURG,
            64
        ]
    );
    // SIGKILL and SIGSTOP are taken out of every mask by the kernel.
    assert_eq!(found.handlers[4].mask, !(1 << 8 | 1 << 18));
}

#[test]
fn signals_wait_on_in_their_order_with_all_they_carry_the_home_signal_among_them() {
    let mut first = Ground::new();
    first.bare.set_home_signal(libc::SIGWINCH);
    let process = [
        (40, -1, 1),
        (libc::SIGURG, -1, 2),
        (40, -1, 3),
        // SI_TIMER, SI_KERNEL and SI_USER, which nobody may claim to another process.
        (libc::SIGALRM, -2, 4),
        (libc::SIGCHLD, 0x80, 5),
        (libc::SIGCONT, 0, 6),
        (39, -1, 7),
    ];
    first.run(|batch| {
        for (signal, code, value) in process {
            let info = batch.bytes(&info(signal, code, value));
            batch.push(calls::RtSigqueueinfo {
                pid: PID.into(),
                signal: signal.into(),
                info: info.into(),
            });
        }
    });
    for (index, tid) in [(0, PID), (1, SECOND)] {
        first.run_in(index, |batch| {
            for (signal, value) in [(50, 1), (libc::SIGUSR2, 2), (50, u64::MAX)] {
                let info = batch.bytes(&info(signal, -6, value));
                batch.push(calls::RtTgsigqueueinfo {
                    pid: PID.into(),
                    tid: tid.into(),
                    signal: signal.into(),
                    info: info.into(),
                });
            }
        });
        first.bare.threads[index].set_signal_mask(0x7fff_fffe_0000_0000 | (index as u64) << 3);
    }
    let found = assert_goes_over(&mut first);
    let seen: Vec<(i32, i32)> = found
        .pending
        .iter()
        .map(|one| (one.signal, one.code))
        .collect();
    assert_eq!(seen, process.map(|(signal, code, _)| (signal, code)));
    let own: Vec<i32> = found.threads[1]
        .pending
        .iter()
        .map(|one| one.signal)
        .collect();
    assert_eq!(own, [50, libc::SIGUSR2, 50]);
    assert_eq!(found.threads[1].blocked, 0x7fff_fffe_0000_0008);
}

#[test]
fn a_signal_that_waits_without_room_for_what_it_carries_waits_on() {
    let mut first = Ground::new();
    first.run(|batch| {
        let none = batch.words(&[0, 0]);
        batch.push(calls::Prlimit {
            pid: 0u64.into(),
            resource: 11u64.into(),
            new: none.into(),
            old: 0u64.into(),
        });
        let info = batch.bytes(&info(libc::SIGUSR1, -1, 5));
        batch.push(calls::RtTgsigqueueinfo {
            pid: PID.into(),
            tid: PID.into(),
            signal: libc::SIGUSR1.into(),
            info: info.into(),
        });
    });
    let mut found = first.ask();
    let lost = &found.threads[0].pending;
    assert_eq!((lost[0].signal, lost[0].code), (libc::SIGUSR1, 0));
    // The limit would be in the way of the same again.
    found.limits.clear();
    let mut second = Ground::rebuilt(&found, first.filters());
    assert_eq!(second.ask().threads, found.threads);
}

fn timer(id: i32) -> PosixTimer {
    PosixTimer {
        id,
        clock: libc::CLOCK_MONOTONIC,
        notify: 0,
        signal: libc::SIGALRM,
        value: 0x1234_5678_9abc,
        tid: None,
        remaining: 3_600_000_000_000,
        interval: 0,
    }
}

#[test]
fn timers_go_over_with_their_numbers_clocks_threads_and_times() {
    let mut first = Ground::new();
    let hour = 3_600_000_000_000;
    let wanted = crate::image::process::Timers {
        interval: [(hour, 5_000_000), (2 * hour, 0), (3 * hour, 7_000)],
        posix: vec![
            timer(0),
            PosixTimer {
                clock: libc::CLOCK_REALTIME,
                interval: 1_500_000_000,
                ..timer(3)
            },
            PosixTimer {
                notify: 4,
                tid: Some(SECOND),
                signal: 41,
                clock: libc::CLOCK_BOOTTIME,
                ..timer(4)
            },
            PosixTimer {
                clock: libc::CLOCK_PROCESS_CPUTIME_ID,
                remaining: 0,
                ..timer(90)
            },
            PosixTimer {
                clock: !SECOND << 3 | 6,
                notify: 1,
                signal: 0,
                ..timer(2_000_000)
            },
        ],
    };
    first.run(|batch| timers::rebuild(batch, &wanted));
    let found = assert_goes_over(&mut first);
    let numbers = |timers: &[PosixTimer]| -> Vec<(i32, i32, Option<i32>)> {
        timers
            .iter()
            .map(|one| (one.id, one.clock, one.tid))
            .collect()
    };
    let mut wanted = numbers(&wanted.posix);
    // The kernel's own way to write it: the process that asks.
    wanted[3].1 = !0 << 3 | 2;
    assert_eq!(numbers(&found.timers.posix), wanted);
    assert!(
        found
            .timers
            .interval
            .iter()
            .all(|(left, _)| *left > hour - 60_000_000_000)
    );
}

#[test]
fn timers_get_their_numbers_on_older_kernels_too() {
    let mut first = Ground::new();
    let wanted = [timer(0), timer(2), timer(700)];
    first.run(|batch| timers::rebuild_without_restore_ids(batch, &wanted));
    let found = first.ask().timers.posix;
    assert_eq!(
        found.iter().map(|one| one.id).collect::<Vec<_>>(),
        [0, 2, 700]
    );
}

#[test]
fn a_timer_on_the_clock_of_another_process_is_refused() {
    let mut first = Ground::new();
    first.run(|batch| {
        let other = PosixTimer {
            clock: !1 << 3 | 2,
            ..timer(0)
        };
        timers::rebuild_without_restore_ids(batch, &[other]);
    });
    let mut refusals = Refusals::new();
    first.ask_all(&mut refusals);
    assert_eq!(refusals.as_slice()[0].code, "E-TIMER-CLOCK");
}

#[test]
fn rights_go_over_thread_by_thread() {
    use crate::image::process::Credentials;
    const NET_BIND: u64 = 1 << 10;
    const CHOWN: u64 = 1;
    const KILL: u64 = 1 << 5;
    let mut first = Ground::new();
    let held = first.status(0).cap_permitted;
    let user = Credentials {
        uids: [1000, 1001, 1002, 1001],
        gids: [2000, 2001, 2002, 2003],
        groups: vec![3, 3000, 70_000],
        inheritable: NET_BIND | CHOWN,
        permitted: NET_BIND | CHOWN | KILL,
        effective: KILL,
        bounding: KILL | CHOWN,
        ambient: NET_BIND,
        // keep capabilities, locked; no fix-up of capabilities.
        securebits: 0b11_0100,
        no_new_privs: true,
    };
    let root = Credentials {
        bounding: held,
        permitted: held,
        ..Credentials::default()
    };
    for (index, wanted) in [(0, &user), (1, &root)] {
        first.run_in(index, |batch| {
            super::credentials::rebuild(batch, wanted, held)
        });
    }
    let found = assert_goes_over(&mut first);
    assert_eq!(found.threads[0].credentials, user);
    assert_eq!(found.threads[1].credentials, root);
    let mut refusals = Refusals::new();
    super::credentials::check(&user, held & !KILL, "pid 7", &mut refusals);
    let refused = refusals.as_slice();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused[0].reason.contains("CAP_KILL"), "{refused:?}");
}

#[test]
fn limits_scheduling_and_attributes_go_over() {
    let mut first = Ground::new();
    let lowered = |resource: &str, soft, hard| Limit {
        resource: resource.into(),
        soft: Some(soft),
        hard,
    };
    let wanted = [
        lowered("RLIMIT_NOFILE", 100, Some(200)),
        lowered("RLIMIT_CORE", 0, Some(0)),
        lowered("RLIMIT_MSGQUEUE", 5000, Some(819_200)),
        lowered("RLIMIT_CPU", 1_000_000, None),
    ];
    first.run(|batch| {
        limits::rebuild(batch, &wanted).unwrap();
        prctl(batch, 41, [1, 0, 0]);
        // Write and execute refused, for this process only.
        prctl(batch, 65, [3, 0, 0]);
        prctl(batch, libc::PR_SET_DUMPABLE, [0; 3]);
        for command in [1u64 << 4, 1 << 6, 1 << 8, 1 << 2] {
            batch.push(calls::Membarrier {
                command: command.into(),
                flags: 0u64.into(),
                cpu: 0u64.into(),
            });
        }
        prctl(batch, libc::PR_SET_TIMERSLACK, [123_456, 0, 0]);
        batch.push(calls::IoprioSet {
            which: 1u64.into(),
            who: 0u64.into(),
            value: (2u64 << 13 | 6).into(),
        });
    });
    first.run_in(1, |batch| {
        let one = batch.words(&[1]);
        batch.push(calls::SchedSetaffinity {
            tid: 0u64.into(),
            length: 8u64.into(),
            mask: one.into(),
        });
        // SCHED_FIFO, reset on fork, priority 7.
        let attributes = batch.words(&[48 | 1 << 32, 1, 7 << 32, 0, 0, 0]);
        batch.push(calls::SchedSetattr {
            tid: 0u64.into(),
            attributes: attributes.into(),
        });
    });
    let host_pid = first.bare.host_pid;
    let set = |name: &str, value: &str| {
        std::fs::write(Process::new(host_pid).path(name), value).unwrap();
    };
    set("oom_score_adj", "500");
    set("coredump_filter", "0x7f");
    let found = assert_goes_over(&mut first);
    for limit in &wanted {
        assert!(found.limits.contains(limit), "{limit:?}");
    }
    let whole = &found.attributes;
    assert_eq!(
        (whole.thp_disabled, whole.memory_deny_write_execute),
        (1, 3)
    );
    assert_eq!((whole.dumpable, whole.membarrier), (0, 0b1_0101_0100));
    assert_eq!((whole.oom_score_adj, whole.coredump_filter), (500, 0x7f));
    let [leader, second] = [0, 1].map(|index| &found.threads[index].scheduling);
    assert_eq!(leader.affinity, "");
    assert_eq!(
        (leader.timer_slack, leader.io_priority),
        (123_456, 2 << 13 | 6)
    );
    assert_eq!(
        leader.deadline.0, 0,
        "the host's slice is no wish of the thread"
    );
    assert_eq!(second.affinity, "0");
    assert_eq!((second.policy, second.priority, second.flags), (1, 7, 1));
}

#[test]
fn what_this_host_cannot_give_is_named_before() {
    let mut refusals = Refusals::new();
    let limit = Limit {
        resource: "RLIMIT_NOFILE".into(),
        soft: None,
        hard: None,
    };
    limits::check(&[limit], false, "pid 7", &mut refusals).unwrap();
    let attributes = crate::image::process::Attributes {
        oom_score_adj: -1000,
        ..Default::default()
    };
    attributes::check(&attributes, 0, "pid 7", &mut refusals).unwrap();
    let mut thread = Thread::default();
    thread.scheduling.affinity = "4000".into();
    thread.credentials.permitted = 1 << 21;
    thread.controls.io_flusher = true;
    thread.extended = vec![Component {
        number: 60,
        bytes: Bytes(vec![0; 8]),
    }];
    threads::check(&thread, 0, "thread 9", &mut refusals);
    let codes: Vec<&str> = refusals.as_slice().iter().map(|one| one.code).collect();
    assert_eq!(
        codes,
        [
            "E-LIMIT",
            "E-OOM-SCORE",
            "E-CPU-STATE",
            "E-CAPABILITY",
            "E-IO-FLUSHER",
            "E-AFFINITY"
        ]
    );
}

#[test]
fn what_threads_have_told_the_kernel_about_themselves_goes_over() {
    let mut first = Ground::new();
    first.run_in(1, |batch| {
        let name = batch.string(b"na me)\xff");
        batch.push(calls::Prctl {
            option: libc::PR_SET_NAME.into(),
            arg2: name.into(),
            arg3: 0u64.into(),
            arg4: 0u64.into(),
            arg5: 0u64.into(),
        });
        prctl(batch, 26, [2, 0, 0]);
        prctl(batch, libc::PR_SET_PDEATHSIG, [libc::SIGUSR2 as u64, 0, 0]);
        let nodes = batch.words(&[1]);
        batch.push(calls::SetMempolicy {
            mode: 2u64.into(),
            nodes: nodes.into(),
            most: 65u64.into(),
        });
        let on_exit_disarm = 1u64 << 31;
        let stack = batch.words(&[PAGE, on_exit_disarm, 16384]);
        batch.push(calls::Sigaltstack {
            stack: stack.into(),
            old: 0u64.into(),
        });
        batch.push(calls::SetTidAddress {
            address: (PAGE + 8).into(),
        });
        batch.push(calls::SetRobustList {
            head: (PAGE + 16).into(),
            length: 24u64.into(),
        });
        batch.push(calls::Rseq {
            address: (PAGE + 64).into(),
            length: 32u64.into(),
            flags: 0u64.into(),
            signature: 0x5305_3053u32.into(),
        });
        batch.push(calls::Personality {
            persona: 0x0040_0000u64.into(),
        });
    });
    let found = assert_goes_over(&mut first);
    let second = &found.threads[1];
    assert_eq!(
        second.controls,
        Controls {
            tsc: 2,
            memory_policy: Some(MemoryPolicy {
                mode: 2,
                nodes: vec![1]
            }),
            ..Controls::default()
        }
    );
    assert_eq!(second.comm.as_bytes(), b"na me)\xff");
    assert_eq!(second.parent_death_signal, libc::SIGUSR2);
    assert_eq!(second.alternate_stack, (PAGE, 16384, 1 << 31));
    assert_eq!(
        (second.clear_child_tid, second.robust_list),
        (PAGE + 8, (PAGE + 16, 24))
    );
    assert_eq!(
        (second.rseq, second.personality),
        ((PAGE + 64, 32, 0x5305_3053), 0x0040_0000)
    );
    assert_eq!(found.threads[0].controls, Controls::default());
}

#[test]
fn the_processor_state_goes_over_component_by_component() {
    let mut first = Ground::new();
    let mut thread = first.ask().threads.remove(0);
    let legacy = &mut thread.extended[0].bytes.0;
    // An x87 register, an SSE register, MXCSR with another rounding.
    legacy[32..42].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0x40]);
    legacy[160..176].fill(0xa5);
    legacy[24..28].copy_from_slice(&0x3f80u32.to_le_bytes());
    thread.extended.truncate(1);
    let has = |number: u32| threads::xstate_components() >> number & 1 == 1;
    for number in [2, 5, 6, 7, 9].into_iter().filter(|number| has(*number)) {
        let (_, size) = crate::tracee::arch::xstate_component(number);
        let bytes = match number {
            9 => vec![0x54, 0x55, 0, 0, 0, 0, 0, 0],
            _ => vec![number as u8; size],
        };
        thread.extended.push(Component {
            number,
            bytes: Bytes(bytes),
        });
    }
    let registers = &mut thread.registers;
    registers.rip = 0x7000_1234_5678;
    registers.r12 = 12;
    registers.rflags = 0x246 | 1 << 10;
    registers.fs_base = 0x7fff_0000_1000;
    registers.gs_base = 0x1234_5000;
    registers.orig_rax = 35;
    registers.rax = (-514i64) as u64;
    threads::finish_in(&mut first.bare, 0, &thread).unwrap();
    let found = assert_goes_over(&mut first);
    assert_eq!(found.threads[0].registers, thread.registers);
    assert_eq!(found.threads[0].extended, thread.extended);
}

/// `if (nr == number) return action; return ALLOW`
fn filter(number: u32, action: u32) -> Vec<u8> {
    let instructions = [
        (0x20u16, 0u8, 0u8, 0u32),
        (0x15, 0, 1, number),
        (0x06, 0, 0, action),
        (0x06, 0, 0, 0x7fff_0000),
    ];
    let mut bytes = Vec::new();
    for (code, yes, no, constant) in instructions {
        bytes.extend_from_slice(&code.to_le_bytes());
        bytes.extend_from_slice(&[yes, no]);
        bytes.extend_from_slice(&constant.to_le_bytes());
    }
    bytes
}

fn push_filter(batch: &mut Batch, program: &[u8], flags: u64) {
    let program = batch.bytes(program);
    let arguments = batch.words(&[4, 0]);
    batch.pointer(arguments, 1, program);
    batch.push(calls::Seccomp {
        operation: 1u64.into(),
        flags: flags.into(),
        arguments: arguments.into(),
    });
}

#[test]
fn seccomp_filters_go_over_and_threads_can_synchronize_them_as_before() {
    const KILL: u32 = 0x8000_0000;
    let mut first = Ground::new();
    let clock_gettime = libc::SYS_clock_gettime as u32;
    first.run(|batch| {
        // It kills for the call that ends batches: suspended filters see nothing.
        push_filter(batch, &filter(libc::SYS_tgkill as u32, KILL), 1);
        push_filter(batch, &filter(clock_gettime, 0x0005_0001), 1 | 2);
    });
    first.run_in(1, |batch| {
        push_filter(batch, &filter(libc::SYS_getppid as u32, KILL), 0)
    });
    let before = first.ask();
    assert_eq!(before.threads[0].seccomp, [0, 1]);
    assert_eq!(before.threads[1].seccomp, [0, 1, 2]);
    let filters = first.filters().finish();
    assert_eq!(
        filters.iter().map(|one| one.flags).collect::<Vec<_>>(),
        [0, 2, 0]
    );
    let mut second = Ground::new();
    second.rebuild(&before, &filters).unwrap();
    assert_same(&before, &second.ask());
    assert_eq!(second.filters().finish(), filters);
    // The first thread's filters are the ancestors of the second's: it may give its own to all.
    second.run_in(1, |batch| {
        push_filter(batch, &filter(clock_gettime, KILL), 1)
    });
    assert_eq!(second.ask().threads[0].seccomp.len(), 4);
}

#[test]
fn a_filter_that_asks_a_listener_is_refused() {
    let mut first = Ground::new();
    first.run(|batch| push_filter(batch, &filter(libc::SYS_mkdir as u32, 0x7fc0_0000), 0));
    let mut refusals = Refusals::new();
    first.ask_all(&mut refusals);
    assert_eq!(refusals.as_slice()[0].code, "E-SECCOMP-LISTENER");
}

/// A call that waits, as the old thread made it: number and arguments.
type Wait = (i64, [u64; 6]);

/// Where a word lies that a futex waits on, and room for the time that remains.
const FUTEX: u64 = PAGE + 256;
const LEFT: u64 = PAGE + 512;
/// Where `syscall; mov edi, eax; mov eax, exit_group; syscall` lies.
const CODE: u64 = PAGE + 1024;

impl Ground {
    /// Makes a thread one that was interrupted in the call, `seconds` before its end.
    fn interrupt_in(&mut self, index: usize, wait: Wait, left: std::time::Duration) {
        let code = [0x0f, 5, 0x89, 0xc7, 0xb8, 0xe7, 0, 0, 0, 0x0f, 5];
        let memory = crate::tracee::memory_of(self.bare.host_pid).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&memory, &code, CODE).unwrap();
        let mut batch = Batch::new();
        let duration = batch.words(&[left.as_secs(), left.subsec_nanos().into()]);
        let (number, [a, b, c, d, ..]) = wait;
        match number {
            libc::SYS_nanosleep => drop(batch.push_tolerant(calls::Nanosleep {
                request: duration.into(),
                remaining: b.into(),
            })),
            libc::SYS_clock_nanosleep => drop(batch.push_tolerant(calls::ClockNanosleep {
                clock: a.into(),
                flags: b.into(),
                request: duration.into(),
                remaining: d.into(),
            })),
            libc::SYS_poll => drop(batch.push_tolerant(calls::Poll {
                descriptors: a.into(),
                count: b.into(),
                timeout: (left.as_millis() as u64).into(),
            })),
            _ => drop(batch.push_tolerant(calls::FutexWait {
                address: a.into(),
                operation: b.into(),
                value: c.into(),
                timeout: duration.into(),
            })),
        }
        let bare = &mut self.bare;
        let slept = bare.threads[index]
            .run_asleep(&bare.scratch, &batch, || ())
            .unwrap();
        assert_eq!(slept, Asleep::Interrupted(()));
        let thread = &mut bare.threads[index];
        let mut own = *thread.registers();
        [own.rdi, own.rsi, own.rdx, own.r10, own.r8, own.r9] = wait.1;
        own.rip = CODE + 2;
        own.rax = (-516i64) as u64;
        own.orig_rax = number as u64;
        thread.set_registers(own);
    }

    fn map_code(&mut self) {
        self.run(|batch| {
            batch.push(calls::Mprotect {
                address: PAGE.into(),
                length: 4096u64.into(),
                protection: 7u64.into(),
            });
        });
    }
}

#[test]
fn sleeps_go_on_for_the_time_that_is_left_whatever_call_they_are() {
    const ARGUMENT: u64 = PAGE + 768;
    let waits: [Wait; 4] = [
        (libc::SYS_nanosleep, [ARGUMENT, 0, 0, 0, 0, 0]),
        (libc::SYS_clock_nanosleep, [7, 0, ARGUMENT, LEFT, 0, 0]),
        (libc::SYS_poll, [0, 0, 900_000, 0, 0, 0]),
        (libc::SYS_futex, [FUTEX, 128, 0, ARGUMENT, 0, 0]),
    ];
    for wait in waits {
        for restarted in [false, true] {
            let mut first = Ground::new();
            first.map_code();
            first.interrupt_in(1, wait, std::time::Duration::from_secs(600));
            if restarted && wait.0 != libc::SYS_futex {
                let mut own = *first.bare.threads[1].registers();
                own.orig_rax = libc::SYS_restart_syscall as u64;
                first.bare.threads[1].set_registers(own);
            }
            let found = first.ask();
            let sleep = found.threads[1].sleep.unwrap();
            let off = 600_000_000_000i64 - sleep.remaining as i64;
            // The kernel itself adds the slack of its timers when it tells what is left.
            assert!((-100_000..20_000_000_000).contains(&off), "{wait:?}: {off}");
            let registers = found.threads[1].registers;
            assert_eq!(registers.rax as i64, -516);
            assert_eq!(registers.orig_rax, wait.0 as u64);
            assert_eq!(registers.rip, CODE + 2);
            let mut second = Ground::new();
            second.map_code();
            second.rebuild(&found, &[]).unwrap();
            assert_same(&without_running(&found), &without_running(&second.ask()));
        }
    }
}

#[test]
fn a_restored_sleep_ends_on_time_and_one_that_is_over_is_over() {
    use std::time::{Duration, Instant};
    let wait = (libc::SYS_nanosleep, [0x7000_0000, 0, 0, 0, 0, 0]);
    let mut first = Ground::new();
    first.map_code();
    first.interrupt_in(0, wait, Duration::from_millis(1500));
    let found = first.ask();
    let left = found.threads[0].sleep.unwrap().remaining;
    assert!(left < 1_500_000_000);
    let mut second = Ground::new();
    second.map_code();
    let memory = crate::tracee::memory_of(second.bare.host_pid).unwrap();
    // The call itself must not be made again: it would end the process at once, with another status.
    let code = [0x0f, 5, 0x89, 0xc7, 0xb8, 0xe7, 0, 0, 0, 0x0f, 5];
    std::os::unix::fs::FileExt::write_all_at(&memory, &code, CODE).unwrap();
    let begin = Instant::now();
    second.rebuild(&found, &[]).unwrap();
    let leader = second.bare.threads.remove(0);
    leader.release().unwrap();
    let process = Process::new(second.bare.host_pid);
    while process.stat().unwrap().state != State::Zombie {
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(begin.elapsed() >= Duration::from_nanos(left));
    assert_eq!(process.stat().unwrap().exit_code, 0);
    // The first has slept on in the kernel meanwhile.
    let found = first.ask();
    assert_eq!(found.threads[0].sleep, None);
    assert_eq!(found.threads[0].registers.rax, 0);
    assert_eq!(found.threads[0].registers.rip, CODE + 2);
}

#[test]
fn a_thread_in_a_restartable_sequence_goes_on_at_its_abort_address() {
    let mut first = Ground::new();
    let (area, section) = (PAGE + 64, PAGE + 128);
    let memory = crate::tracee::memory_of(first.bare.host_pid).unwrap();
    // The kernel looks for the signature in front of the abort address.
    let (start, abort) = (PAGE + 1024, PAGE + 2048);
    let words = [0u64, start, 0x100, abort];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let write = |bytes: &[u8], at: u64| {
        std::os::unix::fs::FileExt::write_all_at(&memory, bytes, at).unwrap();
    };
    write(&bytes, section);
    write(&7u32.to_le_bytes(), abort - 4);
    first.run(|batch| {
        batch.push(calls::Rseq {
            address: area.into(),
            length: 32u64.into(),
            flags: 0u64.into(),
            signature: 7u64.into(),
        });
    });
    for (rip, expected) in [
        (start, abort),
        (start + 0xff, abort),
        (start + 0x100, start + 0x100),
    ] {
        let thread = &mut first.bare.threads[0];
        let mut own = *thread.registers();
        own.rip = rip;
        thread.set_registers(own);
        // The kernel clears the pointer when it sees the thread elsewhere: in our batches.
        write(&section.to_le_bytes(), area + 8);
        thread.leave_sequence().unwrap();
        assert_eq!(first.ask().threads[0].registers.rip, expected);
    }
}
