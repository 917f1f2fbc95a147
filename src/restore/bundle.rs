//! A bundle for a runtime that then restores the container into it, and knows it afterwards.

use super::read::Records;
use super::root::Prepared;
use crate::error::{Context, Error, Exit, Result};
use crate::image::archive::Reader;
use crate::request::Place;
use crate::resource::namespaces::mnt::Root;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A bundle that is ready. Dropped before [`Bundle::keep`], it is taken away again.
pub struct Bundle {
    /// In this order: what is mounted goes first.
    mounted: Option<Mounted>,
    prepared: Prepared,
    /// Where it is.
    pub directory: PathBuf,
}

/// What an image says of the container in it, to somebody who looks for a runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// The id under which it ran.
    pub id: String,
    /// The runtime that it came from.
    pub runtime: Option<String>,
    /// It has a config.json, without which no runtime takes it.
    pub config: bool,
    /// Its first process has a terminal, which a runtime has to be given a place for.
    pub terminal: bool,
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(errno) = umount2(&self.0, MntFlags::MNT_DETACH) {
            tracing::warn!("unmounting {}: {errno}", self.0.display());
        }
    }
}

/// Looks at an image.
pub fn glance(image: &Path) -> Result<Glance> {
    let image = Reader::open(image)?;
    let config: Option<serde_json::Value> = match image.has("config.json") {
        true => Some(image.record("config.json")?),
        false => None,
    };
    let container = &image.header().container;
    Ok(Glance {
        id: container.id.clone(),
        runtime: container.runtime.clone(),
        terminal: config
            .as_ref()
            .is_some_and(|config| config["process"]["terminal"] == true),
        config: config.is_some(),
    })
}

/// Makes a bundle from an image: config.json as it ran, the root file system in place.
pub fn prepare(image: &Path, directory: &Path, base: Option<&Path>) -> Result<Bundle> {
    let image = Reader::open(image)?;
    let records = Records::read(&image)?;
    let place = Place::Bundle {
        directory: directory.to_owned(),
        base: base.map(Path::to_owned),
    };
    let prepared = Prepared::new(&place, &image, &records)?;
    let directory = directory
        .canonicalize()
        .doing(|| format!("looking at {}", directory.display()))?;
    let point = directory.join("rootfs");
    let mounted = match prepared.root() {
        Root::Directory(path) if path == point => None,
        Root::Directory(path) => {
            bind(path, &point)?;
            Some(Mounted(point))
        }
        Root::Overlay {
            point,
            lower,
            upper,
            work,
        } => {
            overlay(point, lower, upper, work)?;
            Some(Mounted(point.to_owned()))
        }
    };
    Ok(Bundle {
        mounted,
        prepared,
        directory,
    })
}

impl Bundle {
    /// The container goes on: the bundle stays, and what is mounted in it.
    pub fn keep(self) {
        if let Some(mounted) = self.mounted {
            std::mem::forget(mounted);
        }
        self.prepared.keep();
    }
}

fn bind(from: &Path, point: &Path) -> Result<()> {
    mount(
        Some(from),
        point,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .doing(|| format!("mounting {} at {}", from.display(), point.display()))
}

fn overlay(point: &Path, lower: &Path, upper: &Path, work: &Path) -> Result<()> {
    let mut options = OsString::new();
    for (name, path) in [
        ("lowerdir=", lower),
        (",upperdir=", upper),
        (",workdir=", work),
    ] {
        options.push(name);
        options.push(escaped(path)?);
    }
    mount(
        Some("overlay"),
        point,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_os_str()),
    )
    .doing(|| format!("mounting an overlay at {}", point.display()))
}

/// As mount(2) takes it; a comma is beyond it.
fn escaped(path: &Path) -> Result<OsString> {
    let mut bytes = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b',' => {
                return Err(Error::coded(
                    "E-ROOTFS-BASE",
                    Exit::Usage,
                    format!("{} has a comma in it", path.display()),
                    "use a directory without",
                ));
            }
            b':' | b'\\' => bytes.extend([b'\\', byte]),
            byte => bytes.push(byte),
        }
    }
    Ok(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_for_an_overlay() {
        assert_eq!(escaped(Path::new("/a/b:c\\d")).unwrap(), "/a/b\\:c\\\\d");
        assert!(escaped(Path::new("/a,b")).is_err());
    }
}
