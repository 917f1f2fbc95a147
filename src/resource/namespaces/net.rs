//! The net namespace.
