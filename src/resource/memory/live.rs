//! Pages of running processes, for an image of the memory only. What is read may be half of one
//! moment and half of the next: such a page is not found again by its content, and does no harm.

use super::pages;
use crate::error::{Context, Result};
use crate::image::memory::{CHUNK_PAGES, PAGE};
use crate::proc::read::Process;
use crate::tracee::memory_of;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

/// Takes pages: the address of the first, where it is one's own, and what they hold.
pub type Sink<'a> = dyn FnMut(Option<u64>, &[u8]) -> Result<()> + 'a;

/// Reads the pages of one process that no file holds, and of shared memory that is not in `seen`, and
/// hands them to `sink`. A process that ends meanwhile has no more pages.
pub fn read(host_pid: i32, seen: &mut BTreeSet<(u64, u64)>, sink: &mut Sink<'_>) -> Result<()> {
    match read_private(host_pid, sink).and_then(|()| read_shared(host_pid, seen, sink)) {
        Err(error) if error.is_gone() || !Process::new(host_pid).exists() => Ok(()),
        result => result.doing(|| format!("reading the memory of process {host_pid}")),
    }
}

fn read_private(host_pid: i32, sink: &mut Sink<'_>) -> Result<()> {
    let path = format!("/proc/{host_pid}/pagemap");
    let pagemap = File::open(&path).doing(|| format!("opening {path}"))?;
    let memory = memory_of(host_pid)?;
    let mut buffer = vec![0; (CHUNK_PAGES * PAGE) as usize];
    for region in pages::private(&pagemap)? {
        let mut start = region.start;
        while start < region.end {
            let length = (region.end - start).min(buffer.len() as u64) as usize;
            // An area that has gone, or that cannot be read (vvar, guards), reads short.
            let read = memory.read_at(&mut buffer[..length], start).unwrap_or(0);
            let whole = read / PAGE as usize * PAGE as usize;
            sink(Some(start), &buffer[..whole])?;
            // One page further where nothing could be read.
            start += (whole as u64).max(PAGE);
        }
    }
    Ok(())
}

fn read_shared(host_pid: i32, seen: &mut BTreeSet<(u64, u64)>, sink: &mut Sink<'_>) -> Result<()> {
    let mut buffer = vec![0; (CHUNK_PAGES * PAGE) as usize];
    for area in Process::new(host_pid).maps()? {
        if !is_memory(&area.path) {
            continue;
        }
        let path = format!("/proc/{host_pid}/map_files/{:x}-{:x}", area.start, area.end);
        // It may be gone already.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let Ok(file) = open(path.as_str(), flags, Mode::empty()).map(File::from) else {
            continue;
        };
        let status = file.metadata()?;
        if !seen.insert((status.dev(), status.ino())) {
            continue;
        }
        for (page, count, _) in pages::extents(&file, status.size())? {
            let (mut at, end) = (page * PAGE, (page + count) * PAGE);
            while at < end {
                let length = (end - at).min(buffer.len() as u64) as usize;
                buffer[..length].fill(0);
                // The last page may end before its end.
                let read = file.read_at(&mut buffer[..length], at)?;
                if read == 0 {
                    break;
                }
                let padded = read.next_multiple_of(PAGE as usize);
                sink(None, &buffer[..padded])?;
                at += padded as u64;
            }
        }
    }
    Ok(())
}

/// Shared memory, by the names that the kernel gives it.
fn is_memory(path: &[u8]) -> bool {
    path.starts_with(b"/memfd:") || path.starts_with(b"/dev/zero") || path.starts_with(b"/SYSV")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn pages_of_a_running_process_are_read_and_its_end_is_no_error() {
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        let host_pid = child.id() as i32;
        let mut bytes = 0;
        let mut seen = BTreeSet::new();
        let mut sink = |_: Option<u64>, pages: &[u8]| {
            assert_eq!(pages.len() as u64 % PAGE, 0);
            bytes += pages.len();
            Ok(())
        };
        // Right after the fork there may be nothing of its own yet.
        std::thread::sleep(std::time::Duration::from_millis(100));
        read(host_pid, &mut seen, &mut sink).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        read(host_pid, &mut seen, &mut sink).unwrap();
        assert!(bytes > 0);
    }
}
