//! Records of the time namespace.
