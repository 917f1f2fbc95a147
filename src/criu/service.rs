//! The RPC: `criu swrk FD`, and the workers of `criu service`.
//!
//! One operation a process, unless the caller keeps the connection open or is in the middle of
//! pre-dumps. The process ends with status 0 whenever it has answered.

use super::engine::Engine;
use super::log::{self, Log};
use super::operation::Operation;
use super::settings::{Settings, wrong};
use super::socket::{Socket, short};
use super::wire::{self, Kind, Request, Response};
use super::{VERSION, config, cpuinfo, features};
use crate::error::{Cause, Context, Error, Exit, Result};
use crate::request::Extent;
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};

/// What a log is called where the caller does not say.
const DEFAULT_LOG: &str = "criu.log";

/// Serves one connection.
pub struct Service<'a> {
    socket: Socket,
    engine: &'a mut dyn Engine,
    log: Log,
    /// Started by the caller itself, which may be given siblings.
    own_caller: bool,
}

impl<'a> Service<'a> {
    /// Serves `socket`. `own_caller` for `swrk`, whose parent is the caller.
    pub fn new(socket: Socket, engine: &'a mut dyn Engine, log: Log, own_caller: bool) -> Self {
        Self {
            socket,
            engine,
            log,
            own_caller,
        }
    }

    /// Answers until the caller has nothing more to ask. An error says that it cannot be talked to.
    pub fn run(&mut self) -> Result<()> {
        loop {
            let request = match self.socket.receive() {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(()),
                Err(error) if matches!(error.cause(), Cause::Os(_)) => return Err(error),
                Err(error) => {
                    log::failure(&error);
                    return self.socket.send(&failed(Kind::Empty, &error), None);
                }
            };
            let kind = request.r#type();
            let (response, after) = self.answer(&request);
            let success = response.success;
            self.socket.send(&response, None)?;
            if let Some(command) = after {
                return Err(exec(&command));
            }
            let more = request.keep_open.unwrap_or(false) || (kind == Kind::PreDump && success);
            if !more {
                return Ok(());
            }
        }
    }

    /// The answer, and a command to become afterwards.
    fn answer(&mut self, request: &Request) -> (Response, Option<Vec<String>>) {
        let kind = Kind::try_from(request.r#type).unwrap_or(Kind::Empty);
        let mut after = None;
        let result = match kind {
            Kind::Version => Ok(Response {
                version: Some(wire::Version {
                    major_number: VERSION.0,
                    minor_number: VERSION.1,
                    name: Some(concat!("ocimig ", env!("CARGO_PKG_VERSION")).to_owned()),
                    ..wire::Version::default()
                }),
                ..Response::new(kind, true)
            }),
            Kind::FeatureCheck => Ok(Response {
                features: Some(features::asked(request.features.unwrap_or_default())),
                ..Response::new(kind, true)
            }),
            Kind::Check => features::check_basics().map(|()| Response::new(kind, true)),
            Kind::Dump => self.dump(request, Extent::Whole).map(|()| Response {
                dump: Some(wire::Dumped {
                    restored: Some(false),
                }),
                ..Response::new(kind, true)
            }),
            Kind::PreDump | Kind::SinglePreDump => self
                .dump(request, Extent::MemoryOnly)
                .map(|()| Response::new(kind, true)),
            Kind::Restore => self.restore(request).map(|pid| {
                after = request
                    .opts
                    .as_ref()
                    .map(|options| options.exec_cmd.clone())
                    .filter(|command| !command.is_empty());
                Response {
                    restore: Some(wire::Restored { pid }),
                    ..Response::new(kind, true)
                }
            }),
            Kind::CpuinfoDump => begin(&self.socket, &self.log, request)
                .and_then(|operation| cpuinfo::dump(&operation.images))
                .map(|()| Response::new(kind, true)),
            Kind::CpuinfoCheck => begin(&self.socket, &self.log, request)
                .and_then(|operation| cpuinfo::check(&operation.images))
                .map(|()| Response::new(kind, true)),
            Kind::WaitPid => wait(request.pid).map(|status| Response {
                status: Some(status),
                ..Response::new(kind, true)
            }),
            Kind::PageServer | Kind::PageServerChild => Err(page_server_refused()),
            Kind::Notify | Kind::Empty => Err(wrong(
                format!("request type {} is no request", request.r#type),
                "send DUMP, RESTORE, CHECK, …",
            )),
        };
        let response = result.unwrap_or_else(|error| failed(kind, &error));
        (response, after)
    }

    fn dump(&mut self, request: &Request, extent: Extent) -> Result<()> {
        let operation = begin(&self.socket, &self.log, request)?;
        let tree = match operation.settings.tree {
            Some(tree) => tree,
            None => self.socket.peer()?,
        };
        operation.dump(tree, extent, self.engine)?;
        Ok(())
    }

    fn restore(&mut self, request: &Request) -> Result<i32> {
        let operation = begin(&self.socket, &self.log, request)?;
        if operation.settings.sibling && !self.own_caller {
            return Err(wrong(
                "rst_sibling is for callers that started criu themselves",
                "leave it out, or use swrk",
            ));
        }
        Ok(operation.restore(self.engine)?.host_pid)
    }
}

/// Reads options, opens directories and the log.
fn begin<'s>(socket: &'s Socket, log: &Log, request: &Request) -> Result<Operation<'s>> {
    let options = request
        .opts
        .as_ref()
        .ok_or_else(|| wrong("the request has no options", "send opts"))?;
    let mut settings = Settings::default();
    config::apply_defaults(&mut settings)?;
    settings.merge(options)?;
    if let Some(name) = &options.log_file
        && name.contains('/')
    {
        return Err(wrong(
            format!("log_file {name:?} is not in the work directory"),
            "give a name without a slash",
        ));
    }
    let defaults = (settings.images_dir.take(), settings.work_dir.take());
    if let Some(file) = options
        .config_file
        .as_deref()
        .filter(|file| !file.is_empty())
    {
        config::apply(&mut settings, Path::new(file), false)?;
    }
    if std::env::var_os(super::KEEP_NETWORK).is_some() {
        settings.empty_namespaces.clear();
    }
    // The file that a caller names beats the caller.
    let images = match settings.images_dir.take() {
        Some(directory) => directory,
        None => match options.images_dir_fd.filter(|fd| *fd >= 0) {
            Some(fd) => socket.peer_path(fd)?,
            None => options
                .images_dir
                .as_ref()
                .map(PathBuf::from)
                .or(defaults.0)
                .ok_or_else(|| wrong("no images directory is given", "send images_dir_fd"))?,
        },
    };
    let work = match settings.work_dir.take() {
        Some(directory) => Some(directory),
        None => match options.work_dir_fd.filter(|fd| *fd >= 0) {
            Some(fd) => Some(socket.peer_path(fd)?),
            None => defaults.1,
        },
    };
    Operation::begin(
        settings,
        (&images, work.as_deref()),
        Some(DEFAULT_LOG),
        log,
        Some(socket),
    )
}

fn failed(kind: Kind, error: &Error) -> Response {
    let errno = match error.exit() {
        Exit::Usage => Errno::EBADRQC,
        Exit::Refused if error.code() == "E-CRIU-OPTION" => Errno::EBADRQC,
        Exit::Refused => Errno::EOPNOTSUPP,
        Exit::NotFound => Errno::ENOENT,
        Exit::Image => Errno::EBADMSG,
        Exit::Host => Errno::ENOSYS,
        Exit::Failure => error.errno().unwrap_or(Errno::EIO),
    };
    Response {
        cr_errno: Some(errno as i32),
        cr_errmsg: Some(short(&log::lines(error).join("\n"))),
        ..Response::new(kind, false)
    }
}

/// Why there is no server for pages.
pub fn page_server_refused() -> Error {
    Error::coded(
        "E-CRIU-PAGE-SERVER",
        Exit::Refused,
        "the image is one stream, and there is no server for its pages alone",
        "write the image to where it is needed, or send it there with ocimig checkpoint --output -",
    )
}

fn wait(pid: Option<u32>) -> Result<i32> {
    let pid = pid
        .and_then(|pid| i32::try_from(pid).ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| wrong("no process is given", "send pid"))?;
    loop {
        let status = match waitpid(Pid::from_raw(pid), None) {
            Err(Errno::EINTR) => continue,
            status => status.doing(|| format!("waiting for process {pid}"))?,
        };
        match status {
            WaitStatus::Exited(_, code) => return Ok(code << 8),
            WaitStatus::Signaled(_, signal, core) => {
                return Ok(signal as i32 | if core { 0x80 } else { 0 });
            }
            _ => {}
        }
    }
}

/// Becomes `command`; comes back only where that fails.
pub fn exec(command: &[String]) -> Error {
    use std::os::unix::process::CommandExt;
    let Some((program, arguments)) = command.split_first() else {
        return wrong("there is no command", "give one after --");
    };
    Error::from(std::process::Command::new(program).args(arguments).exec())
        .doing(format!("running {program}"))
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
