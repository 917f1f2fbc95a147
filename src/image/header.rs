//! `ocimig.json`, readable by every version past and future.
