//! The tar around the records: members, pieces, digests.
//!
//! ```text
//! ocimig.json                  first
//! …                            records and contents
//! memory/OBJECT/000012.zst     pages 12·256 … 13·256 of OBJECT, compressed on their own
//! manifest.json                last: name, size and BLAKE3 of every member before it
//! ```
//!
//! Every byte of content is covered: that of a member by its digest in the manifest, the manifest by a
//! digest in its own extended header, a header by the checksum of tar and by the list in the manifest.
//! So a damaged image is told apart from a whole one, and the damaged member is named. Digests say
//! nothing about who wrote an image: whatever is read back is bounded, its names are checked, and
//! nothing in it makes the reader panic.
//!
//! Bulk data is cut into *pieces* of at most 1 MiB. A piece says by its suffix how it is stored: `.zst`,
//! `.lz4`, or `.raw` where compressing does not save a tenth. Raw pieces lie 4 KiB-aligned in the tar,
//! behind an extended header that holds a comment of the right length, so that they can be mapped or
//! read directly.
//!
//! With [`Compression::Gzip`](super::header::Compression::Gzip) the whole tar is gzipped.

mod codec;
pub mod entry;
mod error;
mod name;
mod reader;
mod spill;
pub mod tar;
mod target;
mod writer;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;

pub use reader::{PieceReader, Reader};
pub use target::Output;
pub use writer::{PieceWriter, Writer, Written};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Bytes of a whole piece before compression.
pub const PIECE: usize = 1 << 20;

/// The last member.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    members: Vec<Listed>,
}

/// A member in the manifest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    name: String,
    size: u64,
    blake3: Digest,
}

/// A BLAKE3 digest; hexadecimal in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Digest(blake3::Hash);

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_hex())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        blake3::Hash::from_hex(text.as_bytes())
            .map(Self)
            .map_err(|_| D::Error::custom("a digest that is none"))
    }
}
