//! Which member names there are, and that none leads out of the place where it is unpacked.

/// The first member.
pub const HEADER: &str = "ocimig.json";
/// The last member.
pub const MANIFEST: &str = "manifest.json";

/// The folders of an image. Besides them there are only `NAME.json` at the top.
const FOLDERS: [&str; 9] = [
    "cgroups",
    "files",
    "memory",
    "mounts",
    "namespaces",
    "objects",
    "processes",
    "rootfs",
    "runtime",
];

/// The longest name, as PATH_MAX allows it.
const LONGEST: usize = 4095;

/// Whether a name stays below the place where it is unpacked: relative, no empty, `.` or `..` part.
pub fn stays_inside(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST
        && !name.contains(&0)
        && name
            .split(|&byte| byte == b'/')
            .all(|part| !part.is_empty() && part != b"." && part != b".." && part.len() <= 255)
}

/// Whether an image may hold a member of this name.
pub fn has_a_place(name: &[u8]) -> bool {
    if !stays_inside(name) {
        return false;
    }
    match name.iter().position(|&byte| byte == b'/') {
        Some(slash) => FOLDERS
            .iter()
            .any(|folder| folder.as_bytes() == &name[..slash]),
        None => name.ends_with(b".json"),
    }
}

/// How a piece is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
    /// One lz4 block.
    Lz4,
}

impl Coding {
    /// All of them.
    pub const ALL: [Coding; 3] = [Coding::Zstd, Coding::Raw, Coding::Lz4];

    fn suffix(self) -> &'static str {
        match self {
            Coding::Raw => "raw",
            Coding::Zstd => "zst",
            Coding::Lz4 => "lz4",
        }
    }
}

/// The member name of piece `index` of what `prefix` names.
pub fn piece(prefix: &str, index: u64, coding: Coding) -> String {
    format!("{prefix}/{index:06}.{}", coding.suffix())
}

/// The prefix, index and coding that a piece is named after; `None` for a name that [`piece`] never
/// gives.
pub fn parse_piece(name: &str) -> Option<(&str, u64, Coding)> {
    let (prefix, file) = name.rsplit_once('/')?;
    let (digits, suffix) = file.split_once('.')?;
    let coding = Coding::ALL
        .into_iter()
        .find(|coding| coding.suffix() == suffix)?;
    let index = digits.parse().ok()?;
    (piece(prefix, index, coding) == name).then_some((prefix, index, coding))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_outside_have_no_place() {
        for name in [
            "",
            "/etc/passwd",
            "../x.json",
            "rootfs/../../etc/passwd",
            "rootfs//etc",
            "rootfs/./etc",
            "rootfs/",
            "rootfs/a\0b",
            "secrets/x",
            "readme",
        ] {
            assert!(!has_a_place(name.as_bytes()), "{name:?}");
        }
        assert!(!has_a_place(
            format!("files/{}", "x".repeat(256)).as_bytes()
        ));
        assert!(!has_a_place(
            format!("files/{}", "x/".repeat(3000)).as_bytes()
        ));
        for name in ["ocimig.json", "rootfs/a/..b", "files/\u{e9}"] {
            assert!(has_a_place(name.as_bytes()), "{name:?}");
        }
        assert!(has_a_place(b"rootfs/\xff\xfe"));
    }

    #[test]
    fn the_name_of_a_piece_comes_back_and_no_other_is_taken_for_one() {
        for (prefix, index, coding) in [
            ("memory/anonymous", 0, Coding::Raw),
            ("memory/x", 999_999, Coding::Zstd),
            ("rootfs/layer", 1_000_000, Coding::Lz4),
        ] {
            let name = piece(prefix, index, coding);
            assert_eq!(parse_piece(&name), Some((prefix, index, coding)), "{name}");
        }
        for name in [
            "memory/a/0000012.raw",
            "memory/a/00001.raw",
            "memory/a/+00001.raw",
            "memory/a/000001",
            "memory/a/000001.gz",
            "memory/a/99999999999999999999999.raw",
        ] {
            assert_eq!(parse_piece(name), None, "{name}");
        }
    }
}
