//! Parents, sessions and process groups: in which order processes have to be born so that each gets the
//! parent, the session and the group that it had.
//!
//! What Linux allows: a process is born into the session and the group of its parent. It can only leave a
//! session for one of its own, and only join groups of its session. When a parent ends, its children are
//! adopted by the nearest ancestor that is a subreaper, else by the first process. So
//!
//! - a child that is in another session than its parent was born before the parent made its own, or it
//!   is an orphan: born in its session by somebody else, who has ended;
//! - a session or group whose leader is gone needs a stand-in with the leader's number that ends when
//!   all its members have been born or have joined.
//!
//! [`births`] is pure: records in, steps out. Every plan is first carried out on a model of the kernel;
//! one that does not lead to what is wanted is an error. The same model makes random histories for the test.

use crate::error::{Error, Exit, Result};
use crate::image::tree::Member;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The conductor makes a process: the first, or one that was put into the namespace.
    Spawn {
        /// Its number.
        pid: i32,
    },
    /// A process makes a child.
    Fork {
        /// Who.
        parent: i32,
        /// The child's number.
        pid: i32,
        /// What `parent` is sent at its end; 0 for stand-ins.
        exit_signal: i32,
    },
    /// setsid(2)
    Session {
        /// By whom.
        pid: i32,
    },
    /// Its address space is mapped and filled. Children born later share its pages.
    Memory {
        /// Whose.
        pid: i32,
    },
    /// setpgid(2), by the process itself.
    Group {
        /// By whom.
        pid: i32,
        /// The group to join, or its own number.
        pgid: i32,
    },
    /// PR_SET_CHILD_SUBREAPER, for as long as an adoption needs it.
    Reaper {
        /// Whose.
        pid: i32,
        /// On or off.
        on: bool,
    },
    /// A stand-in ends, and its parent asks for its status.
    Exit {
        /// The stand-in.
        pid: i32,
        /// Its parent.
        parent: i32,
    },
}

/// The order of births. `inherits` says whether a child (second) shares so many pages with its parent
/// (first) that it has to be born after the parent's memory is filled. `taken` are numbers that belong
/// to threads.
///
/// E-TREE when the records contradict each other, or no order of births leads to them.
pub fn births(
    members: &[Member],
    taken: &BTreeSet<i32>,
    inherits: &dyn Fn(i32, i32) -> bool,
) -> Result<Vec<Step>> {
    let mut planner = Planner::new(members, taken, inherits)?;
    for member in members.iter().filter(|member| member.ppid == 0) {
        planner.steps.push(Step::Spawn { pid: member.pid });
        planner.born.insert(member.pid, 0);
        planner.visit(member.pid);
    }
    planner.adopt_orphans()?;
    planner.groups()?;
    planner.leave();
    model::verify(&planner.steps, members)?;
    Ok(planner.steps)
}

fn contradiction(what: String) -> Error {
    Error::coded(
        "E-TREE",
        Exit::Refused,
        what,
        "such a tree of processes cannot be made again",
    )
}

struct Planner<'a> {
    members: BTreeMap<i32, &'a Member>,
    children: BTreeMap<i32, Vec<i32>>,
    inherits: &'a dyn Fn(i32, i32) -> bool,
    /// The session that a process must be born into, where that matters.
    wanted: HashMap<i32, Option<i32>>,
    /// Who is born, and into which session.
    born: HashMap<i32, i32>,
    orphans: Vec<i32>,
    steps: Vec<Step>,
    /// Stand-ins that have not ended: number, parent, who adopts their children.
    standing: Vec<(i32, i32, Option<i32>)>,
    used: BTreeSet<i32>,
    next_free: i32,
}

impl<'a> Planner<'a> {
    fn new(
        members: &'a [Member],
        taken: &BTreeSet<i32>,
        inherits: &'a dyn Fn(i32, i32) -> bool,
    ) -> Result<Self> {
        let mut by_pid = BTreeMap::new();
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        let mut used = taken.clone();
        for member in members {
            if member.pid <= 0 || by_pid.insert(member.pid, member).is_some() {
                return Err(contradiction(format!(
                    "there are two processes {}",
                    member.pid
                )));
            }
            used.extend([member.pid, member.pgid, member.sid]);
            children.entry(member.ppid).or_default().push(member.pid);
        }
        let lost = members
            .iter()
            .find(|one| one.ppid != 0 && !by_pid.contains_key(&one.ppid));
        if let Some(lost) = lost {
            return Err(contradiction(format!(
                "process {} has no parent {}",
                lost.pid, lost.ppid
            )));
        }
        let mut planner = Self {
            members: by_pid,
            children,
            inherits,
            wanted: HashMap::new(),
            born: HashMap::new(),
            orphans: Vec::new(),
            steps: Vec::new(),
            standing: Vec::new(),
            used,
            next_free: 2,
        };
        planner.want()?;
        Ok(planner)
    }

    fn children_of(&self, pid: i32) -> &[i32] {
        self.children.get(&pid).map_or(&[], Vec::as_slice)
    }

    fn leads(&self, pid: i32) -> bool {
        self.members.get(&pid).is_some_and(|one| one.sid == pid)
    }

    fn sid(&self, pid: i32) -> i32 {
        self.members.get(&pid).map_or(0, |one| one.sid)
    }

    fn adopts(&self, pid: i32) -> bool {
        pid == 1 || self.members.get(&pid).is_some_and(|one| one.subreaper)
    }

    /// Which session each must be born into: its own, unless it leads one; a leader's is that of the
    /// children that it had before. From the leaves up.
    fn want(&mut self) -> Result<()> {
        let mut order = self.children_of(0).to_vec();
        let mut at = 0;
        while let Some(&pid) = order.get(at) {
            order.extend_from_slice(self.children_of(pid));
            at += 1;
        }
        if order.len() != self.members.len() {
            return Err(contradiction("the processes are no tree".to_owned()));
        }
        for pid in order.into_iter().rev() {
            let wanted = if !self.leads(pid) {
                Some(self.sid(pid))
            } else {
                // An adopted child says nothing of where its parent was born.
                self.children_of(pid)
                    .iter()
                    .filter_map(|child| self.wanted.get(child).copied().flatten())
                    .find(|session| *session != pid && !self.may_adopt_from(pid, *session))
            };
            self.wanted.insert(pid, wanted);
        }
        Ok(())
    }

    /// Whether an orphan of that session can have come to `pid`: its leader is gone, or a descendant.
    fn may_adopt_from(&self, pid: i32, session: i32) -> bool {
        if !self.adopts(pid) {
            return false;
        }
        let mut at = match self.members.get(&session) {
            None => return true,
            Some(leader) => leader.ppid,
        };
        while at != 0 && at != pid {
            at = self.members.get(&at).map_or(0, |one| one.ppid);
        }
        at == pid
    }

    fn depth(&self, pid: i32) -> usize {
        let mut depth = 0;
        let mut at = pid;
        while let Some(member) = self.members.get(&at) {
            depth += 1;
            at = member.ppid;
        }
        depth
    }

    fn fork(&mut self, parent: i32, pid: i32, session: i32) {
        let exit_signal = self.members.get(&pid).map_or(0, |one| one.exit_signal);
        self.steps.push(Step::Fork {
            parent,
            pid,
            exit_signal,
        });
        self.born.insert(pid, session);
    }

    /// A process that is born: its session, its memory, its children and theirs.
    fn visit(&mut self, first: i32) {
        let mut rest = vec![first];
        while let Some(pid) = rest.pop() {
            let own = self.sid(pid);
            let birth = self.born.get(&pid).copied().unwrap_or(0);
            let mut before = Vec::new();
            let mut after = Vec::new();
            for child in self.children_of(pid).to_vec() {
                match self.wanted.get(&child).copied().flatten() {
                    None => after.push(child),
                    Some(session) if session == own => after.push(child),
                    Some(session) if self.leads(pid) && session == birth => before.push(child),
                    Some(_) => self.orphans.push(child),
                }
            }
            let (early, early_heirs) = self.split(pid, before);
            let (late, late_heirs) = self.split(pid, after);
            let mut filled = self
                .members
                .get(&pid)
                .is_none_or(|one| one.zombie.is_some());
            let mut fill = |planner: &mut Self| {
                if !std::mem::replace(&mut filled, true) {
                    planner.steps.push(Step::Memory { pid });
                }
            };
            for child in early {
                self.fork(pid, child, birth);
                rest.push(child);
            }
            if !early_heirs.is_empty() {
                fill(self);
            }
            for child in early_heirs {
                self.fork(pid, child, birth);
                rest.push(child);
            }
            if self.leads(pid) {
                self.steps.push(Step::Session { pid });
            }
            for child in late {
                self.fork(pid, child, own);
                rest.push(child);
            }
            fill(self);
            for child in late_heirs {
                self.fork(pid, child, own);
                rest.push(child);
            }
        }
    }

    /// Those that share nothing, and those that do.
    fn split(&self, parent: i32, children: Vec<i32>) -> (Vec<i32>, Vec<i32>) {
        children
            .into_iter()
            .partition(|child| !(self.inherits)(parent, *child))
    }

    /// Orphans are born in their session by somebody who then ends.
    fn adopt_orphans(&mut self) -> Result<()> {
        while !self.orphans.is_empty() {
            let waiting = std::mem::take(&mut self.orphans);
            let count = waiting.len();
            let mut later = Vec::new();
            let mut progress = false;
            let mut deepest: HashMap<i32, (usize, i32)> = HashMap::new();
            for pid in &waiting {
                let session = self.wanted.get(pid).copied().flatten().unwrap_or(0);
                let parent = self.members.get(pid).map_or(0, |one| one.ppid);
                let candidate = (self.depth(parent), parent);
                let known = deepest.entry(session).or_insert(candidate);
                *known = candidate.max(*known);
            }
            for pid in waiting {
                let session = self.wanted.get(&pid).copied().flatten().unwrap_or(0);
                let parent = self.members.get(&pid).map_or(0, |one| one.ppid);
                let stand_in = self.standing.iter().find(|one| one.0 == session);
                if let Some(&(_, _, adopter)) = stand_in {
                    if adopter == Some(parent) {
                        self.fork(session, pid, session);
                        self.visit(pid);
                    } else {
                        self.adopt_through(session, pid, parent);
                    }
                } else if self.born.contains_key(&session) {
                    self.adopt_through(session, pid, parent);
                } else if self.members.contains_key(&session) {
                    later.push(pid);
                } else {
                    // Below the deepest of those that have adopted from this session, so that all of
                    // them are its ancestors.
                    let adopter = deepest.get(&session).map_or(parent, |one| one.1);
                    self.fork(adopter, session, 0);
                    self.steps.push(Step::Session { pid: session });
                    self.standing.push((session, adopter, Some(adopter)));
                    later.push(pid);
                    progress = true;
                }
            }
            if later.len() == count && !progress && self.orphans.is_empty() {
                return Ok(());
            }
            self.orphans.append(&mut later);
        }
        Ok(())
    }

    /// A member of a session whose leader lives: born by a child of the leader.
    fn adopt_through(&mut self, leader: i32, pid: i32, parent: i32) {
        let between = self.free_number();
        self.fork(leader, between, leader);
        self.fork(between, pid, leader);
        self.end(between, leader, Some(parent));
        self.visit(pid);
    }

    fn end(&mut self, pid: i32, parent: i32, adopter: Option<i32>) {
        let adopter = adopter.filter(|adopter| *adopter != 1);
        if let Some(pid) = adopter {
            self.steps.push(Step::Reaper { pid, on: true });
        }
        self.steps.push(Step::Exit { pid, parent });
        if let Some(pid) = adopter {
            self.steps.push(Step::Reaper { pid, on: false });
        }
    }

    fn free_number(&mut self) -> i32 {
        while self.used.contains(&self.next_free) {
            self.next_free += 1;
        }
        self.next_free
    }

    /// Every process group: its leader first, then the others.
    fn groups(&mut self) -> Result<()> {
        let mut groups: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for member in self.members.values() {
            if member.pgid != 0 && member.sid != member.pid {
                groups.entry(member.pgid).or_default().push(member.pid);
            }
        }
        let mut moves = Vec::new();
        for (pgid, members) in groups {
            let session = self.sid(members[0]);
            if self.members.contains_key(&pgid) {
                // A leader may have gone to another group, and goes there again in the end.
                if !self.leads(pgid) {
                    self.steps.push(Step::Group { pid: pgid, pgid });
                }
            } else if !self.standing.iter().any(|one| one.0 == pgid) {
                // Born by a member of the session; a session's stand-in serves as well.
                let parent = members[0];
                self.fork(parent, pgid, session);
                self.standing.push((pgid, parent, None));
                self.steps.push(Step::Group { pid: pgid, pgid });
            }
            moves.extend(
                members
                    .into_iter()
                    .filter(|pid| *pid != pgid)
                    .map(|pid| (pid, pgid)),
            );
        }
        let made: BTreeSet<i32> = moves.iter().map(|(_, pgid)| *pgid).collect();
        let (last, first): (Vec<_>, Vec<_>) =
            moves.into_iter().partition(|(pid, _)| made.contains(pid));
        for (pid, pgid) in first.into_iter().chain(last) {
            self.steps.push(Step::Group { pid, pgid });
        }
        Ok(())
    }

    /// The stand-ins end, the youngest first: one may be another's child.
    fn leave(&mut self) {
        while let Some((pid, parent, adopter)) = self.standing.pop() {
            self.end(pid, parent, adopter);
        }
    }
}

mod model;
#[cfg(test)]
mod tests;
