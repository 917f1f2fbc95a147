//! Front 1: the command line, one file per subcommand.

pub mod inspect;
pub mod regions;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "ocimig", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the memory regions of a process in five segments
    Regions(regions::Arguments),
    /// Show what is in an image
    Inspect(inspect::Arguments),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Regions(arguments) => regions::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ocimig: {error}");
            ExitCode::from(error.exit() as u8)
        }
    }
}
