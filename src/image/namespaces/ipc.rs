//! Records of the ipc namespace: System V objects and POSIX message queues.
