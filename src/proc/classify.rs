//! What the areas of an address space are: five segments, and in each the finer kinds.
//!
//! The segments are those that `ocimig regions` has shown since its first day, and they are defined by
//! an example, bash on CentOS 7 (`classify/samples/bash-centos7.txt`):
//!
//! 1. TEXT: what the program executes of its own file.
//! 2. DATA: everything else of the program's file, and the bss behind it.
//! 3. HEAP + Shared Library: the heap, libraries, the loader up to the end of its text, and whatever
//!    else was mapped: files, anonymous memory, shared memory, generated code.
//! 4. STACK: the stack, and with it the loader's data, the anonymous memory between the loader's text
//!    and its data and right behind them; the stacks of threads with their guards.
//! 5. VDSO + Vsyscall: what the kernel maps by itself.
//!
//! maps says what is mapped, not what for; so part of this is judgement: it is right for the samples
//! in `classify/samples`, which are real, and each rule says what it goes by.

use super::maps::{Area, Device};
use std::fmt;

/// The five segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// 1.
    Text = 1,
    /// 2.
    Data,
    /// 3.
    Heap,
    /// 4.
    Stack,
    /// 5.
    Vdso,
}

impl Segment {
    /// In order.
    pub const ALL: [Segment; 5] = [
        Segment::Text,
        Segment::Data,
        Segment::Heap,
        Segment::Stack,
        Segment::Vdso,
    ];

    /// As it stands above the list, number included.
    pub fn heading(self) -> &'static str {
        match self {
            Segment::Text => "1. TEXT",
            Segment::Data => "2. DATA",
            Segment::Heap => "3. HEAP + Shared Library",
            Segment::Stack => "4. STACK",
            Segment::Vdso => "5. VDSO (Virtual Dynamic Shared Object) Segment + Vsyscall Segment",
        }
    }
}

/// What an area is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Executable and from the program's file (or between its parts).
    Text,
    /// From the program's file, never writable.
    Rodata,
    /// From the program's file, made read-only after relocation.
    Relro,
    /// From the program's file, writable.
    Data,
    /// Zeroed memory behind the data of the program or of a library.
    Bss,
    /// The break area.
    Heap,
    /// From the file of a library.
    SharedLibrary,
    /// From the file of the loader.
    Loader,
    /// `---p` inside the program, a library or the loader.
    Restricted,
    /// From any other file.
    File,
    /// Private memory without a file.
    Anonymous,
    /// Address space that is held without any access.
    Reserved,
    /// Executable without a file: generated code.
    Jit,
    /// Shared anonymous memory, System V segments, files in /dev/shm.
    SharedMemory,
    /// A memory file.
    Memfd,
    /// Huge TLB pages.
    HugePages,
    /// A device.
    Device,
    /// Belongs to another object of the kernel: io_uring, aio, perf, a packet socket, secret memory.
    KernelObject,
    /// The first thread's stack.
    Stack,
    /// The stack of another thread.
    ThreadStack,
    /// Without access, below the stack of a thread.
    Guard,
    /// Data of the vdso.
    Vvar,
    /// Clocks of the hypervisor for the vdso.
    VvarVclock,
    /// Code of the kernel in the process.
    Vdso,
    /// The same at its old fixed address.
    Vsyscall,
    /// Any other area that the kernel maps by itself.
    Kernel,
}

impl Kind {
    /// Stable, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Rodata => "rodata",
            Kind::Relro => "relro",
            Kind::Data => "data",
            Kind::Bss => "bss",
            Kind::Heap => "heap",
            Kind::SharedLibrary => "shared-library",
            Kind::Loader => "loader",
            Kind::Restricted => "restricted",
            Kind::File => "file",
            Kind::Anonymous => "anonymous",
            Kind::Reserved => "reserved",
            Kind::Jit => "jit",
            Kind::SharedMemory => "shared-memory",
            Kind::Memfd => "memfd",
            Kind::HugePages => "huge-pages",
            Kind::Device => "device",
            Kind::KernelObject => "kernel-object",
            Kind::Stack => "stack",
            Kind::ThreadStack => "thread-stack",
            Kind::Guard => "guard",
            Kind::Vvar => "vvar",
            Kind::VvarVclock => "vvar-vclock",
            Kind::Vdso => "vdso",
            Kind::Vsyscall => "vsyscall",
            Kind::Kernel => "kernel",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What is known of a living process beside its maps. Nothing of it is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// An address inside the program: AT_ENTRY of its auxiliary vector.
    pub entry: Option<u64>,
    /// Where the loader begins: AT_BASE.
    pub loader: Option<u64>,
    /// Stack pointers of all threads but the first.
    pub stack_pointers: Vec<u64>,
}

/// Segment and kind of an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// Where it is listed.
    pub segment: Segment,
    /// What it is for.
    pub kind: Kind,
}

/// Classifies the areas of one address space (ascending, as in maps): one class for each.
pub fn classify(areas: &[Area], hints: &Hints) -> Vec<Class> {
    let space = Space::new(areas, hints);
    let mut classes: Vec<Class> = Vec::with_capacity(areas.len());
    for index in 0..areas.len() {
        let (segment, kind) = space.class(index, classes.last().copied());
        classes.push(Class { segment, kind });
    }
    classes
}

/// A file as maps tells files apart.
type FileId<'a> = (Device, u64, &'a [u8]);

struct Space<'a> {
    areas: &'a [Area],
    hints: &'a Hints,
    program: Option<FileId<'a>>,
    /// Whether any area of the program is writable.
    program_writable: bool,
    loader: Option<FileId<'a>>,
    /// The loader: end of its text, end of its last area.
    loader_span: (u64, u64),
    /// Files that have an executable area.
    executed: Vec<FileId<'a>>,
}

impl<'a> Space<'a> {
    fn new(areas: &'a [Area], hints: &'a Hints) -> Self {
        let mut executed: Vec<FileId> = Vec::new();
        for area in areas.iter().filter(|area| area.perms.execute) {
            executed.extend(file(area).filter(|id| !executed.contains(id)));
        }
        let at = |address| {
            areas
                .iter()
                .find(|area| area.contains(address))
                .and_then(file)
        };
        let program = hints
            .entry
            .and_then(at)
            .or_else(|| guess_program(areas, &executed));
        let loader = hints
            .loader
            .and_then(at)
            .or_else(|| executed.iter().copied().find(|id| is_loader_name(id.2)))
            .filter(|id| Some(*id) != program);
        let of_loader = || {
            areas
                .iter()
                .filter(|area| loader.is_some() && file(area) == loader)
        };
        let text_end = of_loader()
            .filter(|area| area.perms.execute)
            .map(|area| area.end)
            .max();
        Self {
            areas,
            hints,
            program,
            program_writable: areas
                .iter()
                .any(|area| file(area) == program && area.perms.write),
            loader,
            loader_span: (
                text_end.unwrap_or(u64::MAX),
                of_loader().map(|area| area.end).max().unwrap_or(0),
            ),
            executed,
        }
    }

    fn class(&self, index: usize, last: Option<Class>) -> (Segment, Kind) {
        let area = &self.areas[index];
        if let Some(class) = special(area) {
            return class;
        }
        match file(area) {
            Some(id) if Some(id) == self.program && !area.perms.shared => {
                self.of_program(index, area)
            }
            Some(id) if Some(id) == self.loader => {
                let segment = if area.end <= self.loader_span.0 {
                    Segment::Heap
                } else {
                    Segment::Stack
                };
                (segment, restricted_or(area, Kind::Loader))
            }
            Some(id) => (Segment::Heap, self.of_file(area, id)),
            None => self.without_file(index, area, last),
        }
    }

    fn of_program(&self, index: usize, area: &Area) -> (Segment, Kind) {
        if area.perms.execute {
            return (Segment::Text, Kind::Text);
        }
        let kind = match () {
            () if area.perms.none() => Kind::Restricted,
            () if area.perms.write => Kind::Data,
            () if self.is_relro(index, area) => Kind::Relro,
            () => Kind::Rodata,
        };
        (Segment::Data, kind)
    }

    /// Relro and data are one piece of the file, so that address and offset differ by the same number.
    /// Rodata can lie just there as well; but between it and relro the kernel keeps a seam, and
    /// behind text it goes on at the text's own difference.
    fn is_relro(&self, index: usize, area: &Area) -> bool {
        let own = |other: &&Area| file(other) == self.program;
        let difference = |area: &Area| area.start.wrapping_sub(area.offset);
        let before_data = self
            .next(index)
            .filter(own)
            .is_some_and(|next| next.perms.write && difference(next) == difference(area));
        let goes_on = self
            .before(index)
            .filter(own)
            .is_some_and(|text| text.perms.execute && difference(text) == difference(area));
        before_data && !goes_on
    }

    fn of_file(&self, area: &Area, id: FileId) -> Kind {
        let path = id.2;
        let begins = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| path.starts_with(prefix));
        match () {
            () if begins(&[b"/memfd:"]) => Kind::Memfd,
            () if path == b"/dev/zero" && !area.perms.shared => Kind::Anonymous,
            () if begins(&[b"/dev/zero", b"/SYSV", b"/dev/shm/", b"[anon_shmem:"]) => {
                Kind::SharedMemory
            }
            () if begins(&[b"/anon_hugepage"]) => Kind::HugePages,
            () if begins(&[b"anon_inode:", b"/[aio]", b"/secretmem", b"socket:"]) => {
                Kind::KernelObject
            }
            () if begins(&[b"/dev/"]) => Kind::Device,
            () if self.is_library(id) => restricted_or(area, Kind::SharedLibrary),
            () => Kind::File,
        }
    }

    /// A library has code; one that was mapped for its data alone is told by its name.
    fn is_library(&self, id: FileId) -> bool {
        self.executed.contains(&id) || is_library_name(id.2)
    }

    fn without_file(&self, index: usize, area: &Area, last: Option<Class>) -> (Segment, Kind) {
        let kind = match () {
            () if self.is_thread_stack(index) => return (Segment::Stack, Kind::ThreadStack),
            () if self.is_guard(index) => return (Segment::Stack, Kind::Guard),
            () if area.perms.none() => Kind::Reserved,
            () if area.perms.execute => Kind::Jit,
            () => Kind::Anonymous,
        };
        let before = self.before(index);
        let id = before.and_then(file);
        if kind == Kind::Jit && id.is_some() && id == self.program {
            // Code that was moved to huge pages leaves a hole in the file.
            let after = self.next(index).and_then(file);
            if after == self.program {
                return (Segment::Text, Kind::Text);
            }
        }
        if kind == Kind::Anonymous && id.is_some() && id == self.program {
            let writable = before.is_some_and(|before| before.perms.write);
            if writable || !self.program_writable {
                return (Segment::Data, Kind::Bss);
            }
        }
        // A bss of several areas.
        let goes_on = before.is_some() && last.is_some_and(|last| last.kind == Kind::Bss);
        if kind == Kind::Anonymous
            && goes_on
            && last.is_some_and(|last| last.segment == Segment::Data)
        {
            return (Segment::Data, Kind::Bss);
        }
        let (text_end, data_end) = self.loader_span;
        if area.start >= text_end && area.end <= data_end {
            return (Segment::Stack, kind);
        }
        match id {
            Some(id) if Some(id) == self.loader && kind == Kind::Anonymous => {
                (Segment::Stack, Kind::Bss)
            }
            Some(id) if kind == Kind::Anonymous && self.is_bss_of_library(area, before, id) => {
                (Segment::Heap, Kind::Bss)
            }
            _ => (Segment::Heap, kind),
        }
    }

    /// Behind a library's data, and no larger than the library: the kernel merges anonymous memory
    /// that happens to lie there with the bss, and then most of it is something else.
    fn is_bss_of_library(&self, area: &Area, before: Option<&Area>, id: FileId) -> bool {
        let size = || {
            let parts = self.areas.iter().filter(|part| file(part) == Some(id));
            parts.map(Area::size).sum::<u64>()
        };
        before.is_some_and(|before| before.perms.write)
            && self.is_library(id)
            && area.size() <= size()
    }

    /// By its name, by a thread that stands in it, or by the guard below it.
    fn is_thread_stack(&self, index: usize) -> bool {
        /// PTHREAD_STACK_MIN.
        const LEAST: u64 = 16 << 10;
        let area = &self.areas[index];
        if file(area).is_some() || !area.perms.read || !area.perms.write {
            return false;
        }
        if is_stack_name(&area.path) {
            return true;
        }
        let used = |pointer: &u64| area.contains(*pointer);
        if !is_go_heap(area) && self.hints.stack_pointers.iter().any(used) {
            return true;
        }
        let guarded = self
            .before(index)
            .is_some_and(|before| is_small_hole(before) && !is_arena(area));
        guarded && !area.perms.execute && area.path.is_empty() && area.size() >= LEAST
    }

    fn is_guard(&self, index: usize) -> bool {
        is_small_hole(&self.areas[index])
            && self.next(index).is_some()
            && self.is_thread_stack(index + 1)
    }

    /// The area before, if it ends where this one begins.
    fn before(&self, index: usize) -> Option<&'a Area> {
        let before = self.areas.get(index.checked_sub(1)?)?;
        (before.end == self.areas[index].start).then_some(before)
    }

    /// The area behind, if it begins where this one ends.
    fn next(&self, index: usize) -> Option<&'a Area> {
        let next = self.areas.get(index + 1)?;
        (next.start == self.areas[index].end).then_some(next)
    }
}

fn file(area: &Area) -> Option<FileId<'_>> {
    let path = area.file_path()?;
    Some((area.device, area.inode, path))
}

fn restricted_or(area: &Area, kind: Kind) -> Kind {
    if area.perms.none() {
        Kind::Restricted
    } else {
        kind
    }
}

/// The areas that the kernel names.
fn special(area: &Area) -> Option<(Segment, Kind)> {
    let name = area.special()?;
    Some(match name {
        b"[heap]" => (Segment::Heap, Kind::Heap),
        b"[stack]" => (Segment::Stack, Kind::Stack),
        b"[vdso]" => (Segment::Vdso, Kind::Vdso),
        b"[vvar]" => (Segment::Vdso, Kind::Vvar),
        b"[vvar_vclock]" => (Segment::Vdso, Kind::VvarVclock),
        b"[vsyscall]" => (Segment::Vdso, Kind::Vsyscall),
        _ if name.starts_with(b"[anon:") => return None,
        // So Linux 3.4 to 4.4 named the stacks of threads.
        _ if name.starts_with(b"[stack:") => (Segment::Stack, Kind::ThreadStack),
        _ => (Segment::Vdso, Kind::Kernel),
    })
}

/// Without its auxiliary vector, the program is the file whose code lies nearest below the heap, and
/// without a heap (or with a static program that was loaded above it), the lowest. Libraries come
/// into question only when there is nothing else.
fn guess_program<'a>(areas: &'a [Area], executed: &[FileId<'a>]) -> Option<FileId<'a>> {
    let is_code = |area: &&Area| area.perms.execute && file(area).is_some();
    let is_own =
        |area: &&Area| file(area).is_some_and(|id| !is_library_name(id.2) && !is_loader_name(id.2));
    let heap = areas
        .iter()
        .find(|area| area.special() == Some(b"[heap]"))
        .map_or(0, |area| area.start);
    let below = |area: &&Area| area.end <= heap;
    let own = || areas.iter().filter(is_code).filter(is_own);
    let found = own().rfind(below).or_else(|| own().next());
    found.and_then(file).or_else(|| executed.first().copied())
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

/// `libc.so.6`, `libc-2.17.so`.
fn is_library_name(path: &[u8]) -> bool {
    let name = base_name(path);
    name.ends_with(b".so") || name.windows(4).any(|part| part == b".so.")
}

/// `ld-2.17.so`, `ld-linux-x86-64.so.2`, `ld-musl-x86_64.so.1`, `ld64.so.2`, `ld.so.1`.
fn is_loader_name(path: &[u8]) -> bool {
    let name = base_name(path);
    is_library_name(name)
        && [&b"ld-"[..], b"ld.so", b"ld64.so"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// `[anon: glibc: pthread stack: 812]`, `[anon:stack_and_tls:812]`.
fn is_stack_name(path: &[u8]) -> bool {
    path.starts_with(b"[anon:") && path.windows(5).any(|part| part == b"stack")
}

/// What pthread_create and the JVM put below a stack: a page, or a few.
fn is_small_hole(area: &Area) -> bool {
    const MOST: u64 = 64 << 10;
    file(area).is_none() && area.special().is_none() && area.perms.none() && area.size() <= MOST
}

/// An arena of malloc begins at a multiple of 64 MiB; the hole before it is the rest of another.
fn is_arena(area: &Area) -> bool {
    const ARENA: u64 = 64 << 20;
    area.start.is_multiple_of(ARENA)
}

/// Where Go's heap begins on 64-bit machines. Its threads stand in pieces of it.
fn is_go_heap(area: &Area) -> bool {
    (0xc0_0000_0000..0xe0_0000_0000).contains(&area.start)
}

#[cfg(test)]
mod tests;
