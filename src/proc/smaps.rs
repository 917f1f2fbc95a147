//! `/proc/PID/smaps`: what maps says, and per area its flags and how much of it is where.
//!
//! Costs the kernel ten times what maps costs (200 ms for 40,000 areas): read it only where the
//! flags or the figures are needed. The parser streams, so that the text is never held as a whole.

use super::maps::{Area, parse_line};
use super::text::{decimal, key_value, malformed, words};
use crate::error::{Context, Result};
use std::io::BufRead;

/// The two-letter flags of the `VmFlags` line, in the kernel's order, as they stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmFlags(Vec<[u8; 2]>);

impl VmFlags {
    /// Whether the flag with these two letters is set: `has("gd")`. See proc_pid_smaps(5):
    /// gd grows down, lo locked, io device memory, pf page frames without struct page, dc not
    /// copied on fork, wf wiped on fork, dd not dumped, nr no swap reserved, ht huge TLB pages,
    /// hg / nh advised for or against huge pages, mg mergeable, sf synchronous fault, uw / um
    /// registered with userfaultfd for write protection / missing pages, sl sealed.
    pub fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|known| known == flag.as_bytes())
    }

    /// All flags.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter_map(|flag| std::str::from_utf8(flag).ok())
    }

    fn parse(value: &[u8]) -> Self {
        Self(
            words(value)
                .filter_map(|word| word.try_into().ok())
                .collect(),
        )
    }
}

/// One area of smaps. Figures are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smap {
    /// The head line.
    pub area: Area,
    /// Size of a page of this area in the kernel's accounts; more than 4096 for huge TLB pages.
    pub kernel_page_size: u64,
    /// Resident.
    pub rss: u64,
    /// Resident, each page divided by the number of its users.
    pub pss: u64,
    /// Resident, shared, unchanged.
    pub shared_clean: u64,
    /// Resident, shared, changed.
    pub shared_dirty: u64,
    /// Resident, ours alone, unchanged.
    pub private_clean: u64,
    /// Resident, ours alone, changed.
    pub private_dirty: u64,
    /// Resident and belonging to no file: also the changed pages of private file mappings.
    pub anonymous: u64,
    /// Resident and given up by MADV_FREE, not yet taken.
    pub lazy_free: u64,
    /// Anonymous memory in huge pages.
    pub anon_huge_pages: u64,
    /// Huge TLB pages, shared and private together; not counted in `rss`.
    pub hugetlb: u64,
    /// Swapped out.
    pub swap: u64,
    /// Locked.
    pub locked: u64,
    /// Protection key; `None` where the processor has none.
    pub protection_key: Option<u32>,
    /// The `VmFlags` line.
    pub flags: VmFlags,
}

impl Smap {
    fn new(area: Area) -> Self {
        Self {
            area,
            kernel_page_size: 4096,
            rss: 0,
            pss: 0,
            shared_clean: 0,
            shared_dirty: 0,
            private_clean: 0,
            private_dirty: 0,
            anonymous: 0,
            lazy_free: 0,
            anon_huge_pages: 0,
            hugetlb: 0,
            swap: 0,
            locked: 0,
            protection_key: None,
            flags: VmFlags::default(),
        }
    }

    /// Takes in one `Key: value` line; unknown keys are passed over.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let field = match key {
            b"VmFlags" => {
                self.flags = VmFlags::parse(value);
                return;
            }
            b"ProtectionKey" => {
                self.protection_key = decimal(value);
                return;
            }
            b"Shared_Hugetlb" | b"Private_Hugetlb" => {
                self.hugetlb = self.hugetlb.saturating_add(kilobytes(value));
                return;
            }
            b"KernelPageSize" => &mut self.kernel_page_size,
            b"Rss" => &mut self.rss,
            b"Pss" => &mut self.pss,
            b"Shared_Clean" => &mut self.shared_clean,
            b"Shared_Dirty" => &mut self.shared_dirty,
            b"Private_Clean" => &mut self.private_clean,
            b"Private_Dirty" => &mut self.private_dirty,
            b"Anonymous" => &mut self.anonymous,
            b"LazyFree" => &mut self.lazy_free,
            b"AnonHugePages" => &mut self.anon_huge_pages,
            b"Swap" => &mut self.swap,
            b"Locked" => &mut self.locked,
            _ => return,
        };
        *field = kilobytes(value);
    }
}

fn kilobytes(value: &[u8]) -> u64 {
    words(value)
        .next()
        .and_then(decimal::<u64>)
        .unwrap_or(0)
        .saturating_mul(1024)
}

/// Parses smaps area by area, handing each to `each`.
pub fn stream(mut text: impl BufRead, mut each: impl FnMut(Smap)) -> Result<()> {
    let mut line = Vec::with_capacity(256);
    let mut current: Option<Smap> = None;
    loop {
        line.clear();
        let length = text
            .read_until(b'\n', &mut line)
            .doing(|| "reading smaps")?;
        if length == 0 {
            break;
        }
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        // Only keys begin with a capital; addresses are lower-case hexadecimal.
        if line.first().is_some_and(u8::is_ascii_uppercase) {
            let (key, value) = key_value(line).ok_or_else(|| malformed("a line of smaps", line))?;
            current
                .as_mut()
                .ok_or_else(|| malformed("the first line of smaps", line))?
                .add(key, value);
        } else {
            let area = parse_line(line).ok_or_else(|| malformed("a line of smaps", line))?;
            if let Some(done) = current.replace(Smap::new(area)) {
                each(done);
            }
        }
    }
    if let Some(done) = current {
        each(done);
    }
    Ok(())
}

/// Parses a whole smaps.
pub fn parse(text: impl BufRead) -> Result<Vec<Smap>> {
    let mut all = Vec::new();
    stream(text, |smap| all.push(smap))?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
7f01e47f4000-7f01e47f6000 rw-p 001d3000 fe:00 326279                     /usr/lib/libc.so.6
Size:                  8 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                   8 kB
Pss:                   6 kB
Pss_Dirty:             4 kB
Shared_Clean:          1 kB
Shared_Dirty:          2 kB
Private_Clean:         3 kB
Private_Dirty:         4 kB
Referenced:            8 kB
Anonymous:             5 kB
KSM:                   0 kB
LazyFree:              6 kB
AnonHugePages:      2048 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        8 kB
Private_Hugetlb:       4 kB
Swap:                  7 kB
SwapPss:               0 kB
Locked:                9 kB
THPeligible:           0
ProtectionKey:         3
Something_New:        12 potatoes
VmFlags: rd wr mr mw me ac sd 
7ffe2e66a000-7ffe2e68b000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
VmFlags: rd wr mr mw me gd ac zz
";

    #[test]
    fn figures_and_flags_of_each_area_are_read() {
        let all = parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!(all.len(), 2);
        let first = &all[0];
        assert_eq!(first.area.path, b"/usr/lib/libc.so.6");
        assert_eq!(
            [first.rss, first.pss, first.shared_clean, first.shared_dirty],
            [8192, 6144, 1024, 2048]
        );
        assert_eq!(
            [first.private_clean, first.private_dirty, first.anonymous],
            [3072, 4096, 5120]
        );
        assert_eq!(
            [first.lazy_free, first.swap, first.locked],
            [6144, 7168, 9216]
        );
        assert_eq!(first.hugetlb, 12 * 1024);
        assert_eq!(first.protection_key, Some(3));
        assert!(first.flags.has("ac") && !first.flags.has("gd"));
        assert!(all[1].flags.has("gd") && all[1].flags.has("zz"));
        assert_eq!(all[1].flags.iter().count(), 8);
    }

    #[test]
    fn our_own_smaps_has_the_areas_of_our_maps() {
        let text = std::fs::read("/proc/self/smaps").unwrap();
        let all = parse(text.as_slice()).unwrap();
        assert!(all.iter().any(|smap| smap.area.path == b"[stack]"));
        assert!(all.iter().all(|smap| smap.rss <= smap.area.size()));
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(parse(&b"Size: 4 kB\n"[..]).is_err());
        assert!(parse(&b"no such thing\n"[..]).is_err());
        assert!(parse(&b"1000-2000 rw-p 0 0:0 0\nNocolon\n"[..]).is_err());
        assert!(parse(&b""[..]).unwrap().is_empty());
    }
}
