//! Mounts as a tree. The order of mountinfo says nothing; what can be told from it is what lies on
//! what, and what hides what.

use crate::proc::mountinfo::Mount;
use std::collections::{HashMap, HashSet};

/// Positions in `mounts`: the root first, parents before their children. Of two on one parent the one
/// with the longer path comes first: had the other one, if that path leads through it, been there
/// already, it would lie on that.
pub(super) fn order(mounts: &[Mount]) -> Vec<usize> {
    let children = children(mounts);
    let mut order = Vec::with_capacity(mounts.len());
    let mut pending: Vec<usize> = root(mounts).into_iter().collect();
    while let Some(at) = pending.pop() {
        order.push(at);
        let mut below = children.get(&mounts[at].id).cloned().unwrap_or_default();
        below.sort_by_key(|&child| {
            let point = &mounts[child].mount_point;
            (point.len(), std::cmp::Reverse(point.clone()))
        });
        // The last is the next.
        pending.extend(below);
    }
    order
}

/// The position of the one that lies on none of the others.
pub(super) fn root(mounts: &[Mount]) -> Option<usize> {
    let known: HashSet<u64> = mounts.iter().map(|one| one.id).collect();
    mounts
        .iter()
        .position(|one| one.parent == one.id || !known.contains(&one.parent))
}

/// Positions by the id of what they lie on.
pub(super) fn children(mounts: &[Mount]) -> HashMap<u64, Vec<usize>> {
    let mut children: HashMap<u64, Vec<usize>> = HashMap::new();
    for (at, mount) in mounts.iter().enumerate() {
        if mount.parent != mount.id {
            children.entry(mount.parent).or_default().push(at);
        }
    }
    children
}

/// What of `path` lies below `top`, without a slash in front; empty when they are the same.
pub(super) fn below<'p>(path: &'p [u8], top: &[u8]) -> Option<&'p [u8]> {
    let top = top.strip_suffix(b"/").unwrap_or(top);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let rest = path.strip_prefix(top)?;
    match rest.first() {
        None => Some(rest),
        Some(b'/') => Some(&rest[1..]),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::mountinfo::parse;

    #[test]
    fn what_is_hidden_comes_before_what_hides_it() {
        let mounts = parse(
            "\
7 5 0:3 / /a rw - tmpfs hides rw
8 7 0:4 / /a/b/c rw - tmpfs late rw
6 5 0:2 / /a/b rw - tmpfs hidden rw
5 1 0:1 / / rw - ext4 root rw
9 6 0:5 / /a/b rw - tmpfs over rw
",
        )
        .unwrap();
        let names: Vec<_> = order(&mounts)
            .into_iter()
            .map(|at| String::from_utf8_lossy(&mounts[at].source).into_owned())
            .collect();
        assert_eq!(names, ["root", "hidden", "over", "hides", "late"]);
    }

    #[test]
    fn a_path_is_below_another_only_at_a_slash() {
        assert_eq!(below(b"/a/b", b"/a"), Some(&b"b"[..]));
        assert_eq!(below(b"/a", b"/"), Some(&b"a"[..]));
        assert_eq!(below(b"/a", b"/a"), Some(&b""[..]));
        assert_eq!(below(b"/", b"/"), Some(&b""[..]));
        assert_eq!(below(b"/ab", b"/a"), None);
        assert_eq!(below(b"/", b"/a"), None);
    }
}
