//! Seizing, stopping, registers, batches, bare processes to build in.
//!
//! ptrace answers only to the thread that seized, so [`Stopped`] is neither `Send` nor `Sync`.

pub mod arch;
pub mod bare;
pub mod batch;
pub mod calls;
pub mod nook;

use crate::error::{Cause, Context, Error, Exit, Result};
use crate::sys::ptrace::{self, Event, UserRegs};
use crate::sys::remote;
use batch::{Answers, Batch};
use nix::errno::Errno;
use nook::Foothold;
use std::fs::{File, OpenOptions};
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// A thread that was seized and asked to stop, but has not stopped yet.
#[derive(Debug)]
pub struct Seized {
    host_tid: i32,
    only_here: PhantomData<*const ()>,
}

/// How long a process of our own making has to stop.
const SOON: Duration = Duration::from_secs(10);

/// A thread in ptrace-stop. When it is dropped without [`Stopped::release`] it stays stopped until
/// this thread of the conductor ends.
#[derive(Debug)]
pub struct Stopped {
    host_tid: i32,
    /// Its registers when it stopped: what it is put back to.
    own: UserRegs,
    /// Its signal mask when it stopped.
    mask: u64,
    /// The signal of the group-stop that it was in.
    group_stop: Option<i32>,
    /// A stop signal came while a batch ran (it cannot be masked): sent again on release.
    late_stop: Option<i32>,
    only_here: PhantomData<*const ()>,
}

/// What became of a call that sleeps; see [`Stopped::run_asleep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asleep<T> {
    /// It did not sleep, or was over before it was interrupted: its result.
    Over(u64),
    /// It was interrupted, and what was seen meanwhile.
    Interrupted(T),
}

/// Whether a thread waits for something that a signal can interrupt.
fn is_asleep(host_tid: i32) -> Result<bool> {
    let path = format!("/proc/{host_tid}/stat");
    let text = std::fs::read(&path).doing(|| format!("reading {path}"))?;
    let state = text.iter().rposition(|&byte| byte == b')');
    Ok(state.is_some_and(|at| text.get(at + 2) == Some(&b'S')))
}

fn gone(host_tid: i32) -> impl Fn(Errno) -> Error {
    move |errno| match errno {
        Errno::ESRCH | Errno::ECHILD => Cause::Gone { host_pid: host_tid }.into(),
        errno => errno.into(),
    }
}

/// Attaches to a thread and asks it to stop. `suspend_seccomp` keeps its filters from seeing our calls.
/// EPERM when another tracer (a debugger) has it.
pub fn seize(host_tid: i32, suspend_seccomp: bool) -> Result<Seized> {
    let options = if suspend_seccomp {
        ptrace::options::SUSPEND_SECCOMP
    } else {
        0
    };
    seize_with(host_tid, options)
}

fn seize_with(host_tid: i32, options: u64) -> Result<Seized> {
    ptrace::seize(host_tid, options)
        .map_err(gone(host_tid))
        .doing(|| format!("seizing thread {host_tid}"))?;
    ptrace::interrupt(host_tid)
        .map_err(gone(host_tid))
        .doing(|| format!("stopping thread {host_tid}"))?;
    Ok(Seized {
        host_tid,
        only_here: PhantomData,
    })
}

impl Seized {
    /// Waits for the stop. A signal that was on its way is delivered first, as it would have been: its
    /// handler's frame is then part of what is found. E-STOP-TIMEOUT for a thread that does not stop, one
    /// in uninterruptible sleep (also the parent of a vfork).
    pub fn wait(&self, deadline: Instant) -> Result<Stopped> {
        let tid = self.host_tid;
        let mut pause = Duration::from_micros(5);
        let signal = loop {
            let event = ptrace::wait(tid, false)
                .map_err(gone(tid))
                .doing(|| format!("waiting for thread {tid}"))?;
            match event {
                Some((_, Event::Stop { signal })) => break signal,
                Some((_, Event::Signal(signal))) => ptrace::cont(tid, signal).map_err(gone(tid))?,
                Some((_, Event::Other(_))) => ptrace::cont(tid, 0).map_err(gone(tid))?,
                Some((_, Event::Gone(_))) => return Err(Cause::Gone { host_pid: tid }.into()),
                None if Instant::now() > deadline => {
                    return Err(Error::coded(
                        "E-STOP-TIMEOUT",
                        Exit::Refused,
                        format!("thread {tid} does not stop; it is in the kernel, uninterruptible"),
                        "wait for the file system or device that it waits for, and try again",
                    ));
                }
                None => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(1));
                }
            }
        };
        // A call of ours would become a SIGSYS, for which the kernel takes away the program's handler.
        if ptrace::dispatches_system_calls(tid) == Ok(true) {
            return Err(Error::coded(
                "E-SYSCALL-DISPATCH",
                Exit::Refused,
                format!(
                    "thread {tid} handles its system calls itself (PR_SET_SYSCALL_USER_DISPATCH)"
                ),
                "such a program (Wine, an emulator) cannot be asked about itself",
            ));
        }
        let mut stopped = Stopped::at(tid)?;
        stopped.group_stop = (signal != libc::SIGTRAP).then_some(signal);
        stopped.leave_sequence()?;
        Ok(stopped)
    }
}

impl Stopped {
    /// A thread that is known to be in ptrace-stop.
    fn at(host_tid: i32) -> Result<Self> {
        Ok(Self {
            host_tid,
            own: ptrace::registers(host_tid).map_err(gone(host_tid))?,
            mask: ptrace::signal_mask(host_tid).map_err(gone(host_tid))?,
            group_stop: None,
            late_stop: None,
            only_here: PhantomData,
        })
    }

    /// Moves a thread that was interrupted in a restartable sequence to its abort address: what the
    /// kernel would do when it goes on. But the kernel looks at the registers of that moment, which may
    /// be those of a batch; then it takes the sequence for left, and a thread that was put back into it
    /// would go on there as if nothing had happened. `struct rseq` and `struct rseq_cs` are in
    /// `<linux/rseq.h>`.
    pub(crate) fn leave_sequence(&mut self) -> Result<()> {
        const CS_OFFSET: u64 = 8;
        let tid = self.host_tid;
        let (area, ..) = match ptrace::rseq(tid) {
            Ok(found) => found,
            // A kernel without rseq.
            Err(Errno::EIO | Errno::EINVAL) => return Ok(()),
            Err(errno) => return Err(gone(tid)(errno)),
        };
        let words = |address: u64| {
            let mut bytes = [0; 32];
            let length = if address == area + CS_OFFSET { 8 } else { 32 };
            (remote::read(tid, address, &mut bytes[..length]) == Ok(length)).then(|| {
                let (words, _) = bytes.as_chunks::<8>();
                [words[0], words[1], words[2], words[3]].map(u64::from_le_bytes)
            })
        };
        if area == 0 {
            return Ok(());
        }
        let section = words(area + CS_OFFSET).map_or(0, |words| words[0]);
        if section != 0
            && let Some([_, start, length, abort]) = words(section)
            && self.own.rip.wrapping_sub(start) < length
        {
            self.own.rip = abort;
        }
        Ok(())
    }

    /// The thread, as this host numbers it.
    pub fn host_tid(&self) -> i32 {
        self.host_tid
    }

    /// The registers that it is put back to on release.
    pub fn registers(&self) -> &UserRegs {
        &self.own
    }

    /// Changes what it is put back to.
    pub fn set_registers(&mut self, registers: UserRegs) {
        self.own = registers;
    }

    /// Its signal mask, bit n-1 for signal n.
    pub fn signal_mask(&self) -> u64 {
        self.mask
    }

    /// Changes the mask that it is given on release.
    pub fn set_signal_mask(&mut self, mask: u64) {
        self.mask = mask;
    }

    /// The stop signal of the group-stop it was found in.
    pub fn group_stop(&self) -> Option<i32> {
        self.group_stop
    }

    /// Makes one system call at `instruction`, where a `syscall` instruction of the thread's own
    /// lies. All signals are masked meanwhile.
    fn call_at(&mut self, instruction: u64, number: i64, arguments: [u64; 6]) -> Result<u64> {
        let tid = self.host_tid;
        ptrace::set_signal_mask(tid, u64::MAX).map_err(gone(tid))?;
        let registers = arch::call_registers(&self.own, instruction, number as u64, arguments);
        ptrace::set_registers(tid, &registers).map_err(gone(tid))?;
        loop {
            ptrace::singlestep(tid).map_err(gone(tid))?;
            match ptrace::wait(tid, true).map_err(gone(tid))? {
                Some((_, Event::Signal(libc::SIGTRAP))) => break,
                Some((_, Event::Signal(signal))) => self.late_stop = Some(signal),
                Some((_, Event::Gone(_))) | None => {
                    return Err(Cause::Gone { host_pid: tid }.into());
                }
                // A group-stop or an event of someone else's making: step on.
                Some(_) => {}
            }
        }
        let result = ptrace::registers(tid).map_err(gone(tid))?.rax;
        match result as i64 {
            error @ -4095..=-1 => Err(Errno::from_raw(-error as i32).into()),
            _ => Ok(result),
        }
    }

    /// Makes one system call in a nook. Whenever the conductor is killed, the thread finds home.
    fn call_in_nook(
        &mut self,
        nook: u64,
        scratch: &Scratch,
        number: i64,
        arguments: [u64; 6],
    ) -> Result<u64> {
        let tid = self.host_tid;
        let own_tid = scratch.tid_of(tid)?;
        let signal = scratch.home_signal;
        let mut bytes = arch::single_code().to_vec();
        let home = arch::home_block(scratch.pid, own_tid, signal, self.mask, &self.own);
        bytes.extend_from_slice(&home);
        bytes.truncate(arch::single_size());
        scratch
            .memory
            .write_all_at(&bytes, nook)
            .doing(|| format!("writing a call into thread {tid}"))?;
        let registers = arch::call_registers(&self.own, nook, number as u64, arguments);
        self.set_off(&registers, signal)?;
        ptrace::cont(tid, 0).map_err(gone(tid))?;
        let end = nook + arch::single_home_offset();
        let at_end = loop {
            let Some((_, event)) = ptrace::wait(tid, true).map_err(gone(tid))? else {
                return Err(Cause::Gone { host_pid: tid }.into());
            };
            if let Some(at_end) = self.home_at(end, signal, event)? {
                break at_end;
            }
            ptrace::cont(tid, 0).map_err(gone(tid))?;
        };
        match at_end.r12 as i64 {
            error @ -4095..=-1 => Err(Errno::from_raw(-error as i32).into()),
            _ => Ok(at_end.r12),
        }
    }

    /// Sends the thread to code of ours with all signals masked but the home signal. The registers come
    /// first: killed in between, the conductor leaves a thread that finds home with its own mask.
    fn set_off(&self, registers: &UserRegs, home_signal: i32) -> Result<()> {
        let mask = !(1u64 << (home_signal - 1));
        ptrace::set_registers(self.host_tid, registers)
            .and_then(|()| ptrace::set_signal_mask(self.host_tid, mask))
            .map_err(gone(self.host_tid))
    }

    /// Runs a batch in `scratch` and brings back its answers; the first result that its entry does not
    /// allow is the error. Signals are masked meanwhile, but for the home signal. The thread is put back
    /// at once: the home block will be another thread's.
    pub fn run(&mut self, scratch: &Scratch, batch: &Batch) -> Result<Answers> {
        if batch.is_empty() {
            return Ok(Answers::new(batch, Vec::new()));
        }
        let length = self.load(scratch, batch)?;
        ptrace::cont(self.host_tid, 0).map_err(gone(self.host_tid))?;
        let at_end = self.wait_for_home(scratch)?;
        self.put_back()?;
        self.answers(scratch, batch, length, &at_end)
    }

    /// Begins a batch from which there is no way back: its last call ends the thread.
    fn start(&mut self, scratch: &Scratch, batch: &Batch) -> Result<()> {
        self.load(scratch, batch)?;
        self.cont_with(0)
    }

    /// Lets the thread go on with a signal, which would only wait if it were blocked.
    fn cont_with(&mut self, signal: i32) -> Result<()> {
        if signal != 0 {
            ptrace::set_signal_mask(self.host_tid, 0).map_err(gone(self.host_tid))?;
        }
        ptrace::cont(self.host_tid, signal).map_err(gone(self.host_tid))
    }

    /// Puts a batch in place: how many bytes its entries and their data take.
    fn load(&mut self, scratch: &Scratch, batch: &Batch) -> Result<usize> {
        let tid = self.host_tid;
        if batch.size() as u64 > scratch.data_size {
            return Err(Error::bug(format!("a batch of {} bytes", batch.size())));
        }
        let base = scratch.code + arch::DATA_OFFSET;
        let mut area = arch::home_block(
            scratch.pid,
            scratch.tid_of(tid)?,
            scratch.home_signal,
            self.mask,
            &self.own,
        )
        .to_vec();
        area.extend_from_slice(&batch.lay_out(base));
        scratch
            .memory
            .write_all_at(&area, base)
            .doing(|| "writing a batch")?;
        let entries = base + arch::HOME_SIZE as u64;
        let registers = arch::batch_registers(&self.own, scratch.code, entries, batch.len() as u64);
        self.set_off(&registers, scratch.home_signal)?;
        Ok(area.len() - arch::HOME_SIZE)
    }

    fn answers(
        &self,
        scratch: &Scratch,
        batch: &Batch,
        length: usize,
        at_end: &UserRegs,
    ) -> Result<Answers> {
        let tid = self.host_tid;
        let entries = scratch.code + arch::DATA_OFFSET + arch::HOME_SIZE as u64;
        let done = (at_end.r12 - entries) as usize / (arch::ENTRY_WORDS * 8);
        let mut bytes = vec![0; length];
        scratch
            .memory
            .read_exact_at(&mut bytes, entries)
            .doing(|| "reading the answers of a batch")?;
        let answers = Answers::new(batch, bytes);
        if done < batch.len() {
            let errno = Errno::from_raw(-(answers.word(done) as i64) as i32);
            return Err(Error::from(errno)
                .doing(batch.describe(done, errno))
                .doing(format!("in thread {tid}")));
        }
        Ok(answers)
    }

    /// Runs a batch of one call that sleeps. Once the thread is asleep, `meanwhile` is run, and then the
    /// call is interrupted. The kernel now holds what it needs to go on with it: a thread that is released
    /// with -ERESTART_RESTARTBLOCK in its registers does so. Nothing that clears that may run in the
    /// thread until then: no other call that sleeps.
    pub fn run_asleep<T>(
        &mut self,
        scratch: &Scratch,
        batch: &Batch,
        meanwhile: impl FnOnce() -> T,
    ) -> Result<Asleep<T>> {
        let tid = self.host_tid;
        let length = self.load(scratch, batch)?;
        ptrace::cont(tid, 0).map_err(gone(tid))?;
        let deadline = Instant::now() + SOON;
        loop {
            match ptrace::wait(tid, false).map_err(gone(tid))? {
                Some((_, event)) => match self.home(scratch, event)? {
                    Some(at_end) => {
                        self.put_back()?;
                        let answers = self.answers(scratch, batch, length, &at_end)?;
                        return Ok(Asleep::Over(answers.word(0)));
                    }
                    None => ptrace::cont(tid, 0).map_err(gone(tid))?,
                },
                None if is_asleep(tid)? => break,
                None if Instant::now() > deadline => {
                    return Err(Error::bug(format!("thread {tid} does not go to sleep")));
                }
                None => std::thread::sleep(Duration::from_micros(20)),
            }
        }
        let seen = meanwhile();
        ptrace::interrupt(tid).map_err(gone(tid))?;
        loop {
            let Some((_, event)) = ptrace::wait(tid, true).map_err(gone(tid))? else {
                return Err(Cause::Gone { host_pid: tid }.into());
            };
            let registers = match event {
                Event::Stop { .. } => ptrace::registers(tid).map_err(gone(tid))?,
                event => match self.home(scratch, event)? {
                    Some(at_end) => {
                        self.put_back()?;
                        let answers = self.answers(scratch, batch, length, &at_end)?;
                        return Ok(Asleep::Over(answers.word(0)));
                    }
                    None => {
                        ptrace::cont(tid, 0).map_err(gone(tid))?;
                        continue;
                    }
                },
            };
            let in_call = registers.orig_rax as i64 >= 0;
            if in_call && registers.rax as i64 == arch::restart::ERESTART_RESTARTBLOCK {
                self.put_back()?;
                return Ok(Asleep::Interrupted(seen));
            }
            ptrace::cont(tid, 0).map_err(gone(tid))?;
        }
    }

    /// Waits until a batch has stopped with the home signal at the end of the loop.
    fn wait_for_home(&mut self, scratch: &Scratch) -> Result<UserRegs> {
        let tid = self.host_tid;
        loop {
            let Some((_, event)) = ptrace::wait(tid, true).map_err(gone(tid))? else {
                return Err(Cause::Gone { host_pid: tid }.into());
            };
            if let Some(at_end) = self.home(scratch, event)? {
                return Ok(at_end);
            }
            ptrace::cont(tid, 0).map_err(gone(tid))?;
        }
    }

    /// The registers at the end of the loop, if the event says that the thread is there.
    fn home(&mut self, scratch: &Scratch, event: Event) -> Result<Option<UserRegs>> {
        let end = scratch.code + arch::home_offset();
        self.home_at(end, scratch.home_signal, event)
    }

    /// The same for any code of ours that ends at `end`.
    fn home_at(&mut self, end: u64, home_signal: i32, event: Event) -> Result<Option<UserRegs>> {
        let tid = self.host_tid;
        let signal = match event {
            Event::Signal(signal) => signal,
            Event::Gone(_) => return Err(Cause::Gone { host_pid: tid }.into()),
            Event::Stop { .. } | Event::Other(_) => return Ok(None),
        };
        let registers = ptrace::registers(tid).map_err(gone(tid))?;
        // Only stop signals cannot be masked; a home signal from elsewhere is one that this process
        // ignores. Anything else is a fault in the loop.
        match signal {
            signal if signal == home_signal => Ok((registers.rip == end).then_some(registers)),
            libc::SIGSTOP => {
                self.late_stop = Some(signal);
                Ok(None)
            }
            signal => Err(Error::bug(format!(
                "signal {signal} at {:#x} in a batch of thread {tid}",
                registers.rip
            ))),
        }
    }

    /// Gives the thread its mask and registers back and lets it go. With the registers, orig_rax comes
    /// back too: the kernel then restarts an interrupted call by itself, and one whose result was a
    /// pending signal's doing is decided as it would have been.
    pub fn release(self) -> Result<()> {
        let tid = self.host_tid;
        self.put_back()?;
        ptrace::detach(tid, self.late_stop.unwrap_or(0))
            .map_err(gone(tid))
            .doing(|| format!("letting thread {tid} go"))
    }

    /// Gives the thread its mask and registers back; it stays stopped. The mask comes first: killed in
    /// between, the conductor leaves a thread that is still on its way home.
    pub fn put_back(&self) -> Result<()> {
        let tid = self.host_tid;
        ptrace::set_signal_mask(tid, self.mask)
            .and_then(|()| ptrace::set_registers(tid, &self.own))
            .map_err(gone(tid))
            .doing(|| format!("giving thread {tid} its registers back"))
    }
}

/// The pages of ours in a process: the loop, the home block, room for batches.
#[derive(Debug)]
pub struct Scratch {
    /// The process, as it numbers itself.
    pid: i32,
    /// (host, own) numbers of its threads.
    tids: Vec<(i32, i32)>,
    code: u64,
    data_size: u64,
    home_signal: i32,
    /// How it is entered and left.
    foothold: Foothold,
    memory: File,
}

/// Data bytes of a scratch area in a process that is being checkpointed: some 450 calls.
pub const SCRATCH_DATA: u64 = 64 << 10;

/// Opens `/proc/PID/mem`: it ignores protections, so that a page can be executable and not writable.
pub fn memory_of(host_pid: i32) -> Result<File> {
    let path = format!("/proc/{host_pid}/mem");
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .doing(|| format!("opening {path}"))
}

/// The address of a `syscall` instruction in the code between `start` and `end` of a process.
pub fn find_syscall(host_pid: i32, start: u64, end: u64) -> Result<Option<u64>> {
    let mut code = vec![
        0;
        usize::try_from(end.saturating_sub(start))
            .unwrap_or(0)
            .min(16 << 20)
    ];
    let read = remote::read(host_pid, start, &mut code)
        .doing(|| format!("looking for a syscall instruction in process {host_pid}"))?;
    Ok(arch::find_syscall(&code[..read]).map(|offset| start + offset as u64))
}

/// The signals that do nothing to a process that has no handler for them; `<linux/signal.h>`,
/// SIG_KERNEL_IGNORE_MASK.
const HOME_SIGNALS: [i32; 4] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD, libc::SIGCONT];

/// The signal that ends a batch: one that is ignored should the conductor be gone by then. Go catches
/// every signal; then it is SIGURG, which Go's runtime takes for a spurious preemption request.
/// `caught` and `pending` have bit n-1 for signal n.
pub fn home_signal(caught: u64, pending: u64) -> i32 {
    let free = |avoid: u64| {
        HOME_SIGNALS
            .into_iter()
            .find(|signal| avoid >> (signal - 1) & 1 == 0)
    };
    free(caught | pending)
        .or_else(|| free(caught))
        .unwrap_or(libc::SIGURG)
}

impl Scratch {
    /// Maps a scratch area of `data_size` bytes of room in the process of `leader`, by single calls from
    /// `foothold`; at `at` when given, else where the kernel likes. Never both writable and
    /// executable at a time, so that PR_SET_MDWE does not refuse it.
    pub fn map(
        leader: &mut Stopped,
        pid: i32,
        tids: Vec<(i32, i32)>,
        foothold: impl Into<Foothold>,
        home_signal: i32,
        at: Option<u64>,
        data_size: u64,
    ) -> Result<Self> {
        let length = arch::DATA_OFFSET + data_size;
        let fixed = if at.is_some() {
            libc::MAP_FIXED_NOREPLACE
        } else {
            0
        };
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed) as u64;
        let readable = libc::PROT_READ as u64;
        let mut scratch = Self {
            pid,
            tids,
            code: 0,
            data_size,
            home_signal,
            foothold: foothold.into(),
            memory: memory_of(leader.host_tid)?,
        };
        let wanted = [
            at.unwrap_or(0),
            length,
            readable | libc::PROT_EXEC as u64,
            flags,
            u64::MAX,
            0,
        ];
        scratch.code = scratch
            .call(leader, libc::SYS_mmap, wanted)
            .doing(|| format!("mapping a scratch area in process {}", leader.host_tid))?;
        let data = [
            scratch.code + arch::DATA_OFFSET,
            data_size,
            readable | libc::PROT_WRITE as u64,
            0,
            0,
            0,
        ];
        let filled = scratch
            .call(leader, libc::SYS_mprotect, data)
            .map(drop)
            .and_then(|()| Ok(scratch.memory.write_all_at(arch::code(), scratch.code)?))
            .doing(|| format!("filling the scratch area of process {}", leader.host_tid));
        match filled {
            Ok(()) => Ok(scratch),
            Err(error) => Err(error.and_cleanup(scratch.unmap(leader))),
        }
    }

    /// A single call, from the foothold.
    fn call(&self, leader: &mut Stopped, number: i64, arguments: [u64; 6]) -> Result<u64> {
        match self.foothold {
            Foothold::Instruction(at) => leader.call_at(at, number, arguments),
            Foothold::Nook(at) => leader.call_in_nook(at, self, number, arguments),
        }
    }

    /// Takes the area away again. The leader is then put back, and where it was sent from is as it was.
    pub fn unmap(&mut self, leader: &mut Stopped) -> Result<()> {
        let whole = [self.code, arch::DATA_OFFSET + self.data_size, 0, 0, 0, 0];
        let unmapped = self.call(leader, libc::SYS_munmap, whole).map(drop);
        unmapped
            .and_then(|()| leader.put_back())
            .and_then(|()| self.forget_nook())
            .doing(|| format!("removing the scratch area of process {}", leader.host_tid))
    }

    /// Nobody is in the nook any more.
    fn forget_nook(&self) -> Result<()> {
        if let Foothold::Nook(at) = self.foothold {
            self.memory
                .write_all_at(&vec![0; arch::single_size()], at)?;
        }
        Ok(())
    }

    /// The same area as a fork of this process has it.
    fn inherited(&self, host_pid: i32, pid: i32) -> Result<Self> {
        Ok(Self {
            pid,
            tids: vec![(host_pid, pid)],
            memory: memory_of(host_pid)?,
            code: self.code,
            data_size: self.data_size,
            home_signal: self.home_signal,
            foothold: self.foothold,
        })
    }

    /// Where it starts and ends.
    pub fn range(&self) -> (u64, u64) {
        (self.code, self.code + arch::DATA_OFFSET + self.data_size)
    }

    /// Bytes that a batch may take, [`Batch::size`].
    pub fn room(&self) -> usize {
        self.data_size as usize
    }

    /// The memory of the process, all of it, whatever the protections.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// Names a thread that was made or found later.
    pub fn add_thread(&mut self, host_tid: i32, tid: i32) {
        self.tids.push((host_tid, tid));
    }

    fn tid_of(&self, host_tid: i32) -> Result<i32> {
        self.tids
            .iter()
            .find(|(host, _)| *host == host_tid)
            .map(|(_, own)| *own)
            .ok_or_else(|| Error::bug(format!("thread {host_tid} is not of this process")))
    }
}

#[cfg(test)]
mod tests;
