//! Records of open files and descriptor tables.
//!
//! A descriptor is a number in a table; an *open file* is what it refers to (offset, flags, owner).
//! Descriptors that were duplicated or inherited refer to one open file and do so again afterwards.

use super::PathBytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Names an open file inside one image.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct FileId(pub u32);

/// Names a deleted file whose content the image carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GhostId(pub u32);

/// Device and inode number, as the host of the checkpoint had them; an identity inside one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inode {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// Everything about descriptors: `objects/files.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// Descriptor tables by pid, ascending by number.
    pub tables: BTreeMap<i32, Vec<Descriptor>>,
    /// Processes (and threads) that use another one's table (CLONE_FILES): pid to that one's pid.
    pub shared_tables: BTreeMap<i32, i32>,
    /// Every open file once, ascending by id.
    pub open_files: Vec<OpenFile>,
    /// Pipes and the queues of FIFOs.
    pub pipes: Vec<Pipe>,
    /// Pseudo-terminals.
    pub ptys: Vec<Pty>,
    /// Files without a name.
    pub ghosts: Vec<Ghost>,
    /// Memory files that descriptors refer to; their pages are stored with the memory.
    pub memory_files: Vec<MemoryFile>,
    /// POSIX record locks, which belong to a process and an inode.
    pub posix_locks: Vec<PosixLock>,
}

/// One descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// The number.
    pub fd: i32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
    /// What it refers to.
    pub file: FileId,
}

/// One open file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenFile {
    /// Its name in this image.
    pub id: FileId,
    /// Access mode and status flags by name: `["O_RDWR", "O_APPEND"]`.
    pub flags: Vec<String>,
    /// The offset.
    pub pos: i64,
    /// Whom O_ASYNC signals (F_SETOWN_EX).
    pub owner: Option<FileOwner>,
    /// F_SETSIG; 0 is SIGIO.
    pub signal: i32,
    /// Locks that belong to the open file.
    pub locks: Vec<FileLock>,
    /// What it is.
    pub kind: FileKind,
}

/// F_SETOWN_EX; numbers as in the container's pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum FileOwner {
    /// One thread.
    Thread(i32),
    /// A process.
    Process(i32),
    /// A process group.
    Group(i32),
}

/// What an open file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum FileKind {
    /// Opened by path: regular file, directory, file of /proc or /sys; anything with O_PATH.
    Path(FileReference),
    /// A device node.
    Device {
        /// The node.
        file: FileReference,
        /// Device number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// An end of a pipe.
    Pipe {
        /// [`Pipe::inode`].
        pipe: Inode,
    },
    /// An end of a FIFO.
    Fifo {
        /// The node.
        file: FileReference,
        /// [`Pipe::inode`].
        pipe: Inode,
    },
    /// A socket; `objects/sockets.json` has the rest.
    Socket {
        /// The socket's inode number, its name in that file.
        socket: u64,
    },
    /// eventfd(2).
    Eventfd {
        /// The counter.
        count: u64,
        /// EFD_SEMAPHORE.
        semaphore: bool,
    },
    /// epoll_create(2).
    Epoll {
        /// Ascending by number, then file.
        items: Vec<EpollItem>,
    },
    /// timerfd_create(2).
    Timerfd(Timerfd),
    /// signalfd(2).
    Signalfd {
        /// Bit N-1 for signal N.
        mask: u64,
    },
    /// inotify_init(2).
    Inotify {
        /// Ascending by number.
        watches: Vec<Watch>,
    },
    /// pidfd_open(2).
    Pidfd(PidfdTarget),
    /// A file of /proc/PID/ns.
    Namespace {
        /// `net`, `mnt` …
        kind: String,
        /// The namespace's inode number.
        ino: u64,
        /// A process of the container in that namespace.
        pid: i32,
    },
    /// memfd_create(2) and whatever shares its object.
    Memory {
        /// [`MemoryFile::inode`].
        memory: Inode,
    },
    /// The master of a pseudo-terminal.
    PtyMaster {
        /// [`Pty::id`].
        pty: u32,
        /// /dev/ptmx or /dev/pts/ptmx.
        file: FileReference,
    },
    /// The slave of a pseudo-terminal.
    PtySlave {
        /// [`Pty::id`].
        pty: u32,
        /// /dev/pts/N, or another way to it: /dev/console, /dev/tty.
        file: FileReference,
        /// Opened through /dev/tty.
        controlling: bool,
    },
    /// Leads out of the container; given by the caller of the restore.
    External(External),
}

/// How to reopen a file that a process had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileReference {
    /// As the container sees it, from the root of its mount namespace.
    pub path: PathBytes,
    /// Identity at the time.
    pub inode: Inode,
    /// `regular`, `directory`, `fifo`, `symlink`, `char-device`, `block-device`, `socket`.
    pub file_type: String,
    /// In bytes.
    pub size: u64,
    /// Seconds and nanoseconds of the last modification.
    pub mtime: (i64, u32),
    /// Set where the file has no name left; `path` is where it was.
    pub ghost: Option<GhostId>,
    /// Set where the name it was opened by is gone while `path`, another link, is there.
    pub opened_as: Option<PathBytes>,
}

/// A file without a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ghost {
    /// Its name in this image.
    pub id: GhostId,
    /// Identity at the time.
    pub inode: Inode,
    /// Where it was.
    pub path: PathBytes,
    /// As in [`FileReference::file_type`].
    pub file_type: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner, as the host sees it.
    pub uid: u32,
    /// Group, as the host sees it.
    pub gid: u32,
    /// Device number (major, minor) of a device node.
    pub rdev: (u32, u32),
    /// In bytes.
    pub size: u64,
    /// Seconds and nanoseconds of last access.
    pub atime: (i64, u32),
    /// Seconds and nanoseconds of last modification.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(PathBytes, PathBytes)>,
    /// Target of a symbolic link.
    pub target: Option<PathBytes>,
    /// The member with the content, all extents one after the other.
    pub member: Option<String>,
    /// Where the data of `member` belongs; the rest is holes.
    pub extents: Vec<Extent>,
}

/// A piece of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
}

/// A pipe or the queue of a FIFO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipe {
    /// Identity.
    pub inode: Inode,
    /// F_GETPIPE_SZ, in bytes.
    pub capacity: u64,
    /// Owner of the pipe's inode.
    pub uid: u32,
    /// Group of the pipe's inode.
    pub gid: u32,
    /// Permission bits of the pipe's inode.
    pub mode: u32,
    /// A FIFO whose readers wait for the first writer, and have not seen one go.
    pub expectant: bool,
    /// The member with the queue.
    pub member: Option<String>,
    /// How the queue is cut, in order.
    pub pieces: Vec<PipePiece>,
}

/// A run of bytes in a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipePiece {
    /// In bytes.
    pub len: u32,
    /// Written with O_DIRECT: one read ends here.
    pub packet: bool,
}

/// A registration with epoll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpollItem {
    /// The number under which it was registered; it may be closed or something else by now.
    pub fd: i32,
    /// The registered open file.
    pub file: FileId,
    /// Event mask as the kernel shows it (EPOLL* bits, the same on every architecture).
    pub events: u32,
    /// What epoll_wait hands back.
    pub data: u64,
}

/// A timer with a descriptor; times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timerfd {
    /// `CLOCK_MONOTONIC` …
    pub clock: String,
    /// Expirations not yet read.
    pub ticks: u64,
    /// Until the next expiration; 0 is disarmed.
    pub remaining: u64,
    /// Between expirations; 0 is once.
    pub interval: u64,
    /// TFD_TIMER_ABSTIME on a wall clock: the moment itself.
    pub deadline: Option<u64>,
    /// TFD_TIMER_ABSTIME.
    pub absolute: bool,
    /// TFD_TIMER_CANCEL_ON_SET.
    pub cancel_on_set: bool,
}

/// An inotify watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// The watch descriptor.
    pub wd: i32,
    /// IN_* bits, the same on every architecture.
    pub mask: u32,
    /// What is watched.
    pub file: FileReference,
}

/// Whom a pidfd stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum PidfdTarget {
    /// A process (or zombie) of the container.
    Process(i32),
    /// A thread of the container (PIDFD_THREAD).
    Thread(i32),
    /// One that is dead and reaped; equal numbers are the same one.
    Gone(u64),
}

/// A memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryFile {
    /// Identity; the memory's records use the same.
    pub inode: Inode,
    /// As given to memfd_create, without the kernel's `memfd:`.
    pub name: PathBytes,
    /// In bytes.
    pub size: u64,
    /// F_GET_SEALS by name.
    pub seals: Vec<String>,
    /// Size of a huge page, in bytes, where MFD_HUGETLB was given.
    pub huge_page: Option<u64>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, as the host sees it.
    pub uid: u32,
    /// Group, as the host sees it.
    pub gid: u32,
}

/// A pseudo-terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pty {
    /// Its name in this image.
    pub id: u32,
    /// N of /dev/pts/N.
    pub index: u32,
    /// Where its devpts is mounted.
    pub devpts: PathBytes,
    /// The master is held outside the container.
    pub master_outside: bool,
    /// The master is closed: the slave is hung up.
    pub hung_up: bool,
    /// TIOCSPTLCK.
    pub locked: bool,
    /// TIOCPKT.
    pub packet: bool,
    /// TIOCEXCL.
    pub exclusive: bool,
    /// Modes of the line; `None` where it is hung up.
    pub termios: Option<Termios>,
    /// Rows, columns, width and height in pixels.
    pub size: (u16, u16, u16, u16),
    /// Owner of the slave's node.
    pub uid: u32,
    /// Group of the slave's node.
    pub gid: u32,
    /// Permission bits of the slave's node.
    pub mode: u32,
}

/// Modes of a line: `struct termios2`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Termios {
    /// c_iflag.
    pub input: u32,
    /// c_oflag.
    pub output: u32,
    /// c_cflag.
    pub control: u32,
    /// c_lflag.
    pub local: u32,
    /// c_line.
    pub line: u8,
    /// c_cc.
    pub characters: Vec<u8>,
    /// c_ispeed.
    pub input_speed: u32,
    /// c_ospeed.
    pub output_speed: u32,
}

/// Something that leads out of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// How callers name it: `pipe:[123]`, `tty[dev:rdev]`, `file[mount:inode]`, `socket:[5]`.
    pub key: String,
    /// What it was, for a reader.
    pub what: PathBytes,
    /// As in [`FileReference::file_type`].
    pub file_type: String,
    /// 0, 1 or 2 where it is a standard stream.
    pub stream: Option<i32>,
}

/// A lock that belongs to an open file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileLock {
    /// What kind.
    pub kind: LockKind,
    /// Exclusive rather than shared.
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` is the end of the file.
    pub end: Option<u64>,
}

/// Kinds of locks of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum LockKind {
    /// flock(2).
    Flock,
    /// F_OFD_SETLK.
    OpenFile,
}

/// A record lock of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosixLock {
    /// Whose.
    pub pid: i32,
    /// A descriptor of that process that can set it.
    pub fd: i32,
    /// Exclusive rather than shared.
    pub exclusive: bool,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` is the end of the file.
    pub end: Option<u64>,
}
