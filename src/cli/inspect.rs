//! `ocimig inspect`: what is in an image, for a person or a program. Nothing of it is unpacked, and no
//! rights are needed but to read it.

mod command_line;
mod descriptors;
mod namespaces;
mod regions;
mod text;
mod view;

pub(super) use text::human;

#[cfg(test)]
mod tests;

use crate::error::{Context, Error, Result};
use crate::image::archive::Reader;
use crate::image::check;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// The arguments of `ocimig inspect`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image; `-` reads it from standard input
    image: PathBuf,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
    /// Only this process, as the container numbers it
    #[arg(long, value_name = "PID")]
    process: Option<i32>,
    /// Read everything first, compare it with its digests, and see whether the records fit together
    #[arg(long)]
    verify: bool,
}

/// Runs `ocimig inspect`.
pub fn run(arguments: Arguments) -> Result<()> {
    let reader = if arguments.image == Path::new("-") {
        let input = std::io::stdin().as_fd().try_clone_to_owned()?;
        Reader::from_file(File::from(input)).doing(|| "reading standard input")?
    } else {
        Reader::open(&arguments.image)?
    };
    let about = || format!("inspecting {}", arguments.image.display());
    if arguments.verify {
        verify(&reader).doing(about)?;
    }
    let mut view = view::View::of(&reader).doing(about)?;
    if let Some(pid) = arguments.process {
        view.only(pid)?;
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    let written = if arguments.json {
        serde_json::to_writer_pretty(&mut out, &view)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        text::print(&view, &mut out)
    };
    match written.and_then(|()| out.flush()) {
        // `ocimig inspect IMAGE | head` is no failure.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(Error::from).doing(|| "writing what was found"),
    }
}

fn verify(reader: &Reader) -> Result<()> {
    reader.verify()?;
    let processes = view::process_records(reader)?;
    let objects = reader.optional("objects/memory.json")?;
    check::check(reader, &processes, &objects)
}
