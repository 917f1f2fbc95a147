//! What runtimes know of containers, and what they run: their state, `ocimig-runtime`, hooks.

pub mod hook;
pub mod register;
pub mod runtime;
pub mod runtime_front;
mod watch;
