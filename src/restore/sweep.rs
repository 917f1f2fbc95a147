//! What is left of a restore whose conductor was killed, taken away by a process of its own.
//!
//! Its processes die with the conductor, and with them their namespaces and mounts. The directory and the
//! control groups do not: the guard, which stands from before the first of them is made, then runs this
//! program under the name [`NAME`]. Proved by `integration/nothing_lost/restore.rs`.

use crate::error::{Context, Error, Result};
use crate::sys::guard::{Guard, Undo};
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// What the program is called to do this.
pub const NAME: &str = "ocimig-sweep";

/// How long killed processes may take to let go of what they hold.
const PATIENCE: Duration = Duration::from_secs(20);

/// Stands guard over a bundle that is about to be made at `directory`, and over control groups that are
/// not there yet, parents first. Told to end, it leaves everything.
pub(super) fn guard(directory: &Path, groups: &[PathBuf]) -> Result<Guard> {
    let how = if directory.exists() {
        "contents"
    } else {
        "whole"
    };
    let directory =
        std::path::absolute(directory).doing(|| format!("looking at {}", directory.display()))?;
    let mut arguments = vec![text(NAME.as_bytes())?, text(how.as_bytes())?];
    for path in std::iter::once(&directory).chain(groups) {
        arguments.push(text(path.as_os_str().as_bytes())?);
    }
    Guard::start(vec![Undo::Run {
        // The same program, even if its file was replaced or deleted meanwhile.
        program: c"/proc/self/exe".to_owned(),
        arguments,
    }])
}

fn text(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::bug("a path with a zero byte"))
}

/// The program [`NAME`]: `whole|contents BUNDLE GROUP…`.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let [how, directory, groups @ ..] = &arguments[..] else {
        return ExitCode::from(2);
    };
    let deadline = Instant::now() + PATIENCE;
    for group in groups.iter().rev().map(Path::new) {
        // Killed processes leave a group only once they are reaped.
        while group.exists() && std::fs::remove_dir(group).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
    let directory = Path::new(directory);
    while !is_swept(directory, how == "whole") && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    ExitCode::SUCCESS
}

fn is_swept(directory: &Path, whole: bool) -> bool {
    if std::fs::symlink_metadata(directory).is_err() {
        return true;
    }
    // Nothing is mounted there by a restore in this namespace. Whoever else did has files there that must
    // not be taken for the bundle's.
    if is_mounted_below(directory) {
        return true;
    }
    if whole {
        return std::fs::remove_dir_all(directory).is_ok();
    }
    let Ok(entries) = std::fs::read_dir(directory) else {
        return true;
    };
    let removed = entries.flatten().map(|entry| {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(path),
            _ => std::fs::remove_file(path),
        }
    });
    // All of them are tried, whatever becomes of one.
    removed.filter(std::result::Result::is_err).count() == 0
}

fn is_mounted_below(directory: &Path) -> bool {
    let own = crate::proc::read::Process::new(std::process::id().cast_signed());
    let Ok(mounts) = own.mountinfo() else {
        return true;
    };
    let points = mounts
        .iter()
        .map(|mount| Path::new(std::ffi::OsStr::from_bytes(&mount.mount_point)));
    points
        .into_iter()
        .any(|point| point != directory && point.starts_with(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(how: &str, directory: &Path, groups: &[&Path]) {
        let mut arguments = vec![how.into(), directory.into()];
        arguments.extend(groups.iter().map(|group| group.as_os_str().to_owned()));
        main(arguments);
    }

    #[test]
    fn a_bundle_goes_whole_and_a_directory_that_was_there_stays() {
        let place = tempfile::tempdir().unwrap();
        for (how, stays) in [("whole", false), ("contents", true)] {
            let bundle = place.path().join(how);
            std::fs::create_dir_all(bundle.join("rootfs/etc")).unwrap();
            std::fs::write(bundle.join("config.json"), "{}").unwrap();
            swept(how, &bundle, &[]);
            assert_eq!(bundle.exists(), stays, "{how}");
            assert!(!bundle.join("rootfs").exists() && !bundle.join("config.json").exists());
        }
    }

    #[test]
    fn groups_go_children_first() {
        let place = tempfile::tempdir().unwrap();
        let parent = place.path().join("group");
        let child = parent.join("child");
        std::fs::create_dir_all(&child).unwrap();
        swept("whole", &place.path().join("none"), &[&parent, &child]);
        assert!(!parent.exists());
    }
}
