//! Threads: the processor's state, and what each thread has of its own in the kernel.

mod sleep;
mod xstate;

pub use sleep::find as sleep;
pub use xstate::{check_components, held as xstate_components};

use super::{controls, credentials, scheduling, signals};
use crate::error::{Context, Refusals, Result};
use crate::image::process::{Registers, Sleep, Thread};
use crate::proc::read::Process;
use crate::proc::status::Status;
use crate::sys::ptrace::{self, Queue, UserRegs};
use crate::tracee::Stopped;
use crate::tracee::bare::Bare;
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
    /// The thread, but for its seccomp filters. `sleep` is what [`sleep()`] has found.
    pub fn collect(
        &self,
        answers: &Answers,
        stopped: &Stopped,
        tid: i32,
        status: &Status,
        leader: i32,
        sleep: Option<Sleep>,
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
            registers: registers(leader, stopped.registers(), sleep),
            sleep,
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
/// - ERESTART_RESTARTBLOCK: see [`sleep`](mod@sleep).
fn registers(host_pid: i32, found: &UserRegs, sleep: Option<Sleep>) -> Registers {
    let mut own = *found;
    if sleep::is_interrupted(&own) {
        sleep::normalize(host_pid, &mut own, sleep);
    }
    to_record(&own)
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

/// Gives the threads of a built process their processor state, what they go on with when they are
/// released, and takes our pages away. Everything else is in place. The vdso is, too.
pub fn finish_all(bare: &mut Bare, threads: &[Thread]) -> Result<()> {
    let mut registers = Vec::with_capacity(threads.len());
    for (index, thread) in threads.iter().enumerate() {
        registers.push(match thread.sleep {
            Some(sleep) => sleep::rebuild(bare, index, &thread.registers, sleep)
                .doing(|| format!("finishing thread {}", thread.tid))?,
            None => thread.registers,
        });
    }
    bare.remove_scratch()?;
    for ((stopped, thread), registers) in bare.threads.iter_mut().zip(threads).zip(&registers) {
        give(stopped, thread, registers)?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) fn finish_in(bare: &mut Bare, index: usize, thread: &Thread) -> Result<()> {
    let registers = match thread.sleep {
        Some(sleep) => sleep::rebuild(bare, index, &thread.registers, sleep)?,
        None => thread.registers,
    };
    give(&mut bare.threads[index], thread, &registers)
}

fn give(stopped: &mut Stopped, thread: &Thread, registers: &Registers) -> Result<()> {
    let host_tid = stopped.host_tid();
    let doing = || format!("giving thread {} its registers", thread.tid);
    xstate::rebuild(host_tid, &thread.extended).doing(doing)?;
    let registers = from_record(registers, stopped.registers());
    stopped.set_registers(registers);
    stopped.set_signal_mask(thread.blocked);
    stopped.put_back().doing(doing)
}
