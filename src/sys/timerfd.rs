//! timerfd_create(2) and its companions on borrowed descriptors; times in nanoseconds.

use crate::error::Result;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `_IOW('T', 0, __u64)`
const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
const SECOND: u64 = 1_000_000_000;

/// A new timer on that clock, close-on-exec and non-blocking.
pub fn create(clock: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor that nobody else owns.
    unsafe {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        let fd = Errno::result(libc::timerfd_create(clock, flags))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Time to the next expiration (0: disarmed) and between expirations. A periodic timer that expired
/// and has not been read is brought up to date, as its reader would find it.
pub fn get(timer: BorrowedFd<'_>) -> Result<(u64, u64)> {
    let zero = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut spec = libc::itimerspec {
        it_interval: zero,
        it_value: zero,
    };
    // SAFETY: the kernel fills one itimerspec.
    Errno::result(unsafe { libc::timerfd_gettime(timer.as_raw_fd(), &raw mut spec) })?;
    Ok((
        from_timespec(spec.it_value),
        from_timespec(spec.it_interval),
    ))
}

/// Arms (or with 0 disarms) the timer; `flags` are TFD_TIMER_*.
pub fn set(timer: BorrowedFd<'_>, flags: i32, value: u64, interval: u64) -> Result<()> {
    let spec = libc::itimerspec {
        it_interval: to_timespec(interval),
        it_value: to_timespec(value),
    };
    // SAFETY: the kernel reads one itimerspec; the old one is not asked for.
    Errno::result(unsafe {
        libc::timerfd_settime(
            timer.as_raw_fd(),
            flags,
            &raw const spec,
            std::ptr::null_mut(),
        )
    })?;
    Ok(())
}

/// Sets the number of expirations to be read; not 0.
pub fn set_ticks(timer: BorrowedFd<'_>, ticks: u64) -> Result<()> {
    // SAFETY: the kernel reads one u64.
    Errno::result(unsafe { libc::ioctl(timer.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) })?;
    Ok(())
}

/// What a clock shows.
pub fn now(clock: i32) -> Result<u64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::from_raw(clock))?;
    Ok(time.tv_sec().cast_unsigned() * SECOND + time.tv_nsec().cast_unsigned())
}

fn from_timespec(time: libc::timespec) -> u64 {
    time.tv_sec.cast_unsigned() * SECOND + time.tv_nsec.cast_unsigned()
}

fn to_timespec(nanoseconds: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: (nanoseconds / SECOND).cast_signed(),
        tv_nsec: (nanoseconds % SECOND).cast_signed(),
    }
}
