//! `/proc/PID/pagemap`: its entries, and the PAGEMAP_SCAN ioctl of `<linux/fs.h>`.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Categories of pages: the PAGE_IS_* bits.
pub mod category {
    /// In a range registered with userfaultfd for asynchronous write protection.
    pub const WP_ALLOWED: u64 = 1 << 0;
    /// Written since it was write-protected.
    pub const WRITTEN: u64 = 1 << 1;
    /// Belongs to a file (or to shared memory).
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap (also under migration).
    pub const SWAPPED: u64 = 1 << 4;
    /// The zero page.
    pub const PFN_ZERO: u64 = 1 << 5;
    /// Part of a huge page.
    pub const HUGE: u64 = 1 << 6;
    /// Written since soft-dirty bits were cleared.
    pub const SOFT_DIRTY: u64 = 1 << 7;
    /// A guard page (MADV_GUARD_INSTALL); since Linux 6.15.
    pub const GUARD: u64 = 1 << 8;
}

/// PM_SCAN_WP_MATCHING: write-protect the pages that match.
pub const WP_MATCHING: u64 = 1 << 0;
/// PM_SCAN_CHECK_WPASYNC: fail with EPERM where a page is not registered for write protection.
pub const CHECK_WPASYNC: u64 = 1 << 1;

/// What to look for; the masks of `struct pm_scan_arg`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Masks {
    /// These categories are inverted before they are compared.
    pub inverted: u64,
    /// All of these must hold.
    pub all: u64,
    /// Any of these must hold; 0 asks nothing.
    pub any: u64,
    /// These are reported (and tell regions apart).
    pub report: u64,
}

/// A run of pages of the same categories.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Those of [`Masks::report`] that hold.
    pub categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct Argument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

mod ioctl {
    nix::ioctl_readwrite!(
        /// PAGEMAP_SCAN.
        pagemap_scan,
        b'f',
        16,
        super::Argument
    );
}

/// Finds the pages of `start..end` (page-aligned) that match, in ascending runs; `pagemap` is an
/// open `/proc/PID/pagemap`. ENOTTY before Linux 6.7. Holes are passed over.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    masks: Masks,
    flags: u64,
) -> Result<Vec<PageRegion>> {
    let mut regions = Vec::new();
    scan_each(pagemap, start, end, masks, flags, |region| {
        regions.push(region);
    })?;
    Ok(regions)
}

/// As [`scan`], handing each run to `each` instead of gathering them.
pub fn scan_each(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    masks: Masks,
    flags: u64,
    mut each: impl FnMut(PageRegion),
) -> Result<()> {
    const BATCH: usize = 4096;
    let mut buffer = vec![PageRegion::default(); BATCH];
    let mut last: Option<PageRegion> = None;
    let mut from = start;
    while from < end {
        let (found, walked) = scan_once(pagemap, from, end, masks, flags, &mut buffer)
            .doing(|| format!("scanning the pages {from:x}-{end:x}"))?;
        for &region in &buffer[..found] {
            // A run that the end of a batch has cut in two is one run.
            last = match last {
                Some(mut open)
                    if open.end == region.start && open.categories == region.categories =>
                {
                    open.end = region.end;
                    Some(open)
                }
                open => {
                    open.into_iter().for_each(&mut each);
                    Some(region)
                }
            };
        }
        // The kernel gathers 512 runs at a time and sets walk_end only when such a piece fills up:
        // a walk that came to its end reports where the last full piece ended (seen on 6.18), and
        // what follows would be found twice. A buffer with room left says that nothing is left; a
        // full one, that everything up to its last run is done.
        if found < BATCH {
            break;
        }
        let reported = buffer.last().map_or(from, |region| region.end);
        if walked.max(reported) <= from {
            return Err(Error::bug("PAGEMAP_SCAN does not advance"));
        }
        from = walked.max(reported);
    }
    last.into_iter().for_each(each);
    Ok(())
}

/// One ioctl: how many runs it found and how far it came.
fn scan_once(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    masks: Masks,
    flags: u64,
    buffer: &mut [PageRegion],
) -> Result<(usize, u64)> {
    let mut argument = Argument {
        size: size_of::<Argument>() as u64,
        flags,
        start,
        end,
        vec: buffer.as_mut_ptr() as u64,
        vec_len: buffer.len() as u64,
        category_inverted: masks.inverted,
        category_mask: masks.all,
        category_anyof_mask: masks.any,
        return_mask: masks.report,
        ..Argument::default()
    };
    // SAFETY: the argument has the size that it states; `vec` points at `vec_len` writable
    // records of the kernel's layout, which outlive the call.
    let found = unsafe { ioctl::pagemap_scan(pagemap.as_raw_fd(), &mut argument) }?;
    let found = usize::try_from(found).unwrap_or(0).min(buffer.len());
    Ok((found, argument.walk_end))
}

/// One 64-bit entry of pagemap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry(pub u64);

impl Entry {
    /// In memory.
    pub fn present(self) -> bool {
        self.bit(63)
    }

    /// In swap.
    pub fn swapped(self) -> bool {
        self.bit(62)
    }

    /// Belongs to a file or to shared memory; not anonymous.
    pub fn file(self) -> bool {
        self.bit(61)
    }

    /// A guard page (MADV_GUARD_INSTALL); since Linux 6.15.
    pub fn guard(self) -> bool {
        self.bit(58)
    }

    /// Write-protected through userfaultfd.
    pub fn uffd_wp(self) -> bool {
        self.bit(57)
    }

    /// Mapped by this process alone.
    pub fn exclusive(self) -> bool {
        self.bit(56)
    }

    /// Written since soft-dirty bits were cleared. A kernel without soft-dirty leaves it 0.
    pub fn soft_dirty(self) -> bool {
        self.bit(55)
    }

    /// The page frame number of a present page; `None` when the page is absent, or when the reader
    /// has no CAP_SYS_ADMIN (the kernel shows 0).
    pub fn frame(self) -> Option<u64> {
        let number = self.0 & ((1 << 55) - 1);
        (self.present() && number != 0).then_some(number)
    }

    /// Swap type and offset of a swapped page.
    pub fn swap(self) -> Option<(u32, u64)> {
        let number = self.0 & ((1 << 55) - 1);
        self.swapped()
            .then_some(((number & 0x1f) as u32, number >> 5))
    }

    fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }
}

/// The entries of all pages of `start..end` (aligned to `page_size`), one each.
pub fn entries(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    page_size: u64,
) -> Result<Vec<Entry>> {
    const CHUNK: usize = 1 << 16;
    let count = usize::try_from(end.saturating_sub(start) / page_size)
        .map_err(|_| Error::from(Errno::EOVERFLOW))?;
    let mut entries = Vec::with_capacity(count.min(CHUNK));
    let mut buffer = vec![0u8; count.min(CHUNK) * size_of::<u64>()];
    while entries.len() < count {
        let wanted = (count - entries.len()).min(CHUNK) * size_of::<u64>();
        let at = (start / page_size + entries.len() as u64) * size_of::<u64>() as u64;
        let got = i64::try_from(at)
            .map_err(|_| Errno::EOVERFLOW)
            .and_then(|at| nix::sys::uio::pread(pagemap, &mut buffer[..wanted], at))
            .doing(|| format!("reading pagemap of {start:x}-{end:x}"))?;
        let (words, _) = buffer[..got].as_chunks::<8>();
        if words.is_empty() {
            // Beyond the end of the user address space ([vsyscall]) pagemap ends.
            entries.resize(count, Entry::default());
            break;
        }
        entries.extend(words.iter().map(|word| Entry(u64::from_ne_bytes(*word))));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    use std::num::NonZeroUsize;
    use std::os::fd::AsFd;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 10_000;

    /// Private anonymous memory with every other page written.
    struct Striped(std::ptr::NonNull<std::ffi::c_void>);

    impl Striped {
        fn new() -> Self {
            let length = NonZeroUsize::new((PAGES * PAGE) as usize).unwrap();
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: a fresh private mapping that nobody else knows.
            let memory =
                unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }.unwrap();
            for page in (0..PAGES).step_by(2) {
                // SAFETY: inside the mapping.
                unsafe {
                    memory
                        .byte_add((page * PAGE) as usize)
                        .cast::<u8>()
                        .write(1)
                };
            }
            Self(memory)
        }

        fn range(&self) -> (u64, u64) {
            let start = self.0.as_ptr() as u64;
            (start, start + PAGES * PAGE)
        }
    }

    impl Drop for Striped {
        fn drop(&mut self) {
            // SAFETY: our own mapping, not used afterwards.
            let _ = unsafe { munmap(self.0, (PAGES * PAGE) as usize) };
        }
    }

    #[test]
    fn a_scan_finds_exactly_the_written_pages_over_many_calls() {
        let memory = Striped::new();
        let (start, end) = memory.range();
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        let masks = Masks {
            all: category::PRESENT,
            report: category::PRESENT | category::FILE,
            ..Masks::default()
        };
        let regions = scan(pagemap.as_fd(), start, end, masks, 0).unwrap();
        assert_eq!(regions.len() as u64, PAGES / 2);
        for (index, region) in regions.iter().enumerate() {
            assert_eq!(region.start, start + index as u64 * 2 * PAGE);
            assert_eq!(region.end, region.start + PAGE);
            assert_eq!(region.categories, category::PRESENT);
        }
        let masks = Masks {
            inverted: category::PRESENT,
            ..masks
        };
        let absent = scan(pagemap.as_fd(), start, end, masks, 0).unwrap();
        assert_eq!(absent.len() as u64, PAGES / 2);
    }

    #[test]
    fn entries_tell_present_pages_from_absent_ones() {
        let memory = Striped::new();
        let (start, end) = memory.range();
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        let entries = entries(pagemap.as_fd(), start, end, PAGE).unwrap();
        assert_eq!(entries.len() as u64, PAGES);
        for pair in entries.chunks(2) {
            assert!(pair[0].present() && pair[0].exclusive() && !pair[0].file());
            assert!(pair[0].frame().is_some(), "root sees page frames");
            assert!(!pair[1].present() && pair[1].frame().is_none());
        }
    }

    #[test]
    fn the_bits_of_an_entry_are_where_the_kernel_puts_them() {
        let entry = Entry(1 << 63 | 1 << 61 | 1 << 57 | 1 << 55 | 0x1234);
        assert!(entry.present() && entry.file() && entry.uffd_wp() && entry.soft_dirty());
        assert!(!entry.swapped() && !entry.exclusive() && !entry.guard());
        assert_eq!(entry.frame(), Some(0x1234));
        assert_eq!(Entry(1 << 62 | 7 << 5 | 3).swap(), Some((3, 7)));
        assert_eq!(Entry(0).swap(), None);
    }

    #[test]
    fn beyond_the_user_address_space_nothing_is_present() {
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        let (start, end) = (0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000);
        let entries = entries(pagemap.as_fd(), start, end, PAGE).unwrap();
        assert_eq!(entries, [Entry(0)]);
    }
}
