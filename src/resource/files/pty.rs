//! Pseudo-terminals.
//!
//! A pair is known by its devpts instance and its number. Its modes and size belong to the pair, so
//! they are recorded once; the session that it controls belongs to the processes.

use super::capture::Capturer;
use super::flags;
use super::kind::Found;
use super::reference::{Opener, open_flags, type_name};
use super::view::{View, device, inode};
use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::PathBytes;
use crate::image::files::{FileId, FileKind, FileReference, Files, OpenFile, Pty, Termios};
use crate::sys::{pipe, statx, tty};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{Gid, Uid, fchownat};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// First major number of the slaves; each has 256 minors.
const SLAVE_MAJOR: u32 = 136;
/// No more than this many numbers are tried until the wanted one comes.
const MAX_INDEX: u32 = 4096;

/// Number of the terminal that a device number stands for.
pub(super) fn index_of((major, minor): (u32, u32)) -> Option<u32> {
    (SLAVE_MAJOR..SLAVE_MAJOR + 8)
        .contains(&major)
        .then(|| (major - SLAVE_MAJOR) * 256 + minor)
}

/// Whether a character device is a terminal of a pair.
pub(super) fn is_pty(rdev: (u32, u32)) -> bool {
    rdev == (5, 2) || rdev == (5, 0) || index_of(rdev).is_some()
}

impl Capturer<'_> {
    pub(super) fn pty(
        &mut self,
        found: &Found<'_>,
        refusals: &mut Refusals,
    ) -> Result<Option<FileKind>> {
        let namespace = self.view(found.subject)?;
        let view = &self.views()[&namespace];
        let rdev = found.status.rdev;
        let controlling = rdev == (5, 0);
        let index = match rdev {
            (5, 2) => Some(tty::index(found.fd).doing(|| "asking for the terminal's number")?),
            (5, 0) => match tty::device(found.fd) {
                Ok(behind) => index_of(behind),
                Err(Errno::EIO) => None,
                Err(errno) => return Err(errno).doing(|| "asking for the terminal's device"),
            },
            other => index_of(other),
        };
        let devpts = devpts(view, found);
        let (Some(index), Some((device, devpts)), true) =
            (index, devpts, view.mounts.contains_key(&found.status.mount))
        else {
            let numbers = (
                super::view::device(rdev),
                super::view::device(found.status.dev),
            );
            let key = format!("tty[{:x}:{:x}]", numbers.0, numbers.1);
            return self.external_or_refuse(found, key, "E-TTY-OUTSIDE", refusals);
        };
        let file = reference(found);
        let node = view.status(&slave_path(&devpts, index))?;
        let id = match self.ptys.get(&(device, index)) {
            Some(id) => *id,
            None => {
                let id = u32::try_from(self.records.ptys.len()).unwrap_or(u32::MAX);
                let record = describe(id, index, devpts, node.as_ref(), found.fd)?;
                self.records.ptys.push(record);
                self.ptys.insert((device, index), id);
                id
            }
        };
        let record = &mut self.records.ptys[id as usize];
        let queued = pipe::readable(found.fd).unwrap_or(0);
        if queued > 0 {
            refusals.add(
                "E-TTY-QUEUED",
                found.object(),
                format!("{queued} bytes wait to be read from the terminal, which only the program can do"),
                "try again when the program has read them",
            );
        }
        if rdev == (5, 2) {
            record.master_outside = false;
            record.locked = tty::locked(found.fd).doing(|| "asking for the lock")?;
            record.packet = tty::packet(found.fd).doing(|| "asking for packet mode")?;
            return Ok(Some(FileKind::PtyMaster { pty: id, file }));
        }
        Ok(Some(FileKind::PtySlave {
            pty: id,
            file,
            controlling,
        }))
    }
}

/// The devpts instance: of a slave (and of /dev/pts/ptmx) its own file system, of /dev/ptmx what is
/// mounted on `pts` beside it, of /dev/tty the container's.
fn devpts(view: &View, found: &Found<'_>) -> Option<(u64, PathBytes)> {
    let mounts = || view.mounts.values().filter(|one| one.fs_type == b"devpts");
    let number = |device: crate::proc::maps::Device| (device.major, device.minor);
    let whole = |one: &&crate::proc::mountinfo::Mount| one.root == b"/";
    let same = mounts()
        .filter(whole)
        .find(|one| number(one.device) == found.status.dev)
        .or_else(|| mounts().find(|one| number(one.device) == found.status.dev));
    let mount = match same {
        Some(mount) => mount,
        None => {
            let (parent, _) = super::reference::split(&found.link);
            let beside = [parent, b"/pts"].concat();
            mounts()
                .filter(|one| one.mount_point == beside)
                .max_by_key(|one| one.id)?
        }
    };
    let path = if mount.root == b"/" {
        PathBytes(mount.mount_point.clone())
    } else {
        PathBytes::from("/dev/pts")
    };
    Some((device(number(mount.device)), path))
}

pub(super) fn slave_path(devpts: &PathBytes, index: u32) -> Vec<u8> {
    [devpts.as_bytes(), format!("/{index}").as_bytes()].concat()
}

fn reference(found: &Found<'_>) -> FileReference {
    let link = &found.link;
    FileReference {
        path: link.strip_suffix(b" (deleted)").unwrap_or(link).into(),
        inode: inode(&found.status),
        file_type: type_name(found.status.mode).to_owned(),
        size: 0,
        mtime: found.status.mtime,
        ghost: None,
        opened_as: None,
    }
}

fn describe(
    id: u32,
    index: u32,
    devpts: PathBytes,
    node: Option<&statx::Status>,
    fd: BorrowedFd<'_>,
) -> Result<Pty> {
    let modes = match tty::modes(fd) {
        Ok(modes) => Some(modes),
        Err(Errno::EIO) => None,
        Err(errno) => return Err(errno).doing(|| "asking for the terminal's modes"),
    };
    let size = match modes {
        Some(_) => tty::size(fd).doing(|| "asking for the terminal's size")?,
        None => tty::Size::default(),
    };
    Ok(Pty {
        id,
        index,
        devpts,
        master_outside: modes.is_some(),
        hung_up: modes.is_none(),
        locked: false,
        packet: false,
        exclusive: modes.is_some() && tty::exclusive(fd).doing(|| "asking for TIOCEXCL")?,
        termios: modes.map(|modes| Termios {
            input: modes.input,
            output: modes.output,
            control: modes.control,
            local: modes.local,
            line: modes.line,
            characters: modes.characters.to_vec(),
            input_speed: modes.input_speed,
            output_speed: modes.output_speed,
        }),
        size: (size.0, size.1, size.2, size.3),
        uid: node.map_or(0, |node| node.uid),
        gid: node.map_or(0, |node| node.gid),
        mode: node.map_or(0o620, |node| node.mode & 0o7777),
    })
}

/// Makes the pairs and all their open files. The masters of those whose master was outside of the
/// container are handed back by [`Pty::id`].
pub(super) fn rebuild(
    files: &Files,
    opener: &mut Opener<'_>,
    made: &mut BTreeMap<FileId, OwnedFd>,
) -> Result<BTreeMap<u32, OwnedFd>> {
    let mut order: Vec<&Pty> = files.ptys.iter().collect();
    order.sort_by_key(|pty| (&pty.devpts, pty.index));
    let mut outside = BTreeMap::new();
    let mut surplus = Vec::new();
    let mut instance = None;
    for pty in order {
        if instance != Some(&pty.devpts) {
            surplus.clear();
            instance = Some(&pty.devpts);
        }
        let master = pair(pty, files, opener, made, &mut surplus)
            .doing(|| format!("making terminal {}/{} anew", pty.devpts, pty.index))?;
        if let Some(master) = master {
            outside.insert(pty.id, master);
        }
    }
    Ok(outside)
}

fn pair(
    pty: &Pty,
    files: &Files,
    opener: &mut Opener<'_>,
    made: &mut BTreeMap<FileId, OwnedFd>,
    surplus: &mut Vec<OwnedFd>,
) -> Result<Option<OwnedFd>> {
    let master_file = files.open_files.iter().find_map(|file| match &file.kind {
        FileKind::PtyMaster {
            pty: id,
            file: path,
        } if *id == pty.id => Some((file, path)),
        _ => None,
    });
    let (bits, path) = match master_file {
        Some((file, path)) => (flags::bits(&file.flags)?, path.path.as_bytes().to_vec()),
        None => (libc::O_RDWR, [pty.devpts.as_bytes(), b"/ptmx"].concat()),
    };
    let master = match opener.take_master(&pty.devpts, pty.index) {
        Some(master) => master,
        None => numbered(opener.view(), &path, bits, pty.index, surplus)?,
    };
    tty::set_locked(master.as_fd(), false).doing(|| "unlocking it")?;
    let node = slave_path(&pty.devpts, pty.index);
    own(opener.view(), &node, pty)?;
    let holder = opener
        .view()
        .open(&node, open_flags(libc::O_RDWR), Mode::empty())
        .doing(|| "opening its slave")?;
    modes(pty, master.as_fd())?;
    for file in &files.open_files {
        let FileKind::PtySlave {
            pty: id,
            file: path,
            controlling,
        } = &file.kind
        else {
            continue;
        };
        if *id == pty.id {
            let fd = slave(opener, file, path, *controlling, pty, &node, &holder)?;
            made.insert(file.id, fd);
        }
    }
    if pty.exclusive {
        tty::set_exclusive(holder.as_fd()).doing(|| "making it exclusive")?;
    }
    tty::set_locked(master.as_fd(), pty.locked).doing(|| "locking it")?;
    match master_file {
        Some((file, _)) => {
            made.insert(file.id, master);
            Ok(None)
        }
        // Closing the only master hangs the slaves up.
        None if pty.hung_up => Ok(None),
        None => Ok(Some(master)),
    }
}

/// Opens masters until one has the number; the kernel gives the lowest that is free.
fn numbered(
    view: &View,
    path: &[u8],
    bits: i32,
    wanted: u32,
    surplus: &mut Vec<OwnedFd>,
) -> Result<OwnedFd> {
    let taken = || {
        Error::coded(
            "E-PTY-INDEX",
            Exit::Host,
            format!("number {wanted} is taken in the new container's devpts"),
            "restore into a devpts instance of its own",
        )
    };
    if let Some(at) = surplus
        .iter()
        .position(|master| tty::index(master.as_fd()).is_ok_and(|index| index == wanted))
    {
        // It was opened on the way to a higher number, by another path perhaps; that does not show.
        return Ok(surplus.swap_remove(at));
    }
    for _ in 0..MAX_INDEX {
        let master = view
            .open(path, open_flags(bits), Mode::empty())
            .doing(|| format!("opening {}", PathBytes::from(path)))?;
        match tty::index(master.as_fd())? {
            index if index == wanted => return Ok(master),
            index if index > wanted => return Err(taken()),
            _ => surplus.push(master),
        }
    }
    Err(taken())
}

fn own(view: &View, node: &[u8], pty: &Pty) -> Result<()> {
    let fd = view
        .open(node, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())
        .doing(|| "opening its node")?;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    fchownat(
        AT_FDCWD,
        link.as_str(),
        Some(Uid::from_raw(pty.uid)),
        Some(Gid::from_raw(pty.gid)),
        AtFlags::empty(),
    )
    .doing(|| "setting the owner of its node")?;
    let mode = Mode::from_bits_truncate(pty.mode);
    fchmodat(AT_FDCWD, link.as_str(), mode, FchmodatFlags::FollowSymlink)
        .doing(|| "setting the mode of its node")
}

fn modes(pty: &Pty, master: BorrowedFd<'_>) -> Result<()> {
    let Some(termios) = &pty.termios else {
        return Ok(());
    };
    let characters = termios.characters.as_slice().try_into().map_err(|_| {
        Error::coded(
            "E-IMAGE-TERMIOS",
            Exit::Image,
            format!("{} control characters, not 19", termios.characters.len()),
            "the image is damaged",
        )
    })?;
    let modes = tty::Modes {
        input: termios.input,
        output: termios.output,
        control: termios.control,
        local: termios.local,
        line: termios.line,
        characters,
        input_speed: termios.input_speed,
        output_speed: termios.output_speed,
    };
    tty::set_modes(master, &modes).doing(|| "setting its modes")?;
    let (rows, columns, width, height) = pty.size;
    tty::set_size(master, tty::Size(rows, columns, width, height)).doing(|| "setting its size")?;
    tty::set_packet(master, pty.packet).doing(|| "setting packet mode")
}

fn slave(
    opener: &mut Opener<'_>,
    file: &OpenFile,
    path: &FileReference,
    controlling: bool,
    pty: &Pty,
    node: &[u8],
    holder: &OwnedFd,
) -> Result<OwnedFd> {
    let bits = flags::bits(&file.flags)?;
    if controlling {
        let tty = opener.open(path, libc::O_PATH)?;
        let flags = open_flags(bits).bits();
        return tty::open_controlling(tty.as_fd(), holder.as_fd(), flags)
            .doing(|| "opening it as /dev/tty");
    }
    // /dev/console may be bound to another terminal in the new container, or to none.
    let flags = open_flags(bits);
    if let Ok(fd) = opener
        .view()
        .open(path.path.as_bytes(), flags, Mode::empty())
        && index_of(statx::of(fd.as_fd())?.rdev) == Some(pty.index)
    {
        return Ok(fd);
    }
    opener
        .view()
        .open(node, flags, Mode::empty())
        .doing(|| "opening its slave")
}
