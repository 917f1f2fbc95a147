//! The areas of stopped processes.

use super::source::{SharedSource, Source};
use super::{attributes, pages};
use crate::error::{Context, Error, Refusals, Result};
use crate::image::files::Inode;
use crate::image::memory::{Area, Backing, Memory, Objects, Program, Shared, SharedKind, Vdso};
use crate::proc::maps;
use crate::proc::read::Process;
use crate::proc::smaps::Smap;
use crate::resource::files::{Capturer, Subject};
use crate::sys::remote;
use crate::tracee::batch::{Answer, Answers, Batch};
use crate::tracee::calls;
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// What a process has to be asked about its memory.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    brk: Answer<u64>,
}

/// Pushes the questions.
pub fn ask(batch: &mut Batch) -> Ask {
    Ask {
        // An end below the beginning is refused by answering with the present one.
        brk: batch.push_tolerant(calls::Brk { end: 0u64.into() }),
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Collector {
    objects: Objects,
    /// The device of memory files and shared anonymous memory.
    shmem: u64,
    files: HashMap<(maps::Device, u64, Vec<u8>), Option<u32>>,
    shared: HashMap<Inode, u32>,
    shared_files: Vec<File>,
    spaces: Vec<pages::Space>,
}

impl Collector {
    /// An empty one.
    pub fn new() -> Result<Self> {
        Ok(Self {
            objects: Objects::default(),
            shmem: shmem_device()?,
            files: HashMap::new(),
            shared: HashMap::new(),
            shared_files: Vec::new(),
            spaces: Vec::new(),
        })
    }

    /// Collects the areas of one process; its pages come with [`Collector::finish`], in the order of
    /// the calls.
    pub fn space(
        &mut self,
        subject: &Subject,
        brk: u64,
        files: &mut Capturer<'_>,
        refusals: &mut Refusals,
    ) -> Result<Memory> {
        let doing = || format!("collecting the memory of pid {}", subject.pid);
        let process = Process::new(subject.host_pid);
        let mut memory = Memory {
            program: program(&process, subject, brk, files, refusals).doing(doing)?,
            ..Memory::default()
        };
        let mut parts = Vec::new();
        for smap in process.smaps().doing(doing)? {
            if smap.area.path == b"[vsyscall]" {
                continue;
            }
            let object = || {
                format!(
                    "pid {} ({}), memory {:x}-{:x} {}",
                    subject.pid,
                    subject.comm,
                    smap.area.start,
                    smap.area.end,
                    String::from_utf8_lossy(&smap.area.path)
                )
            };
            if is_kernels(&smap.area) {
                parts.push((smap.area.start, smap.area.end));
            } else if let Some((code, reason, remedy)) = attributes::refusal(&smap.flags) {
                refusals.add(code, object(), reason, remedy);
                continue;
            }
            let Some(backing) = self
                .backing(subject, &smap, files, &object, refusals)
                .doing(doing)?
            else {
                continue;
            };
            memory.areas.push(Area {
                start: smap.area.start,
                end: smap.area.end,
                perms: smap.area.perms.to_string(),
                backing,
                name: given_name(&smap.area).map(Into::into),
                attributes: if backing == Backing::Vdso {
                    Vec::new()
                } else {
                    attributes::of(&smap.flags, smap.area.perms)
                },
            });
        }
        memory.vdso = vdso(subject.host_pid, &parts).doing(doing)?;
        self.spaces
            .push(pages::scan(subject.host_pid, &memory.areas).doing(doing)?);
        Ok(memory)
    }

    fn backing(
        &mut self,
        subject: &Subject,
        smap: &Smap,
        files: &mut Capturer<'_>,
        object: &dyn Fn() -> String,
        refusals: &mut Refusals,
    ) -> Result<Option<Backing>> {
        let area = &smap.area;
        if !area.has_file() {
            return Ok(if is_kernels(area) {
                Some(Backing::Vdso)
            } else if let Some((code, reason, remedy)) = special_refusal(area) {
                refusals.add(code, object(), reason, remedy);
                None
            } else {
                Some(Backing::Anonymous)
            });
        }
        // VM_MAYWRITE of a shared mapping: the file was opened for writing.
        let writable = area.perms.shared && smap.flags.has("mw");
        let device = libc::makedev(area.device.major, area.device.minor);
        if device == self.shmem {
            if area.path.starts_with(b"/SYSV") {
                let id = i32::try_from(area.inode).map_err(|_| Error::bug("a segment's number"))?;
                return Ok(Some(Backing::SystemV {
                    id,
                    offset: area.offset,
                }));
            }
            return Ok(Some(Backing::Shared {
                object: self.shared_object(subject, area, device)?,
                offset: area.offset,
                writable,
            }));
        }
        if let Some((code, reason, remedy)) = special_refusal(area) {
            refusals.add(code, object(), reason, remedy);
            return Ok(None);
        }
        let key = (area.device, area.inode, area.path.clone());
        let known = match self.files.get(&key) {
            Some(known) => *known,
            None => {
                let fd = map_file(subject.host_pid, area, libc::O_PATH)?;
                let found = files.refer(subject, fd.as_fd(), &area.path, &object(), refusals)?;
                let known = found.map(|reference| {
                    self.objects.files.push(reference);
                    self.objects.files.len() as u32 - 1
                });
                self.files.insert(key, known);
                known
            }
        };
        Ok(known.map(|file| Backing::File {
            file,
            offset: area.offset,
            writable,
        }))
    }

    fn shared_object(&mut self, subject: &Subject, area: &maps::Area, dev: u64) -> Result<u32> {
        let inode = Inode {
            dev,
            ino: area.inode,
        };
        if let Some(known) = self.shared.get(&inode) {
            return Ok(*known);
        }
        let path = area.file_path().unwrap_or_default();
        let kind = match path.strip_prefix(b"/memfd:") {
            Some(name) => SharedKind::Memfd { name: name.into() },
            None => SharedKind::Anonymous,
        };
        let file = map_file(subject.host_pid, area, libc::O_RDONLY)?;
        self.add_shared(inode, kind, file)
    }

    fn add_shared(&mut self, inode: Inode, kind: SharedKind, file: File) -> Result<u32> {
        let number = self.objects.shared.len() as u32;
        self.objects.shared.push(Shared {
            inode,
            kind,
            size: file
                .metadata()
                .doing(|| "asking for the size of shared memory")?
                .len(),
            pages: Vec::new(),
        });
        self.shared.insert(inode, number);
        self.shared_files.push(file);
        Ok(number)
    }

    /// Numbers all pages: fills in [`Memory::pages`] and [`Memory::guards`] of the `memories` that
    /// [`Collector::space`] gave, in the same order. `memfds` are the memory files that descriptors
    /// refer to, mapped or not, with their names.
    pub fn finish(
        mut self,
        memories: &mut [&mut Memory],
        memfds: BTreeMap<Inode, (Vec<u8>, OwnedFd)>,
    ) -> Result<(Objects, Source)> {
        for (inode, (name, fd)) in memfds {
            if !self.shared.contains_key(&inode) {
                let kind = SharedKind::Memfd {
                    name: name.as_slice().into(),
                };
                self.add_shared(inode, kind, File::from(fd))?;
            }
        }
        let mut shared = Vec::new();
        for (object, file) in self.objects.shared.iter_mut().zip(self.shared_files) {
            object.pages = pages::extents(&file, object.size)
                .doing(|| format!("looking for the pages of {}", object.object()))?;
            shared.push(SharedSource {
                object: object.object(),
                file,
                pages: object.pages.clone(),
            });
        }
        let numbered = pages::number(&self.spaces)?;
        for (memory, (runs, space)) in memories
            .iter_mut()
            .zip(numbered.runs.into_iter().zip(&self.spaces))
        {
            memory.pages = runs;
            memory.guards.clone_from(&space.guards);
        }
        self.objects.anonymous_pages = numbered.total;
        Ok((
            self.objects,
            Source {
                pieces: numbered.pieces,
                shared,
            },
        ))
    }
}

/// Why an area with such a name cannot be taken along: code, reason, remedy.
pub(super) fn special_refusal(
    area: &maps::Area,
) -> Option<(&'static str, &'static str, &'static str)> {
    let begins = |prefix: &[u8]| area.path.starts_with(prefix);
    if area.path == b"[uprobes]" {
        return Some((
            "E-MEMORY-UPROBES",
            "a tracer has probes in this process",
            "remove the probes (perf, bpftrace)",
        ));
    }
    let of_object = begins(b"anon_inode:") || begins(b"/[aio]") || begins(b"/secretmem");
    (area.has_file() && of_object).then_some((
        "E-MEMORY-SPECIAL",
        "it belongs to a kernel object that cannot be read or made again (io_uring, aio, perf, secret memory)",
        "let the program close it before the checkpoint",
    ))
}

pub(super) fn is_kernels(area: &maps::Area) -> bool {
    matches!(area.special(), Some(name) if name == b"[vdso]" || name.starts_with(b"[vvar"))
}

/// The name that the process gave to anonymous memory.
fn given_name(area: &maps::Area) -> Option<&[u8]> {
    let name = area
        .path
        .strip_prefix(b"[anon:")
        .or_else(|| area.path.strip_prefix(b"[anon_shmem:"))?;
    name.strip_suffix(b"]")
}

pub(super) fn map_file(host_pid: i32, area: &maps::Area, flags: i32) -> Result<File> {
    let path = format!("/proc/{host_pid}/map_files/{:x}-{:x}", area.start, area.end);
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&path)
        .doing(|| format!("opening {path}"))
}

/// The device of memory files and shared anonymous memory.
pub(super) fn shmem_device() -> Result<u64> {
    let fd = nix::sys::memfd::memfd_create(c"ocimig", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .doing(|| "making a memory file")?;
    Ok(File::from(fd).metadata()?.dev())
}

fn program(
    process: &Process,
    subject: &Subject,
    brk: u64,
    files: &mut Capturer<'_>,
    refusals: &mut Refusals,
) -> Result<Program> {
    let stat = process.stat()?;
    let path = process.path("exe");
    let exe = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(&path)
        .doing(|| format!("opening {}", path.display()))?;
    let link = process.link("exe")?;
    let object = format!("program of pid {} ({})", subject.pid, subject.comm);
    Ok(Program {
        exe: files.refer(subject, exe.as_fd(), &link, &object, refusals)?,
        start_code: stat.start_code,
        end_code: stat.end_code,
        start_data: stat.start_data,
        end_data: stat.end_data,
        start_brk: stat.start_brk,
        brk,
        start_stack: stat.start_stack,
        arg_start: stat.arg_start,
        arg_end: stat.arg_end,
        env_start: stat.env_start,
        env_end: stat.env_end,
        auxv: process.auxv()?,
    })
}

fn vdso(host_pid: i32, parts: &[(u64, u64)]) -> Result<Option<Vdso>> {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return Ok(None);
    };
    let mut code = vec![0; (last.1 - last.0) as usize];
    let read = remote::read(host_pid, last.0, &mut code).doing(|| "reading the vdso")?;
    Ok(Some(Vdso {
        start: first.0,
        parts: parts
            .iter()
            .map(|(start, end)| (start - first.0, end - start))
            .collect(),
        digest: blake3::hash(&code[..read]).to_hex().to_string(),
    }))
}

impl Ask {
    /// The end of the heap.
    pub fn brk(&self, answers: &Answers) -> u64 {
        answers.get(self.brk)
    }
}
