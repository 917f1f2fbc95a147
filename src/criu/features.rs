//! What callers ask for by name, probed on this host.

use super::settings::wrong;
use super::wire;
use crate::error::{Error, Exit, Refusals, Result};
use crate::proc::Process;
use nix::errno::Errno;

/// What holds of a feature.
enum Probe {
    /// This engine always does it, or does without.
    Always,
    /// This engine does not do it.
    Never,
    /// It depends on this host.
    Ask(fn() -> bool),
}

/// By the names that callers use.
static FEATURES: &[(&str, Probe)] = &[
    ("aio_remap", Probe::Never),
    ("apparmor_stacking", Probe::Never),
    ("autofs", Probe::Never),
    ("breakpoints", Probe::Always),
    ("can_map_vdso", Probe::Always),
    ("cgroupns", Probe::Ask(|| namespace("cgroup"))),
    ("clone3_set_tid", Probe::Always),
    ("compat_cr", Probe::Never),
    ("external_net_ns", Probe::Always),
    ("fdinfo_lock", Probe::Always),
    ("get_rseq_conf", Probe::Always),
    ("ipv6_freebind", Probe::Ask(|| exists("/proc/sys/net/ipv6"))),
    ("kcmp_epoll", Probe::Ask(kcmp)),
    ("link_nsid", Probe::Always),
    ("loginuid", Probe::Ask(|| exists("/proc/self/loginuid"))),
    // Without soft-dirty: pages are told apart by their content.
    ("mem_dirty_track", Probe::Always),
    ("membarrier_get_registrations", Probe::Never),
    ("mnt_id", Probe::Always),
    ("move_mount_set_group", Probe::Always),
    ("net_diag_raw", Probe::Never),
    ("network_lock_iptables", Probe::Never),
    ("network_lock_nftables", Probe::Ask(nftables)),
    ("newifindex", Probe::Always),
    ("nftables", Probe::Ask(nftables)),
    ("nsid", Probe::Always),
    ("openat2", Probe::Always),
    ("overlayfs_maps", Probe::Always),
    ("pagemap_scan", Probe::Always),
    ("pidfd_store", Probe::Never),
    (
        "seccomp_filters",
        Probe::Ask(|| exists("/proc/sys/kernel/seccomp")),
    ),
    (
        "seccomp_suspend",
        Probe::Ask(|| exists("/proc/sys/kernel/seccomp")),
    ),
    ("sk_ns", Probe::Always),
    ("sk_unix_file", Probe::Always),
    ("tcp_half_closed", Probe::Always),
    ("timens", Probe::Ask(|| namespace("time"))),
    ("timer_cr_ids", Probe::Always),
    ("timerfd", Probe::Always),
    ("tun", Probe::Never),
    ("uffd", Probe::Never),
    ("uffd-noncoop", Probe::Never),
    ("userns", Probe::Never),
];

fn exists(path: &str) -> bool {
    std::fs::exists(path).unwrap_or(false)
}

fn namespace(kind: &str) -> bool {
    exists(&format!("/proc/self/ns/{kind}"))
}

fn kcmp() -> bool {
    let own = std::process::id() as i32;
    !matches!(
        crate::sys::kcmp::compare(crate::sys::kcmp::Kind::Vm, (own, 0), (own, 0)),
        Err(error) if error.errno() == Some(Errno::ENOSYS)
    )
}

fn nftables() -> bool {
    std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).any(|directory| directory.join("nft").exists()))
        .unwrap_or(false)
        || exists("/usr/sbin/nft")
        || exists("/sbin/nft")
}

/// The answer to FEATURE_CHECK: of what is asked for, what is there.
pub fn asked(wanted: wire::Features) -> wire::Features {
    let wants = |wanted: Option<bool>| wanted.unwrap_or(false);
    wire::Features {
        mem_track: Some(wants(wanted.mem_track)),
        lazy_pages: Some(false),
        pidfd_store: Some(false),
    }
}

/// Whether this host has a feature. Names that nobody knows are an error.
pub fn has(name: &str) -> Result<bool> {
    let (_, probe) = FEATURES
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| {
            wrong(
                format!("feature {name:?} is not known"),
                "see criu check --feature list",
            )
        })?;
    Ok(match probe {
        Probe::Always => true,
        Probe::Never => false,
        Probe::Ask(ask) => ask(),
    })
}

/// All names.
pub fn names() -> impl Iterator<Item = &'static str> {
    FEATURES.iter().map(|(name, _)| *name)
}

/// Whether this host lacks something without which nothing works.
pub fn check_basics() -> Result<()> {
    let mut refusals = Refusals::new();
    let mut lacking = |object: &str, reason: &str, remedy: &str| {
        refusals.add("E-HOST", object, reason, remedy);
    };
    if !nix::unistd::geteuid().is_root() {
        lacking("this process", "it does not run as root", "run it as root");
    }
    let own = Process::new(std::process::id() as i32);
    if own.status().is_err() {
        lacking("/proc", "it cannot be read", "mount it");
    }
    if !exists("/proc/self/map_files") {
        lacking(
            "/proc/self/map_files",
            "this kernel does not have it",
            "build the kernel with CONFIG_CHECKPOINT_RESTORE",
        );
    }
    if !exists("/proc/self/timens_offsets") {
        lacking(
            "time namespaces",
            "this kernel does not have them",
            "use Linux 5.6 or later with CONFIG_TIME_NS",
        );
    }
    if let Err(error) = crate::sys::pidfd::open(std::process::id() as i32) {
        lacking("pidfd_open(2)", &error.to_string(), "use a later kernel");
    }
    refusals
        .into_result()
        .map_err(|error| error.doing("checking this host"))
}

/// What depends on the host and is not there.
pub fn lacking_on_this_host() -> impl Iterator<Item = &'static str> {
    FEATURES
        .iter()
        .filter(|(_, probe)| matches!(probe, Probe::Ask(ask) if !ask()))
        .map(|(name, _)| *name)
}

/// Why something was asked for and is not there.
pub fn missing(name: &str) -> Error {
    Error::coded(
        "E-FEATURE",
        Exit::Host,
        format!("feature {name} is not there"),
        "",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_known_by_name_and_only_what_is_asked_for_is_said() {
        assert!(FEATURES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(has("external_net_ns").unwrap());
        assert!(has("mem_dirty_track").unwrap());
        assert!(!has("compat_cr").unwrap());
        assert!(has("soul").is_err());
        let nothing = asked(wire::Features::default());
        assert_eq!(nothing.mem_track, Some(false));
        assert_eq!(nothing.pidfd_store, Some(false));
    }

    #[test]
    fn the_host_of_these_tests_is_able_to() {
        check_basics().unwrap();
    }
}
