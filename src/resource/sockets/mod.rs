//! Sockets: Unix, TCP, UDP.
