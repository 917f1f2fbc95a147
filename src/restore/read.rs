//! The records of an image, and whether this host can bring them back.

use crate::error::{Error, Exit, Refusals, Result};
use crate::image;
use crate::image::archive::Reader;
use crate::image::cgroup::Cgroup;
use crate::image::files::Files;
use crate::image::memory::Objects;
use crate::image::namespaces::Namespace;
use crate::image::namespaces::ipc::Ipc;
use crate::image::namespaces::mnt::Mounts;
use crate::image::namespaces::net::Net;
use crate::image::namespaces::time::Time;
use crate::image::namespaces::uts::Uts;
use crate::image::process::{Alive, Process};
use crate::image::seccomp::Filter;
use crate::image::sockets::Sockets;
use crate::request::CpuCheck;
use crate::resource::{attributes, limits, threads, timers};

/// Everything but the bulk data.
#[derive(Debug)]
pub struct Records {
    /// The container's spec as it ran.
    pub config: Option<serde_json::Value>,
    /// Ascending by number.
    pub processes: Vec<Process>,
    /// Descriptors and open files.
    pub files: Files,
    /// Sockets.
    pub sockets: Sockets,
    /// What address spaces share.
    pub memory: Objects,
    /// Seccomp filters.
    pub seccomp: Vec<Filter>,
    /// Which namespaces there were.
    pub namespaces: Vec<Namespace>,
    /// Clocks.
    pub time: Time,
    /// Host name.
    pub uts: Option<Uts>,
    /// Network devices, addresses, routes.
    pub net: Option<Net>,
    /// System V objects and POSIX message queues.
    pub ipc: Option<Ipc>,
    /// Control groups.
    pub cgroups: Vec<Cgroup>,
    /// Mounts.
    pub mounts: Option<Mounts>,
}

impl Records {
    /// Reads all of them.
    pub fn read(image: &Reader) -> Result<Self> {
        let mut processes: Vec<Process> = image
            .names()
            .filter(|name| name.starts_with("processes/"))
            .map(|name| image.record(name))
            .collect::<Result<_>>()?;
        processes.sort_by_key(|process| process.member.pid);
        let present = |name: &str| image.has(name);
        Ok(Self {
            config: match present("config.json") {
                true => Some(image.record("config.json")?),
                false => None,
            },
            processes,
            files: image.record("objects/files.json")?,
            sockets: image.record("objects/sockets.json")?,
            memory: image.record("objects/memory.json")?,
            seccomp: image.record("objects/seccomp.json")?,
            namespaces: image.record("namespaces/list.json")?,
            time: image.record("namespaces/time.json")?,
            uts: match present("namespaces/uts.json") {
                true => Some(image.record("namespaces/uts.json")?),
                false => None,
            },
            net: match present("namespaces/net.json") {
                true => Some(image.record("namespaces/net.json")?),
                false => None,
            },
            ipc: match present("namespaces/ipc.json") {
                true => Some(image.record("namespaces/ipc.json")?),
                false => None,
            },
            cgroups: image.optional("namespaces/cgroup.json")?,
            mounts: match present("namespaces/mnt.json") {
                true => Some(image.record("namespaces/mnt.json")?),
                false => None,
            },
        })
    }

    /// Those that have not ended.
    pub fn alive(&self) -> impl Iterator<Item = (&Process, &Alive)> {
        self.processes
            .iter()
            .filter_map(|process| Some((process, process.alive.as_ref()?)))
    }

    /// Whether the container had a namespace of that kind of its own.
    pub fn has_own(&self, kind: &str) -> bool {
        self.namespaces
            .iter()
            .any(|one| one.kind == kind && !one.host)
    }

    /// The first process of the namespace, or the topmost of a tree.
    pub fn top(&self) -> Result<i32> {
        let is_top = |process: &&Process| {
            process.member.ppid == 0 && (process.member.pid == 1 || !self.has_own("pid"))
        };
        self.processes
            .iter()
            .find(is_top)
            .filter(|process| process.alive.is_some())
            .map(|process| process.member.pid)
            .ok_or_else(|| {
                Error::coded(
                    "E-IMAGE-INIT",
                    Exit::Image,
                    "the image has no first process",
                    "the image is damaged",
                )
            })
    }

    /// What of this host is not as the image needs it, all at once.
    pub fn check(&self, from: &Reader, cpu: CpuCheck) -> Result<()> {
        let mut refusals = Refusals::new();
        let header = from.header();
        let here = nix::sys::utsname::uname()?;
        let architecture = here.machine().to_string_lossy();
        if header.host.architecture != architecture {
            return Err(Error::coded(
                "E-ARCHITECTURE",
                Exit::Host,
                format!(
                    "the image was taken on {}, this host is {architecture}",
                    header.host.architecture
                ),
                "restore it on a host of the same architecture",
            ));
        }
        super::cpu::check(&header.host, cpu, &mut refusals)?;
        self.top()?;
        image::check::check(from, &self.processes, &self.memory)?;
        let own_vdso = own_vdso_digest()?;
        const CAP_SYS_RESOURCE: u32 = 24;
        let own = crate::proc::read::Process::new(std::process::id().cast_signed()).status()?;
        let held = own.cap_permitted;
        let may_raise = held >> CAP_SYS_RESOURCE & 1 == 1;
        for (process, alive) in self.alive() {
            let who = format!("pid {} ({})", process.member.pid, process.comm);
            limits::check(&alive.limits, may_raise, &who, &mut refusals)?;
            attributes::check(&alive.attributes, held, &who, &mut refusals)?;
            timers::check(&alive.timers, &who, &mut refusals);
            for thread in &alive.threads {
                threads::check(thread, held, &who, &mut refusals);
            }
            match &alive.memory.vdso {
                Some(vdso) if vdso.digest == own_vdso => {}
                _ => refusals.add(
                    "E-VDSO",
                    who,
                    "the kernel here has another vdso, at whose functions this process may stand or point",
                    "restore it under the kernel it was taken under (see the image's header)",
                ),
            }
        }
        refusals.into_result()
    }
}

/// The digest of this process's own vdso code.
fn own_vdso_digest() -> Result<String> {
    let own = std::process::id().cast_signed();
    let areas = crate::proc::read::Process::new(own).maps()?;
    let Some(area) = areas.iter().find(|area| area.path == b"[vdso]") else {
        return Ok(String::new());
    };
    let mut code = vec![0; area.size() as usize];
    let read = crate::sys::remote::read(own, area.start, &mut code)?;
    Ok(blake3::hash(&code[..read]).to_hex().to_string())
}
