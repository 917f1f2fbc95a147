//! Unix sockets, there and back.

use super::ground::{Ground, read, trip, write};
use super::*;
use crate::image::sockets::UnixState;
use crate::sys::socket::{Along, Control};
use nix::errno::Errno;
use std::os::fd::AsRawFd;

fn address(name: &str) -> Vec<u8> {
    let mut raw = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    raw.extend(name.as_bytes());
    if !name.starts_with('\0') {
        raw.push(0);
    }
    raw
}

fn new(kind: i32) -> OwnedFd {
    socket::socket(libc::AF_UNIX, kind, 0).unwrap()
}

fn bound(kind: i32, name: &str) -> OwnedFd {
    let fd = new(kind);
    socket::bind(&fd, &address(name)).unwrap();
    fd
}

fn listening(kind: i32, name: &str) -> OwnedFd {
    let fd = bound(kind, name);
    socket::listen(&fd, 5).unwrap();
    fd
}

fn connected(kind: i32, to: &str) -> OwnedFd {
    let fd = new(kind);
    socket::connect(&fd, &address(to)).unwrap();
    fd
}

fn name(fd: &OwnedFd) -> String {
    text(socket::local_address(fd).unwrap())
}

fn peer(fd: &OwnedFd) -> String {
    text(socket::peer_address(fd).unwrap().unwrap())
}

fn text(raw: Vec<u8>) -> String {
    let name = String::from_utf8(raw[2..].to_vec()).unwrap();
    name.trim_end_matches('\0').to_owned()
}

#[test]
fn pairs_keep_their_queues_and_shutdowns() {
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        let trip = trip(|| {
            let (one, two) = socket::pair(libc::AF_UNIX, kind).unwrap();
            write(&one, b"first");
            write(&one, b"second");
            write(&two, b"back");
            if kind != libc::SOCK_DGRAM {
                socket::shutdown(&one, libc::SHUT_WR).unwrap();
            }
            vec![one, two]
        });
        if kind == libc::SOCK_STREAM {
            assert_eq!(read(&trip.fds[1]), b"firstsecond");
        } else {
            assert_eq!(read(&trip.fds[1]), b"first");
            assert_eq!(read(&trip.fds[1]), b"second");
        }
        assert_eq!(read(&trip.fds[0]), b"back");
        write(&trip.fds[1], b"more");
        assert_eq!(read(&trip.fds[0]), b"more");
        if kind != libc::SOCK_DGRAM {
            assert_eq!(read(&trip.fds[1]), b"", "end of stream");
        }
    }
}

#[test]
fn a_large_queue_comes_back_although_the_buffer_is_small() {
    let data: Vec<u8> = (0..150_000u32).map(|n| n as u8).collect();
    let trip = trip(|| {
        let (one, two) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        write(&one, &data);
        socket::set_int_option(&one, libc::SOL_SOCKET, libc::SO_SNDBUF, 5000).unwrap();
        vec![one, two]
    });
    assert_eq!(read(&trip.fds[1]), data);
    let sndbuf = socket::int_option(&trip.fds[0], libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap();
    assert_eq!(sndbuf, 10_000);
}

#[test]
fn a_closed_peer_stays_closed_with_or_without_an_error() {
    for reset in [false, true] {
        let trip = trip(|| {
            let (one, two) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
            write(&two, b"last words");
            if reset {
                write(&one, b"never read");
            }
            vec![one]
        });
        let record = &trip.image.unix[0];
        assert_eq!(record.state, UnixState::PeerGone { peer_name: None });
        assert_eq!(read(&trip.fds[0]), b"last words");
        let end = socket::receive(&trip.fds[0], 0, 10);
        match reset {
            true => assert_eq!(end.unwrap_err(), Errno::ECONNRESET),
            false => assert_eq!(end.unwrap().unwrap().data, b""),
        }
    }
}

#[test]
fn a_listening_socket_goes_on_with_clients_accepted_and_waiting() {
    for listener in ["/run/server", "\0server"] {
        let trip = trip(|| {
            let server = listening(libc::SOCK_STREAM, listener);
            let client = connected(libc::SOCK_STREAM, listener);
            let accepted = socket::accept(&server).unwrap();
            let named = bound(libc::SOCK_STREAM, "/tmp/client");
            socket::connect(&named, &address(listener)).unwrap();
            let named_accepted = socket::accept(&server).unwrap();
            let waiting = connected(libc::SOCK_STREAM, listener);
            write(&client, b"hello");
            vec![server, client, accepted, named, named_accepted, waiting]
        });
        let fds = &trip.fds;
        assert_eq!(read(&fds[2]), b"hello");
        assert_eq!(
            (name(&fds[2]), peer(&fds[1])),
            (listener.into(), listener.into())
        );
        assert_eq!(peer(&fds[4]), "/tmp/client");
        write(&fds[5], b"now");
        let accepted = socket::accept(&fds[0]).unwrap();
        assert_eq!(read(&accepted), b"now");
        let late = trip.ground.run(|| connected(libc::SOCK_STREAM, listener));
        drop(late);
        socket::accept(&fds[0]).unwrap();
    }
}

#[test]
fn names_come_back_where_the_file_was_moved_deleted_or_bound_from_elsewhere() {
    let trip = trip(|| {
        let moved = listening(libc::SOCK_STREAM, "/run/old");
        std::fs::rename("/run/old", "/run/new").unwrap();
        let deleted = listening(libc::SOCK_STREAM, "/run/deleted");
        std::fs::remove_file("/run/deleted").unwrap();
        let replaced = bound(libc::SOCK_DGRAM, "/run/twice");
        std::fs::remove_file("/run/twice").unwrap();
        let replacing = bound(libc::SOCK_DGRAM, "/run/twice");
        std::env::set_current_dir("/run").unwrap();
        let relative = listening(libc::SOCK_SEQPACKET, "../tmp/relative");
        std::env::set_current_dir("/").unwrap();
        let client = connected(libc::SOCK_STREAM, "/run/new");
        let server = socket::accept(&moved).unwrap();
        drop(moved);
        std::os::unix::fs::chown("/tmp/relative", Some(12), Some(34)).unwrap();
        vec![deleted, replaced, replacing, relative, client, server]
    });
    let fds = &trip.fds;
    assert_eq!(name(&fds[0]), "/run/deleted");
    assert_eq!(
        (name(&fds[1]), name(&fds[2])),
        ("/run/twice".into(), "/run/twice".into())
    );
    assert_eq!(name(&fds[3]), "../tmp/relative");
    assert_eq!(
        (peer(&fds[4]), name(&fds[5])),
        ("/run/old".into(), "/run/old".into())
    );
    write(&fds[4], b"x");
    assert_eq!(read(&fds[5]), b"x");
    trip.ground.run(|| {
        let names = |dir| -> Vec<_> {
            let mut all: Vec<_> = std::fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            all.sort();
            all
        };
        assert_eq!(names("/run"), ["new", "twice"]);
        assert_eq!(names("/tmp"), ["relative"]);
        let stat = nix::sys::stat::stat("/tmp/relative").unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (12, 34));
        drop(connected(libc::SOCK_SEQPACKET, "/tmp/relative"));
        let to = address("/run/twice");
        socket::send(new(libc::SOCK_DGRAM), b"y", Some(&to), &Along::default(), 0).unwrap();
    });
    assert_eq!(read(&fds[2]), b"y");
    socket::accept(&fds[3]).unwrap();
}

#[test]
fn datagrams_keep_their_bounds_and_their_senders() {
    let trip = trip(|| {
        let server = bound(libc::SOCK_DGRAM, "/run/log");
        let to = address("/run/log");
        let nameless = new(libc::SOCK_DGRAM);
        socket::send(&nameless, b"", Some(&to), &Along::default(), 0).unwrap();
        let client = bound(libc::SOCK_DGRAM, "\0client");
        socket::connect(&client, &to).unwrap();
        write(&client, b"from client");
        let gone = bound(libc::SOCK_DGRAM, "/tmp/gone");
        socket::send(&gone, b"from gone", Some(&to), &Along::default(), 0).unwrap();
        let lonely = new(libc::SOCK_DGRAM);
        let dead = bound(libc::SOCK_DGRAM, "/tmp/dead");
        socket::connect(&lonely, &address("/tmp/dead")).unwrap();
        drop(dead);
        vec![server, client, lonely]
    });
    for (data, from) in [
        (&b""[..], None),
        (b"from client", Some("\0client")),
        (b"from gone", Some("/tmp/gone")),
    ] {
        let message = socket::receive(&trip.fds[0], 0, 100).unwrap().unwrap();
        assert_eq!(message.data, data);
        assert_eq!(
            unix::name_of(&message.from).map(|n| n.0),
            from.map(|f| f.as_bytes().to_vec())
        );
    }
    write(&trip.fds[1], b"still connected");
    assert_eq!(read(&trip.fds[0]), b"still connected");
    assert_eq!(peer(&trip.fds[2]), "/tmp/dead");
    let refused = socket::send(&trip.fds[2], b"x", None, &Along::default(), 0);
    assert_eq!(refused.unwrap_err(), Errno::ECONNREFUSED);
}

#[test]
fn descriptors_in_flight_arrive_files_and_sockets_and_themselves() {
    let trip = trip(|| {
        let (one, two) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        let (left, right) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        write(&left, b"through the travelling end");
        let file = std::fs::File::create("/tmp/file").unwrap();
        std::fs::write("/tmp/file", b"content").unwrap();
        let rights = [file.as_fd(), right.as_fd(), one.as_fd()];
        let along = Along {
            rights: &rights,
            credentials: None,
        };
        write(&one, b"before");
        socket::send(&one, b"with", None, &along, 0).unwrap();
        vec![one, two, left]
    });
    let [one, two, left] = &trip.fds[..] else {
        panic!("three sockets")
    };
    let mut got = Vec::new();
    let mut data = Vec::new();
    while got.is_empty() {
        let message = socket::receive(two, 0, 100).unwrap().unwrap();
        data.extend(message.data);
        for control in message.control {
            if let Control::Rights(fds) = control {
                got = fds;
            }
        }
    }
    assert_eq!(data, b"beforewith");
    let link = std::fs::read_link(format!("/proc/self/fd/{}", got[0].as_raw_fd())).unwrap();
    assert!(link.to_str().unwrap().contains("file"));
    assert_eq!(read(&got[1]), b"through the travelling end");
    write(left, b"and on");
    assert_eq!(read(&got[1]), b"and on");
    assert_eq!(socket::inode(&got[2]), socket::inode(one));
}

#[test]
fn credentials_in_a_queue_come_back() {
    let trip = trip(|| {
        let (one, two) = socket::pair(libc::AF_UNIX, libc::SOCK_SEQPACKET).unwrap();
        socket::set_int_option(&two, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let along = Along {
            rights: &[],
            credentials: Some((std::process::id() as i32, 5, 6)),
        };
        socket::send(&one, b"me", None, &along, 0).unwrap();
        vec![one, two]
    });
    let message = socket::receive(&trip.fds[1], 0, 100).unwrap().unwrap();
    let pid = std::process::id() as i32;
    assert!(matches!(message.control[..], [Control::Credentials(p, 5, 6)] if p == pid));
}

fn refused(make: impl FnOnce() -> (Vec<OwnedFd>, Vec<OwnedFd>) + Send) -> Vec<&'static str> {
    let ground = Ground::new();
    let (inside, _outside) = ground.run(make);
    let (_, refusals) = ground.collect(&inside, Choices::default(), &mut BTreeMap::new());
    refusals.as_slice().iter().map(|one| one.code).collect()
}

#[test]
fn what_leads_outside_or_cannot_be_read_is_refused_by_name() {
    let codes = refused(|| {
        let (one, two) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        (vec![one], vec![two])
    });
    assert_eq!(codes, ["E-UNIX-PEER-OUTSIDE"]);
    let codes = refused(|| {
        let server = listening(libc::SOCK_STREAM, "/run/server");
        let waiting = connected(libc::SOCK_STREAM, "/run/server");
        write(&waiting, b"too early");
        (vec![server, waiting], vec![])
    });
    assert_eq!(codes, ["E-UNIX-PENDING-DATA"]);
    let codes = refused(|| {
        let server = listening(libc::SOCK_STREAM, "/run/server");
        drop(connected(libc::SOCK_STREAM, "/run/server"));
        (vec![server], vec![])
    });
    assert_eq!(codes, ["E-UNIX-PENDING-DATA"]);
    let codes = refused(|| {
        let server = listening(libc::SOCK_STREAM, "/run/server");
        let waiting = connected(libc::SOCK_STREAM, "/run/server");
        (vec![server], vec![waiting])
    });
    assert_eq!(codes, ["E-UNIX-PEER-OUTSIDE"]);
}

#[test]
fn a_datagram_socket_connects_to_one_outside_again_where_that_is_allowed() {
    let choices = Choices {
        ext_unix_sk: true,
        ..Choices::default()
    };
    let old = Ground::new();
    let (outside, inside) = old.run(|| {
        let outside = bound(libc::SOCK_DGRAM, "/run/log");
        (outside, connected(libc::SOCK_DGRAM, "/run/log"))
    });
    let (image, refusals) = old.collect(&[inside], choices, &mut BTreeMap::new());
    refusals.into_result().unwrap();
    drop(outside);
    let new = Ground::new();
    let outside = new.run(|| bound(libc::SOCK_DGRAM, "/run/log"));
    let fds = new.rebuild(&image, &BTreeMap::new());
    write(&fds[&1], b"line");
    assert_eq!(read(&outside), b"line");
}
