//! Files and pipes.

use super::sys::call;
use super::{Check, Child, SetUp, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("fd_files", files),
    ("fd_shared", shared),
    ("fd_directories", directories),
    ("fd_deleted", deleted),
    ("fd_devices", devices),
    ("fd_pipes", pipes),
    ("fd_pipe_packets", packets),
    ("fd_fifos", fifos),
    ("fd_locks", locks),
    ("fd_numbers", numbers),
];

fn status_flags(file: impl AsFd) -> nix::Result<OFlag> {
    Ok(OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?))
}

fn is_close_on_exec(file: impl AsFd) -> nix::Result<bool> {
    Ok(fcntl(file, FcntlArg::F_GETFD)? & libc::FD_CLOEXEC != 0)
}

/// Offsets and flags, one opening each.
fn files() -> Result<Check, Box<dyn Error>> {
    fs::write("/file", "0123456789".repeat(100))?;
    let mut all = Vec::new();
    for (number, flags) in [
        0,
        libc::O_APPEND,
        libc::O_NONBLOCK,
        libc::O_NOATIME | libc::O_SYNC,
        libc::O_DSYNC | libc::O_APPEND,
    ]
    .into_iter()
    .enumerate()
    {
        let mut file = File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open("/file")?;
        file.seek(SeekFrom::Start(number as u64 * 11 + 3))?;
        let before = (status_flags(&file)?, file.stream_position()?);
        all.push((file, before));
    }
    let mut read_only = File::open("/file")?;
    read_only.seek(SeekFrom::Start(5))?;
    let mut write_only = File::options().write(true).open("/file")?;
    let path_only = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open("/file")?;
    fcntl(&path_only, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
    Ok(Box::new(move |_| {
        for (file, before) in &mut all {
            let now = (status_flags(&*file)?, file.stream_position()?);
            ensure!(now == *before, "flags and offset {now:?}, not {before:?}");
            ensure!(is_close_on_exec(&*file)?, "it lost FD_CLOEXEC");
        }
        let mut byte = [0];
        read_only.read_exact(&mut byte)?;
        ensure!(byte == *b"5", "{byte:?} was read at 5");
        read_only.seek(SeekFrom::Start(5))?;
        ensure!(
            read_only.write(b"x").is_err(),
            "what was opened to read can be written"
        );
        ensure!(
            write_only.read(&mut byte).is_err(),
            "what was opened to write can be read"
        );
        let flags = status_flags(&path_only)?;
        ensure!(flags.contains(OFlag::O_PATH), "O_PATH is lost: {flags:?}");
        ensure!(!is_close_on_exec(&path_only)?, "it got FD_CLOEXEC");
        Ok(())
    }))
}

/// One offset for duplicates and for children, another for who opened by himself.
fn shared() -> Result<Check, Box<dyn Error>> {
    fs::write("/shared-file", vec![7; 4096])?;
    let mut file = File::options()
        .read(true)
        .write(true)
        .open("/shared-file")?;
    let duplicate = file.try_clone()?;
    let mut apart = File::open("/shared-file")?;
    let mut inherited = file.try_clone()?;
    let mut asked = 0;
    let mut child = Child::fork(move || {
        Ok(Box::new(move |_| {
            asked += 1;
            super::eventually("the parent's seek", || {
                inherited.stream_position().unwrap_or(0) == asked * 10
            })?;
            inherited.seek(SeekFrom::Start(asked * 10 + 5))?;
            Ok(())
        }))
    })?;
    let mut asked = 0;
    Ok(Box::new(move |_| {
        asked += 1;
        file.seek(SeekFrom::Start(asked * 10))?;
        child.check()?;
        let at = (&duplicate).stream_position()?;
        ensure!(at == asked * 10 + 5, "the duplicate is at {at}");
        let at = apart.stream_position()?;
        ensure!(at == 0, "the other opening is at {at}");
        Ok(())
    }))
}

/// Half read, deleted, and only a path.
fn directories() -> Result<Check, Box<dyn Error>> {
    fs::create_dir_all("/directory/inside")?;
    for number in 0..40 {
        fs::write(format!("/directory/file-{number}"), "")?;
    }
    let mut half =
        nix::dir::Dir::open("/directory", OFlag::O_RDONLY, nix::sys::stat::Mode::empty())?;
    let mut names: Vec<String> = Vec::new();
    for entry in half.iter().take(5) {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    fs::create_dir("/gone")?;
    let gone = File::open("/gone")?;
    fs::remove_dir("/gone")?;
    let inside = File::open("/directory/inside")?;
    let inode = inside.metadata()?.ino();
    Ok(Box::new(move |_| {
        ensure!(gone.metadata()?.is_dir(), "the deleted directory is none");
        ensure!(
            gone.metadata()?.nlink() == 0,
            "the deleted directory has a name"
        );
        let path = format!("/proc/self/fd/{}", inside.as_raw_fd());
        ensure!(
            fs::read_link(&path)?.as_os_str() == "/directory/inside",
            "another directory"
        );
        ensure!(fs::metadata(&path)?.is_dir() && inode != 0, "no directory");
        if names.len() == 5 {
            for entry in half.iter() {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            names.dedup();
            ensure!(
                names.len() == 43,
                "{} names in the directory: {names:?}",
                names.len()
            );
        }
        Ok(())
    }))
}

/// Without a name, with another one, twice open, and with a hole.
fn deleted() -> Result<Check, Box<dyn Error>> {
    let open = |path: &str| {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
    };
    let mut gone = open("/deleted-file")?;
    gone.write_all(&b"content ".repeat(10_000))?;
    gone.set_len(1 << 24)?;
    gone.write_all_at(b"end", (1 << 24) - 3)?;
    gone.seek(SeekFrom::Start(1234))?;
    let again = File::open("/deleted-file")?;
    fs::remove_file("/deleted-file")?;
    let renamed = open("/first-name")?;
    renamed.write_all_at(b"renamed", 0)?;
    fs::rename("/first-name", "/second-name")?;
    let linked = open("/one-name")?;
    fs::hard_link("/one-name", "/other-name")?;
    fs::remove_file("/one-name")?;
    let nameless = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open("/")?;
    nameless.write_all_at(b"nameless", 0)?;
    let mut round = 0_u8;
    Ok(Box::new(move |_| {
        round += 1;
        ensure!(gone.stream_position()? == 1234, "another offset");
        gone.write_all_at(&[round], 100)?;
        let mut bytes = vec![0; 80_000];
        again.read_exact_at(&mut bytes, 0)?;
        ensure!(
            bytes[100] == round,
            "two openings of one deleted file are apart"
        );
        bytes[100] = b"content "[100 % 8];
        ensure!(bytes == b"content ".repeat(10_000), "another content");
        let mut end = [0; 4];
        again.read_exact_at(&mut end, (1 << 24) - 4)?;
        ensure!(&end == b"\0end", "another end: {end:?}");
        ensure!(again.metadata()?.nlink() == 0, "it has a name again");
        let mut word = [0; 7];
        renamed.read_exact_at(&mut word, 0)?;
        ensure!(&word == b"renamed", "the renamed file holds {word:?}");
        ensure!(
            linked.metadata()?.ino() == fs::metadata("/other-name")?.ino(),
            "another file"
        );
        let mut word = [0; 8];
        nameless.read_exact_at(&mut word, 0)?;
        ensure!(&word == b"nameless", "the nameless file holds {word:?}");
        Ok(())
    }))
}

fn devices() -> Result<Check, Box<dyn Error>> {
    let open = |path: &str| File::options().read(true).write(true).open(path);
    let mut null = open("/dev/null")?;
    let mut zero = open("/dev/zero")?;
    let mut full = open("/dev/full")?;
    let mut random = open("/dev/urandom")?;
    Ok(Box::new(move |_| {
        let mut bytes = [1; 16];
        ensure!(null.read(&mut bytes)? == 0, "null gave something");
        null.write_all(b"away")?;
        zero.read_exact(&mut bytes)?;
        ensure!(bytes == [0; 16], "zero gave {bytes:?}");
        ensure!(full.write_all(b"x").is_err(), "full took something");
        random.read_exact(&mut bytes)?;
        ensure!(bytes != [0; 16], "urandom gave zeros");
        Ok(())
    }))
}

/// Reads exactly what is there and puts it back.
fn look_into(reader: &File, writer: &File, expected: &[u8]) -> super::Verdict {
    let mut bytes = vec![0; expected.len()];
    (&*reader).read_exact(&mut bytes)?;
    ensure!(bytes == expected, "the pipe holds something else");
    let mut left = 0_i32;
    call!(libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &mut left))?;
    ensure!(left == 0, "{left} bytes more are in the pipe");
    (&*writer).write_all(expected)?;
    Ok(())
}

fn pipe(flags: OFlag) -> nix::Result<(File, File)> {
    let (reader, writer) = nix::unistd::pipe2(flags)?;
    Ok((reader.into(), writer.into()))
}

/// Empty, with content, full, of another size, and half closed in both ways.
fn pipes() -> Result<Check, Box<dyn Error>> {
    let empty = pipe(OFlag::O_NONBLOCK)?;
    let some = pipe(OFlag::empty())?;
    (&some.1).write_all(b"some bytes")?;
    let full = pipe(OFlag::empty())?;
    let full_bytes: Vec<u8> = (0..65536_u32)
        .map(|index| (index * 7 % 251) as u8)
        .collect();
    (&full.1).write_all(&full_bytes)?;
    let large = pipe(OFlag::empty())?;
    let size = fcntl(&large.1, FcntlArg::F_SETPIPE_SZ(1 << 18))?;
    let large_bytes = full_bytes.repeat(3);
    (&large.1).write_all(&large_bytes)?;
    let (closing, writer) = pipe(OFlag::empty())?;
    (&writer).write_all(b"last words")?;
    drop(writer);
    let mut closing = Some(closing);
    let (_, broken) = pipe(OFlag::empty())?;
    Ok(Box::new(move |_| {
        let mut byte = [0];
        let (mut reader, _writer) = (&empty.0, &empty.1);
        let error = reader.read(&mut byte).err().map(|error| error.kind());
        ensure!(
            error == Some(std::io::ErrorKind::WouldBlock),
            "the empty pipe: {error:?}"
        );
        look_into(&some.0, &some.1, b"some bytes")?;
        look_into(&full.0, &full.1, &full_bytes)?;
        let now = fcntl(&large.1, FcntlArg::F_GETPIPE_SZ)?;
        ensure!(now == size, "the size of a pipe is {now}, not {size}");
        look_into(&large.0, &large.1, &large_bytes)?;
        let mut text = String::new();
        if let Some(mut reader) = closing.take() {
            reader.read_to_string(&mut text)?;
            ensure!(text == "last words", "{text:?} before the end");
            let (reader, writer) = pipe(OFlag::empty())?;
            (&writer).write_all(b"last words")?;
            closing = Some(reader);
        }
        let error = (&broken).write(b"x").err().map(|error| error.kind());
        ensure!(
            error == Some(std::io::ErrorKind::BrokenPipe),
            "a pipe without a reader: {error:?}"
        );
        Ok(())
    }))
}

/// O_DIRECT keeps the packets apart.
fn packets() -> Result<Check, Box<dyn Error>> {
    let (reader, writer) = pipe(OFlag::O_DIRECT)?;
    let all: Vec<Vec<u8>> = (0..6_usize)
        .map(|number| vec![number as u8; 1 + number * 700])
        .collect();
    for packet in &all {
        (&writer).write_all(packet)?;
    }
    Ok(Box::new(move |_| {
        let mut bytes = vec![0; 4096];
        for packet in &all {
            let count = (&reader).read(&mut bytes)?;
            ensure!(bytes[..count] == packet[..], "a packet of {count} bytes");
        }
        for packet in &all {
            (&writer).write_all(packet)?;
        }
        let flags = status_flags(&writer)?;
        ensure!(flags.contains(OFlag::O_DIRECT), "O_DIRECT is lost");
        Ok(())
    }))
}

fn fifos() -> Result<Check, Box<dyn Error>> {
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
    nix::unistd::mkfifo("/fifo", mode)?;
    let both = File::options().read(true).write(true).open("/fifo")?;
    let reader = File::open("/fifo")?;
    let writer = File::options().write(true).open("/fifo")?;
    (&writer).write_all(b"through a name")?;
    nix::unistd::mkfifo("/deleted-fifo", mode)?;
    let deleted = File::options()
        .read(true)
        .write(true)
        .open("/deleted-fifo")?;
    fs::remove_file("/deleted-fifo")?;
    (&deleted).write_all(b"without one")?;
    Ok(Box::new(move |_| {
        look_into(&reader, &both, b"through a name")?;
        look_into(&both, &writer, b"through a name")?;
        look_into(&deleted, &deleted, b"without one")
    }))
}

fn lock(file: &File, command: i32, kind: i32, range: (i64, i64)) -> std::io::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: range.0,
        l_len: range.1,
        l_pid: 0,
    };
    call!(libc::fcntl(file.as_raw_fd(), command, &mut lock))?;
    Ok(lock)
}

/// All three sorts, held by two processes.
fn locks() -> Result<Check, Box<dyn Error>> {
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open("/locked")
    };
    let (posix, description, whole) = (open()?, open()?, File::create("/locked-whole")?);
    lock(&posix, libc::F_SETLK, libc::F_WRLCK, (0, 10))?;
    lock(&posix, libc::F_SETLK, libc::F_RDLCK, (50, 25))?;
    lock(&description, libc::F_OFD_SETLK, libc::F_WRLCK, (100, 0))?;
    call!(libc::flock(whole.as_raw_fd(), libc::LOCK_EX))?;
    let owner = std::process::id() as i32;
    let mut child = Child::fork(move || {
        let own = open()?;
        lock(&own, libc::F_SETLK, libc::F_WRLCK, (20, 5))?;
        Ok(Box::new(move |_| {
            for (range, kind) in [((0, 10), libc::F_WRLCK), ((50, 25), libc::F_RDLCK)] {
                let found = lock(&own, libc::F_GETLK, libc::F_WRLCK, range)?;
                ensure!(
                    found.l_pid == owner,
                    "{range:?} is locked by {}",
                    found.l_pid
                );
                ensure!(
                    i32::from(found.l_type) == kind,
                    "{range:?} is locked otherwise"
                );
            }
            let found = lock(&own, libc::F_GETLK, libc::F_WRLCK, (1000, 1))?;
            ensure!(found.l_pid == -1, "the end is locked by {}", found.l_pid);
            let found = lock(&own, libc::F_GETLK, libc::F_WRLCK, (30, 5))?;
            ensure!(
                i32::from(found.l_type) == libc::F_UNLCK,
                "what nobody locked is locked"
            );
            Ok(())
        }))
    })?;
    Ok(Box::new(move |_| {
        let found = lock(&posix, libc::F_GETLK, libc::F_WRLCK, (20, 1))?;
        ensure!(
            found.l_pid == child.pid,
            "the child's lock is of {}",
            found.l_pid
        );
        let other = File::open("/locked-whole")?;
        let free = call!(libc::flock(
            other.as_raw_fd(),
            libc::LOCK_SH | libc::LOCK_NB
        ))
        .is_ok();
        ensure!(!free, "the whole file is not locked");
        // Closing any descriptor of the file would give the first sort of locks up.
        let _held = (&whole, &description);
        child.check()
    }))
}

/// High numbers, gaps, and many.
fn numbers() -> Result<Check, Box<dyn Error>> {
    let mut all: Vec<(OwnedFd, u64)> = Vec::new();
    for number in 0..400_u64 {
        let path = format!("/number-{}", number % 20);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.seek(SeekFrom::Start(number))?;
        let place = 500 + number as i32 * 2;
        // SAFETY: nobody has these numbers; each is owned once.
        let fd = unsafe {
            use std::os::fd::FromRawFd;
            OwnedFd::from_raw_fd(call!(libc::dup2(file.as_raw_fd(), place))?)
        };
        all.push((fd, number));
    }
    Ok(Box::new(move |_| {
        for (fd, number) in &all {
            let at = call!(libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_CUR))?;
            ensure!(
                at as u64 == *number,
                "descriptor {} is at {at}",
                fd.as_raw_fd()
            );
        }
        let count = fs::read_dir("/proc/self/fd")?.count();
        ensure!(count == 400 + 4, "{count} descriptors");
        Ok(())
    }))
}
