//! Seccomp filters, read by the tracer and installed again as the last of all.

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::bytes::Bytes;
use crate::image::process::Thread;
use crate::image::seccomp::Filter;
use crate::proc::status::Status;
use crate::sys::ptrace;
use crate::tracee::batch::Batch;
use crate::tracee::calls;
use std::collections::HashMap;

/// Filters that many threads share are recorded once.
#[derive(Debug, Default)]
pub struct Collector {
    filters: Vec<Filter>,
    known: HashMap<(u64, Vec<u8>), u32>,
}

const MODE_STRICT: u32 = 1;

impl Collector {
    /// The filters of a stopped thread, the first installed first.
    pub fn thread(
        &mut self,
        host_tid: i32,
        status: &Status,
        object: impl Fn() -> String,
        refusals: &mut Refusals,
    ) -> Result<Vec<u32>> {
        if status.seccomp == 0 {
            return Ok(Vec::new());
        }
        if status.seccomp == MODE_STRICT {
            refusals.add(
                "E-SECCOMP-STRICT",
                object(),
                "it is in seccomp's strict mode, in which it could not be asked anything",
                "let the program use filters instead",
            );
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let doing = || format!("reading the seccomp filters of thread {host_tid}");
        for index in 0.. {
            let Some(program) = ptrace::seccomp_filter(host_tid, index).doing(doing)? else {
                break;
            };
            if asks_a_listener(&program) {
                refusals.add(
                    "E-SECCOMP-LISTENER",
                    object(),
                    "its seccomp filter lets another process decide on system calls",
                    "start the container without seccomp.listenerPath",
                );
            }
            let flags = ptrace::seccomp_flags(host_tid, index as u64).doing(doing)?;
            let filters = &mut self.filters;
            let number = *self
                .known
                .entry((flags, program))
                .or_insert_with_key(|key| {
                    filters.push(Filter {
                        flags: key.0,
                        program: Bytes(key.1.clone()),
                    });
                    filters.len() as u32 - 1
                });
            found.push(number);
        }
        Ok(found)
    }

    /// All filters.
    pub fn finish(self) -> Vec<Filter> {
        self.filters
    }
}

/// Whether a classic BPF program can return SECCOMP_RET_USER_NOTIF. A program that computes what it
/// returns is not seen through; compilers of filters make none.
fn asks_a_listener(program: &[u8]) -> bool {
    const RETURN_CONSTANT: [u8; 2] = [6, 0];
    const USER_NOTIF: u32 = 0x7fc0_0000;
    const ACTION: u32 = 0xffff_0000;
    program.chunks_exact(8).any(|instruction| {
        let constant = [4, 5, 6, 7].map(|at| instruction[at]);
        instruction[..2] == RETURN_CONSTANT && u32::from_le_bytes(constant) & ACTION == USER_NOTIF
    })
}

/// How many filters, from the first on, all threads of a process have in common. The first thread
/// installs them for all, so that they are one chain as before: else no thread could ever again
/// give a filter to all others (seccomp(2), SECCOMP_FILTER_FLAG_TSYNC).
pub fn shared(threads: &[Thread]) -> usize {
    let Some((first, others)) = threads.split_first() else {
        return 0;
    };
    if others.is_empty() {
        return 0;
    }
    others.iter().fold(first.seccomp.len(), |most, thread| {
        let pairs = first.seccomp.iter().zip(&thread.seccomp);
        most.min(pairs.take_while(|(one, other)| one == other).count())
    })
}

/// Installs the filters of a thread, while it has the conductor's rights and its filters are suspended
/// by ptrace. `shared` is that of its process ([`shared`]); all threads exist, and the first comes
/// first.
pub fn rebuild_thread(
    batch: &mut Batch,
    thread: &Thread,
    is_first: bool,
    shared: usize,
    filters: &[Filter],
) -> Result<()> {
    const TSYNC: u64 = 1;
    const TSYNC_ESRCH: u64 = 1 << 4;
    for (place, number) in thread.seccomp.iter().enumerate() {
        let filter = filters.get(*number as usize).ok_or_else(|| {
            Error::coded(
                "E-IMAGE-SECCOMP",
                Exit::Image,
                format!("there is no seccomp filter {number}"),
                "the image is damaged",
            )
        })?;
        match (place < shared, is_first) {
            (true, true) => install(batch, filter, TSYNC | TSYNC_ESRCH),
            (true, false) => {}
            (false, _) => install(batch, filter, 0),
        }
    }
    Ok(())
}

/// SECCOMP_FILTER_FLAG_SPEC_ALLOW cannot be read. With it, the kernel leaves speculation alone; what the
/// thread had is rebuilt with its other controls.
fn install(batch: &mut Batch, filter: &Filter, more: u64) {
    const SPEC_ALLOW: u64 = 1 << 2;
    const SECCOMP_SET_MODE_FILTER: u64 = 1;
    let program = batch.bytes(&filter.program.0);
    // struct sock_fprog: how many instructions, and where.
    let arguments = batch.words(&[filter.program.0.len() as u64 / 8, 0]);
    batch.pointer(arguments, 1, program);
    batch.push(calls::Seccomp {
        operation: SECCOMP_SET_MODE_FILTER.into(),
        flags: (filter.flags | more | SPEC_ALLOW).into(),
        arguments: arguments.into(),
    });
}
