//! The story of a checkpoint, in order.

pub mod stop;
