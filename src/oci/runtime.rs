//! The state directories of runc and crun: container id → init process, bundle, cgroup.

use crate::error::{Context, Error, Exit, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A container that a runtime knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// `runc` or `crun`.
    pub runtime: String,
    /// The runtime's state directory (`--root`).
    pub root: PathBuf,
    /// Its first process, as this host numbers it.
    pub host_pid: i32,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its cgroup directories.
    pub cgroups: Vec<PathBuf>,
}

const DEFAULT_ROOTS: [&str; 2] = ["/run/runc", "/run/crun"];

/// Looks for a container in `root`, or where runc and crun keep theirs. E-NO-CONTAINER,
/// E-CONTAINER-STOPPED.
pub fn find(id: &str, root: Option<&Path>) -> Result<Container> {
    let roots: Vec<PathBuf> = match root {
        Some(root) => vec![root.to_owned()],
        None => DEFAULT_ROOTS.iter().map(PathBuf::from).collect(),
    };
    for root in &roots {
        let directory = root.join(id);
        for (file, read) in [
            ("state.json", runc as fn(&Value) -> Option<Container>),
            ("status", crun),
        ] {
            let path = directory.join(file);
            let Ok(text) = std::fs::read(&path) else {
                continue;
            };
            let value: Value = serde_json::from_slice(&text)
                .map_err(std::io::Error::from)
                .doing(|| format!("reading {}", path.display()))?;
            let found = read(&value).ok_or_else(|| unreadable(&path))?;
            let container = Container {
                id: id.to_owned(),
                root: root.clone(),
                ..found
            };
            return alive(container, &value);
        }
    }
    let searched: Vec<String> = roots
        .iter()
        .map(|root| root.display().to_string())
        .collect();
    Err(Error::coded(
        "E-NO-CONTAINER",
        Exit::NotFound,
        format!("no container {id:?} in {}", searched.join(", ")),
        "give an id that `runc list` or `crun list` shows, and --root where their state is elsewhere",
    ))
}

fn unreadable(path: &Path) -> Error {
    Error::coded(
        "E-RUNTIME-STATE",
        Exit::Failure,
        format!("{} is not what runc or crun write", path.display()),
        "give the number of the container's first process with --pid",
    )
}

fn runc(state: &Value) -> Option<Container> {
    let labels = state["config"]["labels"].as_array()?;
    let bundle = labels
        .iter()
        .filter_map(Value::as_str)
        .find_map(|label| label.strip_prefix("bundle="))?;
    let cgroups = state["cgroup_paths"].as_object();
    Some(Container {
        id: String::new(),
        runtime: "runc".to_owned(),
        root: PathBuf::new(),
        host_pid: state["init_process_pid"].as_i64()?.try_into().ok()?,
        bundle: bundle.into(),
        cgroups: cgroups
            .into_iter()
            .flat_map(|paths| paths.values())
            .filter_map(Value::as_str)
            .map(PathBuf::from)
            .collect(),
    })
}

fn crun(status: &Value) -> Option<Container> {
    Some(Container {
        id: String::new(),
        runtime: "crun".to_owned(),
        root: PathBuf::new(),
        host_pid: status["pid"].as_i64()?.try_into().ok()?,
        bundle: status["bundle"].as_str()?.into(),
        cgroups: Vec::new(),
    })
}

/// A process number may belong to somebody else by now: its start tells.
fn alive(container: Container, state: &Value) -> Result<Container> {
    let process = crate::proc::read::Process::new(container.host_pid);
    let started = [&state["init_process_start"], &state["process-start-time"]]
        .into_iter()
        .find_map(Value::as_u64);
    let is_alive = container.host_pid > 0
        && process
            .stat()
            .is_ok_and(|stat| started.is_none_or(|known| known == stat.starttime));
    if is_alive {
        return Ok(container);
    }
    Err(Error::coded(
        "E-CONTAINER-STOPPED",
        Exit::NotFound,
        format!("container {:?} does not run", container.id),
        format!(
            "start it with `{} start {}`",
            container.runtime, container.id
        ),
    ))
}
