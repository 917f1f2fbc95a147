//! Root file systems for containers.

use super::ground::{Ground, unique};
use super::tools::{run, subject};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What the root of a container is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rootfs {
    /// An overlay over a small tree: busybox and the test program.
    Small,
    /// The same small tree, as a plain directory.
    Plain,
    /// An overlay over this machine's own root, so that every program here is there.
    Machine,
}

impl Rootfs {
    /// The directory below the overlay: what `ocimig restore --rootfs` needs to be given.
    pub fn base(self) -> Option<&'static Path> {
        match self {
            Self::Small => Some(small()),
            Self::Plain => None,
            Self::Machine => Some(Path::new("/")),
        }
    }

    /// Makes one at `rootfs`.
    pub fn make(self, ground: &Ground, rootfs: &Path) {
        let Some(base) = self.base() else {
            run(Command::new("cp").arg("-a").arg(small()).arg(rootfs));
            return;
        };
        fs::create_dir_all(rootfs).unwrap();
        let (upper, work) = (ground.fresh("upper"), ground.fresh("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        run(Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o"])
            .arg(format!(
                "lowerdir={},upperdir={},workdir={}",
                base.display(),
                upper.display(),
                work.display()
            ))
            .arg(rootfs));
    }
}

/// The small tree, made once for each build of the test program.
fn small() -> &'static Path {
    static SMALL: OnceLock<PathBuf> = OnceLock::new();
    SMALL.get_or_init(|| {
        let built = fs::metadata(subject()).unwrap().modified().unwrap();
        let stamp = built.duration_since(std::time::UNIX_EPOCH).unwrap();
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let tree = place.join(format!("rootfs-{}", stamp.as_nanos()));
        if !tree.exists() {
            let draft = place.join(unique("draft"));
            fill_small(&draft);
            // Whoever is first wins; the tree of a test beside this one is as good.
            if fs::rename(&draft, &tree).is_err() {
                fs::remove_dir_all(&draft).unwrap();
            }
        }
        tree
    })
}

fn fill_small(tree: &Path) {
    for directory in [
        "bin", "dev", "etc", "lib64", "proc", "root", "sys", "tmp", "usr", "var",
    ] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    for (name, target) in [("sbin", "bin"), ("usr/bin", "../bin"), ("lib", "lib64")] {
        symlink(target, tree.join(name)).unwrap();
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    fs::write(tree.join("etc/group"), "root:x:0:\n").unwrap();
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    for name in run(Command::new("/bin/busybox").arg("--list")).lines() {
        if name != "busybox" {
            symlink("busybox", tree.join("bin").join(name)).unwrap();
        }
    }
    let libraries: BTreeSet<String> = run(Command::new("ldd").arg(subject()))
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect();
    for library in libraries {
        let name = Path::new(&library).file_name().unwrap();
        fs::copy(&library, tree.join("lib64").join(name)).unwrap();
    }
    fs::copy(subject(), tree.join("bin/subject")).unwrap();
}
