//! Front 1: the command line, one file per subcommand.

pub mod check;
pub mod checkpoint;
pub mod codes;
pub mod inspect;
pub mod regions;
pub mod restore;
mod watch;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "ocimig", version, about, max_term_width = 100)]
struct Arguments {
    /// Log what is done to standard error; twice for more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a container into an image
    Checkpoint(checkpoint::Arguments),
    /// Bring a container back from an image
    Restore(restore::Arguments),
    /// Print the memory regions of a process in five segments
    Regions(regions::Arguments),
    /// Say what this host can and cannot do, and what each gap costs
    Check(check::Arguments),
    /// Show what is in an image
    Inspect(inspect::Arguments),
    /// Explain exit codes and the codes of messages
    Codes(codes::Arguments),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr(arguments.verbose);
    let result = match arguments.command {
        Command::Checkpoint(arguments) => checkpoint::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Restore(arguments) => restore::run(arguments),
        Command::Regions(arguments) => regions::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Check(arguments) => check::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Codes(arguments) => codes::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Inspect(arguments) => inspect::run(arguments).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ocimig: {error}");
            ExitCode::from(error.exit() as u8)
        }
    }
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
}
