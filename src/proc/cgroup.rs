//! `/proc/PID/cgroup`: where a process is in each hierarchy.

use super::text::{decimal, lines, malformed};
use crate::error::Result;

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Number of the hierarchy; 0 for version 2.
    pub hierarchy: u32,
    /// Controllers of a version 1 hierarchy, `name=systemd` included; empty for version 2.
    pub controllers: Vec<String>,
    /// The path below the root of the reader's cgroup namespace, ` (deleted)` included; begins with
    /// `/..` when outside of it.
    pub path: Vec<u8>,
}

impl Membership {
    /// Whether this is the version 2 hierarchy.
    pub fn is_v2(&self) -> bool {
        self.hierarchy == 0 && self.controllers.is_empty()
    }

    /// Whether `controller` (or `name=…`) belongs to it.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }
}

/// Parses a whole cgroup file.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Vec<Membership>> {
    lines(text.as_ref())
        .map(|line| parse_line(line).ok_or_else(|| malformed("a line of cgroup", line)))
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Membership> {
    let mut fields = line.splitn(3, |&byte| byte == b':');
    let hierarchy = decimal(fields.next()?)?;
    let controllers = String::from_utf8_lossy(fields.next()?)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    let path = fields.next()?.to_vec();
    Some(Membership {
        hierarchy,
        controllers,
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let all = parse(
            "\
9:name=systemd:/a
4:cpu,cpuacct:/x:y/z
0::/machine.slice/b (deleted)
",
        )
        .unwrap();
        assert!(all[0].has("name=systemd") && !all[0].is_v2());
        assert!(all[1].has("cpuacct"));
        assert_eq!(all[1].path, b"/x:y/z");
        assert!(all[2].is_v2());
        assert_eq!(all[2].path, b"/machine.slice/b (deleted)");
    }

    #[test]
    fn garbage_is_an_error() {
        for text in ["x", "1:a", "x:a:/"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
