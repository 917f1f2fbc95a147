//! The hook that leaves a watcher.

use super::{COUNT, counts_on, eventually, runc::Runc};
use crate::harness::{Config, Ground, run};
use serde_json::json;
use std::path::{Path, PathBuf};

fn with_hooks(directory: &Path, every: &str) -> Config {
    let mut config = Config::new(["sh", "-c", COUNT]);
    config.also.push((
        "/annotations".into(),
        json!({
            "org.ocimig.checkpoint.every": every,
            "org.ocimig.checkpoint.dir": directory,
            "org.ocimig.checkpoint.keep": "2",
        }),
    ));
    let hook = |stage: &str| json!([{"path": env!("CARGO_BIN_EXE_ocimig"), "args": ["ocimig", "hook", stage]}]);
    config.also.push((
        "/hooks".into(),
        json!({
            "createRuntime": hook("createRuntime"),
            "poststart": hook("poststart"),
            "poststop": hook("poststop"),
        }),
    ));
    config
}

fn images(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "tar"))
        .collect();
    found.sort();
    found
}

#[test]
fn a_watcher_checkpoints_the_running_container_and_ends_with_it() {
    let ground = Ground::new();
    let directory = ground.path().join("checkpoints");
    let container = Runc::new("runc", &with_hooks(&directory, "1s"));
    container.start();
    let first = eventually("an image", || images(&directory).first().cloned());
    eventually("its removal", || (!first.exists()).then_some(()));
    assert!(images(&directory).len() <= 2);
    counts_on(&container.out());
    let log = directory.join(format!("{}.log", container.id()));
    run(container
        .command(&["delete", "--force"])
        .arg(container.id()));
    eventually("the watcher's end", || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.contains("the container has ended").then_some(())
    });
    let newest = images(&directory).pop().unwrap();
    run(std::process::Command::new(env!("CARGO_BIN_EXE_ocimig"))
        .arg("inspect")
        .arg(newest));
}

#[test]
fn a_hook_that_fails_does_not_take_the_container_down() {
    let ground = Ground::new();
    let container = Runc::new("runc", &with_hooks(ground.path(), "soon"));
    container.start();
    counts_on(&container.out());
    assert_eq!(container.state().unwrap()["status"], "running");
}

#[test]
fn a_restored_container_is_watched_again() {
    let ground = Ground::new();
    let directory = ground.path().join("checkpoints");
    let container = Runc::new("runc", &with_hooks(&directory, "1s"));
    container.start();
    eventually("an image", || images(&directory).first().cloned());
    let checkpoint = container.checkpoint(&[]);
    let newest = images(&directory).pop();
    container.restore(&checkpoint, &[]);
    eventually("a newer image", || {
        (images(&directory).pop() > newest).then_some(())
    });
}
