//! containerd, by its own client.

use super::{COUNT, assert_images, counted, eventually, images, path_with_criu};
use crate::harness::{Config, Ground, Rootfs, run, try_run};
use serde_json::json;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A daemon with everything of its own.
struct Containerd {
    ground: Ground,
    daemon: Child,
}

const CONFIGURATION: &str = r#"
version = 2
root = "HERE/root"
state = "HERE/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "HERE/socket"
"#;

impl Containerd {
    fn new() -> Self {
        let ground = Ground::new();
        let here = ground.path().to_owned();
        let text = CONFIGURATION.replace("HERE", here.to_str().unwrap());
        std::fs::write(here.join("config.toml"), text).unwrap();
        let log = std::fs::File::create(here.join("log")).unwrap();
        let daemon = Command::new("containerd")
            .env("PATH", path_with_criu(&ground))
            .arg("--config")
            .arg(here.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let containerd = Self { ground, daemon };
        eventually("the daemon", || {
            try_run(&mut containerd.ctr(&["version"])).ok()
        });
        containerd
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.ground.path().join("socket"))
            .args(args);
        command
    }

    fn run(&self, args: &[&str]) -> String {
        run(&mut self.ctr(args))
    }

    /// Starts a container that counts, in a bundle of our own.
    fn start(&self, id: &str) -> PathBuf {
        let bundle = self.ground.fresh("bundle");
        std::fs::create_dir(&bundle).unwrap();
        let rootfs = bundle.join("rootfs");
        Rootfs::Plain.make(&self.ground, &rootfs);
        let mut config = Config::new(["sh", "-c", COUNT]);
        config.also.push(("/root/path".into(), json!(rootfs)));
        config.write(&bundle);
        run(self
            .ctr(&["run", "--detach", "--config"])
            .arg(bundle.join("config.json"))
            .arg(id));
        rootfs.join("out")
    }

    fn status(&self, id: &str) -> Option<String> {
        let text = self.run(&["task", "list"]);
        let line = text.lines().find(|line| line.starts_with(id))?;
        line.split_whitespace().last().map(str::to_owned)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for line in try_run(&mut self.ctr(&["task", "list", "--quiet"]))
            .unwrap_or_default()
            .lines()
        {
            drop(try_run(&mut self.ctr(&["task", "delete", "--force", line])));
        }
        drop(self.daemon.kill());
        drop(self.daemon.wait());
    }
}

#[test]
fn containerd_checkpoints_a_task_and_lets_it_go_on() {
    let containerd = Containerd::new();
    let out = containerd.start("one");
    super::counts_on(&out);
    let images = images(&containerd.ground);
    let directory = images.to_str().unwrap();
    containerd.run(&[
        "task",
        "checkpoint",
        "--image-path",
        directory,
        "--work-path",
        directory,
        "one",
    ]);
    assert_images(&images);
    super::counts_on(&out);
    assert_eq!(containerd.status("one").unwrap(), "RUNNING");
}

#[test]
fn containerd_checkpoints_a_task_and_ends_it() {
    let containerd = Containerd::new();
    let out = containerd.start("one");
    super::counts_on(&out);
    containerd.run(&["task", "checkpoint", "--exit", "one"]);
    eventually("its end", || {
        (containerd.status("one")? == "STOPPED").then_some(())
    });
    assert!(
        containerd
            .run(&["image", "list", "--quiet"])
            .contains("checkpoint/one")
    );
    let before = counted(&out);
    assert!(before.is_some());
}
