//! The ground a test stands on: a tmpfs of its own, removed with everything in it.

use super::tools::{read, run};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A name that no other test, here or in a process beside this one, uses.
pub fn unique(prefix: &str) -> String {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{number}", std::process::id())
}

/// A directory on a tmpfs of its own. Clones stand on the same ground.
#[derive(Clone)]
pub struct Ground {
    directory: Arc<Mounted>,
}

struct Mounted(PathBuf);

impl Ground {
    /// A new, empty one.
    pub fn new() -> Self {
        let directory = std::env::temp_dir().join(unique("ocimig-test"));
        std::fs::create_dir(&directory).unwrap();
        let mounted = Mounted(directory);
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", "mode=755", "ocimig-test"])
            .arg(&mounted.0));
        Self {
            directory: Arc::new(mounted),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.directory.0
    }

    /// A path on it that nobody uses.
    pub fn fresh(&self, prefix: &str) -> PathBuf {
        self.path().join(unique(prefix))
    }
}

/// The mount points at and below `directory`, the deepest and newest first.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let text = read("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|point| point.starts_with(directory))
        .collect();
    points.reverse();
    points
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for point in mounts_below(&self.0) {
            let _ = nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH);
        }
        // Only the empty mount point is left; remove_dir takes nothing else.
        let _ = std::fs::remove_dir(&self.0);
    }
}
