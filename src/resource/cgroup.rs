//! Control groups: freezing, recording, making anew.
