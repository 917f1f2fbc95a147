//! Images that cannot be read at any place (pipes, gzip) are copied to a file without a name first.

use super::error;
use crate::error::{Context, Error, Exit, Result};
use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

/// Bytes between two looks at how much space is left.
const STEP: usize = 64 << 20;
/// Bytes per read and write.
const BUFFER: usize = 1 << 20;

/// Copies a stream to a file without a name: beside the image, where there is room for files of its
/// size, or else in the usual places. What unpacks to more than a disk holds is refused before the
/// disk is full.
pub fn spill(stream: &mut dyn Read, beside: Option<&Path>) -> Result<File> {
    let mut file = beside
        .and_then(|directory| tempfile::tempfile_in(directory).ok())
        .map_or_else(|| tempfile::tempfile_in("/var/tmp"), Ok)
        .or_else(|_| tempfile::tempfile())
        .doing(|| "making a temporary file for the image")?;
    let mut buffer = vec![0; BUFFER];
    let mut until_look = 0usize;
    loop {
        if until_look == 0 {
            leave_room(&file)?;
            until_look = STEP;
        }
        let read = match stream.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(read) => read,
            Err(why) if why.kind() == ErrorKind::Interrupted => continue,
            Err(why) => return Err(read_error(why)),
        };
        file.write_all(&buffer[..read]).map_err(|why| {
            match why.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOSPC | Errno::EDQUOT) => no_room(),
                _ => Error::from(why).doing("copying the image to a temporary file"),
            }
        })?;
        until_look = until_look.saturating_sub(read);
    }
}

fn read_error(why: std::io::Error) -> Error {
    match why.kind() {
        ErrorKind::UnexpectedEof => error::truncated("the gzip stream ends in the middle"),
        ErrorKind::InvalidData | ErrorKind::InvalidInput => {
            error::damaged(format!("the gzip stream: {why}"))
        }
        _ => Error::from(why).doing("reading the image"),
    }
}

/// Others need the disk too: a fiftieth of it, at most 1 GiB, stays free.
fn leave_room(file: &File) -> Result<()> {
    let disk = fstatvfs(file).doing(|| "asking how much space is left")?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    let all = disk.blocks().saturating_mul(disk.fragment_size());
    if free < (all / 50).min(1 << 30).saturating_add(STEP as u64) {
        return Err(no_room());
    }
    Ok(())
}

fn no_room() -> Error {
    Error::coded(
        "E-IMAGE-UNPACK-FULL",
        Exit::Image,
        "there is no space left to unpack the image",
        "make room beside the image or in /var/tmp, or write images with --compress zstd",
    )
}
