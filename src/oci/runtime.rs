//! The state directories of runc and crun: container id → init process, bundle, cgroup.
