//! System V shared memory.

use super::{id, identity, list, number, permissions, settings, with_number};
use crate::error::{Context, Refusals, Result};
use crate::image::bytes::Bytes;
use crate::image::namespaces::ipc::Segment;
use crate::proc::{Process, maps};
use crate::resource::memory::{extents, fill::Pages};
use crate::sys::sysv;
use nix::errno::Errno;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The stored pages of a segment.
#[derive(Debug)]
pub struct Content {
    /// Where they go in the image.
    pub object: String,
    /// Where they are read.
    pub file: File,
    /// (page in the segment, how many, place in the object)
    pub pages: Vec<(u64, u64, u64)>,
}

/// The mappings through which segments can be opened, by the segments' numbers.
pub(super) type Mapped = BTreeMap<i32, PathBuf>;

/// Who has attached what: the inode of such a mapping is the segment's number.
pub(super) fn mapped(host_pids: &[i32]) -> Result<Mapped> {
    let mut found = Mapped::new();
    for &host_pid in host_pids {
        let process = Process::new(host_pid);
        for area in process.maps()? {
            if let Some(id) = segment_of(&area) {
                let name = format!("map_files/{:x}-{:x}", area.start, area.end);
                found.entry(id).or_insert_with(|| process.path(name));
            }
        }
    }
    Ok(found)
}

fn segment_of(area: &maps::Area) -> Option<i32> {
    let is_segment = area.path.starts_with(b"/SYSV") && area.perms.shared;
    is_segment.then(|| i32::try_from(area.inode).ok())?
}

pub(super) fn capture(
    mapped: &Mapped,
    settings: &BTreeMap<String, String>,
    refusals: &mut Refusals,
) -> Result<(Vec<Segment>, Vec<Content>)> {
    let mut segments = Vec::new();
    let mut contents = Vec::new();
    for row in list("shm")? {
        let id = id(&row, "shmid")?;
        let state = sysv::segment(id).doing(|| format!("looking at segment {id}"))?;
        let mut segment = Segment {
            identity: identity(id, &state.permissions),
            size: state.size,
            attached: state.attached,
            removed: state.permissions.mode & sysv::SHM_DEST != 0,
            locked: state.permissions.mode & sysv::SHM_LOCKED != 0,
            pages: Vec::new(),
            tail: None,
        };
        let used = number(&row, "rss") != 0 || number(&row, "swap") != 0;
        let file = match mapped.get(&id) {
            Some(path) => Some(
                OpenOptions::new()
                    .read(true)
                    .open(path)
                    .doing(|| format!("opening {}", path.display()))?,
            ),
            None if state.attached == 0 && settings::removal_is_forced(settings) => {
                refusals.add(
                    "E-SHM-FORCED",
                    format!("System V segment {id}"),
                    "nobody has attached it, and kernel.shm_rmid_forced is set, so that it would \
                     vanish",
                    "attach it, or set kernel.shm_rmid_forced to 0",
                );
                None
            }
            None if used || may_be_huge() => {
                Some(sysv::open_segment(id, false).doing(|| format!("opening segment {id}"))?)
            }
            None => None,
        };
        if let Some(file) = file {
            read(file, &mut segment, &mut contents, refusals)
                .doing(|| format!("reading segment {id}"))?;
        }
        segments.push(segment);
    }
    Ok((segments, contents))
}

fn read(
    file: File,
    segment: &mut Segment,
    contents: &mut Vec<Content>,
    refusals: &mut Refusals,
) -> Result<()> {
    if fstatfs(&file)?.filesystem_type() == HUGETLBFS_MAGIC {
        refusals.add(
            "E-SHM-HUGETLB",
            format!("System V segment {}", segment.identity.id),
            "it is made of huge pages (SHM_HUGETLB), which is not supported",
            "make it of ordinary pages",
        );
        return Ok(());
    }
    if file.metadata()?.ino() != u64::from(segment.identity.id.cast_unsigned()) {
        return Err(Errno::ESTALE.into());
    }
    segment.pages = extents(&file, segment.size)?;
    let last = segment.size / crate::image::memory::PAGE;
    let part = !segment.size.is_multiple_of(crate::image::memory::PAGE);
    let has = |&(page, count, _): &(u64, u64, u64)| (page..page + count).contains(&last);
    if part && segment.pages.iter().any(has) {
        let tail = sysv::read_tail(&file, segment.size)?;
        segment.tail = Some(Bytes(tail)).filter(|tail| tail.0.iter().any(|&byte| byte != 0));
    }
    if !segment.pages.is_empty() {
        contents.push(Content {
            object: segment.object(),
            file,
            pages: segment.pages.clone(),
        });
    }
    Ok(())
}

/// Whether there are huge pages on this host at all.
pub(super) fn may_be_huge() -> bool {
    let none = |path: PathBuf| {
        let count = fs::read_to_string(path).unwrap_or_default();
        count.trim().is_empty() || count.trim() == "0"
    };
    let Ok(sizes) = fs::read_dir("/sys/kernel/mm/hugepages") else {
        return false;
    };
    !sizes.filter_map(std::io::Result::ok).all(|size| {
        none(size.path().join("nr_hugepages")) && none(size.path().join("nr_overcommit_hugepages"))
    })
}

pub(super) fn rebuild(segments: &[Segment], pages: &Pages<'_>) -> Result<()> {
    for segment in segments {
        let id = segment.identity.id;
        make(segment, pages).doing(|| format!("making System V segment {id}"))?;
    }
    Ok(())
}

fn make(segment: &Segment, pages: &Pages<'_>) -> Result<()> {
    let id = segment.identity.id;
    with_number("shm", &segment.identity, |key, mode| {
        sysv::new_segment(key, segment.size, mode)
    })?;
    if !segment.pages.is_empty() || segment.tail.is_some() {
        let file = sysv::open_segment(id, true)?;
        pages.fill(&file, &segment.object(), segment.size, &segment.pages)?;
        if let Some(tail) = &segment.tail {
            sysv::write_tail(&file, segment.size, &tail.0)?;
        }
    }
    sysv::set_segment(id, &permissions(&segment.identity))?;
    if segment.locked {
        sysv::lock_segment(id)?;
    }
    Ok(())
}

/// Marks those that were marked.
pub(super) fn remove(segments: &[Segment]) -> Result<()> {
    for segment in segments.iter().filter(|segment| segment.removed) {
        let id = segment.identity.id;
        sysv::remove_segment(id).doing(|| format!("removing segment {id}"))?;
    }
    Ok(())
}
