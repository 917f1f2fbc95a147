//! `ocimig regions`: the memory of a process in five segments.

mod listed;
mod living;

use crate::error::{Context, Error, Result};
use crate::image::PathBytes;
use crate::proc::classify::{Kind, Segment};
use crate::proc::maps::Area;
use serde_json::{Value, json};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;

/// The arguments of `ocimig regions`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The process
    #[arg(
        required_unless_present = "maps",
        value_parser = clap::value_parser!(i32).range(1..)
    )]
    pid: Option<i32>,
    /// A copy of /proc/PID/maps instead of a process; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "pid")]
    maps: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Runs `ocimig regions`.
pub fn run(arguments: Arguments) -> Result<()> {
    let mut text = Vec::new();
    match (&arguments.maps, arguments.pid) {
        (Some(path), _) => listed::Listed::read(path)?.print(arguments.json, &mut text),
        (None, Some(pid)) => living::Living::look(pid)?.print(arguments.json, &mut text),
        (None, None) => return Err(Error::bug("neither a process nor a file")),
    }
    .doing(|| "putting the regions into words")?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    match out.write_all(&text).and_then(|()| out.flush()) {
        // `ocimig regions PID | head` is no failure.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.doing(|| "writing the regions"),
    }
}

/// The line above a segment.
fn heading(segment: Segment, out: &mut dyn Write) -> std::io::Result<()> {
    if segment != Segment::Text {
        writeln!(out)?;
    }
    writeln!(out, "#### {}\n", segment.heading())
}

/// Names the restricted regions, if there are any: `libc-2.17.so (7ff8c9216000-7ff8c9415000)`.
fn restricted<'a>(
    regions: impl Iterator<Item = (&'a Area, Kind)>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let names: Vec<String> = regions
        .filter(|(_, kind)| *kind == Kind::Restricted)
        .map(|(area, _)| {
            let path = area.file_path().unwrap_or_default();
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
            let name = PathBytes::from(name);
            format!("{name} ({:x}-{:x})", area.start, area.end)
        })
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    writeln!(out, "Restricted (---p): {}\n", names.join(", "))
}

/// What maps says of a region, and its kind.
fn region_json(area: &Area, kind: Kind) -> Value {
    json!({
        "start": format!("{:x}", area.start),
        "end": format!("{:x}", area.end),
        "perms": area.perms.to_string(),
        "offset": area.offset,
        "device": format!("{:02x}:{:02x}", area.device.major, area.device.minor),
        "inode": area.inode,
        "path": PathBytes::from(&area.path),
        "kind": kind.name(),
        "size": area.size(),
    })
}
