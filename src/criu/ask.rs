//! From options to a request of the engine. What the engine cannot do is refused here by name, all
//! at once.

use super::images::Images;
use super::settings::{Settings, wrong};
use crate::error::{Context, Refusals, Result};
use crate::request::{
    After, Checkpoint, CheckpointOptions, CpuCheck, Description, EmptyNamespace, Extent, External,
    ExternalMount, Inherited, NetworkLock, Output, Place, Restore, RestoreOptions, Rootfs, Target,
    Tcp,
};
use crate::sys::pidfd;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// A checkpoint of the tree below `tree` into `images`.
pub fn checkpoint(
    settings: &Settings,
    images: &Images,
    tree: i32,
    extent: Extent,
) -> Result<Checkpoint> {
    let mut refusals = Refusals::new();
    refuse(settings, &mut refusals);
    refuse_at_checkpoint(settings, &mut refusals);
    refusals.into_result()?;
    let after = match (settings.leave_running, settings.leave_stopped) {
        _ if extent == Extent::MemoryOnly => After::Run,
        (_, true) => After::Stop,
        (true, false) => After::Run,
        (false, false) => After::Kill,
    };
    let parent = settings
        .parent
        .as_deref()
        .map(|parent| images.parent(parent))
        .transpose()?;
    let root = settings.root.clone();
    let bundle = root
        .as_ref()
        .and_then(|root| {
            root.ancestors()
                .take(2)
                .find(|at| at.join("config.json").exists())
        })
        .map(Into::into);
    let options = CheckpointOptions {
        extent,
        after,
        compression: settings.compression,
        rootfs: Rootfs::None,
        parent,
        track_memory: settings.track_mem || extent == Extent::MemoryOnly,
        tcp: tcp(settings),
        skip_in_flight: settings.skip_in_flight,
        network_lock: network_lock(settings)?,
        external_unix: settings.external_unix,
        file_locks: settings.file_locks,
        shell_job: settings.shell_job,
        orphan_terminal: settings.orphan_terminal,
        external: external(settings)?,
        freeze_cgroup: settings.freeze_cgroup.clone(),
        cgroups: settings.cgroups,
        cgroup_controllers: settings.cgroup_controllers.clone(),
        empty_namespaces: empty_namespaces(settings)?,
        ghost_limit: settings.ghost_limit,
        link_remap: settings.link_remap,
        skip_mounts: settings.skip_mounts.clone(),
        auto_filesystems: settings.enable_fs.clone(),
        freeze_timeout: Duration::from_secs(settings.timeout),
        description: Description {
            bundle,
            root,
            ..Description::default()
        },
        ..CheckpointOptions::default()
    };
    Checkpoint::new(Target::Pid(tree), Output::File(images.image()), options)
}

/// A restore from `images`. Descriptors by number are those of this process.
pub fn restore(settings: &Settings, images: &Images) -> Result<Restore> {
    let mut refusals = Refusals::new();
    refuse(settings, &mut refusals);
    if settings.auto_dedup {
        refused(
            &mut refusals,
            "auto-dedup",
            "an image is not taken apart while it is restored",
        );
    }
    for (name, given, reason) in [
        (
            "lsm-mount-context",
            settings.lsm_mount_context.is_some(),
            "mounts keep the options that they had",
        ),
        (
            "lsm-profile",
            settings.lsm_profile.is_some(),
            "security labels are not set",
        ),
        (
            "weak-sysctls",
            settings.weak_sysctls,
            "settings that the kernel does not take are an error",
        ),
    ] {
        if given {
            refused(&mut refusals, name, reason);
        }
    }
    let mut options = RestoreOptions {
        sibling: settings.sibling,
        streams: [own(0).ok(), own(1).ok(), own(2).ok()],
        external_mounts_auto: settings.external_mounts_auto,
        join: settings.join.clone(),
        empty_namespaces: empty_namespaces(settings)?,
        cgroups: settings.cgroups,
        cgroup_roots: settings.cgroup_roots.clone(),
        tcp: tcp(settings),
        network_lock: network_lock(settings)?,
        external_unix: settings.external_unix,
        file_locks: settings.file_locks,
        shell_job: settings.shell_job,
        orphan_terminal: settings.orphan_terminal,
        evasive_devices: settings.evasive_devices,
        cpu: cpu(settings)?,
        lsm_profile: settings.lsm_profile.clone(),
        weak_sysctls: settings.weak_sysctls,
        leave_stopped: settings.leave_stopped,
        ..RestoreOptions::default()
    };
    for text in &settings.external {
        restored_external(text, &mut options, &mut refusals)?;
    }
    refusals.into_result()?;
    for (fd, key) in &settings.inherit {
        options.inherit.push(Inherited {
            key: key.clone(),
            fd: own(*fd).doing(|| format!("taking descriptor {fd} for {key}"))?,
        });
    }
    let place = match &settings.root {
        Some(root) => Place::Root(root.clone()),
        None => Place::Host,
    };
    Restore::new(images.existing_image()?, place, options)
}

/// A duplicate of a descriptor that this process was started with.
pub fn own(fd: i32) -> Result<OwnedFd> {
    let own = pidfd::open(std::process::id() as i32)?;
    pidfd::getfd(own.as_fd(), fd)
}

fn refused(refusals: &mut Refusals, name: &str, reason: &str) {
    refusals.add(
        "E-CRIU-OPTION",
        format!("option {name}"),
        reason,
        "leave it out",
    );
}

/// What neither a checkpoint nor a restore can do.
fn refuse(settings: &Settings, refusals: &mut Refusals) {
    let never = [
        (
            "allow-uprobes",
            settings.allow_uprobes,
            "an area of uprobes cannot be made anew",
        ),
        (
            "cgroup-props",
            settings.cgroup_props.is_some() || settings.cgroup_props_file.is_some(),
            "the properties that are recorded are fixed",
        ),
        (
            "cgroup-yard",
            settings.cgroup_yard.is_some(),
            "cgroups are taken where this host has them mounted",
        ),
        (
            "lazy-pages",
            settings.lazy_pages,
            "memory is restored before the processes go on",
        ),
        (
            "libdir",
            settings.libdir.is_some(),
            "plugins made for another engine cannot be loaded",
        ),
        (
            "page-server",
            settings.page_server,
            "the image is one stream; there is no server for its pages alone",
        ),
        (
            "pidfd_store_sk",
            settings.pidfd_store,
            "processes are told apart by their start time",
        ),
        (
            "stream",
            settings.stream,
            "the streamer of another engine's images is of no use here",
        ),
        ("tls", settings.tls, "there is no page server to talk to"),
    ];
    for (name, given, reason) in never {
        if given {
            refused(refusals, name, reason);
        }
    }
    if let Some(mode) = &settings.file_validation
        && mode != "filesize"
    {
        refused(
            refusals,
            "file-validation",
            "files are compared by type and size only",
        );
    }
}

/// What a checkpoint cannot do.
fn refuse_at_checkpoint(settings: &Settings, refusals: &mut Refusals) {
    for (name, given, reason) in [
        (
            "auto-dedup",
            settings.auto_dedup && settings.parent.is_some(),
            "pages of a parent image cannot be taken out of it",
        ),
        (
            "cgroup-dump-controller",
            !settings.cgroup_controllers.is_empty(),
            "the container's cgroups are taken along in all hierarchies or in none",
        ),
        (
            "skip-in-flight",
            settings.skip_in_flight,
            "connections that are not yet accepted are taken along",
        ),
        (
            "skip-mnt",
            !settings.skip_mounts.is_empty(),
            "a mount cannot be left out; name it as external",
        ),
    ] {
        if given {
            refused(refusals, name, reason);
        }
    }
    // Those come back by themselves, as long as nothing of the container's own is in them.
    let known = ["hugetlbfs", "tracefs", "debugfs", "securityfs", "configfs"];
    for kind in &settings.enable_fs {
        if !known.contains(&kind.as_str()) {
            refused(
                refusals,
                &format!("enable-fs {kind}"),
                "a file system is not mounted anew by its options alone",
            );
        }
    }
    for text in &settings.external {
        if text.starts_with("dev[") || text.starts_with("veth[") {
            refused(
                refusals,
                &format!("external {text}"),
                "block devices and network interfaces cannot stay outside",
            );
        }
    }
}

fn tcp(settings: &Settings) -> Tcp {
    if settings.tcp_close {
        Tcp::Drop
    } else if settings.tcp_established {
        Tcp::Keep
    } else {
        Tcp::Refuse
    }
}

fn network_lock(settings: &Settings) -> Result<NetworkLock> {
    match settings.network_lock.as_deref() {
        // One kernel, one filter: rules are written by nftables, which iptables is a front of.
        None | Some("iptables" | "nftables") => Ok(NetworkLock::Nftables),
        Some("skip") => Ok(NetworkLock::Skip),
        Some(other) => Err(wrong(
            format!("{other:?} is no way to lock the network"),
            "give iptables, nftables or skip",
        )),
    }
}

fn empty_namespaces(settings: &Settings) -> Result<Vec<EmptyNamespace>> {
    settings
        .empty_namespaces
        .iter()
        .map(|kind| match kind.as_str() {
            "net" => Ok(EmptyNamespace::Net),
            other => Err(wrong(
                format!("{other:?} cannot come back empty"),
                "only net can",
            )),
        })
        .collect()
}

fn cpu(settings: &Settings) -> Result<CpuCheck> {
    let Some(text) = &settings.cpu_cap else {
        return Ok(CpuCheck::default());
    };
    let mut check = CpuCheck::None;
    for part in text.split(',') {
        match part {
            "none" => check = CpuCheck::None,
            "fpu" | "ins" if check != CpuCheck::Exact => check = CpuCheck::Needed,
            "fpu" | "ins" => {}
            "cpu" | "all" => check = CpuCheck::Exact,
            other => {
                return Err(wrong(
                    format!("{other:?} names nothing of a processor"),
                    "give none, fpu, ins, cpu or all",
                ));
            }
        }
    }
    Ok(check)
}

fn external(settings: &Settings) -> Result<Vec<External>> {
    let mut external = Vec::new();
    for text in &settings.external {
        external.push(text.parse()?);
    }
    if settings.external_mounts_auto {
        external.push(External::MountsAuto {
            masters: settings.external_masters,
            sharing: settings.external_sharing,
        });
    }
    Ok(external)
}

/// On the way back `mnt` and `dev` have the name in the brackets and the place after the colon.
fn restored_external(
    text: &str,
    options: &mut RestoreOptions,
    refusals: &mut Refusals,
) -> Result<()> {
    let (kind, rest) = text.split_once('[').unwrap_or((text, ""));
    match kind {
        "mnt" => {
            // A path of the host may hold brackets; a name of ours does not.
            let (name, source) = rest.split_once(']').unwrap_or((rest, ""));
            match (name, source.strip_prefix(':')) {
                ("", _) => options.external_mounts_auto = true,
                (name, Some(source)) if !source.is_empty() => {
                    options.external_mounts.push(ExternalMount {
                        name: name.to_owned(),
                        source: source.into(),
                    });
                }
                _ => {
                    return Err(wrong(
                        format!("{text:?} gives no mount"),
                        "write mnt[NAME]:PATH",
                    ));
                }
            }
        }
        "dev" | "macvlan" | "veth" => refused(
            refusals,
            &format!("external {text}"),
            "block devices and network interfaces are not given to a restored container",
        ),
        _ => refused(
            refusals,
            &format!("external {text}"),
            "a restore is given such things as descriptors",
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn images() -> (tempfile::TempDir, Images) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ocimig.tar"), "").unwrap();
        let images = Images::open(directory.path()).unwrap();
        (directory, images)
    }

    #[test]
    fn a_checkpoint_of_runc_becomes_a_request() {
        let (_directory, images) = images();
        let settings = Settings {
            root: Some("/bundle/rootfs".into()),
            external: vec!["mnt[/proc/keys]:/dev/null".into()],
            empty_namespaces: vec!["net".into()],
            leave_running: true,
            tcp_established: true,
            ..Settings::default()
        };
        let request = checkpoint(&settings, &images, 42, Extent::Whole).unwrap();
        assert_eq!(request.target(), &Target::Pid(42));
        let options = request.options();
        assert_eq!(options.after, After::Run);
        assert_eq!(options.rootfs, Rootfs::None);
        assert_eq!(options.tcp, Tcp::Keep);
        assert_eq!(options.empty_namespaces, [EmptyNamespace::Net]);
        assert_eq!(
            options.external,
            [External::Mount {
                point: "/proc/keys".into(),
                name: "/dev/null".into()
            }]
        );
        let Output::File(path) = request.output() else {
            panic!("not a file")
        };
        assert_eq!(path, &images.image());
    }

    #[test]
    fn a_restore_of_runc_becomes_a_request() {
        let (_directory, images) = images();
        let settings = Settings {
            root: Some("/run/runc/a/criu-root".into()),
            external: vec![
                "mnt[/mnt/b]:/srv/[b]".into(),
                "mnt[/dev/null]:/dev/null".into(),
                "mnt[/dev/null]:/dev/null".into(),
            ],
            inherit: vec![(1, "pipe:[77]".into())],
            sibling: true,
            ..Settings::default()
        };
        let request = restore(&settings, &images).unwrap();
        assert_eq!(
            request.place(),
            &Place::Root(PathBuf::from("/run/runc/a/criu-root"))
        );
        let options = request.options();
        assert!(options.sibling);
        assert_eq!(options.external_mounts[0].source, Path::new("/srv/[b]"));
        assert_eq!(options.inherit[0].key, "pipe:[77]");
    }

    #[test]
    fn everything_that_cannot_be_done_is_named_at_once() {
        let (_directory, images) = images();
        let settings = Settings {
            lazy_pages: true,
            page_server: true,
            libdir: Some("/lib".into()),
            file_validation: Some("buildid".into()),
            ..Settings::default()
        };
        let error = checkpoint(&settings, &images, 42, Extent::Whole).unwrap_err();
        let text = error.to_string();
        for name in ["lazy-pages", "page-server", "libdir", "file-validation"] {
            assert!(text.contains(&format!("option {name}:")), "{text}");
        }
        let settings = Settings {
            external: vec!["macvlan[eth0]:eth1".into(), "tty[1:2]".into()],
            weak_sysctls: true,
            ..Settings::default()
        };
        let text = restore(&settings, &images).unwrap_err().to_string();
        assert!(
            text.contains("macvlan[eth0]") && text.contains("tty[1:2]"),
            "{text}"
        );
        assert!(text.contains("weak-sysctls"), "{text}");
        let settings = Settings {
            skip_in_flight: true,
            enable_fs: vec!["hugetlbfs".into(), "ext4".into()],
            external: vec!["veth[eth0]:a".into()],
            ..Settings::default()
        };
        let text = checkpoint(&settings, &images, 42, Extent::Whole)
            .unwrap_err()
            .to_string();
        for name in ["skip-in-flight", "enable-fs ext4", "external veth[eth0]:a"] {
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn a_pre_dump_leaves_the_processes_running_and_tracks_them() {
        let (_directory, images) = images();
        let request = checkpoint(&Settings::default(), &images, 42, Extent::MemoryOnly).unwrap();
        assert_eq!(request.options().after, After::Run);
        assert!(request.options().track_memory);
    }

    #[test]
    fn processors_are_compared_as_asked() {
        let check = |text: &str| {
            cpu(&Settings {
                cpu_cap: Some(text.into()),
                ..Settings::default()
            })
        };
        assert_eq!(cpu(&Settings::default()).unwrap(), CpuCheck::Needed);
        assert_eq!(check("none").unwrap(), CpuCheck::None);
        assert_eq!(check("fpu,ins").unwrap(), CpuCheck::Needed);
        assert_eq!(check("cpu,ins").unwrap(), CpuCheck::Exact);
        assert!(check("soul").is_err());
    }
}
