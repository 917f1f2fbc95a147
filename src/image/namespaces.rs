//! Records of namespaces: mnt, net, uts, ipc, time, cgroup.
