//! Records of the mnt namespace: the mount tree.
