//! What a caller of `criu` is told in the middle: action scripts run, notifications are sent and
//! their acknowledgements awaited.

use super::images::Images;
use super::settings::Settings;
use super::socket::Socket;
use super::wire;
use crate::error::{Context, Error, Exit, Result};
use crate::request::{External, Facts, Stage, Watcher};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The name of a stage among callers.
pub fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::PreDump => "pre-dump",
        Stage::NetworkLock => "network-lock",
        Stage::QueryExtFiles => "query-ext-files",
        Stage::PostDump => "post-dump",
        Stage::NetworkUnlock => "network-unlock",
        Stage::StatusReady => "status-ready",
        Stage::PreRestore => "pre-restore",
        Stage::SetupNamespaces => "setup-namespaces",
        Stage::PostSetupNamespaces => "post-setup-namespaces",
        Stage::OrphanPtsMaster => "orphan-pts-master",
        Stage::PostRestore => "post-restore",
        Stage::PreResume => "pre-resume",
        Stage::PostResume => "post-resume",
    }
}

/// Tells a caller.
pub struct Stages<'a> {
    scripts: &'a [PathBuf],
    images: &'a Images,
    parent: Option<&'a Path>,
    pid_file: Option<PathBuf>,
    caller: Option<&'a Socket>,
    /// Where scripts write, instead of our own output, which is the container's.
    output: Option<File>,
    init: Option<i32>,
    external: Vec<External>,
}

impl<'a> Stages<'a> {
    /// For an operation on `images`. With a `caller` notifications go there, if it asked for them.
    pub fn new(
        settings: &'a Settings,
        images: &'a Images,
        work: &Path,
        caller: Option<&'a Socket>,
        output: Option<File>,
    ) -> Self {
        Self {
            scripts: &settings.action_scripts,
            images,
            parent: settings.parent.as_deref(),
            pid_file: settings.pid_file.as_ref().map(|file| work.join(file)),
            caller: caller.filter(|_| settings.notify_scripts),
            output,
            init: None,
            external: Vec::new(),
        }
    }

    fn run_script(&self, script: &Path, stage: Stage) -> Result<()> {
        let mut command = Command::new(script);
        command
            .env("CRTOOLS_SCRIPT_ACTION", name(stage))
            .env("CRTOOLS_IMAGE_DIR", self.images.path());
        if let Some(init) = self.init {
            command.env("CRTOOLS_INIT_PID", init.to_string());
        }
        if let Some(output) = &self.output {
            command
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output.try_clone()?);
        }
        let status = command.status()?;
        if status.success() {
            return Ok(());
        }
        Err(Error::coded(
            "E-CRIU-SCRIPT",
            Exit::Failure,
            format!("it ended with {status}"),
            "see what the script says",
        ))
    }

    fn tell(
        &mut self,
        caller: &Socket,
        stage: Stage,
        pid: Option<i32>,
        master: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let pid = pid.filter(|_| matches!(stage, Stage::SetupNamespaces | Stage::PostRestore));
        let message = wire::Response {
            notify: Some(wire::Notify {
                script: Some(name(stage).to_owned()),
                pid,
            }),
            ..wire::Response::new(wire::Kind::Notify, true)
        };
        caller.send(&message, master)?;
        let refused = |reason: &str| {
            Error::coded(
                "E-CRIU-NOTIFY",
                Exit::Failure,
                reason,
                "see what the caller says",
            )
        };
        let Some(answer) = caller.receive()? else {
            return Err(refused("the caller is gone"));
        };
        if answer.r#type() != wire::Kind::Notify {
            return Err(refused(
                "the caller sent another request instead of an answer",
            ));
        }
        if !answer.notify_success.unwrap_or(false) {
            return Err(refused("the caller says that it failed"));
        }
        if stage == Stage::QueryExtFiles {
            for text in answer.opts.iter().flat_map(|options| &options.external) {
                self.external.push(text.parse()?);
            }
        }
        Ok(())
    }
}

impl Watcher for Stages<'_> {
    fn notify(&mut self, stage: Stage, facts: &Facts<'_>) -> Result<()> {
        tracing::info!("{}", name(stage));
        self.init = facts.pid.or(self.init);
        if stage == Stage::PostDump {
            self.images.seal(self.parent)?;
        }
        if stage == Stage::PostRestore
            && let (Some(file), Some(pid)) = (&self.pid_file, self.init)
        {
            std::fs::write(file, pid.to_string())
                .doing(|| format!("writing {}", file.display()))?;
        }
        // These two are for callers that answer.
        if !matches!(stage, Stage::QueryExtFiles | Stage::OrphanPtsMaster) {
            for script in self.scripts {
                self.run_script(script, stage)
                    .doing(|| format!("running {} at {}", script.display(), name(stage)))?;
            }
        }
        if let Some(caller) = self.caller {
            self.tell(caller, stage, facts.pid, facts.master)
                .doing(|| format!("telling the caller of {}", name(stage)))?;
        }
        Ok(())
    }

    fn external(&mut self) -> Vec<External> {
        std::mem::take(&mut self.external)
    }
}
