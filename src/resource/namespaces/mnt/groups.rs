//! Which mounts pass events on to which.

use crate::image::namespaces::mnt::{FileSystem, Group, Mounts};
use crate::proc::mountinfo::Mount;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Adds the groups to `record`, whose mounts are `found`, in the same order. What cannot be
/// reproduced is handed back: the position of a mount, and why.
pub(super) fn capture(
    record: &mut Mounts,
    found: &[&Mount],
    host: &[Mount],
) -> Vec<(usize, String)> {
    let outside: HashSet<u64> = host.iter().filter_map(|one| one.shared).collect();
    let inside: HashSet<u64> = found.iter().filter_map(|one| one.shared).collect();
    let mut groups = Groups {
        // Of peers, all have the same master.
        masters: found
            .iter()
            .filter_map(|one| Some((one.shared?, one.master?)))
            .collect(),
        is_outside: |group| outside.contains(&group) || !inside.contains(&group),
        numbers: HashMap::new(),
        made: Vec::new(),
    };
    let mut refused = Vec::new();
    let mut file_system_of: BTreeMap<u64, u32> = BTreeMap::new();
    for (at, one) in found.iter().enumerate() {
        let mount = &mut record.mounts[at];
        let file_system = mount.file_system;
        for group in [one.shared, one.master].into_iter().flatten() {
            if (groups.is_outside)(group) {
                let what = &record.file_systems[file_system as usize];
                if matches!(what, FileSystem::New { .. }) {
                    let reason = "it shares mount events with a mount outside of the container";
                    refused.push((at, reason.to_owned()));
                }
            } else if *file_system_of.entry(group).or_insert(file_system) != file_system {
                let reason = "it shares mount events with another place of the host's that the \
                              container has as well";
                refused.push((at, reason.to_owned()));
            }
        }
        match (one.shared, one.master) {
            (Some(group), _) => mount.group = Some(groups.number(group, file_system)),
            (None, Some(master)) => mount.master = Some(groups.number(master, file_system)),
            (None, None) => {}
        }
    }
    record.groups = groups.made;
    refused
}

struct Groups<F> {
    masters: HashMap<u64, u64>,
    is_outside: F,
    numbers: HashMap<(u64, u32), u32>,
    made: Vec<Group>,
}

impl<F: Fn(u64) -> bool> Groups<F> {
    /// A group is its members on one file system: on the others it is reached through the host.
    fn number(&mut self, group: u64, file_system: u32) -> u32 {
        if let Some(number) = self.numbers.get(&(group, file_system)) {
            return *number;
        }
        let outside = (self.is_outside)(group);
        // Whom a group of the host's gets events from is the host's affair.
        let master = self.masters.get(&group).copied().filter(|_| !outside);
        let master = master.map(|master| self.number(master, file_system));
        let number = u32::try_from(self.made.len()).unwrap_or(u32::MAX);
        self.made.push(Group {
            file_system,
            master,
            outside,
        });
        self.numbers.insert((group, file_system), number);
        number
    }
}
