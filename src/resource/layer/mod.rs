//! Trees of files as OCI layers: a tar, with whiteouts for what an upper layer hides.
//!
//! Taken by descriptor from the root of one mount, so that what is mounted below is never entered;
//! unpacked by descriptor too, so that no name in a tar leads out of the directory it is unpacked to.

mod capture;
mod unpack;

pub use capture::{Overlay, capture};
pub use unpack::{Whiteouts, unpack};

/// In front of the name of a file that a layer hides.
const WHITEOUT: &[u8] = b".wh.";
/// In a directory that hides everything below it.
const OPAQUE: &[u8] = b".wh..wh..opq";

#[cfg(test)]
mod tests;
