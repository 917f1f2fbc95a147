//! `/proc/PID/fdinfo/FD`: what the kernel says of an open file beyond fstat and fcntl.

use super::locks::{self, Lock};
use super::maps::Device;
use super::text::{decimal, hex, key_value, lines, malformed, number, words};
use crate::error::Result;

/// An eventfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Eventfd {
    /// Its counter.
    pub count: u64,
    /// EFD_SEMAPHORE; `None` before Linux 6.5, which does not show it.
    pub semaphore: Option<bool>,
}

/// Seconds and nanoseconds.
pub type Time = (i64, i64);

/// A timerfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timerfd {
    /// CLOCK_*.
    pub clock: i32,
    /// Expirations that nobody has read.
    pub ticks: u64,
    /// TFD_TIMER_* of the last timerfd_settime.
    pub settime_flags: u32,
    /// Time left until the next expiration, also for absolute timers; 0 when disarmed.
    pub value: Time,
    /// Period.
    pub interval: Time,
}

/// One file that an epoll watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpollTarget {
    /// The descriptor under which it was added; may be closed or something else by now.
    pub fd: i32,
    /// EPOLL* bits.
    pub events: u32,
    /// The caller's data.
    pub data: u64,
    /// Position of the file.
    pub pos: i64,
    /// Its inode.
    pub inode: u64,
    /// Device of its file system.
    pub device: Device,
}

/// A file handle, as name_to_handle_at(2) gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHandle {
    /// handle_type.
    pub kind: u32,
    /// f_handle.
    pub bytes: Vec<u8>,
}

/// One inotify watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode.
    pub inode: u64,
    /// Device of its file system (on overlayfs not st_dev of the files in it).
    pub device: Device,
    /// IN_* bits.
    pub mask: u32,
    /// Bits that are ignored.
    pub ignored_mask: u32,
    /// `None` where the file system has no handles.
    pub handle: Option<FileHandle>,
}

/// A process behind a pidfd.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pidfd {
    /// As /proc's pid namespace numbers it; -1 when it is gone, 0 when it is in another namespace.
    pub pid: i32,
    /// From /proc's pid namespace down to its own.
    pub ns_pid: Vec<i32>,
}

/// One fdinfo.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fdinfo {
    /// File position.
    pub pos: i64,
    /// O_* flags, as F_GETFL gives them, with O_CLOEXEC where FD_CLOEXEC is set.
    pub flags: u32,
    /// The mount that it was opened through.
    pub mnt_id: u64,
    /// Inode; `None` before Linux 5.14.
    pub inode: Option<u64>,
    /// Locks held through it.
    pub locks: Vec<Lock>,
    /// Set when it is an eventfd.
    pub eventfd: Option<Eventfd>,
    /// Set when it is a timerfd.
    pub timerfd: Option<Timerfd>,
    /// Set when it is a signalfd; bit n-1 is signal n.
    pub sigmask: Option<u64>,
    /// Files that an epoll watches, in the kernel's order.
    pub epoll: Vec<EpollTarget>,
    /// Watches of an inotify.
    pub inotify: Vec<InotifyWatch>,
    /// Set when it is a pidfd.
    pub pidfd: Option<Pidfd>,
    /// Number of the terminal behind a /dev/ptmx.
    pub tty_index: Option<u32>,
    /// Descriptors in flight in the queue of a Unix socket.
    pub scm_fds: Option<u64>,
    /// All lines that are none of these, as they stand (fanotify, tun, io_uring, bpf …).
    pub other: Vec<String>,
}

/// Parses a whole fdinfo.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Fdinfo> {
    let mut info = Fdinfo::default();
    for line in lines(text.as_ref()) {
        add(&mut info, line).ok_or_else(|| malformed("a line of fdinfo", line))?;
    }
    Ok(info)
}

fn add(info: &mut Fdinfo, line: &[u8]) -> Option<()> {
    if let Some(watch) = line.strip_prefix(b"inotify ") {
        info.inotify.push(inotify(watch)?);
        return Some(());
    }
    let Some((key, value)) = key_value(line) else {
        info.other.push(String::from_utf8_lossy(line).into_owned());
        return Some(());
    };
    match key {
        b"pos" => info.pos = decimal(value)?,
        b"flags" => info.flags = u32::try_from(number(value, 8)?).ok()?,
        b"mnt_id" => info.mnt_id = decimal(value)?,
        b"ino" => info.inode = Some(decimal(value)?),
        b"lock" => info.locks.push(locks::parse_line(value)?),
        b"eventfd-count" => info.eventfd.get_or_insert_default().count = hex(value)?,
        b"eventfd-semaphore" => {
            info.eventfd.get_or_insert_default().semaphore = Some(value == b"1");
        }
        b"sigmask" => info.sigmask = Some(hex(value)?),
        b"tfd" => info.epoll.push(epoll(value)?),
        b"Pid" => info.pidfd.get_or_insert_default().pid = decimal(value)?,
        b"NSpid" => {
            info.pidfd.get_or_insert_default().ns_pid =
                words(value).map(decimal).collect::<Option<_>>()?;
        }
        b"tty-index" => info.tty_index = Some(decimal(value)?),
        b"scm_fds" => info.scm_fds = Some(decimal(value)?),
        b"clockid" | b"ticks" | b"settime flags" | b"it_value" | b"it_interval" => {
            timer(info.timerfd.get_or_insert_default(), key, value)?;
        }
        _ => info.other.push(String::from_utf8_lossy(line).into_owned()),
    }
    Some(())
}

fn timer(timer: &mut Timerfd, key: &[u8], value: &[u8]) -> Option<()> {
    match key {
        b"clockid" => timer.clock = decimal(value)?,
        b"ticks" => timer.ticks = decimal(value)?,
        b"settime flags" => timer.settime_flags = u32::try_from(number(value, 8)?).ok()?,
        b"it_value" => timer.value = time(value)?,
        _ => timer.interval = time(value)?,
    }
    Some(())
}

/// `(29, 999363951)`
fn time(value: &[u8]) -> Option<Time> {
    let inner = value.strip_prefix(b"(")?.strip_suffix(b")")?;
    let comma = inner.iter().position(|&byte| byte == b',')?;
    Some((
        decimal(inner[..comma].trim_ascii())?,
        decimal(inner[comma + 1..].trim_ascii())?,
    ))
}

/// What follows `tfd:`, `       4 events:       1d data:     7f5f00000004  pos:0 ino:11 sdev:10`.
/// Kernels before 4.13 end after data.
fn epoll(value: &[u8]) -> Option<EpollTarget> {
    let mut words = words(value);
    let mut target = EpollTarget {
        fd: decimal(words.next()?)?,
        events: 0,
        data: 0,
        pos: 0,
        inode: 0,
        device: Device::default(),
    };
    while let Some(word) = words.next() {
        let (key, mut value) = key_value(word)?;
        if value.is_empty() {
            value = words.next()?;
        }
        match key {
            b"events" => target.events = u32::try_from(hex(value)?).ok()?,
            b"data" => target.data = hex(value)?,
            b"pos" => target.pos = decimal(value)?,
            b"ino" => target.inode = hex(value)?,
            b"sdev" => target.device = kernel_device(hex(value)?),
            _ => {}
        }
    }
    Some(target)
}

/// What follows `inotify `; all numbers are hexadecimal.
fn inotify(value: &[u8]) -> Option<InotifyWatch> {
    let mut watch = InotifyWatch {
        wd: 0,
        inode: 0,
        device: Device::default(),
        mask: 0,
        ignored_mask: 0,
        handle: None,
    };
    let mut kind = None;
    for word in words(value) {
        let (key, value) = key_value(word)?;
        match key {
            b"wd" => watch.wd = i32::try_from(hex(value)?).ok()?,
            b"ino" => watch.inode = hex(value)?,
            b"sdev" => watch.device = kernel_device(hex(value)?),
            b"mask" => watch.mask = u32::try_from(hex(value)?).ok()?,
            b"ignored_mask" => watch.ignored_mask = u32::try_from(hex(value)?).ok()?,
            b"fhandle-type" => kind = Some(u32::try_from(hex(value)?).ok()?),
            b"f_handle" => {
                watch.handle = Some(FileHandle {
                    kind: kind?,
                    bytes: hex_bytes(value)?,
                });
            }
            _ => {}
        }
    }
    (watch.wd > 0).then_some(watch)
}

/// The kernel's own dev_t: 12 bits major, 20 bits minor.
fn kernel_device(device: u64) -> Device {
    Device {
        major: (device >> 20) as u32,
        minor: (device & 0xf_ffff) as u32,
    }
}

fn hex_bytes(digits: &[u8]) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then_some(())?;
    pairs
        .iter()
        .map(|pair| u8::try_from(number(pair, 16)?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::locks::LockKind;
    use super::*;

    #[test]
    fn a_regular_file_has_position_flags_and_locks() {
        let info = parse(
            "\
pos:\t5
flags:\t02100001
mnt_id:\t27
ino:\t10018876
lock:\t1: FLOCK  ADVISORY  WRITE 22182 fe:00:10018876 0 EOF
lock:\t2: POSIX  ADVISORY  WRITE 22182 fe:00:10018876 10 12
",
        )
        .unwrap();
        assert_eq!((info.pos, info.flags, info.mnt_id), (5, 0o2_100_001, 27));
        assert_eq!(info.inode, Some(10_018_876));
        assert_eq!(info.locks.len(), 2);
        assert_eq!(info.locks[1].kind, LockKind::Posix);
        assert!(info.other.is_empty());
    }

    #[test]
    fn an_eventfd_has_a_hexadecimal_count() {
        let info = parse(
            "\
pos:\t0
flags:\t02
mnt_id:\t17
ino:\t17
eventfd-count:             ff05
eventfd-id: 1
eventfd-semaphore: 1
",
        )
        .unwrap();
        assert_eq!(
            info.eventfd,
            Some(Eventfd {
                count: 0xff05,
                semaphore: Some(true)
            })
        );
        assert_eq!(info.other, ["eventfd-id: 1"]);
    }

    #[test]
    fn a_timerfd_has_clock_ticks_and_times() {
        let info = parse(
            "\
pos:\t0
flags:\t02
clockid: 1
ticks: 7
settime flags: 03
it_value: (29, 999363951)
it_interval: (1, 2)
",
        )
        .unwrap();
        assert_eq!(
            info.timerfd,
            Some(Timerfd {
                clock: 1,
                ticks: 7,
                settime_flags: 3,
                value: (29, 999_363_951),
                interval: (1, 2)
            })
        );
    }

    #[test]
    fn an_epoll_lists_its_targets() {
        let info = parse(
            "\
pos:\t0
flags:\t02000002
tfd:        4 events:       1d data:     7f5f00000004  pos:0 ino:11 sdev:10
tfd:        3 events: 80000019 data: ffffffffffffffff  pos:77 ino:2a sdev:fe00001
tfd:       55 events: 80000019 data:                3
",
        )
        .unwrap();
        assert_eq!(
            info.epoll[0],
            EpollTarget {
                fd: 4,
                events: 0x1d,
                data: 0x7f5f_0000_0004,
                pos: 0,
                inode: 0x11,
                device: Device {
                    major: 0,
                    minor: 0x10
                }
            }
        );
        assert_eq!(info.epoll[1].events, 0x8000_0019);
        assert_eq!(info.epoll[1].data, u64::MAX);
        assert_eq!((info.epoll[1].pos, info.epoll[1].inode), (77, 0x2a));
        assert_eq!(
            info.epoll[1].device,
            Device {
                major: 0xfe,
                minor: 1
            }
        );
        assert_eq!((info.epoll[2].fd, info.epoll[2].data), (55, 3));
    }

    #[test]
    fn inotify_watches_have_handles() {
        let info = parse(
            "\
inotify wd:1f ino:3c4a7 sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000
inotify wd:1 ino:3 sdev:10 mask:fce ignored_mask:0 
",
        )
        .unwrap();
        assert_eq!(info.inotify[0].wd, 0x1f);
        assert_eq!(info.inotify[0].inode, 0x3c4a7);
        assert_eq!(info.inotify[0].device.major, 0xfe);
        assert_eq!(
            info.inotify[0].handle,
            Some(FileHandle {
                kind: 1,
                bytes: vec![0xa7, 0xc4, 3, 0, 0, 0, 0, 0]
            })
        );
        assert_eq!(
            (info.inotify[1].mask, &info.inotify[1].handle),
            (0xfce, &None)
        );
    }

    #[test]
    fn signalfds_pidfds_terminals_and_sockets_are_read() {
        let info = parse("sigmask:\t0000000000000800\n").unwrap();
        assert_eq!(info.sigmask, Some(1 << 11));
        let info = parse("Pid:\t22182\nNSpid:\t22182\t7\n").unwrap();
        assert_eq!(
            info.pidfd,
            Some(Pidfd {
                pid: 22182,
                ns_pid: vec![22182, 7]
            })
        );
        assert_eq!(parse("Pid:\t-1\n").unwrap().pidfd.unwrap().pid, -1);
        assert_eq!(parse("tty-index:\t3\n").unwrap().tty_index, Some(3));
        assert_eq!(parse("scm_fds: 2\n").unwrap().scm_fds, Some(2));
    }

    #[test]
    fn what_a_newer_kernel_adds_is_kept_as_it_is() {
        let text = "fanotify flags:0 event-flags:8000\nno mark at all\nnew: 1\n";
        let info = parse(text).unwrap();
        assert_eq!(info.other.join("\n") + "\n", text);
    }

    #[test]
    fn garbage_where_it_matters_is_an_error() {
        for text in [
            "pos:\tx",
            "flags:\t9",
            "eventfd-count: zz",
            "it_value: (1 2)",
            "tfd: x",
            "tfd: 1 events: zz",
            "inotify wd:0 ino:1",
            "inotify wd:1 f_handle:00",
            "inotify wd:1 fhandle-type:1 f_handle:0",
            "lock:\t1: FLOCK",
            "NSpid:\t1 x",
        ] {
            assert_eq!(parse(text).unwrap_err().code(), "E-PROC-FORMAT", "{text}");
        }
    }
}
