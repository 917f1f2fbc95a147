//! The first call in a process, before any page there is ours.
//!
//! A call at a `syscall` instruction of the process's own cannot be survived: were the conductor killed
//! meanwhile, the thread would go on behind that instruction with registers that are not its own. So the
//! call and the way home are put where nobody ever goes: into the zeros between the end of the code and
//! the end of its last page, best of the vdso. When all is done the zeros are back. The page is then a
//! private copy with the same content. Test: `killed_at_random_moments` of `integration/nothing_lost/`.

use super::arch;
use crate::proc::maps::Area;
use crate::sys::remote;

/// How a process without a page of ours is made to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foothold {
    /// At this `syscall` instruction; only where the death of the conductor is the process's as well.
    Instruction(u64),
    /// In a nook at this address.
    Nook(u64),
}

impl From<u64> for Foothold {
    fn from(instruction: u64) -> Self {
        Self::Instruction(instruction)
    }
}

/// Bytes that are looked at, at the end of an area.
const LAST: u64 = 4096;

/// Room between the code and the nook: the last instruction may be longer than it looks.
const MARGIN: usize = 32;

/// A place for [`arch::single_code`] at the end of the vdso, or of the code of a file.
pub fn find(host_pid: i32, areas: &[Area]) -> Option<u64> {
    let of_kernel = |area: &&Area| area.path == b"[vdso]";
    let of_file = |area: &&Area| area.perms.execute && area.has_file();
    let candidates = areas
        .iter()
        .filter(of_kernel)
        .chain(areas.iter().filter(of_file));
    candidates
        .filter(|area| area.end - area.start >= LAST)
        .find_map(|area| nook(host_pid, area.end))
}

fn nook(host_pid: i32, end: u64) -> Option<u64> {
    let mut bytes = [0; LAST as usize];
    if remote::read(host_pid, end - LAST, &mut bytes) != Ok(bytes.len()) {
        return None;
    }
    let size = arch::single_size().next_multiple_of(16);
    let (before, room) = bytes.split_at(bytes.len() - size);
    let is_free = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    // One whose conductor was killed has left it filled.
    let is_ours = room.starts_with(arch::single_code());
    let is_nook = is_free(&before[before.len() - MARGIN..]) && (is_free(room) || is_ours);
    is_nook.then(|| end - size as u64)
}
