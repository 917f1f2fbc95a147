//! `ocimig restore`, after which the runtime knows the container.

use super::{COUNT, counts_on, eventually};
use crate::harness::{Config, Container, Ground, Rootfs, run, try_run};
use std::path::Path;
use std::process::{Command, Stdio};

fn state(id: &str) -> Option<serde_json::Value> {
    let text = try_run(Command::new("runc").arg("state").arg(id)).ok()?;
    serde_json::from_str(&text).ok()
}

/// Deletes a container when a test ends.
struct Known(String);

impl Drop for Known {
    fn drop(&mut self) {
        drop(try_run(
            Command::new("runc").args(["delete", "--force", &self.0]),
        ));
    }
}

fn restore(image: &Path, bundle: &Path, id: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocimig"));
    command
        .arg("restore")
        .arg(image)
        .arg("--bundle")
        .arg(bundle);
    command.args(["--id", id]).stdin(Stdio::null());
    command
}

#[test]
fn the_runtime_that_it_came_from_knows_a_restored_container() {
    let ground = Ground::new();
    let mut config = Config::new(["sh", "-c", COUNT]);
    config.lo = true;
    let mut container = Container::start(&ground, Rootfs::Small, &config);
    let out = container.bundle().join("rootfs/out");
    counts_on(&out);
    let image = container.checkpoint(&[]);
    container.wait_until_gone();
    drop(try_run(Command::new("runc").args([
        "delete",
        "--force",
        container.id(),
    ])));

    let id = format!("{}-restored", container.id());
    let known = Known(id.clone());
    let bundle = ground.fresh("bundle");
    let pid_file = ground.fresh("pid");
    let status = restore(&image.path, &bundle, &id)
        .arg("--detach")
        .arg("--pid-file")
        .arg(&pid_file)
        .arg("--rootfs")
        .arg(Rootfs::Small.base().unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    counts_on(&bundle.join("rootfs/out"));
    let found = state(&id).unwrap();
    assert_eq!(found["status"], "running");
    assert_eq!(
        found["pid"].to_string(),
        std::fs::read_to_string(&pid_file).unwrap()
    );
    let exec = |args: &[&str]| run(Command::new("runc").arg("exec").arg(&id).args(args));
    assert_eq!(exec(&["cat", "/proc/1/comm"]), "sh\n");
    // Not the empty network that a runtime asks for, but the one that was there.
    assert!(exec(&["ip", "address"]).contains("127.0.0.1"));
    run(Command::new("runc").args(["kill", &id, "KILL"]));
    eventually("its end", || {
        (state(&id)?["status"] == "stopped").then_some(())
    });
    run(Command::new("runc").args(["delete", &id]));
    assert!(state(&id).is_none());
    drop(known);
}

#[test]
fn in_the_foreground_the_exit_code_is_passed_on() {
    let ground = Ground::new();
    let script = "while [ ! -e /end ]; do sleep 0.05; done; exit 7";
    let config = Config::new(["sh", "-c", script]);
    let mut container = Container::start(&ground, Rootfs::Plain, &config);
    let image = container.checkpoint(&[]);
    container.wait_until_gone();
    drop(try_run(Command::new("runc").args([
        "delete",
        "--force",
        container.id(),
    ])));
    let id = format!("{}-restored", container.id());
    let _known = Known(id.clone());
    let bundle = ground.fresh("bundle");
    let mut child = restore(&image.path, &bundle, &id)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("its going on", || {
        (state(&id)?["status"] == "running").then_some(())
    });
    std::fs::write(bundle.join("rootfs/end"), "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn a_restore_that_a_runtime_cannot_do_leaves_no_bundle() {
    let ground = Ground::new();
    let config = Config::new(["sh", "-c", COUNT]);
    let mut container = Container::start(&ground, Rootfs::Plain, &config);
    let image = container.checkpoint(&["--leave-running"]);
    let bundle = ground.fresh("bundle");
    // That id is taken.
    let text = try_run(restore(&image.path, &bundle, container.id()).arg("--detach"));
    assert!(text.unwrap_err().contains("exists"));
    assert!(!bundle.exists());
    assert_eq!(state(container.id()).unwrap()["status"], "running");
}
