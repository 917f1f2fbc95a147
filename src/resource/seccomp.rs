//! Seccomp filters, read by the tracer and installed again as the last of all.

use crate::error::{Context, Refusals, Result};
use crate::image::bytes::Bytes;
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
        found.reverse();
        Ok(found)
    }

    /// All filters.
    pub fn finish(self) -> Vec<Filter> {
        self.filters
    }
}

/// Installs a filter.
pub fn rebuild(batch: &mut Batch, filter: &Filter) {
    const SECCOMP_SET_MODE_FILTER: u64 = 1;
    let program = batch.bytes(&filter.program.0);
    // struct sock_fprog: how many instructions, and where.
    let arguments = batch.words(&[filter.program.0.len() as u64 / 8, 0]);
    batch.pointer(arguments, 1, program);
    batch.push(calls::Seccomp {
        operation: SECCOMP_SET_MODE_FILTER.into(),
        flags: filter.flags.into(),
        arguments: arguments.into(),
    });
}
