//! The mnt namespace.
