//! The story of a restore, in order.
//!
//! ```text
//! image → records → can this host do it? → root file system → namespaces → the first process
//!       → mounts → births, memory, threads → open files, sockets → everything else of each process
//!       → POINT OF NO RETURN → let all of them go
//! ```
//!
//! Before that point any failure removes every process, mount and directory that was made: processes die
//! with this one (PTRACE_O_EXITKILL), namespaces and mounts with the last descriptor of them, and [`sweep`]
//! takes away the rest.

mod birth;
pub mod bundle;
mod cpu;
mod read;
mod root;
pub mod sweep;

use crate::error::{Context, Error, Exit, Result};
use crate::fault;
use crate::image::PathBytes;
use crate::image::archive::Reader;
use crate::image::cgroup::Cgroup;
use crate::image::memory::Memory;
use crate::image::namespaces::mnt::Mount;
use crate::image::namespaces::net::Net;
use crate::proc::read::Process;
use crate::request::{
    CgroupMode, CgroupRoot, EmptyNamespace, Facts, Place, Restore, RestoreReport, Restored, Stage,
    Tcp, Watcher,
};
use crate::resource::cgroup::tree::Policy;
use crate::resource::files::{Contents, Env, Rebuilder};
use crate::resource::memory::build;
use crate::resource::memory::fill::Pages;
use crate::resource::memory::increment::Layers;
use crate::resource::namespaces::{ipc, mnt, net, time, uts};
use crate::resource::{cgroup, sockets, tree};
use crate::sys::ns::{self, Kind};
use crate::sys::{clone, descriptor, pidfd};
use crate::tracee::bare::{self, Bare, Vdso, Zone};
use crate::tracee::batch::{Batch, RemoteFd};
use crate::tracee::calls;
use birth::{Materials, Nursery, Places};
use read::Records;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The image's bulk data, for the rooms that name it by member.
struct Members<'a>(&'a Reader);

impl Contents for Members<'_> {
    fn open(&self, member: &str) -> Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.0.read(member)?))
    }
}

/// Brings a container back.
pub fn run(request: &Restore, watcher: &mut dyn Watcher) -> Result<Restored> {
    let begun = Instant::now();
    let image = Reader::open(request.image())?;
    if image.header().memory_only {
        return Err(Error::coded(
            "E-IMAGE-MEMORY-ONLY",
            Exit::Image,
            "the image holds memory only, to be the parent of another one",
            "restore the image whose parent it is",
        ));
    }
    let mut records = Records::read(&image)?;
    match request.options().tcp {
        Tcp::Drop => sockets::close_outside(&mut records.sockets),
        tcp => sockets::check_kept(&records.sockets, tcp == Tcp::Keep)?,
    }
    let records = records;
    fault::point("opened")?;
    records.check(&image, request.options().cpu)?;
    let steps = tree::births(
        &members(&records),
        &thread_numbers(&records),
        &|parent, child| inherits(&records, parent, child),
    )?;
    let id = request
        .options()
        .id
        .clone()
        .unwrap_or_else(|| image.header().container.id.clone());
    if request.options().dry_run {
        return Ok(Restored {
            host_pid: 0,
            init: None,
            id,
            report: RestoreReport::default(),
        });
    }
    fault::point("planned")?;
    watcher.notify(Stage::PreRestore, &Facts::default())?;
    raise_descriptor_limit();
    let guard = match request.place() {
        Place::Bundle { directory, .. } => {
            let groups =
                cgroup::tree::missing(&records.cgroups, rename(request, &image, &records))?;
            Some(sweep::guard(directory, &groups)?)
        }
        Place::Root(_) | Place::Host => None,
    };
    let prepared = root::Prepared::new(request.place(), &image, &records)?;
    let mut work = Work {
        request,
        image: &image,
        records: &records,
        steps: &steps,
        prepared: &prepared,
        watcher,
        conductor: None,
    };
    let mut report = RestoreReport {
        processes: records.processes.len(),
        ..RestoreReport::default()
    };
    let built = work.build(&mut report);
    if built.is_ok() {
        prepared.keep();
    } else {
        drop(prepared);
    }
    if let Some(guard) = guard {
        guard.end()?;
    }
    let (host_pid, init) = built?;
    report.restoring = begun.elapsed();
    Ok(Restored {
        host_pid,
        init: Some(init),
        id,
        report,
    })
}

/// What the container's groups are called after, and what they are to be called after.
fn rename<'a>(
    request: &'a Restore,
    image: &'a Reader,
    records: &'a Records,
) -> Option<(&'a str, &'a str)> {
    let mut old = image.header().container.id.as_str();
    if old.is_empty() {
        // Taken by the number of its first process: its groups are still called after something.
        old = records
            .cgroups
            .first()
            .and_then(|record| record.path.rsplit('/').next())
            .unwrap_or_default();
    }
    request.options().id.as_deref().map(|new| (old, new))
}

fn members(records: &Records) -> Vec<crate::image::tree::Member> {
    records
        .processes
        .iter()
        .map(|process| process.member.clone())
        .collect()
}

fn thread_numbers(records: &Records) -> BTreeSet<i32> {
    records
        .alive()
        .flat_map(|(_, alive)| alive.threads.iter().skip(1))
        .map(|thread| thread.tid)
        .collect()
}

/// Whether a child shares enough pages with its parent that it is worth being born after those are
/// there: a fork then copies the parent's page tables, which the child would otherwise not need.
fn inherits(records: &Records, parent: i32, child: i32) -> bool {
    const ENOUGH: u64 = 1;
    let memory = |pid: i32| -> Option<&Memory> {
        records
            .alive()
            .find(|(process, _)| process.member.pid == pid)
            .map(|(_, alive)| &alive.memory)
    };
    let (Some(parent), Some(child)) = (memory(parent), memory(child)) else {
        return false;
    };
    let mut shared = 0;
    let mut known = parent.pages.iter().peekable();
    for run in &child.pages {
        while known.next_if(|other| other.end() <= run.start).is_some() {}
        let same = known.peek().is_some_and(|other| {
            let there = other
                .index
                .wrapping_add(run.start.wrapping_sub(other.start) / 4096);
            other.start <= run.start && there == run.index
        });
        if same {
            shared += run.pages;
        }
    }
    shared >= ENOUGH
}

/// Every open file of the container is one here, for a moment.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

struct Work<'a, 'w> {
    request: &'a Restore,
    image: &'a Reader,
    records: &'a Records,
    steps: &'a [tree::Step],
    prepared: &'a root::Prepared,
    watcher: &'w mut dyn Watcher,
    /// This process, as the processes that are built know it.
    conductor: Option<OwnedFd>,
}

/// New namespaces, held by descriptors.
#[derive(Default)]
struct Namespaces {
    net: Option<OwnedFd>,
    ipc: Option<OwnedFd>,
    uts: Option<OwnedFd>,
    time: Option<OwnedFd>,
    cgroup: Option<OwnedFd>,
}

/// What the processes are born into.
#[derive(Clone, Copy)]
struct World<'a> {
    namespaces: &'a Namespaces,
    mounts: &'a OwnedFd,
    pages: &'a Pages<'a>,
}

impl Work<'_, '_> {
    fn build(&mut self, report: &mut RestoreReport) -> Result<(i32, OwnedFd)> {
        let records = self.records;
        let image = self.image;
        let directory = self.request.image().parent().unwrap_or(Path::new("."));
        let layers = Layers::new(image, directory)?;
        let chunks = |object: &str, number: u64| layers.chunk(object, number);
        let pages = Pages::new(&chunks);
        let mut namespaces = self.namespaces(&pages)?;
        fault::point("namespaces-made")?;
        let (mut init, conductor) = self.first_process()?;
        fault::point("init-born")?;
        let host_pid = init.host_pid;
        let cgroups = self.cgroups()?;
        let built = (|| {
            cgroups.enter(init.pid, host_pid)?;
            let init_fd = pidfd::open(host_pid)?;
            let proc = self.enter(&mut init, &mut namespaces, conductor, init_fd.as_fd())?;
            let facts = Facts {
                pid: Some(host_pid),
                master: None,
            };
            self.watcher.notify(Stage::SetupNamespaces, &facts)?;
            let mount_namespace = self.mounts(&namespaces, proc, host_pid)?;
            let (mount_namespace, terminals) = match mount_namespace {
                Some(made) => {
                    join(&mut init, conductor, &made.namespace)?;
                    (made.namespace, made.terminals)
                }
                None => (ns::open_own(Kind::Mnt)?, Vec::new()),
            };
            let world = World {
                namespaces: &namespaces,
                mounts: &mount_namespace,
                pages: &pages,
            };
            fault::point("mounts-made")?;
            self.watcher
                .notify(Stage::PostSetupNamespaces, &Facts::default())?;
            let mut nursery = Nursery::new(records, init, conductor)?;
            let result = self.populate(&mut nursery, &world, terminals, &cgroups, report);
            if let Err(error) = result {
                nursery.abandon();
                return Err(error);
            }
            self.watcher.notify(Stage::PostRestore, &facts)?;
            self.let_packets_through(&namespaces);
            self.watcher
                .notify(Stage::NetworkUnlock, &Facts::default())?;
            if let Err(error) = self.watcher.notify(Stage::PreResume, &Facts::default()) {
                tracing::warn!("{error}");
            }
            fault::point("before-release")?;
            nursery.release(self.request.options().leave_stopped)?;
            fault::point("released")?;
            if let Err(error) = self.watcher.notify(Stage::PostResume, &Facts::default()) {
                tracing::warn!("{error}");
            }
            Ok(init_fd)
        })();
        match built {
            Ok(init_fd) => {
                cgroups.keep();
                Ok((host_pid, init_fd))
            }
            Err(error) => {
                kill_all(host_pid);
                Err(error)
            }
        }
    }

    /// The container's own control groups. Where a runtime drives the restore it has made them, and this
    /// process is in them already.
    fn cgroups(&self) -> Result<cgroup::tree::Made> {
        if !matches!(self.request.place(), Place::Bundle { .. }) {
            return self.managed_cgroups();
        }
        let rename = rename(self.request, self.image, self.records);
        cgroup::tree::rebuild(&self.records.cgroups, rename)
    }

    /// The control groups as a caller wants them who makes some of them itself.
    fn managed_cgroups(&self) -> Result<cgroup::tree::Made> {
        let options = self.request.options();
        let policy = match options.cgroups {
            CgroupMode::Ignore => return Ok(cgroup::tree::Made::default()),
            CgroupMode::None => Policy::Join,
            CgroupMode::Props => Policy::Settings,
            CgroupMode::Soft => Policy::Missing,
            CgroupMode::Full => Policy::All,
            CgroupMode::Strict => Policy::Strict,
        };
        let top = |record: &Cgroup| {
            let wanted = match record.hierarchy.as_str() {
                "unified" => "",
                other => other,
            };
            let is_of = |root: &&CgroupRoot| {
                root.controller.as_deref().is_some_and(|given| {
                    given == wanted || wanted.split(',').any(|one| !one.is_empty() && one == given)
                })
            };
            let roots = &options.cgroup_roots;
            roots
                .iter()
                .find(is_of)
                .or_else(|| roots.iter().find(|root| root.controller.is_none()))
                .map_or_else(|| record.path.clone(), |root| root.path.clone())
        };
        cgroup::tree::rebuild_at(&self.records.cgroups, &top, policy)
    }

    /// Connections have their owner again.
    fn let_packets_through(&self, namespaces: &Namespaces) {
        let connections = sockets::outside(&self.records.sockets);
        if connections.is_empty() {
            return;
        }
        let released = match &namespaces.net {
            Some(net) => sockets::release(net.as_fd(), &connections),
            None => {
                ns::open_own(Kind::Net).and_then(|net| sockets::release(net.as_fd(), &connections))
            }
        };
        if let Err(error) = released {
            tracing::warn!("{error}");
        }
    }

    /// Namespaces that can be made before anybody is in them.
    fn namespaces(&self, pages: &Pages<'_>) -> Result<Namespaces> {
        let records = self.records;
        let options = self.request.options();
        let mut made = Namespaces::default();
        let wants_empty = options.empty_namespaces.contains(&EmptyNamespace::Net);
        let empty = records
            .net
            .as_ref()
            .filter(|_| wants_empty)
            .map(|record| Net {
                external: true,
                ..record.clone()
            });
        let fill_net = || match empty.as_ref().or(records.net.as_ref()) {
            Some(record) => net::rebuild(record),
            None => net::lo_up(),
        };
        if let Some(given) = self.given_namespace("net")? {
            ns::inside(&[given.as_fd()], fill_net)?;
            made.net = Some(given);
        } else if records.has_own("net") {
            made.net = Some(ns::fresh_with(Kind::Net, fill_net)?);
        }
        made.ipc = self.given_namespace("ipc")?;
        if made.ipc.is_none() && records.has_own("ipc") {
            made.ipc = Some(ns::fresh_with(Kind::Ipc, || match &records.ipc {
                Some(record) => ipc::rebuild(record, pages),
                None => Ok(()),
            })?);
        }
        made.uts = self.given_namespace("uts")?;
        if let (None, Some(record)) = (&made.uts, &records.uts) {
            made.uts = Some(ns::fresh_with(Kind::Uts, || uts::rebuild(record))?);
        }
        // A tree of the host's own processes goes on with the host's clocks.
        made.time = match self.given_namespace("time")? {
            Some(given) => Some(given),
            None if records.has_own("pid") => {
                Some(time::new_time_namespace(&time::offsets(&records.time)?)?)
            }
            None => None,
        };
        Ok(made)
    }

    /// A namespace that the caller wants to be gone into, or that the image left outside.
    fn given_namespace(&self, kind: &str) -> Result<Option<OwnedFd>> {
        let options = self.request.options();
        if let Some(join) = options.join.iter().find(|join| join.kind == kind) {
            return std::fs::File::open(&join.path)
                .map(|file| Some(file.into()))
                .doing(|| format!("opening the {kind} namespace {}", join.path.display()));
        }
        let named = self
            .records
            .namespaces
            .iter()
            .find(|one| one.kind == kind)
            .and_then(|one| one.external.as_ref());
        let Some(name) = named else {
            return Ok(None);
        };
        match options.inherit.iter().find(|given| given.key == *name) {
            Some(given) => Ok(Some(given.fd.try_clone()?)),
            None => Err(Error::coded(
                "E-NS-EXTERNAL",
                Exit::Usage,
                format!("nothing was given for the external {kind} namespace {name}"),
                format!("give a namespace: criu restore --inherit-fd fd[N]:{name}"),
            )),
        }
    }

    /// The first process, with a descriptor that stands for this one and nothing else.
    fn first_process(&mut self) -> Result<(Bare, RemoteFd)> {
        let highest = self
            .records
            .files
            .tables
            .values()
            .filter_map(|table| table.last())
            .map(|descriptor| descriptor.fd)
            .max()
            .unwrap_or(2);
        let own = pidfd::open(std::process::id().cast_signed())?;
        let lowest = highest.saturating_add(1).max(3);
        let conductor = descriptor::duplicate_above(own.as_fd(), lowest)
            .doing(|| format!("reserving descriptor {lowest} or above"))?;
        let number = conductor.as_raw_fd();
        let mut flags = if self.records.has_own("pid") {
            libc::CLONE_NEWPID
        } else {
            0
        };
        if self.request.options().sibling {
            flags |= libc::CLONE_PARENT;
        }
        let zone = zone(self.records)?;
        let mut init = bare::spawn(
            flags as u64,
            self.records.top()?,
            zone,
            &own_vdso()?,
            clone::own_rseq(),
        )
        .map_err(taken)?;
        only_descriptor(&mut init, number)?;
        // It stays open: those that are born later have it under the same number.
        self.conductor = Some(conductor);
        Ok((init, RemoteFd(number)))
    }

    /// Puts the first process into the namespaces; a mount of proc for its PID namespace comes back.
    fn enter(
        &self,
        init: &mut Bare,
        namespaces: &mut Namespaces,
        conductor: RemoteFd,
        init_fd: std::os::fd::BorrowedFd<'_>,
    ) -> Result<Option<OwnedFd>> {
        for namespace in [
            &namespaces.time,
            &namespaces.net,
            &namespaces.ipc,
            &namespaces.uts,
        ]
        .into_iter()
        .flatten()
        {
            join(init, conductor, namespace)?;
        }
        if self.records.has_own("cgroup") {
            let mut batch = Batch::new();
            batch.push(calls::Unshare {
                flags: libc::CLONE_NEWCGROUP.into(),
            });
            init.run(&batch)?;
            namespaces.cgroup = Some(ns::open(init.host_pid, Kind::Cgroup)?);
        }
        if self.records.mounts.is_none() {
            return Ok(None);
        }
        let mut batch = Batch::new();
        let name = batch.string(b"proc");
        let source = batch.string(b"source");
        let context = batch.push(calls::Fsopen {
            name: name.into(),
            flags: 0u64.into(),
        });
        // Without, mountinfo would call it "none", which runtimes do not.
        batch.push(calls::Fsconfig {
            fd: context.into(),
            command: libc::FSCONFIG_SET_STRING.into(),
            key: source.into(),
            value: name.into(),
            aux: 0u64.into(),
        });
        batch.push(calls::Fsconfig {
            fd: context.into(),
            command: libc::FSCONFIG_CMD_CREATE.into(),
            key: 0u64.into(),
            value: 0u64.into(),
            aux: 0u64.into(),
        });
        let mounted = batch.push(calls::Fsmount {
            fd: context.into(),
            flags: 0u64.into(),
            attributes: 0u64.into(),
        });
        let answers = init.run(&batch).doing(|| "mounting proc")?;
        let fetched = pidfd::getfd(init_fd, answers.get(mounted).0)?;
        let mut batch = Batch::new();
        for fd in [answers.get(context), answers.get(mounted)] {
            batch.push(calls::Close { fd: fd.into() });
        }
        init.run(&batch)?;
        Ok(Some(fetched))
    }

    fn mounts(
        &self,
        namespaces: &Namespaces,
        proc: Option<OwnedFd>,
        host_pid: i32,
    ) -> Result<Option<mnt::Rebuilt>> {
        let Some(record) = &self.records.mounts else {
            return Ok(None);
        };
        let spec = self.records.config.as_ref();
        let options = self.request.options();
        let is_bundle = matches!(self.request.place(), Place::Bundle { .. });
        let external = |_: &Mount, key: &str, host_path: Option<&PathBytes>| {
            let given = options
                .external_mounts
                .iter()
                .find(|one| one.name == key)
                .map(|one| one.source.clone());
            let from_spec = || {
                let Place::Bundle { directory, .. } = self.request.place() else {
                    return None;
                };
                mnt::source_in_spec(spec?, directory, key)
            };
            let same_place = || {
                let allowed = is_bundle || options.external_mounts_auto;
                host_path
                    .filter(|_| allowed)
                    .map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path.as_bytes())))
            };
            given.or_else(from_spec).or_else(same_place).ok_or_else(|| {
                Error::coded(
                    "E-EXTERNAL-MOUNT",
                    Exit::Usage,
                    format!("nothing was given for the external mount {key}"),
                    format!("name a directory or file for it: --external mnt[{key}]:PATH"),
                )
            })
        };
        let image = self.image;
        let env = mnt::Env {
            root: self.prepared.root(),
            external: &external,
            proc,
            net: namespaces.net.as_ref().map(AsFd::as_fd),
            ipc: namespaces.ipc.as_ref().map(AsFd::as_fd),
            cgroup: namespaces.cgroup.as_ref().map(AsFd::as_fd),
            cgroup_directory: &|controllers| cgroup_of(host_pid, controllers),
            content: &|pieces| Box::new(image.read_pieces(pieces)),
        };
        mnt::rebuild(record, &env)
            .map(Some)
            .doing(|| "building the mounts")
    }

    /// Everybody and everything.
    fn populate(
        &mut self,
        nursery: &mut Nursery<'_>,
        world: &World<'_>,
        terminals: Vec<mnt::Terminal>,
        cgroups: &cgroup::tree::Made,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let World {
            namespaces,
            mounts: mount_namespace,
            pages,
        } = *world;
        let records = self.records;
        let image = self.image;
        let contents = Members(image);
        let shared = build::make_shared(&records.memory, &records.files, pages)?;
        let memory_files = shared
            .iter()
            .map(|(inode, fd)| Ok((*inode, fd.try_clone()?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let options = self.request.options();
        let external = options
            .inherit
            .iter()
            .map(|one| Ok((one.key.clone(), one.fd.try_clone()?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let mut streams = [None, None, None];
        for (stream, given) in streams.iter_mut().zip(&options.streams) {
            *stream = given.as_ref().map(OwnedFd::try_clone).transpose()?;
        }
        let env = Env {
            mount_namespace: mount_namespace.as_fd(),
            processes: BTreeMap::new(),
            external,
            streams,
            memory: memory_files,
            contents: &contents,
            strict: !options.lenient_files,
        };
        let mut files = Rebuilder::new(&records.files, env)?;
        for terminal in terminals {
            files
                .opener()
                .give_master(terminal.devpts, terminal.index, terminal.master);
        }
        files.terminals()?;
        let opened = build::open(
            records.alive().map(|(_, alive)| &alive.memory),
            &records.memory,
            &shared,
            files.opener(),
        )?;
        let materials = Materials {
            opened: &opened,
            pages,
        };
        let forking = Instant::now();
        for step in self.steps {
            nursery.step(*step, &materials, &files, &mut |init, pid| {
                self.join_process(init, pid)
            })?;
            if let tree::Step::Fork { pid, .. } | tree::Step::Spawn { pid } = *step
                && let Some(host_pid) = nursery.host_pid(pid)
            {
                cgroups.enter(pid, host_pid)?;
            }
        }
        fault::point("tree-born")?;
        fault::point("memory-filled")?;
        let joined = options.join.iter().any(|join| join.kind == "ipc");
        if let (Some(namespace), Some(record), false) = (&namespaces.ipc, &records.ipc, joined) {
            ns::inside(&[namespace.as_fd()], || ipc::finish(record))?;
        }
        nursery.threads()?;
        fault::point("threads-built")?;
        report.forking = forking.elapsed();
        nursery.foreground(&files)?;
        files.set_processes(nursery.numbers());
        files.build()?;
        fault::point("files-built")?;
        self.sockets(&mut files, namespaces, nursery)?;
        let mut places = BTreeMap::new();
        for (process, alive) in records.alive() {
            let mut open = |reference: &Option<crate::image::files::FileReference>, flags| {
                reference
                    .as_ref()
                    .map(|reference| files.opener().open(reference, flags))
                    .transpose()
            };
            places.insert(
                process.member.pid,
                Places {
                    exe: open(&alive.memory.program.exe, libc::O_RDONLY)?,
                    cwd: open(&alive.place.cwd, libc::O_PATH)?,
                    root: open(&alive.place.root, libc::O_PATH)?,
                },
            );
        }
        let rebuilt = files.finish()?;
        for file in &records.files.memory_files {
            if let Some(fd) = shared.get(&file.inode) {
                crate::resource::files::seal_memory_file(file, fd.as_fd())?;
            }
        }
        for master in rebuilt.masters.values() {
            let facts = Facts {
                pid: None,
                master: Some(master.as_fd()),
            };
            self.watcher.notify(Stage::OrphanPtsMaster, &facts)?;
        }
        fault::point("files-installed")?;
        nursery.zombies()?;
        nursery.finish(records, &rebuilt, &places)?;
        fault::point("finished")
    }

    /// A process that was put into the container from outside, as `runc exec` does: a child of this one,
    /// in all the namespaces of the first.
    fn join_process(&self, init: &Bare, pid: i32) -> Result<Bare> {
        let own = ns::open_own(Kind::Pid)?;
        let theirs = ns::open(init.host_pid, Kind::Pid)?;
        let pid_flag = nix::sched::CloneFlags::CLONE_NEWPID;
        nix::sched::setns(&theirs, pid_flag).doing(|| "entering the container's PID namespace")?;
        let spawned = bare::spawn(0, pid, init.zone(), &own_vdso()?, clone::own_rseq());
        // Whatever this thread starts from here on is to be where it belongs again.
        nix::sched::setns(&own, pid_flag).doing(|| "leaving the container's PID namespace")?;
        let mut spawned = spawned.map_err(taken)?;
        let conductor = self
            .conductor
            .as_ref()
            .ok_or_else(|| Error::bug("the first process is not born"))?
            .as_raw_fd();
        only_descriptor(&mut spawned, conductor)?;
        for kind in [
            Kind::Time,
            Kind::Cgroup,
            Kind::Net,
            Kind::Ipc,
            Kind::Uts,
            Kind::Mnt,
        ] {
            let namespace = ns::open(init.host_pid, kind)?;
            let here = ns::open_own(kind)?;
            if nix::sys::stat::fstat(&namespace)?.st_ino == nix::sys::stat::fstat(&here)?.st_ino {
                continue;
            }
            join(&mut spawned, RemoteFd(conductor), &namespace)?;
        }
        Ok(spawned)
    }

    fn sockets(
        &self,
        files: &mut Rebuilder<'_>,
        namespaces: &Namespaces,
        nursery: &Nursery<'_>,
    ) -> Result<()> {
        let record = &self.records.sockets;
        let net = match &namespaces.net {
            Some(net) => net.try_clone()?,
            None => ns::open_own(Kind::Net)?,
        };
        let root = files.opener().view().root().try_clone_to_owned()?;
        let target = sockets::Target {
            net: net.as_fd(),
            root: root.as_fd(),
        };
        let rebuilt = sockets::rebuild(target, record)?;
        let numbers = nursery.numbers();
        let ids: Vec<crate::image::files::FileId> = self
            .records
            .files
            .open_files
            .iter()
            .map(|file| file.id)
            .collect();
        let made: BTreeMap<u64, OwnedFd> = ids
            .iter()
            .filter_map(|id| Some((u64::from(id.0), files.get(*id)?)))
            .map(|(id, fd)| Ok((id, fd.try_clone_to_owned()?)))
            .collect::<Result<_>>()?;
        let borrowed = made.iter().map(|(id, fd)| (*id, fd.as_fd())).collect();
        let finished =
            rebuilt.finish(target, record, &borrowed, &|pid| numbers.get(&pid).copied())?;
        for (id, fd) in finished {
            if let Ok(id) = u32::try_from(id) {
                files.insert(crate::image::files::FileId(id), fd);
            }
        }
        Ok(())
    }
}

/// Closes everything that a bare process has of the conductor's but one.
fn only_descriptor(bare: &mut Bare, number: i32) -> Result<()> {
    let mut batch = Batch::new();
    if number > 0 {
        batch.push(calls::CloseRange {
            first: 0u64.into(),
            last: (number - 1).into(),
            flags: 0u64.into(),
        });
    }
    batch.push(calls::CloseRange {
        first: (number + 1).into(),
        last: u64::from(u32::MAX).into(),
        flags: 0u64.into(),
    });
    bare.run(&batch).map(drop)
}

/// A number that somebody has already.
fn taken(error: Error) -> Error {
    if error.errno() == Some(nix::errno::Errno::EEXIST) {
        return Error::coded(
            "E-PID-IN-USE",
            Exit::Host,
            error.to_string(),
            "end the process that has the number, or restore in a PID namespace of its own",
        );
    }
    error
}

/// Enters a namespace, a descriptor of the conductor's.
fn join(bare: &mut Bare, conductor: RemoteFd, namespace: &OwnedFd) -> Result<()> {
    let mut batch = Batch::new();
    let fd = batch.push(calls::PidfdGetfd {
        pidfd: conductor.into(),
        fd: namespace.as_raw_fd().into(),
    });
    batch.push(calls::Setns {
        fd: fd.into(),
        kind: 0u64.into(),
    });
    batch.push(calls::Close { fd: fd.into() });
    bare.run(&batch).doing(|| "entering a namespace").map(drop)
}

/// Where the cgroup of a process is in a hierarchy.
fn cgroup_of(host_pid: i32, controllers: &[String]) -> Result<PathBuf> {
    let hierarchies = crate::resource::cgroup::Hierarchies::of_this_host()?;
    let wanted = controllers.join(",");
    let own = Process::new(host_pid).cgroup()?;
    hierarchies
        .0
        .iter()
        .find(|hierarchy| hierarchy.name() == wanted)
        .and_then(|hierarchy| {
            let membership = own.iter().find(|one| {
                if wanted.is_empty() {
                    one.is_v2()
                } else {
                    controllers.iter().all(|controller| one.has(controller))
                }
            })?;
            hierarchy.directory(&String::from_utf8_lossy(&membership.path))
        })
        .ok_or_else(|| {
            Error::coded(
                "E-CGROUP-HIERARCHY",
                Exit::Host,
                format!("this host has no cgroup hierarchy with the controllers {wanted:?}"),
                "mount it, or restore on a host that has it",
            )
        })
}

/// The parts of this process's own vdso.
fn own_vdso() -> Result<Vdso> {
    let areas = Process::new(std::process::id().cast_signed()).maps()?;
    let parts: Vec<(u64, u64)> = areas
        .iter()
        .filter(|area| area.path.starts_with(b"[vvar") || area.path == b"[vdso]")
        .map(|area| (area.start, area.end))
        .collect();
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return Err(Error::coded(
            "E-HOST-VDSO",
            Exit::Host,
            "this process has no vdso",
            "boot without vdso=0",
        ));
    };
    Ok(Vdso {
        start: first.0,
        parts: parts
            .iter()
            .map(|(start, end)| (start - first.0, end - start))
            .collect(),
        code: last.0 - first.0,
    })
}

/// A hole that neither the image's processes nor this one use.
fn zone(records: &Records) -> Result<Zone> {
    const LOWEST: u64 = 0x10_0000;
    const GAP: u64 = 2 << 20;
    let own = Process::new(std::process::id().cast_signed()).maps()?;
    let mut used: Vec<(u64, u64)> = own.iter().map(|area| (area.start, area.end)).collect();
    for (_, alive) in records.alive() {
        used.extend(alive.memory.areas.iter().map(|area| (area.start, area.end)));
        // Room for the heap to be where it will grow.
        used.push((alive.memory.program.start_brk, alive.memory.program.brk));
    }
    used.sort_unstable();
    let mut from = LOWEST;
    for (start, end) in used {
        if start > from && start - from >= Zone::SIZE + 2 * GAP {
            return Ok(Zone { start: from + GAP });
        }
        from = from.max(end.next_multiple_of(GAP));
    }
    Ok(Zone { start: from + GAP })
}

/// Kills everybody in the PID namespace of a process of ours that was not finished, and waits.
fn kill_all(host_pid: i32) {
    if let Ok(fd) = pidfd::open(host_pid) {
        let _ = pidfd::send_signal(fd.as_fd(), libc::SIGKILL);
    }
    reap(&[host_pid]);
}

/// Reaps whom this thread traces or has made until these, which were killed, are gone. There are others
/// that stay: the guard is a child as well.
fn reap(killed: &[i32]) {
    const PATIENCE: Duration = Duration::from_secs(20);
    let deadline = Instant::now() + PATIENCE;
    let is_gone = |host_pid: &i32| !Process::new(*host_pid).exists();
    loop {
        match crate::sys::ptrace::wait(-1, false) {
            Ok(Some(_)) => {}
            Ok(None) if killed.iter().all(is_gone) || Instant::now() > deadline => return,
            Ok(None) => std::thread::sleep(Duration::from_micros(100)),
            Err(_) => return,
        }
    }
}
