//! What the command line shows while the engine works: a bar on a terminal, events for programs.

use crate::error::Result;
use crate::request::{CheckpointReport, Facts, Phase, Progress, RestoreReport, Stage, Watcher};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::time::Duration;

/// How much is shown.
#[derive(clap::Args, Debug, Clone, Copy)]
pub struct WatchArguments {
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
    /// Print events as lines of JSON on standard error
    #[arg(long)]
    json: bool,
}

/// Shows what happens.
pub struct Watch {
    arguments: WatchArguments,
    bar: Option<ProgressBar>,
    phase: Option<Phase>,
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Freezing => "freezing",
        Phase::Collecting => "collecting",
        Phase::Transferring => "transferring",
        Phase::Syncing => "syncing",
        Phase::Building => "building",
    }
}

impl Watch {
    /// Shows as much as the arguments say.
    pub fn new(arguments: &WatchArguments) -> Self {
        let wanted = !arguments.quiet && !arguments.json && std::io::stderr().is_terminal();
        let bar = wanted.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(
                ProgressStyle::with_template("{msg:12} {bytes} {bytes_per_sec}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        Self {
            arguments: *arguments,
            bar,
            phase: None,
        }
    }

    fn event(&self, event: serde_json::Value) {
        if self.arguments.json {
            eprintln!("{event}");
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// The last words of a checkpoint.
    pub fn checkpoint_done(&mut self, report: &CheckpointReport) {
        self.finish();
        self.event(json!({
            "event": "done",
            "processes": report.processes,
            "image_bytes": report.image_bytes,
            "frozen_microseconds": micros(report.frozen),
            "freezing_microseconds": micros(report.freezing),
        }));
        if !self.arguments.quiet && !self.arguments.json {
            eprintln!(
                "{} processes, {} bytes, {:.1} ms from freeze to end",
                report.processes,
                report.image_bytes,
                report.frozen.as_secs_f64() * 1000.0
            );
        }
    }

    /// The last words of a restore.
    pub fn restore_done(&mut self, host_pid: i32, report: &RestoreReport) {
        self.finish();
        self.event(json!({
            "event": "done",
            "pid": host_pid,
            "processes": report.processes,
            "restore_microseconds": micros(report.restoring),
        }));
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Watcher for Watch {
    fn notify(&mut self, stage: Stage, facts: &Facts<'_>) -> Result<()> {
        self.event(json!({
            "event": "stage",
            "stage": format!("{stage:?}"),
            "pid": facts.pid,
        }));
        Ok(())
    }

    fn progress(&mut self, progress: Progress) {
        if let Some(bar) = &self.bar {
            bar.set_message(name(progress.phase));
            bar.set_position(progress.done);
            if let Some(total) = progress.total {
                bar.set_length(total);
                if let Ok(style) = ProgressStyle::with_template(
                    "{msg:12} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}",
                ) {
                    bar.set_style(style);
                }
            }
        }
        if self.phase != Some(progress.phase) {
            self.phase = Some(progress.phase);
            self.event(json!({"event": "phase", "phase": name(progress.phase)}));
        }
    }
}
