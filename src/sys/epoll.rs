//! epoll_ctl(2) under chosen descriptor numbers.
//!
//! A registration is known by the open file *and* the number under which it was added. Numbers are
//! taken from the caller's table, so a thread with a table of its own can have any file under any
//! number for the moment of the call.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// One registration.
#[derive(Debug, Clone, Copy)]
pub struct Registration<'a> {
    /// The epoll instance.
    pub epoll: BorrowedFd<'a>,
    /// The file.
    pub file: BorrowedFd<'a>,
    /// The number under which it is registered.
    pub number: RawFd,
    /// EPOLL* bits.
    pub events: u32,
    /// What epoll_wait hands back.
    pub data: u64,
}

/// What alone remains of a one-shot registration after its shot.
const KEPT: u32 =
    (libc::EPOLLET | libc::EPOLLONESHOT | libc::EPOLLWAKEUP | libc::EPOLLEXCLUSIVE).cast_unsigned();

/// A new instance, close-on-exec.
pub fn create() -> Result<OwnedFd> {
    // SAFETY: no pointers; the result is a new descriptor that nobody else owns.
    unsafe {
        let fd = Errno::result(libc::epoll_create1(libc::EPOLL_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Makes all registrations, those of spent one-shots first. The caller's own table stays as it is.
pub fn register(registrations: &[Registration<'_>]) -> Result<()> {
    if registrations.is_empty() {
        return Ok(());
    }
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: no pointers. From here on this thread has a descriptor table of its own,
                // which ends with it; descriptors borrowed from others stay open under their
                // numbers, since `with_number` puts back what it replaces.
                Errno::result(unsafe { libc::unshare(libc::CLONE_FILES) })
                    .doing(|| "making a descriptor table for registrations")?;
                let spent = |one: &&Registration<'_>| one.events & !KEPT == 0;
                for one in registrations.iter().filter(spent) {
                    with_number(one, |epoll, number| {
                        add_spent(epoll, number, one.events, one.data)
                    })?;
                }
                for one in registrations.iter().filter(|one| !spent(one)) {
                    with_number(one, |epoll, number| {
                        add(epoll, number, one.events, one.data)
                    })?;
                }
                Ok(())
            })
            .join()
            .unwrap_or_else(|_| Err(Error::bug("a registering thread panicked")))
    })?;
    Ok(())
}

/// Calls `work` with the instance's number and the wanted number, under which the file then is.
fn with_number(
    one: &Registration<'_>,
    work: impl FnOnce(RawFd, RawFd) -> Result<(), Errno>,
) -> Result<()> {
    let (epoll, file, number) = (one.epoll.as_raw_fd(), one.file.as_raw_fd(), one.number);
    let doing = || format!("registering descriptor {number} with epoll");
    if file == number {
        return work(epoll, number).doing(doing);
    }
    // SAFETY: numbers only. This thread's table is its own, and what was under `number` in it is put
    // back before anybody looks.
    unsafe {
        let spare = libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0);
        let placed = Errno::result(libc::dup3(file, number, libc::O_CLOEXEC));
        let result = placed.and_then(|_| work(if epoll == number { spare } else { epoll }, number));
        if spare >= 0 {
            libc::dup3(spare, number, libc::O_CLOEXEC);
            libc::close(spare);
        } else {
            libc::close(number);
        }
        result.doing(doing)
    }
}

fn add(epoll: RawFd, number: RawFd, events: u32, data: u64) -> Result<(), Errno> {
    control(epoll, libc::EPOLL_CTL_ADD, number, events, data)
}

fn control(epoll: RawFd, what: i32, number: RawFd, events: u32, data: u64) -> Result<(), Errno> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads one epoll_event.
    Errno::result(unsafe { libc::epoll_ctl(epoll, what, number, &raw mut event) })?;
    Ok(())
}

/// A spent one-shot reports nothing until it is armed again. The kernel adds EPOLLERR and EPOLLHUP to
/// whatever is asked for, so only a shot brings it there: let it report anything, once. A file that
/// is not ready for anything cannot; it keeps those two bits.
fn add_spent(epoll: RawFd, number: RawFd, events: u32, data: u64) -> Result<(), Errno> {
    let anything = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP;
    add(epoll, number, events | anything.cast_unsigned(), data)?;
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the kernel fills at most one epoll_event. Nothing but spent one-shots is registered
    // with the instance yet, so no event is taken from anybody.
    let fired = Errno::result(unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 0) })?;
    if fired == 0 {
        control(epoll, libc::EPOLL_CTL_MOD, number, events, data)?;
    }
    Ok(())
}
