//! What a process has as a whole and no other room holds: dumpable, huge pages, OOM score, membarrier.

use super::credentials::prctl;
use crate::error::{Context, Result};
use crate::image::process::Attributes;
use crate::proc::read::Process;
use crate::tracee::batch::{Answer, Answers, Batch};
use crate::tracee::calls;
use std::fs;

const PR_SET_THP_DISABLE: i32 = 41;
const PR_GET_THP_DISABLE: i32 = 42;
const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;

/// What a process has to be asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    dumpable: Answer<i32>,
    thp: Answer<i32>,
    mdwe: Answer<i32>,
    membarrier: Answer<i32>,
    subreaper: crate::tracee::batch::Data,
}

/// Pushes the questions.
pub fn ask(batch: &mut Batch) -> Ask {
    let subreaper = batch.space(8);
    batch.push(calls::Prctl {
        option: libc::PR_GET_CHILD_SUBREAPER.into(),
        arg2: subreaper.into(),
        arg3: 0u64.into(),
        arg4: 0u64.into(),
        arg5: 0u64.into(),
    });
    Ask {
        dumpable: batch.push(prctl(libc::PR_GET_DUMPABLE, 0, 0)),
        thp: batch.push_tolerant(prctl(PR_GET_THP_DISABLE, 0, 0)),
        mdwe: batch.push_tolerant(prctl(PR_GET_MDWE, 0, 0)),
        membarrier: batch.push_tolerant(calls::Membarrier {
            command: MEMBARRIER_CMD_GET_REGISTRATIONS.into(),
            flags: 0u64.into(),
            cpu: 0u64.into(),
        }),
        subreaper,
    }
}

impl Ask {
    /// The attributes.
    pub fn collect(&self, answers: &Answers, host_pid: i32) -> Result<Attributes> {
        let process = Process::new(host_pid);
        let flag = |answer| answers.result(answer).unwrap_or(0);
        Ok(Attributes {
            dumpable: answers.get(self.dumpable),
            thp_disabled: flag(self.thp) & 1 != 0,
            memory_deny_write_execute: flag(self.mdwe).cast_unsigned(),
            oom_score_adj: process.oom_score_adj()?,
            coredump_filter: process
                .text("coredump_filter")
                .ok()
                .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
                .unwrap_or(0x33),
            membarrier: flag(self.membarrier).cast_unsigned(),
        })
    }

    /// Whether it adopts orphans.
    pub fn subreaper(&self, answers: &Answers) -> bool {
        answers
            .words(self.subreaper)
            .first()
            .is_some_and(|word| *word as u32 != 0)
    }
}

/// Sets what the process has to set itself, before its rights are changed.
pub fn rebuild(batch: &mut Batch, wanted: &Attributes, subreaper: bool) {
    batch.push(prctl(libc::PR_SET_CHILD_SUBREAPER, u64::from(subreaper), 0));
    if wanted.thp_disabled {
        batch.push(prctl(PR_SET_THP_DISABLE, 1, 0));
    }
    // One bit is one command, from 1 << 2 (GLOBAL_EXPEDITED) to 1 << 8 (PRIVATE_EXPEDITED_RSEQ).
    for command in (2..=8).map(|bit| 1u32 << bit) {
        if wanted.membarrier & command != 0 {
            batch.push(calls::Membarrier {
                command: command.into(),
                flags: 0u64.into(),
                cpu: 0u64.into(),
            });
        }
    }
}

/// Sets what changed rights have cleared, and what allows no more mappings.
pub fn rebuild_last(batch: &mut Batch, wanted: &Attributes) {
    // 2 (SUID_DUMP_ROOT) cannot be asked for; the kernel sets it where fs.suid_dumpable says so.
    if wanted.dumpable == 0 || wanted.dumpable == 1 {
        batch.push(prctl(
            libc::PR_SET_DUMPABLE,
            u64::from(wanted.dumpable.cast_unsigned()),
            0,
        ));
    }
    if wanted.memory_deny_write_execute != 0 {
        batch.push(prctl(
            PR_SET_MDWE,
            wanted.memory_deny_write_execute.into(),
            0,
        ));
    }
}

/// Sets what is a file of /proc. Lowering the OOM score below what it ever was needs CAP_SYS_RESOURCE.
pub fn rebuild_outside(host_pid: i32, wanted: &Attributes) -> Result<()> {
    let process = Process::new(host_pid);
    if process.oom_score_adj()? != wanted.oom_score_adj {
        let path = process.path("oom_score_adj");
        fs::write(&path, wanted.oom_score_adj.to_string())
            .doing(|| format!("writing {} to {}", wanted.oom_score_adj, path.display()))?;
    }
    let path = process.path("coredump_filter");
    // Absent where the kernel makes no core dumps.
    if path.exists() {
        fs::write(&path, format!("{:#x}", wanted.coredump_filter))
            .doing(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
