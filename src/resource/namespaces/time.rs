//! The time namespace.
