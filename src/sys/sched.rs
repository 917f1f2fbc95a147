//! sched_getattr(2), affinity, I/O priority.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// `struct sched_attr` of `<linux/sched/types.h>`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bytes of this structure.
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// SCHED_DEADLINE, nanoseconds.
    pub runtime: u64,
    /// SCHED_DEADLINE, nanoseconds.
    pub deadline: u64,
    /// SCHED_DEADLINE, nanoseconds.
    pub period: u64,
}

impl Attributes {
    /// With its size filled in, as the kernel hands it out.
    pub fn sized(self) -> Self {
        Self {
            size: size_of::<Self>() as u32,
            ..self
        }
    }
}

/// How a thread is scheduled.
pub fn attributes(tid: i32) -> Result<Attributes, Errno> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes at most the size passed.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            tid,
            &raw mut attributes,
            size_of::<Attributes>() as u32,
            0,
        )
    })?;
    Ok(attributes)
}

/// Schedules a thread so.
pub fn set_attributes(tid: i32, attributes: Attributes) -> Result<(), Errno> {
    let attributes = attributes.sized();
    // SAFETY: the kernel reads the size that the structure states.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_sched_setattr, tid, &raw const attributes, 0)
    })?;
    Ok(())
}

/// Allowed processors, ascending.
pub fn affinity(tid: i32) -> Result<Vec<usize>, Errno> {
    let set = sched_getaffinity(Pid::from_raw(tid))?;
    Ok((0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect())
}

/// Allows these processors; EINVAL when this host has none of them.
pub fn set_affinity(tid: i32, processors: &[usize]) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    for cpu in processors {
        set.set(*cpu)?;
    }
    sched_setaffinity(Pid::from_raw(tid), &set)
}

const IOPRIO_WHO_PROCESS: i32 = 1;

/// ioprio_get(2) of a thread.
pub fn io_priority(tid: i32) -> Result<i32, Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) })
        .map(|value| value as i32)
}

/// ioprio_set(2) of a thread.
pub fn set_io_priority(tid: i32, value: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, value) })?;
    Ok(())
}
