//! `ocimig restore`.

use super::watch::Watch;
use crate::error::{Context, Error, Exit, Result};
use crate::oci::register::{self, Order};
use crate::oci::runtime_front;
use crate::request::{Inherited, Place, Restore, RestoreOptions, Tcp};
use crate::restore::bundle;
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
    /// The runtime that knows the restored container: a name or a path; `none` is the engine alone
    /// [default: the one that it came from, if that can restore]
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
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

/// The runtime to go through, and the id that it shall know the container by.
fn runtime(arguments: &Arguments) -> Result<Option<(String, String)>> {
    if arguments.runtime.as_deref() == Some("none") || arguments.dry_run {
        return Ok(None);
    }
    let glance = bundle::glance(&arguments.image)?;
    let id = arguments.id.clone().unwrap_or(glance.id);
    if let Some(runtime) = &arguments.runtime {
        if !glance.config {
            return Err(Error::coded(
                "E-NO-CONFIG",
                Exit::Usage,
                "the image has no config.json, without which no runtime takes a container",
                "restore with --runtime none",
            ));
        }
        return Ok(Some((runtime.clone(), id)));
    }
    // What can only be done without a runtime is done without.
    let engine_alone = !glance.config
        || glance.terminal
        || id.is_empty()
        || arguments.tcp_close
        || !arguments.inherit.is_empty();
    // Distributions build crun without the part that restores.
    let runtime = glance.runtime.filter(|name| name == "runc");
    Ok(match runtime {
        Some(name) if !engine_alone && runtime_front::find(&name).is_ok() => Some((name, id)),
        _ => None,
    })
}

/// Restores by way of a runtime.
fn run_through(
    arguments: &Arguments,
    runtime: &str,
    id: &str,
    passed: &SigSet,
) -> Result<ExitCode> {
    let mut registration = register::start(&Order {
        image: &arguments.image,
        bundle: &arguments.bundle,
        base: arguments.rootfs.as_deref(),
        id,
        runtime,
        detach: arguments.detach,
        pid_file: arguments.pid_file.as_deref(),
        tcp: if arguments.tcp_established {
            Tcp::Keep
        } else {
            Tcp::Refuse
        },
    })?;
    let doing = || format!("restoring with {runtime}");
    let code = if arguments.detach {
        let status = registration.child.wait().doing(doing)?;
        status.code().unwrap_or(1)
    } else {
        let host_pid = registration.child.id().cast_signed();
        let pidfd = crate::sys::pidfd::open(host_pid)?;
        wait(host_pid, Some(&pidfd), passed)?
    };
    if !registration.was_restored() {
        return Err(registration.why()).doing(doing);
    }
    registration.keep();
    Ok(ExitCode::from(code as u8))
}

/// Runs `ocimig restore`. In the foreground the exit code is the container's.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    // Before anything is made: a signal that comes meanwhile waits until it can be passed on.
    let passed = passed_on();
    if !arguments.detach {
        passed.thread_block()?;
    }
    if let Some((runtime, id)) = runtime(&arguments)? {
        return run_through(&arguments, &runtime, &id, &passed);
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
    let code = wait(restored.host_pid, restored.init.as_ref(), &passed)?;
    Ok(ExitCode::from(code as u8))
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

/// Passes signals on until a process ends; its exit code, 128 and the signal's number for one that was
/// killed.
fn wait(host_pid: i32, process: Option<&OwnedFd>, passed: &SigSet) -> Result<i32> {
    let pid = Pid::from_raw(host_pid);
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) => {}
            Err(errno) => return Err(errno).doing(|| "waiting for the container"),
        }
        let signal = passed.wait().doing(|| "waiting for signals")?;
        if signal != Signal::SIGCHLD {
            let Some(process) = process else {
                return Err(Error::coded(
                    "E-NO-INIT",
                    Exit::Failure,
                    "the container has no first process",
                    "look at the log with -v",
                ));
            };
            crate::sys::pidfd::send_signal(process.as_fd(), signal as i32)
                .doing(|| format!("passing {signal} on"))?;
        }
    }
}
