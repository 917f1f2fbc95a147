//! What the kernel will undo in semaphores when a process ends (SEM_UNDO).
//!
//! The kernel shows these adjustments to nobody, but it refuses an operation that would take one out of
//! its bounds (ERANGE), and it does all operations of one call or none. So the process makes calls that
//! move the adjustment by some T and then ask for what cannot be had at once: such a call fails with
//! EAGAIN where the adjustment stays within bounds and with ERANGE where it does not, and changes
//! neither value nor adjustment. Whether it is the one or the other for each T says what the adjustment
//! is; bisection finds it in at most 16 rounds, all semaphores side by side, two for the usual zero.

use crate::error::{Context, Refusals, Result};
use crate::image::namespaces::ipc::{Adjustment, Ipc, SemaphoreSet};
use crate::sys;
use crate::sys::child::Idle;
use crate::sys::kcmp;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::calls;
use nix::errno::Errno;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

/// Bounds of a semaphore's value and of an adjustment: SEMVMX, SEMAEM.
const MOST: i32 = 32767;
/// One more than the greatest move that is tried: no adjustment is below -32768.
const NEVER: i32 = 2 * MOST + 2;

/// Asks processes for their adjustments, all of them frozen.
#[derive(Debug)]
pub struct Asker {
    sets: Vec<SemaphoreSet>,
    without: Option<Idle>,
    asked: BTreeSet<i32>,
    found: Vec<Adjustment>,
}

/// One semaphore of one process; the answer lies between `low` and `high`.
#[derive(Debug)]
struct Search {
    set: i32,
    number: u16,
    value: u16,
    low: i32,
    high: i32,
}

impl Search {
    /// The next T to try. Zero is the first guess.
    fn middle(&self) -> i32 {
        match (self.low, self.high) {
            (1, NEVER) => MOST,
            (low, NEVER) if low == MOST + 1 => MOST + 1,
            (low, high) => i32::midpoint(low, high),
        }
    }
}

impl Asker {
    /// For the semaphores of the ipc namespace behind `namespace`.
    pub fn new(namespace: BorrowedFd<'_>) -> Result<Self> {
        let sets = sys::ns::inside(&[namespace], super::semaphores::capture)?;
        let without = if sets.is_empty() {
            None
        } else {
            Some(Idle::start().doing(|| "starting a process to compare with")?)
        };
        Ok(Self {
            sets,
            without,
            asked: BTreeSet::new(),
            found: Vec::new(),
        })
    }

    /// Asks process `host_pid` (`pid` in the container) by `run`, which runs a batch of at most `room`
    /// bytes ([`Batch::size`]) in its first thread. Does nothing where it cannot have adjustments.
    pub fn ask(
        &mut self,
        (host_pid, pid): (i32, i32),
        room: usize,
        run: &mut dyn FnMut(&Batch) -> Result<Answers>,
        refusals: &mut Refusals,
    ) -> Result<()> {
        self.asked.insert(host_pid);
        if !self.has_list(host_pid)? {
            return Ok(());
        }
        let mut searches: Vec<_> = self.sets.iter().flat_map(searches_of).collect();
        loop {
            let mut open: Vec<_> = searches.iter_mut().filter(|s| s.low < s.high).collect();
            if open.is_empty() {
                break;
            }
            while !open.is_empty() {
                if let Err(errno) = round(&mut open, room, run)? {
                    refuse(pid, &format!("asking for it fails: {errno}"), refusals);
                    return Ok(());
                }
            }
        }
        let found = searches.iter().filter(|search| search.low != MOST + 1);
        self.found.extend(found.map(|search| Adjustment {
            pid,
            set: search.set,
            semaphore: search.number,
            value: MOST + 1 - search.low,
        }));
        Ok(())
    }

    /// What was found. A process of `host_pids` that was not asked and might have adjustments is
    /// refused by name.
    pub(super) fn finish(
        self,
        host_pids: &[i32],
        refusals: &mut Refusals,
    ) -> Result<Vec<Adjustment>> {
        for &host_pid in host_pids {
            if !self.asked.contains(&host_pid) && self.has_list(host_pid)? {
                refuse(host_pid, "it could not be asked for it", refusals);
            }
        }
        Ok(self.found)
    }

    /// Whether a process has a list of adjustments, other than a fresh child of ours; kcmp(2) tells.
    /// The start of a thread makes an empty one too.
    fn has_list(&self, host_pid: i32) -> Result<bool> {
        let Some(without) = &self.without else {
            return Ok(false);
        };
        kcmp::compare(kcmp::Kind::Undo, (without.host_pid(), 0), (host_pid, 0))
            .map(|order| order != Ordering::Equal)
            .doing(|| format!("asking for the semaphore adjustments of process {host_pid}"))
    }
}

fn refuse(pid: i32, reason: &str, refusals: &mut Refusals) {
    refusals.add(
        "E-SEM-UNDO",
        format!("process {pid}"),
        format!(
            "it may have used semaphores with SEM_UNDO, and what would be undone at its end is not \
             known: {reason}"
        ),
        "checkpoint before it uses them, or without SEM_UNDO",
    );
}

fn searches_of(set: &SemaphoreSet) -> impl Iterator<Item = Search> {
    let numbered = (0_u16..).zip(&set.values);
    numbered.map(|(number, &value)| Search {
        set: set.identity.id,
        number,
        value,
        low: 1,
        high: NEVER,
    })
}

/// Tries one move for as many searches as fit into a batch, which it takes off the list.
fn round(
    open: &mut Vec<&mut Search>,
    room: usize,
    run: &mut dyn FnMut(&Batch) -> Result<Answers>,
) -> Result<Result<(), Errno>> {
    const ONE: usize = 256;
    let mut batch = Batch::new();
    let mut tried = Vec::new();
    while let Some(search) = open.pop() {
        let middle = search.middle();
        let operations = probe(search.number, search.value, middle);
        let count = operations.len() / size_of::<Operation>();
        let operations = batch.bytes(&operations);
        let answer = batch.push_tolerant(calls::Semop {
            id: search.set.into(),
            operations: operations.into(),
            count: count.into(),
        });
        tried.push((search, middle, answer));
        if batch.size() + ONE > room {
            break;
        }
    }
    let answers = run(&batch)?;
    for (search, middle, answer) in tried {
        match answers.result(answer) {
            Err(Errno::ERANGE) => search.high = middle,
            Err(Errno::EAGAIN) => search.low = middle + 1,
            Err(errno) => return Ok(Err(errno)),
            Ok(()) => return Ok(Err(Errno::EALREADY)),
        }
    }
    Ok(Ok(()))
}

/// `struct sembuf`: number, operation, flags.
type Operation = [i16; 3];

/// Operations that move the value along with the adjustment, within the bounds of the value.
struct Operations {
    bytes: Vec<u8>,
    number: u16,
    level: i32,
}

impl Operations {
    fn new(number: u16, value: u16) -> Self {
        Self {
            bytes: Vec::new(),
            number,
            level: i32::from(value),
        }
    }

    fn push(&mut self, by: i32, flags: i32) {
        self.level += by;
        for half in [self.number, by as i16 as u16, flags as i16 as u16] {
            self.bytes.extend(half.to_ne_bytes());
        }
    }

    /// Moves the value alone. No move at all would be to wait for zero.
    fn set_level(&mut self, level: i32) {
        if level != self.level {
            self.push(level - self.level, 0);
        }
    }

    /// Adds to the adjustment.
    fn adjust(&mut self, by: i32) {
        let mut rest = by;
        while rest != 0 {
            let step = rest.clamp(-MOST, MOST);
            self.set_level(step.max(0));
            self.push(-step, libc::SEM_UNDO);
            rest -= step;
        }
    }
}

/// Fails with ERANGE where adjustment + `by` is out of bounds, with EAGAIN elsewhere.
fn probe(number: u16, value: u16, by: i32) -> Vec<u8> {
    let mut operations = Operations::new(number, value);
    operations.adjust(by);
    // Down to zero, and one further.
    operations.set_level(0);
    operations.push(-1, libc::IPC_NOWAIT);
    operations.bytes
}

/// Gives process `pid` its adjustments back, in the ipc namespace that holds the semaphores with
/// their values. It must still have the right to use them.
pub fn give_back(record: &Ipc, pid: i32, batch: &mut Batch) {
    for adjustment in record.adjustments.iter().filter(|one| one.pid == pid) {
        let set = record
            .semaphores
            .iter()
            .find(|set| set.identity.id == adjustment.set);
        let number = adjustment.semaphore;
        let Some(&value) = set.and_then(|set| set.values.get(usize::from(number))) else {
            continue;
        };
        let mut operations = Operations::new(number, value);
        operations.adjust(adjustment.value.clamp(-MOST - 1, MOST));
        operations.set_level(i32::from(value));
        let count = operations.bytes.len() / size_of::<Operation>();
        let operations = batch.bytes(&operations.bytes);
        batch.push(calls::Semop {
            id: adjustment.set.into(),
            operations: operations.into(),
            count: count.into(),
        });
    }
}
