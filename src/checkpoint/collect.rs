//! Everything that the held processes are, as records. Nothing is changed.

use super::stop::{Container, Held};
use crate::error::{Context, Refusals, Result};
use crate::image::cgroup::Cgroup as CgroupRecord;
use crate::image::files::Files;
use crate::image::memory::{Memory, Objects};
use crate::image::namespaces::Namespace;
use crate::image::namespaces::ipc::Ipc;
use crate::image::namespaces::mnt::Mounts;
use crate::image::namespaces::net::Net;
use crate::image::namespaces::time::Time;
use crate::image::namespaces::uts::Uts;
use crate::image::process::{Alive, Place, Process as Record, Terminal};
use crate::image::seccomp::Filter;
use crate::image::sockets::Sockets;
use crate::image::tree::Member;
use crate::proc::read::Process;
use crate::proc::status::Status;
use crate::resource::cgroup::{self, Cgroups};
use crate::resource::files::{CaptureOptions, Capturer, Content, Subject};
use crate::resource::memory::{self, Source};
use crate::resource::namespaces::{self, ipc, mnt, net, time, uts};
use crate::resource::sockets::{self, Outside};
use crate::resource::{attributes, limits, seccomp, signals, threads, timers, tree};
use crate::sys::ptrace::Queue;
use crate::sys::{kcmp, ns};
use crate::tracee::batch::Batch;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What the request says about things outside.
#[derive(Debug, Default)]
pub struct Options {
    /// Keys of files and pipes that lead outside.
    pub files: BTreeSet<String>,
    /// What becomes of sockets that lead outside.
    pub sockets: sockets::Choices,
    /// Mounts.
    pub mounts: mnt::Options,
    /// Namespaces that stay outside: kind, inode, name.
    pub namespaces: Vec<(String, u64, String)>,
    /// Somebody else fills the new network namespace.
    pub empty_net: bool,
    /// Where the container is in the hierarchies of control groups.
    pub cgroups: Option<Cgroups>,
    /// Sessions and process groups of processes outside are allowed.
    pub shell_job: bool,
}

/// A whole container.
#[derive(Debug)]
pub struct Collected {
    /// Ascending by number, zombies included.
    pub processes: Vec<Record>,
    /// Descriptors and open files.
    pub files: Files,
    /// Bulk data of files: member and content.
    pub contents: Vec<(String, Content)>,
    /// Sockets.
    pub sockets: Sockets,
    /// Connections that are kept and lead outside.
    pub outside: Outside,
    /// What address spaces share.
    pub memory: Objects,
    /// The pages.
    pub pages: Source,
    /// Seccomp filters.
    pub seccomp: Vec<Filter>,
    /// Which namespaces there are.
    pub namespaces: Vec<Namespace>,
    /// Host name.
    pub uts: Option<Uts>,
    /// Network devices, addresses, routes.
    pub net: Option<Net>,
    /// System V objects and POSIX message queues.
    pub ipc: Option<Ipc>,
    /// Control groups.
    pub cgroups: Vec<CgroupRecord>,
    /// Clocks.
    pub time: Time,
    /// Mounts.
    pub mounts: Option<Mounts>,
    /// File systems of the container's own.
    pub trees: Vec<mnt::Tree>,
}

/// What a process answered, until all have been asked.
struct Answered {
    brk: u64,
    handlers: Vec<crate::image::process::Handler>,
    timers: crate::image::process::Timers,
    attributes: crate::image::process::Attributes,
    subreaper: bool,
    threads: Vec<crate::image::process::Thread>,
}

/// Collects everything. Whatever cannot be taken along is in `refusals` afterwards; then the rest is of
/// no use.
pub fn collect(
    container: &mut Container,
    options: &Options,
    refusals: &mut Refusals,
) -> Result<Collected> {
    let init = container.init()?.host_pid;
    let mut namespaces = namespaces::survey(init, &host_tids(container), refusals)?;
    mark_external(&mut namespaces, &options.namespaces, refusals);
    let namespaces = namespaces;
    let is_own = |kind: &str| namespaces.iter().any(|one| one.kind == kind && !one.host);
    let mut semaphores = if is_own("ipc") {
        Some(ipc::undo::Asker::new(
            ns::open(init, ns::Kind::Ipc)?.as_fd(),
        )?)
    } else {
        None
    };
    let mut filters = seccomp::Collector::default();
    let mut answered = Vec::with_capacity(container.processes.len());
    for held in &mut container.processes {
        answered.push(ask(held, &mut filters, refusals)?);
        if let Some(semaphores) = &mut semaphores {
            let who = (held.host_pid, held.pid);
            let room = crate::tracee::SCRATCH_DATA as usize;
            semaphores.ask(who, room, &mut |batch| held.run(0, batch), refusals)?;
        }
    }
    // From here on nothing of ours is in the processes, so that it is not taken for theirs.
    container.leave()?;
    let time = time::capture(init, refusals)?;
    refuse_sharing(container, refusals)?;

    let mut capturer = Capturer::new(
        &container.subjects,
        CaptureOptions {
            external: options.files.clone(),
        },
    );
    capturer.tables(refusals)?;
    let captured_sockets = collect_sockets(container, &mut capturer, options, refusals)?;
    let mut spaces = memory::Collector::new()?;
    let mut memories = Vec::with_capacity(answered.len());
    let mut places = Vec::with_capacity(answered.len());
    for (subject, known) in container.subjects.iter().zip(&answered) {
        memories.push(spaces.space(subject, known.brk, &mut capturer, refusals)?);
        places.push(place(subject, &mut capturer, refusals)?);
    }
    let captured = capturer.finish(refusals)?;
    let names: HashMap<_, _> = captured
        .files
        .memory_files
        .iter()
        .map(|file| (file.inode, file.name.as_bytes().to_vec()))
        .collect();
    let memfds = captured
        .memory
        .into_iter()
        .map(|(inode, fd)| (inode, (names.get(&inode).cloned().unwrap_or_default(), fd)))
        .collect();
    let mut all: Vec<&mut Memory> = memories.iter_mut().collect();
    let (objects, mut pages) = spaces.finish(&mut all, memfds)?;

    let numbers = Numbers::new(container)?;
    if !is_own("pid") {
        refuse_outside(container, &numbers, options.shell_job, refusals);
    }
    let mut processes = Vec::new();
    let parts = container
        .processes
        .iter()
        .zip(answered)
        .zip(memories)
        .zip(places);
    for (((held, known), memory), place) in parts {
        processes.push(alive(held, known, memory, place, &numbers)?);
    }
    for zombie in &container.zombies {
        processes.push(numbers.zombie(zombie.host_pid)?);
    }
    processes.sort_by_key(|process| process.member.pid);
    check_tree(&processes, refusals);

    let (mounts, trees) = if is_own("mnt") {
        let found = mnt::capture(init, &options.mounts, refusals)?;
        (Some(found.mounts), found.trees)
    } else {
        (None, Vec::new())
    };
    let uts = if is_own("uts") {
        Some(uts::capture(ns::open(init, ns::Kind::Uts)?.as_fd())?)
    } else {
        None
    };
    let cgroups = match &options.cgroups {
        Some(cgroups) if is_own("pid") => {
            let numbers: BTreeMap<i32, i32> = container
                .processes
                .iter()
                .map(|held| (held.host_pid, held.pid))
                .collect();
            cgroup::tree::capture(cgroups, &numbers)?
        }
        _ => Vec::new(),
    };
    let net = if is_own("net") {
        let outside = options.empty_net
            || namespaces
                .iter()
                .any(|one| one.kind == "net" && one.external.is_some());
        Some(net::capture(
            ns::open(init, ns::Kind::Net)?.as_fd(),
            outside,
            refusals,
        )?)
    } else {
        None
    };
    let ipc = if let Some(semaphores) = semaphores {
        let hosts: Vec<i32> = container
            .processes
            .iter()
            .map(|held| held.host_pid)
            .collect();
        let namespace = ns::open(init, ns::Kind::Ipc)?;
        let found = ipc::capture(namespace.as_fd(), &hosts, semaphores, refusals)?;
        for content in found.contents {
            pages.add(content.object, content.file, content.pages);
        }
        Some(found.record)
    } else {
        let hosts: Vec<i32> = container
            .processes
            .iter()
            .map(|held| held.host_pid)
            .collect();
        ipc::refuse_host_segments(&hosts, refusals)?;
        None
    };
    Ok(Collected {
        processes,
        files: captured.files,
        contents: captured.contents,
        sockets: captured_sockets.sockets,
        outside: captured_sockets.outside,
        memory: objects,
        pages,
        seccomp: filters.finish(),
        namespaces,
        uts,
        net,
        ipc,
        cgroups,
        time,
        mounts,
        trees,
    })
}

/// One batch for the process, with its first thread's questions, and one for every other thread.
fn ask(
    held: &mut Held,
    filters: &mut seccomp::Collector,
    refusals: &mut Refusals,
) -> Result<Answered> {
    let host_pid = held.host_pid;
    let object = held.object();
    let mut batch = Batch::new();
    let asked_memory = memory::ask(&mut batch);
    let asked_signals = signals::ask(&mut batch);
    let asked_timers = timers::ask(&mut batch, host_pid)?;
    let asked_attributes = attributes::ask(&mut batch);
    let mut asked_thread = threads::ask(&mut batch);
    let mut answers = held.run(0, &batch)?;
    let own: HashMap<i32, i32> = held
        .threads
        .iter()
        .map(|thread| (thread.stopped.host_tid(), thread.tid))
        .collect();
    let mut answered = Answered {
        brk: asked_memory.brk(&answers),
        handlers: asked_signals.handlers(&answers),
        timers: asked_timers.collect(
            &answers,
            |host_tid| own.get(&host_tid).copied(),
            || object.clone(),
            refusals,
        ),
        attributes: asked_attributes.collect(&answers, host_pid)?,
        subreaper: asked_attributes.subreaper(&answers),
        threads: Vec::with_capacity(held.threads.len()),
    };
    for index in 0..held.threads.len() {
        if index > 0 {
            let mut batch = Batch::new();
            asked_thread = threads::ask(&mut batch);
            answers = held.run(index, &batch)?;
        }
        let sleep = held.sleep(index)?;
        let thread = &held.threads[index];
        let mut record = asked_thread.collect(
            &answers,
            &thread.stopped,
            thread.tid,
            &thread.status,
            host_pid,
            sleep,
        )?;
        let who = format!("thread {} of {object}", thread.tid);
        asked_thread.refuse(&answers, &record, &who, refusals);
        record.seccomp = filters.thread(
            thread.stopped.host_tid(),
            &thread.status,
            || who.clone(),
            refusals,
        )?;
        answered.threads.push(record);
    }
    Ok(answered)
}

/// Notes which namespaces the caller of the restore will give.
fn mark_external(
    namespaces: &mut [Namespace],
    named: &[(String, u64, String)],
    refusals: &mut Refusals,
) {
    for (kind, inode, name) in named {
        let found = namespaces
            .iter_mut()
            .find(|one| one.kind == *kind && one.inode == *inode && !one.host);
        match found {
            Some(_) if kind != "net" => refusals.add(
                "E-NS-EXTERNAL",
                format!("{kind}[{inode}]:{name}"),
                "only a network namespace can be given to a restored container",
                "let the container have one of its own",
            ),
            Some(one) => one.external = Some(name.clone()),
            None => tracing::info!("the container is not in {kind}[{inode}] ({name})"),
        }
    }
}

fn host_tids(container: &Container) -> Vec<i32> {
    let zombies = container.zombies.iter().map(|zombie| zombie.host_pid);
    container
        .processes
        .iter()
        .flat_map(|held| &held.threads)
        .map(|thread| thread.stopped.host_tid())
        .chain(zombies)
        .collect()
}

/// Processes that share an address space or a working directory, and threads that do not.
fn refuse_sharing(container: &Container, refusals: &mut Refusals) -> Result<()> {
    use std::cmp::Ordering;
    let same = |kind, one, other| -> Result<bool> {
        Ok(kcmp::compare(kind, (one, 0), (other, 0))? == Ordering::Equal)
    };
    for held in &container.processes {
        for thread in held.threads.iter().skip(1) {
            for (kind, what) in [
                (kcmp::Kind::Files, "descriptors"),
                (kcmp::Kind::Fs, "working directory"),
            ] {
                if !same(kind, held.host_pid, thread.stopped.host_tid())? {
                    refusals.add(
                        "E-THREAD-UNSHARED",
                        format!("thread {} of {}", thread.tid, held.object()),
                        format!("it has a {what} of its own (unshare(2))"),
                        "let the program use processes for that",
                    );
                }
            }
        }
    }
    for (kind, code, what) in [
        (
            kcmp::Kind::Vm,
            "E-SHARED-MEMORY",
            "their address space (CLONE_VM, vfork)",
        ),
        (
            kcmp::Kind::Files,
            "E-SHARED-DESCRIPTORS",
            "their descriptors (CLONE_FILES)",
        ),
        (
            kcmp::Kind::Fs,
            "E-SHARED-DIRECTORY",
            "their working directory (CLONE_FS)",
        ),
    ] {
        let mut known: Vec<&Held> = Vec::new();
        for held in &container.processes {
            let mut failure = None;
            let place = known.binary_search_by(|other| {
                kcmp::compare(kind, (other.host_pid, 0), (held.host_pid, 0)).unwrap_or_else(
                    |error| {
                        failure = Some(error);
                        Ordering::Equal
                    },
                )
            });
            if let Some(error) = failure {
                return Err(error).doing(|| format!("comparing {}", held.object()));
            }
            match place {
                Ok(at) => refusals.add(
                    code,
                    format!("{} and {}", known[at].object(), held.object()),
                    format!("they share {what} without being threads of one process"),
                    "try again when the second has started its own program",
                ),
                Err(at) => known.insert(at, held),
            }
        }
    }
    Ok(())
}

fn collect_sockets(
    container: &Container,
    capturer: &mut Capturer<'_>,
    options: &Options,
    refusals: &mut Refusals,
) -> Result<sockets::Captured> {
    let init = container.init()?;
    let subject = container
        .subjects
        .iter()
        .find(|subject| subject.pid == init.pid)
        .ok_or_else(|| crate::error::Error::bug("the first process has no subject"))?;
    let net = ns::open(init.host_pid, ns::Kind::Net)?;
    let taken = capturer
        .sockets()
        .to_vec()
        .into_iter()
        .map(|socket| {
            Ok(sockets::Taken {
                id: socket.file.0.into(),
                fd: capturer.duplicate(socket.file)?,
                inode: socket.inode,
                who: socket.who,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut in_flight = Refusals::new();
    let captured = sockets::collect(
        sockets::Place {
            net: net.as_fd(),
            root_prefix: Path::new("/"),
        },
        taken,
        options.sockets,
        &mut |fd| {
            let id = capturer.adopt(fd, subject, "a file in flight", &mut in_flight)?;
            Ok(id.0.into())
        },
        refusals,
    );
    refusals.append(in_flight);
    captured.doing(|| "collecting sockets")
}

fn place(subject: &Subject, capturer: &mut Capturer<'_>, refusals: &mut Refusals) -> Result<Place> {
    let process = Process::new(subject.host_pid);
    let mut refer = |name: &str, what: &str| -> Result<_> {
        let path = process.path(name);
        let fd = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(&path)
            .doing(|| format!("opening {}", path.display()))?;
        let object = format!("{what} of pid {} ({})", subject.pid, subject.comm);
        capturer.refer(subject, fd.as_fd(), &process.link(name)?, &object, refusals)
    };
    let is_chrooted = process.link("root")? != b"/";
    Ok(Place {
        cwd: refer("cwd", "working directory")?,
        root: if is_chrooted {
            refer("root", "root directory")?
        } else {
            None
        },
        umask: process.status()?.umask.unwrap_or(0o022),
    })
}

/// Numbers of the host and of the container.
struct Numbers {
    /// They are in a PID namespace of their own: a number that none of them has is nobody's.
    own_namespace: bool,
    processes: HashMap<i32, i32>,
    groups: HashMap<i32, i32>,
}

fn last(numbers: &[i32]) -> i32 {
    numbers.last().copied().unwrap_or(0)
}

impl Numbers {
    fn new(container: &Container) -> Result<Self> {
        let mut numbers = Self {
            own_namespace: container.processes.iter().any(|held| held.pid == 1),
            processes: HashMap::new(),
            groups: HashMap::new(),
        };
        for held in &container.processes {
            numbers.processes.insert(held.host_pid, held.pid);
            numbers.add_group(&held.threads[0].status);
        }
        for zombie in &container.zombies {
            numbers.processes.insert(zombie.host_pid, zombie.pid);
            numbers.add_group(&Process::new(zombie.host_pid).status()?);
        }
        Ok(numbers)
    }

    fn add_group(&mut self, status: &Status) {
        if let Some(host) = status.ns_pgid.first() {
            self.groups.insert(*host, last(&status.ns_pgid));
        }
    }

    /// A session or a group: 0 when somebody outside leads it.
    fn inside(&self, number: i32) -> i32 {
        let is_inside = self.processes.values().any(|pid| *pid == number);
        // Led by nobody any more, it is its members' own.
        let is_nobodys = !Process::new(number).exists();
        if is_inside || self.own_namespace || is_nobodys {
            number
        } else {
            0
        }
    }

    fn member(&self, host_pid: i32, status: &Status) -> Result<Member> {
        let stat = Process::new(host_pid).stat()?;
        Ok(Member {
            pid: status.own_pid(),
            ppid: self.processes.get(&stat.ppid).copied().unwrap_or(0),
            pgid: self.inside(last(&status.ns_pgid)),
            sid: self.inside(last(&status.ns_sid)),
            exit_signal: stat.exit_signal,
            subreaper: false,
            zombie: None,
        })
    }

    fn zombie(&self, host_pid: i32) -> Result<Record> {
        let process = Process::new(host_pid);
        let status = process.status()?;
        let mut member = self.member(host_pid, &status)?;
        member.zombie = Some(process.stat()?.exit_code);
        Ok(Record {
            member,
            comm: status.name.as_slice().into(),
            stopped: None,
            alive: None,
        })
    }

    /// The terminal of a session, in the record of its leader.
    fn terminal(&self, host_pid: i32, member: &Member) -> Result<Option<Terminal>> {
        let stat = Process::new(host_pid).stat()?;
        Ok(stat
            .tty()
            .filter(|_| member.sid == member.pid)
            .map(|device| Terminal {
                device,
                foreground: self.groups.get(&stat.tpgid).copied().unwrap_or(0),
            }))
    }
}

fn alive(
    held: &Held,
    known: Answered,
    memory: Memory,
    place: Place,
    numbers: &Numbers,
) -> Result<Record> {
    let leader = &held.threads[0];
    let mut member = numbers.member(held.host_pid, &leader.status)?;
    member.subreaper = known.subreaper;
    let group_stop = held
        .threads
        .iter()
        .find_map(|thread| thread.stopped.group_stop());
    Ok(Record {
        comm: leader.status.name.as_slice().into(),
        stopped: group_stop,
        alive: Some(Alive {
            threads: known.threads,
            place,
            handlers: known.handlers,
            pending: signals::pending(held.host_pid, Queue::Process)?,
            timers: known.timers,
            limits: limits::collect(held.host_pid)?,
            attributes: known.attributes,
            terminal: numbers.terminal(held.host_pid, &member)?,
            memory,
        }),
        member,
    })
}

/// Sessions and groups whose leader lives outside of the tree.
fn refuse_outside(
    container: &Container,
    numbers: &Numbers,
    shell_job: bool,
    refusals: &mut Refusals,
) {
    if shell_job {
        return;
    }
    for held in &container.processes {
        let status = &held.threads[0].status;
        if numbers.inside(last(&status.ns_sid)) == 0 || numbers.inside(last(&status.ns_pgid)) == 0 {
            refusals.add(
                "E-SESSION-OUTSIDE",
                held.object(),
                "its session or process group is led by a process that is not taken along",
                "start the program with setsid, or allow it (criu: --shell-job)",
            );
        }
    }
}

/// A tree that could not be born again is refused now, not when it is too late.
fn check_tree(processes: &[Record], refusals: &mut Refusals) {
    let members: Vec<Member> = processes.iter().map(|one| one.member.clone()).collect();
    let taken = thread_numbers(processes);
    if let Err(error) = tree::births(&members, &taken, &|_, _| false) {
        refusals.add(
            "E-TREE",
            "the tree of processes",
            error.to_string(),
            "end the processes that are named",
        );
    }
}

/// Numbers of threads that are not first threads.
pub fn thread_numbers(processes: &[Record]) -> BTreeSet<i32> {
    processes
        .iter()
        .filter_map(|process| process.alive.as_ref())
        .flat_map(|alive| alive.threads.iter().skip(1))
        .map(|thread| thread.tid)
        .collect()
}

/// Numbers of processes to their records.
pub fn by_number(processes: &[Record]) -> BTreeMap<i32, &Record> {
    processes
        .iter()
        .map(|process| (process.member.pid, process))
        .collect()
}
