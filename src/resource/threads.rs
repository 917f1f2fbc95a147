//! Threads: the processor's state, and what each thread has of its own in the kernel.

mod xstate;

pub use xstate::{check_components, held as xstate_components};

use super::{controls, credentials, scheduling, signals};
use crate::error::{Context, Refusals, Result};
use crate::image::process::{Registers, Thread};
use crate::proc::read::Process;
use crate::proc::status::Status;
use crate::sys::ptrace::{self, Queue, UserRegs};
use crate::sys::remote;
use crate::tracee::Stopped;
use crate::tracee::arch::restart;
use crate::tracee::batch::{Answer, Answers, Batch, Data};
use crate::tracee::calls;
use credentials::prctl;

const PR_GET_TID_ADDRESS: i32 = 40;

/// What a thread has to be asked about itself.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    rights: credentials::Ask,
    stack: Data,
    death_signal: Data,
    tid_address: (Answer<i32>, Data),
    timer_slack: Answer<i32>,
    controls: controls::Ask,
}

/// Pushes the questions.
pub fn ask(batch: &mut Batch) -> Ask {
    let rights = credentials::ask(batch);
    let stack = batch.space(24);
    batch.push(calls::Sigaltstack {
        stack: 0u64.into(),
        old: stack.into(),
    });
    let get = |batch: &mut Batch, option: i32| {
        let data = batch.space(8);
        let answer = batch.push_tolerant(calls::Prctl {
            option: option.into(),
            arg2: data.into(),
            arg3: 0u64.into(),
            arg4: 0u64.into(),
            arg5: 0u64.into(),
        });
        (answer, data)
    };
    Ask {
        rights,
        stack,
        death_signal: get(batch, libc::PR_GET_PDEATHSIG).1,
        tid_address: get(batch, PR_GET_TID_ADDRESS),
        timer_slack: batch.push_tolerant(prctl(libc::PR_GET_TIMERSLACK, 0, 0)),
        controls: controls::ask(batch),
    }
}

impl Ask {
    /// The thread, but for its seccomp filters.
    pub fn collect(
        &self,
        answers: &Answers,
        stopped: &Stopped,
        tid: i32,
        status: &Status,
        leader: i32,
    ) -> Result<Thread> {
        let host_tid = stopped.host_tid();
        let doing = || format!("asking about thread {tid}");
        let process = Process::new(leader).thread(host_tid);
        let (rseq, length, signature, _) = ptrace::rseq(host_tid).doing(doing)?;
        let mut scheduling = scheduling::collect(host_tid)?;
        scheduling.timer_slack = answers
            .result(self.timer_slack)
            .map_or(0, |slack| u64::from(slack.cast_unsigned()));
        let stack = answers.words(self.stack);
        let word = |at: usize| stack.get(at).copied().unwrap_or(0);
        let tid_address = match answers.result(self.tid_address.0) {
            Ok(_) => answers.words(self.tid_address.1),
            // A kernel without CONFIG_CHECKPOINT_RESTORE.
            Err(_) => Vec::new(),
        };
        Ok(Thread {
            tid,
            comm: status.name.as_slice().into(),
            registers: registers(leader, stopped.registers(), rseq),
            extended: xstate::collect(host_tid).doing(doing)?,
            blocked: stopped.signal_mask(),
            pending: signals::pending_of(host_tid, Queue::Thread, status.signal_pending)?,
            alternate_stack: (word(0), word(2), word(1) as u32),
            parent_death_signal: answers
                .words(self.death_signal)
                .first()
                .map_or(0, |signal| *signal as i32),
            clear_child_tid: tid_address.first().copied().unwrap_or(0),
            robust_list: ptrace::robust_list(host_tid).doing(doing)?,
            rseq: (rseq, length, signature),
            credentials: self.rights.collect(answers, status),
            scheduling,
            seccomp: Vec::new(),
            personality: process
                .text("personality")
                .ok()
                .and_then(|text| u32::from_str_radix(text.trim(), 16).ok())
                .unwrap_or(0),
            controls: self.controls.collect(answers, &process),
        })
    }

    /// Names what cannot be taken along of a thread that was collected.
    pub fn refuse(
        &self,
        answers: &Answers,
        thread: &Thread,
        object: &str,
        refusals: &mut Refusals,
    ) {
        self.controls.refuse(answers, object, refusals);
        xstate::refuse(&thread.extended, object, refusals);
    }
}

/// The registers as they are to be set in the restored thread.
///
/// - An interrupted call whose result is one of ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND stays as it
///   is: with orig_rax set too, the kernel decides on resuming, as it would have here.
/// - ERESTART_RESTARTBLOCK: what restart_syscall(2) needs is in the old kernel's task alone. The call is
///   made again, with the remaining time where the kernel has left it in memory.
/// - A thread inside a restartable sequence goes on at its abort address, as after any interruption:
///   rseq(2) clears the pointer that would tell the kernel.
fn registers(host_pid: i32, found: &UserRegs, rseq: u64) -> Registers {
    let mut own = *found;
    if own.orig_rax as i64 >= 0 && own.rax as i64 == restart::ERESTART_RESTARTBLOCK {
        restart_call(host_pid, &mut own);
    }
    if let Some(abort) = rseq_abort(host_pid, rseq, own.rip) {
        own.rip = abort;
    }
    to_record(&own)
}

/// Makes the registers those of a thread that is about to make the interrupted call.
fn restart_call(host_pid: i32, own: &mut UserRegs) {
    const NANOSLEEP: u64 = libc::SYS_nanosleep as u64;
    const CLOCK_NANOSLEEP: u64 = libc::SYS_clock_nanosleep as u64;
    const RESTART: u64 = libc::SYS_restart_syscall as u64;
    let number = match own.orig_rax {
        RESTART => match interrupted_call(host_pid, own) {
            Some(number) => number,
            None => {
                // As after a signal: a program has to expect it.
                own.rax = (-i64::from(libc::EINTR)) as u64;
                own.orig_rax = u64::MAX;
                return;
            }
        },
        number => number,
    };
    match number {
        // The kernel has stored the remaining time there (kernel/time/hrtimer.c, nanosleep_copyout).
        NANOSLEEP if own.rsi != 0 => own.rdi = own.rsi,
        CLOCK_NANOSLEEP if own.r10 != 0 => own.rdx = own.r10,
        _ => {}
    }
    own.rax = number;
    own.rip = own.rip.wrapping_sub(2);
    own.orig_rax = u64::MAX;
}

/// A call that was restarted before shows restart_syscall's number. Which one it was stands in the code
/// in front of its `syscall` instruction (`mov eax, 35`), else in its arguments.
fn interrupted_call(host_pid: i32, own: &UserRegs) -> Option<u64> {
    const MOV_EAX: u8 = 0xb8;
    const KNOWN: [i64; 4] = [
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_poll,
        libc::SYS_futex,
    ];
    let mut code = [0; 32];
    let start = own.rip.wrapping_sub(2 + code.len() as u64);
    if remote::read(host_pid, start, &mut code) == Ok(code.len()) {
        let found = code.windows(5).rev().find_map(|window| {
            let number = u32::from_le_bytes([window[1], window[2], window[3], window[4]]);
            let known = KNOWN.contains(&i64::from(number));
            (window[0] == MOV_EAX && known).then_some(u64::from(number))
        });
        if found.is_some() {
            return found;
        }
    }
    // The address space starts above all small numbers.
    let is_pointer = |word: u64| word >= 0x1000;
    let number = if !is_pointer(own.rdi) && own.rsi <= 1 && is_pointer(own.rdx) {
        libc::SYS_clock_nanosleep
    } else if is_pointer(own.rdi) && is_futex_wait(own.rsi) && is_pointer(own.r10) {
        libc::SYS_futex
    } else if is_pointer(own.rdi) && (own.rsi == 0 || is_pointer(own.rsi)) {
        libc::SYS_nanosleep
    } else if own.rsi < 0x10_0000 {
        libc::SYS_poll
    } else {
        return None;
    };
    Some(number as u64)
}

fn is_futex_wait(operation: u64) -> bool {
    let command = operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u64;
    command == libc::FUTEX_WAIT as u64 || command == libc::FUTEX_WAIT_BITSET as u64
}

/// Where a thread goes on that was interrupted in a restartable sequence; `struct rseq_cs` of
/// `<linux/rseq.h>`.
fn rseq_abort(host_pid: i32, rseq: u64, rip: u64) -> Option<u64> {
    const CS_OFFSET: u64 = 8;
    let word = |address: u64| {
        let mut bytes = [0; 8];
        (remote::read(host_pid, address, &mut bytes) == Ok(8)).then(|| u64::from_le_bytes(bytes))
    };
    if rseq == 0 {
        return None;
    }
    let section = word(rseq + CS_OFFSET).filter(|section| *section != 0)?;
    let (start, length, abort) = (word(section + 8)?, word(section + 16)?, word(section + 24)?);
    (rip.wrapping_sub(start) < length).then_some(abort)
}

fn to_record(own: &UserRegs) -> Registers {
    Registers {
        rax: own.rax,
        rbx: own.rbx,
        rcx: own.rcx,
        rdx: own.rdx,
        rsi: own.rsi,
        rdi: own.rdi,
        rbp: own.rbp,
        rsp: own.rsp,
        r8: own.r8,
        r9: own.r9,
        r10: own.r10,
        r11: own.r11,
        r12: own.r12,
        r13: own.r13,
        r14: own.r14,
        r15: own.r15,
        rip: own.rip,
        rflags: own.eflags,
        orig_rax: own.orig_rax,
        cs: own.cs,
        ss: own.ss,
        ds: own.ds,
        es: own.es,
        fs: own.fs,
        gs: own.gs,
        fs_base: own.fs_base,
        gs_base: own.gs_base,
    }
}

fn from_record(record: &Registers, base: &UserRegs) -> UserRegs {
    let mut own = *base;
    own.rax = record.rax;
    own.rbx = record.rbx;
    own.rcx = record.rcx;
    own.rdx = record.rdx;
    own.rsi = record.rsi;
    own.rdi = record.rdi;
    own.rbp = record.rbp;
    own.rsp = record.rsp;
    own.r8 = record.r8;
    own.r9 = record.r9;
    own.r10 = record.r10;
    own.r11 = record.r11;
    own.r12 = record.r12;
    own.r13 = record.r13;
    own.r14 = record.r14;
    own.r15 = record.r15;
    own.rip = record.rip;
    own.eflags = record.rflags;
    own.orig_rax = record.orig_rax;
    own.cs = record.cs;
    own.ss = record.ss;
    own.ds = record.ds;
    own.es = record.es;
    own.fs = record.fs;
    own.gs = record.gs;
    own.fs_base = record.fs_base;
    own.gs_base = record.gs_base;
    own
}

/// Names what this host cannot give a thread: `held` are this process's capabilities.
pub fn check(thread: &Thread, held: u64, who: &str, refusals: &mut Refusals) {
    check_components(&thread.extended, who, refusals);
    credentials::check(&thread.credentials, held, who, refusals);
    controls::check(&thread.controls, held, who, refusals);
    scheduling::check(&thread.scheduling, who, refusals);
}

/// What a thread of a bare process sets for itself. `pid` is its process. Its rights are set last, for
/// the rest may need the conductor's; `held` are those. Its seccomp filters come before this
/// ([`super::seccomp::rebuild_thread`]): installing them needs CAP_SYS_ADMIN or no_new_privs, and
/// being suspended by ptrace they see nothing of this.
pub fn rebuild(batch: &mut Batch, pid: i32, thread: &Thread, held: u64) {
    let mut name = thread.comm.as_bytes().to_vec();
    name.truncate(15);
    let name = batch.string(&name);
    batch.push(calls::Prctl {
        option: libc::PR_SET_NAME.into(),
        arg2: name.into(),
        arg3: 0u64.into(),
        arg4: 0u64.into(),
        arg5: 0u64.into(),
    });
    batch.push(calls::SetTidAddress {
        address: thread.clear_child_tid.into(),
    });
    batch.push(calls::SetRobustList {
        head: thread.robust_list.0.into(),
        length: thread.robust_list.1.into(),
    });
    let (address, length, signature) = thread.rseq;
    if address != 0 {
        batch.push(calls::Rseq {
            address: address.into(),
            length: length.into(),
            flags: 0u64.into(),
            signature: signature.into(),
        });
    }
    if thread.scheduling.timer_slack != 0 {
        batch.push_tolerant(prctl(
            libc::PR_SET_TIMERSLACK,
            thread.scheduling.timer_slack,
            0,
        ));
    }
    batch.push(calls::Personality {
        persona: thread.personality.into(),
    });
    signals::rebuild_thread(batch, pid, thread);
    controls::rebuild(batch, &thread.controls);
    credentials::rebuild(batch, &thread.credentials, held);
    // Changed rights clear it (kernel/cred.c, commit_creds).
    batch.push(prctl(
        libc::PR_SET_PDEATHSIG,
        u64::from(thread.parent_death_signal.cast_unsigned()),
        0,
    ));
}

/// Gives a built thread its processor state: what it goes on with when it is released.
pub fn finish(stopped: &mut Stopped, thread: &Thread) -> Result<()> {
    let host_tid = stopped.host_tid();
    let doing = || format!("giving thread {} its registers", thread.tid);
    xstate::rebuild(host_tid, &thread.extended).doing(doing)?;
    let registers = from_record(&thread.registers, stopped.registers());
    stopped.set_registers(registers);
    stopped.set_signal_mask(thread.blocked);
    stopped.put_back().doing(doing)
}
