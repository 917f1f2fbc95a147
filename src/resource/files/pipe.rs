//! Pipes and FIFOs: their ends, what is queued, what only the outside holds.

use super::reference::{Opener, reopen};
use super::{Contents, flags};
use crate::error::{Context, Error, Exit, Result};
use crate::image::files::{
    FileId, FileKind, FileReference, Files, Inode, OpenFile, Pipe, PipePiece,
};
use crate::sys::{pipe as sys, statx};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Gid, Uid, pipe2, read, write};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The sides of a pipe that a descriptor shows, and whether the other side has been closed by all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sides {
    pub reads: bool,
    pub writes: bool,
    /// The kernel says that nobody is left on the other side.
    pub alone: bool,
}

impl Sides {
    pub fn of(fd: BorrowedFd<'_>, bits: i32) -> Result<Self> {
        let mut polled = [PollFd::new(fd, PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO).doing(|| "polling a pipe")?;
        let events = polled[0].revents().unwrap_or(PollFlags::empty());
        Ok(Self {
            reads: flags::reads(bits),
            writes: flags::writes(bits),
            alone: events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR),
        })
    }
}

/// Describes the pipe behind any of its ends, without its content.
pub(super) fn describe(fd: BorrowedFd<'_>) -> Result<Pipe> {
    let status = statx::of(fd)?;
    Ok(Pipe {
        inode: super::view::inode(&status),
        capacity: sys::capacity(fd).doing(|| "asking for a pipe's size")? as u64,
        uid: status.uid,
        gid: status.gid,
        mode: status.mode & 0o7777,
        expectant: false,
        member: None,
        pieces: Vec::new(),
    })
}

/// What is queued, and how it is cut; nothing is taken from the pipe.
///
/// tee(2) gives a pipe of our own the same buffers. From there each buffer is moved to a second
/// pipe of two slots, one of which is taken by a single byte, so that exactly one buffer fits. Then
/// that byte is read and written again behind the buffer: a read stops between them only where the
/// buffer is a packet.
pub(super) fn content(fd: BorrowedFd<'_>, capacity: u64) -> Result<(Vec<u8>, Vec<PipePiece>)> {
    let mut bytes = Vec::new();
    let mut pieces: Vec<PipePiece> = Vec::new();
    if sys::readable(fd)? == 0 {
        return Ok((bytes, pieces));
    }
    let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
    let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let (copy_out, copy_in) = pipe2(flags).doing(|| "making a pipe")?;
    sys::set_capacity(copy_in.as_fd(), capacity).doing(|| "sizing a pipe")?;
    let teed = sys::tee(fd, copy_in.as_fd(), capacity).doing(|| "copying a pipe's queue")?;
    let (single_out, single_in) = pipe2(flags).doing(|| "making a pipe")?;
    sys::set_capacity(single_in.as_fd(), 2 * PAGE).doing(|| "sizing a pipe")?;
    if sys::capacity(single_in.as_fd())? != 2 * PAGE {
        return Err(Error::bug("a pipe of two slots has another size"));
    }
    write(&single_in, b"x")?;
    let mut buffer = vec![0; 2 * PAGE + 1];
    while bytes.len() < teed {
        sys::splice(copy_out.as_fd(), single_in.as_fd(), capacity)
            .doing(|| "moving a buffer between pipes")?;
        read(&single_out, &mut buffer[..1])?;
        let len = sys::readable(single_out.as_fd())?;
        write(&single_in, b"x")?;
        let got = read(&single_out, &mut buffer)?;
        let packet = got == len;
        if !packet {
            write(&single_in, b"x")?;
        }
        bytes.extend_from_slice(&buffer[..len]);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        match pieces.last_mut() {
            Some(last) if !packet && !last.packet => last.len += len,
            _ => pieces.push(PipePiece { len, packet }),
        }
    }
    Ok((bytes, pieces))
}

const PAGE: usize = 4096;

/// Makes all pipes and FIFOs, their ends and queues.
pub(super) fn rebuild(
    files: &Files,
    opener: &mut Opener<'_>,
    contents: &dyn Contents,
    made: &mut BTreeMap<FileId, OwnedFd>,
) -> Result<()> {
    let mut ends: HashMap<Inode, Vec<&OpenFile>> = HashMap::new();
    for file in &files.open_files {
        if let FileKind::Pipe { pipe } | FileKind::Fifo { pipe, .. } = &file.kind {
            ends.entry(*pipe).or_default().push(file);
        }
    }
    for record in &files.pipes {
        let ends = ends.remove(&record.inode).unwrap_or_default();
        let doing = || format!("making pipe {} anew", record.inode.ino);
        let fifo = ends.iter().find_map(|file| match &file.kind {
            FileKind::Fifo { file, .. } => Some(file),
            _ => None,
        });
        let holder = match fifo {
            Some(reference) => open_fifo(record, reference, &ends, opener, made),
            None => open_pipe(record, &ends, made),
        };
        let Some(holder) = holder.doing(doing)? else {
            if let Some(end) = ends.first().and_then(|file| made.get(&file.id)) {
                size(record, end.as_fd()).doing(doing)?;
            }
            continue;
        };
        // A FIFO that others on this host still hold open has kept its queue.
        let kept = sys::readable(holder.as_fd()).doing(doing)? > 0;
        let mut reader = match &record.member {
            Some(member) if !kept => Some(contents.open(member)?),
            _ => None,
        };
        let reader = reader.as_mut().map(|reader| reader as &mut dyn Read);
        fill(record, holder, reader).doing(doing)?;
    }
    Ok(())
}

/// Opens the ends of a new pipe; what is handed back can read and write, and closes what is not in
/// `made` when it is dropped.
fn open_pipe(
    record: &Pipe,
    ends: &[&OpenFile],
    made: &mut BTreeMap<FileId, OwnedFd>,
) -> Result<Option<OwnedFd>> {
    let (out, into) = create(record)?;
    let holder = reopen(out.as_fd(), OFlag::O_RDWR | OFlag::O_NONBLOCK)?;
    let (mut out, mut into) = (Some(out), Some(into));
    for file in ends {
        let bits = flags::bits(&file.flags)?;
        let original = match bits & libc::O_ACCMODE {
            libc::O_RDONLY => out.take(),
            libc::O_WRONLY => into.take(),
            _ => None,
        };
        let asked = OFlag::from_bits_retain(bits & libc::O_ACCMODE) | OFlag::O_NONBLOCK;
        let fd = match original {
            Some(fd) => fd,
            None => reopen(holder.as_fd(), asked)?,
        };
        made.insert(file.id, fd);
    }
    Ok(Some(holder))
}

/// Opens the ends of a FIFO. A reader that no writer has come to yet does not see the end of one:
/// then nothing that can write is opened.
fn open_fifo(
    record: &Pipe,
    reference: &FileReference,
    ends: &[&OpenFile],
    opener: &mut Opener<'_>,
    made: &mut BTreeMap<FileId, OwnedFd>,
) -> Result<Option<OwnedFd>> {
    let both = libc::O_RDWR | libc::O_NONBLOCK;
    let mut holder = None;
    if !record.expectant {
        holder = Some(opener.open(reference, both)?);
    }
    for file in ends {
        let FileKind::Fifo { file: path, .. } = &file.kind else {
            continue;
        };
        let bits = flags::bits(&file.flags)?;
        made.insert(file.id, opener.open(path, bits | libc::O_NONBLOCK)?);
    }
    if holder.is_none() && record.member.is_some() {
        holder = Some(opener.open(reference, both)?);
    }
    Ok(holder)
}

/// A new pipe: reading end, writing end, both non-blocking.
fn create(record: &Pipe) -> Result<(OwnedFd, OwnedFd)> {
    let (out, into) =
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).doing(|| "making a pipe".to_owned())?;
    nix::unistd::fchown(
        &into,
        Some(Uid::from_raw(record.uid)),
        Some(Gid::from_raw(record.gid)),
    )
    .doing(|| "setting the owner of a pipe")?;
    nix::sys::stat::fchmod(&into, nix::sys::stat::Mode::from_bits_truncate(record.mode))
        .doing(|| "setting the mode of a pipe")?;
    Ok((out, into))
}

/// Gives a pipe its size, in bytes.
fn size(record: &Pipe, end: BorrowedFd<'_>) -> Result<usize> {
    let capacity = usize::try_from(record.capacity).map_err(|_| Errno::EINVAL)?;
    if sys::capacity(end)? != capacity {
        sys::set_capacity(end, capacity).doing(|| format!("giving a pipe {capacity} bytes"))?;
    }
    Ok(capacity)
}

/// Gives a pipe its size and queue. `into` is a non-blocking writing end of its own.
fn fill(record: &Pipe, into: OwnedFd, reader: Option<&mut dyn Read>) -> Result<()> {
    let capacity = size(record, into.as_fd())?;
    let Some(reader) = reader else {
        return Ok(());
    };
    let mut file = File::from(into);
    let mut total = 0_u64;
    for (index, piece) in record.pieces.iter().enumerate() {
        total += u64::from(piece.len);
        if total > record.capacity {
            return Err(Error::coded(
                "E-IMAGE-PIPE",
                Exit::Image,
                "a pipe's queue is longer than the pipe",
                "the image is damaged",
            ));
        }
        let mut bytes = vec![0; piece.len as usize];
        reader
            .read_exact(&mut bytes)
            .doing(|| "reading a pipe's queue")?;
        let mut flags = OFlag::O_NONBLOCK;
        flags.set(OFlag::O_DIRECT, piece.packet);
        fcntl(&file, FcntlArg::F_SETFL(flags)).doing(|| "setting packet mode")?;
        let packet_follows = record.pieces.get(index + 1).is_some_and(|next| next.packet);
        if packet_follows && !piece.packet {
            write_closed(&file, &bytes, capacity)?;
        } else {
            file.write_all(&bytes).doing(|| "filling a pipe")?;
        }
    }
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Writes so that nothing can be appended to the last buffer: a packet written behind plain bytes
/// would join them. A buffer that came by tee(2) is never appended to.
fn write_closed(file: &File, bytes: &[u8], capacity: usize) -> Result<()> {
    let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).doing(|| "making a pipe")?;
    sys::set_capacity(into.as_fd(), capacity).doing(|| "sizing a pipe")?;
    File::from(into)
        .write_all(bytes)
        .doing(|| "filling a pipe")?;
    let teed = sys::tee(out.as_fd(), file.as_fd(), bytes.len()).doing(|| "filling a pipe")?;
    if teed == bytes.len() {
        Ok(())
    } else {
        Err(Error::bug("a pipe's queue does not fit into the pipe"))
    }
}
