//! POSIX message queues of the calling thread's ipc namespace.

use crate::error::Result;
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `struct mq_attr`, its lasting part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Messages that the queue takes.
    pub capacity: i64,
    /// Bytes that a message may have.
    pub message_size: i64,
    /// Messages in it; passed over on creation.
    pub messages: i64,
}

/// mq_getattr(3)
pub fn attributes(queue: BorrowedFd<'_>) -> Result<Attributes> {
    // SAFETY: the kernel fills the structure, which is plain numbers.
    let attributes: libc::mq_attr = unsafe {
        let mut attributes = std::mem::zeroed();
        Errno::result(libc::syscall(
            libc::SYS_mq_getsetattr,
            queue.as_raw_fd(),
            std::ptr::null::<libc::mq_attr>(),
            &raw mut attributes,
        ))?;
        attributes
    };
    Ok(Attributes {
        capacity: attributes.mq_maxmsg,
        message_size: attributes.mq_msgsize,
        messages: attributes.mq_curmsgs,
    })
}

/// A new queue; mq_open(2) with O_CREAT | O_EXCL. `name` is without the slash.
pub fn create(name: &CStr, mode: u32, attributes: &Attributes) -> Result<OwnedFd> {
    // SAFETY: a C string and a structure that live; the result is a new descriptor of our own.
    unsafe {
        let mut wanted: libc::mq_attr = std::mem::zeroed();
        wanted.mq_maxmsg = attributes.capacity;
        wanted.mq_msgsize = attributes.message_size;
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_CLOEXEC;
        let fd = Errno::result(libc::syscall(
            libc::SYS_mq_open,
            name.as_ptr(),
            flags,
            mode,
            &raw const wanted,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// For tests.
#[cfg(test)]
pub mod testing {
    use super::*;

    /// mq_send(3)
    pub fn send(queue: BorrowedFd<'_>, text: &[u8]) {
        // SAFETY: pointer and length describe `text`.
        let result =
            unsafe { libc::mq_send(queue.as_raw_fd(), text.as_ptr().cast(), text.len(), 1) };
        assert_eq!(result, 0);
    }

    /// mq_notify(3) with SIGEV_NONE.
    pub fn notify(queue: BorrowedFd<'_>) {
        // SAFETY: the kernel reads one structure of plain numbers.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_NONE;
            let result = libc::syscall(libc::SYS_mq_notify, queue.as_raw_fd(), &raw const event);
            assert_eq!(result, 0);
        }
    }
}
