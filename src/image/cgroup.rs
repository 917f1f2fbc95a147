//! Records of control groups.
