//! `ocimig-runtime`: the host's runc or crun, with this program as the `criu` that they find.
//!
//! Every command goes on with its arguments untouched. Both runtimes look for `criu` in `PATH`, so
//! a private directory in front of it, with one link in it, is all that is needed.

use crate::error::{Context, Error, Exit, Result};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The variable that names the runtime below.
pub const VARIABLE: &str = "OCIMIG_RUNTIME";
/// The file whose first line names the runtime below, for callers that pass no variables on.
pub const FILE: &str = "/etc/ocimig/runtime";
/// Looked for in this order.
const KNOWN: [&str; 2] = ["runc", "crun"];

/// Becomes the runtime below, with these arguments (the program's name left out). `own_name` is
/// what this program was called: `ocimig-runc` and `ocimig-crun` say which runtime is meant.
pub fn main(own_name: &OsStr, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let error = match become_runtime(own_name, arguments) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    eprintln!("ocimig-runtime: {error}");
    ExitCode::from(error.exit() as u8)
}

fn become_runtime(
    own_name: &OsStr,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<std::convert::Infallible> {
    let own = own_program()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let variable = std::env::var_os(VARIABLE);
    let file = std::fs::read_to_string(FILE).ok();
    let runtime = choose(own_name, variable.as_deref(), file.as_deref(), &path, &own)?;
    let new_path = with_criu(&own, &path)?;
    let why = Command::new(&runtime)
        .args(arguments)
        .env("PATH", new_path)
        .exec();
    Err(Error::from(why).doing(format!("running {}", runtime.display())))
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().doing(|| "finding this program")
}

/// A `PATH` in which this program is the first criu.
fn with_criu(own: &Path, path: &OsStr) -> Result<OsString> {
    let mut new_path = private_directory(own)?.into_os_string();
    if !path.is_empty() {
        new_path.push(":");
        new_path.push(path);
    }
    Ok(new_path)
}

/// A runtime by name or path, and the `PATH` to run it with.
pub fn find(name: &str) -> Result<(PathBuf, OsString)> {
    let own = own_program()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = search(OsStr::new(name), &path, &own).ok_or_else(|| not_found(name))?;
    Ok((found, with_criu(&own, &path)?))
}

fn not_found(what: &str) -> Error {
    Error::coded(
        "E-NO-RUNTIME",
        Exit::NotFound,
        format!("{what} is not to be found"),
        format!("install it, or name one in {VARIABLE} or {FILE}"),
    )
}

/// The runtime below: by our name, the variable, the file, or what is installed.
fn choose(
    own_name: &OsStr,
    variable: Option<&OsStr>,
    file: Option<&str>,
    path: &OsStr,
    own: &Path,
) -> Result<PathBuf> {
    let by_name = KNOWN
        .iter()
        .map(OsStr::new)
        .find(|known| own_name.as_bytes().strip_prefix(b"ocimig-") == Some(known.as_bytes()));
    let by_file = file
        .and_then(|text| text.lines().map(str::trim).find(|line| !line.is_empty()))
        .filter(|line| !line.starts_with('#'))
        .map(OsStr::new);
    let wanted = by_name
        .or(variable.filter(|name| !name.is_empty()))
        .or(by_file);
    let found = match wanted {
        Some(name) => search(name, path, own),
        None => KNOWN
            .iter()
            .find_map(|name| search(OsStr::new(name), path, own)),
    };
    found.ok_or_else(|| {
        let what = wanted.map_or_else(
            || "neither runc nor crun".into(),
            |name| name.to_string_lossy(),
        );
        not_found(&what)
    })
}

/// An executable by path or by name, which is not this program under another name.
fn search(name: &OsStr, path: &OsStr, own: &Path) -> Option<PathBuf> {
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
    let candidates: Vec<PathBuf> = if name.as_bytes().contains(&b'/') {
        vec![PathBuf::from(name)]
    } else {
        std::env::split_paths(path)
            .chain(usual.map(PathBuf::from))
            .map(|directory| directory.join(name))
            .collect()
    };
    let own = std::fs::metadata(own).ok();
    candidates.into_iter().find(|candidate| {
        std::fs::metadata(candidate).is_ok_and(|there| {
            let ourselves = own
                .as_ref()
                .is_some_and(|own| (own.dev(), own.ino()) == (there.dev(), there.ino()));
            there.is_file() && there.permissions().mode() & 0o111 != 0 && !ourselves
        })
    })
}

/// A directory that holds `criu`, a link to `own`.
fn private_directory(own: &Path) -> Result<PathBuf> {
    let top = if nix::unistd::geteuid().is_root() {
        PathBuf::from("/run/ocimig")
    } else {
        std::env::var_os("XDG_RUNTIME_DIR")
            .map_or_else(std::env::temp_dir, PathBuf::from)
            .join("ocimig")
    };
    // Several builds may be in use on one host.
    let digest = blake3::hash(own.as_os_str().as_bytes()).to_hex();
    let directory = top.join("bin").join(&digest.as_str()[..16]);
    make_link(&directory, own).doing(|| format!("preparing {}", directory.display()))?;
    Ok(directory)
}

fn make_link(directory: &Path, own: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)?;
    let link = directory.join("criu");
    if std::fs::read_link(&link).is_ok_and(|to| to == own) {
        return Ok(());
    }
    // Several may do this at once: each renames a link of its own.
    let mine = directory.join(format!("criu.{}", std::process::id()));
    symlink(own, &mine)?;
    std::fs::rename(&mine, &link)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(directory: &Path, name: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_runtime_below_is_chosen_by_name_variable_file_and_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().as_os_str();
        let own = program(directory.path(), "ocimig", 0o755);
        let runc = program(directory.path(), "runc", 0o755);
        let crun = program(directory.path(), "crun", 0o755);
        let other = program(directory.path(), "other", 0o755);
        let chosen = |own_name: &str, variable: Option<&str>, file| {
            choose(
                OsStr::new(own_name),
                variable.map(OsStr::new),
                file,
                path,
                &own,
            )
            .unwrap()
        };
        assert_eq!(chosen("ocimig", None, None), runc);
        assert_eq!(chosen("ocimig-runtime", None, Some("crun\n")), crun);
        assert_eq!(chosen("ocimig", Some("other"), Some("crun")), other);
        assert_eq!(chosen("ocimig-crun", Some("other"), None), crun);
        let by_path = other.to_str().unwrap();
        assert_eq!(chosen("ocimig", Some(by_path), None), other);
    }

    #[test]
    fn it_does_not_find_itself_or_what_cannot_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().as_os_str();
        let own = program(directory.path(), "ocimig-own", 0o755);
        std::fs::hard_link(&own, directory.path().join("strange-runtime")).unwrap();
        program(directory.path(), "dead-runtime", 0o644);
        for name in ["strange-runtime", "dead-runtime", "no-runtime"] {
            assert_eq!(search(OsStr::new(name), path, &own), None, "{name}");
        }
        let error = choose(
            OsStr::new("ocimig"),
            Some(OsStr::new("no-runtime")),
            None,
            path,
            &own,
        );
        assert_eq!(error.unwrap_err().code(), "E-NO-RUNTIME");
    }

    #[test]
    fn the_link_is_made_once_and_follows_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let private = directory.path().join("bin/x");
        make_link(&private, Path::new("/a/ocimig")).unwrap();
        make_link(&private, Path::new("/a/ocimig")).unwrap();
        make_link(&private, Path::new("/b/ocimig")).unwrap();
        let to = std::fs::read_link(private.join("criu")).unwrap();
        assert_eq!(to, Path::new("/b/ocimig"));
        assert_eq!(std::fs::read_dir(&private).unwrap().count(), 1);
    }
}
