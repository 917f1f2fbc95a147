//! A small process that undoes what was done to a container when the conductor dies.
//!
//! The guard is forked before anything is changed. It holds nothing of ours but the read end of a
//! pipe, a pidfd of the conductor and the files that it may have to write. It lives in a session
//! of its own and ignores what signals can be ignored, so that a SIGKILL of the conductor, or a
//! Ctrl-C for its whole process group, does not take the guard along
//! (`a_killed_conductor_leaves_a_thawed_cgroup`).
//!
//! Death is told by the pidfd *and* by the end of the pipe: a helper that the conductor forked may
//! still hold the pipe's other end, and then only the pidfd says it.

use crate::error::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// One thing that the guard does when the conductor is gone; prepared in full before the fork, for
/// the guard itself allocates nothing.
#[derive(Debug)]
pub enum Undo {
    /// Writes `bytes` into the file in one write(2): `THAWED` into `freezer.state`.
    Write {
        /// Open for writing.
        file: File,
        /// What to write.
        bytes: Vec<u8>,
    },
    /// Runs a program and waits for it: `/usr/sbin/nft delete table inet ocimig-ID`. No shell, an
    /// empty environment, standard input and output at /dev/null.
    Run {
        /// Absolute path of the program.
        program: CString,
        /// Arguments, the program's name first.
        arguments: Vec<CString>,
    },
    /// Sends a signal to the process behind a pidfd.
    Kill {
        /// The process.
        pidfd: OwnedFd,
        /// The signal's number.
        signal: i32,
    },
    /// Lazily unmounts what is mounted at the path.
    Unmount {
        /// The mount point.
        path: CString,
    },
}

/// The conductor's end of a guard. Dropping it without [`Guard::end`] makes the guard undo.
#[derive(Debug)]
pub struct Guard {
    /// The write end; one byte is the order to end without undoing.
    pipe: Option<File>,
    host_pid: i32,
}

const END: u8 = b'e';

impl Guard {
    /// Forks the guard. When this process dies, or drops the value, the guard carries out `undo`
    /// in order, whatever fails in between, and exits.
    pub fn start(undo: Vec<Undo>) -> Result<Self> {
        let (read, write) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).doing(|| "making the guard's pipe")?;
        let conductor = super::pidfd::open(std::process::id() as i32)
            .doing(|| "opening a pidfd of this process")?;
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .doing(|| "opening /dev/null")?;
        let prepared = Prepared::new(&undo);
        // SAFETY: a fork without CLONE_VM; the child makes system calls only (`Prepared::guard`),
        // takes no lock, allocates nothing, and never returns. Exit signal 0: no SIGCHLD of the
        // guard's disturbs a conductor that waits for its own children.
        let host_pid = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
        if host_pid == 0 {
            prepared.guard(read.as_raw_fd(), conductor.as_raw_fd(), null.as_raw_fd());
        }
        let host_pid = Errno::result(host_pid).doing(|| "forking the guard")? as i32;
        Ok(Self {
            pipe: Some(File::from(write)),
            host_pid,
        })
    }

    /// The guard's pid, as this host numbers it.
    pub fn host_pid(&self) -> i32 {
        self.host_pid
    }

    /// All is well and undone (or done) by the conductor itself: the guard ends, nothing is undone.
    pub fn end(mut self) -> Result<()> {
        if let Some(pipe) = self.pipe.as_mut() {
            match pipe.write_all(&[END]) {
                // The guard was killed by somebody: there is nothing left to end.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                other => other.doing(|| "telling the guard to end")?,
            }
        }
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pipe = None;
        loop {
            let mut status = 0;
            // SAFETY: waits for our own child; `status` outlives the call. __WALL: its exit signal
            // is not SIGCHLD.
            let got = unsafe { libc::waitpid(self.host_pid, &raw mut status, libc::__WALL) };
            if got != -1 || Errno::last() != Errno::EINTR {
                break;
            }
        }
    }
}

/// Everything the guard needs, as plain descriptors and pointers.
struct Prepared<'a> {
    undo: &'a [Undo],
    /// One null-terminated argument vector per [`Undo`], empty where it runs nothing.
    arguments: Vec<Vec<*const libc::c_char>>,
    /// The descriptors that stay open, ascending.
    keep: Vec<RawFd>,
    /// Room for `keep` and the three descriptors that are known at the fork only.
    all: Vec<RawFd>,
}

impl<'a> Prepared<'a> {
    fn new(undo: &'a [Undo]) -> Self {
        let arguments = undo
            .iter()
            .map(|undo| match undo {
                Undo::Run { arguments, .. } => arguments
                    .iter()
                    .map(|argument| argument.as_ptr())
                    .chain([std::ptr::null()])
                    .collect(),
                _ => Vec::new(),
            })
            .collect();
        let keep: Vec<RawFd> = undo
            .iter()
            .filter_map(|undo| match undo {
                Undo::Write { file, .. } => Some(file.as_raw_fd()),
                Undo::Kill { pidfd, .. } => Some(pidfd.as_raw_fd()),
                Undo::Run { .. } | Undo::Unmount { .. } => None,
            })
            .collect();
        let all = Vec::with_capacity(keep.len() + 2);
        Self {
            undo,
            arguments,
            keep,
            all,
        }
    }

    /// The whole life of the guard. System calls only.
    fn guard(mut self, pipe: RawFd, conductor: RawFd, null: RawFd) -> ! {
        self.all.extend_from_slice(&self.keep);
        self.all.push(pipe);
        self.all.push(conductor);
        self.all.sort_unstable();
        settle(null, &self.all);
        if wait_for_the_end(pipe, conductor) == Told::Undo {
            for (undo, arguments) in self.undo.iter().zip(&self.arguments) {
                carry_out(undo, arguments);
            }
        }
        // SAFETY: ends this process, runs no destructors.
        unsafe { libc::_exit(0) }
    }
}

/// Leaves everything of the conductor's behind: session, directory, signals, descriptors.
fn settle(null: RawFd, keep: &[RawFd]) {
    // SAFETY: system calls on this process alone; the strings are static, the struct is local.
    unsafe {
        libc::setsid();
        libc::chdir(c"/".as_ptr());
        libc::prctl(libc::PR_SET_NAME, c"ocimig-guard".as_ptr());
        let mut ignore: libc::sigaction = std::mem::zeroed();
        ignore.sa_sigaction = libc::SIG_IGN;
        for signal in 1..=64 {
            // SIGCHLD keeps its default: an ignored one would reap the programs we wait for.
            if signal != libc::SIGCHLD {
                libc::sigaction(signal, &raw const ignore, std::ptr::null_mut());
            }
        }
        // Descriptors 0 to 2 may themselves be ones to keep (a conductor without standard input);
        // those stay.
        for fd in 0..3 {
            if !keep.contains(&fd) {
                libc::dup2(null, fd);
            }
        }
        let mut first = 3;
        for &fd in keep.iter().filter(|fd| **fd >= 3) {
            if first < fd {
                libc::syscall(libc::SYS_close_range, first, fd - 1, 0);
            }
            first = fd + 1;
        }
        libc::syscall(libc::SYS_close_range, first, libc::c_int::MAX, 0);
    }
}

#[derive(PartialEq, Eq)]
enum Told {
    End,
    Undo,
}

fn wait_for_the_end(pipe: RawFd, conductor: RawFd) -> Told {
    loop {
        let mut polled = [pipe, conductor].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: the array outlives the call.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) };
        if ready <= 0 {
            continue;
        }
        // The pipe first: a conductor that said "end" and then died is done.
        if polled[0].revents != 0 {
            let mut byte = 0u8;
            // SAFETY: one byte into a local.
            let read = unsafe { libc::read(pipe, (&raw mut byte).cast(), 1) };
            return match (read, byte) {
                (1, END) => Told::End,
                _ => Told::Undo,
            };
        }
        if polled[1].revents != 0 {
            return Told::Undo;
        }
    }
}

fn carry_out(undo: &Undo, arguments: &[*const libc::c_char]) {
    // SAFETY: system calls on descriptors, buffers and strings that were prepared before the fork
    // and that this process owns a copy of.
    unsafe {
        match undo {
            Undo::Write { file, bytes } => {
                libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
            }
            Undo::Kill { pidfd, signal } => {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    pidfd.as_raw_fd(),
                    *signal,
                    0,
                    0,
                );
            }
            Undo::Unmount { path } => {
                libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW);
            }
            Undo::Run { program, .. } => {
                let child = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
                if child == 0 {
                    reset_signals();
                    let environment = [std::ptr::null()];
                    libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
                    libc::_exit(127);
                }
                if child > 0 {
                    libc::waitpid(child as i32, std::ptr::null_mut(), libc::__WALL);
                }
            }
        }
    }
}

/// Ignored signals survive execve(2); the program gets them as usual.
fn reset_signals() {
    // SAFETY: zeroed is SIG_DFL with no flags; only this process is concerned.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::time::{Duration, Instant};

    fn write_undo(path: &Path) -> Undo {
        Undo::Write {
            file: File::create(path).unwrap(),
            bytes: b"undone".to_vec(),
        }
    }

    fn wait_for(path: &Path, text: &str) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if std::fs::read_to_string(path).is_ok_and(|found| found == text) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    #[test]
    fn a_guard_told_to_end_undoes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let guard = Guard::start(vec![write_undo(&path)]).unwrap();
        let host_pid = guard.host_pid();
        guard.end().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        assert!(!Path::new(&format!("/proc/{host_pid}")).exists());
    }

    #[test]
    fn a_dropped_guard_undoes_everything_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        let path = CString::new(second.as_os_str().as_bytes()).unwrap();
        drop(Guard::start(vec![
            write_undo(&first),
            Undo::Run {
                program: c"/bin/cp".to_owned(),
                arguments: vec![
                    c"cp".to_owned(),
                    CString::new(first.as_os_str().as_bytes()).unwrap(),
                    path,
                ],
            },
        ]));
        assert!(wait_for(&second, "undone"));
    }

    #[test]
    fn a_guard_holds_no_descriptor_of_ours_and_has_a_session_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let guard = Guard::start(vec![write_undo(&directory.path().join("file"))]).unwrap();
        let process = format!("/proc/{}", guard.host_pid());
        let start = Instant::now();
        let links = loop {
            let links: Vec<_> = std::fs::read_dir(format!("{process}/fd"))
                .unwrap()
                .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
                .map(|link| link.to_string_lossy().into_owned())
                .collect();
            // Three for /dev/null, the pipe, the pidfd, the file.
            if links.len() == 6 || start.elapsed() > Duration::from_secs(10) {
                break links;
            }
        };
        assert_eq!(links.len(), 6, "{links:?}");
        assert_eq!(links.iter().filter(|l| *l == "/dev/null").count(), 3);
        let stat = std::fs::read_to_string(format!("{process}/stat")).unwrap();
        let session = stat.rsplit(')').next().unwrap().split(' ').nth(4).unwrap();
        assert_eq!(session, guard.host_pid().to_string());
        guard.end().unwrap();
    }
}
