//! The small files: cmdline and environ, auxv, id maps, time offsets, syscall, lists of numbers.

use super::text::{decimal, hex, lines, malformed, words};
use crate::error::Result;

/// Cuts cmdline or environ at its NUL bytes. The last piece needs none (a process may have
/// overwritten its own).
pub fn nul_separated(bytes: &[u8]) -> Vec<Vec<u8>> {
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes
        .strip_suffix(b"\0")
        .unwrap_or(bytes)
        .split(|&byte| byte == 0)
        .map(<[u8]>::to_vec)
        .collect()
}

/// Keys of the auxiliary vector that are asked for by name.
pub mod auxv {
    /// AT_PHDR: program headers of the executable.
    pub const PHDR: u64 = 3;
    /// AT_BASE: where the loader lies; 0 without one.
    pub const BASE: u64 = 7;
    /// AT_ENTRY: entry point of the executable.
    pub const ENTRY: u64 = 9;
    /// AT_SYSINFO_EHDR: the vdso.
    pub const SYSINFO_EHDR: u64 = 33;
}

/// The auxiliary vector of a 64-bit process as pairs, up to and without AT_NULL. Bytes that make no
/// pair are left out.
pub fn parse_auxv(bytes: &[u8]) -> Vec<(u64, u64)> {
    let (words, _) = bytes.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs
        .iter()
        .map(|&[key, value]| (u64::from_ne_bytes(key), u64::from_ne_bytes(value)))
        .take_while(|&(key, _)| key != 0)
        .collect()
}

/// One line of uid_map or gid_map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside (as the reader's user namespace sees it).
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Parses uid_map, gid_map or projid_map.
pub fn parse_id_map(text: impl AsRef<[u8]>) -> Result<Vec<IdRange>> {
    lines(text.as_ref())
        .map(|line| id_range(line).ok_or_else(|| malformed("a line of an id map", line)))
        .collect()
}

fn id_range(line: &[u8]) -> Option<IdRange> {
    let mut numbers = words(line).map(decimal);
    Some(IdRange {
        inside: numbers.next()??,
        outside: numbers.next()??,
        count: numbers.next()??,
    })
}

/// Parses timens_offsets: the offsets of the time namespace for children.
pub fn parse_timens_offsets(text: impl AsRef<[u8]>) -> Result<Vec<(String, i64, i64)>> {
    lines(text.as_ref())
        .map(|line| time_offset(line).ok_or_else(|| malformed("a line of timens_offsets", line)))
        .collect()
}

fn time_offset(line: &[u8]) -> Option<(String, i64, i64)> {
    let mut words = words(line);
    Some((
        String::from_utf8_lossy(words.next()?).into_owned(),
        decimal(words.next()?)?,
        decimal(words.next()?)?,
    ))
}

/// What `/proc/PID/syscall` says of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syscall {
    /// It is on a processor right now.
    Running,
    /// It is blocked, but in no system call.
    Blocked {
        /// Stack pointer.
        sp: u64,
        /// Instruction pointer.
        pc: u64,
    },
    /// It is in a system call.
    Inside {
        /// Its number.
        number: i64,
        /// Its arguments.
        arguments: [u64; 6],
        /// Stack pointer.
        sp: u64,
        /// Instruction pointer.
        pc: u64,
    },
}

impl Syscall {
    /// The stack pointer where it is known.
    pub fn stack_pointer(&self) -> Option<u64> {
        match *self {
            Self::Running => None,
            Self::Blocked { sp, .. } | Self::Inside { sp, .. } => Some(sp),
        }
    }
}

/// Parses `/proc/PID/task/TID/syscall`.
pub fn parse_syscall(text: impl AsRef<[u8]>) -> Result<Syscall> {
    let text = text.as_ref();
    let parsed = || {
        let mut words = words(text);
        let first = words.next()?;
        if first == b"running" {
            return Some(Syscall::Running);
        }
        let number = decimal(first)?;
        let values: Vec<u64> = words.map(hex).collect::<Option<_>>()?;
        match *values.as_slice() {
            [sp, pc] => Some(Syscall::Blocked { sp, pc }),
            [a, b, c, d, e, f, sp, pc] => Some(Syscall::Inside {
                number,
                arguments: [a, b, c, d, e, f],
                sp,
                pc,
            }),
            _ => None,
        }
    };
    parsed().ok_or_else(|| malformed("syscall", text))
}

/// A file that holds one number (`oom_score_adj`, `timerslack_ns`, `loginuid`).
pub fn parse_number<T: std::str::FromStr>(text: impl AsRef<[u8]>) -> Result<T> {
    let text = text.as_ref();
    decimal(text).ok_or_else(|| malformed("a number", text))
}

/// A file that holds one hexadecimal number (`personality`, `coredump_filter`).
pub fn parse_hex(text: impl AsRef<[u8]>) -> Result<u64> {
    let text = text.as_ref();
    hex(text.trim_ascii()).ok_or_else(|| malformed("a hexadecimal number", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_cut_at_nul() {
        assert_eq!(
            nul_separated(b"a\0\0b c\0"),
            [b"a".to_vec(), vec![], b"b c".to_vec()]
        );
        assert_eq!(nul_separated(b"nginx: worker"), [b"nginx: worker".to_vec()]);
        assert_eq!(nul_separated(b"\0"), [Vec::<u8>::new()]);
        assert!(nul_separated(b"").is_empty());
    }

    #[test]
    fn the_auxiliary_vector_ends_at_its_null() {
        let words = [33u64, 0x7f00, 7, 0, 0, 0, 9, 9];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(parse_auxv(&bytes), [(33, 0x7f00), (7, 0)]);
        assert!(parse_auxv(&bytes[..15]).is_empty());
        let own = parse_auxv(&std::fs::read("/proc/self/auxv").unwrap());
        assert!(own.iter().any(|&(key, _)| key == auxv::SYSINFO_EHDR));
    }

    #[test]
    fn id_maps_and_time_offsets_are_read() {
        let map = parse_id_map("         0     100000      65536\n").unwrap();
        assert_eq!(
            map,
            [IdRange {
                inside: 0,
                outside: 100_000,
                count: 65_536
            }]
        );
        assert!(parse_id_map("1 2\n").is_err());
        let offsets = parse_timens_offsets("monotonic  -5  7\nboottime 0 0\n").unwrap();
        assert_eq!(offsets[0], ("monotonic".to_owned(), -5, 7));
        assert!(parse_timens_offsets("monotonic\n").is_err());
    }

    #[test]
    fn the_three_forms_of_syscall_are_read() {
        assert_eq!(parse_syscall("running\n").unwrap(), Syscall::Running);
        let blocked = parse_syscall("-1 0x7ffd0 0x7f01\n").unwrap();
        assert_eq!(blocked.stack_pointer(), Some(0x7ffd0));
        let inside = parse_syscall("61 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffd8 0x7f02\n").unwrap();
        assert_eq!(
            inside,
            Syscall::Inside {
                number: 61,
                arguments: [1, 2, 3, 4, 5, 6],
                sp: 0x7ffd8,
                pc: 0x7f02
            }
        );
        assert!(parse_syscall("").is_err());
        assert!(parse_syscall("1 0x2").is_err());
    }

    #[test]
    fn single_numbers_are_read() {
        assert_eq!(parse_number::<i32>("-1000\n").unwrap(), -1000);
        assert!(parse_number::<u32>("-1\n").is_err());
        assert_eq!(parse_hex("00000033\n").unwrap(), 0x33);
    }
}
