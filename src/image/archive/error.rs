//! The failures of an image, each with its stable code.

use crate::error::{Error, Exit};

/// `E-IMAGE-NOT`: this is no ocimig image.
pub fn not_an_image(reason: impl Into<String>) -> Error {
    Error::coded(
        "E-IMAGE-NOT",
        Exit::Image,
        reason,
        "give a tar that ocimig checkpoint wrote",
    )
}

/// `E-IMAGE-MISSING`: there is no file of that name. Other failures to open it stay what they are.
pub fn cannot_open(error: std::io::Error) -> Error {
    if error.kind() != std::io::ErrorKind::NotFound {
        return error.into();
    }
    Error::coded(
        "E-IMAGE-MISSING",
        Exit::NotFound,
        "there is no such file",
        "give the image that ocimig checkpoint wrote",
    )
}

/// `E-IMAGE-NEWER`: written in a format that this engine does not know yet.
pub fn newer(format: u32, engine: &str) -> Error {
    Error::coded(
        "E-IMAGE-NEWER",
        Exit::Image,
        format!(
            "the image has format {format} ({engine}), this engine reads up to {}",
            crate::image::header::FORMAT
        ),
        "restore it with a newer ocimig",
    )
}

/// `E-IMAGE-OLDER`: written in a format that this engine no longer knows.
pub fn older(format: u32, engine: &str) -> Error {
    Error::coded(
        "E-IMAGE-OLDER",
        Exit::Image,
        format!(
            "the image has format {format} ({engine}), this engine reads from {} on",
            crate::image::header::OLDEST_FORMAT
        ),
        "restore it with an older ocimig",
    )
}

/// `E-IMAGE-TRUNCATED`: the end is missing.
pub fn truncated(reason: impl Into<String>) -> Error {
    Error::coded(
        "E-IMAGE-TRUNCATED",
        Exit::Image,
        reason,
        "copy the image again; if it was never longer, the checkpoint did not finish",
    )
}

/// `E-IMAGE-INCOMPLETE`: a whole tar, but without its manifest.
pub fn incomplete() -> Error {
    Error::coded(
        "E-IMAGE-INCOMPLETE",
        Exit::Image,
        "manifest.json is missing",
        "take the checkpoint again; this one did not finish",
    )
}

/// `E-IMAGE-DAMAGED`: some byte is not what was written.
pub fn damaged(reason: impl Into<String>) -> Error {
    Error::coded(
        "E-IMAGE-DAMAGED",
        Exit::Image,
        reason,
        "copy the image again from where it is whole",
    )
}

/// `E-IMAGE-MEMBER-UNKNOWN`: a member that has no meaning.
pub fn unknown_member(name: &str) -> Error {
    Error::coded(
        "E-IMAGE-MEMBER-UNKNOWN",
        Exit::Image,
        format!("member {name} has no place in an image"),
        "restore the image as ocimig checkpoint wrote it",
    )
}

/// `E-IMAGE-MEMBER-MISSING`: a member that another record speaks of.
pub fn missing_member(name: &str) -> Error {
    Error::coded(
        "E-IMAGE-MEMBER-MISSING",
        Exit::Image,
        format!("member {name} is missing"),
        "restore the image as ocimig checkpoint wrote it",
    )
}

/// `E-IMAGE-RECORD`: a record is not what this engine understands.
pub fn bad_record(reason: impl Into<String>) -> Error {
    Error::coded(
        "E-IMAGE-RECORD",
        Exit::Image,
        reason,
        "restore it with the ocimig that wrote it",
    )
}

/// `E-IMAGE-TOO-LARGE`: more than a reader is ready to hold.
pub fn too_large(what: &str, size: u64, limit: u64) -> Error {
    Error::coded(
        "E-IMAGE-TOO-LARGE",
        Exit::Image,
        format!("{what} has {size} bytes, at most {limit} are read"),
        "",
    )
}
