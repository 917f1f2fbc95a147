//! runc, and through `ocimig-runtime`.

use super::{COUNT, assert_images, counted, counts_on, errors_in, eventually, images, with_criu};
use crate::harness::{Config, Ground, Output, Rootfs, run, try_run};
use serde_json::{Value, json};
use std::io::{IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// A container that only runc knows.
pub struct Runc {
    pub ground: Ground,
    program: String,
    id: String,
    bundle: PathBuf,
}

impl Runc {
    /// Makes a bundle; nothing is started.
    pub fn new(program: &str, config: &Config) -> Self {
        let ground = Ground::new();
        let bundle = ground.fresh("bundle");
        std::fs::create_dir(&bundle).unwrap();
        Rootfs::Plain.make(&ground, &bundle.join("rootfs"));
        config.write(&bundle);
        let id = ground.fresh("ocimig-runc");
        let id = id.file_name().unwrap().to_str().unwrap().to_owned();
        Self {
            ground,
            program: program.to_owned(),
            id,
            bundle,
        }
    }

    /// One that runs a script of the shell.
    pub fn shell(script: &str) -> Self {
        let container = Self::new("runc", &Config::new(["sh", "-c", script]));
        container.start();
        container
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = with_criu(&self.ground, &self.program);
        command
            .arg("--root")
            .arg(self.ground.path().join("state"))
            .args(args)
            .current_dir(&self.bundle);
        command
    }

    pub fn start(&self) {
        self.start_with(&[]);
    }

    /// `run --detach`; the container's output goes nowhere, so that it does not hold ours.
    pub fn start_with(&self, options: &[&str]) {
        self.quietly(
            self.command(&["run", "--detach"])
                .args(options)
                .arg(&self.id),
        );
    }

    fn quietly(&self, command: &mut Command) {
        let error = self.ground.fresh("stderr");
        let status = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&error).unwrap())
            .status()
            .unwrap();
        let text = std::fs::read_to_string(&error).unwrap_or_default();
        assert!(status.success(), "{command:?}: {status}\n{text}");
    }

    pub fn out(&self) -> PathBuf {
        self.bundle.join("rootfs/out")
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn state(&self) -> Option<Value> {
        let text = try_run(self.command(&["state"]).arg(&self.id)).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub fn host_pid(&self) -> i64 {
        self.state().unwrap()["pid"].as_i64().unwrap()
    }

    pub fn exec(&self, args: &[&str]) -> String {
        run(self.command(&["exec"]).arg(&self.id).args(args))
    }

    pub fn try_checkpoint(&self, images: &Path, options: &[&str]) -> Result<String, String> {
        let mut command = self.command(&["checkpoint", "--image-path"]);
        command.arg(images).args(options).arg(&self.id);
        try_run(&mut command)
    }

    pub fn checkpoint(&self, options: &[&str]) -> PathBuf {
        let images = images(&self.ground);
        if let Err(text) = self.try_checkpoint(&images, options) {
            panic!("{text}\n{:#?}", errors_in(&images.join("dump.log")));
        }
        images
    }

    pub fn restore(&self, images: &Path, options: &[&str]) {
        self.quietly(
            self.command(&["restore", "--detach", "--image-path"])
                .arg(images)
                .args(options)
                .arg(&self.id),
        );
    }

    fn is_gone(&self) -> bool {
        self.state().is_none()
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        drop(try_run(self.command(&["delete", "--force"]).arg(&self.id)));
    }
}

#[test]
fn runc_checkpoints_restores_and_knows_the_container_twice_in_a_row() {
    let container = Runc::shell(COUNT);
    counts_on(&container.out());
    for _ in 0..2 {
        let images = container.checkpoint(&[]);
        assert!(container.is_gone());
        assert_images(&images);
        let before = counted(&container.out());
        let pid_file = container.ground.fresh("pid");
        container.restore(&images, &["--pid-file", pid_file.to_str().unwrap()]);
        let host_pid = container.host_pid();
        assert_eq!(
            std::fs::read_to_string(&pid_file).unwrap(),
            host_pid.to_string()
        );
        counts_on(&container.out());
        assert!(before < counted(&container.out()));
    }
    assert_eq!(container.exec(&["cat", "/proc/1/comm"]), "sh\n");
    assert!(run(&mut container.command(&["list"])).contains(container.id()));
    run(container.command(&["kill"]).arg(container.id()).arg("KILL"));
    eventually("its end", || {
        (container.state()?["status"] == "stopped").then_some(())
    });
    run(container.command(&["delete"]).arg(container.id()));
    assert!(container.is_gone());
}

#[test]
fn runc_leaves_a_container_running() {
    let container = Runc::shell(COUNT);
    counts_on(&container.out());
    let host_pid = container.host_pid();
    let work = images(&container.ground);
    let images = container.checkpoint(&["--leave-running", "--work-path", work.to_str().unwrap()]);
    assert_images(&images);
    assert!(work.join("dump.log").exists() && work.join("stats-dump").exists());
    assert!(errors_in(&work.join("dump.log")).is_empty());
    counts_on(&container.out());
    assert_eq!(container.host_pid(), host_pid);
    // And the image is good, though it is older than what the container wrote since.
    run(container
        .command(&["delete", "--force"])
        .arg(container.id()));
    std::fs::remove_file(container.out()).unwrap();
    container.restore(&images, &[]);
    eventually("its going on", || {
        std::fs::read_to_string(container.out()).ok()
    });
}

#[test]
fn runc_restores_under_another_id_in_its_cgroup() {
    let container = Runc::shell(COUNT);
    counts_on(&container.out());
    let images = container.checkpoint(&[]);
    let other = Runc {
        ground: container.ground.clone(),
        program: "runc".into(),
        id: format!("{}-other", container.id),
        bundle: container.bundle.clone(),
    };
    other.restore(&images, &[]);
    counts_on(&other.out());
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", other.host_pid())).unwrap();
    assert!(cgroups.contains(other.id()), "{cgroups}");
    for line in cgroups.lines() {
        // runc leaves named hierarchies alone that others have mounted.
        assert!(line.ends_with(other.id()) || line.ends_with(":/"), "{line}");
    }
}

#[test]
fn runc_gives_the_restored_container_its_own_pipes() {
    let container = Runc::new("runc", &Config::new(["sh", "-c", COUNT]));
    let (first, writer) = super::output();
    let status = container
        .command(&["run", "--detach"])
        .arg(container.id())
        .stdin(Stdio::null())
        .stdout(writer)
        .status()
        .unwrap();
    assert!(status.success());
    first.wait_for_line("Hello 3");
    let images = container.checkpoint(&[]);
    let next = first.text().lines().count();
    let (second, writer) = super::output();
    let status = container
        .command(&["restore", "--detach", "--image-path"])
        .arg(&images)
        .arg(container.id())
        .stdin(Stdio::null())
        .stdout(writer)
        .status()
        .unwrap();
    assert!(status.success());
    second.wait_for_line(&format!("Hello {}", next + 3));
    assert!(second.text().starts_with(&format!("Hello {next}\n")));
}

/// Receives a terminal's master at a console socket.
fn console(socket: &Path) -> thread::JoinHandle<Output> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (connection, _) = listener.accept().unwrap();
        let mut room = [0u8; 256];
        let mut parts = [IoSliceMut::new(&mut room)];
        let mut control = nix::cmsg_space!([i32; 1]);
        let message = nix::sys::socket::recvmsg::<()>(
            connection.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            nix::sys::socket::MsgFlags::empty(),
        )
        .unwrap();
        let mut master = None;
        for one in message.cmsgs().unwrap() {
            if let nix::sys::socket::ControlMessageOwned::ScmRights(fds) = one {
                // SAFETY: the kernel has just made it for this message.
                master = Some(unsafe { OwnedFd::from_raw_fd(fds[0]) });
            }
        }
        let mut master = std::fs::File::from(master.unwrap());
        let (reader, mut writer) = std::io::pipe().unwrap();
        thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            while let Ok(count) = master.read(&mut buffer) {
                if count == 0 || writer.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
        });
        Output::collect(reader)
    })
}

#[test]
fn runc_is_handed_the_terminal_of_a_restored_container() {
    let mut config = Config::new(["sh", "-c", COUNT]);
    config.also.push(("/process/terminal".into(), json!(true)));
    let container = Runc::new("runc", &config);
    let socket = container.ground.fresh("console");
    let first = console(&socket);
    container.start_with(&["--console-socket", socket.to_str().unwrap()]);
    first.join().unwrap().wait_for_line("Hello 3");
    let images = container.checkpoint(&[]);
    let socket = container.ground.fresh("console");
    let second = console(&socket);
    container.restore(&images, &["--console-socket", socket.to_str().unwrap()]);
    let second = second.join().unwrap();
    let next = counted(&container.out()).unwrap();
    second.wait_for_line(&format!("Hello {}", next + 3));
}

#[test]
fn runc_keeps_bind_mounts() {
    let mut config = Config::new([
        "sh",
        "-c",
        "cd /data; exec 3>>/data/log; while true; do echo x >&3; sleep 0.05; done",
    ]);
    let outside = Ground::new();
    std::fs::create_dir(outside.path().join("data")).unwrap();
    std::fs::write(outside.path().join("file"), "text").unwrap();
    for (source, destination) in [("data", "/data"), ("file", "/etc/file")] {
        config.mounts.push(json!({
            "destination": destination, "type": "bind",
            "source": outside.path().join(source), "options": ["bind"],
        }));
    }
    let container = Runc::new("runc", &config);
    container.start();
    let log = outside.path().join("data/log");
    let size = || std::fs::metadata(&log).map_or(0, |status| status.len());
    eventually("a line", || (size() > 4).then_some(()));
    let images = container.checkpoint(&[]);
    let before = size();
    container.restore(&images, &[]);
    eventually("another line", || (size() > before + 4).then_some(()));
    assert_eq!(container.exec(&["cat", "/etc/file"]), "text");
}

#[test]
fn runc_keeps_connections_inside_an_empty_network_namespace() {
    let mut config = Config::new([
        "sh",
        "-c",
        "ip link set lo up; nc -l -p 7 -e cat & sleep 0.3
        mkfifo /f; exec 3<>/f; nc 127.0.0.1 7 <&3 > /out &
        i=0; while true; do echo $i >&3; i=$((i+1)); sleep 0.05; done",
    ]);
    config.capabilities.push("CAP_NET_ADMIN".into());
    let container = Runc::new("runc", &config);
    container.start();
    counts_on(&container.out());
    let images = container.checkpoint(&[]);
    container.restore(&images, &[]);
    counts_on(&container.out());
    assert!(container.exec(&["ip", "link", "show", "lo"]).contains("UP"));
}

#[test]
fn runc_restores_into_a_network_namespace_of_somebody_else() {
    let name = Ground::new().fresh("ns");
    let name = name.file_name().unwrap().to_str().unwrap();
    run(Command::new("ip").args(["netns", "add", name]));
    run(Command::new("ip").args(["-n", name, "link", "set", "lo", "up"]));
    let mut config = Config::new(["sh", "-c", "nc -l -p 7777 -e cat"]);
    config.also.push((
        "/linux/namespaces".into(),
        json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
               {"type": "network", "path": format!("/run/netns/{name}")}]),
    ));
    let container = Runc::new("runc", &config);
    container.start();
    let listens =
        || run(Command::new("ip").args(["netns", "exec", name, "ss", "-ltn"])).contains(":7777");
    eventually("a server", || listens().then_some(()));
    let images = container.checkpoint(&[]);
    assert!(!listens());
    container.restore(&images, &[]);
    assert!(listens());
    let own = std::fs::read_link(format!("/proc/{}/ns/net", container.host_pid())).unwrap();
    let theirs =
        run(Command::new("ip").args(["netns", "exec", name, "readlink", "/proc/self/ns/net"]));
    assert_eq!(own.to_str().unwrap(), theirs.trim());
    drop(container);
    run(Command::new("ip").args(["netns", "del", name]));
}

/// A container on the host's network that is connected to us.
fn connected() -> (Runc, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!("nc 127.0.0.1 {port} -e cat");
    let mut config = Config::new(["sh", "-c", &script]);
    config.also.push((
        "/linux/namespaces".into(),
        json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]),
    ));
    let container = Runc::new("runc", &config);
    container.start();
    let (stream, _) = listener.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    (container, stream)
}

fn echoes(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text.as_bytes());
}

#[test]
fn runc_keeps_connections_to_the_outside_where_that_is_asked_for() {
    let (container, mut stream) = connected();
    echoes(&mut stream, "before");
    let images = container.checkpoint(&["--tcp-established"]);
    stream.write_all(b"between").unwrap();
    container.restore(&images, &["--tcp-established"]);
    let mut back = [0; 7];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"between");
    echoes(&mut stream, "after");
}

#[test]
fn runc_is_told_what_cannot_be_taken_along_and_the_container_goes_on() {
    let (container, mut stream) = connected();
    let images = images(&container.ground);
    let text = container.try_checkpoint(&images, &[]).unwrap_err();
    assert!(text.contains("criu failed"), "{text}");
    let errors = errors_in(&images.join("dump.log"));
    assert!(
        errors[0].contains(" Error (") && errors[0].contains("E-"),
        "{errors:?}"
    );
    assert!(errors[0].contains("127.0.0.1"), "{errors:?}");
    assert!(!images.join("ocimig.tar").exists());
    assert_eq!(container.state().unwrap()["status"], "running");
    echoes(&mut stream, "still there");
}

/// Processes that hold memory protected.
fn trackers() -> Vec<String> {
    std::fs::read_dir("/run/ocimig/trackers")
        .map(|entries| {
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        })
        .unwrap_or_default()
}

/// Holds some megabytes that never change, and counts.
const LARGE: &str = "x=$(head -c 3000000 /dev/urandom | base64); i=0
    while true; do echo $i >> /out; i=$((i+1)); sleep 0.05; done";

#[test]
fn runc_stores_only_what_changed_since_a_pre_dump() {
    let container = Runc::shell(LARGE);
    counts_on(&container.out());
    let host_pid = container.host_pid();
    let top = images(&container.ground);
    let size = |name: &str| {
        std::fs::metadata(top.join(name).join("ocimig.tar"))
            .unwrap()
            .len()
    };
    let checkpoint = |name: &str, options: &[&str]| {
        std::fs::create_dir(top.join(name)).unwrap();
        if let Err(text) = container.try_checkpoint(&top.join(name), options) {
            panic!("{text}\n{:#?}", errors_in(&top.join(name).join("dump.log")));
        }
    };
    checkpoint("1", &["--pre-dump"]);
    counts_on(&container.out());
    checkpoint("2", &["--pre-dump", "--parent-path", "../1"]);
    counts_on(&container.out());
    checkpoint("3", &["--parent-path", "../2"]);
    assert!(container.is_gone());
    for (name, parent) in [("2", "../1"), ("3", "../2")] {
        let link = std::fs::read_link(top.join(name).join("parent")).unwrap();
        assert_eq!(link, Path::new(parent));
    }
    // Most of its pages were not even read while it was stopped.
    let log = std::fs::read_to_string(top.join("3/dump.log")).unwrap();
    let known = log
        .lines()
        .find_map(|line| {
            let words = line.split_once(") ")?.1;
            words.strip_suffix(" pages are known to be as the parent image has them")
        })
        .unwrap_or_else(|| panic!("{log}"));
    assert!(known.parse::<u64>().unwrap() > 500, "{known}");
    let own = format!("{host_pid}-");
    assert!(!trackers().iter().any(|name| name.starts_with(&own)));
    assert!(size("1") > 3_000_000);
    assert!(
        size("2") < 500_000 && size("3") < 500_000,
        "{} {}",
        size("2"),
        size("3")
    );
    // Not by themselves, and not with another parent.
    std::fs::rename(top.join("1"), top.join("away")).unwrap();
    let restore = || {
        let mut command = container.command(&["restore", "--detach", "--image-path"]);
        command.arg(top.join("3")).arg(container.id());
        try_run(&mut command)
    };
    assert!(restore().is_err());
    let errors = errors_in(&top.join("3/restore.log"));
    assert!(errors[0].contains("parent image"), "{errors:?}");
    drop(try_run(
        container
            .command(&["delete", "--force"])
            .arg(container.id()),
    ));
    std::fs::rename(top.join("away"), top.join("1")).unwrap();
    container.restore(&top.join("3"), &[]);
    counts_on(&container.out());
}

#[test]
fn an_image_of_the_memory_only_is_not_restored() {
    let container = Runc::shell(COUNT);
    counts_on(&container.out());
    let images = container.checkpoint(&["--pre-dump"]);
    let mut restore = with_criu(&container.ground, "criu");
    let text = try_run(restore.args(["restore", "-d", "-D"]).arg(&images)).unwrap_err();
    assert!(text.contains("E-IMAGE-MEMORY-ONLY"), "{text}");
    counts_on(&container.out());
    // Whoever tracks what it writes ends with it.
    let own = format!("{}-", container.host_pid());
    let tracked = || trackers().iter().any(|name| name.starts_with(&own));
    assert!(tracked());
    drop(try_run(
        container
            .command(&["delete", "--force"])
            .arg(container.id()),
    ));
    eventually("the tracker's end", || (!tracked()).then_some(()));
}

#[test]
fn ocimig_runtime_needs_no_criu_in_the_path() {
    let program = Ground::new();
    let runtime = program.path().join("ocimig-runc");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ocimig"), &runtime).unwrap();
    let mut container = Runc::new("runc", &Config::new(["sh", "-c", COUNT]));
    container.program = runtime.to_str().unwrap().to_owned();
    // Not even ours: the front has to bring it.
    std::fs::create_dir(container.ground.path().join("bin")).unwrap();
    container.start();
    counts_on(&container.out());
    let images = container.checkpoint(&[]);
    assert_images(&images);
    container.restore(&images, &[]);
    counts_on(&container.out());
}

#[test]
fn crun_below_ocimig_runtime_does_what_it_can() {
    let container = Runc::new("ocimig-crun", &Config::new(["sh", "-c", COUNT]));
    let started = try_run(
        container
            .command(&["--cgroup-manager=disabled", "run", "--detach"])
            .arg(container.id())
            .stdout(Stdio::null()),
    );
    let text = run(&mut container.command(&["--version"]));
    assert!(text.contains("crun version"), "{text}");
    // Some hosts' cgroups are too mixed for crun to start anything.
    if started.is_ok() {
        counts_on(&container.out());
        let state = container.state().unwrap();
        assert_eq!(state["status"], "running");
    }
}
