//! Records of sockets.
