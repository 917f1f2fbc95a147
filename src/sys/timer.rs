//! What the kernel can do with POSIX timers.

use std::sync::OnceLock;

/// `<linux/prctl.h>`, since Linux 6.15.
pub const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
const GET: libc::c_ulong = 2;

/// Whether timers can be made with chosen numbers.
pub fn restores_ids() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    // SAFETY: the option only reads a flag of this process.
    *KNOWN.get_or_init(|| unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) } >= 0)
}
