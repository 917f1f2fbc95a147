//! Front 2: the command line and the RPC of `criu`, for programs that call it.
