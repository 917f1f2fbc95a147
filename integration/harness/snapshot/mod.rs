//! The outside judge: everything that /proc shows of a container, as comparable text.
//!
//! A snapshot is a flat list of `key → value`. What must differ between a container and its
//! restored self (host pids, inode numbers, mount and namespace ids, device numbers) is left out
//! or replaced by what stays: the pid inside, the order of first appearance.

mod fds;
mod namespaces;
mod processes;

use super::container::members;
use super::tools::read;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// See the module documentation.
pub struct Snapshot {
    facts: BTreeMap<String, String>,
}

impl Snapshot {
    /// Of the container with the first process `host_pid`, which its runtime calls, or called, by one of `ids`.
    pub fn take(host_pid: i32, ids: Vec<String>) -> Self {
        let mut scribe = Scribe::new(host_pid, ids);
        namespaces::write(&mut scribe, host_pid);
        for pid in members(host_pid) {
            processes::write(&mut scribe, pid);
        }
        Self {
            facts: scribe.facts,
        }
    }

    /// What differs in `after`, one line each; empty when nothing does.
    pub fn diff(&self, after: &Self) -> String {
        let mut text = String::new();
        for (key, value) in &self.facts {
            match after.facts.get(key) {
                None => writeln!(text, "- {key} = {value}").unwrap(),
                Some(other) if other != value => {
                    writeln!(text, "! {key} = {value}  →  {other}").unwrap();
                }
                Some(_) => {}
            }
        }
        for (key, value) in &after.facts {
            if !self.facts.contains_key(key) {
                writeln!(text, "+ {key} = {value}").unwrap();
            }
        }
        text
    }

    /// Panics, with what differs, unless `after` shows the same.
    pub fn assert_same(&self, after: &Self) {
        let diff = self.diff(after);
        assert!(
            diff.is_empty(),
            "what is visible from outside differs:\n{diff}"
        );
    }

    /// All values whose key matches `predicate`.
    pub fn values(&self, predicate: impl Fn(&str) -> bool) -> Vec<&str> {
        let matching = self.facts.iter().filter(|(key, _)| predicate(key));
        matching.map(|(_, value)| value.as_str()).collect()
    }
}

/// Where the facts are gathered, and how host numbers become names that last.
struct Scribe {
    facts: BTreeMap<String, String>,
    ids: Vec<String>,
    /// Host pid → pid inside.
    pids: BTreeMap<i32, i32>,
    /// Kind and number (inode, namespace, peer group) → place in order of appearance.
    names: BTreeMap<String, String>,
    counts: BTreeMap<String, u32>,
}

impl Scribe {
    fn new(host_pid: i32, mut ids: Vec<String>) -> Self {
        // One may begin another.
        ids.sort_by_key(|id| std::cmp::Reverse(id.len()));
        let pids = members(host_pid)
            .into_iter()
            .filter_map(|pid| Some((pid, inner_pid(pid)?)))
            .collect();
        Self {
            facts: BTreeMap::new(),
            ids,
            pids,
            names: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    fn put(&mut self, key: impl Into<String>, value: impl Into<String>) {
        let mut value = value.into().trim().to_owned();
        for id in &self.ids {
            value = value.replace(id, "ID");
        }
        self.facts.insert(key.into(), value);
    }

    /// The pid inside of a host pid; 0 for one that is not of the container.
    fn pid(&self, host_pid: i32) -> i32 {
        self.pids.get(&host_pid).copied().unwrap_or(0)
    }

    /// A lasting name for something that the kernel numbers: `pipe#1`.
    fn name(&mut self, kind: &str, number: &str) -> String {
        let key = format!("{kind} {number}");
        if let Some(name) = self.names.get(&key) {
            return name.clone();
        }
        let count = self.counts.entry(kind.to_owned()).or_default();
        *count += 1;
        let name = format!("{kind}#{count}");
        self.names.insert(key, name.clone());
        name
    }
}

/// The innermost number in NSpid.
fn inner_pid(host_pid: i32) -> Option<i32> {
    let status = read(format!("/proc/{host_pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

/// `name:[number]` → both.
fn split_link(link: &str) -> Option<(&str, &str)> {
    let (kind, rest) = link.split_once(":[")?;
    Some((kind, rest.strip_suffix(']')?))
}
