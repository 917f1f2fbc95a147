//! What Linux does with parents, sessions and groups.

use super::{Step, contradiction};
use crate::error::Result;
use crate::image::tree::Member;
use std::collections::BTreeMap;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub subreaper: bool,
    pub zombie: bool,
}

/// All processes of a namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct Kernel(pub BTreeMap<i32, Model>);

/// A call that the kernel would refuse.
type Refused<T = ()> = Result<T, String>;

impl Kernel {
    fn get(&mut self, pid: i32) -> Refused<&mut Model> {
        self.0
            .get_mut(&pid)
            .ok_or_else(|| format!("there is no process {pid}"))
    }

    pub fn spawn(&mut self, pid: i32) -> Refused {
        let model = Model {
            ppid: 0,
            pgid: 0,
            sid: 0,
            subreaper: false,
            zombie: false,
        };
        self.insert(pid, model)
    }

    fn insert(&mut self, pid: i32, model: Model) -> Refused {
        let in_use = self.0.values().any(|one| one.pgid == pid || one.sid == pid);
        if in_use || self.0.insert(pid, model).is_some() {
            return Err(format!("number {pid} is taken"));
        }
        Ok(())
    }

    pub fn fork(&mut self, parent: i32, pid: i32) -> Refused {
        let mut model = self.get(parent)?.clone();
        model.ppid = parent;
        model.subreaper = false;
        self.insert(pid, model)
    }

    pub fn setsid(&mut self, pid: i32) -> Refused {
        if self.0.values().any(|one| one.pgid == pid) {
            return Err(format!("process {pid} leads a group already"));
        }
        let model = self.get(pid)?;
        (model.sid, model.pgid) = (pid, pid);
        Ok(())
    }

    pub fn can_join(&self, pid: i32, pgid: i32) -> bool {
        let Some(own) = self.0.get(&pid) else {
            return false;
        };
        let known = |one: &Model| one.pgid == pgid && one.sid == own.sid;
        own.sid != pid && (pgid == pid || self.0.values().any(known))
    }

    pub fn setpgid(&mut self, pid: i32, pgid: i32) -> Refused {
        if !self.can_join(pid, pgid) {
            return Err(format!("process {pid} may not join group {pgid}"));
        }
        self.get(pid)?.pgid = pgid;
        Ok(())
    }

    pub fn exit(&mut self, pid: i32) -> Refused {
        let mut adopter = self.get(pid)?.ppid;
        while adopter != 1 && adopter != 0 && !self.get(adopter)?.subreaper {
            adopter = self.get(adopter)?.ppid;
        }
        let adopter = if adopter == 0 { 1 } else { adopter };
        for model in self.0.values_mut().filter(|one| one.ppid == pid) {
            model.ppid = adopter;
        }
        self.get(pid)?.zombie = true;
        Ok(())
    }

    pub fn reap(&mut self, pid: i32) {
        self.0.remove(&pid);
    }

    fn step(&mut self, step: Step) -> Refused {
        match step {
            Step::Spawn { pid } => self.spawn(pid),
            Step::Fork { parent, pid, .. } => self.fork(parent, pid),
            Step::Session { pid } => self.setsid(pid),
            Step::Memory { pid } => self.get(pid).map(drop),
            Step::Group { pid, pgid } => self.setpgid(pid, pgid),
            Step::Reaper { pid, on } => {
                self.get(pid)?.subreaper = on;
                Ok(())
            }
            Step::Exit { pid, parent } => {
                if self.get(pid)?.ppid != parent {
                    return Err(format!("process {parent} cannot wait for {pid}"));
                }
                self.exit(pid)?;
                self.reap(pid);
                Ok(())
            }
        }
    }
}

/// Whether the steps lead to the members.
pub(super) fn verify(steps: &[Step], members: &[Member]) -> Result<()> {
    let mut kernel = Kernel::default();
    for step in steps {
        kernel
            .step(*step)
            .map_err(|why| contradiction(format!("{step:?}: {why}")))?;
    }
    for member in members {
        let found = kernel.0.remove(&member.pid);
        let right = found.as_ref().is_some_and(|one| {
            (one.ppid, one.pgid, one.sid) == (member.ppid, member.pgid, member.sid)
        });
        if !right {
            return Err(contradiction(format!(
                "process {} cannot be born as a child of {} in session {} and group {}",
                member.pid, member.ppid, member.sid, member.pgid
            )));
        }
    }
    match kernel.0.keys().next() {
        Some(pid) => Err(contradiction(format!("a process {pid} is left over"))),
        None => Ok(()),
    }
}
