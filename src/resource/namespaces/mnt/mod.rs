//! The mnt namespace: what is mounted where, and what is in the file systems that are the container's
//! own.

mod capture;
mod rebuild;

pub use capture::{Captured, Options, Tree, capture};
pub use rebuild::{Env, rebuild};

#[cfg(test)]
mod tests;
