//! `/proc/PID/mountinfo`: the mounts of a mount namespace that its root reaches.

use super::maps::Device;
use super::text::{decimal, lines, malformed, unescape_octal};
use crate::error::Result;

/// One mount. Paths are unescaped bytes. The order of the file is not the order of mounting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its id, unique among mounts that live now.
    pub id: u64,
    /// The mount it sits on; itself or an id that is not in the list for the root.
    pub parent: u64,
    /// Device number of its file system (st_dev).
    pub device: Device,
    /// Which directory or file of the file system is mounted; `//deleted` at the end when it is gone,
    /// `net:[4026531840]` and the like for namespaces.
    pub root: Vec<u8>,
    /// Where, from the reader's root.
    pub mount_point: Vec<u8>,
    /// Per-mount options: `rw,nosuid,relatime`.
    pub options: Vec<u8>,
    /// Peer group (`shared:N`).
    pub shared: Option<u64>,
    /// It is a slave of this group (`master:N`).
    pub master: Option<u64>,
    /// The nearest group under the reader's root that it gets from (`propagate_from:N`).
    pub propagate_from: Option<u64>,
    /// `unbindable`.
    pub unbindable: bool,
    /// Optional fields of newer kernels, as they stand.
    pub other_fields: Vec<Vec<u8>>,
    /// Type of the file system, with its subtype: `ext4`, `fuse.sshfs`.
    pub fs_type: Vec<u8>,
    /// What the file system calls its source; `none` where it has none.
    pub source: Vec<u8>,
    /// Options of the file system: `rw,size=64k`. Kept escaped where a value needs it, because a
    /// comma inside a value is escaped as well (`\054`); see [`Mount::super_options`].
    pub raw_super_options: Vec<u8>,
}

impl Mount {
    /// The options of the file system, one by one, unescaped.
    pub fn super_options(&self) -> impl Iterator<Item = Vec<u8>> {
        split_options(&self.raw_super_options)
    }

    /// The per-mount options, one by one.
    pub fn mount_options(&self) -> impl Iterator<Item = Vec<u8>> {
        split_options(&self.options)
    }

    /// Whether the mount itself is read-only.
    pub fn is_read_only(&self) -> bool {
        self.mount_options().any(|option| option == b"ro")
    }

    /// Whether what was mounted (a file or directory) has been deleted since.
    pub fn is_deleted(&self) -> bool {
        self.root.ends_with(b"//deleted")
    }
}

fn split_options(options: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    options
        .split(|&byte| byte == b',')
        .filter(|option| !option.is_empty())
        .map(unescape_octal)
}

/// Parses a whole mountinfo. A line that is none is an error that carries its number.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Vec<Mount>> {
    lines(text.as_ref())
        .enumerate()
        .map(|(index, line)| {
            parse_line(line)
                .ok_or_else(|| malformed(&format!("line {} of mountinfo", index + 1), line))
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    // Fields are separated by exactly one blank, and one may be empty (a source of "").
    let mut fields = line.split(|&byte| byte == b' ');
    let id = decimal(fields.next()?)?;
    let parent = decimal(fields.next()?)?;
    let device = fields.next()?;
    let colon = device.iter().position(|&byte| byte == b':')?;
    let mut mount = Mount {
        id,
        parent,
        device: Device {
            major: decimal(&device[..colon])?,
            minor: decimal(&device[colon + 1..])?,
        },
        root: unescape_octal(fields.next()?),
        mount_point: unescape_octal(fields.next()?),
        options: fields.next()?.to_vec(),
        shared: None,
        master: None,
        propagate_from: None,
        unbindable: false,
        other_fields: Vec::new(),
        fs_type: Vec::new(),
        source: Vec::new(),
        raw_super_options: Vec::new(),
    };
    loop {
        match fields.next()? {
            b"-" => break,
            b"unbindable" => mount.unbindable = true,
            field => match group(field) {
                Some((b"shared", group)) => mount.shared = Some(group),
                Some((b"master", group)) => mount.master = Some(group),
                Some((b"propagate_from", group)) => mount.propagate_from = Some(group),
                _ => mount.other_fields.push(field.to_vec()),
            },
        }
    }
    mount.fs_type = unescape_octal(fields.next()?);
    mount.source = unescape_octal(fields.next()?);
    mount.raw_super_options = fields.collect::<Vec<_>>().join(&b' ');
    Some(mount)
}

fn group(field: &[u8]) -> Option<(&[u8], u64)> {
    let colon = field.iter().position(|&byte| byte == b':')?;
    Some((&field[..colon], decimal(&field[colon + 1..])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
37 35 0:21 / /a\\040b\\134c rw,relatime shared:7 master:2 propagate_from:3 - tmpfs t\\011mp ro,size=64k
38 35 0:4 net:[4026532281] /run/netns/x rw shared:5 - nsfs nsfs rw
39 35 0:40 /gone//deleted /b ro unbindable newfield:x-1 other - fuse.sshfs me@host: rw,user_id=0
40 35 0:41 / /c rw - overlay  rw,lowerdir=/l\\054x:/m,upperdir=/u
";

    #[test]
    fn every_field_is_read() {
        let mounts = parse(SAMPLE).unwrap();
        assert_eq!(mounts.len(), 5);
        assert_eq!((mounts[0].id, mounts[0].parent), (36, 35));
        assert_eq!(
            mounts[0].device,
            Device {
                major: 98,
                minor: 0
            }
        );
        assert_eq!(mounts[0].root, b"/mnt1");
        assert_eq!((mounts[0].shared, mounts[0].master), (None, Some(1)));
        assert_eq!(mounts[1].mount_point, b"/a b\\c");
        assert_eq!(mounts[1].source, b"t\tmp");
        assert_eq!(
            (mounts[1].shared, mounts[1].master, mounts[1].propagate_from),
            (Some(7), Some(2), Some(3))
        );
        assert!(!mounts[1].is_read_only());
        assert_eq!(mounts[2].root, b"net:[4026532281]");
        assert!(mounts[3].is_deleted() && mounts[3].unbindable && mounts[3].is_read_only());
        assert_eq!(mounts[3].fs_type, b"fuse.sshfs");
        assert_eq!(
            mounts[3].other_fields,
            [b"newfield:x-1".to_vec(), b"other".to_vec()]
        );
        assert_eq!(mounts[4].source, b"");
        let options: Vec<_> = mounts[4].super_options().collect();
        assert_eq!(
            options,
            [
                b"rw".to_vec(),
                b"lowerdir=/l,x:/m".to_vec(),
                b"upperdir=/u".to_vec()
            ]
        );
    }

    #[test]
    fn our_own_mounts_are_read() {
        let mounts = parse(std::fs::read("/proc/self/mountinfo").unwrap()).unwrap();
        assert!(mounts.iter().any(|mount| mount.mount_point == b"/proc"));
    }

    #[test]
    fn garbage_is_an_error_with_its_line() {
        for text in [
            "x",
            "1 2",
            "1 2 3 / / rw - a b c",
            "1 2 0:1 / / rw shared:1 a b",
            "1 2 0:1 / / rw -",
            "1 2 0:1 / / rw - ext4",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains("line 1 of mountinfo"), "{error}");
        }
    }
}
