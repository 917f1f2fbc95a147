//! `ocimig restore`.

use super::watch::Watch;
use crate::error::{Context, Error, Exit, Result};
use crate::request::{Inherited, Place, Restore, RestoreOptions, Restored, Tcp};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

/// The arguments of `ocimig restore`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image
    image: PathBuf,
    /// The bundle to make: a directory that is not there yet
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// The id of the restored container [default: that of the image]
    #[arg(long)]
    id: Option<String>,
    /// The root file system that the image's changes go over
    #[arg(long, value_name = "BASE")]
    rootfs: Option<PathBuf>,
    /// The runtime that knows the restored container; `none` is the engine alone
    #[arg(long, value_name = "NAME", default_value = "none", value_parser = ["none"])]
    runtime: String,
    /// Return as soon as the container goes on
    #[arg(long)]
    detach: bool,
    /// Write the number of the container's first process to this file
    #[arg(long, value_name = "F")]
    pid_file: Option<PathBuf>,
    /// Bring TCP connections that lead outside back
    #[arg(long, conflicts_with = "tcp_close")]
    tcp_established: bool,
    /// Drop TCP connections that lead outside
    #[arg(long)]
    tcp_close: bool,
    /// A descriptor of this command in place of something outside: `pipe:[123]=FD`
    #[arg(long, value_name = "WHAT=FD", value_parser = inherited)]
    inherit: Vec<(String, i32)>,
    /// Report whether this host can restore the image; make nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    watch: super::watch::WatchArguments,
}

fn inherited(text: &str) -> Result<(String, i32), String> {
    let (key, fd) = text.rsplit_once('=').ok_or("there is no = in it")?;
    let fd = fd.parse().map_err(|_| format!("{fd:?} is no number"))?;
    Ok((key.to_owned(), fd))
}

/// Runs `ocimig restore`. In the foreground the exit code is the container's.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    // Before anything is made: a signal that comes meanwhile waits until it can be passed on.
    let passed = passed_on();
    if !arguments.detach {
        passed.thread_block()?;
    }
    let inherit = arguments
        .inherit
        .iter()
        .map(|(key, fd)| {
            let own = format!("/proc/self/fd/{fd}");
            let given = crate::sys::pidfd::open(std::process::id().cast_signed())
                .and_then(|own| crate::sys::pidfd::getfd(own.as_fd(), *fd))
                .doing(|| format!("taking {own}"))?;
            Ok(Inherited {
                key: key.clone(),
                fd: given,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let stream =
        |fd: std::os::fd::BorrowedFd<'_>| -> Option<OwnedFd> { fd.try_clone_to_owned().ok() };
    let request = Restore::new(
        arguments.image,
        Place::Bundle {
            directory: arguments.bundle,
            base: arguments.rootfs,
        },
        RestoreOptions {
            id: arguments.id,
            streams: [
                stream(std::io::stdin().as_fd()),
                stream(std::io::stdout().as_fd()),
                stream(std::io::stderr().as_fd()),
            ],
            inherit,
            tcp: match (arguments.tcp_established, arguments.tcp_close) {
                (true, _) => Tcp::Keep,
                (false, true) => Tcp::Drop,
                (false, false) => Tcp::Refuse,
            },
            dry_run: arguments.dry_run,
            ..RestoreOptions::default()
        },
    )?;
    let mut watch = Watch::new(&arguments.watch);
    let restored = crate::restore::run(&request, &mut watch)?;
    watch.restore_done(restored.host_pid, &restored.report);
    if arguments.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &arguments.pid_file {
        std::fs::write(path, restored.host_pid.to_string())
            .doing(|| format!("writing {}", path.display()))?;
    }
    if arguments.detach {
        return Ok(ExitCode::SUCCESS);
    }
    wait(&restored, &passed)
}

/// Signals that are passed on to the container's first process.
fn passed_on() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
        Signal::SIGCHLD,
    ] {
        set.add(signal);
    }
    set
}

/// Passes signals on until the container ends; its exit code, 128 and the signal's number for one that
/// was killed.
fn wait(restored: &Restored, passed: &SigSet) -> Result<ExitCode> {
    let init = Pid::from_raw(restored.host_pid);
    loop {
        match waitpid(init, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(ExitCode::from(code as u8)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(ExitCode::from(128 + signal as u8));
            }
            Ok(_) => {}
            Err(errno) => return Err(errno).doing(|| "waiting for the container"),
        }
        let signal = passed.wait().doing(|| "waiting for signals")?;
        if signal != Signal::SIGCHLD {
            let Some(init) = &restored.init else {
                return Err(Error::coded(
                    "E-NO-INIT",
                    Exit::Failure,
                    "the container has no first process",
                    "look at the log with -v",
                ));
            };
            crate::sys::pidfd::send_signal(init.as_fd(), signal as i32)
                .doing(|| format!("passing {signal} on"))?;
        }
    }
}
