//! Terminals, each test with a devpts instance of its own.

use super::*;
use crate::sys::tty;
use nix::mount::{MsFlags, mount};

/// A mount namespace with a fresh devpts.
fn world() -> OwnedFd {
    ns::fresh_with(ns::Kind::Mnt, || {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let options = Some("newinstance,ptmxmode=0666,mode=0620");
        mount(
            Some("devpts"),
            "/dev/pts",
            Some("devpts"),
            MsFlags::empty(),
            options,
        )?;
        Ok(())
    })
    .unwrap()
}

struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

fn terminal(view: &View) -> Terminal {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let master = view.open(b"/dev/pts/ptmx", flags, Mode::empty()).unwrap();
    tty::set_locked(master.as_fd(), false).unwrap();
    let path = format!("/dev/pts/{}", tty::index(master.as_fd()).unwrap());
    let slave = view.open(path.as_bytes(), flags, Mode::empty()).unwrap();
    Terminal { master, slave }
}

#[test]
fn pairs_keep_number_modes_and_size() {
    let old = world();
    let view = View::new(old.as_fd()).unwrap();
    let gap = [terminal(&view), terminal(&view)];
    let two = terminal(&view);
    drop(gap);
    let mut modes = tty::modes(two.slave.as_fd()).unwrap();
    modes.local &= !(libc::ICANON | libc::ECHO);
    modes.characters[libc::VMIN] = 3;
    tty::set_modes(two.slave.as_fd(), &modes).unwrap();
    tty::set_size(two.master.as_fd(), tty::Size(50, 132, 7, 8)).unwrap();
    tty::set_packet(two.master.as_fd(), true).unwrap();
    nix::sys::stat::fchmod(&two.slave, Mode::from_bits_truncate(0o600)).unwrap();
    let again = view
        .open(
            b"/dev/pts/2",
            OFlag::O_RDONLY | OFlag::O_NOCTTY,
            Mode::empty(),
        )
        .unwrap();
    let fds = [
        (two.master.as_fd(), 3),
        (two.slave.as_fd(), 4),
        (again.as_fd(), 5),
    ];
    let child = inhabitant(&old, &fds);
    let (before, refusals) = capture(&[&child]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    let pty = &before.files.ptys[0];
    assert_eq!((pty.index, pty.size), (2, (50, 132, 7, 8)));
    assert!(!pty.master_outside && !pty.hung_up && pty.packet);

    let new = world();
    let rebuilt = rebuild_in(&new, &before).unwrap();
    let numbered: Vec<_> = rebuilt
        .files
        .values()
        .zip(3..)
        .map(|(fd, n)| (fd.as_fd(), n))
        .collect();
    let copy = inhabitant(&new, &numbered);
    let (after, refusals) = capture(&[&copy]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    let blind = |files: &Files| {
        let mut files = files.clone();
        for file in &mut files.open_files {
            if let FileKind::PtyMaster { file, .. } | FileKind::PtySlave { file, .. } =
                &mut file.kind
            {
                file.mtime = (0, 0);
            }
        }
        files
    };
    pretty_eq(&blind(&before.files), &blind(&after.files));
    write(&rebuilt.files[&FileId(1)], b"hello").unwrap();
    assert_eq!(text_of(&rebuilt.files[&FileId(0)]), "\0hello");
}

#[test]
fn a_master_outside_is_made_anew_and_handed_over() {
    let old = world();
    let terminal = terminal(&View::new(old.as_fd()).unwrap());
    let child = inhabitant(&old, &[(terminal.slave.as_fd(), 0)]);
    let (captured, refusals) = capture(&[&child]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    assert!(captured.files.ptys[0].master_outside);
    let new = world();
    let rebuilt = rebuild_in(&new, &captured).unwrap();
    write(&rebuilt.masters[&0], b"typed\n").unwrap();
    assert_eq!(text_of(&rebuilt.files[&FileId(0)]), "typed\n");
}

#[test]
fn a_slave_without_master_is_hung_up_again() {
    let old = world();
    let terminal = terminal(&View::new(old.as_fd()).unwrap());
    drop(terminal.master);
    let child = inhabitant(&old, &[(terminal.slave.as_fd(), 3)]);
    let (captured, refusals) = capture(&[&child]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    assert!(captured.files.ptys[0].hung_up);
    let new = world();
    let rebuilt = rebuild_in(&new, &captured).unwrap();
    let slave = &rebuilt.files[&FileId(0)];
    assert_eq!(read(slave, &mut [0; 9]).unwrap(), 0);
    assert_eq!(
        tty::modes(slave.as_fd()).unwrap_err(),
        nix::errno::Errno::EIO
    );
}

#[test]
fn dev_tty_is_the_same_terminal_again() {
    let old = world();
    let view = View::new(old.as_fd()).unwrap();
    let terminal = terminal(&view);
    let node = view
        .open(b"/dev/tty", OFlag::O_PATH, Mode::empty())
        .unwrap();
    let own = tty::open_controlling(node.as_fd(), terminal.slave.as_fd(), libc::O_RDWR).unwrap();
    let fds = [
        (terminal.master.as_fd(), 3),
        (terminal.slave.as_fd(), 4),
        (own.as_fd(), 5),
    ];
    let child = inhabitant(&old, &fds);
    let (captured, refusals) = capture(&[&child]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    assert_eq!(captured.files.ptys.len(), 1);
    let new = world();
    let rebuilt = rebuild_in(&new, &captured).unwrap();
    let [master, slave, tty] = [0, 1, 2].map(|id| &rebuilt.files[&FileId(id)]);
    write(tty, b"to the screen").unwrap();
    assert_eq!(text_of(master), "to the screen");
    write(slave, b"x").unwrap();
    assert_eq!(text_of(master), "x");
}

#[test]
fn what_waits_in_a_terminal_is_reported() {
    let old = world();
    let terminal = terminal(&View::new(old.as_fd()).unwrap());
    write(&terminal.slave, b"output").unwrap();
    while crate::sys::pipe::readable(terminal.master.as_fd()).unwrap() == 0 {
        std::thread::yield_now();
    }
    let child = inhabitant(&old, &[(terminal.master.as_fd(), 3)]);
    let (_, refusals) = capture(&[&child]);
    assert_eq!(refusals.as_slice()[0].code, "E-TTY-QUEUED");
}

#[test]
fn a_terminal_of_the_host_is_refused_but_for_standard_streams() {
    let host = View::of(std::process::id().cast_signed()).unwrap();
    let terminal = terminal(&host);
    let new = world();
    let child = inhabitant(
        &new,
        &[(terminal.slave.as_fd(), 2), (terminal.slave.as_fd(), 9)],
    );
    let (captured, refusals) = capture(&[&child]);
    assert!(refusals.as_slice().is_empty(), "{refusals:?}");
    let FileKind::External(external) = &captured.files.open_files[0].kind else {
        panic!("{:?}", captured.files);
    };
    assert!(external.key.starts_with("tty["), "{external:?}");
    let child = inhabitant(&new, &[(terminal.slave.as_fd(), 9)]);
    let (_, refusals) = capture(&[&child]);
    assert_eq!(refusals.as_slice()[0].code, "E-TTY-OUTSIDE");
}
