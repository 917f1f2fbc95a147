//! Finding every process of a container, and holding all of their threads.
//!
//! The cgroup is frozen first, so that nobody forks while we look; but a process may be put into the
//! namespace from outside at any moment (`runc exec`), and processes may stand outside of the cgroup.
//! So: walk, seize and interrupt whoever is new, walk again, until a walk finds nobody new. Frozen by
//! v1, a task stops in ptrace only once it is thawed; it stops there at once, without an instruction of
//! its own, because the interrupt is pending.

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::process::Sleep;
use crate::proc::read::{Process, children, processes};
use crate::proc::small;
use crate::proc::status::{State, Status};
use crate::resource::cgroup::freezer::Freezer;
use crate::resource::files::Subject;
use crate::resource::threads;
use crate::sys::ptrace::{self, Event};
use crate::sys::{ns, nsfs, pidfd};
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::nook::{self, Foothold};
use crate::tracee::{self, SCRATCH_DATA, Scratch, Seized, Stopped};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// A thread that is held.
#[derive(Debug)]
pub struct Thread {
    /// Held in ptrace-stop.
    pub stopped: Stopped,
    /// Its own number.
    pub tid: i32,
    /// `/proc/PID/task/TID/status`, as it was found.
    pub status: Status,
}

/// A process that is held.
#[derive(Debug)]
pub struct Held {
    /// As this host numbers it.
    pub host_pid: i32,
    /// Its own number.
    pub pid: i32,
    /// Its name, for messages.
    pub comm: String,
    /// Its threads, the leader first, then ascending.
    pub threads: Vec<Thread>,
    scratch: Option<Scratch>,
}

/// A process that has ended and waits to be asked for.
#[derive(Debug)]
pub struct Zombie {
    /// As this host numbers it.
    pub host_pid: i32,
    /// Its own number.
    pub pid: i32,
}

/// All processes of a container, held. Dropping it lets them go.
#[derive(Debug, Default)]
pub struct Container {
    /// The topmost process, as this host numbers it.
    top: i32,
    /// What stands for each of them towards the rooms that look from outside.
    pub subjects: Vec<Subject>,
    /// Ascending by their own numbers, in the same order.
    pub processes: Vec<Held>,
    /// Likewise.
    pub zombies: Vec<Zombie>,
}

/// How long all threads have to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Which processes are the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of a PID namespace; its first process, as this host numbers it.
    Namespace(i32),
    /// A process and all of its descendants.
    Tree(i32),
}

impl Scope {
    /// The topmost process, as this host numbers it.
    pub fn top(self) -> i32 {
        match self {
            Scope::Namespace(host_pid) | Scope::Tree(host_pid) => host_pid,
        }
    }

    /// Those that are in it at this moment, as this host numbers them.
    pub(super) fn walk(self, refusals: &mut Refusals) -> Result<Vec<i32>> {
        match self {
            Scope::Namespace(init) => walk(init, refusals),
            Scope::Tree(top) => descend(top),
        }
    }
}

/// A process and its descendants, parents first.
fn descend(top: i32) -> Result<Vec<i32>> {
    let mut children = children()?;
    if !Process::new(top).exists() {
        return Err(gone(top));
    }
    let mut found = vec![top];
    let mut at = 0;
    while let Some(host_pid) = found.get(at) {
        found.extend(children.remove(host_pid).unwrap_or_default());
        at += 1;
    }
    let own = std::process::id().cast_signed();
    if found.contains(&own) {
        return Err(Error::coded(
            "E-SELF",
            Exit::Refused,
            format!("this process ({own}) is a descendant of process {top}"),
            "run ocimig from elsewhere",
        ));
    }
    Ok(found)
}

/// Numbers of the processes in the namespace of `init` (host), ascending. Processes in namespaces below
/// it are refused.
fn walk(init: i32, refusals: &mut Refusals) -> Result<Vec<i32>> {
    let inode_of = |host_pid: i32| {
        fs::metadata(format!("/proc/{host_pid}/ns/pid"))
            .ok()
            .map(|found| found.ino())
    };
    let own = inode_of(init).ok_or_else(|| gone(init))?;
    let mut below: HashMap<u64, bool> = HashMap::new();
    let mut found = Vec::new();
    for host_pid in processes()? {
        // One that is gone by now is nobody's.
        let Some(inode) = inode_of(host_pid) else {
            continue;
        };
        if inode == own {
            found.push(host_pid);
            continue;
        }
        let is_below = match below.get(&inode) {
            Some(known) => *known,
            None => {
                let is_below = is_below(host_pid, own);
                below.insert(inode, is_below);
                is_below
            }
        };
        if is_below {
            refusals.add(
                "E-PIDNS-NESTED",
                format!("process {host_pid} (host number)"),
                "it is in a PID namespace that was made inside the container",
                "end the nested container first, or checkpoint that one alone with --pid",
            );
        }
    }
    Ok(found)
}

fn gone(host_pid: i32) -> Error {
    Error::coded(
        "E-GONE",
        Exit::NotFound,
        format!("process {host_pid} is gone"),
        "start the container again",
    )
}

fn is_below(host_pid: i32, ancestor: u64) -> bool {
    let Ok(mut namespace) = ns::open(host_pid, ns::Kind::Pid) else {
        return false;
    };
    loop {
        // Our own namespace's parent cannot be asked for (EPERM): the walk ends there.
        let Ok(Some(parent)) = nsfs::parent(namespace.as_fd()) else {
            return false;
        };
        let inode = fs::File::from(match parent.try_clone() {
            Ok(fd) => fd,
            Err(_) => return false,
        })
        .metadata()
        .map(|found| found.ino());
        if inode.ok() == Some(ancestor) {
            return true;
        }
        namespace = parent;
    }
}

/// A process while it is being stopped.
struct Catch {
    pidfd: OwnedFd,
    seized: BTreeMap<i32, Seized>,
}

/// Seizes and stops every thread of every process in `scope`. `freezer`, if
/// there is one, is frozen already; it is thawed as soon as nobody can run any more.
pub fn hold(
    scope: Scope,
    mut freezer: Option<&mut Freezer>,
    refusals: &mut Refusals,
) -> Result<Container> {
    let mut caught: BTreeMap<i32, Catch> = BTreeMap::new();
    let mut zombies: BTreeSet<i32> = BTreeSet::new();
    let mut stopped: BTreeMap<i32, BTreeMap<i32, Stopped>> = BTreeMap::new();
    // Without a freezer threads go on until they are reached, and can make others meanwhile.
    loop {
        let mut new = false;
        for host_pid in scope.walk(refusals)? {
            let known = caught.contains_key(&host_pid);
            if !known && is_zombie(host_pid) {
                zombies.insert(host_pid);
                continue;
            }
            new |= seize_all(host_pid, &mut caught)?;
        }
        if freezer.is_none() {
            stop_all(&mut caught, &mut stopped)?;
        }
        if !new {
            break;
        }
    }
    crate::fault::point("seized")?;
    if let Some(freezer) = &mut freezer {
        freezer.let_trace()?;
    }
    stop_all(&mut caught, &mut stopped)?;
    let mut container = Container::default();
    container.top = scope.top();
    for (host_pid, threads) in stopped {
        let Some(catch) = caught.remove(&host_pid) else {
            continue;
        };
        let held = Held::new(host_pid, threads)?;
        container.subjects.push(Subject {
            host_pid,
            pid: held.pid,
            pidfd: catch.pidfd,
            comm: held.comm.clone(),
        });
        container.processes.push(held);
    }
    for host_pid in zombies {
        let pid = Process::new(host_pid).status()?.own_pid();
        container.zombies.push(Zombie { host_pid, pid });
    }
    container.subjects.sort_by_key(|subject| subject.pid);
    container.processes.sort_by_key(|held| held.pid);
    container.zombies.sort_by_key(|zombie| zombie.pid);
    Ok(container)
}

fn is_zombie(host_pid: i32) -> bool {
    Process::new(host_pid).stat().is_ok_and(|stat| {
        matches!(stat.state, State::Zombie | State::Dead) && stat.num_threads <= 1
    })
}

/// Seizes the threads that are not yet; whether there were any.
fn seize_all(host_pid: i32, caught: &mut BTreeMap<i32, Catch>) -> Result<bool> {
    let process = Process::new(host_pid);
    let Ok(threads) = process.threads() else {
        // Ended meanwhile: the next walk sees what became of it.
        return Ok(true);
    };
    let catch = match caught.entry(host_pid) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(place) => {
            let Ok(pidfd) = pidfd::open(host_pid) else {
                return Ok(true);
            };
            place.insert(Catch {
                pidfd,
                seized: BTreeMap::new(),
            })
        }
    };
    let mut new = false;
    for host_tid in threads {
        if catch.seized.contains_key(&host_tid) {
            continue;
        }
        match tracee::seize(host_tid, true) {
            Ok(seized) => {
                new = true;
                catch.seized.insert(host_tid, seized);
            }
            Err(error) if error.is_gone() => new = true,
            Err(error) if error.errno() == Some(nix::errno::Errno::EPERM) => {
                return Err(traced_by_another(host_tid, error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(new)
}

fn traced_by_another(host_tid: i32, error: Error) -> Error {
    let tracer = small_tracer(host_tid);
    match tracer {
        Some(tracer) if tracer != 0 => Error::coded(
            "E-TRACED",
            Exit::Refused,
            format!("thread {host_tid} is traced by process {tracer}, a debugger perhaps"),
            "detach that tracer first",
        ),
        _ => error,
    }
}

fn small_tracer(host_tid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{host_tid}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    small::parse_number(line.trim()).ok()
}

/// Waits for all that were seized. Threads that end instead are forgotten.
fn stop_all(
    caught: &mut BTreeMap<i32, Catch>,
    stopped: &mut BTreeMap<i32, BTreeMap<i32, Stopped>>,
) -> Result<()> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    for (host_pid, catch) in caught {
        let done = stopped.entry(*host_pid).or_default();
        // The keys stay, so that no thread is seized twice.
        for (host_tid, seized) in &mut catch.seized {
            if done.contains_key(host_tid) {
                continue;
            }
            match seized.wait(deadline) {
                Ok(thread) => {
                    done.insert(*host_tid, thread);
                }
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
    }
    stopped.retain(|_, threads| !threads.is_empty());
    Ok(())
}

impl Held {
    fn new(host_pid: i32, threads: BTreeMap<i32, Stopped>) -> Result<Self> {
        let process = Process::new(host_pid);
        let mut found = Vec::with_capacity(threads.len());
        for (host_tid, stopped) in threads {
            let status = process.thread(host_tid).status()?;
            found.push(Thread {
                tid: status.own_pid(),
                stopped,
                status,
            });
        }
        found.sort_by_key(|thread| (thread.stopped.host_tid() != host_pid, thread.tid));
        let leader = found.first().ok_or_else(|| gone(host_pid))?;
        if leader.stopped.host_tid() != host_pid {
            return Err(Error::coded(
                "E-LEADER-ENDED",
                Exit::Refused,
                format!("the first thread of process {host_pid} has ended while others of it run"),
                "end that process, or take the checkpoint before its first thread ends",
            ));
        }
        Ok(Self {
            host_pid,
            pid: leader.tid,
            comm: String::from_utf8_lossy(&leader.status.name).into_owned(),
            threads: found,
            scratch: None,
        })
    }

    /// Runs a batch in thread number `index`. The first one puts our pages into the process.
    pub fn run(&mut self, index: usize, batch: &Batch) -> Result<Answers> {
        if self.scratch.is_none() {
            self.enter()?;
        }
        let scratch = self
            .scratch
            .as_ref()
            .ok_or_else(|| Error::bug("no scratch area"))?;
        self.threads[index]
            .stopped
            .run(scratch, batch)
            .doing(|| format!("asking pid {} ({})", self.pid, self.comm))
    }

    fn enter(&mut self) -> Result<()> {
        let host_pid = self.host_pid;
        let object = self.object();
        let tids = self
            .threads
            .iter()
            .map(|thread| (thread.stopped.host_tid(), thread.tid))
            .collect();
        let areas = Process::new(host_pid).maps()?;
        let Some(nook) = nook::find(host_pid, &areas) else {
            return Err(Error::coded(
                "E-NO-NOOK",
                Exit::Refused,
                format!("{object} has no room at the end of any of its code"),
                "such a process cannot be asked anything without a risk for it",
            ));
        };
        let leader = &mut self.threads[0];
        let status = &leader.status;
        let home = tracee::home_signal(
            status.signal_caught,
            status.signal_pending | status.signal_shared_pending,
        );
        let scratch = Scratch::map(
            &mut leader.stopped,
            self.pid,
            tids,
            Foothold::Nook(nook),
            home,
            None,
            SCRATCH_DATA,
        )
        .doing(|| format!("entering {object}"))?;
        self.scratch = Some(scratch);
        Ok(())
    }

    /// `pid 7 (nginx)`
    pub fn object(&self) -> String {
        format!("pid {} ({})", self.pid, self.comm)
    }

    /// What is left of the sleep of thread number `index`, whose questions have been asked.
    pub fn sleep(&mut self, index: usize) -> Result<Option<Sleep>> {
        let scratch = self
            .scratch
            .as_ref()
            .ok_or_else(|| Error::bug("no scratch area"))?;
        threads::sleep(&mut self.threads[index].stopped, scratch, self.host_pid)
            .doing(|| format!("asking pid {} ({})", self.pid, self.comm))
    }

    /// Takes our pages out again. Whoever is in them is put back first: should this process be killed
    /// now or later, no thread may go on in pages that are gone
    /// (`nothing_lost::killed_at_any_point_the_container_goes_on`).
    pub fn leave(&mut self) -> Result<()> {
        let Some(mut scratch) = self.scratch.take() else {
            return Ok(());
        };
        for thread in &self.threads {
            thread.stopped.put_back()?;
        }
        scratch.unmap(&mut self.threads[0].stopped)
    }
}

impl Container {
    /// The first process: that of the namespace, or the topmost of the tree.
    pub fn init(&self) -> Result<&Held> {
        self.processes
            .iter()
            .find(|held| held.host_pid == self.top)
            .ok_or_else(|| {
                Error::coded(
                    "E-NO-INIT",
                    Exit::NotFound,
                    "the container's first process has ended",
                    "start the container again",
                )
            })
    }

    /// Takes our pages out of every process. Nobody runs yet.
    pub fn leave(&mut self) -> Result<()> {
        let mut result = Ok(());
        for held in &mut self.processes {
            result = first(result, held.leave());
        }
        result
    }

    /// Lets every thread go on, as if nothing had been. What fails is told, the others go all the same.
    pub fn release(mut self) -> Result<()> {
        let left = self.leave();
        self.let_go(left)
    }

    fn let_go(&mut self, mut result: Result<()>) -> Result<()> {
        for held in std::mem::take(&mut self.processes) {
            for thread in held.threads {
                let released = match thread.stopped.release() {
                    // Killed meanwhile: there is nobody to let go.
                    Err(error) if error.is_gone() => Ok(()),
                    other => other,
                };
                result = first(result, released);
            }
        }
        result
    }

    /// Kills every process. They are gone when this returns.
    pub fn kill(mut self) -> Result<()> {
        for subject in &self.subjects {
            pidfd::send_signal(subject.pidfd.as_fd(), libc::SIGKILL)
                .doing(|| format!("killing pid {}", subject.pid))?;
        }
        let mut threads: BTreeSet<i32> = std::mem::take(&mut self.processes)
            .iter()
            .flat_map(|held| &held.threads)
            .map(|thread| thread.stopped.host_tid())
            .collect();
        // Not one after the other: the first process ends only once all others are reaped, and the
        // first to be told of a traced process's end is its tracer.
        while !threads.is_empty() {
            match ptrace::wait(-1, true) {
                Ok(Some((host_tid, Event::Gone(_)))) => {
                    threads.remove(&host_tid);
                }
                Ok(_) => {}
                Err(nix::errno::Errno::ECHILD) => break,
                Err(errno) => return Err(errno).doing(|| "waiting for killed processes"),
            }
        }
        Ok(())
    }
}

fn first(result: Result<()>, other: Result<()>) -> Result<()> {
    match (result, other) {
        (Ok(()), other) => other,
        (Err(error), other) => Err(error.and_cleanup(other)),
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.processes.is_empty() {
            let left = self.leave();
            if let Err(error) = self.let_go(left) {
                tracing::warn!("letting processes go: {error}");
            }
        }
    }
}
