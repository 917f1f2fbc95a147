//! Running commands with a deadline, collecting what a container prints, the test program.

use std::fs;
use std::io::{PipeReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything that should happen soon may take on a busy machine.
pub fn patience() -> Duration {
    Duration::from_secs(60)
}

/// Runs `command` to its end and returns its standard output; panics with everything it printed
/// when it fails or takes too long.
pub fn run(command: &mut Command) -> String {
    match try_run(command) {
        Ok(text) => text,
        Err(text) => panic!("{text}"),
    }
}

/// Like [`run`], with the failure as a value.
pub fn try_run(command: &mut Command) -> Result<String, String> {
    let (output_reader, output_writer) = std::io::pipe().map_err(|e| e.to_string())?;
    let (error_reader, error_writer) = std::io::pipe().map_err(|e| e.to_string())?;
    let shown = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(output_writer)
        .stderr(error_writer)
        .spawn();
    // The command keeps its copies of the writers; with them the readers would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.map_err(|error| format!("{shown}: {error}"))?;
    let output = Output::collect(output_reader);
    let errors = Output::collect(error_reader);
    let deadline = Instant::now() + patience();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                drop(child.kill());
                drop(child.wait());
                let (text, errors) = (output.text(), errors.text());
                return Err(format!("{shown}: no end in time\n{text}{errors}"));
            }
            Err(error) => return Err(format!("{shown}: {error}")),
        }
    };
    // Something that the command left behind may hold the pipes open.
    output.wait_at_most(Duration::from_secs(1));
    errors.wait_at_most(Duration::from_millis(200));
    if status.success() {
        Ok(output.text())
    } else {
        let (text, errors) = (output.text(), errors.text());
        Err(format!("{shown}: {status}\n{text}{errors}"))
    }
}

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

/// Everything that came out of a pipe so far, gathered by a thread.
#[derive(Clone)]
pub struct Output {
    shared: Arc<(Mutex<Collected>, Condvar)>,
}

impl Output {
    /// Starts gathering from `reader`.
    pub fn collect(mut reader: PipeReader) -> Self {
        let shared = Arc::new((Mutex::new(Collected::default()), Condvar::new()));
        let output = Self {
            shared: Arc::clone(&shared),
        };
        thread::spawn(move || {
            let mut buffer = [0_u8; 65536];
            loop {
                let count = reader.read(&mut buffer).unwrap_or(0);
                let mut collected = shared.0.lock().unwrap();
                collected.bytes.extend_from_slice(&buffer[..count]);
                collected.ended = count == 0;
                shared.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        output
    }

    /// All of it so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.0.lock().unwrap().bytes).into_owned()
    }

    /// Waits until `accept` finds what it looks for; panics with everything printed otherwise.
    pub fn wait_for<T>(&self, what: &str, mut accept: impl FnMut(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + patience();
        let mut collected = self.shared.0.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&collected.bytes).into_owned();
            if let Some(found) = accept(&text) {
                return found;
            }
            let now = Instant::now();
            assert!(
                now < deadline && !collected.ended,
                "waiting for {what}: {} with only this printed:\n{text}",
                if collected.ended {
                    "the end came"
                } else {
                    "nothing came in time"
                },
            );
            (collected, _) = self
                .shared
                .1
                .wait_timeout(collected, deadline - now)
                .unwrap();
        }
    }

    /// Waits until a whole line is exactly `line`.
    pub fn wait_for_line(&self, line: &str) {
        self.wait_for(&format!("the line {line:?}"), |text| {
            text.lines()
                .any(|candidate| candidate == line)
                .then_some(())
        });
    }

    /// Waits until nobody can write any more; panics when somebody still can after a while.
    pub fn wait_for_end(&self) {
        self.wait_at_most(patience());
        assert!(
            self.shared.0.lock().unwrap().ended,
            "somebody holds the pipe"
        );
    }

    fn wait_at_most(&self, at_most: Duration) {
        let collected = self.shared.0.lock().unwrap();
        drop(
            self.shared
                .1
                .wait_timeout_while(collected, at_most, |c| !c.ended),
        );
    }
}

/// The self-checking test program, built when it is not there or not new.
pub fn subject() -> &'static Path {
    static SUBJECT: OnceLock<PathBuf> = OnceLock::new();
    SUBJECT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_BIN_EXE_ocimig")).parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--locked", "--example", "subject"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .arg("--target-dir")
            .arg(directory.parent().unwrap());
        if directory.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().unwrap();
        assert!(status.success(), "building the test program: {status}");
        directory.join("examples/subject")
    })
}

/// `path` with its text, `None` where it is gone or not to be read.
pub fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read(path)
        .ok()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
