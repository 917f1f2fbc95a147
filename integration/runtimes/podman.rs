//! podman, over runc.

use super::{COUNT, eventually, path_with_criu};
use crate::harness::{Ground, Rootfs, run, try_run};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// podman with everything of its own: storage, networks, configuration.
struct Podman {
    ground: Ground,
    runtime: Option<PathBuf>,
}

const CONFIGURATION: &str = r#"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "HERE/libpod"
[network]
network_backend = "netavark"
network_config_dir = "HERE/networks"
"#;

impl Podman {
    fn new() -> Self {
        let podman = Self {
            ground: Ground::new(),
            runtime: None,
        };
        let here = podman.ground.path();
        std::fs::create_dir(here.join("tmp")).unwrap();
        let text = CONFIGURATION.replace("HERE", here.to_str().unwrap());
        std::fs::write(here.join("containers.conf"), text).unwrap();
        let rootfs = here.join("rootfs");
        Rootfs::Plain.make(&podman.ground, &rootfs);
        let tar = here.join("rootfs.tar");
        run(Command::new("tar")
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(&rootfs)
            .arg("."));
        run(podman.command(&["import"]).arg(&tar).arg("small"));
        podman
    }

    fn command(&self, args: &[&str]) -> Command {
        let here = self.ground.path();
        let mut command = Command::new("podman");
        command
            .env("PATH", path_with_criu(&self.ground))
            .env("CONTAINERS_CONF", here.join("containers.conf"))
            .env("TMPDIR", here.join("tmp"))
            .arg("--root")
            .arg(here.join("store"))
            .arg("--runroot")
            .arg(here.join("run"));
        if let Some(runtime) = &self.runtime {
            command.arg("--runtime").arg(runtime);
        }
        command.args(args);
        command
    }

    fn run(&self, args: &[&str]) -> String {
        run(&mut self.command(args))
    }

    /// Starts a container that counts, unless `script` says otherwise.
    fn start(&self, name: &str, options: &[&str], script: &str) {
        let mut command = self.command(&["run", "--detach", "--stop-timeout", "0", "--name", name]);
        run(command.args(options).args(["small", "sh", "-c", script]));
    }

    fn path(&self, name: &str) -> String {
        self.ground.path().join(name).to_str().unwrap().to_owned()
    }

    /// The last number that it has printed; none is missing or doubled.
    fn counted(&self, name: &str) -> Option<u64> {
        let text = self.run(&["logs", name]);
        let mut last = None;
        let mut expected = None;
        for line in text.lines() {
            let number: u64 = line.trim().strip_prefix("Hello ")?.parse().ok()?;
            assert_eq!(expected.unwrap_or(number), number, "{text}");
            expected = Some(number + 1);
            last = Some(number);
        }
        last
    }

    fn counts_on(&self, name: &str) -> u64 {
        let from = self.counted(name).unwrap_or(0);
        eventually("counting on", || {
            self.counted(name).filter(|now| *now > from + 2)
        })
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        drop(try_run(
            &mut self.command(&["rm", "--all", "--force", "--time", "0"]),
        ));
        drop(try_run(&mut self.command(&["volume", "prune", "--force"])));
    }
}

const PRIVATE: [&str; 2] = ["--network", "none"];

#[test]
fn podman_checkpoints_and_restores_in_place() {
    let podman = Podman::new();
    podman.start("one", &PRIVATE, COUNT);
    podman.counts_on("one");
    for options in [&["--keep"][..], &[]] {
        let mut checkpoint = vec!["container", "checkpoint"];
        checkpoint.extend(options);
        checkpoint.push("one");
        podman.run(&checkpoint);
        let status = podman.run(&["ps", "--all", "--format", "{{.Status}}"]);
        assert!(status.starts_with("Exited (0)"), "{status}");
        let mut restore = vec!["container", "restore"];
        restore.extend(options);
        restore.push("one");
        podman.run(&restore);
        podman.counts_on("one");
    }
    assert!(podman.run(&["exec", "one", "ps"]).contains("sleep"));
}

#[test]
fn podman_leaves_a_container_running_and_prints_numbers() {
    let podman = Podman::new();
    podman.start("one", &PRIVATE, COUNT);
    podman.counts_on("one");
    let text = podman.run(&[
        "container",
        "checkpoint",
        "--leave-running",
        "--print-stats",
        "one",
    ]);
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = &stats["container_statistics"][0]["criu_statistics"];
    assert!(numbers["pages_written"].as_u64().unwrap() > 0, "{text}");
    assert!(numbers["frozen_time"].as_u64().unwrap() > 0, "{text}");
    podman.counts_on("one");
}

#[test]
fn podman_exports_and_imports_with_every_compression_under_a_new_name() {
    let podman = Podman::new();
    for compression in ["none", "gzip", "zstd"] {
        podman.start(compression, &PRIVATE, COUNT);
        podman.counts_on(compression);
        let archive = podman.path(compression);
        podman.run(&[
            "container",
            "checkpoint",
            "--compress",
            compression,
            "--export",
            &archive,
            compression,
        ]);
        let name = format!("from-{compression}");
        podman.run(&[
            "container",
            "restore",
            "--import",
            &archive,
            "--name",
            &name,
        ]);
        podman.counts_on(&name);
    }
}

#[test]
fn podman_takes_volumes_and_the_root_along_or_leaves_them() {
    let podman = Podman::new();
    let script =
        format!("echo kept > /changed; echo held > /dev/shm/x; cp /changed /data/; {COUNT}");
    podman.start("one", &["--network", "host", "-v", "volume:/data"], &script);
    podman.counts_on("one");
    let archive = podman.path("archive.tar");
    podman.run(&["container", "checkpoint", "--export", &archive, "one"]);
    podman.run(&["rm", "--force", "--time", "0", "one"]);
    podman.run(&["volume", "rm", "volume"]);
    podman.run(&["container", "restore", "--import", &archive]);
    podman.counts_on("one");
    let text = podman.run(&[
        "exec",
        "one",
        "cat",
        "/changed",
        "/data/changed",
        "/dev/shm/x",
    ]);
    assert_eq!(text, "kept\nkept\nheld\n");
}

#[test]
fn podman_restores_without_the_root_where_that_is_asked_for() {
    let podman = Podman::new();
    podman.start(
        "one",
        &PRIVATE,
        "i=0; while true; do echo Hello $i; i=$((i+1)); sleep 0.05; done",
    );
    podman.counts_on("one");
    let archive = podman.path("archive.tar");
    podman.run(&[
        "container",
        "checkpoint",
        "--ignore-rootfs",
        "--export",
        &archive,
        "one",
    ]);
    podman.run(&["rm", "--force", "--time", "0", "one"]);
    podman.run(&[
        "container",
        "restore",
        "--ignore-rootfs",
        "--import",
        &archive,
    ]);
    podman.counts_on("one");
}

#[test]
fn podman_publishes_the_port_of_a_restored_container_again() {
    let podman = Podman::new();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    podman.start(
        "one",
        &["--publish", &format!("127.0.0.1:{port}:7")],
        "while true; do nc -l -p 7 -e cat; done",
    );
    let echoes = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"ping").ok()?;
        let mut back = [0; 4];
        stream.read_exact(&mut back).ok()?;
        (&back == b"ping").then_some(())
    };
    eventually("an echo", echoes);
    let address = || {
        podman.run(&[
            "inspect",
            "one",
            "--format",
            "{{.NetworkSettings.IPAddress}}",
        ])
    };
    let before = address();
    // Connections that are just being closed lead outside as well.
    podman.run(&["container", "checkpoint", "--tcp-established", "one"]);
    podman.run(&["container", "restore", "--tcp-established", "one"]);
    assert_eq!(address(), before);
    eventually("another echo", echoes);
}

#[test]
fn podman_checkpoints_on_top_of_a_pre_checkpoint() {
    let podman = Podman::new();
    podman.start("one", &PRIVATE, COUNT);
    podman.counts_on("one");
    let (pre, full) = (podman.path("pre.tar"), podman.path("full.tar"));
    podman.run(&[
        "container",
        "checkpoint",
        "--pre-checkpoint",
        "--export",
        &pre,
        "one",
    ]);
    podman.counts_on("one");
    podman.run(&[
        "container",
        "checkpoint",
        "--with-previous",
        "--export",
        &full,
        "one",
    ]);
    podman.run(&["rm", "--force", "--time", "0", "one"]);
    podman.run(&[
        "container",
        "restore",
        "--import-previous",
        &pre,
        "--import",
        &full,
    ]);
    podman.counts_on("one");
}

#[test]
fn podman_over_ocimig_runtime_needs_no_criu_below() {
    let mut podman = Podman::new();
    podman.runtime = Some(podman.ground.path().join("bin/ocimig-runtime"));
    podman.start("one", &PRIVATE, COUNT);
    podman.counts_on("one");
    podman.run(&["container", "checkpoint", "one"]);
    podman.run(&["container", "restore", "one"]);
    podman.counts_on("one");
}
