//! Records of open files and descriptor tables.
