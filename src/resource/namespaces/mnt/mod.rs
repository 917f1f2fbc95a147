//! The mnt namespace: what is mounted where, and what is in the file systems that are the container's
//! own.

mod capture;
mod file_system;
mod groups;
mod order;
mod peel;
mod rebuild;
mod spec;

pub use capture::{Captured, Options, Tree, capture};
pub use rebuild::{Env, FindExternal, Rebuilt, Root, Terminal, rebuild};
pub use spec::{external_of_spec, masked_of_spec, source_in_spec};

#[cfg(test)]
mod tests;
