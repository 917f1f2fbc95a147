//! What can be asked of a checkpoint.

use super::{CgroupMode, EmptyNamespace, External, NetworkLock, Tcp, wrong};
use crate::error::Result;
use crate::image::header::Compression;
use std::os::fd::OwnedFd;
use std::path::{Component, PathBuf};
use std::time::Duration;

/// How long freezing may take, unless the caller says otherwise.
pub const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is checkpointed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A container that a runtime knows.
    Container {
        /// Its id.
        id: String,
        /// The runtime's state directory; `None` looks in those of runc and crun.
        state: Option<PathBuf>,
    },
    /// The init of a PID namespace, or any process with everything below it.
    Pid(i32),
}

/// Where the image goes.
#[derive(Debug)]
pub enum Output {
    /// A file that appears under this name only when it is complete.
    File(PathBuf),
    /// A pipe, a socket, an open file.
    Stream(OwnedFd),
}

/// What is written of the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    #[default]
    Whole,
    /// Its memory only, to be the parent of a later image. The container goes on, and what it
    /// writes from then on is tracked. Such an image cannot be restored.
    MemoryOnly,
}

/// What becomes of the processes once the image is complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum After {
    /// They are killed.
    #[default]
    Kill,
    /// They go on.
    Run,
    /// They stay, each stopped by a SIGSTOP.
    Stop,
}

/// What is taken of the root file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rootfs {
    /// The upper layer of an overlay, everything of a plain directory.
    #[default]
    Auto,
    /// What the container changed; refused where the root is no overlay.
    Diff,
    /// Everything.
    Full,
    /// Nothing: the caller of the restore has it.
    None,
}

/// The image that unchanged pages are looked up in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Where it is now.
    pub image: PathBuf,
    /// Where a restore looks for it: relative to the directory of the new image.
    pub recorded_as: PathBuf,
}

/// What the front knows of a container that the engine cannot see from its processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// The id for the image's header where [`Target::Pid`] was given.
    pub id: Option<String>,
    /// A name given by a person.
    pub name: Option<String>,
    /// The runtime: `runc`, `crun`.
    pub runtime: Option<String>,
    /// The bundle, whose `config.json` goes into the image.
    pub bundle: Option<PathBuf>,
    /// The root file system as the host sees it.
    pub root: Option<PathBuf>,
}

/// Everything that has a default.
#[derive(Debug)]
pub struct CheckpointOptions {
    /// See [`Extent`].
    pub extent: Extent,
    /// See [`After`].
    pub after: After,
    /// How the image is compressed.
    pub compression: Compression,
    /// Have the disk store the image before anything is ended.
    pub sync: bool,
    /// See [`Rootfs`].
    pub rootfs: Rootfs,
    /// See [`Parent`].
    pub parent: Option<Parent>,
    /// Go on tracking written pages after this checkpoint, for a next one with this one as parent.
    pub track_memory: bool,
    /// See [`Tcp`].
    pub tcp: Tcp,
    /// Leave out connections that are not yet accepted, instead of refusing them.
    pub skip_in_flight: bool,
    /// See [`NetworkLock`].
    pub network_lock: NetworkLock,
    /// Unix sockets whose peer is outside are allowed: datagram sockets are connected again by name.
    pub external_unix: bool,
    /// Files may be locked; otherwise a lock is refused.
    pub file_locks: bool,
    /// The session and the controlling terminal may be those of a process outside.
    pub shell_job: bool,
    /// A terminal whose master is outside is allowed; its new master is handed to the
    /// [`Watcher`](super::Watcher) of the restore.
    pub orphan_terminal: bool,
    /// What is outside of the container and allowed to be.
    pub external: Vec<External>,
    /// A cgroup directory whose members are the container, used to freeze it.
    pub freeze_cgroup: Option<PathBuf>,
    /// See [`CgroupMode`].
    pub cgroups: CgroupMode,
    /// Only these controllers are recorded; empty for all.
    pub cgroup_controllers: Vec<String>,
    /// Namespaces that come back empty.
    pub empty_namespaces: Vec<EmptyNamespace>,
    /// Bytes up to which a file without a name is taken along; `None` takes them all.
    pub ghost_limit: Option<u64>,
    /// A file whose name is gone but which has other names on unreachable places may be given a
    /// temporary name beside the old one.
    pub link_remap: bool,
    /// Mount points that are left out.
    pub skip_mounts: Vec<PathBuf>,
    /// File systems of these types may be mounted anew from what mountinfo says of them; `all` for
    /// every type.
    pub auto_filesystems: Vec<String>,
    /// How long freezing may take.
    pub freeze_timeout: Duration,
    /// Collect and report, but write nothing and change nothing.
    pub dry_run: bool,
    /// See [`Description`].
    pub description: Description,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self {
            extent: Extent::default(),
            after: After::default(),
            compression: Compression::default(),
            sync: true,
            rootfs: Rootfs::default(),
            parent: None,
            track_memory: false,
            tcp: Tcp::default(),
            skip_in_flight: false,
            network_lock: NetworkLock::default(),
            external_unix: false,
            file_locks: true,
            shell_job: false,
            orphan_terminal: true,
            external: Vec::new(),
            freeze_cgroup: None,
            cgroups: CgroupMode::default(),
            cgroup_controllers: Vec::new(),
            empty_namespaces: Vec::new(),
            ghost_limit: None,
            link_remap: false,
            skip_mounts: Vec::new(),
            auto_filesystems: Vec::new(),
            freeze_timeout: FREEZE_TIMEOUT,
            dry_run: false,
            description: Description::default(),
        }
    }
}

/// A checkpoint, asked for.
#[derive(Debug)]
pub struct Checkpoint {
    target: Target,
    output: Output,
    options: CheckpointOptions,
}

impl Checkpoint {
    /// Checks what can be checked without looking at the container; everything else is the
    /// engine's. Errors are E-REQUEST.
    pub fn new(target: Target, output: Output, options: CheckpointOptions) -> Result<Self> {
        match &target {
            Target::Pid(pid) if *pid <= 0 => {
                return Err(wrong(
                    format!("{pid} is no process"),
                    "give the number of a process",
                ));
            }
            Target::Container { id, .. } if id.is_empty() || id.contains('/') => {
                return Err(wrong(
                    format!("{id:?} is no container id"),
                    "give an id that `runc list` shows",
                ));
            }
            Target::Pid(_) | Target::Container { .. } => {}
        }
        if options.extent == Extent::MemoryOnly && options.after != After::Run {
            return Err(wrong(
                "an image of the memory only leaves the container running",
                "let it run",
            ));
        }
        if let Some(parent) = &options.parent {
            let relative = parent
                .recorded_as
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
            if !relative || parent.recorded_as.as_os_str().is_empty() {
                return Err(wrong(
                    format!("{} is not a relative path", parent.recorded_as.display()),
                    "name the parent image relative to the directory of the new one",
                ));
            }
        }
        if let Some(mount) = options.skip_mounts.iter().find(|path| !path.is_absolute()) {
            return Err(wrong(
                format!("{} is no mount point", mount.display()),
                "give an absolute path",
            ));
        }
        Ok(Self {
            target,
            output,
            options,
        })
    }

    /// What is checkpointed.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Where the image goes.
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Everything else.
    pub fn options(&self) -> &CheckpointOptions {
        &self.options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(target: Target, options: CheckpointOptions) -> Result<Checkpoint> {
        Checkpoint::new(target, Output::File("/tmp/image.tar".into()), options)
    }

    #[test]
    fn what_makes_no_sense_is_refused_on_construction() {
        let options = CheckpointOptions::default;
        assert!(new(Target::Pid(7), options()).is_ok());
        assert!(new(Target::Pid(0), options()).is_err());
        let id = |id: &str| Target::Container {
            id: id.into(),
            state: None,
        };
        assert!(new(id("web"), options()).is_ok());
        assert!(new(id("../web"), options()).is_err());
        let memory_only = CheckpointOptions {
            extent: Extent::MemoryOnly,
            ..options()
        };
        assert!(new(Target::Pid(7), memory_only).is_err());
        let parent = |recorded_as: &str| CheckpointOptions {
            parent: Some(Parent {
                image: "/images/1/ocimig.tar".into(),
                recorded_as: recorded_as.into(),
            }),
            ..options()
        };
        assert!(new(Target::Pid(7), parent("../1/ocimig.tar")).is_ok());
        assert!(new(Target::Pid(7), parent("/images/1/ocimig.tar")).is_err());
        assert!(new(Target::Pid(7), parent("")).is_err());
    }
}
