//! `ocimig` freezes an OCI container, writes everything that its processes are into one tar image,
//! and brings them back into a new bundle.
//!
//! # The map of the house
//!
//! Layers, outermost first; a room uses only rooms below it (the test `layers` reads the `use`
//! lines and fails when one reaches up):
//!
//! ```text
//! cli, criu, oci front → request → checkpoint, restore, plan, check → resource → tracee, proc → sys
//! image knows nobody; resource, checkpoint, restore and plan know it.
//! error is known by all and knows nobody; fault knows only error.
//! ```

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod check;
pub mod checkpoint;
pub mod cli;
pub mod criu;
pub mod error;
pub mod fault;
pub mod image;
#[cfg(test)]
mod layers;
pub mod oci;
pub mod proc;
pub mod request;
pub mod resource;
pub mod restore;
pub mod sys;
pub mod tracee;
