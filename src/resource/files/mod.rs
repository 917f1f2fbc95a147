//! Descriptors and open files.
