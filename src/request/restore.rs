//! What can be asked of a restore.

use super::{CgroupMode, EmptyNamespace, NetworkLock, Tcp, wrong};
use crate::error::Result;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where the container's root file system is, and who makes the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A new bundle is made: config.json as it ran, a root file system from the image.
    Bundle {
        /// The directory, which is not there yet or empty.
        directory: PathBuf,
        /// The root file system that the image's changes go over.
        base: Option<PathBuf>,
    },
    /// A runtime has prepared the root: a mount point at which the root file system lies. It is
    /// bound into the new mount namespace and not kept busy in this one.
    Root(PathBuf),
    /// The root of the conductor's own mount namespace: the processes had no root of their own.
    Host,
}

/// A mount of the image that was marked external.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalMount {
    /// Its name in the image.
    pub name: String,
    /// What is bound in its place, as the host sees it.
    pub source: PathBuf,
}

/// A descriptor that the caller gives for something of the image that leads outside.
#[derive(Debug)]
pub struct Inherited {
    /// How the image names it: `pipe:[123]`, `tty[…]`, `extRootNetNS`.
    pub key: String,
    /// What takes its place.
    pub fd: OwnedFd,
}

/// A namespace to go into instead of making it anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinNamespace {
    /// `net`, `ipc`, `uts`, `user`, `mnt`, `time`, `pid`, `cgroup`.
    pub kind: String,
    /// A file of nsfs, as the host sees it.
    pub path: PathBuf,
    /// What goes with it: `uid,gid` for `user`.
    pub extra: Option<String>,
}

/// A new place for cgroups: replaces the directory at the top of the recorded paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupRoot {
    /// `None` for all controllers that are not named, `""` for version 2, `name=systemd`, `cpu`, ….
    pub controller: Option<String>,
    /// From the root of that hierarchy.
    pub path: String,
}

/// A pair of network interfaces, one end in the container, one outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    /// Inside.
    pub inner: String,
    /// Outside.
    pub outer: String,
    /// The bridge that the outer end is put on.
    pub bridge: Option<String>,
}

/// How the processor is compared with the one that the image comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CpuCheck {
    /// Not at all.
    None,
    /// It must have what the processes may be using.
    #[default]
    Needed,
    /// It must have everything that the other one has.
    Exact,
}

/// Everything that has a default.
#[derive(Debug, Default)]
pub struct RestoreOptions {
    /// The id of the restored container; that of the image where it is not given.
    pub id: Option<String>,
    /// The init is born as a child of this process's parent, which waits for it, instead of a
    /// child of this process.
    pub sibling: bool,
    /// Standard input, output and error of the container, where they led outside as pipes or files
    /// and are not among [`inherit`](Self::inherit).
    pub streams: [Option<OwnedFd>; 3],
    /// See [`Inherited`].
    pub inherit: Vec<Inherited>,
    /// See [`ExternalMount`]. A name may be there more than once with the same source. Those that
    /// no mount of the image asks for are passed over; one without an entry is an error.
    pub external_mounts: Vec<ExternalMount>,
    /// External mounts without an entry are bound from the same path of the host.
    pub external_mounts_auto: bool,
    /// See [`Veth`].
    pub veths: Vec<Veth>,
    /// See [`JoinNamespace`].
    pub join: Vec<JoinNamespace>,
    /// Namespaces whose recorded content is passed over.
    pub empty_namespaces: Vec<EmptyNamespace>,
    /// See [`CgroupMode`].
    pub cgroups: CgroupMode,
    /// See [`CgroupRoot`].
    pub cgroup_roots: Vec<CgroupRoot>,
    /// See [`Tcp`]: `Keep` is needed for images that hold connections to the outside, `Drop` closes
    /// them.
    pub tcp: Tcp,
    /// See [`NetworkLock`].
    pub network_lock: NetworkLock,
    /// As in a checkpoint.
    pub external_unix: bool,
    /// As in a checkpoint.
    pub file_locks: bool,
    /// As in a checkpoint: the caller's session and terminal take the place of the old ones.
    pub shell_job: bool,
    /// New masters of terminals whose master was outside go to the
    /// [`Watcher`](super::Watcher) with [`Stage::OrphanPtsMaster`](super::Stage::OrphanPtsMaster).
    pub orphan_terminal: bool,
    /// A device file that cannot be opened by its path is looked for by its number.
    pub evasive_devices: bool,
    /// See [`CpuCheck`].
    pub cpu: CpuCheck,
    /// The security label that processes get instead of the recorded one.
    pub lsm_profile: Option<String>,
    /// The SELinux context that mounts get instead of the recorded one.
    pub lsm_mount_context: Option<String>,
    /// A sysctl that cannot be set is passed over.
    pub weak_sysctls: bool,
    /// Files are not compared with what they were (type and size).
    pub lenient_files: bool,
    /// The processes stay stopped, each by a SIGSTOP.
    pub leave_stopped: bool,
    /// Plan and report, but make nothing.
    pub dry_run: bool,
}

/// A restore, asked for.
#[derive(Debug)]
pub struct Restore {
    image: PathBuf,
    place: Place,
    options: RestoreOptions,
}

const KINDS: [&str; 8] = ["net", "ipc", "uts", "user", "mnt", "time", "pid", "cgroup"];

impl Restore {
    /// Checks what can be checked without looking at the image; everything else is the engine's.
    /// Errors are E-REQUEST.
    pub fn new(image: PathBuf, place: Place, options: RestoreOptions) -> Result<Self> {
        if let Place::Root(root) = &place
            && !root.is_absolute()
        {
            return Err(wrong(
                format!("{} is no root", root.display()),
                "give an absolute path",
            ));
        }
        if let Some(id) = &options.id
            && (id.is_empty() || id.contains('/') || id == "." || id == "..")
        {
            return Err(wrong(
                format!("{id:?} is no container id"),
                "give a name without a slash",
            ));
        }
        for join in &options.join {
            if !KINDS.contains(&join.kind.as_str()) {
                return Err(wrong(
                    format!("{:?} is no kind of namespace", join.kind),
                    "give one of net, ipc, uts, user, mnt, time, pid, cgroup",
                ));
            }
        }
        for (at, mount) in options.external_mounts.iter().enumerate() {
            let rest = &options.external_mounts[at + 1..];
            if let Some(other) = rest
                .iter()
                .find(|other| other.name == mount.name && other.source != mount.source)
            {
                return Err(wrong(
                    format!(
                        "the external mount {:?} is given twice: {} and {}",
                        mount.name,
                        mount.source.display(),
                        other.source.display()
                    ),
                    "give one source",
                ));
            }
        }
        for root in &options.cgroup_roots {
            if !root.path.starts_with('/') {
                return Err(wrong(
                    format!("{:?} is no cgroup", root.path),
                    "give a path from the root of the hierarchy",
                ));
            }
        }
        Ok(Self {
            image,
            place,
            options,
        })
    }

    /// The image.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Where the container goes.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Everything else.
    pub fn options(&self) -> &RestoreOptions {
        &self.options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(options: RestoreOptions) -> Result<Restore> {
        Restore::new(
            "/tmp/image.tar".into(),
            Place::Root("/run/root".into()),
            options,
        )
    }

    fn mount(name: &str, source: &str) -> ExternalMount {
        ExternalMount {
            name: name.into(),
            source: source.into(),
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_on_construction() {
        assert!(new(RestoreOptions::default()).is_ok());
        let id = |id: &str| RestoreOptions {
            id: Some(id.into()),
            ..RestoreOptions::default()
        };
        assert!(new(id("web")).is_ok());
        assert!(new(id("..")).is_err());
        let join = |kind: &str| RestoreOptions {
            join: vec![JoinNamespace {
                kind: kind.into(),
                path: "/run/netns/a".into(),
                extra: None,
            }],
            ..RestoreOptions::default()
        };
        assert!(new(join("net")).is_ok());
        assert!(new(join("nett")).is_err());
    }

    #[test]
    fn a_name_of_an_external_mount_may_repeat_but_not_contradict() {
        let masked = |second: &str| RestoreOptions {
            external_mounts: vec![mount("/dev/null", "/dev/null"), mount("/dev/null", second)],
            ..RestoreOptions::default()
        };
        assert!(new(masked("/dev/null")).is_ok());
        assert!(new(masked("/dev/zero")).is_err());
    }
}
