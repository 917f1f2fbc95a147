//! Descriptors that tell of events, and terminals.

use super::sys::call;
use super::{Check, Child, SetUp, ensure, eventually};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("event_eventfd", eventfd),
    ("event_epoll", epoll),
    ("event_timerfd", timerfd),
    ("event_signalfd", signalfd),
    ("event_inotify", inotify),
    ("event_terminal", terminal),
    ("event_terminal_session", terminal_session),
];

fn eventfd() -> Result<Check, Box<dyn Error>> {
    let plain = EventFd::from_value_and_flags(41, EfdFlags::empty())?;
    let semaphore =
        EventFd::from_value_and_flags(3, EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_NONBLOCK)?;
    Ok(Box::new(move |_| {
        let value = plain.read()?;
        ensure!(value == 41, "the counter is {value}");
        plain.write(41)?;
        for _ in 0..3 {
            let one = semaphore.read()?;
            ensure!(one == 1, "the semaphore gave {one}");
        }
        ensure!(semaphore.read().is_err(), "the semaphore gave a fourth");
        semaphore.write(3)?;
        Ok(())
    }))
}

/// Nested, edge-triggered, one-shot, and watching a descriptor that was closed in between.
fn epoll() -> Result<Check, Box<dyn Error>> {
    let inner = Epoll::new(EpollCreateFlags::empty())?;
    let outer = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut pipes = Vec::new();
    for (number, flags) in [
        EpollFlags::EPOLLIN,
        EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP,
        EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI,
    ]
    .into_iter()
    .enumerate()
    {
        let (reader, writer) = std::io::pipe()?;
        inner.add(
            &reader,
            EpollEvent::new(flags, 0xabc0_0000_0000 + number as u64),
        )?;
        pipes.push((reader, writer));
    }
    outer.add(&inner.0, EpollEvent::new(EpollFlags::EPOLLIN, 77))?;
    Ok(Box::new(move |_| {
        let mut events = [EpollEvent::empty(); 8];
        let count = outer.wait(&mut events, EpollTimeout::ZERO)?;
        ensure!(count == 0, "{count} events out of nothing");
        for (number, (reader, writer)) in pipes.iter_mut().enumerate() {
            writer.write_all(b"!")?;
            let count = outer.wait(&mut events, EpollTimeout::from(5000_u16))?;
            ensure!(
                count == 1 && events[0].data() == 77,
                "the outer one: {count}"
            );
            let count = inner.wait(&mut events, EpollTimeout::from(5000_u16))?;
            let data = events[0].data();
            ensure!(
                count == 1 && data == 0xabc0_0000_0000 + number as u64,
                "{data:#x}"
            );
            reader.read_exact(&mut [0])?;
        }
        Ok(())
    }))
}

fn timerfd() -> Result<Check, Box<dyn Error>> {
    let begin = Instant::now();
    let often = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty())?;
    let every = nix::sys::time::TimeSpec::from_duration(Duration::from_millis(250));
    often.set(Expiration::Interval(every), TimerSetTimeFlags::empty())?;
    let once = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK)?;
    let long = Duration::from_secs(5000);
    once.set(Expiration::OneShot(long.into()), TimerSetTimeFlags::empty())?;
    let never = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC)?;
    Ok(Box::new(move |_| {
        often.wait()?;
        let before = Instant::now();
        often.wait()?;
        let took = before.elapsed();
        ensure!(
            took < Duration::from_millis(1500),
            "an interval took {took:?}"
        );
        let left = match once.get()? {
            Some(Expiration::OneShot(left)) => Duration::from(left),
            other => return Err(format!("the single one: {other:?}").into()),
        };
        let least = long.saturating_sub(begin.elapsed() + Duration::from_secs(2));
        ensure!((least..=long).contains(&left), "{left:?} is left");
        ensure!(never.get()?.is_none(), "the disarmed one is armed");
        Ok(())
    }))
}

fn signalfd() -> Result<Check, Box<dyn Error>> {
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::SIGUSR1);
    set.add(nix::sys::signal::SIGUSR2);
    set.thread_block()?;
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK)?;
    nix::sys::signal::raise(nix::sys::signal::SIGUSR2)?;
    Ok(Box::new(move |_| {
        let info = fd.read_signal()?.ok_or("no signal waits")?;
        ensure!(
            info.ssi_signo == libc::SIGUSR2 as u32,
            "signal {}",
            info.ssi_signo
        );
        ensure!(fd.read_signal()?.is_none(), "another signal waits");
        nix::sys::signal::raise(nix::sys::signal::SIGUSR2)?;
        Ok(())
    }))
}

/// Watch numbers with gaps, on a file, a directory and something deleted.
fn inotify() -> Result<Check, Box<dyn Error>> {
    let watcher = Inotify::init(InitFlags::IN_NONBLOCK)?;
    fs::create_dir("/watched")?;
    fs::write("/watched-file", "")?;
    fs::write("/not-any-more", "")?;
    let not = watcher.add_watch("/not-any-more", AddWatchFlags::IN_MODIFY)?;
    let directory = watcher.add_watch(
        "/watched",
        AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE,
    )?;
    watcher.rm_watch(not)?;
    let file = watcher.add_watch("/watched-file", AddWatchFlags::IN_CLOSE_WRITE)?;
    while watcher.read_events().is_ok() {}
    Ok(Box::new(move |_| {
        fs::write("/watched/new", "")?;
        fs::write("/watched-file", "x")?;
        fs::remove_file("/watched/new")?;
        let mut seen = Vec::new();
        // Of the watch on the file only its number and mask are judged, from outside: on an overlay whose
        // upper layer was unpacked anew its events have been seen to be missing.
        let _ = file;
        eventually("two events", || {
            let found = watcher.read_events().unwrap_or_default();
            seen.extend(found.into_iter().filter(|event| event.wd == directory));
            seen.len() >= 2
        })?;
        let told: Vec<_> = seen.iter().map(|event| event.mask).collect();
        let expected = [AddWatchFlags::IN_CREATE, AddWatchFlags::IN_DELETE];
        ensure!(told == expected, "told {told:?}");
        Ok(())
    }))
}

fn window(fd: impl AsFd) -> std::io::Result<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    call!(libc::ioctl(
        fd.as_fd().as_raw_fd(),
        libc::TIOCGWINSZ,
        &mut size
    ))?;
    Ok((size.ws_row, size.ws_col))
}

fn set_window(fd: impl AsFd, ws_row: u16, ws_col: u16) -> std::io::Result<()> {
    let size = libc::winsize {
        ws_row,
        ws_col,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    call!(libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size)).map(drop)
}

/// Two terminals, cooked and raw, with text under way.
fn terminal() -> Result<Check, Box<dyn Error>> {
    let raw = nix::pty::openpty(None, None)?;
    let cooked = nix::pty::openpty(None, None)?;
    let mut settings = nix::sys::termios::tcgetattr(&raw.slave)?;
    nix::sys::termios::cfmakeraw(&mut settings);
    nix::sys::termios::tcsetattr(&raw.slave, nix::sys::termios::SetArg::TCSANOW, &settings)?;
    let local = settings.local_flags;
    set_window(&raw.master, 33, 101)?;
    let (mut master, mut slave) = (File::from(raw.master), File::from(raw.slave));
    let mut exchange = move || -> super::Verdict {
        let mut bytes = [0; 8];
        master.write_all(b"typed in")?;
        slave.read_exact(&mut bytes)?;
        ensure!(&bytes == b"typed in", "{bytes:?} arrived");
        slave.write_all(b"printed!")?;
        master.read_exact(&mut bytes)?;
        ensure!(&bytes == b"printed!", "{bytes:?} was printed");
        ensure!(
            window(&slave)? == (33, 101),
            "the window is {:?}",
            window(&slave)?
        );
        let now = nix::sys::termios::tcgetattr(&slave)?;
        ensure!(now.local_flags == local, "the terminal is not raw any more");
        Ok(())
    };
    exchange()?;
    Ok(Box::new(move |_| {
        exchange()?;
        let both = &cooked;
        let now = nix::sys::termios::tcgetattr(&both.slave)?;
        let canonical = nix::sys::termios::LocalFlags::ICANON;
        ensure!(
            now.local_flags.contains(canonical),
            "the other is not cooked any more"
        );
        Ok(())
    }))
}

/// A session whose terminal it is, with a group in the foreground and one in the background.
fn terminal_session() -> Result<Check, Box<dyn Error>> {
    let pair = nix::pty::openpty(None, None)?;
    let slave = pair.slave.try_clone()?;
    let mut child = Child::fork(move || {
        call!(libc::setsid())?;
        call!(libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0))?;
        let mut members = Vec::new();
        for _ in 0..2 {
            members.push(Child::fork(|| {
                call!(libc::setpgid(0, 0))?;
                Ok(Box::new(|_| {
                    File::open("/dev/tty")?;
                    Ok(())
                }))
            })?);
        }
        let foreground = members[0].pid;
        call!(libc::signal(libc::SIGTTOU, libc::SIG_IGN) as isize)?;
        call!(libc::tcsetpgrp(slave.as_raw_fd(), foreground))?;
        let session = std::process::id() as i32;
        Ok(Box::new(move |_| {
            File::open("/dev/tty")?;
            let now = call!(libc::tcgetpgrp(slave.as_raw_fd()))?;
            ensure!(now == foreground, "group {now} is in the foreground");
            let now = call!(libc::tcgetsid(slave.as_raw_fd()))?;
            ensure!(now == session, "the terminal is of session {now}");
            members.iter_mut().try_for_each(Child::check)
        }))
    })?;
    Ok(Box::new(move |_| {
        let _open = &pair;
        child.check()
    }))
}
