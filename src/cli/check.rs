//! `ocimig check`: what this host can and cannot do, and what each gap costs.

use crate::check::{self, Finding, State};
use crate::error::{Context, Error, Exit, Result};
use std::io::Write;

/// The arguments of `ocimig check`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Runs `ocimig check`. E-HOST-MISSING where something is missing without which nothing works.
pub fn run(arguments: Arguments) -> Result<()> {
    let findings = check::host();
    let mut text = Vec::new();
    if arguments.json {
        let all = serde_json::json!({
            "usable": check::is_usable(&findings),
            "findings": findings,
        });
        serde_json::to_writer_pretty(&mut text, &all)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(text))
    } else {
        print(&findings, &mut text)
    }
    .and_then(|()| std::io::stdout().lock().write_all(&text))
    .doing(|| "writing what was found")?;
    let missing: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.indispensable && finding.state == State::Missing)
        .map(|finding| finding.name.as_str())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::coded(
        "E-HOST-MISSING",
        Exit::Host,
        format!(
            "neither checkpoint nor restore can work without {}",
            missing.join(", ")
        ),
        "see the lines above",
    ))
}

fn print(findings: &[Finding], out: &mut dyn Write) -> std::io::Result<()> {
    for finding in findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Limited => "limited",
            State::Missing => "missing",
        };
        let line = format!("{state:8} {:24} {}", finding.name, finding.seen);
        writeln!(out, "{}", line.trim_end())?;
        if finding.state != State::Ok {
            writeln!(out, "           costs:  {}", finding.cost)?;
            writeln!(out, "           remedy: {}", finding.remedy)?;
        }
    }
    let count = |state| findings.iter().filter(|one| one.state == state).count();
    writeln!(
        out,
        "\n{} ok, {} limited, {} missing: containers can{} be checkpointed and restored here.",
        count(State::Ok),
        count(State::Limited),
        count(State::Missing),
        if check::is_usable(findings) {
            ""
        } else {
            "not"
        },
    )
}
