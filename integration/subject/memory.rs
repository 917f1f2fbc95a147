//! Anonymous memory of all sorts. Memory of files is in `mappings.rs`.

use super::sys::{Area, PAGE, call, deep_stack, move_break};
use super::worker::{Worker, check_all};
use super::{Check, Child, SetUp, ensure, eventually};
use std::error::Error;
use std::fs;

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("memory_private", private),
    ("memory_shared", shared),
    ("memory_protections", protections),
    ("memory_code", code),
    ("memory_grows_down", grows_down),
    ("memory_stacks", stacks),
    ("memory_locked", locked),
    ("memory_advice", advice),
    ("memory_named", named),
    ("memory_brk", brk),
    ("memory_after_fork", after_fork),
    ("memory_huge_sparse", huge_sparse),
    ("memory_many_areas", many_areas),
];

const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Full, sparse and untouched areas.
fn private() -> Result<Check, Box<dyn Error>> {
    let full = Area::private(64 * PAGE)?;
    full.fill(1);
    let untouched = Area::private(64 * PAGE)?;
    let zeroed = Area::private(64 * PAGE)?;
    zeroed.fill(2);
    zeroed.clear();
    let sparse = Area::private(4096 * PAGE)?;
    for page in (0..4096).step_by(37) {
        sparse.pages(page, 1).fill(page as u64);
    }
    Ok(Box::new(move |_| {
        full.check("a full area", 1)?;
        untouched.check_zero("an untouched area")?;
        zeroed.check_zero("an area of zeros that were written")?;
        for page in 0..4096 {
            let page_area = sparse.pages(page, 1);
            match page % 37 {
                0 => page_area.check("a written page", page as u64)?,
                _ => page_area.check_zero("a page between")?,
            }
        }
        Ok(())
    }))
}

/// Shared with children: what one writes the others see, each at an address of its own.
fn shared() -> Result<Check, Box<dyn Error>> {
    let area = Area::map(
        32 * PAGE,
        READ_WRITE,
        libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        -1,
        0,
    )?;
    area.pages(1, 20).fill(5);
    let mut children = Vec::new();
    for number in 0..3 {
        children.push(Child::fork(move || {
            let mut asked = 0;
            Ok(Box::new(move |_| {
                asked += 1;
                eventually("the parent's word", || area.get(0) == asked)?;
                area.set(number + 1, asked * 100 + number as u64);
                area.pages(1, 20).check("the shared area", 5)?;
                Ok(())
            }))
        })?);
    }
    let mut asked = 0;
    Ok(Box::new(move |_| {
        asked += 1;
        area.set(0, asked);
        for (number, child) in children.iter_mut().enumerate() {
            child.check()?;
            let said = area.get(number + 1);
            ensure!(
                said == asked * 100 + number as u64,
                "child {number} said {said}"
            );
        }
        area.pages(1, 20).check("the shared area", 5)?;
        area.pages(21, 11).check_zero("its end")?;
        Ok(())
    }))
}

/// Data behind every combination of protections, none at all included.
fn protections() -> Result<Check, Box<dyn Error>> {
    let all = [
        libc::PROT_NONE,
        libc::PROT_READ,
        READ_WRITE,
        libc::PROT_READ | libc::PROT_EXEC,
        libc::PROT_EXEC,
        libc::PROT_WRITE,
        READ_WRITE | libc::PROT_EXEC,
    ];
    // One mapping in pieces, and an area that was never touched in between.
    let whole = Area::private(all.len() * 8 * PAGE)?;
    for (number, prot) in all.into_iter().enumerate() {
        let piece = whole.pages(number * 8, 7);
        piece.fill(number as u64);
        piece.protect(prot)?;
        whole.pages(number * 8 + 7, 1).protect(libc::PROT_NONE)?;
    }
    Ok(Box::new(move |_| {
        for (number, prot) in all.into_iter().enumerate() {
            let piece = whole.pages(number * 8, 7);
            piece.protect(READ_WRITE)?;
            piece.check(&format!("memory with protection {prot}"), number as u64)?;
            piece.protect(prot)?;
        }
        Ok(())
    }))
}

/// Code that was made while running.
fn code() -> Result<Check, Box<dyn Error>> {
    let mut functions = Vec::new();
    for number in 0..16_u32 {
        let area = Area::private(PAGE)?;
        let result = number.wrapping_mul(0x0101_0101) + 7;
        area.write_function_returning(result);
        area.protect(libc::PROT_READ | libc::PROT_EXEC)?;
        functions.push((area, result));
    }
    Ok(Box::new(move |_| {
        for (area, expected) in &functions {
            let result = area.call_function();
            ensure!(result == *expected, "the function returned {result:#x}");
        }
        Ok(())
    }))
}

/// An area that grows downwards when it is touched below.
fn grows_down() -> Result<Check, Box<dyn Error>> {
    let hole = Area::private(1024 * PAGE)?;
    call!(libc::munmap(hole.pointer(), hole.len))?;
    let at = hole.pages(1000, 4);
    let flags = ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_FIXED;
    let area = at.map_here(READ_WRITE, flags)?;
    area.fill(3);
    let mut grown = 0;
    Ok(Box::new(move |_| {
        area.check("the area", 3)?;
        for page in 0..grown {
            hole.pages(999 - page, 1).check("what grew", page as u64)?;
        }
        hole.pages(999 - grown, 1).fill(grown as u64);
        grown += 1;
        Ok(())
    }))
}

/// Deep stacks, frozen at their deepest.
fn stacks() -> Result<Check, Box<dyn Error>> {
    let mut workers = Vec::new();
    for number in 0..4_u64 {
        workers.push(Worker::start_inside(move |serve| {
            deep_stack(400, number, serve)
        })?);
    }
    Ok(check_all(workers))
}

fn locked() -> Result<Check, Box<dyn Error>> {
    let now = Area::private(8 * PAGE)?;
    now.fill(1);
    call!(libc::mlock(now.pointer(), now.len))?;
    let later = Area::private(8 * PAGE)?;
    call!(libc::mlock2(
        later.pointer(),
        later.len,
        libc::MLOCK_ONFAULT
    ))?;
    later.pages(0, 1).fill(2);
    Ok(Box::new(move |_| {
        now.check("locked memory", 1)?;
        later.pages(0, 1).check("memory locked when touched", 2)?;
        let all = fs::read_to_string("/proc/self/smaps")?;
        let count = all
            .lines()
            .filter(|line| line.starts_with("VmFlags:") && line.contains(" lo"))
            .count();
        ensure!(count >= 2, "{count} areas are locked");
        Ok(())
    }))
}

/// Everything that madvise(2) leaves on an area, to be seen from outside too.
fn advice() -> Result<Check, Box<dyn Error>> {
    let all = [
        libc::MADV_DONTFORK,
        libc::MADV_DONTDUMP,
        libc::MADV_SEQUENTIAL,
        libc::MADV_RANDOM,
        libc::MADV_WIPEONFORK,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
    ];
    let mut areas = Vec::new();
    for (number, advice) in all.into_iter().enumerate() {
        let area = Area::private(16 * PAGE)?;
        // What one area is told must not spread to a neighbour.
        let _between = Area::map(PAGE, libc::PROT_NONE, ANONYMOUS, -1, 0)?;
        area.fill(number as u64);
        area.advise(advice)?;
        areas.push(area);
    }
    Ok(Box::new(move |_| {
        for (number, area) in areas.iter().enumerate() {
            area.check(&format!("advised area {number}"), number as u64)?;
        }
        let wiped = areas[4];
        let pid = super::sys::fork()?;
        if pid == 0 {
            let good = wiped.check_zero("").is_ok() && areas[1].check("", 1).is_ok();
            std::process::exit(i32::from(!good));
        }
        let mut status = 0;
        call!(libc::waitpid(pid, &mut status, 0))?;
        ensure!(
            status == 0,
            "a child saw what is to be wiped, or not what is not"
        );
        Ok(())
    }))
}

/// PR_SET_VMA_ANON_NAME.
fn named() -> Result<Check, Box<dyn Error>> {
    let mut areas = Vec::new();
    let mut are_named = true;
    for number in 0..4_usize {
        let area = Area::private(4 * PAGE)?;
        area.fill(number as u64);
        let name = std::ffi::CString::new(format!("name number {number}"))?;
        let (which, start, len) = (libc::PR_SET_VMA_ANON_NAME, area.start, area.len);
        let result = call!(libc::prctl(
            libc::PR_SET_VMA,
            which,
            start,
            len,
            name.as_ptr()
        ));
        // A kernel may be built without these names.
        are_named &= result.is_ok();
        areas.push(area);
    }
    Ok(Box::new(move |_| {
        let maps = fs::read_to_string("/proc/self/maps")?;
        for (number, area) in areas.iter().enumerate() {
            let start = format!("{:x}-", area.start);
            let line = maps.lines().find(|line| line.starts_with(&start));
            let name = format!("[anon:name number {number}]");
            let is_named = line.is_some_and(|line| line.contains(&name));
            ensure!(is_named == are_named, "{line:?}");
            area.check("a named area", number as u64)?;
        }
        Ok(())
    }))
}

/// The break: its data stay, and it moves on from where it was.
fn brk() -> Result<Check, Box<dyn Error>> {
    let start = move_break(64 * PAGE as isize)?;
    let area = Area {
        start: start.next_multiple_of(PAGE),
        len: 63 * PAGE,
    };
    area.fill(8);
    Ok(Box::new(move |_| {
        area.check("the heap", 8)?;
        let end = move_break(0)?;
        ensure!(end >= area.start + area.len, "the break is at {end:#x}");
        let before = move_break(PAGE as isize)?;
        ensure!(before == end, "it moved from {before:#x}, not {end:#x}");
        move_break(-(PAGE as isize))?;
        Ok(())
    }))
}

/// Pages shared since fork: each sees its own, and what nobody wrote to exists once.
fn after_fork() -> Result<Check, Box<dyn Error>> {
    let area = Area::private(1024 * PAGE)?;
    area.fill(1);
    let mut children = Vec::new();
    for number in 0..4_usize {
        let own = area.pages(number * 32, 32);
        children.push(Child::fork(move || {
            own.fill(100 + number as u64);
            Ok(Box::new(move |_| {
                own.check("what the child wrote", 100 + number as u64)?;
                for word in (128 * PAGE / 8)..area.len / 8 {
                    let expected = super::sys::word(1, word);
                    ensure!(area.get(word) == expected, "shared word {word}");
                }
                Ok(())
            }))
        })?);
    }
    Ok(Box::new(move |_| {
        area.check("what the parent wrote", 1)?;
        children.iter_mut().try_for_each(Child::check)?;
        let shared = shared_bytes(area)?;
        ensure!(shared >= 800 * PAGE, "only {shared} bytes are still shared");
        Ok(())
    }))
}

/// How much of `area` other processes map as well.
fn shared_bytes(area: Area) -> Result<usize, Box<dyn Error>> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let mut inside = false;
    let mut kib = 0;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|word| word.split_once('-'));
        let range = range.and_then(|(start, end)| {
            let hex = |text| usize::from_str_radix(text, 16).ok();
            Some((hex(start)?, hex(end)?))
        });
        if let Some((start, end)) = range {
            inside = start < area.start + area.len && end > area.start;
        } else if inside && (line.starts_with("Shared_Clean:") || line.starts_with("Shared_Dirty:"))
        {
            let word = line.split_whitespace().nth(1).unwrap_or_default();
            kib += word.parse::<usize>()?;
        }
    }
    Ok(kib * 1024)
}

/// 64 GiB of addresses with a page here and there.
fn huge_sparse() -> Result<Check, Box<dyn Error>> {
    let len = 64 << 30;
    let area = Area::map(len, READ_WRITE, ANONYMOUS | libc::MAP_NORESERVE, -1, 0)?;
    let pages: Vec<usize> = (0..64)
        .map(|number| number * (len / PAGE / 64) + number)
        .collect();
    for page in &pages {
        area.pages(*page, 1).fill(*page as u64);
    }
    Ok(Box::new(move |_| {
        for page in &pages {
            area.pages(*page, 1).check("a lonely page", *page as u64)?;
        }
        Ok(())
    }))
}

/// Thousands of areas that do not join.
fn many_areas() -> Result<Check, Box<dyn Error>> {
    let whole = Area::private(6000 * PAGE)?;
    for page in (0..6000).step_by(2) {
        whole.pages(page, 1).fill(page as u64);
        whole.pages(page, 1).protect(libc::PROT_READ)?;
    }
    Ok(Box::new(move |_| {
        for page in (0..6000).step_by(2) {
            whole.pages(page, 1).check("an area", page as u64)?;
            whole.pages(page + 1, 1).check_zero("an area between")?;
        }
        Ok(())
    }))
}
