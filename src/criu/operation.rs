//! A checkpoint or a restore as both fronts of `criu` do it: log, request, engine, statistics.

use super::engine::Engine;
use super::images::Images;
use super::log::{self, Log};
use super::settings::Settings;
use super::socket::Socket;
use super::stages::Stages;
use super::{ask, stats};
use crate::error::{Context, Error, Result};
use crate::request::{CheckpointReport, Extent, Restored, Watcher};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Everything that an operation stands on.
pub struct Operation<'a> {
    /// What was asked for.
    pub settings: Settings,
    /// The images directory.
    pub images: Images,
    /// The directory of logs and statistics.
    pub work: PathBuf,
    /// Who is told, where it came by message.
    pub caller: Option<&'a Socket>,
    /// Where scripts write; `None` for our own output.
    pub output: Option<File>,
}

impl<'a> Operation<'a> {
    /// Opens the directories, and the log file there. `default_log` is its name where none is
    /// given; without either, lines go to standard error.
    pub fn begin(
        settings: Settings,
        directories: (&Path, Option<&Path>),
        default_log: Option<&str>,
        log: &Log,
        caller: Option<&'a Socket>,
    ) -> Result<Self> {
        let images = Images::open(directories.0)?;
        let work = match directories.1 {
            Some(work) => Images::open(work)?.path().to_owned(),
            None => images.path().to_owned(),
        };
        let name = settings.log_file.as_deref().or(default_log.map(Path::new));
        let file = match name.filter(|_| !settings.log_to_stderr) {
            Some(name) => {
                let path = work.join(name);
                let file = File::create(&path).doing(|| format!("creating {}", path.display()))?;
                log.open(file.try_clone()?, settings.log_level);
                file
            }
            None => {
                let file = File::from(ask::own(2)?);
                log.open_stderr(file.try_clone()?, settings.log_level);
                file
            }
        };
        // Scripts of a caller that passed its own descriptors on must not write there.
        let output = caller.map(|_| file);
        tracing::info!(
            "ocimig {} in {}",
            env!("CARGO_PKG_VERSION"),
            images.path().display()
        );
        Ok(Self {
            settings,
            images,
            work,
            caller,
            output,
        })
    }

    fn stages(&self) -> Result<Stages<'_>> {
        let output = self.output.as_ref().map(File::try_clone).transpose()?;
        Ok(Stages::new(
            &self.settings,
            &self.images,
            &self.work,
            self.caller,
            output,
        ))
    }

    /// Checkpoints the tree below `tree`.
    pub fn dump(
        &self,
        tree: i32,
        extent: Extent,
        engine: &mut dyn Engine,
    ) -> Result<CheckpointReport> {
        self.note_satisfied();
        let report = logged("dumping", || {
            let request = ask::checkpoint(&self.settings, &self.images, tree, extent)?;
            let mut stages = self.stages()?;
            let report = engine.checkpoint(&request, &mut stages)?;
            if extent == Extent::MemoryOnly {
                self.images.seal(self.settings.parent.as_deref())?;
            }
            Ok(report)
        })?;
        if let Err(why) = stats::write_dump(&self.work, &report) {
            // The processes are gone already: the image matters more than its numbers.
            tracing::warn!("{why}");
        }
        if self.caller.is_none() {
            let pages = report.pages_written + report.shared_pages_written;
            let noted = self.images.note_pages(pages * crate::image::memory::PAGE);
            if let Err(why) = noted {
                tracing::warn!("{why}");
            }
        }
        tracing::info!("{} processes dumped", report.processes);
        Ok(report)
    }

    /// Restores from the images directory.
    pub fn restore(&self, engine: &mut dyn Engine) -> Result<Restored> {
        self.note_satisfied();
        let restored = logged("restoring", || {
            let request = ask::restore(&self.settings, &self.images)?;
            let mut stages = self.stages()?;
            let watcher: &mut dyn Watcher = &mut stages;
            engine.restore(&request, watcher)
        })?;
        if let Err(why) = stats::write_restore(&self.work, &restored.report) {
            tracing::warn!("{why}");
        }
        tracing::info!("restored as process {}", restored.host_pid);
        Ok(restored)
    }

    /// Options that change nothing here are named in the log.
    fn note_satisfied(&self) {
        let satisfied = &self.settings.satisfied;
        for (name, given, why) in [
            ("deprecated", satisfied.deprecated, "nothing is deprecated"),
            (
                "force-irmap",
                satisfied.force_irmap,
                "names of watched files are always looked for",
            ),
            (
                "ghost-fiemap",
                satisfied.ghost_fiemap,
                "holes are always found by SEEK_HOLE",
            ),
            ("log-pid", satisfied.log_pid, "one process writes the log"),
            (
                "mntns-compat-mode",
                satisfied.mntns_compat_mode,
                "there is one way to make mounts",
            ),
            (
                "skip-file-rwx-check",
                satisfied.skip_file_rwx_check,
                "permissions of files are not compared",
            ),
            (
                "unprivileged",
                satisfied.unprivileged,
                "what rights allow is done in any case",
            ),
        ] {
            if given {
                tracing::info!("option {name}: {why}");
            }
        }
    }
}

/// Runs something whose failure goes into the log, a failure of this program's own included.
fn logged<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or(panic.downcast_ref::<&str>().copied());
        Err(Error::bug(text.unwrap_or("it panicked")))
    });
    if let Err(error) = &result {
        log::failure(error);
        tracing::error!("{what} failed");
    }
    result
}
