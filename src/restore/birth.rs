//! Processes again: born in order, filled, and made what they were.

use super::read::Records;
use crate::error::{Context, Error, Result};
use crate::image::files::FileId;
use crate::image::memory::Memory;
use crate::image::process::{Alive, Process};
use crate::proc::status::State;
use crate::resource::files::{InTarget, Rebuilder, Rebuilt};
use crate::resource::memory::build::{self, Opened};
use crate::resource::memory::fill::Pages;
use crate::resource::namespaces::ipc;
use crate::resource::tree::Step;
use crate::resource::{attributes, limits, scheduling, seccomp, signals, threads, timers};
use crate::tracee::bare::{Bare, Feed};
use crate::tracee::batch::{Batch, RemoteFd};
use crate::tracee::calls;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// All processes while they are being built.
pub struct Nursery<'a> {
    /// The first process.
    top: i32,
    records: HashMap<i32, &'a Process>,
    bare: BTreeMap<i32, Bare>,
    /// Whose memory each was born with.
    held: HashMap<i32, Option<i32>>,
    /// Those that are finished and in state T: number in the container, number on this host.
    stopped: BTreeMap<i32, i32>,
    /// A descriptor of every process that stands for this one.
    conductor: RemoteFd,
    /// This process's capabilities: those of a bare process.
    capabilities: u64,
}

/// Milliseconds that a process has to stop.
const STOPS_WITHIN: u32 = 5000;

/// What is needed of the memory.
pub struct Materials<'a> {
    /// Mapped files and shared memory.
    pub opened: &'a Opened,
    /// The stored pages.
    pub pages: &'a Pages<'a>,
}

impl<'a> Nursery<'a> {
    /// With the first process, which is there already.
    pub fn new(records: &'a Records, init: Bare, conductor: RemoteFd) -> Result<Self> {
        let own = crate::proc::read::Process::new(std::process::id().cast_signed()).status()?;
        Ok(Self {
            top: init.pid,
            records: records
                .processes
                .iter()
                .map(|process| (process.member.pid, process))
                .collect(),
            held: HashMap::from([(init.pid, None)]),
            bare: BTreeMap::from([(init.pid, init)]),
            stopped: BTreeMap::new(),
            conductor,
            capabilities: own.cap_permitted,
        })
    }

    fn get(&mut self, pid: i32) -> Result<&mut Bare> {
        self.bare
            .get_mut(&pid)
            .ok_or_else(|| Error::bug(format!("process {pid} is not born")))
    }

    fn alive(&self, pid: i32) -> Option<&'a Alive> {
        self.records.get(&pid)?.alive.as_ref()
    }

    /// The number on this host of a process that is born.
    pub fn host_pid(&self, pid: i32) -> Option<i32> {
        self.bare.get(&pid).map(|bare| bare.host_pid)
    }

    /// Number in the container to number on this host, of processes and threads.
    pub fn numbers(&self) -> BTreeMap<i32, i32> {
        self.bare
            .values()
            .flat_map(|bare| {
                let threads = self
                    .alive(bare.pid)
                    .map_or(&[][..], |alive| alive.threads.as_slice());
                let leader = (bare.pid, bare.host_pid);
                let others = bare
                    .threads
                    .iter()
                    .zip(threads)
                    .skip(1)
                    .map(|(stopped, thread)| (thread.tid, stopped.host_tid()));
                std::iter::once(leader).chain(others)
            })
            .collect()
    }

    /// Does one step of the plan.
    pub fn step(
        &mut self,
        step: Step,
        materials: &Materials<'_>,
        files: &Rebuilder<'_>,
        spawn: &mut dyn FnMut(&Bare, i32) -> Result<Bare>,
    ) -> Result<()> {
        match step {
            Step::Spawn { pid } => {
                if self.bare.contains_key(&pid) {
                    return Ok(());
                }
                let top = self
                    .bare
                    .get(&self.top)
                    .ok_or_else(|| Error::bug("the first process is not there"))?;
                let bare = spawn(top, pid)?;
                self.held.insert(pid, None);
                self.bare.insert(pid, bare);
                Ok(())
            }
            Step::Fork {
                parent,
                pid,
                exit_signal,
            } => {
                let child = self.get(parent)?.fork(pid, exit_signal, false)?;
                let held = self.held.get(&parent).copied().flatten();
                self.held.insert(pid, held);
                self.bare.insert(pid, child);
                Ok(())
            }
            Step::Session { pid } => self.session(pid, files),
            Step::Memory { pid } => self.memory(pid, materials),
            Step::Group { pid, pgid } => {
                let mut batch = Batch::new();
                batch.push(calls::Setpgid {
                    pid: 0u64.into(),
                    pgid: pgid.into(),
                });
                self.get(pid)?.run(&batch).map(drop)
            }
            Step::Reaper { pid, on } => {
                let mut batch = Batch::new();
                batch.push(calls::Prctl {
                    option: libc::PR_SET_CHILD_SUBREAPER.into(),
                    arg2: u64::from(on).into(),
                    arg3: 0u64.into(),
                    arg4: 0u64.into(),
                    arg5: 0u64.into(),
                });
                self.get(pid)?.run(&batch).map(drop)
            }
            Step::Exit { pid, parent } => {
                let ending = self
                    .bare
                    .remove(&pid)
                    .ok_or_else(|| Error::bug(format!("process {pid} is not born")))?;
                ending.exit(0)?;
                let mut batch = Batch::new();
                batch.push(calls::Wait4 {
                    pid: pid.into(),
                    status: 0u64.into(),
                    options: libc::__WALL.into(),
                });
                self.get(parent)?.run(&batch).map(drop)
            }
        }
    }

    /// A session, and its terminal: members that are born later inherit it.
    fn session(&mut self, pid: i32, files: &Rebuilder<'_>) -> Result<()> {
        let terminal = self
            .alive(pid)
            .and_then(|alive| alive.terminal)
            .map(|terminal| files.terminal(terminal.device))
            .transpose()?
            .flatten();
        let conductor = self.conductor;
        let mut batch = Batch::new();
        batch.push(calls::Setsid {});
        if let Some(terminal) = &terminal {
            let fd = batch.push(calls::PidfdGetfd {
                pidfd: conductor.into(),
                fd: terminal.as_raw_fd().into(),
            });
            batch.push(calls::Ioctl {
                fd: fd.into(),
                request: libc::TIOCSCTTY.into(),
                argument: 0u64.into(),
            });
            batch.push(calls::Close { fd: fd.into() });
        }
        self.get(pid)?.run(&batch).map(drop)
    }

    fn memory(&mut self, pid: i32, materials: &Materials<'_>) -> Result<()> {
        let Some(alive) = self.alive(pid) else {
            return Ok(());
        };
        let held = self.held.get(&pid).copied().flatten();
        let inherited: Option<&Memory> = held
            .and_then(|pid| self.alive(pid))
            .map(|alive| &alive.memory);
        let conductor = self.conductor;
        build::build(
            self.get(pid)?,
            &alive.memory,
            inherited,
            materials.opened,
            conductor,
            materials.pages,
        )
        .doing(|| format!("building the memory of pid {pid}"))?;
        self.held.insert(pid, Some(pid));
        Ok(())
    }

    /// Makes the threads of all processes.
    pub fn threads(&mut self) -> Result<()> {
        for bare in self.bare.values_mut() {
            let Some(alive) = self
                .records
                .get(&bare.pid)
                .and_then(|one| one.alive.as_ref())
            else {
                continue;
            };
            let tids: Vec<i32> = alive
                .threads
                .iter()
                .skip(1)
                .map(|thread| thread.tid)
                .collect();
            if !tids.is_empty() {
                bare.spawn_threads(&tids)?;
            }
        }
        Ok(())
    }

    /// The foreground groups of terminals, once all groups are there.
    pub fn foreground(&mut self, files: &Rebuilder<'_>) -> Result<()> {
        let leaders: Vec<(i32, crate::image::process::Terminal)> = self
            .records
            .iter()
            .filter_map(|(pid, record)| Some((*pid, record.alive.as_ref()?.terminal?)))
            .collect();
        for (pid, terminal) in leaders {
            let Some(slave) = files.terminal(terminal.device)? else {
                continue;
            };
            if terminal.foreground == 0 {
                continue;
            }
            let conductor = self.conductor;
            let mut batch = Batch::new();
            let fd = batch.push(calls::PidfdGetfd {
                pidfd: conductor.into(),
                fd: slave.as_raw_fd().into(),
            });
            let group = batch.bytes(&terminal.foreground.to_le_bytes());
            // A group that has ended meanwhile cannot be put there; nobody is in it.
            batch.push_tolerant(calls::Ioctl {
                fd: fd.into(),
                request: libc::TIOCSPGRP.into(),
                argument: group.into(),
            });
            batch.push(calls::Close { fd: fd.into() });
            self.get(pid)?.run(&batch)?;
        }
        Ok(())
    }

    /// Zombies end now; their parents are told, and what they are told is taken away again with
    /// whatever else waits, for what waited is in the image.
    pub fn zombies(&mut self) -> Result<()> {
        let ended: Vec<(i32, i32, Vec<u8>)> = self
            .records
            .values()
            .filter_map(|record| {
                let status = record.member.zombie?;
                Some((record.member.pid, status, record.comm.as_bytes().to_vec()))
            })
            .collect();
        for (pid, status, mut comm) in ended {
            let Some(mut bare) = self.bare.remove(&pid) else {
                continue;
            };
            comm.truncate(15);
            let mut batch = Batch::new();
            let name = batch.string(&comm);
            batch.push(calls::Prctl {
                option: libc::PR_SET_NAME.into(),
                arg2: name.into(),
                arg3: 0u64.into(),
                arg4: 0u64.into(),
                arg5: 0u64.into(),
            });
            bare.run(&batch)?;
            if libc::WIFSIGNALED(status) {
                bare.die(libc::WTERMSIG(status))?;
            } else {
                bare.exit(libc::WEXITSTATUS(status))?;
            }
        }
        Ok(())
    }

    /// Everything else of every process; afterwards nothing of ours is in them.
    pub fn finish(
        &mut self,
        records: &Records,
        rebuilt: &Rebuilt,
        places: &BTreeMap<i32, Places>,
    ) -> Result<()> {
        for pid in self.children_first() {
            let Some(alive) = self.alive(pid) else {
                continue;
            };
            let places = places
                .get(&pid)
                .ok_or_else(|| Error::bug(format!("no places for pid {pid}")))?;
            self.process(pid, alive, records, rebuilt, places)
                .doing(|| format!("finishing pid {pid}"))?;
            if self.is_stopped(pid) {
                self.stop(pid)
                    .doing(|| format!("stopping pid {pid} as it was"))?;
            }
        }
        Ok(())
    }

    fn is_stopped(&self, pid: i32) -> bool {
        self.records
            .get(&pid)
            .is_some_and(|record| record.stopped.is_some())
    }

    /// Processes in an order in which children come before their parents.
    fn children_first(&self) -> Vec<i32> {
        let depth = |pid: i32| {
            let mut depth = 0;
            let mut at = pid;
            while let Some(record) = self.records.get(&at) {
                depth += 1;
                at = record.member.ppid;
            }
            depth
        };
        let mut pids: Vec<i32> = self.bare.keys().copied().collect();
        pids.sort_by_key(|pid| std::cmp::Reverse(depth(*pid)));
        pids
    }

    /// Lets a finished process go into the state T that it was in. Its parent is told, and is not yet
    /// what it was: it asks for the status, so that it is not told once more.
    fn stop(&mut self, pid: i32) -> Result<()> {
        let Some(bare) = self.bare.remove(&pid) else {
            return Ok(());
        };
        let host_pid = bare.host_pid;
        let process = crate::proc::read::Process::new(host_pid);
        send(host_pid, libc::SIGSTOP)?;
        self.stopped.insert(pid, host_pid);
        release(bare)?;
        for _ in 0..STOPS_WITHIN {
            if process.stat()?.state == State::Stopped {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Err(Error::bug("it does not stop"))
    }

    /// Lets a parent ask for the stops of its children, which it knew of.
    fn push_waits(&self, batch: &mut Batch, parent: i32) {
        for pid in self.stopped.keys() {
            let is_child = self
                .records
                .get(pid)
                .is_some_and(|record| record.member.ppid == parent);
            if is_child {
                batch.push_tolerant(calls::Waitid {
                    which: libc::P_PID.into(),
                    id: (*pid).into(),
                    info: 0u64.into(),
                    options: (libc::WSTOPPED | libc::WNOHANG | libc::__WALL).into(),
                });
            }
        }
    }

    fn process(
        &mut self,
        pid: i32,
        alive: &Alive,
        records: &Records,
        rebuilt: &Rebuilt,
        places: &Places,
    ) -> Result<()> {
        let conductor = self.conductor;
        let capabilities = self.capabilities;
        let subreaper = self
            .records
            .get(&pid)
            .is_some_and(|record| record.member.subreaper);
        let mut waits = Batch::new();
        self.push_waits(&mut waits, pid);
        let bare = self.get(pid)?;
        let waiting = alive.pending.iter().chain(
            alive
                .threads
                .iter()
                .flat_map(|thread| thread.pending.as_slice()),
        );
        bare.set_home_signal(signals::free_signal(waiting));
        place(bare, alive, places, conductor)?;
        let own_exe = places.exe.as_ref().map(std::os::fd::AsFd::as_fd);
        build::finish(bare, &alive.memory, own_exe, conductor)?;
        descriptors(bare, records, rebuilt, conductor)?;
        bare.run(&waits)?;
        let mut batch = Batch::new();
        if let Some(ipc) = &records.ipc {
            ipc::undo::give_back(ipc, pid, &mut batch);
        }
        signals::rebuild_handlers(&mut batch, &alive.handlers);
        attributes::rebuild(&mut batch, &alive.attributes, subreaper);
        limits::rebuild(&mut batch, &alive.limits)?;
        signals::drain(&mut batch);
        bare.run(&batch)?;
        // Through /proc, as long as it is ours to write.
        attributes::rebuild_outside(bare.host_pid, &alive.attributes)?;
        if let Some(vdso) = &alive.memory.vdso {
            bare.place_vdso(vdso.start)?;
        }
        let shared = seccomp::shared(&alive.threads);
        for (index, thread) in alive.threads.iter().enumerate() {
            let host_tid = bare
                .threads
                .get(index)
                .ok_or_else(|| Error::bug("a thread is missing"))?
                .host_tid();
            scheduling::rebuild(host_tid, &thread.scheduling)?;
            let mut batch = Batch::new();
            if index == 0 {
                signals::rebuild_process(&mut batch, pid, &alive.pending);
            }
            seccomp::rebuild_thread(&mut batch, thread, index == 0, shared, &records.seccomp)?;
            threads::rebuild(&mut batch, pid, thread, capabilities);
            if index == 0 {
                attributes::rebuild_last(&mut batch, &alive.attributes);
                timers::rebuild(&mut batch, &alive.timers);
            }
            bare.run_in(index, &batch)?;
        }
        threads::finish_all(bare, &alive.threads)
    }

    /// Lets everybody go; with `stop` no further than to a SIGSTOP.
    pub fn release(mut self, stop: bool) -> Result<()> {
        for bare in std::mem::take(&mut self.bare).into_values() {
            if stop {
                send(bare.host_pid, libc::SIGSTOP)?;
            }
            release(bare)?;
        }
        Ok(())
    }

    /// Kills all that were made. Their namespace's first process takes everybody along.
    pub fn abandon(&mut self) {
        let bare = self.bare.values().map(|bare| bare.host_pid);
        let all: Vec<i32> = bare.chain(self.stopped.values().copied()).collect();
        for host_pid in &all {
            let _ = send(*host_pid, libc::SIGKILL);
        }
        self.bare.clear();
        super::reap(&all);
    }
}

fn send(host_pid: i32, signal: i32) -> Result<()> {
    let pidfd = crate::sys::pidfd::open(host_pid)?;
    crate::sys::pidfd::send_signal(std::os::fd::AsFd::as_fd(&pidfd), signal)
}

fn release(bare: Bare) -> Result<()> {
    for thread in bare.threads {
        thread.release()?;
    }
    Ok(())
}

/// Where a process goes, open in the conductor.
#[derive(Debug, Default)]
pub struct Places {
    /// Its program.
    pub exe: Option<OwnedFd>,
    /// Its working directory.
    pub cwd: Option<OwnedFd>,
    /// Its root, where that is not the namespace's.
    pub root: Option<OwnedFd>,
}

fn place(bare: &mut Bare, alive: &Alive, places: &Places, conductor: RemoteFd) -> Result<()> {
    let mut batch = Batch::new();
    let mut enter = |fd: BorrowedFd<'_>, root: bool| {
        let fd = batch.push(calls::PidfdGetfd {
            pidfd: conductor.into(),
            fd: fd.as_raw_fd().into(),
        });
        batch.push(calls::Fchdir { fd: fd.into() });
        if root {
            let here = batch.string(b".");
            batch.push(calls::Chroot { path: here.into() });
        }
        batch.push(calls::Close { fd: fd.into() });
    };
    if let Some(root) = &places.root {
        enter(std::os::fd::AsFd::as_fd(root), true);
    }
    if let Some(cwd) = &places.cwd {
        enter(std::os::fd::AsFd::as_fd(cwd), false);
    }
    batch.push(calls::Umask {
        mask: alive.place.umask.into(),
    });
    bare.run(&batch)
        .doing(|| "entering its directories")
        .map(drop)
}

/// The descriptor table. Numbers are given in ascending order, and the kernel hands out the lowest that
/// is free: so it is known beforehand which number a fetched descriptor has, and most need no move.
fn descriptors(
    bare: &mut Bare,
    records: &Records,
    rebuilt: &Rebuilt,
    conductor: RemoteFd,
) -> Result<()> {
    let empty = Vec::new();
    let table = records.files.tables.get(&bare.pid).unwrap_or(&empty);
    let mut known: HashMap<FileId, i32> = HashMap::new();
    let mut taken = std::collections::BTreeSet::new();
    let mut lowest = 0;
    let pid = bare.pid;
    let mut feed = Feed::new(bare);
    for descriptor in table {
        let fd = descriptor.fd;
        let flags = if descriptor.cloexec {
            libc::O_CLOEXEC
        } else {
            0
        };
        while taken.contains(&lowest) || lowest == conductor.0 {
            lowest += 1;
        }
        if let Some(old) = known.get(&descriptor.file) {
            feed.push(calls::Dup3 {
                old: (*old).into(),
                new: fd.into(),
                flags: flags.into(),
            })?;
        } else {
            let file = rebuilt
                .files
                .get(&descriptor.file)
                .ok_or_else(|| Error::bug(format!("open file {} is missing", descriptor.file.0)))?;
            let number = file.as_raw_fd();
            let moved = lowest != fd;
            feed.with(0, |batch| {
                let got = batch.push(calls::PidfdGetfd {
                    pidfd: conductor.into(),
                    fd: number.into(),
                });
                if moved {
                    batch.push(calls::Dup3 {
                        old: got.into(),
                        new: fd.into(),
                        flags: flags.into(),
                    });
                    batch.push(calls::Close { fd: got.into() });
                } else if flags == 0 {
                    // A fetched descriptor is closed on exec.
                    batch.push(calls::Fcntl {
                        fd: fd.into(),
                        command: libc::F_SETFD.into(),
                        argument: 0u64.into(),
                    });
                }
            })?;
            known.insert(descriptor.file, fd);
        }
        taken.insert(fd);
    }
    for lock in rebuilt.in_target.get(&pid).map_or(&[][..], Vec::as_slice) {
        let (fd, exclusive, start, len) = match lock {
            InTarget::PosixLock {
                fd,
                exclusive,
                start,
                len,
            } => (fd, exclusive, start, len),
            InTarget::Flock { fd, exclusive } => {
                let operation = if *exclusive {
                    libc::LOCK_EX
                } else {
                    libc::LOCK_SH
                };
                feed.push(calls::Flock {
                    fd: (*fd).into(),
                    operation: (operation | libc::LOCK_NB).into(),
                })?;
                continue;
            }
        };
        let kind = if *exclusive {
            libc::F_WRLCK
        } else {
            libc::F_RDLCK
        };
        feed.with(64, |batch| {
            // struct flock: two shorts, then start, length and pid.
            let lock = batch.words(&[
                u64::from(kind.cast_unsigned()),
                start.cast_unsigned(),
                len.cast_unsigned(),
                0,
            ]);
            batch.push(calls::Fcntl {
                fd: (*fd).into(),
                command: libc::F_SETLK.into(),
                argument: lock.into(),
            });
        })?;
    }
    feed.push(calls::Close {
        fd: conductor.into(),
    })?;
    feed.run().doing(|| "giving it its descriptors")
}
