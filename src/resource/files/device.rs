//! Device nodes that mean the same everywhere.

use super::kind::Found;
use super::reference::{Located, open_flags};
use super::view::inode;
use crate::error::{Refusals, Result};
use crate::image::files::{FileKind, FileReference};
use nix::fcntl::open;
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};

/// Major and minor number, and the name in /dev.
const PLAIN: [(u32, u32, &str); 5] = [
    (1, 3, "null"),
    (1, 5, "zero"),
    (1, 7, "full"),
    (1, 8, "random"),
    (1, 9, "urandom"),
];

/// A device without state of its own; `None` where it was refused.
pub(super) fn capture(
    found: &Found<'_>,
    located: Located,
    mapped: bool,
    refusals: &mut Refusals,
) -> Result<Option<FileKind>> {
    let (major, minor) = found.status.rdev;
    let plain = PLAIN
        .iter()
        .find(|known| (known.0, known.1) == (major, minor));
    let file = match (located, plain) {
        (Located::Here(file), Some(_)) => file,
        (Located::Here(file), None) if mapped => file,
        // The host's /dev/null is as good as the container's.
        (Located::Outside | Located::Unreachable(_), Some(known)) => FileReference {
            path: format!("/dev/{}", known.2).as_bytes().into(),
            inode: inode(&found.status),
            file_type: "char-device".to_owned(),
            size: 0,
            mtime: found.status.mtime,
            ghost: None,
            opened_as: None,
        },
        _ => {
            refusals.add(
                "E-DEVICE",
                found.object(),
                format!(
                    "it is device {major}:{minor} ({}), whose driver's state cannot be read",
                    found.shown()
                ),
                "let the program close it first, or name it as external",
            );
            return Ok(None);
        }
    };
    Ok(Some(FileKind::Device { file, major, minor }))
}

/// Whether the node that was opened is that device.
pub(super) fn check(fd: &impl AsFd, major: u32, minor: u32) -> Result<()> {
    let found = crate::sys::statx::of(fd.as_fd())?.rdev;
    if found == (major, minor) {
        return Ok(());
    }
    Err(crate::error::Error::coded(
        "E-FILE-CHANGED",
        crate::error::Exit::Host,
        format!(
            "it was device {major}:{minor} and is {}:{}",
            found.0, found.1
        ),
        "give the container the same devices",
    ))
}

/// One of the devices that mean the same everywhere, by this host's own node.
pub(super) fn elsewhere(major: u32, minor: u32, flags: i32) -> Option<OwnedFd> {
    let known = PLAIN
        .iter()
        .find(|known| (known.0, known.1) == (major, minor))?;
    let path = format!("/dev/{}", known.2);
    let fd = open(path.as_str(), open_flags(flags), Mode::empty()).ok()?;
    check(&fd, major, minor).ok().map(|()| fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_has_lost_its_node_is_found_by_its_number() {
        let fd = elsewhere(1, 3, libc::O_RDWR).unwrap();
        check(&fd, 1, 3).unwrap();
        assert!(elsewhere(4, 0, libc::O_RDWR).is_none());
    }
}
