//! The bundle of a restored container: its directory, config.json, root file system.

use super::read::Records;
use crate::error::{Context, Error, Exit, Result};
use crate::image::archive::Reader;
use crate::request::Place;
use crate::resource::layer::{Whiteouts, unpack};
use crate::resource::namespaces::mnt::Root;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A root file system that is ready to be mounted. Dropped before [`Prepared::keep`], it takes away
/// what it made.
#[derive(Debug)]
pub struct Prepared {
    made: Option<PathBuf>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Directory(PathBuf),
    Overlay {
        point: PathBuf,
        lower: PathBuf,
        upper: PathBuf,
        work: PathBuf,
    },
}

impl Prepared {
    /// Makes the bundle, or takes the root that a runtime has made.
    pub fn new(place: &Place, image: &Reader, records: &Records) -> Result<Self> {
        match place {
            Place::Root(root) => Ok(Self {
                made: None,
                kind: Kind::Directory(root.clone()),
            }),
            Place::Host => Ok(Self {
                made: None,
                kind: Kind::Directory("/".into()),
            }),
            Place::Bundle { directory, base } => bundle(directory, base.as_deref(), image, records),
        }
    }

    /// For the mount tree.
    pub fn root(&self) -> Root<'_> {
        match &self.kind {
            Kind::Directory(path) => Root::Directory(path),
            Kind::Overlay {
                point,
                lower,
                upper,
                work,
            } => Root::Overlay {
                point,
                lower,
                upper,
                work,
            },
        }
    }

    /// The container goes on: the bundle stays.
    pub fn keep(mut self) {
        self.made = None;
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(made) = &self.made
            && let Err(error) = std::fs::remove_dir_all(made)
        {
            tracing::warn!("removing {}: {error}", made.display());
        }
    }
}

fn bundle(
    directory: &Path,
    base: Option<&Path>,
    image: &Reader,
    records: &Records,
) -> Result<Prepared> {
    let is_new = match DirBuilder::new().mode(0o711).create(directory) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let mut entries = std::fs::read_dir(directory)
                .doing(|| format!("reading {}", directory.display()))?;
            if entries.next().is_some() {
                return Err(Error::coded(
                    "E-BUNDLE-EXISTS",
                    Exit::Usage,
                    format!("{} is there and not empty", directory.display()),
                    "give a directory that is not there yet",
                ));
            }
            false
        }
        Err(error) => return Err(error).doing(|| format!("making {}", directory.display())),
    };
    let directory = directory
        .canonicalize()
        .doing(|| format!("looking at {}", directory.display()))?;
    let rootfs = directory.join("rootfs");
    let mut prepared = Prepared {
        made: is_new.then(|| directory.clone()),
        kind: Kind::Directory(rootfs.clone()),
    };
    make(&rootfs, 0o755)?;
    if let Some(config) = &records.config {
        let mut config = config.clone();
        config["root"]["path"] = "rootfs".into();
        let text = serde_json::to_vec_pretty(&config)
            .map_err(|why| Error::bug(format!("config.json cannot be written: {why}")))?;
        let path = directory.join("config.json");
        std::fs::write(&path, text).doing(|| format!("writing {}", path.display()))?;
    }
    let layer = |pieces: &str, target: &Path, whiteouts| {
        let target_file = File::open(target).doing(|| format!("opening {}", target.display()))?;
        unpack(
            &mut image.read_pieces(pieces),
            target_file.as_fd(),
            whiteouts,
        )
        .doing(|| format!("unpacking the root file system to {}", target.display()))
    };
    if image.pieces("rootfs/full") > 0 {
        layer("rootfs/full", &rootfs, Whiteouts::Remove)?;
        return Ok(prepared);
    }
    let Some(base) = base else {
        if !records.has_own("mnt") {
            prepared.kind = Kind::Directory("/".into());
            return Ok(prepared);
        }
        return Err(Error::coded(
            "E-ROOTFS-BASE",
            Exit::Usage,
            "the image has only what the container changed in its root file system",
            "give the root file system that it was started with: --rootfs DIR",
        ));
    };
    let lower = base.canonicalize().map_err(|error| {
        Error::coded(
            "E-ROOTFS-BASE",
            Exit::Usage,
            format!("{}: {error}", base.display()),
            "give a directory with --rootfs",
        )
    })?;
    if image.pieces("rootfs/diff") == 0 {
        prepared.kind = Kind::Directory(lower);
        return Ok(prepared);
    }
    let upper = directory.join("upper");
    let work = directory.join("work");
    make(&upper, 0o755)?;
    make(&work, 0o700)?;
    layer("rootfs/diff", &upper, Whiteouts::Overlay)?;
    prepared.kind = Kind::Overlay {
        point: rootfs,
        lower,
        upper,
        work,
    };
    Ok(prepared)
}

fn make(directory: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .mode(mode)
        .create(directory)
        .doing(|| format!("making {}", directory.display()))
}
