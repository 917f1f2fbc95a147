//! Runs: each starts a workload, checkpoints it, restores it, looks at it, and clears up.

use super::Result;
use super::system;
use super::workload::{INTACT, Scale, Workload};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A program that speaks CRIU's command line.
#[derive(Debug, Clone)]
pub struct Tool {
    command: Vec<PathBuf>,
    compress: Option<&'static str>,
    /// Not ours.
    pub is_other: bool,
}

impl Tool {
    pub fn own(program: &Path, compress: Option<&'static str>) -> Self {
        Self {
            command: vec![program.to_owned(), "criu".into()],
            compress,
            is_other: false,
        }
    }

    pub fn other(program: &Path) -> Self {
        Self {
            command: vec![program.to_owned()],
            compress: None,
            is_other: true,
        }
    }

    /// How the table calls it.
    pub fn label(&self) -> String {
        match (self.is_other, self.compress) {
            (true, _) => "other".to_owned(),
            (false, None) => String::new(),
            (false, Some(compress)) => format!("compression: {compress}"),
        }
    }

    fn command(&self, verb: &str, images: &Path, log: &Path) -> Command {
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .arg(verb)
            .arg("-D")
            .arg(images)
            .arg("-o")
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

/// What one run showed.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub checkpoint: Duration,
    pub frozen: Duration,
    pub restore: Duration,
    /// Bytes of all images.
    pub image: u64,
    /// Bytes: the sum of Pss of all processes after the restore.
    pub memory: u64,
}

/// Where and how large.
pub struct Bench<'a> {
    directory: &'a Path,
    scale: Scale,
}

impl<'a> Bench<'a> {
    pub fn new(directory: &'a Path, scale: Scale) -> Self {
        Self { directory, scale }
    }

    /// Runs of all tools in turns. One that fails has no runs; what it said is on standard error.
    pub fn runs(&self, workload: Workload, tools: &[Tool], pairs: usize) -> Vec<(Tool, Vec<Run>)> {
        let mut all: Vec<(Tool, Vec<Run>)> = tools
            .iter()
            .map(|tool| (tool.clone(), Vec::new()))
            .collect();
        let mut broken = vec![false; tools.len()];
        // The first of each is not counted: programs and libraries come from the disk.
        for pair in 0..=pairs {
            for step in 0..tools.len() {
                let at = (pair + step) % tools.len();
                if broken[at] {
                    continue;
                }
                match self.run(workload, &tools[at]) {
                    Ok(run) if pair > 0 => all[at].1.push(run),
                    Ok(_) => {}
                    Err(error) => {
                        eprintln!(
                            "bench: {} with {}: {error}",
                            workload.name(),
                            tools[at].command[0].display()
                        );
                        broken[at] = true;
                        all[at].1.clear();
                    }
                }
            }
            eprint!(
                "\r{}: {pair} of {pairs}{}",
                workload.name(),
                if pair == pairs { "\n" } else { "" }
            );
        }
        all
    }

    fn run(&self, workload: Workload, tool: &Tool) -> Result<Run> {
        let pid = start(workload, self.scale)?;
        let images = self.directory.join("images");
        let outcome = std::fs::create_dir(&images)
            .map_err(Into::into)
            .and_then(|()| self.measure(pid, tool, &images));
        system::end(&system::tree(pid));
        std::fs::remove_dir_all(&images)?;
        outcome
    }

    fn measure(&self, pid: i32, tool: &Tool, images: &Path) -> Result<Run> {
        let log = self.directory.join("log");
        let mut command = tool.command("dump", images, &log);
        command.arg("-t").arg(pid.to_string());
        if let Some(compress) = tool.compress {
            command.arg("--compress").arg(compress);
        }
        let checkpoint = timed(&mut command, &log)?;
        system::reap();
        let frozen = frozen(&images.join("stats-dump"))?;
        let image = size(images)?;
        let mut command = tool.command("restore", images, &log);
        let restore = timed(command.arg("-d"), &log)?;
        let tree = system::tree(pid);
        let memory = tree.iter().map(|pid| pss(*pid)).sum();
        if system::ask(pid)? != INTACT {
            return Err("the workload is damaged after the restore".into());
        }
        // What it leaves are children of this process now.
        system::end(&tree[1..]);
        Ok(Run {
            checkpoint,
            frozen,
            restore,
            image,
            memory,
        })
    }
}

/// Starts a workload; its number when it is ready.
fn start(workload: Workload, scale: Scale) -> Result<i32> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(workload.arguments(scale))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = system::in_own_session(&mut command).spawn()?;
    let mut said = String::new();
    if let Some(mut out) = child.stdout.take() {
        // To the end: then it has let go of the pipe.
        out.read_to_string(&mut said)?;
    }
    let pid = child.id().cast_signed();
    if said != "ready\n" {
        system::end(&system::tree(pid));
        return Err("the workload did not get ready".into());
    }
    Ok(pid)
}

/// Runs a command to its end; how long that took.
fn timed(command: &mut Command, log: &Path) -> Result<Duration> {
    let begun = Instant::now();
    let status = command.status()?;
    let took = begun.elapsed();
    if status.success() {
        return Ok(took);
    }
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("Error"))
        .take(5)
        .collect();
    Err(format!("{command:?}: {status}\n{}", errors.join("\n")).into())
}

/// The frozen time in `stats-dump`: after magic and length, field 2 of the message in field 1.
fn frozen(path: &Path) -> Result<Duration> {
    let bytes = std::fs::read(path)?;
    let mut at = bytes.get(12..).ok_or("stats-dump is too short")?;
    // Into the message that is field 1.
    varint(&mut at)?;
    varint(&mut at)?;
    while !at.is_empty() {
        let (tag, value) = (varint(&mut at)?, varint(&mut at)?);
        if tag == 2 << 3 {
            return Ok(Duration::from_micros(value));
        }
    }
    Err("stats-dump holds no frozen time".into())
}

fn varint(at: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = at.split_first().ok_or("stats-dump ends early")?;
        *at = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("stats-dump holds no number".into())
}

fn size(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(directory)? {
        // What it takes on the disk: a hole that only states a size takes nothing.
        sum += std::os::unix::fs::MetadataExt::blocks(&entry?.metadata()?) * 512;
    }
    Ok(sum)
}

/// Bytes of memory of a process, what it shares in parts.
fn pss(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}
