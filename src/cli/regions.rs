//! `ocimig regions`.

use crate::error::Result;

/// The arguments of `ocimig regions`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Runs `ocimig regions`.
pub fn run(_arguments: Arguments) -> Result<()> {
    Ok(())
}
