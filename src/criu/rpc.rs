//! Options that came in a message. A field that is there beats the configuration files.

use super::settings::{Settings, cgroup_mode, join_namespace, wrong};
use super::wire;
use crate::error::Result;
use crate::request::{CgroupMode, CgroupRoot};

/// What one bit of `empty_ns` stands for.
const CLONE_NEWNET: u32 = 0x4000_0000;

impl Settings {
    /// Applies everything but descriptors of the caller, which [`super::service`] resolves.
    pub fn merge(&mut self, options: &wire::Options) -> Result<()> {
        self.merge_flags(options);
        self.merge_values(options)?;
        self.merge_lists(options);
        self.merge_cgroups(options)?;
        self.refuse_what_has_no_place(options)
    }

    fn merge_flags(&mut self, options: &wire::Options) {
        let flags = [
            (&mut self.auto_dedup, options.auto_dedup),
            (&mut self.display_stats, options.display_stats),
            (&mut self.evasive_devices, options.evasive_devices),
            (&mut self.external_masters, options.ext_masters),
            (&mut self.external_mounts_auto, options.auto_ext_mnt),
            (&mut self.external_sharing, options.ext_sharing),
            (&mut self.external_unix, options.ext_unix_sk),
            (&mut self.file_locks, options.file_locks),
            (&mut self.lazy_pages, options.lazy_pages),
            (&mut self.leave_running, options.leave_running),
            (&mut self.leave_stopped, options.leave_stopped),
            (&mut self.link_remap, options.link_remap),
            (&mut self.log_to_stderr, options.log_to_stderr),
            (&mut self.notify_scripts, options.notify_scripts),
            (&mut self.orphan_terminal, options.orphan_pts_master),
            (&mut self.satisfied.force_irmap, options.force_irmap),
            (
                &mut self.satisfied.mntns_compat_mode,
                options.mntns_compat_mode,
            ),
            (
                &mut self.satisfied.skip_file_rwx_check,
                options.skip_file_rwx_check,
            ),
            (&mut self.satisfied.unprivileged, options.unprivileged),
            (&mut self.shell_job, options.shell_job),
            (&mut self.sibling, options.rst_sibling),
            (&mut self.skip_in_flight, options.tcp_skip_in_flight),
            (&mut self.tcp_close, options.tcp_close),
            (&mut self.tcp_established, options.tcp_established),
            (&mut self.tls, options.tls),
            (&mut self.track_mem, options.track_mem),
            (&mut self.weak_sysctls, options.weak_sysctls),
        ];
        for (flag, given) in flags {
            *flag = given.unwrap_or(*flag);
        }
    }

    fn merge_values(&mut self, options: &wire::Options) -> Result<()> {
        let text = |into: &mut Option<String>, given: &Option<String>| {
            if given.is_some() {
                into.clone_from(given);
            }
        };
        text(&mut self.cgroup_props, &options.cgroup_props);
        text(&mut self.lsm_profile, &options.lsm_profile);
        text(&mut self.lsm_mount_context, &options.lsm_mount_context);
        for (into, given) in [
            (&mut self.cgroup_props_file, &options.cgroup_props_file),
            (&mut self.cgroup_yard, &options.cgroup_yard),
            (&mut self.freeze_cgroup, &options.freeze_cgroup),
            (&mut self.log_file, &options.log_file),
            (&mut self.parent, &options.parent_img),
            (&mut self.root, &options.root),
        ] {
            if let Some(given) = given {
                *into = Some(given.into());
            }
        }
        if let Some(level) = options.log_level {
            self.log_level = level.clamp(0, 255) as u8;
        }
        if let Some(limit) = options.ghost_limit {
            self.ghost_limit = Some(u64::from(limit));
        }
        if let Some(timeout) = options.timeout {
            self.timeout = u64::from(timeout);
        }
        self.tree = options.pid.or(self.tree);
        if let Some(mask) = options.cpu_cap {
            self.cpu_cap = cpu_cap(mask);
        }
        if let Some(method) = options.network_lock {
            self.network_lock = Some(
                match wire::NetworkLock::try_from(method) {
                    Ok(wire::NetworkLock::Iptables) => "iptables",
                    Ok(wire::NetworkLock::Nftables) => "nftables",
                    Ok(wire::NetworkLock::Skip) => "skip",
                    Err(_) => {
                        return Err(wrong(
                            format!("network_lock {method} is not known"),
                            "give 1, 2 or 3",
                        ));
                    }
                }
                .to_owned(),
            );
        }
        Ok(())
    }

    fn merge_lists(&mut self, options: &wire::Options) {
        // "auto" is the old way to ask for all of them.
        let mounts = options
            .ext_mnt
            .iter()
            .filter(|mount| mount.key != "auto")
            .map(|mount| format!("mnt[{}]:{}", mount.key, mount.val));
        self.external_mounts_auto |= options.ext_mnt.iter().any(|mount| mount.key == "auto");
        self.external.extend(mounts);
        self.external.extend(options.external.iter().cloned());
        let veths = options.veths.iter();
        self.external
            .extend(veths.map(|veth| format!("veth[{}]:{}", veth.if_in, veth.if_out)));
        let sockets = options.unix_sk_ino.iter();
        self.external
            .extend(sockets.map(|socket| format!("unix[{}]", socket.inode)));
        self.skip_mounts
            .extend(options.skip_mnt.iter().map(Into::into));
        self.enable_fs.extend(options.enable_fs.iter().cloned());
        self.cgroup_controllers
            .extend(options.cgroup_dump_controller.iter().cloned());
        let inherited = options.inherit_fd.iter();
        self.inherit
            .extend(inherited.map(|given| (given.fd, given.key.clone())));
        let joined = options.join_ns.iter();
        self.join.extend(
            joined.map(|join| join_namespace(&join.ns, &join.ns_file, join.extra_opt.clone())),
        );
    }

    fn merge_cgroups(&mut self, options: &wire::Options) -> Result<()> {
        self.cgroup_roots
            .extend(options.cg_root.iter().map(|root| CgroupRoot {
                controller: root.ctrl.clone(),
                path: root.path.clone(),
            }));
        match (options.manage_cgroups, options.manage_cgroups_mode) {
            (_, Some(mode)) => {
                self.cgroups = match wire::CgroupMode::try_from(mode) {
                    Ok(wire::CgroupMode::Ignore) => CgroupMode::Ignore,
                    Ok(wire::CgroupMode::None) => CgroupMode::None,
                    Ok(wire::CgroupMode::Props) => CgroupMode::Props,
                    Ok(wire::CgroupMode::Soft) => CgroupMode::Soft,
                    Ok(wire::CgroupMode::Full) => CgroupMode::Full,
                    Ok(wire::CgroupMode::Strict) => CgroupMode::Strict,
                    Ok(wire::CgroupMode::Default) => cgroup_mode(None)?,
                    Err(_) => {
                        return Err(wrong(
                            format!("manage_cgroups_mode {mode} is not known"),
                            "give 0 to 6",
                        ));
                    }
                };
            }
            (Some(true), None) => self.cgroups = cgroup_mode(None)?,
            (Some(false), None) => self.cgroups = CgroupMode::Ignore,
            (None, None) => {}
        }
        Ok(())
    }

    fn refuse_what_has_no_place(&mut self, options: &wire::Options) -> Result<()> {
        if let Some(mask) = options.empty_ns.filter(|mask| *mask != 0) {
            if mask != CLONE_NEWNET {
                return Err(wrong(
                    format!("empty_ns {mask:#x} asks for more than a network namespace"),
                    "only 0x40000000 can come back empty",
                ));
            }
            self.empty_namespaces.push("net".to_owned());
        }
        if let Some(server) = &options.ps {
            self.page_server = true;
            self.address.clone_from(&server.address);
            self.port = server.port.and_then(|port| u16::try_from(port).ok());
        }
        self.pidfd_store |= options.pidfd_store_sk.is_some_and(|fd| fd >= 0);
        self.tls |= options.tls_no_cn_verify.unwrap_or(false)
            || [
                &options.tls_cacert,
                &options.tls_cacrl,
                &options.tls_cert,
                &options.tls_key,
            ]
            .iter()
            .any(|file| file.is_some());
        Ok(())
    }
}

/// The bits: 1 the FPU, 2 the processor as a whole, 4 its instructions.
fn cpu_cap(mask: u32) -> Option<String> {
    match mask {
        // What a caller sends that does not care.
        u32::MAX => None,
        0 => Some("none".to_owned()),
        mask if mask & 2 != 0 => Some("cpu".to_owned()),
        _ => Some("ins".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn merged(options: &wire::Options) -> Result<Settings> {
        let mut settings = Settings::default();
        settings.merge(options).map(|()| settings)
    }

    #[test]
    fn what_the_message_says_beats_the_files_and_what_it_leaves_out_does_not() {
        let mut settings = Settings {
            tcp_established: true,
            file_locks: true,
            log_level: 3,
            ..Settings::default()
        };
        settings
            .merge(&wire::Options {
                tcp_established: Some(false),
                ..wire::Options::default()
            })
            .unwrap();
        assert!(!settings.tcp_established);
        assert!(settings.file_locks);
        assert_eq!(settings.log_level, 3);
    }

    #[test]
    fn a_restore_by_runc_is_understood() {
        let settings = merged(&wire::Options {
            root: Some("/run/runc/px/criu-root".into()),
            ext_mnt: vec![wire::ExtMount {
                key: "/mnt/b".into(),
                val: "/srv/b".into(),
            }],
            manage_cgroups: Some(true),
            cg_root: vec![
                wire::CgroupRoot {
                    ctrl: Some("cpu".into()),
                    path: "/px".into(),
                },
                wire::CgroupRoot {
                    ctrl: None,
                    path: "/".into(),
                },
            ],
            rst_sibling: Some(true),
            inherit_fd: vec![wire::InheritFd {
                key: "extRootNetNS".into(),
                fd: 4,
            }],
            empty_ns: Some(CLONE_NEWNET),
            orphan_pts_master: Some(true),
            ..wire::Options::default()
        })
        .unwrap();
        assert_eq!(settings.root, Some(PathBuf::from("/run/runc/px/criu-root")));
        assert_eq!(settings.external, ["mnt[/mnt/b]:/srv/b"]);
        assert_eq!(settings.cgroups, CgroupMode::Soft);
        assert_eq!(settings.cgroup_roots[1].controller, None);
        assert!(settings.sibling && settings.orphan_terminal);
        assert_eq!(settings.inherit, [(4, "extRootNetNS".to_owned())]);
        assert_eq!(settings.empty_namespaces, ["net"]);
    }

    #[test]
    fn modes_are_taken_by_their_numbers() {
        let mode = |manage, mode| {
            merged(&wire::Options {
                manage_cgroups: manage,
                manage_cgroups_mode: mode,
                ..wire::Options::default()
            })
            .map(|settings| settings.cgroups)
        };
        assert_eq!(mode(None, None).unwrap(), CgroupMode::Ignore);
        assert_eq!(mode(Some(true), None).unwrap(), CgroupMode::Soft);
        assert_eq!(mode(Some(true), Some(0)).unwrap(), CgroupMode::Ignore);
        assert_eq!(mode(None, Some(6)).unwrap(), CgroupMode::Soft);
        assert!(mode(None, Some(7)).is_err());
        assert!(
            merged(&wire::Options {
                empty_ns: Some(0x2000_0000),
                ..wire::Options::default()
            })
            .is_err()
        );
    }
}
