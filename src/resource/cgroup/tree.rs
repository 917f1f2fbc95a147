//! The subtree of a container: recorded and rebuilt.
