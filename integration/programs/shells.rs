//! A pipeline and a terminal.

use super::{Config, Container, Program, config};
use crate::harness::{read, run};
use std::fs;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// `seq | xz | tee | xz -d | sha256sum`, cut in the middle.
#[derive(Clone)]
pub struct Pipeline {
    /// How much went through tee when it was last looked at.
    passed: u64,
}

fn expected_sum() -> &'static str {
    static SUM: OnceLock<String> = OnceLock::new();
    SUM.get_or_init(|| run(Command::new("sh").args(["-c", "seq 1 2000000 | sha256sum"])))
}

impl Pipeline {
    fn wait_for(&mut self, container: &Container, passed: u64) {
        let deadline = Instant::now() + crate::harness::patience();
        loop {
            let copy = fs::metadata(container.path("copy.xz"));
            let len = copy.map_or(0, |copy| copy.len());
            if len > passed {
                self.passed = len;
                return;
            }
            assert!(Instant::now() < deadline, "{len} bytes went through tee");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Program for Pipeline {
    fn config() -> Config {
        config(["/bin/bash", "/programs/pipeline.sh"])
    }

    fn reach(container: &Container) -> Self {
        let mut pipeline = Self { passed: 0 };
        pipeline.wait_for(container, 20_000);
        let sum = container.path("draft");
        assert!(
            fs::metadata(sum).is_ok_and(|sum| sum.len() == 0),
            "over already"
        );
        pipeline
    }

    fn step(&mut self, container: &Container) {
        self.wait_for(container, self.passed);
    }

    fn goes_on(&mut self, container: &Container) {
        let deadline = Instant::now() + crate::harness::patience();
        let sum = loop {
            if let Some(sum) = read(container.path("sum")) {
                break sum;
            }
            assert!(Instant::now() < deadline, "no sum in time");
            thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(sum, expected_sum());
        let copy = container.path("copy.xz");
        let sum = run(Command::new("sh")
            .args(["-c", "xz -dc \"$0\" | sha256sum"])
            .arg(copy));
        assert_eq!(sum, expected_sum(), "the copy that tee made");
    }
}

/// A tmux server with a shell in a terminal.
#[derive(Clone)]
pub struct Tmux {
    count: u32,
}

impl Tmux {
    fn tmux(container: &Container, args: &[&str]) -> String {
        container.enter(&[&["/usr/bin/tmux", "-S", "/tmux.sock"], args].concat())
    }

    /// The lines on the screen.
    fn screen(container: &Container) -> String {
        Self::tmux(container, &["capture-pane", "-p", "-t", "main"])
    }

    /// Types a line, and waits for what the shell makes of it.
    fn type_line(container: &Container, line: &str, answer: &str) {
        Self::tmux(container, &["send-keys", "-t", "main", line, "Enter"]);
        let deadline = Instant::now() + crate::harness::patience();
        loop {
            let screen = Self::screen(container);
            if screen.lines().any(|shown| shown == answer) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{answer:?} is missing:\n{screen}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Program for Tmux {
    fn config() -> Config {
        config(["/bin/bash", "/programs/tmux.sh"])
    }

    fn reach(container: &Container) -> Self {
        container.stdout().wait_for_line("ready");
        Self::type_line(container, "clear; count=0; echo sta''rt", "start");
        Self { count: 0 }
    }

    fn goes_on(&mut self, container: &Container) {
        let screen = Self::screen(container);
        assert!(screen.lines().any(|line| line == "start"), "{screen}");
        self.count += 1;
        let answer = format!("count {}", self.count);
        Self::type_line(container, "echo \"count $((++count))\"", &answer);
        // A job of the shell's own: process groups and the foreground of the terminal.
        let answer = format!("job {}", self.count);
        Self::type_line(
            container,
            "(sleep 0.1; echo \"job $count\") & wait; fg",
            &answer,
        );
    }
}
