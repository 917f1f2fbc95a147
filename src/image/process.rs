//! Records of processes and threads.
