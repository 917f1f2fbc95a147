//! What differs between processor architectures: the batch loop, the register set.

mod x86_64;

pub use x86_64::*;
