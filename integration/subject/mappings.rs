//! Memory of files.

use super::sys::{Area, PAGE, call};
use super::{Check, Child, SetUp, ensure, eventually};
use std::error::Error;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd};

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("mapping_private", private),
    ("mapping_shared", shared),
    ("mapping_deleted", deleted),
    ("mapping_memfd", memfd),
    ("mapping_beyond_end", beyond_end),
];

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A file whose pages are filled with their own numbers.
fn file(path: &str, pages: usize) -> Result<File, Box<dyn Error>> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    fill(&file, pages)?;
    Ok(file)
}

fn fill(file: &File, pages: usize) -> Result<(), Box<dyn Error>> {
    file.set_len((pages * PAGE) as u64)?;
    let area = map(file, pages, libc::MAP_SHARED)?;
    for page in 0..pages {
        area.pages(page, 1).fill(page as u64);
    }
    call!(libc::munmap(area.pointer(), area.len))?;
    Ok(())
}

fn map(file: &File, pages: usize, flags: i32) -> std::io::Result<Area> {
    Area::map(pages * PAGE, READ_WRITE, flags, file.as_raw_fd(), 0)
}

/// Clean pages, dirty pages, a part of the file, and read-only with data changed before.
fn private() -> Result<Check, Box<dyn Error>> {
    let file = file("/private", 40)?;
    let area = map(&file, 40, libc::MAP_PRIVATE)?;
    for page in (0..40).step_by(3) {
        area.pages(page, 1).fill(1000 + page as u64);
    }
    let part = Area::map(
        5 * PAGE,
        READ_WRITE,
        libc::MAP_PRIVATE,
        file.as_raw_fd(),
        30 * PAGE as i64,
    )?;
    part.pages(2, 1).fill(2000);
    part.protect(libc::PROT_READ)?;
    drop(file);
    Ok(Box::new(move |_| {
        for page in 0..40 {
            let seed = if page % 3 == 0 { 1000 + page } else { page };
            area.pages(page, 1).check("a private page", seed as u64)?;
        }
        for page in 0..5 {
            let seed = if page == 2 { 2000 } else { 30 + page };
            part.pages(page, 1).check("a page of a part", seed as u64)?;
        }
        let on_disk = fs::read("/private")?;
        ensure!(
            on_disk[..8] == super::sys::word(0, 0).to_le_bytes(),
            "the file changed"
        );
        Ok(())
    }))
}

/// What is written to memory is in the file, and the other way round, in two processes.
fn shared() -> Result<Check, Box<dyn Error>> {
    use std::os::unix::fs::FileExt;
    let file = file("/shared", 8)?;
    let area = map(&file, 8, libc::MAP_SHARED)?;
    let mut child = Child::fork(move || {
        let mut asked = 0;
        Ok(Box::new(move |_| {
            asked += 1;
            eventually("the parent's word", || area.get(1) == asked)?;
            area.set(2, asked * 3);
            Ok(())
        }))
    })?;
    let mut asked = 0_u64;
    Ok(Box::new(move |_| {
        asked += 1;
        area.set(0, asked * 7);
        let mut word = [0; 8];
        file.read_exact_at(&mut word, 0)?;
        ensure!(
            u64::from_le_bytes(word) == asked * 7,
            "memory does not reach the file"
        );
        file.write_all_at(&asked.to_le_bytes(), 8)?;
        ensure!(area.get(1) == asked, "the file does not reach memory");
        child.check()?;
        ensure!(
            area.get(2) == asked * 3,
            "the child's word is {}",
            area.get(2)
        );
        area.pages(1, 1).check("the rest", 1)?;
        Ok(())
    }))
}

/// The file is gone, another may have its name; private and shared.
fn deleted() -> Result<Check, Box<dyn Error>> {
    let shared_file = file("/deleted", 8)?;
    let shared = map(&shared_file, 8, libc::MAP_SHARED)?;
    let again = map(&shared_file, 8, libc::MAP_SHARED)?;
    fs::remove_file("/deleted")?;
    drop(shared_file);
    let private = map(&file("/deleted", 8)?, 8, libc::MAP_PRIVATE)?;
    private.pages(3, 1).fill(333);
    fs::remove_file("/deleted")?;
    fs::write("/deleted", "another one")?;
    let mut asked = 100;
    Ok(Box::new(move |_| {
        asked += 1;
        shared.set(0, asked);
        ensure!(
            again.get(0) == asked,
            "two mappings of one deleted file are apart"
        );
        shared.pages(1, 1).check("a shared page", 1)?;
        private.pages(3, 1).check("a changed private page", 333)?;
        private.pages(4, 1).check("a private page", 4)?;
        ensure!(fs::read("/deleted")? == b"another one", "the other file");
        Ok(())
    }))
}

/// Sealed, mapped in three ways, and written through its descriptor.
fn memfd() -> Result<Check, Box<dyn Error>> {
    let fd = call!(libc::memfd_create(
        c"in memory".as_ptr(),
        libc::MFD_ALLOW_SEALING
    ))?;
    // SAFETY: it was just made, and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    fill(&file, 16)?;
    let shared = map(&file, 16, libc::MAP_SHARED)?;
    let private = map(&file, 16, libc::MAP_PRIVATE)?;
    private.pages(5, 1).fill(555);
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    call!(libc::fcntl(fd, libc::F_ADD_SEALS, seals))?;
    let mut asked = 0;
    Ok(Box::new(move |_| {
        asked += 1;
        shared.set(0, asked);
        ensure!(
            private.get(0) == asked,
            "a private page that was never written"
        );
        private.pages(5, 1).check("a changed page", 555)?;
        shared.pages(5, 1).check("the page below it", 5)?;
        let now = call!(libc::fcntl(fd, libc::F_GET_SEALS))?;
        ensure!(now == seals, "seals {now:#x}");
        ensure!(
            file.set_len(1).is_err(),
            "it can be shortened in spite of the seal"
        );
        ensure!(file.metadata()?.len() == 16 * PAGE as u64, "another length");
        Ok(())
    }))
}

/// A mapping longer than its file, and a file with holes.
fn beyond_end() -> Result<Check, Box<dyn Error>> {
    let short = file("/short", 2)?;
    short.set_len(PAGE as u64 + 100)?;
    let beyond = map(&short, 8, libc::MAP_SHARED)?;
    let private = map(&short, 8, libc::MAP_PRIVATE)?;
    private.pages(0, 1).fill(77);
    let holes = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open("/holes")?;
    holes.set_len(64 * PAGE as u64)?;
    let sparse = map(&holes, 64, libc::MAP_SHARED)?;
    sparse.pages(40, 1).fill(40);
    Ok(Box::new(move |_| {
        beyond.pages(0, 1).check("the first page", 0)?;
        private.pages(0, 1).check("the changed first page", 77)?;
        ensure!(
            beyond.get(PAGE / 8 + 1) == super::sys::word(1, 1),
            "the second page"
        );
        sparse.pages(40, 1).check("the page between holes", 40)?;
        sparse.pages(0, 40).check_zero("a hole")?;
        Ok(())
    }))
}
