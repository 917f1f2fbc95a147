//! A container under test, made by a runtime or brought back by `ocimig restore`.

use super::config::Config;
use super::ground::{Ground, unique};
use super::rootfs::Rootfs;
use super::snapshot::Snapshot;
use super::tools::{Output, patience, read, run, try_run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// See the module documentation. Gone with everything it made when dropped.
pub struct Container {
    ground: Ground,
    /// The program that knows it; none when only the engine made it.
    runtime: Option<&'static str>,
    rootfs: Rootfs,
    id: String,
    /// The ids of those that it was before: cgroups may still be called so.
    former_ids: Vec<String>,
    bundle: PathBuf,
    host_pid: i32,
    /// What it printed: standard output, standard error.
    printed: (Output, Output),
    /// The number of triggers pulled so far.
    triggers: u32,
    /// How long it did not run, to be told to the test program.
    gap: Duration,
}

/// A checkpoint on disk.
pub struct Image {
    /// The tar.
    pub path: PathBuf,
    rootfs: Rootfs,
    ids: Vec<String>,
    triggers: u32,
    taken_at: Instant,
}

impl Container {
    /// Starts one with runc.
    pub fn start(ground: &Ground, rootfs: Rootfs, config: &Config) -> Self {
        Self::start_with(ground, "runc", rootfs, config)
    }

    /// Starts one with `runtime`.
    pub fn start_with(
        ground: &Ground,
        runtime: &'static str,
        rootfs: Rootfs,
        config: &Config,
    ) -> Self {
        let bundle = ground.fresh("bundle");
        fs::create_dir(&bundle).unwrap();
        rootfs.make(ground, &bundle.join("rootfs"));
        config.write(&bundle);
        let id = unique("ocimig-test");
        let pid_file = ground.fresh("pid");
        let mut create = Command::new(runtime);
        create.args(["create", "--pid-file"]).arg(&pid_file);
        create.arg("--bundle").arg(&bundle).arg(&id);
        let printed = spawn(&mut create);
        // From here on a panic cleans up.
        let mut container = Self {
            ground: ground.clone(),
            runtime: Some(runtime),
            rootfs,
            id,
            former_ids: Vec::new(),
            bundle,
            host_pid: 0,
            printed: printed.outputs(),
            triggers: 0,
            gap: Duration::ZERO,
        };
        printed.wait();
        container.host_pid = read_pid(&pid_file);
        if config.lo {
            run(container
                .nsenter(&["-n"])
                .args(["ip", "link", "set", "lo", "up"]));
        }
        run(Command::new(runtime).arg("start").arg(&container.id));
        container
    }

    /// The id under which its runtime knows it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its bundle.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Its first process as this host numbers it.
    pub fn host_pid(&self) -> i32 {
        self.host_pid
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> &Output {
        &self.printed.0
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> &Output {
        &self.printed.1
    }

    /// `path` of the container, as the host reaches it.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/{path}", self.host_pid))
    }

    /// Runs a program of the container's root inside it, outside of its cgroup.
    pub fn enter(&self, args: &[&str]) -> String {
        run(self
            .nsenter(&["-m", "-u", "-i", "-n", "-p", "-r", "-w"])
            .args(args))
    }

    /// Runs a program of the container's root by `runc exec`.
    pub fn exec(&self, args: &[&str]) -> String {
        let runtime = self.runtime.expect("a container that a runtime knows");
        run(Command::new(runtime).arg("exec").arg(&self.id).args(args))
    }

    /// Leaves a program running inside that `runc exec` joined.
    pub fn exec_detached(&self, args: &[&str]) {
        let runtime = self.runtime.expect("a container that a runtime knows");
        run(Command::new(runtime)
            .args(["exec", "--detach"])
            .arg(&self.id)
            .args(args));
    }

    /// `nsenter` into `namespaces` of its first process.
    pub fn nsenter(&self, namespaces: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("-t").arg(self.host_pid.to_string());
        command.args(namespaces).arg("--");
        command
    }

    /// All processes of its PID namespace, as this host numbers them, the first process first.
    pub fn host_pids(&self) -> Vec<i32> {
        members(self.host_pid)
    }

    /// What is visible of it from outside.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(self.host_pid, self.ids())
    }

    /// Its id and all that it had before.
    fn ids(&self) -> Vec<String> {
        let own = std::iter::once(&self.id);
        own.chain(&self.former_ids).cloned().collect()
    }

    /// Asks the test program to check itself, and panics unless it says `intact`.
    pub fn assert_intact(&mut self) {
        self.triggers += 1;
        let number = self.triggers;
        let trigger = self.path(&format!("trigger-{number}"));
        let draft = self.path(&format!("draft-{number}"));
        fs::write(&draft, self.gap.as_millis().to_string()).unwrap();
        fs::rename(&draft, &trigger).unwrap();
        let prefix = format!("{number}: ");
        let verdict = self
            .printed
            .0
            .wait_for("the program's own verdict", |text| {
                let line = text.lines().find(|line| line.starts_with(&prefix))?;
                text[..]
                    .contains(&format!("{line}\n"))
                    .then(|| line[prefix.len()..].to_owned())
            });
        assert_eq!(verdict, "intact", "stderr:\n{}", self.stderr().text());
    }

    /// Takes a checkpoint with `ocimig checkpoint` and `options`.
    pub fn checkpoint(&mut self, options: &[&str]) -> Image {
        match self.try_checkpoint(options) {
            Ok(image) => image,
            Err(text) => panic!("{text}"),
        }
    }

    /// Like [`Container::checkpoint`], with the failure as a value.
    pub fn try_checkpoint(&mut self, options: &[&str]) -> Result<Image, String> {
        let path = self.ground.fresh("image").with_extension("tar");
        let taken_at = Instant::now();
        try_run(self.checkpoint_command(&path).args(options))?;
        if options.contains(&"--leave-running") {
            self.gap += taken_at.elapsed();
        }
        Ok(Image {
            path,
            rootfs: self.rootfs,
            ids: self.ids(),
            triggers: self.triggers,
            taken_at,
        })
    }

    /// What takes a checkpoint into `output`.
    pub fn checkpoint_command(&self, output: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocimig"));
        command.arg("checkpoint");
        match self.runtime {
            Some(_) => command.arg(&self.id),
            None => command.arg("--pid").arg(self.host_pid.to_string()),
        };
        command.arg("--output").arg(output);
        command
    }

    /// Waits until none of its processes is left.
    pub fn wait_until_gone(&self) {
        let deadline = Instant::now() + patience();
        while !self.host_pids().is_empty() {
            assert!(Instant::now() < deadline, "{} goes on running", self.id);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Image {
    /// Brings it back with `ocimig restore` in a new bundle, under a new id.
    pub fn restore(&self, ground: &Ground) -> Container {
        self.restore_with(ground, &[])
    }

    /// The same, with options beside the necessary ones.
    pub fn restore_with(&self, ground: &Ground, options: &[&str]) -> Container {
        let (bundle, id) = (ground.fresh("bundle"), unique("ocimig-test"));
        let pid_file = ground.fresh("pid");
        let mut command = self.restore_command(&bundle, &id);
        command.arg("--pid-file").arg(&pid_file).args(options);
        let printed = spawn(&mut command);
        let mut container = Container {
            ground: ground.clone(),
            runtime: None,
            rootfs: self.rootfs,
            id,
            former_ids: self.ids.clone(),
            bundle,
            host_pid: 0,
            printed: printed.outputs(),
            triggers: self.triggers,
            gap: Duration::ZERO,
        };
        printed.wait();
        container.gap = self.taken_at.elapsed();
        container.host_pid = read_pid(&pid_file);
        container
    }
}

impl Image {
    /// What brings it back in `bundle`, under the id `id`, and does not wait for its end.
    pub fn restore_command(&self, bundle: &Path, id: &str) -> Command {
        let mut command = self.restore_command_without_base(bundle, id);
        if let Some(base) = self.rootfs.base() {
            command.arg("--rootfs").arg(base);
        }
        command
    }

    /// The same without a base for its root file system.
    pub fn restore_command_without_base(&self, bundle: &Path, id: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocimig"));
        command.arg("restore").arg(&self.path);
        command.arg("--bundle").arg(bundle);
        command.args(["--runtime", "none", "--id", id, "--detach"]);
        command
    }

    /// The same checkpoint in another file.
    pub fn copy_at(&self, path: PathBuf) -> Self {
        Self {
            path,
            rootfs: self.rootfs,
            ids: self.ids.clone(),
            triggers: self.triggers,
            taken_at: self.taken_at,
        }
    }
}

/// A command that hands its standard output and error on to a container.
struct Spawned {
    shown: String,
    child: std::process::Child,
    outputs: (Output, Output),
}

fn spawn(command: &mut Command) -> Spawned {
    let (output_reader, output_writer) = std::io::pipe().unwrap();
    let (error_reader, error_writer) = std::io::pipe().unwrap();
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .stdout(output_writer)
        .stderr(error_writer);
    let child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let outputs = (
        Output::collect(output_reader),
        Output::collect(error_reader),
    );
    Spawned {
        shown,
        child,
        outputs,
    }
}

impl Spawned {
    fn outputs(&self) -> (Output, Output) {
        self.outputs.clone()
    }

    fn wait(mut self) {
        let deadline = Instant::now() + patience();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                break None;
            }
            thread::sleep(Duration::from_millis(2));
        };
        if !status.is_some_and(|status| status.success()) {
            thread::sleep(Duration::from_millis(100));
            let (text, errors) = (self.outputs.0.text(), self.outputs.1.text());
            let ending = status.map_or("no end in time".into(), |status| status.to_string());
            panic!("{}: {ending}\n{text}{errors}", self.shown);
        }
    }
}

fn read_pid(file: &Path) -> i32 {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    text.trim().parse().unwrap()
}

/// All processes that live in the PID namespace of `host_pid` or in one below it.
pub fn members(host_pid: i32) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(host_pid) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A zombie's namespace link is gone; its parent tells.
        let same = |pid| namespace(pid).as_ref() == Some(&wanted);
        if same(pid) || parent_if_zombie(pid).is_some_and(same) {
            found.push(pid);
        }
    }
    found.sort_by_key(|pid| (*pid != host_pid, *pid));
    found
}

fn parent_if_zombie(pid: i32) -> Option<i32> {
    let stat = read(format!("/proc/{pid}/stat"))?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    (fields.next()? == "Z").then(|| fields.next()?.parse().ok())?
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime {
            let _ = try_run(
                Command::new(runtime)
                    .args(["delete", "--force"])
                    .arg(&self.id),
            );
        }
        let left = if self.host_pid > 0 {
            self.host_pids()
        } else {
            Vec::new()
        };
        for pid in left.iter().rev() {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        for id in self.ids() {
            remove_cgroups(&id);
        }
    }
}

/// Removes the cgroups of the container `id`, once their processes are gone.
fn remove_cgroups(id: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else {
        return;
    };
    for hierarchy in hierarchies.flatten() {
        let group = hierarchy.path().join(id);
        while group.exists() && !remove_group(&group) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove_group(group: &Path) -> bool {
    if let Ok(entries) = fs::read_dir(group) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_group(&entry.path());
            }
        }
    }
    let thaw = group.join("freezer.state");
    if thaw.exists() {
        let _ = fs::write(thaw, "THAWED");
    }
    fs::remove_dir(group).is_ok()
}
