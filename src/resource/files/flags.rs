//! O_* bits and their names.

use crate::error::{Error, Exit, Result};

/// Composites first: O_SYNC contains O_DSYNC, O_TMPFILE contains O_DIRECTORY.
const NAMES: [(&str, i32); 12] = [
    ("O_SYNC", libc::O_SYNC),
    ("O_DSYNC", libc::O_DSYNC),
    ("O_TMPFILE", libc::O_TMPFILE),
    ("O_DIRECTORY", libc::O_DIRECTORY),
    ("O_APPEND", libc::O_APPEND),
    ("O_ASYNC", libc::O_ASYNC),
    ("O_DIRECT", libc::O_DIRECT),
    ("O_NOATIME", libc::O_NOATIME),
    ("O_NOFOLLOW", libc::O_NOFOLLOW),
    ("O_NONBLOCK", libc::O_NONBLOCK),
    ("O_PATH", libc::O_PATH),
    ("O_EXCL", libc::O_EXCL),
];

/// Access mode and status flags by name. O_LARGEFILE (set on every file) and the kernel's own bits
/// are left out, O_CLOEXEC belongs to the descriptor.
pub(super) fn names(bits: u32) -> Vec<String> {
    let mut bits = bits.cast_signed();
    let access = match bits & libc::O_ACCMODE {
        libc::O_RDONLY => "O_RDONLY",
        libc::O_WRONLY => "O_WRONLY",
        libc::O_RDWR => "O_RDWR",
        _ => "O_IOCTL",
    };
    let mut names = vec![access.to_owned()];
    for (name, value) in NAMES {
        if bits & value == value {
            names.push(name.to_owned());
            bits &= !value;
        }
    }
    names
}

/// The bits of those names.
pub(super) fn bits(names: &[String]) -> Result<i32> {
    let mut bits = 0;
    for name in names {
        bits |= match name.as_str() {
            "O_RDONLY" => libc::O_RDONLY,
            "O_WRONLY" => libc::O_WRONLY,
            "O_RDWR" => libc::O_RDWR,
            "O_IOCTL" => libc::O_ACCMODE,
            other => match NAMES.iter().find(|(name, _)| *name == other) {
                Some((_, value)) => *value,
                None => {
                    return Err(Error::coded(
                        "E-IMAGE-FLAG",
                        Exit::Image,
                        format!("{other:?} is no flag of an open file"),
                        "restore with the engine that wrote the image",
                    ));
                }
            },
        };
    }
    Ok(bits)
}

/// Whether something can be read from a file with these flags.
pub(super) fn reads(bits: i32) -> bool {
    matches!(bits & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR) && bits & libc::O_PATH == 0
}

/// Whether something can be written to a file with these flags.
pub(super) fn writes(bits: i32) -> bool {
    matches!(bits & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR) && bits & libc::O_PATH == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits_are_inverse() {
        for bits_in in [
            libc::O_RDONLY,
            libc::O_WRONLY | libc::O_APPEND | libc::O_SYNC,
            libc::O_RDWR | libc::O_DSYNC | libc::O_NONBLOCK | libc::O_ASYNC,
            libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW,
        ] {
            let names = names((bits_in | libc::O_CLOEXEC | 0o100_000).cast_unsigned());
            assert_eq!(bits(&names).unwrap(), bits_in, "{names:?}");
        }
        assert_eq!(
            bits(&["O_BOGUS".to_owned()]).unwrap_err().code(),
            "E-IMAGE-FLAG"
        );
    }
}
