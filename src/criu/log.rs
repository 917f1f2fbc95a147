//! The log, in the form that runtimes search: `(00.012345) Error (file:line): what happened`.
//!
//! What is logged before the log file is known waits for it. A line is an error only where the
//! operation failed because of it: everything else never contains the word that runtimes look for.

use crate::error::{Cause, Error};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Bytes that wait at most for a log file.
const WAITING: usize = 64 * 1024;

/// Levels 0 (nothing) to 4 (everything), as `-v` counts them.
pub const DEFAULT_LEVEL: u8 = 2;

/// A log; cheap to clone, all clones are one.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    begun: Instant,
    level: AtomicU8,
    on_stderr: AtomicBool,
    sink: Mutex<Sink>,
}

enum Sink {
    Waiting(Vec<(u8, String)>, usize),
    File(File),
}

impl Default for Log {
    fn default() -> Self {
        Self(Arc::new(Shared {
            begun: Instant::now(),
            level: AtomicU8::new(u8::MAX),
            on_stderr: AtomicBool::new(false),
            sink: Mutex::new(Sink::Waiting(Vec::new(), 0)),
        }))
    }
}

impl Log {
    /// A log that keeps what comes until [`Log::open`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes it the log of this process, all threads included; the first one stays.
    pub fn install(&self) {
        let subscriber = tracing_subscriber::registry().with(self.clone());
        if tracing::subscriber::set_global_default(subscriber).is_err() {
            tracing::debug!("this process has a log already");
        }
    }

    /// From now on lines up to `level` go to `file`, after those that waited.
    pub fn open(&self, mut file: File, level: u8) {
        self.0.level.store(level, Ordering::Relaxed);
        let mut sink = self.0.sink.lock().unwrap_or_else(PoisonError::into_inner);
        if let Sink::Waiting(lines, _) = &*sink {
            for (at, line) in lines {
                if *at <= level {
                    // Nobody can be told that the log does not work.
                    drop(file.write_all(line.as_bytes()));
                }
            }
        }
        *sink = Sink::File(file);
    }

    /// From now on lines up to `level` go to standard error.
    pub fn open_stderr(&self, stderr: File, level: u8) {
        self.open(stderr, level);
        self.0.on_stderr.store(level > 0, Ordering::Relaxed);
    }

    /// Whether who looks at standard error sees what is logged.
    pub fn is_on_stderr(&self) -> bool {
        self.0.on_stderr.load(Ordering::Relaxed)
    }

    fn write(&self, level: u8, line: String) {
        let mut sink = self.0.sink.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *sink {
            Sink::Waiting(lines, size) => {
                if *size < WAITING {
                    *size += line.len();
                    lines.push((level, line));
                }
            }
            Sink::File(file) => drop(file.write_all(line.as_bytes())),
        }
    }
}

fn rank(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The level changes while we run.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        rank(*metadata.level()) <= self.0.level.load(Ordering::Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let metadata = event.metadata();
        let elapsed = self.0.begun.elapsed();
        let place = format!(
            "{}:{}",
            metadata.file().unwrap_or("ocimig"),
            metadata.line().unwrap_or(0)
        );
        let stamp = format!("({:02}.{:06})", elapsed.as_secs(), elapsed.subsec_micros());
        let level = rank(*metadata.level());
        for line in text.0.lines() {
            let line = match level {
                1 => format!("{stamp} Error ({place}): {line}\n"),
                2 => format!("{stamp} Warn  ({place}): {}\n", harmless(line)),
                _ => format!("{stamp} {}\n", harmless(line)),
            };
            self.write(level, line);
        }
    }
}

/// Runtimes take every line with that word for the cause of a failure.
fn harmless(line: &str) -> String {
    line.replace("Error", "error")
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        let written = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
        debug_assert!(written.is_ok());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Logs why something failed: the first real cause first, one line each.
pub fn failure(error: &Error) {
    for line in lines(error) {
        tracing::error!("{line}");
    }
}

/// What failed, a line a cause. Refusals come first, each on its own.
pub fn lines(error: &Error) -> Vec<String> {
    let text = error.to_string();
    match error.cause() {
        Cause::Refused(refusals) => {
            let mut lines: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            lines.extend(
                text.lines()
                    .filter(|line| !lines.iter().any(|seen| line.trim() == seen))
                    .map(|line| line.trim().to_owned())
                    .collect::<Vec<_>>(),
            );
            lines
        }
        Cause::Os(_) | Cause::Io(_) | Cause::Gone { .. } | Cause::Coded { .. } | Cause::Bug(_) => {
            text.lines().map(|line| line.trim().to_owned()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Refusals;
    use std::io::{Read, Seek};

    fn logged(level: u8, talk: impl FnOnce()) -> String {
        let log = Log::new();
        let subscriber = tracing_subscriber::registry().with(log.clone());
        let mut file = tempfile::tempfile().unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("before the file is known");
            log.open(file.try_clone().unwrap(), level);
            talk();
        });
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn an_error_has_the_form_that_runtimes_search() {
        let text = logged(4, || tracing::error!("no such process"));
        let line = text.lines().last().unwrap();
        let (stamp, rest) = line.split_at(11);
        assert!(stamp.starts_with('(') && stamp.ends_with(')'), "{line}");
        assert!(rest.starts_with(" Error (src/criu/log.rs:"), "{line}");
        assert!(rest.ends_with("): no such process"), "{line}");
    }

    #[test]
    fn what_is_no_failure_does_not_contain_the_word() {
        let text = logged(4, || {
            tracing::warn!("kernel says Error: nothing to do");
            tracing::debug!(count = 3, "an Error in a name");
        });
        assert!(!text.contains("Error"), "{text}");
        assert!(text.contains("an error in a name count=3"), "{text}");
    }

    #[test]
    fn the_level_decides_also_about_what_waited() {
        let text = logged(2, || {
            tracing::warn!("careful");
            tracing::info!("by the way");
        });
        assert!(text.contains("careful"), "{text}");
        assert!(!text.contains("by the way"), "{text}");
        assert!(!text.contains("before the file"), "{text}");
        assert!(logged(3, || ()).contains("before the file is known"));
        assert!(logged(0, || tracing::error!("x")).is_empty());
    }

    #[test]
    fn refusals_come_one_a_line_before_everything_else() {
        let mut refusals = Refusals::new();
        refusals.add(
            "E-IOURING",
            "fd 3 of pid 1",
            "io_uring instance",
            "close it",
        );
        refusals.add("E-NETLINK", "fd 4 of pid 1", "netlink socket", "close it");
        let error = refusals
            .into_result()
            .unwrap_err()
            .doing("checkpointing web");
        let lines = lines(&error);
        assert!(lines[0].starts_with("E-IOURING: fd 3"), "{lines:?}");
        assert!(lines[1].starts_with("E-NETLINK: fd 4"), "{lines:?}");
        assert_eq!(lines[2], "checkpointing web: 2 refused");
        assert_eq!(lines.len(), 3);
    }
}
