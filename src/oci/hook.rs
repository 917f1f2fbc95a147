//! `ocimig hook STAGE`: what OCI hooks call, with the container's state on standard input.
//!
//! Where the annotation `org.ocimig.checkpoint.every` is there, `poststart` (and `createRuntime` in
//! a restore) leaves a watcher that checkpoints the running container into
//! `org.ocimig.checkpoint.dir`, keeps the newest `org.ocimig.checkpoint.keep` images, and ends with
//! the container. `poststop` waits for that end.
//!
//! runc takes a container down whose poststart hook fails: a failure here is told on standard error
//! and in the watcher's log, and the hook succeeds.

use crate::error::{Context, Error, Exit, Result};
use crate::oci::watch;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Annotations begin with this.
const PREFIX: &str = "org.ocimig.checkpoint.";
/// Where images go unless an annotation says otherwise.
const DIRECTORY: &str = "/var/lib/ocimig/checkpoints";
/// How many stay unless an annotation says otherwise.
const KEEP: usize = 3;

/// The state that a runtime gives its hooks.
#[derive(Debug, Clone, Deserialize)]
pub struct State {
    /// The container's id.
    pub id: String,
    /// `creating`, `created`, `running`, `stopped`.
    #[serde(default)]
    pub status: String,
    /// Its first process, as the host numbers it.
    #[serde(default)]
    pub pid: i32,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// What becomes of TCP connections that lead outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// In the image they are closed; the running container keeps them.
    Close,
    /// They are in the image.
    Keep,
    /// A container that has some is not checkpointed.
    Refuse,
}

/// What the annotations ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How long to wait between two checkpoints.
    pub every: Duration,
    /// Where images go.
    pub directory: PathBuf,
    /// How many stay.
    pub keep: usize,
    /// See [`Connections`].
    pub connections: Connections,
}

impl Plan {
    /// `None` where nothing is asked for.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let get = |name: &str| {
            annotations
                .get(&format!("{PREFIX}{name}"))
                .map(String::as_str)
        };
        let Some(every) = get("every") else {
            return Ok(None);
        };
        let every = duration(every)?;
        let directory = PathBuf::from(get("dir").unwrap_or(DIRECTORY));
        if !directory.is_absolute() {
            return Err(wrong("dir", "is not an absolute path"));
        }
        let keep = match get("keep") {
            None => KEEP,
            Some(text) => text
                .trim()
                .parse()
                .ok()
                .filter(|keep| *keep > 0)
                .ok_or_else(|| wrong("keep", "is no number above zero"))?,
        };
        let connections = match get("tcp") {
            None | Some("close") => Connections::Close,
            Some("established") => Connections::Keep,
            Some("refuse") => Connections::Refuse,
            Some(_) => return Err(wrong("tcp", "is none of close, established, refuse")),
        };
        Ok(Some(Self {
            every,
            directory,
            keep,
            connections,
        }))
    }
}

fn wrong(name: &str, reason: &str) -> Error {
    Error::coded(
        "E-HOOK-ANNOTATION",
        Exit::Usage,
        format!("annotation {PREFIX}{name} {reason}"),
        "see the README for what the annotations of ocimig may be",
    )
}

/// `30s`, `5m`, `2h`, `45`.
fn duration(text: &str) -> Result<Duration> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong("every", "has a unit that is none of s, m, h")),
    };
    let seconds = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|seconds| (1..=31_536_000).contains(seconds));
    match seconds {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Err(wrong("every", "is no time between a second and a year")),
    }
}

/// Runs `ocimig hook` with these arguments, the stage first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let stage = arguments.next().unwrap_or_default();
    let stage = stage.to_string_lossy();
    if stage == watch::COMMAND {
        return watch::main(arguments);
    }
    let mut text = String::new();
    let result = std::io::stdin()
        .read_to_string(&mut text)
        .doing(|| "reading the container's state")
        .and_then(|_| run(&stage, &text));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ocimig hook {stage}: {error}");
            match &*stage {
                "poststart" | "createRuntime" | "prestart" | "poststop" => ExitCode::SUCCESS,
                _ => ExitCode::from(error.exit() as u8),
            }
        }
    }
}

fn run(stage: &str, text: &str) -> Result<()> {
    let mut state: State = serde_json::from_str(text).map_err(|why| {
        Error::coded(
            "E-HOOK-STATE",
            Exit::Usage,
            format!("standard input holds no state of a container: {why}"),
            "call it as an OCI hook",
        )
    })?;
    if state.id.is_empty() || state.id.contains('/') || state.id.starts_with('.') {
        return Err(Error::coded(
            "E-HOOK-STATE",
            Exit::Usage,
            format!("{:?} is no container id", state.id),
            "call it as an OCI hook",
        ));
    }
    add_annotations(&mut state);
    match stage {
        "poststart" => start(&state),
        // At a start this stage comes before the container's own program; only a restore has no
        // poststart.
        "createRuntime" | "prestart" if state.status == "stopped" => start(&state),
        "createRuntime" | "prestart" => Ok(()),
        "poststop" => watch::stop(&state.id),
        other => Err(Error::coded(
            "E-HOOK-STAGE",
            Exit::Usage,
            format!("there is nothing to do at stage {other:?}"),
            "use poststart, createRuntime and poststop",
        )),
    }
}

/// Not every runtime puts them into the state.
fn add_annotations(state: &mut State) {
    if state
        .annotations
        .keys()
        .any(|name| name.starts_with(PREFIX))
    {
        return;
    }
    if let Some(more) = annotations_of(&state.bundle) {
        state.annotations.extend(more);
    }
}

fn annotations_of(bundle: &Path) -> Option<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(bundle.join("config.json")).ok()?;
    let config: Config = serde_json::from_str(&text).ok()?;
    Some(config.annotations)
}

fn start(state: &State) -> Result<()> {
    match Plan::of(&state.annotations)? {
        Some(plan) => watch::start(state, &plan),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn annotations_become_a_plan() {
        assert_eq!(Plan::of(&BTreeMap::new()).unwrap(), None);
        assert_eq!(
            Plan::of(&annotations(&[("every", "30s")])).unwrap(),
            Some(Plan {
                every: Duration::from_secs(30),
                directory: DIRECTORY.into(),
                keep: KEEP,
                connections: Connections::Close,
            })
        );
        let all = [
            ("every", "5m"),
            ("dir", "/srv/images"),
            ("keep", "7"),
            ("tcp", "established"),
        ];
        let plan = Plan::of(&annotations(&all)).unwrap().unwrap();
        assert_eq!(plan.every, Duration::from_secs(300));
        assert_eq!(plan.keep, 7);
        assert_eq!(plan.connections, Connections::Keep);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (name, value) in [
            ("every", "soon"),
            ("every", "0"),
            ("every", "3d"),
            ("every", ""),
            ("dir", "images"),
            ("keep", "0"),
            ("tcp", "maybe"),
        ] {
            let mut pairs = annotations(&[("every", "30s")]);
            pairs.extend(annotations(&[(name, value)]));
            let text = Plan::of(&pairs).unwrap_err().to_string();
            assert!(text.contains(&format!("{PREFIX}{name}")), "{text}");
        }
    }

    #[test]
    fn annotations_are_taken_from_the_bundle_where_the_state_has_none() {
        let bundle = tempfile::tempdir().unwrap();
        let config = r#"{"annotations": {"org.ocimig.checkpoint.every": "10s"}}"#;
        std::fs::write(bundle.path().join("config.json"), config).unwrap();
        let mut state = State {
            id: "a".into(),
            status: "running".into(),
            pid: 1,
            bundle: bundle.path().into(),
            annotations: BTreeMap::new(),
        };
        add_annotations(&mut state);
        assert!(Plan::of(&state.annotations).unwrap().is_some());
    }

    #[test]
    fn a_state_that_is_none_and_an_unknown_stage_are_errors() {
        assert!(run("poststart", "{}").is_err());
        let state = r#"{"id": "../a", "bundle": "/tmp"}"#;
        assert!(run("poststart", state).is_err());
        let state = r#"{"id": "a", "bundle": "/nonexistent"}"#;
        assert!(run("poststart", state).is_ok());
        assert_eq!(run("soul", state).unwrap_err().code(), "E-HOOK-STAGE");
    }
}
