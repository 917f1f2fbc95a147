//! Memory: finding the pages, knowing which were written, opening what is mapped.

use super::ground::{Ground, Outcome, text};
use super::{Question, needed, useful};
use crate::error::{Context, Result};
use crate::proc::Process;
use crate::sys::pagemap::{self, Masks, category};
use crate::sys::userfaultfd::{self, WP_ASYNC, WP_UNPOPULATED};
use crate::sys::{prctl, shared_memory};
use std::fs::File;
use std::os::fd::AsFd;

const PAGE: u64 = 4096;

pub(super) const QUESTIONS: &[Question] = &[
    needed(
        "pagemap-scan",
        scan,
        "which pages a process has filled cannot be told",
        "use Linux 6.7 or later with CONFIG_PROC_PAGE_MONITOR",
    ),
    useful(
        "page-frames",
        frames,
        "pages that processes share after fork are stored once for each of them",
        "run ocimig with CAP_SYS_ADMIN",
    ),
    useful(
        "userfaultfd-wp-async",
        write_protection,
        "which pages a parent image has already is told by comparing their content",
        "use Linux 6.7 or later with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP",
    ),
    useful(
        "soft-dirty",
        soft_dirty,
        "nothing: the engine does without it",
        "none is needed",
    ),
    needed(
        "map-files",
        mapped_file,
        "files that are mapped cannot be opened, in particular those that were deleted",
        "use a kernel with CONFIG_CHECKPOINT_RESTORE, with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
    ),
    useful(
        "memfd",
        memfd,
        "memory files and shared memory without a file cannot be made again, or not executable",
        "use a kernel with CONFIG_MEMFD_CREATE, and sysctl vm.memfd_noexec=0",
    ),
    useful(
        "anonymous-names",
        |_| {
            if prctl::names_memory() {
                Outcome::Ok(String::new())
            } else {
                Outcome::Missing("PR_SET_VMA_ANON_NAME is unknown".to_owned())
            }
        },
        "names that processes gave to their memory are lost; they only show in /proc/PID/maps",
        "use a kernel with CONFIG_ANON_VMA_NAME",
    ),
    useful(
        "transparent-huge-pages",
        huge_pages,
        "memory that lay in huge pages comes back in small ones, more slowly",
        "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled",
    ),
];

/// A page of this process that is there: this function's own stack.
fn own_page() -> (u64, u64) {
    let here = 0u8;
    let start = (&raw const here) as u64 / PAGE * PAGE;
    (start, start + PAGE)
}

fn own_pagemap() -> Result<File> {
    File::open("/proc/self/pagemap").doing(|| "opening /proc/self/pagemap")
}

fn scan(_: &Ground) -> Outcome {
    let (start, end) = own_page();
    let masks = Masks {
        all: category::PRESENT,
        report: category::PRESENT,
        ..Masks::default()
    };
    let found =
        own_pagemap().and_then(|pagemap| pagemap::scan(pagemap.as_fd(), start, end, masks, 0));
    match found {
        Ok(found) if found.len() == 1 => Outcome::Ok(String::new()),
        Ok(_) => Outcome::Missing("it does not find a page that is there".to_owned()),
        Err(error) => Outcome::Missing(error.to_string()),
    }
}

fn frames(_: &Ground) -> Outcome {
    let (start, end) = own_page();
    let found =
        own_pagemap().and_then(|pagemap| pagemap::entries(pagemap.as_fd(), start, end, PAGE));
    match found {
        Ok(found) if found.iter().any(|entry| entry.frame().is_some()) => {
            Outcome::Ok(String::new())
        }
        Ok(_) => Outcome::Missing("the kernel hides them from this process".to_owned()),
        Err(error) => Outcome::Missing(error.to_string()),
    }
}

fn write_protection(_: &Ground) -> Outcome {
    match userfaultfd::features() {
        Ok(features) if features & WP_ASYNC == 0 => {
            Outcome::Missing("the kernel has userfaultfd without it".to_owned())
        }
        Ok(features) if features & WP_UNPOPULATED == 0 => {
            Outcome::Limited("not for pages that were never filled".to_owned())
        }
        other => Outcome::of(other),
    }
}

/// Clears the bits of this process, which nobody else looks at, and writes to a page.
fn soft_dirty(_: &Ground) -> Outcome {
    let look = || -> Result<bool> {
        std::fs::write("/proc/self/clear_refs", "4").doing(|| "clearing soft-dirty bits")?;
        let mut page = vec![0u8; 2 * PAGE as usize];
        std::hint::black_box(&mut page).fill(1);
        let start = (page.as_ptr() as u64).next_multiple_of(PAGE);
        let pagemap = own_pagemap()?;
        let entries = pagemap::entries(pagemap.as_fd(), start, start + PAGE, PAGE)?;
        Ok(entries.iter().any(|entry| entry.soft_dirty()))
    };
    match look() {
        Ok(true) => Outcome::Ok(String::new()),
        Ok(false) => Outcome::Missing("the kernel does not keep these bits".to_owned()),
        Err(error) => Outcome::Missing(error.to_string()),
    }
}

fn mapped_file(_: &Ground) -> Outcome {
    let open = || -> Result<Option<File>> {
        let own = Process::new(std::process::id() as i32);
        let areas = own.maps()?;
        let Some(area) = areas.iter().find(|area| area.has_file()) else {
            return Ok(None);
        };
        let path = own.path(format!("map_files/{:x}-{:x}", area.start, area.end));
        let file = File::open(&path).doing(|| format!("opening {}", path.display()))?;
        Ok(Some(file))
    };
    Outcome::of(open())
}

fn memfd(_: &Ground) -> Outcome {
    let noexec = text("/proc/sys/vm/memfd_noexec");
    match (shared_memory::memory_file(b"ocimig-check", PAGE), noexec) {
        (Ok(_), Some(noexec)) if noexec != "0" => {
            Outcome::Limited(format!("vm.memfd_noexec is {noexec}"))
        }
        (result, _) => Outcome::of(result),
    }
}

fn huge_pages(_: &Ground) -> Outcome {
    match text("/sys/kernel/mm/transparent_hugepage/enabled") {
        Some(modes) => {
            let chosen = modes
                .split_once('[')
                .and_then(|(_, rest)| rest.split_once(']'))
                .map_or("", |(mode, _)| mode);
            match chosen {
                "never" | "" => Outcome::Missing(modes),
                mode => Outcome::Ok(mode.to_owned()),
            }
        }
        None => Outcome::Missing("the kernel has none".to_owned()),
    }
}
