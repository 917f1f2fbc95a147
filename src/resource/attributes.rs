//! What a process has as a whole and no other room holds: dumpable, huge pages, OOM score, membarrier.

use super::credentials::prctl;
use crate::error::{Context, Refusals, Result};
use crate::image::process::Attributes;
use crate::proc::read::Process;
use crate::tracee::batch::{Answer, Answers, Batch};
use crate::tracee::calls;
use std::fs;

const PR_SET_THP_DISABLE: i32 = 41;
const PR_GET_THP_DISABLE: i32 = 42;
const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;
const ARCH_GET_XCOMP_PERM: i32 = 0x1022;
const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
/// Components that a process has to ask for: those of AMX.
const ON_REQUEST: std::ops::RangeInclusive<u32> = 17..=18;
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;

/// What a process has to be asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    dumpable: Answer<i32>,
    thp: Answer<i32>,
    mdwe: Answer<i32>,
    membarrier: Answer<i32>,
    merge: Answer<i32>,
    features: (Answer<()>, crate::tracee::batch::Data),
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
    let features = batch.space(8);
    Ask {
        merge: batch.push_tolerant(prctl(PR_GET_MEMORY_MERGE, 0, 0)),
        features: (
            batch.push_tolerant(calls::ArchPrctl {
                option: ARCH_GET_XCOMP_PERM.into(),
                address: features.into(),
            }),
            features,
        ),
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
            thp_disabled: flag(self.thp).cast_unsigned(),
            merge_memory: flag(self.merge) == 1,
            processor_features: self.features(answers),
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

    fn features(&self, answers: &Answers) -> u64 {
        let (answer, data) = self.features;
        let all = match answers.result(answer) {
            Ok(()) => answers.words(data).first().copied().unwrap_or(0),
            Err(_) => 0,
        };
        all & ON_REQUEST.fold(0, |mask, number| mask | 1 << number)
    }

    /// Whether it adopts orphans.
    pub fn subreaper(&self, answers: &Answers) -> bool {
        answers
            .words(self.subreaper)
            .first()
            .is_some_and(|word| *word as u32 != 0)
    }
}

/// Names what this process may not set: `held` are its capabilities.
pub fn check(wanted: &Attributes, held: u64, who: &str, refusals: &mut Refusals) -> Result<()> {
    const CAP_SYS_RESOURCE: u32 = 24;
    let own = Process::new(std::process::id().cast_signed()).oom_score_adj()?;
    if wanted.oom_score_adj < own && held >> CAP_SYS_RESOURCE & 1 == 0 {
        refusals.add(
            "E-OOM-SCORE",
            who,
            format!(
                "its oom_score_adj is {}; going below this command's, {own}, needs CAP_SYS_RESOURCE",
                wanted.oom_score_adj
            ),
            format!(
                "start this command with an oom_score_adj of {} or less",
                wanted.oom_score_adj
            ),
        );
    }
    Ok(())
}

/// Sets what the process has to set itself, before its rights are changed.
pub fn rebuild(batch: &mut Batch, wanted: &Attributes, subreaper: bool) {
    batch.push(prctl(libc::PR_SET_CHILD_SUBREAPER, u64::from(subreaper), 0));
    // A bare process has the conductor's, so that "no" is set as well.
    let disabled = wanted.thp_disabled & 1;
    let but = wanted.thp_disabled & !1;
    batch.push_tolerant(prctl(PR_SET_THP_DISABLE, disabled.into(), but.into()));
    // Merging is a matter of speed alone, and needs CAP_SYS_RESOURCE.
    batch.push_tolerant(prctl(PR_SET_MEMORY_MERGE, wanted.merge_memory.into(), 0));
    for number in ON_REQUEST.filter(|number| wanted.processor_features >> number & 1 == 1) {
        batch.push(calls::ArchPrctl {
            option: ARCH_REQ_XCOMP_PERM.into(),
            address: number.into(),
        });
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
