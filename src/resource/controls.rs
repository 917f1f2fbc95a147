//! What single threads have told the kernel about themselves by prctl(2) and its kin.
//!
//! - [`ask`] pushes the questions, [`Ask::collect`] makes the record, [`Ask::refuse`] names what cannot
//!   be taken along.
//! - [`rebuild`] pushes the calls, while the thread still has the conductor's rights.
//!
//! A bare thread inherits the conductor's, so defaults are set too.

use super::credentials::prctl;
use crate::error::Refusals;
use crate::image::process::{Controls, MemoryPolicy, Speculation};
use crate::proc::read::Process;
use crate::tracee::batch::{Answer, Answers, Batch, Data};
use crate::tracee::calls;

const PR_GET_TSC: i32 = 25;
const PR_SET_TSC: i32 = 26;
const PR_MCE_KILL: i32 = 33;
const PR_MCE_KILL_GET: i32 = 34;
const PR_MCE_KILL_SET: u64 = 1;
const PR_GET_SPECULATION_CTRL: i32 = 52;
const PR_SET_SPECULATION_CTRL: i32 = 53;
const PR_SET_IO_FLUSHER: i32 = 57;
const PR_SCHED_CORE: i32 = 62;
const ARCH_GET_CPUID: i32 = 0x1011;
const ARCH_SHSTK_STATUS: i32 = 0x5005;

/// PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH.
const SPECULATIONS: u32 = 3;
/// PR_SPEC_PRCTL: the thread may choose.
const SPEC_PRCTL: u32 = 1;
/// What PR_SET_SPECULATION_CTRL takes: enable, disable, force-disable, disable-noexec.
const SPEC_STATES: u32 = 0b1_1110;
const SPEC_ENABLE: u32 = 1 << 1;

/// What PR_SET_IO_FLUSHER sets: PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE of `<linux/sched.h>`.
/// PR_GET_IO_FLUSHER needs CAP_SYS_RESOURCE; /proc tells everyone.
const IO_FLUSHER: u32 = 0x0008_0000 | 0x0010_0000;

/// Words of a set of NUMA nodes: the most that any kernel is built for.
const NODES: usize = 1024 / 64;

/// What a thread has to be asked.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    tsc: (Answer<i32>, Data),
    machine_check: Answer<i32>,
    speculation: [Answer<i32>; SPECULATIONS as usize],
    policy: (Answer<()>, Data, Data),
    cookie: (Answer<i32>, Data),
    cpuid: Answer<i32>,
    shadow_stack: (Answer<()>, Data),
}

/// Pushes the questions.
pub fn ask(batch: &mut Batch) -> Ask {
    let tsc = batch.space(8);
    let (mode, nodes) = (batch.space(8), batch.space(NODES * 8));
    let (cookie, shadow_stack) = (batch.space(8), batch.space(8));
    Ask {
        tsc: (
            batch.push_tolerant(calls::Prctl {
                arg2: tsc.into(),
                ..prctl(PR_GET_TSC, 0, 0)
            }),
            tsc,
        ),
        machine_check: batch.push_tolerant(prctl(PR_MCE_KILL_GET, 0, 0)),
        speculation: std::array::from_fn(|which| {
            batch.push_tolerant(prctl(PR_GET_SPECULATION_CTRL, which as u64, 0))
        }),
        policy: (
            batch.push_tolerant(calls::GetMempolicy {
                mode: mode.into(),
                nodes: nodes.into(),
                most: (NODES * 64).into(),
            }),
            mode,
            nodes,
        ),
        cookie: (
            // PR_SCHED_CORE_GET of this thread alone.
            batch.push_tolerant(calls::Prctl {
                arg5: cookie.into(),
                ..prctl(PR_SCHED_CORE, 0, 0)
            }),
            cookie,
        ),
        cpuid: batch.push_tolerant(calls::ArchGet {
            option: ARCH_GET_CPUID.into(),
            address: 0u64.into(),
        }),
        shadow_stack: (
            batch.push_tolerant(calls::ArchPrctl {
                option: ARCH_SHSTK_STATUS.into(),
                address: shadow_stack.into(),
            }),
            shadow_stack,
        ),
    }
}

fn first(answers: &Answers, data: Data) -> u64 {
    answers.words(data).first().copied().unwrap_or(0)
}

impl Ask {
    /// The record. `process` is the thread in /proc.
    pub fn collect(&self, answers: &Answers, process: &Process) -> Controls {
        let mut speculation = Vec::new();
        for (which, answer) in (0..).zip(self.speculation) {
            let state = answers.result(answer).unwrap_or(0).cast_unsigned();
            // Without PR_SPEC_PRCTL the host decides alone; "enable" is how everyone begins.
            let chosen = state & SPEC_STATES;
            if state & SPEC_PRCTL != 0 && chosen != SPEC_ENABLE && chosen != 0 {
                speculation.push(Speculation {
                    which,
                    state: chosen,
                });
            }
        }
        let (answer, mode, nodes) = self.policy;
        let mode = match answers.result(answer) {
            Ok(()) => first(answers, mode) as u32,
            // A kernel without NUMA.
            Err(_) => 0,
        };
        let policy = (mode != 0).then(|| MemoryPolicy {
            mode,
            nodes: trimmed(answers.words(nodes)),
        });
        let flags = process.stat().map_or(0, |stat| stat.flags);
        Controls {
            tsc: match answers.result(self.tsc.0) {
                Ok(_) => first(answers, self.tsc.1) as u32,
                Err(_) => TSC_ENABLED,
            },
            machine_check: answers
                .result(self.machine_check)
                .map_or(MCE_DEFAULT, i32::cast_unsigned),
            io_flusher: flags & IO_FLUSHER == IO_FLUSHER,
            speculation,
            memory_policy: policy,
        }
    }

    /// Names what only the old kernel or processor could go on with.
    pub fn refuse(&self, answers: &Answers, object: &str, refusals: &mut Refusals) {
        let set = |(answer, data): (Answer<()>, Data)| {
            answers.result(answer).is_ok() && first(answers, data) != 0
        };
        if set(self.shadow_stack) {
            refusals.add(
                "E-SHADOW-STACK",
                object,
                "it uses a shadow stack (CET)",
                "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
            );
        }
        let (answer, data) = self.cookie;
        if answers.result(answer).is_ok() && first(answers, data) != 0 {
            refusals.add(
                "E-CORE-SCHEDULING",
                object,
                "it shares processor cores with chosen threads only (PR_SCHED_CORE)",
                "start it without core scheduling",
            );
        }
        if answers.result(self.cpuid) == Ok(0) {
            refusals.add(
                "E-CPUID-FAULTING",
                object,
                "its CPUID instructions fault (ARCH_SET_CPUID)",
                "such a program is run by a debugger or recorder: end that one first",
            );
        }
    }
}

/// PR_TSC_ENABLE.
const TSC_ENABLED: u32 = 1;
/// PR_MCE_KILL_DEFAULT.
const MCE_DEFAULT: u32 = 2;

fn trimmed(mut words: Vec<u64>) -> Vec<u64> {
    while words.last() == Some(&0) {
        words.pop();
    }
    words
}

/// Names what this process may not set.
pub fn check(controls: &Controls, held: u64, who: &str, refusals: &mut Refusals) {
    const CAP_SYS_RESOURCE: u32 = 24;
    if controls.io_flusher && held >> CAP_SYS_RESOURCE & 1 == 0 {
        refusals.add(
            "E-IO-FLUSHER",
            who,
            "it is marked as taking part in I/O (PR_SET_IO_FLUSHER), which needs CAP_SYS_RESOURCE",
            "restore it with that capability",
        );
    }
}

/// Pushes the calls.
pub fn rebuild(batch: &mut Batch, controls: &Controls) {
    batch.push_tolerant(prctl(PR_SET_TSC, controls.tsc.into(), 0));
    batch.push_tolerant(prctl(
        PR_MCE_KILL,
        PR_MCE_KILL_SET,
        controls.machine_check.into(),
    ));
    if controls.io_flusher {
        batch.push(prctl(PR_SET_IO_FLUSHER, 1, 0));
    }
    for one in &controls.speculation {
        // Refused by a processor that has no such weakness, or no means against it.
        batch.push_tolerant(prctl(
            PR_SET_SPECULATION_CTRL,
            one.which.into(),
            one.state.into(),
        ));
    }
    match &controls.memory_policy {
        Some(policy) => {
            let nodes = batch.words(&policy.nodes);
            // The kernel takes the highest node for excluded (mm/mempolicy.c, get_nodes).
            let most = policy.nodes.len() * 64 + 1;
            let nodes = match policy.nodes.is_empty() {
                true => (0u64.into(), 0u64.into()),
                false => (nodes.into(), most.into()),
            };
            batch.push(calls::SetMempolicy {
                mode: policy.mode.into(),
                nodes: nodes.0,
                most: nodes.1,
            });
        }
        None => {
            batch.push_tolerant(calls::SetMempolicy {
                mode: 0u64.into(),
                nodes: 0u64.into(),
                most: 0u64.into(),
            });
        }
    }
}
