//! Lines of `/proc/locks` and the `lock:` lines of fdinfo.

use super::maps::Device;
use super::text::{decimal, lines, number, words};

/// Who holds a lock of which kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// flock(2): belongs to the open file.
    Flock,
    /// fcntl F_SETLK: belongs to the process.
    Posix,
    /// fcntl F_OFD_SETLK: belongs to the open file.
    OpenFile,
    /// fcntl F_SETLEASE.
    Lease,
    /// An NFS server's delegation, and whatever else a kernel may show.
    Other,
}

/// What is locked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockAccess {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// F_UNLCK: a lease that is being broken shows what it will be.
    Unlock,
}

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// Whether this is a request that waits for another lock (`->`); only in /proc/locks.
    pub waiting: bool,
    /// FLOCK, POSIX, OFDLCK, LEASE.
    pub kind: LockKind,
    /// ADVISORY; for leases ACTIVE, BREAKING or BREAKER.
    pub mode: String,
    /// READ or WRITE.
    pub access: LockAccess,
    /// Holder as the reader's pid namespace numbers it; -1 for open-file locks, 0 for a process
    /// that this namespace does not see.
    pub pid: i32,
    /// Device of the file.
    pub device: Device,
    /// Inode of the file.
    pub inode: u64,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` up to the end of the file, however long it becomes.
    pub end: Option<u64>,
}

/// Parses `/proc/locks`; lines of another form are passed over.
pub fn parse(text: impl AsRef<[u8]>) -> Vec<Lock> {
    lines(text.as_ref()).filter_map(parse_line).collect()
}

/// Parses one line, `1: POSIX  ADVISORY  WRITE 22182 fe:00:10018876 10 12`.
pub fn parse_line(line: &[u8]) -> Option<Lock> {
    let mut words = words(line);
    words.next()?.strip_suffix(b":")?;
    let mut kind = words.next()?;
    let waiting = kind == b"->";
    if waiting {
        kind = words.next()?;
    }
    let kind = match kind {
        b"FLOCK" => LockKind::Flock,
        b"POSIX" => LockKind::Posix,
        b"OFDLCK" => LockKind::OpenFile,
        b"LEASE" => LockKind::Lease,
        _ => LockKind::Other,
    };
    let mode = String::from_utf8_lossy(words.next()?).into_owned();
    let access = match words.next()? {
        b"READ" => LockAccess::Read,
        b"WRITE" | b"RW" => LockAccess::Write,
        _ => LockAccess::Unlock,
    };
    let pid = decimal(words.next()?)?;
    let mut file = words.next()?.split(|&byte| byte == b':');
    let device = Device {
        major: u32::try_from(number(file.next()?, 16)?).ok()?,
        minor: u32::try_from(number(file.next()?, 16)?).ok()?,
    };
    let inode = decimal(file.next()?)?;
    let start = decimal(words.next()?)?;
    let end = match words.next()? {
        b"EOF" => None,
        end => Some(decimal(end)?),
    };
    Some(Lock {
        waiting,
        kind,
        mode,
        access,
        pid,
        device,
        inode,
        start,
        end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_lock_is_read() {
        let locks = parse(
            "\
1: FLOCK  ADVISORY  READ 22182 fe:00:10018876 0 EOF
2: POSIX  ADVISORY  WRITE 22182 fe:1f:10018876 10 12
2: -> POSIX  ADVISORY  WRITE 22183 fe:1f:10018876 0 EOF
3: OFDLCK ADVISORY  WRITE -1 fe:00:10018877 0 EOF
4: LEASE  BREAKING  UNLCK 22182 fe:00:10018877 0 EOF
what a newer kernel says
",
        );
        assert_eq!(locks.len(), 5);
        assert_eq!(locks[0].kind, LockKind::Flock);
        assert_eq!((locks[0].access, locks[0].end), (LockAccess::Read, None));
        assert_eq!(
            (locks[1].kind, locks[1].start, locks[1].end),
            (LockKind::Posix, 10, Some(12))
        );
        assert_eq!((locks[1].device.minor, locks[1].inode), (0x1f, 10_018_876));
        assert!(locks[2].waiting && !locks[1].waiting);
        assert_eq!((locks[3].kind, locks[3].pid), (LockKind::OpenFile, -1));
        assert_eq!(
            (locks[4].kind, locks[4].access, locks[4].mode.as_str()),
            (LockKind::Lease, LockAccess::Unlock, "BREAKING")
        );
    }
}
