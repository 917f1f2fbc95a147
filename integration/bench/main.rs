//! Measures checkpoints and restores, next to another program that speaks CRIU's command line.
//!
//! It is no test: it prints a table, whatever the figures are. `scripts/bench --help` says how to use it.

mod measure;
mod report;
mod system;
mod workload;

use measure::{Bench, Tool};
use std::path::PathBuf;
use std::process::ExitCode;
use workload::{Scale, Workload};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "\
usage: scripts/bench [--against /path/to/criu] [--quick] [--pairs N] [--directory DIR] [WORKLOAD…]

Prints medians of interleaved runs: wall time and frozen time of a checkpoint, wall time of a restore,
size of the image, memory after the restore (sum of Pss). With --against the same for another program
that speaks CRIU's command line, and the ratios to it.

  --quick          small workloads and few runs: whether it works at all
  --pairs N        runs of each tool (otherwise 3 to 15, by workload)
  --directory DIR  where images go (otherwise memory, /dev/shm, so that no disk is measured)

Workloads: idle random compressible threads processes areas fork
";

/// The command line.
struct Request {
    against: Option<PathBuf>,
    scale: Scale,
    pairs: Option<usize>,
    directory: PathBuf,
    workloads: Vec<Workload>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("--help" | "-h") => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some(workload::WORD) => workload::main(&arguments[1..]),
        _ => parse(&arguments).and_then(|request| bench(&request)),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[String]) -> Result<Request> {
    let memory = PathBuf::from("/dev/shm");
    let mut request = Request {
        against: None,
        scale: Scale::Full,
        pairs: None,
        directory: match memory.is_dir() {
            true => memory,
            false => std::env::temp_dir(),
        },
        workloads: Vec::new(),
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "--against" => request.against = Some(value()?.into()),
            "--quick" => request.scale = Scale::Quick,
            "--pairs" => request.pairs = Some(value()?.parse::<usize>()?.max(1)),
            "--directory" => request.directory = value()?.into(),
            name => match Workload::from_name(name) {
                Some(workload) => request.workloads.push(workload),
                None => return Err(format!("there is no workload {name:?}\n\n{USAGE}").into()),
            },
        }
    }
    if request.workloads.is_empty() {
        request.workloads = Workload::ALL.to_vec();
    }
    Ok(request)
}

fn bench(request: &Request) -> Result<ExitCode> {
    let own = std::env::current_exe()?
        .parent()
        .and_then(|examples| examples.parent())
        .map(|profile| profile.join("ocimig"))
        .filter(|program| program.exists())
        .ok_or("ocimig is not built: use scripts/bench")?;
    system::adopt_orphans()?;
    let directory = tempfile::Builder::new()
        .prefix("ocimig-bench-")
        .tempdir_in(&request.directory)?;
    let bench = Bench::new(directory.path(), request.scale);
    let other = request.against.as_deref().map(Tool::other);
    let mut table = report::Table::new(other.is_some());
    let mut failed = false;
    for workload in &request.workloads {
        let mut tools = vec![Tool::own(&own, None)];
        if workload.is_bulk() {
            tools.push(Tool::own(&own, Some("none")));
        }
        tools.extend(other.clone());
        let pairs = request.pairs.unwrap_or(workload.pairs(request.scale));
        let runs = bench.runs(*workload, &tools, pairs);
        failed |= runs
            .iter()
            .any(|(tool, runs)| !tool.is_other && runs.is_empty());
        table.add(&workload.title(request.scale), &runs);
    }
    println!("{}", table.markdown());
    Ok(ExitCode::from(u8::from(failed)))
}
