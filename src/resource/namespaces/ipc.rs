//! The ipc namespace.
