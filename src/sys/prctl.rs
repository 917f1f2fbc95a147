//! What prctl(2) can do here; asked in ways that change nothing.

use nix::errno::Errno;

const PR_SET_MM_MAP_SIZE: libc::c_ulong = 15;
const PR_SET_VMA: i32 = 0x5356_4d41;

/// The size of the structure that PR_SET_MM_MAP takes. EINVAL without CONFIG_CHECKPOINT_RESTORE.
pub fn mm_map_size() -> Result<u32, Errno> {
    let mut size = 0u32;
    // SAFETY: the kernel writes four bytes.
    Errno::result(unsafe {
        libc::prctl(
            libc::PR_SET_MM,
            PR_SET_MM_MAP_SIZE,
            &raw mut size,
            0usize,
            0usize,
        )
    })?;
    Ok(size)
}

/// Whether anonymous memory can be given a name (CONFIG_ANON_VMA_NAME).
pub fn names_memory() -> bool {
    // SAFETY: a range without a byte is named; the name is a constant.
    unsafe { libc::prctl(PR_SET_VMA, 0usize, 0usize, 0usize, c"ocimig".as_ptr()) == 0 }
}
