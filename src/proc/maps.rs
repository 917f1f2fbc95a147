//! `/proc/PID/maps`: the areas of an address space.

use super::text::{lines, malformed, number, unescape_octal};
use crate::error::Result;
use std::fmt;

/// What a process may do with an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Perms {
    /// PROT_READ.
    pub read: bool,
    /// PROT_WRITE.
    pub write: bool,
    /// PROT_EXEC.
    pub execute: bool,
    /// MAP_SHARED that may still become writable (the kernel shows VM_MAYSHARE).
    pub shared: bool,
}

impl Perms {
    /// PROT_NONE.
    pub fn none(self) -> bool {
        !self.read && !self.write && !self.execute
    }
}

impl fmt::Display for Perms {
    /// As the kernel writes it: `r-xp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set, letter| if set { letter } else { '-' };
        write!(
            f,
            "{}{}{}{}",
            flag(self.read, 'r'),
            flag(self.write, 'w'),
            flag(self.execute, 'x'),
            if self.shared { 's' } else { 'p' }
        )
    }
}

/// A device number, as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Device {
    /// Its driver.
    pub major: u32,
    /// Which of the driver's.
    pub minor: u32,
}

/// One line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// What the process may do with it.
    pub perms: Perms,
    /// Where in the file it begins, in bytes; 0 where there is no file.
    pub offset: u64,
    /// Device of the file; 0:0 where there is none.
    pub device: Device,
    /// Inode of the file; 0 where there is none.
    pub inode: u64,
    /// Last column, unescaped: a path, with ` (deleted)` where the kernel says so, a name in square
    /// brackets, or empty.
    pub path: Vec<u8>,
}

impl Area {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.end - self.start
    }

    /// Whether a file (also one without a name in any directory: memfd, System V, shared anonymous
    /// memory) lies behind it.
    pub fn has_file(&self) -> bool {
        self.inode != 0 || self.device != Device::default()
    }

    /// The kernel's or the process's own name for it, with the brackets: `[heap]`, `[anon:x]`.
    pub fn special(&self) -> Option<&[u8]> {
        (!self.has_file() && self.path.starts_with(b"[") && self.path.ends_with(b"]"))
            .then_some(self.path.as_slice())
    }

    /// Whether the kernel says that the file's name is gone. (A file may also be *called* `x
    /// (deleted)`; only a look at the file itself tells.)
    pub fn is_deleted(&self) -> bool {
        self.has_file() && self.path.ends_with(b" (deleted)")
    }

    /// The path without ` (deleted)`; `None` where no file lies behind the area.
    pub fn file_path(&self) -> Option<&[u8]> {
        let path = self.path.as_slice();
        self.has_file()
            .then(|| path.strip_suffix(b" (deleted)").unwrap_or(path))
    }

    /// Whether `address` lies inside.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

impl fmt::Display for Area {
    /// The line as the kernel writes it, without trailing blanks and line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAME_COLUMN: usize = 73;
        let columns = format!(
            "{:08x}-{:08x} {} {:08x} {:02x}:{:02x} {}",
            self.start,
            self.end,
            self.perms,
            self.offset,
            self.device.major,
            self.device.minor,
            self.inode
        );
        if self.path.is_empty() {
            return f.write_str(&columns);
        }
        let path = String::from_utf8_lossy(&self.path).replace('\n', "\\012");
        write!(f, "{columns:<width$} {path}", width = NAME_COLUMN - 1)
    }
}

/// Parses a whole `/proc/PID/maps`. A line that is none is an error that carries its number.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Vec<Area>> {
    let text = text.as_ref();
    let mut areas = Vec::with_capacity(text.len() / 80);
    for (index, line) in lines(text).enumerate() {
        let area = parse_line(line)
            .ok_or_else(|| malformed(&format!("line {} of maps", index + 1), line))?;
        areas.push(area);
    }
    Ok(areas)
}

/// Parses one line of maps (also the head line of an area in smaps); `None` when it is none.
pub fn parse_line(line: &[u8]) -> Option<Area> {
    let (range, rest) = cut(line)?;
    let dash = range.iter().position(|&byte| byte == b'-')?;
    let start = number(&range[..dash], 16)?;
    let end = number(&range[dash + 1..], 16)?;
    let (perms, rest) = cut(rest)?;
    let (offset, rest) = cut(rest)?;
    let (device, rest) = cut(rest)?;
    let (inode, rest) = cut(rest).unwrap_or((rest, b""));
    let colon = device.iter().position(|&byte| byte == b':')?;
    let major = number(&device[..colon], 16)?;
    let minor = number(&device[colon + 1..], 16)?;
    (start < end).then_some(())?;
    Some(Area {
        start,
        end,
        perms: parse_perms(perms)?,
        offset: number(offset, 16)?,
        device: Device {
            major: u32::try_from(major).ok()?,
            minor: u32::try_from(minor).ok()?,
        },
        inode: number(inode, 10)?,
        path: parse_path(rest),
    })
}

/// Cuts at the first blank.
fn cut(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = line.iter().position(|&byte| byte == b' ')?;
    Some((&line[..blank], &line[blank + 1..]))
}

fn parse_perms(text: &[u8]) -> Option<Perms> {
    let &[read, write, execute, shared] = text else {
        return None;
    };
    let flag = |byte, letter| match byte {
        b'-' => Some(false),
        _ if byte == letter => Some(true),
        _ => None,
    };
    Some(Perms {
        read: flag(read, b'r')?,
        write: flag(write, b'w')?,
        execute: flag(execute, b'x')?,
        shared: match shared {
            b's' => true,
            b'p' => false,
            _ => return None,
        },
    })
}

/// The kernel pads with blanks up to the name; no name begins with one. Only line feeds are
/// escaped in maps (a backslash is not), so only those are undone.
fn parse_path(padded: &[u8]) -> Vec<u8> {
    let begin = padded
        .iter()
        .position(|&byte| byte != b' ')
        .unwrap_or(padded.len());
    let path = &padded[begin..];
    if !path.contains(&b'\\') {
        return path.to_vec();
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            bytes.extend(unescape_octal(b"\\012"));
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
00400000-004de000 r-xp 00000000 fd:02 825792                             /usr/bin/bash
7f01e480b000-7f01e480c000 rw-s 00001000 00:01 17                         /memfd:a b (deleted)
7f01e480c000-7f01e480e000 rw-p 00000000 00:00 0 
7f01e480e000-7f01e4812000 ---p 00000000 00:00 0                          [anon:guard area]
7ffe2e66a000-7ffe2e68b000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn every_column_is_read() {
        let areas = parse(SAMPLE).unwrap();
        assert_eq!(areas.len(), 6);
        assert_eq!(areas[0].start, 0x40_0000);
        assert_eq!(areas[0].size(), 0xde000);
        assert_eq!(
            areas[0].device,
            Device {
                major: 0xfd,
                minor: 2
            }
        );
        assert_eq!(areas[0].inode, 825_792);
        assert_eq!(areas[0].perms.to_string(), "r-xp");
        assert_eq!(areas[0].file_path(), Some(&b"/usr/bin/bash"[..]));
        assert!(areas[1].perms.shared && areas[1].is_deleted());
        assert_eq!(areas[1].offset, 0x1000);
        assert_eq!(areas[1].file_path(), Some(&b"/memfd:a b"[..]));
        assert!(areas[2].path.is_empty() && !areas[2].has_file());
        assert!(areas[3].perms.none());
        assert_eq!(areas[3].special(), Some(&b"[anon:guard area]"[..]));
        assert_eq!(areas[5].end, 0xffff_ffff_ff60_1000);
    }

    #[test]
    fn an_area_prints_as_the_kernel_prints_it() {
        for (area, line) in parse(SAMPLE).unwrap().iter().zip(SAMPLE.lines()) {
            assert_eq!(area.to_string(), line.trim_end());
        }
    }

    #[test]
    fn our_own_maps_read_and_print_as_they_are() {
        let text = std::fs::read("/proc/self/maps").unwrap();
        let areas = parse(&text).unwrap();
        let printed: Vec<_> = areas.iter().map(ToString::to_string).collect();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        assert_eq!(printed, lines);
    }

    #[test]
    fn paths_are_bytes_and_line_feeds_are_unescaped() {
        let line = b"1000-2000 r--p 00000000 fe:00 7                   /tmp/\xff\\012x\\040y";
        let area = parse_line(line).unwrap();
        assert_eq!(area.path, b"/tmp/\xff\nx\\040y");
    }

    #[test]
    fn garbage_is_an_error_with_its_line_and_never_a_panic() {
        let error = parse("1000-2000 r--p 00000000 fe:00 7\nhello world\n").unwrap_err();
        assert!(error.to_string().contains("line 2 of maps"), "{error}");
        for line in [
            "",
            "-",
            "1000-2000",
            "2000-1000 rwxp 0 0:0 0",
            "1000-2000 rwx 0 0:0 0",
            "1000-2000 rwxz 0 0:0 0",
            "1000-2000 rwxp g 0:0 0",
            "1000-2000 rwxp 0 00 0",
            "1000-2000 rwxp 0 0:0 x",
            "1000-fffffffffffffffff rwxp 0 0:0 0",
            "1000-2000 rwxp 0 100000000:0 0",
            "é-ü ----",
        ] {
            assert_eq!(parse_line(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn forty_thousand_areas_are_no_matter() {
        let text: String = (0..40_000u64)
            .map(|n| {
                let start = 0x7f00_0000_0000 + n * 0x2000;
                format!("{start:x}-{:x} rw-p 00000000 00:00 0 \n", start + 0x1000)
            })
            .collect();
        assert_eq!(parse(text).unwrap().len(), 40_000);
    }
}
