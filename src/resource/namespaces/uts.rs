//! The uts namespace.
