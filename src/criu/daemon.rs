//! `criu service`: listens on a Unix socket, a worker for every connection.

use super::log::Log;
use super::settings::Settings;
use crate::error::{Context, Error, Exit, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};
use nix::sys::stat::{Mode, umask};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// The command of a worker; as `swrk`, for callers that did not start it themselves.
pub const WORKER: &str = "service-worker";
/// Where callers look for the service.
const ADDRESS: &str = "/var/run/criu_service.socket";

/// Serves until it is killed.
pub fn run(settings: &Settings, log: &Log) -> Result<()> {
    let work = settings.work_dir.clone().unwrap_or_else(|| ".".into());
    match &settings.log_file {
        Some(name) => {
            let path = work.join(name);
            let file = File::create(&path).doing(|| format!("creating {}", path.display()))?;
            log.open(file, settings.log_level);
        }
        None => log.open_stderr(File::from(super::ask::own(2)?), settings.log_level),
    }
    let address = settings
        .address
        .as_ref()
        .map_or_else(|| PathBuf::from(ADDRESS), PathBuf::from);
    if settings.detached {
        return Err(Error::coded(
            "E-CRIU-OPTION",
            Exit::Refused,
            "the service does not go to the background by itself",
            "start it there, and give --status-fd to know when it is ready",
        ));
    }
    let listener = listen_at(&address)?;
    if let Some(file) = &settings.pid_file {
        let path = work.join(file);
        std::fs::write(&path, std::process::id().to_string())
            .doing(|| format!("writing {}", path.display()))?;
    }
    if let Some(fd) = settings.status_fd {
        let mut ready = File::from(super::ask::own(fd)?);
        ready.write_all(&[0]).doing(|| "saying that it is ready")?;
        drop(ready);
        nix::unistd::close(fd).doing(|| format!("closing descriptor {fd}"))?;
    }
    tracing::info!("listening at {}", address.display());
    let mut workers: Vec<Child> = Vec::new();
    loop {
        let connection = match accept4(&listener, SockFlag::SOCK_CLOEXEC) {
            Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
            connection => connection.doing(|| "waiting for callers")?,
        };
        workers.retain_mut(|worker| matches!(worker.try_wait(), Ok(None)));
        match work_for(connection) {
            Ok(worker) => workers.push(worker),
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

/// Binds a socket that only its owner can connect to.
fn listen_at(address: &Path) -> Result<OwnedFd> {
    let doing = || format!("listening at {}", address.display());
    let listener = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .doing(doing)?;
    match std::fs::remove_file(address) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).doing(doing);
        }
        _ => {}
    }
    let name = UnixAddr::new(address).doing(doing)?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = bind(listener.as_raw_fd(), &name);
    umask(before);
    bound.doing(doing)?;
    listen(&listener, Backlog::new(16).map_err(Error::from)?).doing(doing)?;
    Ok(listener)
}

fn work_for(connection: OwnedFd) -> Result<Child> {
    // Inherited under its number; this process has one thread, nobody else inherits it.
    fcntl(&connection, FcntlArg::F_SETFD(FdFlag::empty())).doing(|| "passing the connection on")?;
    Command::new("/proc/self/exe")
        .arg0("criu")
        .args([WORKER, &connection.as_raw_fd().to_string()])
        .spawn()
        .doing(|| "starting a worker")
}
