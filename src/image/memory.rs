//! Records of address spaces: areas, what lies behind them, and where their pages are.
//!
//! Pages lie in *objects*: one for all anonymous pages of all processes ([`ANONYMOUS`]), one for each
//! piece of shared memory. Page n of an object lies in chunk n / [`CHUNK_PAGES`] of it. Pages that
//! processes share after fork have one place in the object and are named by each.

use super::PathBytes;
use super::files::{FileReference, Inode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bytes of a page in every image so far (x86-64).
pub const PAGE: u64 = 4096;
/// Pages in a chunk: 1 MiB.
pub const CHUNK_PAGES: u64 = 256;
/// The object with the private pages of all processes.
pub const ANONYMOUS: &str = "anonymous";

/// An address space.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// What the kernel remembers about the program.
    pub program: Program,
    /// Ascending, without overlaps.
    pub areas: Vec<Area>,
    /// Where private pages are stored, ascending by address.
    pub pages: Vec<PageRun>,
    /// Pages that must fault (MADV_GUARD_INSTALL): (address, pages).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guards: Vec<(u64, u64)>,
    /// Where the kernel's own code lies, if it is mapped.
    pub vdso: Option<Vdso>,
}

/// The fields of the kernel's `struct mm_struct` that `/proc` shows and prctl(PR_SET_MM_MAP) sets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The program's file; `None` for a process whose file was refused.
    pub exe: Option<FileReference>,
    /// First address of the text.
    pub start_code: u64,
    /// Its end.
    pub end_code: u64,
    /// First address of the data.
    pub start_data: u64,
    /// Its end.
    pub end_data: u64,
    /// Where the heap begins.
    pub start_brk: u64,
    /// Where it ends.
    pub brk: u64,
    /// Where the stack began.
    pub start_stack: u64,
    /// Where the arguments lie.
    pub arg_start: u64,
    /// Their end.
    pub arg_end: u64,
    /// Where the environment lies.
    pub env_start: u64,
    /// Its end.
    pub env_end: u64,
    /// The auxiliary vector, (type, value).
    pub auxv: Vec<(u64, u64)>,
}

/// An area of an address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// What is allowed, as `/proc/PID/maps` writes it: `r-xp`.
    pub perms: String,
    /// What lies behind it.
    pub backing: Backing,
    /// Given by the process: prctl(PR_SET_VMA_ANON_NAME).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<PathBytes>,
    /// Attributes by name: `growsdown`, `noreserve`, `locked`, `lock-on-fault`, `dontfork`,
    /// `wipe-on-fork`, `dontdump`, `huge-page`, `no-huge-page`, `mergeable`, `sequential`, `random`,
    /// `droppable`, `sealed`, `accounted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
}

/// What lies behind an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Backing {
    /// Zeroes, until written.
    Anonymous,
    /// A file.
    File {
        /// Which of [`Objects::files`].
        file: u32,
        /// Where in it the area begins, in bytes.
        offset: u64,
        /// Opened for writing too.
        writable: bool,
    },
    /// Shared memory.
    Shared {
        /// Which of [`Objects::shared`].
        object: u32,
        /// Where in it the area begins, in bytes.
        offset: u64,
        /// Opened for writing too.
        writable: bool,
    },
    /// A System V segment, which the namespace's record has.
    SystemV {
        /// Its identifier.
        id: i32,
        /// Where in it the area begins, in bytes.
        offset: u64,
    },
    /// Pages of the kernel; see [`Memory::vdso`].
    Vdso,
}

/// A run of stored private pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageRun {
    /// Address of the first page.
    pub start: u64,
    /// How many.
    pub pages: u64,
    /// Its place in the object [`ANONYMOUS`]; the others follow.
    pub index: u64,
}

impl PageRun {
    /// The address after the last page.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.pages.saturating_mul(PAGE))
    }
}

/// The kernel's code and data in a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vdso {
    /// Start of the first part.
    pub start: u64,
    /// (offset, length) of each part, ascending; the last is the code.
    pub parts: Vec<(u64, u64)>,
    /// BLAKE3 of the code, in hexadecimal: code of another build has other addresses.
    pub digest: String,
}

/// What address spaces share: `objects/memory.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objects {
    /// Pages in the object [`ANONYMOUS`].
    pub anonymous_pages: u64,
    /// Mapped files.
    pub files: Vec<FileReference>,
    /// Shared memory.
    pub shared: Vec<Shared>,
}

/// A piece of shared memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// Its identity; also in the records of descriptors.
    pub inode: Inode,
    /// What made it.
    pub kind: SharedKind,
    /// In bytes.
    pub size: u64,
    /// Stored pages: (page in the shared memory, how many, place in its object), ascending.
    pub pages: Vec<(u64, u64, u64)>,
}

impl Shared {
    /// The name of the object with its pages.
    pub fn object(&self) -> String {
        format!("shared-{:x}-{}", self.inode.dev, self.inode.ino)
    }
}

/// What made a piece of shared memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum SharedKind {
    /// mmap(MAP_SHARED | MAP_ANONYMOUS).
    Anonymous,
    /// memfd_create(2); the name.
    Memfd {
        /// As given.
        name: PathBytes,
    },
}

/// Which pages of this image are in another, its parent: `memory/parent.json`. They are left out of the
/// pieces of their object, whose other pages close up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inherited {
    /// Where the parent is, relative to the directory of this image.
    pub image: PathBytes,
    /// [`Reader::identity`](super::archive::Reader::identity) of the parent.
    pub identity: String,
    /// Objects of the parent, to be named by their number.
    pub sources: Vec<String>,
    /// By object of this image, ascending, without overlaps.
    pub objects: BTreeMap<String, Vec<InheritedRun>>,
}

/// A run of pages that another image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InheritedRun {
    /// Number of the first page in this image's object.
    pub page: u64,
    /// How many.
    pub pages: u64,
    /// Which of [`Inherited::sources`].
    pub source: u32,
    /// Number of the first page there.
    pub there: u64,
}

/// The member that holds [`Inherited`].
pub const INHERITED: &str = "memory/parent.json";
/// Pieces below this name, by object: BLAKE3 of every page, one after the other. Only images have them
/// that may become parents.
pub const DIGESTS: &str = "memory/digests";
/// The object of an image of the memory only: every different page once.
pub const DISTINCT: &str = "distinct";
/// Where in [`DISTINCT`] the pages of processes are, as they were while they were read:
/// `memory/places.json`, a list of [`Places`].
pub const PLACES: &str = "memory/places.json";

/// Where the pages of one process are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Places {
    /// As the host numbered it.
    pub host_pid: i32,
    /// Its start time, in clock ticks since boot.
    pub start_time: u64,
    /// Ascending by address; the place is one in [`DISTINCT`].
    pub runs: Vec<PageRun>,
}
