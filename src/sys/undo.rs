//! Socket options that must be put back even when this process is killed.
//!
//! Looking into a queue needs SO_PEEK_OFF, reading a send queue needs TCP_REPAIR, and both stay with
//! the socket when the process that set them dies. A small forked child holds duplicates of the
//! sockets and the read end of a pipe; when the write end closes without a word, it puts the
//! options back. Because it inherits every other pipe of the conductor as well, nobody who waits for
//! the conductor's end on such a pipe sees it before the options are back.

use crate::error::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::pipe2;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One option to put back: socket, level, number, value.
pub type Option<'a> = (BorrowedFd<'a>, i32, i32, i32);

/// Puts options back when dropped, and when this process dies.
#[derive(Debug)]
pub struct Undo {
    child: libc::pid_t,
    pipe: std::option::Option<File>,
}

impl Undo {
    /// Starts the child. From now on the options may be changed.
    pub fn arm(options: &[Option<'_>]) -> Result<Self> {
        let calls: Vec<(i32, i32, i32, i32)> = options
            .iter()
            .map(|(fd, level, number, value)| (fd.as_raw_fd(), *level, *number, *value))
            .collect();
        let (read, write) =
            pipe2(nix::fcntl::OFlag::O_CLOEXEC).doing(|| "making a pipe for a guard")?;
        // A signal to our process group must not end the child before its work is done.
        let mut old = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut old))
            .doing(|| "blocking signals")?;
        // SAFETY: the child makes nothing but system calls on memory that was ready before.
        let child = Errno::result(unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::close(write.as_raw_fd());
                watch(read.as_raw_fd(), &calls);
            }
            child
        });
        let unblocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old), None);
        let undo = Self {
            child: child.doing(|| "forking a guard for socket options")?,
            pipe: Some(File::from(write)),
        };
        unblocked.doing(|| "unblocking signals")?;
        Ok(undo)
    }

    /// The options are back already: the child has nothing left to do.
    pub fn disarm(mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // Should the write fail, the child puts back what is back already.
            let _ = pipe.write_all(b"!");
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // SAFETY: waits for our own child, with no status wanted.
        while unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) } < 0
            && Errno::last() == Errno::EINTR
        {}
    }
}

/// The child: system calls only.
///
/// # Safety
///
/// Runs in a fork of a process with threads and never returns.
unsafe fn watch(pipe: i32, calls: &[(i32, i32, i32, i32)]) -> ! {
    // SAFETY: pointers are to locals that live; _exit does not return.
    unsafe {
        let mut word = 0u8;
        loop {
            match libc::read(pipe, (&raw mut word).cast(), 1) {
                0 => break,
                1 => libc::_exit(0),
                _ if *libc::__errno_location() == libc::EINTR => {}
                _ => break,
            }
        }
        for (fd, level, number, value) in calls {
            libc::setsockopt(*fd, *level, *number, (&raw const *value).cast(), 4);
        }
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket;
    use std::os::fd::AsFd;

    fn peek_offset(fd: impl AsFd) -> i32 {
        socket::int_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap()
    }

    #[test]
    fn an_option_is_put_back_when_its_changer_is_gone_and_left_when_disarmed() {
        let (one, _two) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        let back = [(one.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)];
        let undo = Undo::arm(&back).unwrap();
        socket::set_int_option(&one, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 7).unwrap();
        drop(undo);
        assert_eq!(peek_offset(&one), -1);
        let undo = Undo::arm(&back).unwrap();
        socket::set_int_option(&one, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 7).unwrap();
        undo.disarm();
        assert_eq!(peek_offset(&one), 7);
    }

    #[test]
    fn an_option_is_put_back_when_its_changer_is_killed() {
        let (one, _two) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        let (mut ready, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map(|(r, w)| (File::from(r), w))
            .unwrap();
        // SAFETY: the child of this test allocates a little and then waits to be killed.
        let changer = unsafe { libc::fork() };
        if changer == 0 {
            let back = [(one.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)];
            let undo = Undo::arm(&back);
            let _ = socket::set_int_option(&one, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 7);
            let _ = File::from(write.try_clone().unwrap()).write_all(b"!");
            loop {
                std::thread::sleep(std::time::Duration::from_secs(60));
                let _ = &undo;
            }
        }
        drop(write);
        let mut byte = [0];
        std::io::Read::read_exact(&mut ready, &mut byte).unwrap();
        assert_eq!(peek_offset(&one), 7);
        // SAFETY: our own child.
        unsafe {
            libc::kill(changer, libc::SIGKILL);
            libc::waitpid(changer, std::ptr::null_mut(), 0);
        }
        // The guard held the pipe as well: its end of file says that the guard is done.
        assert_eq!(std::io::Read::read(&mut ready, &mut byte).unwrap(), 0);
        assert_eq!(peek_offset(&one), -1);
    }
}
