//! The memory of a running process, looked at and left alone: what each area is for, how much of it
//! is where, and what a checkpoint would do with it.
//!
//! The process runs on while it is looked at: what it maps and unmaps meanwhile may be missing or
//! counted twice, and figures of one area may be of two moments.

use super::{attributes, collect, pages};
use crate::error::{Cause, Context, Error, Exit, Result};
use crate::image::memory::PAGE;
use crate::proc::classify::{Class, Hints, classify};
use crate::proc::maps::Area;
use crate::proc::read::Process;
use crate::proc::small::auxv;
use crate::proc::smaps::Smap;
use crate::proc::status::State;
use crate::sys::pagemap::category;
use nix::errno::Errno;
use std::fs::File;

/// What a checkpoint would do with an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Store pages of it.
    Stored,
    /// Nothing: all of it is in its file.
    InFile,
    /// Nothing: no page of it was ever filled.
    Empty,
    /// Nothing: the kernel maps it by itself.
    Kernel,
    /// Refuse it: code and reason.
    Refused(&'static str, &'static str),
}

impl Fate {
    /// Stable, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Fate::Stored => "stored",
            Fate::InFile => "file",
            Fate::Empty => "empty",
            Fate::Kernel => "kernel",
            Fate::Refused(..) => "refused",
        }
    }
}

/// An area. Figures are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// What maps says.
    pub area: Area,
    /// What it is for.
    pub class: Class,
    /// In memory.
    pub resident: u64,
    /// In memory, changed, and of this process alone.
    pub private_dirty: u64,
    /// What a checkpoint would store of it. Pages that processes share, or that one maps twice, are
    /// stored once; each area that shows them counts them.
    pub stored: u64,
    /// What a checkpoint would do with it.
    pub fate: Fate,
}

/// Looks at a process. E-NO-PROCESS, E-KERNEL-THREAD, E-PERMISSION.
pub fn look(host_pid: i32) -> Result<Vec<Region>> {
    let process = Process::new(host_pid);
    expect_memory(&process)?;
    let smaps = process.smaps().map_err(|error| explain(&process, error))?;
    if smaps.is_empty() {
        return Err(gone(host_pid));
    }
    let path = process.path("pagemap");
    let found = File::open(&path)
        .doing(|| format!("opening {}", path.display()))
        .and_then(|pagemap| pages::private(&pagemap))
        .map_err(|error| explain(&process, error))?;
    let runs: Vec<(u64, u64)> = found
        .iter()
        .filter(|run| run.categories & category::GUARD == 0)
        .map(|run| (run.start, run.end))
        .collect();
    let areas: Vec<Area> = smaps.iter().map(|smap| smap.area.clone()).collect();
    let classes = classify(&areas, &hints(&process));
    let shmem = collect::shmem_device()?;
    let mut runs = runs.as_slice();
    Ok(smaps
        .into_iter()
        .zip(classes)
        .map(|(smap, class)| {
            let private = private_bytes(&mut runs, &smap.area);
            let stored = private + shared_bytes(host_pid, &smap, shmem);
            let fate = fate(&smap, stored);
            Region {
                class,
                resident: smap.rss + smap.hugetlb,
                private_dirty: smap.private_dirty,
                stored: if fate == Fate::Stored { stored } else { 0 },
                fate,
                area: smap.area,
            }
        })
        .collect())
}

/// What helps to tell what areas are for. A process that may not be asked gives none.
fn hints(process: &Process) -> Hints {
    let auxv = process.auxv().unwrap_or_default();
    let of = |wanted| {
        auxv.iter()
            .find(|(key, value)| *key == wanted && *value != 0)
            .map(|pair| pair.1)
    };
    let threads = process.threads().unwrap_or_default();
    let pointer = |tid: &i32| process.thread(*tid).syscall().ok()?.stack_pointer();
    Hints {
        entry: of(auxv::ENTRY),
        loader: of(auxv::BASE),
        stack_pointers: threads
            .iter()
            .filter(|tid| **tid != process.host_pid())
            .filter_map(pointer)
            .collect(),
    }
}

/// Some processes have none.
fn expect_memory(process: &Process) -> Result<()> {
    let host_pid = process.host_pid();
    let stat = process.stat().map_err(|error| explain(process, error))?;
    let comm = String::from_utf8_lossy(&stat.comm).into_owned();
    if stat.is_kernel_thread() {
        return Err(Error::coded(
            "E-KERNEL-THREAD",
            Exit::Usage,
            format!(
                "process {host_pid} ({comm}) is a thread of the kernel and has no memory of its own"
            ),
            "give the number of a program's process",
        ));
    }
    if matches!(stat.state, State::Zombie | State::Dead) {
        return Err(Error::coded(
            "E-NO-PROCESS",
            Exit::NotFound,
            format!("process {host_pid} ({comm}) has ended; only its exit code is left"),
            "",
        ));
    }
    Ok(())
}

fn gone(host_pid: i32) -> Error {
    Error::coded(
        "E-NO-PROCESS",
        Exit::NotFound,
        format!("there is no process {host_pid}"),
        "",
    )
}

fn explain(process: &Process, error: Error) -> Error {
    let host_pid = process.host_pid();
    if matches!(error.cause(), Cause::Gone { .. }) {
        return gone(host_pid);
    }
    match error.errno() {
        Some(Errno::EACCES | Errno::EPERM) => Error::coded(
            "E-PERMISSION",
            Exit::Host,
            format!("the memory of process {host_pid} may not be looked at: {error}"),
            "run ocimig as root, with CAP_SYS_PTRACE",
        ),
        _ => error,
    }
}

/// How much of `area` lies in `runs`, which are ascending; what ends before it is dropped.
fn private_bytes(runs: &mut &[(u64, u64)], area: &Area) -> u64 {
    while let Some((first, rest)) = runs.split_first()
        && first.1 <= area.start
    {
        *runs = rest;
    }
    runs.iter()
        .take_while(|run| run.0 < area.end)
        .map(|run| run.1.min(area.end) - run.0.max(area.start))
        .sum()
}

/// How much of the memory file that is mapped here holds something. Without the right to open it
/// (CAP_CHECKPOINT_RESTORE), what this process has touched.
fn shared_bytes(host_pid: i32, smap: &Smap, shmem: u64) -> u64 {
    let area = &smap.area;
    let device = libc::makedev(area.device.major, area.device.minor);
    if !area.has_file() || device != shmem {
        return 0;
    }
    let count = || -> Result<u64> {
        let file = collect::map_file(host_pid, area, libc::O_RDONLY)?;
        let size = file.metadata()?.len();
        let wanted = (area.offset, area.offset.saturating_add(area.size()));
        let within = pages::extents(&file, size)?
            .into_iter()
            .map(|(page, count, _)| {
                let start = (page * PAGE).max(wanted.0);
                ((page + count) * PAGE).min(wanted.1).saturating_sub(start)
            });
        Ok(within.sum())
    };
    count().unwrap_or(smap.rss + smap.swap)
}

fn fate(smap: &Smap, stored: u64) -> Fate {
    let area = &smap.area;
    if collect::is_kernels(area) || area.path == b"[vsyscall]" {
        return Fate::Kernel;
    }
    let refusal = attributes::refusal(&smap.flags).or_else(|| collect::special_refusal(area));
    match refusal {
        Some((code, reason, _)) => Fate::Refused(code, reason),
        None if stored > 0 => Fate::Stored,
        None if area.has_file() => Fate::InFile,
        None => Fate::Empty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::classify::Kind;
    use crate::proc::read::processes;
    use crate::sys::testing;
    use std::os::fd::AsFd;

    fn own() -> i32 {
        std::process::id() as i32
    }

    fn region_of(address: u64) -> Region {
        let regions = look(own()).unwrap();
        let found = regions.into_iter().find(|one| one.area.contains(address));
        found.unwrap()
    }

    #[test]
    fn what_was_written_would_be_stored_and_nothing_else() {
        const PAGES: usize = 8192;
        let mut memory = vec![0u8; PAGES * PAGE as usize];
        for page in memory.chunks_mut(2 * PAGE as usize) {
            page[0] = 1;
        }
        let region = region_of(memory.as_ptr() as u64 + PAGE);
        let half = (PAGES / 2) as u64 * PAGE;
        assert_eq!(region.class.kind, Kind::Anonymous);
        assert_eq!(region.fate, Fate::Stored);
        assert!(region.area.size() >= 2 * half);
        for figure in [region.stored, region.resident, region.private_dirty] {
            assert!(figure >= half, "{region:?}");
            assert!(figure <= region.area.size() - half + PAGE, "{region:?}");
        }
    }

    #[test]
    fn shared_memory_is_counted_by_what_its_file_holds() {
        const SIZE: usize = 16 * PAGE as usize;
        let name = c"ocimig-regions";
        let fd =
            nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, SIZE as i64).unwrap();
        let mapping = testing::map_shared(fd.as_fd(), SIZE);
        // Two pages that nobody has touched through the mapping.
        nix::sys::uio::pwrite(&fd, &[1; 2 * PAGE as usize], 4 * PAGE as i64).unwrap();
        let region = region_of(mapping.address());
        assert_eq!(region.class.kind, Kind::Memfd);
        assert_eq!(region.stored, 2 * PAGE);
        assert_eq!(region.resident, 0);
    }

    #[test]
    fn code_comes_from_its_file_and_the_vdso_from_the_kernel() {
        let regions = look(own()).unwrap();
        let of = |kind| regions.iter().find(|one| one.class.kind == kind).unwrap();
        assert_eq!(of(Kind::Text).fate, Fate::InFile);
        assert_eq!(of(Kind::Text).stored, 0);
        assert_eq!(of(Kind::Vdso).fate, Fate::Kernel);
        assert_eq!(of(Kind::Vvar).fate, Fate::Kernel);
        assert_eq!(of(Kind::Stack).fate, Fate::Stored);
        // Tests run on threads.
        assert!(of(Kind::ThreadStack).resident > 0);
    }

    #[test]
    fn a_thread_is_found_by_where_it_stands() {
        let here = 0u8;
        let address = (&raw const here) as u64;
        assert_eq!(region_of(address).class.kind, Kind::ThreadStack);
    }

    #[test]
    fn who_has_no_memory_is_told_so() {
        let code = |pid| look(pid).unwrap_err().code();
        assert_eq!(code(i32::MAX), "E-NO-PROCESS");
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let pid = ended.id() as i32;
        let is_zombie = || Process::new(pid).stat().unwrap().state == State::Zombie;
        while !is_zombie() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let error = look(pid).unwrap_err();
        assert_eq!(error.code(), "E-NO-PROCESS");
        assert!(error.to_string().contains("has ended"), "{error}");
        ended.wait().unwrap();
        let is_kernels = |pid: &i32| {
            let stat = Process::new(*pid).stat();
            stat.is_ok_and(|stat| stat.is_kernel_thread())
        };
        // In a PID namespace there are none.
        if let Some(thread) = processes().unwrap().into_iter().find(is_kernels) {
            assert_eq!(code(thread), "E-KERNEL-THREAD");
        }
    }
}
