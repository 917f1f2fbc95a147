//! `ocimig inspect`.

use crate::error::Result;

/// The arguments of `ocimig inspect`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Runs `ocimig inspect`.
pub fn run(_arguments: Arguments) -> Result<()> {
    Ok(())
}
