//! Front 2: the command line and the RPC of `criu`, for programs that call it.
//!
//! ```text
//! command   arguments ─┐
//! config    files ─────┼→ settings → ask → request → engine
//! service   messages ──┘               stages ← notifications, scripts
//! ```

pub mod ask;
pub mod command;
pub mod config;
pub mod cpuinfo;
pub mod daemon;
pub mod engine;
pub mod features;
pub mod images;
pub mod log;
pub mod operation;
pub mod rpc;
pub mod service;
pub mod settings;
pub mod socket;
pub mod stages;
pub mod stats;
pub mod wire;

/// A variable by which `ocimig restore` says, through a runtime that asks for an empty network
/// namespace whatever the image holds, that it is to come back as it was.
pub const KEEP_NETWORK: &str = "OCIMIG_KEEP_NETWORK";

/// The version that callers are told: major and minor. They compare it with what they need of
/// CRIU, so it is that of the CRIU whose behaviour this front shows.
pub const VERSION: (i32, i32) = (4, 2);
