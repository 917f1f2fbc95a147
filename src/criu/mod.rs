//! Front 2: the command line and the RPC of `criu`, for programs that call it.

pub mod ask;
pub mod config;
pub mod images;
pub mod log;
pub mod rpc;
pub mod settings;
pub mod stats;
pub mod wire;
