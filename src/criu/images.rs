//! The images directory: one image of ours, and the small files that callers look for.

use crate::error::{Context, Error, Exit, Result};
use crate::request::Parent;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// The image in an images directory.
pub const IMAGE: &str = "ocimig.tar";
/// The link to the directory of the parent.
const PARENT: &str = "parent";
/// See [`Images::note_pages`].
const PAGES: &str = "pages-1.img";
/// What callers take for the sign that a directory holds a checkpoint.
const INVENTORY: &str = "inventory.img";
/// What the other engine's directories hold.
const FOREIGN: &str = "pstree.img";

/// A directory that stays open.
#[derive(Debug)]
pub struct Images {
    path: PathBuf,
    handle: OwnedFd,
}

impl Images {
    /// Opens a directory that is there.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let handle = open(path, flags, Mode::empty())
            .doing(|| format!("opening directory {}", path.display()))?;
        let through = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
        // Its name is better to read, as long as it leads there.
        let named = std::fs::read_link(&through)
            .ok()
            .filter(|named| same(named, &through));
        Ok(Self {
            path: named.unwrap_or(through),
            handle,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself.
    pub fn handle(&self) -> &OwnedFd {
        &self.handle
    }

    /// The image in it.
    pub fn image(&self) -> PathBuf {
        self.path.join(IMAGE)
    }

    /// The image in it, which must be there.
    pub fn existing_image(&self) -> Result<PathBuf> {
        let image = self.image();
        // What it is a link to has its own parents beside it.
        if let Ok(image) = image.canonicalize() {
            return Ok(image);
        }
        let (reason, remedy) = if self.path.join(FOREIGN).exists() {
            (
                "it holds images written by CRIU",
                "restore them with CRIU, or checkpoint again with ocimig",
            )
        } else {
            (
                "it holds no image",
                "give a directory with ocimig.tar in it",
            )
        };
        Err(
            Error::coded("E-IMAGE-MISSING", Exit::NotFound, reason, remedy)
                .doing(format!("looking into {}", self.path.display())),
        )
    }

    /// The parent in `directory`, which is relative to this one.
    pub fn parent(&self, directory: &Path) -> Result<Parent> {
        let parent = self.path.join(directory);
        let image = parent.join(IMAGE);
        if !image.exists() {
            return Err(Error::coded(
                "E-IMAGE-PARENT",
                Exit::NotFound,
                format!("there is no image in {}", parent.display()),
                "give the directory of an earlier pre-dump, relative to the new one",
            ));
        }
        Ok(Parent {
            image,
            recorded_as: Path::new(PARENT).join(IMAGE),
        })
    }

    /// Adds what callers look for. The image is complete.
    pub fn seal(&self, parent: Option<&Path>) -> Result<()> {
        let link = self.path.join(PARENT);
        let doing = || format!("linking {}", link.display());
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).doing(doing);
            }
            _ => {}
        }
        if let Some(parent) = parent {
            symlink(parent, &link).doing(doing)?;
        }
        let inventory = self.path.join(INVENTORY);
        let text = format!(
            "This checkpoint was written by ocimig {}: everything is in {IMAGE}.\n",
            env!("CARGO_PKG_VERSION")
        );
        std::fs::write(&inventory, text).doing(|| format!("writing {}", inventory.display()))
    }

    /// Leaves a hole of the size of all stored pages: callers of the command line compare the sizes of
    /// files that are called so with the number of pages in the statistics. The pages are in the image.
    pub fn note_pages(&self, bytes: u64) -> Result<()> {
        let path = self.path.join(PAGES);
        let doing = || format!("writing {}", path.display());
        let file = std::fs::File::create(&path).doing(doing)?;
        file.set_len(bytes).doing(doing)
    }
}

fn same(one: &Path, other: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_directory_has_what_callers_look_for() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::open(directory.path()).unwrap();
        assert_eq!(images.path(), directory.path().canonicalize().unwrap());
        images.seal(Some(Path::new("../pre"))).unwrap();
        images.seal(Some(Path::new("../pre2"))).unwrap();
        assert!(directory.path().join("inventory.img").exists());
        let link = directory.path().join("parent");
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("../pre2"));
        images.seal(None).unwrap();
        assert!(link.symlink_metadata().is_err());
    }

    #[test]
    fn a_missing_image_is_told_from_one_of_another_engine() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::open(directory.path()).unwrap();
        let text = images.existing_image().unwrap_err().to_string();
        assert!(text.contains("no image"), "{text}");
        std::fs::write(directory.path().join("pstree.img"), "").unwrap();
        let text = images.existing_image().unwrap_err().to_string();
        assert!(text.contains("CRIU"), "{text}");
        std::fs::write(directory.path().join(IMAGE), "").unwrap();
        assert!(images.existing_image().is_ok());
    }

    #[test]
    fn a_parent_is_found_beside() {
        let top = tempfile::tempdir().unwrap();
        for name in ["pre", "full"] {
            std::fs::create_dir(top.path().join(name)).unwrap();
        }
        let images = Images::open(&top.path().join("full")).unwrap();
        assert!(images.parent(Path::new("../pre")).is_err());
        std::fs::write(top.path().join("pre").join(IMAGE), "").unwrap();
        let parent = images.parent(Path::new("../pre")).unwrap();
        assert_eq!(parent.recorded_as, Path::new("parent/ocimig.tar"));
        assert!(parent.image.exists());
    }
}
