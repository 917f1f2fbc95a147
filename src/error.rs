//! One error type for the whole house: doing what, to whom, why, each said once.
//!
//! An [`Error`] is built where something fails and gathers context on its way up; only a front
//! logs it, answers with it and picks the exit code. It knows no other module.

use std::fmt;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a front tells its caller: the process exit codes of `ocimig`, documented in README.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Something failed that is nobody's fault in particular (I/O, kernel).
    Failure = 1,
    /// The request itself is wrong.
    Usage = 2,
    /// The container (or the image) holds something that is refused by name.
    Refused = 3,
    /// The container, process, image or bundle is not there.
    NotFound = 4,
    /// The image is damaged, incomplete, or of a format this engine does not read.
    Image = 5,
    /// This host lacks something: a kernel feature, a capability, a CPU feature, a free PID.
    Host = 6,
}

/// One thing that cannot be taken along, with a stable code.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Refusal {
    /// Stable, for programs: `E-IOURING`.
    pub code: &'static str,
    /// What: `fd 17 of pid 812 (nginx)`.
    pub object: String,
    /// Why it cannot be taken along.
    pub reason: String,
    /// What the reader can do about it.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: {}; {}",
            self.code, self.object, self.reason, self.remedy
        )
    }
}

/// Codes of what programs are in the middle of for a moment: a connection that waits to be accepted, a
/// child that shares its parent's memory until it starts its own program, events about to be read.
const PASSING: [&str; 8] = [
    "E-TCP-PENDING-DATA",
    "E-TCP-CONNECTING",
    "E-TCP-ORPHAN-DATA",
    "E-UNIX-PENDING-DATA",
    "E-INOTIFY-QUEUED",
    "E-SHARED-MEMORY",
    "E-SHARED-DESCRIPTORS",
    "E-SHARED-DIRECTORY",
];

/// Refusals are gathered, not thrown: a checkpoint reports all of them at once.
#[derive(Debug, Default)]
pub struct Refusals(Vec<Refusal>);

impl Refusals {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one refusal: code, object, reason, remedy.
    pub fn add(
        &mut self,
        code: &'static str,
        object: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let refusal = Refusal {
            code,
            object: object.into(),
            reason: reason.into(),
            remedy: remedy.into(),
        };
        if !self.0.contains(&refusal) {
            self.0.push(refusal);
        }
    }

    /// Moves everything of `other` over.
    pub fn append(&mut self, other: Refusals) {
        for refusal in other.0 {
            if !self.0.contains(&refusal) {
                self.0.push(refusal);
            }
        }
    }

    /// What was gathered so far.
    pub fn as_slice(&self) -> &[Refusal] {
        &self.0
    }

    /// Whether something was refused, and all of it is of a kind that passes by itself in a moment.
    pub fn will_pass(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|refusal| PASSING.contains(&refusal.code))
    }

    /// `Ok` when nothing was refused, an [`Error`] that lists everything otherwise.
    pub fn into_result(self) -> Result<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Error::from(Cause::Refused(self.0)))
        }
    }
}

/// The first cause of an [`Error`].
#[derive(Debug)]
pub enum Cause {
    /// A system call failed.
    Os(nix::errno::Errno),
    /// Input or output failed in a way that has no errno (short read, bad UTF-8 …).
    Io(std::io::Error),
    /// A traced or watched process died under our hands.
    Gone {
        /// The process, as this host numbers it.
        host_pid: i32,
    },
    /// Refused by name, everything at once.
    Refused(Vec<Refusal>),
    /// A single failure with a stable code, an exit code, the reason and what to do about it.
    Coded {
        /// Stable, for programs: `E-IMAGE-TRUNCATED`.
        code: &'static str,
        /// The class of failure.
        exit: Exit,
        /// Why.
        reason: String,
        /// What the reader can do; may be empty where nothing can be done.
        remedy: String,
    },
    /// An invariant of this program does not hold. The text says which.
    Bug(String),
}

/// See the module documentation.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Innermost first.
    doing: Vec<String>,
    cause: Cause,
    /// Failures of the clean-up that this failure made necessary.
    cleanup: Vec<Error>,
}

impl Error {
    /// A failure with a stable code; see [`Cause::Coded`].
    pub fn coded(
        code: &'static str,
        exit: Exit,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Cause::Coded {
            code,
            exit,
            reason: reason.into(),
            remedy: remedy.into(),
        }
        .into()
    }

    /// A broken invariant of this program.
    pub fn bug(what: impl Into<String>) -> Self {
        Cause::Bug(what.into()).into()
    }

    /// The first cause.
    pub fn cause(&self) -> &Cause {
        &self.inner.cause
    }

    /// What was being done, outermost first.
    pub fn context(&self) -> impl Iterator<Item = &str> {
        self.inner.doing.iter().rev().map(String::as_str)
    }

    /// The errno where the cause is a system call.
    pub fn errno(&self) -> Option<nix::errno::Errno> {
        match &self.inner.cause {
            Cause::Os(errno) => Some(*errno),
            Cause::Io(error) => error.raw_os_error().map(nix::errno::Errno::from_raw),
            _ => None,
        }
    }

    /// Whether it says that a process or thread has ended.
    pub fn is_gone(&self) -> bool {
        matches!(self.cause(), Cause::Gone { .. })
            || matches!(self.errno(), Some(nix::errno::Errno::ESRCH))
    }

    /// The stable code, `E-FAILED` where the cause has none of its own.
    pub fn code(&self) -> &'static str {
        match &self.inner.cause {
            Cause::Refused(refusals) => refusals.first().map_or("E-REFUSED", |first| first.code),
            Cause::Coded { code, .. } => code,
            Cause::Gone { .. } => "E-PROCESS-GONE",
            Cause::Bug(_) => "E-BUG",
            Cause::Os(_) | Cause::Io(_) => "E-FAILED",
        }
    }

    /// The exit code of the class this failure belongs to.
    pub fn exit(&self) -> Exit {
        match &self.inner.cause {
            Cause::Refused(_) => Exit::Refused,
            Cause::Coded { exit, .. } => *exit,
            Cause::Os(_) | Cause::Io(_) | Cause::Gone { .. } | Cause::Bug(_) => Exit::Failure,
        }
    }

    /// Adds what was being done around the failure.
    #[must_use]
    pub fn doing(mut self, what: impl Into<String>) -> Self {
        self.inner.doing.push(what.into());
        self
    }

    /// Adds a clean-up that failed too; the original failure stays in front.
    #[must_use]
    pub fn and_cleanup(mut self, result: Result<()>) -> Self {
        if let Err(error) = result {
            self.inner.cleanup.push(error);
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in self.context() {
            write!(f, "{what}: ")?;
        }
        match &self.inner.cause {
            Cause::Os(errno) => write!(f, "{} ({errno:?})", errno.desc())?,
            Cause::Io(error) => match error.raw_os_error().map(nix::errno::Errno::from_raw) {
                Some(errno) => write!(f, "{} ({errno:?})", errno.desc())?,
                None => write!(f, "{error}")?,
            },
            Cause::Gone { host_pid } => write!(f, "process {host_pid} is gone")?,
            Cause::Refused(refusals) => {
                write!(f, "{} refused", refusals.len())?;
                for refusal in refusals {
                    write!(f, "\n  {refusal}")?;
                }
            }
            Cause::Coded {
                code,
                reason,
                remedy,
                ..
            } => {
                write!(f, "{code}: {reason}")?;
                if !remedy.is_empty() {
                    write!(f, "; {remedy}")?;
                }
            }
            Cause::Bug(what) => write!(f, "bug in ocimig: {what}")?,
        }
        for error in &self.inner.cleanup {
            write!(f, "\n  and cleaning up failed as well: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Self {
            inner: Box::new(Inner {
                doing: Vec::new(),
                cause,
                cleanup: Vec::new(),
            }),
        }
    }
}

impl From<nix::errno::Errno> for Error {
    fn from(errno: nix::errno::Errno) -> Self {
        Cause::Os(errno).into()
    }
}

impl From<std::io::Error> for Error {
    /// An error of ours that went through [`std::io::Read`] or [`std::io::Write`] comes out as it was.
    fn from(error: std::io::Error) -> Self {
        match (error.raw_os_error(), error.downcast::<Error>()) {
            (Some(errno), _) => Cause::Os(nix::errno::Errno::from_raw(errno)).into(),
            (None, Ok(own)) => own,
            (None, Err(error)) => Cause::Io(error).into(),
        }
    }
}

/// Adds context to any result whose error can become an [`Error`].
pub trait Context<T> {
    /// Says what was being done when it failed: `reading /proc/812/maps`.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().doing(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn an_error_says_doing_what_to_whom_why_once() {
        let error = Err::<(), _>(Errno::EACCES)
            .doing(|| "reading /proc/812/fdinfo/17")
            .doing(|| "capturing fd 17 of pid 812 (nginx)")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "capturing fd 17 of pid 812 (nginx): reading /proc/812/fdinfo/17: \
             Permission denied (EACCES)"
        );
    }

    #[test]
    fn a_failed_clean_up_does_not_hide_the_failure() {
        let error = Error::from(Errno::ENOSPC).and_cleanup(Err(Errno::EBUSY.into()));
        let text = error.to_string();
        assert!(
            text.starts_with("No space left on device (ENOSPC)"),
            "{text}"
        );
        assert!(text.contains("Device or resource busy (EBUSY)"), "{text}");
    }

    #[test]
    fn an_error_keeps_its_code_on_its_way_through_a_reader_or_writer() {
        let own = Error::coded("E-X", Exit::Image, "broken", "").doing("reading x");
        let back = Error::from(std::io::Error::other(own));
        assert_eq!(back.code(), "E-X");
        assert_eq!(back.to_string(), "reading x: E-X: broken");
        let plain = Error::from(std::io::Error::from_raw_os_error(2));
        assert_eq!(plain.errno(), Some(Errno::ENOENT));
    }

    #[test]
    fn refusals_are_reported_all_at_once() {
        let mut refusals = Refusals::new();
        refusals.add(
            "E-IOURING",
            "fd 3 of pid 1",
            "io_uring instance",
            "stop using it",
        );
        refusals.add("E-NETLINK", "fd 4 of pid 1", "netlink socket", "close it");
        let error = refusals.into_result().unwrap_err();
        assert_eq!(error.exit(), Exit::Refused);
        assert!(error.to_string().contains("E-IOURING") && error.to_string().contains("E-NETLINK"));
    }
}
