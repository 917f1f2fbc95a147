//! A restore by way of the runtime that the container came from, so that it knows the container
//! afterwards: `runc list`, `state`, `exec`, `kill`, `delete` work on it.
//!
//! The runtime is told to restore from a directory that holds the image, and finds this program where
//! it looks for criu.

use super::runtime_front;
use crate::criu::{KEEP_NETWORK, images};
use crate::error::{Context, Error, Exit, Result};
use crate::request::Tcp;
use crate::restore::bundle::{self, Bundle};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// What is asked of a runtime.
#[derive(Debug)]
pub struct Order<'a> {
    /// The image.
    pub image: &'a Path,
    /// The bundle to make.
    pub bundle: &'a Path,
    /// What the image's changes to the root go over.
    pub base: Option<&'a Path>,
    /// The id of the restored container.
    pub id: &'a str,
    /// `runc`, `crun`, or a path.
    pub runtime: &'a str,
    /// Do not wait for its end.
    pub detach: bool,
    /// Where the number of the first process goes.
    pub pid_file: Option<&'a Path>,
    /// See [`Tcp`].
    pub tcp: Tcp,
}

/// A runtime at work. Dropped before [`Registration::keep`], the bundle is taken away again.
pub struct Registration {
    /// The runtime.
    pub child: Child,
    bundle: Bundle,
    directory: tempfile::TempDir,
}

/// Starts the runtime.
pub fn start(order: &Order<'_>) -> Result<Registration> {
    let image = order
        .image
        .canonicalize()
        .doing(|| format!("looking at {}", order.image.display()))?;
    let (runtime, path) = runtime_front::find(order.runtime)?;
    let bundle = bundle::prepare(&image, order.bundle, order.base)?;
    let directory = images_directory(&image)?;
    let mut command = Command::new(&runtime);
    command
        .arg("restore")
        .arg("--bundle")
        .arg(&bundle.directory)
        .arg("--image-path")
        .arg(directory.path())
        .arg("--work-path")
        .arg(directory.path());
    if order.detach {
        command.arg("--detach");
    }
    if let Some(file) = order.pid_file {
        command.arg("--pid-file").arg(file);
    }
    match order.tcp {
        Tcp::Refuse => {}
        Tcp::Keep => {
            command.arg("--tcp-established");
        }
        Tcp::Drop => {
            return Err(Error::coded(
                "E-REQUEST",
                Exit::Usage,
                "no runtime can be told to drop connections",
                "restore with --runtime none",
            ));
        }
    }
    let child = command
        .arg(order.id)
        .env("PATH", path)
        .env(KEEP_NETWORK, "1")
        .spawn()
        .doing(|| format!("running {}", runtime.display()))?;
    Ok(Registration {
        child,
        bundle,
        directory,
    })
}

impl Registration {
    /// The container goes on, or has gone on: the bundle stays.
    pub fn keep(self) {
        self.bundle.keep();
    }

    /// Whether the container was restored at all, though the runtime may have failed since.
    pub fn was_restored(&self) -> bool {
        self.directory.path().join("stats-restore").exists()
    }

    /// Why it was not, as far as our own part knows.
    pub fn why(&self) -> Error {
        let log = self.directory.path().join("restore.log");
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let reason = text
            .lines()
            .find_map(|line| line.split_once(" Error (")?.1.split_once("): "))
            .map_or("the runtime says no more than above", |(_, reason)| reason);
        Error::coded("E-RUNTIME", Exit::Failure, reason, "")
    }
}

/// A directory as a runtime expects it, with nothing but a link to the image.
fn images_directory(image: &Path) -> Result<tempfile::TempDir> {
    let top = PathBuf::from("/run/ocimig/restore");
    let doing = || format!("preparing a directory in {}", top.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&top)
        .doing(doing)?;
    let directory = tempfile::tempdir_in(&top).doing(doing)?;
    symlink(image, directory.path().join(images::IMAGE)).doing(doing)?;
    let streams = r#"["/dev/null","/dev/null","/dev/null"]"#;
    std::fs::write(directory.path().join("descriptors.json"), streams).doing(doing)?;
    Ok(directory)
}
