//! Bare processes: forks that hold nothing but a scratch area and the vdso, to build in.
//!
//! Every process of a restore is born here. The first is a fork of the conductor, stripped; all others
//! are forks and threads of it, made by batches, and start with what their parent holds at that moment.
//! They die with the conductor (PTRACE_O_EXITKILL) until they are released.

use super::batch::{Batch, RemoteFd};
use super::{Scratch, Stopped, arch, calls, find_syscall, gone, seize_with};
use crate::error::{Cause, Context, Error, Result};
use crate::sys::clone::{self, CloneArgs};
use crate::sys::ptrace::{self, Event, options};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where things of ours lie in every process that is being built: one hole that no process of the
/// image uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone {
    /// Its first byte; page-aligned.
    pub start: u64,
}

/// Room for batches in a process that is being built: some 8000 calls.
const DATA: u64 = 1 << 20;
/// Room for the vdso and what belongs to it while they wait for their place.
const PARKING: u64 = 64 << 10;

impl Zone {
    /// Bytes of address space that a zone takes.
    pub const SIZE: u64 = arch::DATA_OFFSET + DATA + PARKING;

    fn parking(self) -> u64 {
        self.start + arch::DATA_OFFSET + DATA
    }
}

/// The vdso and the pages of data before it, which move together, order and distances kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vdso {
    /// Start of the first part.
    pub start: u64,
    /// (offset from `start`, length) of each part ([vvar], [vvar_vclock], [vdso]), ascending.
    pub parts: Vec<(u64, u64)>,
    /// Offset of the code, which is the last part.
    pub code: u64,
}

impl Vdso {
    /// The end of the last part, counted from `start`.
    pub fn length(&self) -> u64 {
        self.parts
            .last()
            .map_or(0, |(offset, length)| offset + length)
    }

    /// Pushes the calls that move all parts to `to`.
    pub fn push_move(&self, batch: &mut Batch, to: u64) {
        for &(offset, length) in &self.parts {
            batch.push(calls::Move {
                address: (self.start + offset).into(),
                length: length.into(),
                to: (to + offset).into(),
            });
        }
    }
}

/// A process that is being built.
#[derive(Debug)]
pub struct Bare {
    /// As this host numbers it.
    pub host_pid: i32,
    /// As its own PID namespace numbers it.
    pub pid: i32,
    /// Its threads, the leader first, then in the order of their making.
    pub threads: Vec<Stopped>,
    /// Its scratch area, in the zone.
    pub scratch: Scratch,
    /// Where its vdso is now.
    pub vdso: Vdso,
    /// Offset of a `syscall` instruction from the start of the vdso's parts.
    syscall_offset: u64,
    zone: Zone,
}

const HOME_SIGNAL: i32 = libc::SIGURG;

/// Makes the first process: PID `pid` in a new PID namespace when `flags` has CLONE_NEWPID. `vdso` says
/// where the conductor's own lies and `rseq` is this thread's registration as (address, length,
/// signature), length 0 for none.
pub fn spawn(flags: u64, pid: i32, zone: Zone, vdso: &Vdso, rseq: (u64, u32, u32)) -> Result<Bare> {
    let host_pid =
        clone::bare(flags, &[pid]).doing(|| format!("making a process with PID {pid}"))?;
    let built = strip(host_pid, pid, zone, vdso, rseq);
    if built.is_err() {
        // Not seized, or half stripped: it must not stay. It is our own child, so its PID cannot have
        // been given to anyone else.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(host_pid),
            nix::sys::signal::Signal::SIGKILL,
        );
        let _ = ptrace::wait(host_pid, true);
    }
    built
}

fn strip(host_pid: i32, pid: i32, zone: Zone, vdso: &Vdso, rseq: (u64, u32, u32)) -> Result<Bare> {
    let traced = options::EXITKILL | options::SUSPEND_SECCOMP;
    let mut leader = seize_with(host_pid, traced)
        .or_else(|_| seize_with(host_pid, options::EXITKILL))?
        .wait(std::time::Instant::now() + super::SOON)?;
    let code_start = vdso.start + vdso.code;
    let instruction = find_syscall(host_pid, code_start, vdso.start + vdso.length())?
        .ok_or_else(|| Error::bug("no syscall instruction in the vdso"))?;
    let scratch = Scratch::map(
        &mut leader,
        pid,
        vec![(host_pid, pid)],
        instruction,
        HOME_SIGNAL,
        Some(zone.start),
        DATA,
    )?;
    let mut batch = Batch::new();
    // The kernel writes to the registered area at every return from preemption: once it is unmapped,
    // that is a SIGSEGV.
    let (address, length, signature) = rseq;
    if length != 0 {
        batch.push(calls::Rseq {
            address: address.into(),
            length: length.into(),
            flags: 1u64.into(),
            signature: signature.into(),
        });
    }
    // glibc's: the kernel would walk and clear what is no longer there.
    batch.push(calls::SetRobustList {
        head: 0u64.into(),
        length: 24u64.into(),
    });
    batch.push(calls::SetTidAddress {
        address: 0u64.into(),
    });
    vdso.push_move(&mut batch, zone.parking());
    let end = zone.start + Zone::SIZE;
    for (start, end) in [(0, zone.start), (end, arch::TASK_SIZE)] {
        batch.push(calls::Munmap {
            address: start.into(),
            length: (end - start).into(),
        });
    }
    leader
        .run(&scratch, &batch)
        .doing(|| format!("stripping process {host_pid}"))?;
    Ok(Bare {
        host_pid,
        pid,
        threads: vec![leader],
        scratch,
        vdso: Vdso {
            start: zone.parking(),
            ..vdso.clone()
        },
        syscall_offset: instruction - vdso.start,
        zone,
    })
}

impl Bare {
    /// Ends batches with another signal: one that shall wait for the process would be taken for it.
    /// Handlers do not matter, for a signal that ends a batch is never delivered.
    pub fn set_home_signal(&mut self, signal: i32) {
        self.scratch.home_signal = signal;
    }

    /// Runs a batch in the leader.
    pub fn run(&mut self, batch: &Batch) -> Result<super::batch::Answers> {
        self.threads[0]
            .run(&self.scratch, batch)
            .doing(|| format!("building process {}", self.pid))
    }

    /// Runs a batch in thread number `index`.
    pub fn run_in(&mut self, index: usize, batch: &Batch) -> Result<super::batch::Answers> {
        self.threads[index]
            .run(&self.scratch, batch)
            .doing(|| format!("building thread {index} of process {}", self.pid))
    }

    /// Forks it: the child has PID `pid` in the innermost namespace and everything that this one
    /// has. `clone_parent` gives it this one's parent (CLONE_PARENT).
    pub fn fork(&mut self, pid: i32, exit_signal: i32, clone_parent: bool) -> Result<Bare> {
        let mut batch = Batch::new();
        let parent = if clone_parent {
            libc::CLONE_PARENT as u64
        } else {
            0
        };
        push_clone(&mut batch, parent, exit_signal, pid);
        self.run(&batch)
            .doing(|| format!("forking process {pid}"))?;
        let (host_pid, leader) = self.newborn()?;
        Ok(Bare {
            host_pid,
            pid,
            threads: vec![leader],
            scratch: self.scratch.inherited(host_pid, pid)?,
            vdso: self.vdso.clone(),
            syscall_offset: self.syscall_offset,
            zone: self.zone,
        })
    }

    /// Makes threads with these TIDs, all in one batch.
    pub fn spawn_threads(&mut self, tids: &[i32]) -> Result<()> {
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        // A batch of clones takes less than 512 bytes a thread.
        for some in tids.chunks(self.scratch.room() / 512) {
            let mut batch = Batch::new();
            for &tid in some {
                push_clone(&mut batch, flags as u64, 0, tid);
            }
            self.run(&batch)
                .doing(|| format!("making {} threads", some.len()))?;
            let mut born = Vec::new();
            for _ in some {
                born.push(self.newborn()?);
            }
            for (host_tid, thread) in born {
                let tid = own_pid(host_tid)
                    .ok_or_else(|| Error::bug(format!("thread {host_tid} has no number")))?;
                self.scratch.add_thread(host_tid, tid);
                self.threads.push(thread);
            }
        }
        // In the order asked for, whatever the order in which they reported.
        let order: Vec<i32> = std::iter::once(self.pid)
            .chain(tids.iter().copied())
            .collect();
        let place = |thread: &Stopped| {
            let own = self.scratch.tid_of(thread.host_tid()).unwrap_or(0);
            order
                .iter()
                .position(|tid| *tid == own)
                .unwrap_or(usize::MAX)
        };
        self.threads.sort_by_cached_key(place);
        Ok(())
    }

    /// Waits for a child or thread of ours to report its birth (CLONE_PTRACE: it is traced and stopped
    /// before its first instruction).
    fn newborn(&self) -> Result<(i32, Stopped)> {
        loop {
            match ptrace::wait(-1, true).map_err(gone(self.host_pid))? {
                Some((host_tid, Event::Stop { .. })) => {
                    let thread = Stopped {
                        host_tid,
                        own: ptrace::registers(host_tid).map_err(gone(host_tid))?,
                        mask: 0,
                        group_stop: None,
                        late_stop: None,
                        only_here: PhantomData,
                    };
                    return Ok((host_tid, thread));
                }
                Some((host_tid, Event::Gone(_))) if host_tid == self.host_pid => {
                    return Err(Cause::Gone { host_pid: host_tid }.into());
                }
                // A helper of ours that has ended, or a child of a dead stand-in.
                Some(_) => {}
                None => {
                    return Err(Cause::Gone {
                        host_pid: self.host_pid,
                    }
                    .into());
                }
            }
        }
    }

    /// Ends it with exit_group(2). Its parent is told, and can ask for the status.
    pub fn exit(self, status: i32) -> Result<()> {
        let mut batch = Batch::new();
        batch.push(calls::ExitGroup {
            status: status.into(),
        });
        self.end(|leader, scratch| leader.start(scratch, &batch))
    }

    /// Ends it by a signal, whose handler is the default. A core dump is never made.
    pub fn die(mut self, signal: i32) -> Result<()> {
        let mut batch = Batch::new();
        let action = batch.words(&[0; 4]);
        // SIGKILL has no handler to set.
        batch.push_tolerant(calls::RtSigaction {
            signal: signal.into(),
            action: action.into(),
            old: 0u64.into(),
        });
        let none = batch.words(&[0, 0]);
        batch.push(calls::Prlimit {
            pid: 0u64.into(),
            resource: libc::RLIMIT_CORE.into(),
            new: none.into(),
            old: 0u64.into(),
        });
        self.run(&batch)?;
        self.end(|leader, _| leader.cont_with(signal))
    }

    fn end(mut self, begin: impl FnOnce(&mut Stopped, &Scratch) -> Result<()>) -> Result<()> {
        let host_pid = self.host_pid;
        let leader = self
            .threads
            .first_mut()
            .ok_or_else(|| Error::bug("a process without threads"))?;
        begin(leader, &self.scratch)?;
        loop {
            match ptrace::wait(host_pid, true).map_err(gone(host_pid))? {
                Some((_, Event::Gone(_))) | None => return Ok(()),
                Some((_, Event::Signal(signal))) => {
                    ptrace::cont(host_pid, signal).map_err(gone(host_pid))?;
                }
                Some(_) => ptrace::cont(host_pid, 0).map_err(gone(host_pid))?,
            }
        }
    }

    /// Where things of ours lie in it.
    pub fn zone(&self) -> Zone {
        self.zone
    }

    /// Moves the vdso to its final place; `start` is where its first part belongs.
    pub fn place_vdso(&mut self, start: u64) -> Result<()> {
        let mut batch = Batch::new();
        self.vdso.push_move(&mut batch, start);
        self.run(&batch).doing(|| "moving the vdso to its place")?;
        self.vdso.start = start;
        Ok(())
    }

    /// Takes everything of ours away, by one call at the vdso's own `syscall` instruction. Afterwards
    /// no batch can run. The vdso must be in its place.
    pub fn remove_scratch(&mut self) -> Result<()> {
        let instruction = self.vdso.start + self.syscall_offset;
        self.threads[0]
            .call_at(
                instruction,
                libc::SYS_munmap,
                [self.zone.start, Zone::SIZE, 0, 0, 0, 0],
            )
            .map(drop)
            .doing(|| format!("removing the scratch area of process {}", self.pid))
    }
}

/// Calls without answers, run in as many batches as they need.
pub struct Feed<'a> {
    bare: &'a mut Bare,
    batch: Batch,
}

impl<'a> Feed<'a> {
    /// Calls for the leader.
    pub fn new(bare: &'a mut Bare) -> Self {
        Self {
            bare,
            batch: Batch::new(),
        }
    }

    /// Adds what `fill` pushes, with at most `bytes` of data and a few calls, all in one batch.
    pub fn with(&mut self, bytes: usize, fill: impl FnOnce(&mut Batch)) -> Result<()> {
        if self.batch.size() + bytes + 2048 > self.bare.scratch.room() {
            self.run()?;
        }
        fill(&mut self.batch);
        Ok(())
    }

    /// Adds one call that must succeed.
    pub fn push<C: calls::Call>(&mut self, call: C) -> Result<()> {
        self.with(0, |batch| {
            batch.push(call);
        })
    }

    /// Fetches a descriptor of the conductor, which the bare process knows as `conductor` (a pidfd).
    pub fn fetch(&mut self, conductor: RemoteFd, fd: BorrowedFd<'_>) -> Result<RemoteFd> {
        self.run()?;
        let mut batch = Batch::new();
        let fetched = batch.push(calls::PidfdGetfd {
            pidfd: conductor.into(),
            fd: fd.as_raw_fd().into(),
        });
        Ok(self.bare.run(&batch)?.get(fetched))
    }

    /// Makes all that are left.
    pub fn run(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        self.bare.run(&batch).map(drop)
    }
}

/// Pushes a clone3 with one wanted PID; its child is traced from birth.
fn push_clone(batch: &mut Batch, flags: u64, exit_signal: i32, pid: i32) {
    // The address of the wanted PID is only known once the batch is laid out, so a word with it is
    // filled in by the layout: see `Batch::pointer`.
    let wanted = batch.bytes(&pid.to_le_bytes());
    let arguments = CloneArgs {
        flags: flags | libc::CLONE_PTRACE as u64,
        exit_signal: exit_signal as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    let data = batch.words(&arguments.words());
    batch.pointer(data, 8, wanted);
    batch.push(calls::Clone3 {
        arguments: data.into(),
        size: size_of::<CloneArgs>().into(),
    });
}

/// How a thread numbers itself: the last number of its NSpid line.
fn own_pid(host_tid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{host_tid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}
