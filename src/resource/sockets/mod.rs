//! Sockets: captured through duplicates while everything is stopped, rebuilt in a new namespace.

pub mod options;
mod queue;
