//! TCP sockets, there and back.

use super::ground::{Ground, read, trip, trip_with, write};
use super::*;
use crate::image::sockets::TcpState;
use nix::errno::Errno;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

fn new(v6: bool) -> OwnedFd {
    let domain = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    socket::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP).unwrap()
}

fn raw(text: &str) -> Vec<u8> {
    let address: SocketAddr = text.parse().unwrap();
    address::raw(address, address.is_ipv6()).unwrap()
}

fn bound(text: &str) -> OwnedFd {
    let fd = new(text.starts_with('['));
    socket::bind(&fd, &raw(text)).unwrap();
    fd
}

fn listening(text: &str) -> OwnedFd {
    let fd = new(text.starts_with('['));
    socket::set_int_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
    socket::bind(&fd, &raw(text)).unwrap();
    socket::listen(&fd, 7).unwrap();
    fd
}

fn connected(text: &str) -> OwnedFd {
    let fd = new(text.starts_with('['));
    socket::connect(&fd, &raw(text)).unwrap();
    fd
}

/// Server, client and accepted.
fn connection(text: &str) -> (OwnedFd, OwnedFd, OwnedFd) {
    let server = listening(text);
    let client = connected(text);
    let accepted = accept(&server);
    (server, client, accepted)
}

fn accept(server: &OwnedFd) -> OwnedFd {
    socket::accept(server).unwrap()
}

fn ends(fd: impl AsFd) -> (SocketAddr, SocketAddr) {
    let parse = |raw: Vec<u8>| address::parse(&raw).unwrap();
    (
        parse(socket::local_address(&fd).unwrap()),
        parse(socket::peer_address(&fd).unwrap().unwrap()),
    )
}

fn wait_for(fd: BorrowedFd<'_>, events: i16) {
    for _ in 0..2000 {
        if socket::ready(fd).unwrap() & events != 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("nothing came");
}

fn read_all(fd: &OwnedFd, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        wait_for(fd.as_fd(), libc::POLLIN);
        let data = read(fd);
        assert!(
            !data.is_empty(),
            "the stream ends after {} bytes",
            all.len()
        );
        all.extend(data);
    }
    all
}

#[test]
fn connections_inside_go_on_with_their_queues_over_both_families() {
    for text in ["127.0.0.1:8080", "[::1]:8080"] {
        let mut before = Vec::new();
        let trip = trip(|| {
            let (server, client, accepted) = connection(text);
            write(&client, b"request");
            write(&accepted, b"answer");
            before.push(ends(&client));
            vec![server, client, accepted]
        });
        let [server, client, accepted] = &trip.fds[..] else {
            panic!("three sockets")
        };
        assert_eq!(ends(client), before[0]);
        assert_eq!(ends(accepted), (before[0].1, before[0].0));
        assert_eq!(read(accepted), b"request");
        assert_eq!(read(client), b"answer");
        write(client, b"again");
        assert_eq!(read_all(accepted, 5), b"again");
        trip.ground.run(|| connected(text));
        drop(accept(server));
    }
}

#[test]
fn a_mapped_client_and_a_server_for_both_families_go_on() {
    let trip = trip(|| {
        let server = listening("[::]:7000");
        let client = connected("127.0.0.1:7000");
        let accepted = accept(&server);
        write(&client, b"x");
        vec![server, client, accepted]
    });
    assert_eq!(read(&trip.fds[2]), b"x");
    assert!(
        ends(&trip.fds[2])
            .1
            .to_string()
            .starts_with("[::ffff:127.0.0.1]")
    );
}

#[test]
fn bytes_still_on_their_way_arrive_in_order() {
    let mut total = 0;
    let trip = trip(|| {
        let (server, client, accepted) = connection("127.0.0.1:8080");
        socket::set_int_option(&accepted, libc::SOL_SOCKET, libc::SO_RCVBUF, 8192).unwrap();
        for n in 0u32.. {
            let chunk: Vec<u8> = (0..1000).map(|i| (n * 1000 + i) as u8 ^ n as u8).collect();
            match socket::send(&client, &chunk, None, &Default::default(), 0) {
                Ok(1000) => total += 1000,
                Ok(part) => {
                    total += part;
                    break;
                }
                Err(errno) => {
                    assert_eq!(errno, Errno::EAGAIN);
                    break;
                }
            }
        }
        socket::shutdown(&client, libc::SHUT_WR).unwrap();
        vec![server, client, accepted]
    });
    assert!(!trip.image.tcp[1].send_queue.0.is_empty());
    let data = read_all(&trip.fds[2], total);
    for (n, chunk) in data.chunks(1000).enumerate() {
        let n = n as u32;
        for (i, byte) in chunk.iter().enumerate() {
            assert_eq!(
                *byte,
                (n * 1000 + i as u32) as u8 ^ n as u8,
                "byte {i} of {n}"
            );
        }
    }
    wait_for(trip.fds[2].as_fd(), libc::POLLRDHUP);
    assert_eq!(read(&trip.fds[2]), b"");
}

#[test]
fn capturing_bytes_on_their_way_leaves_the_connection_whole() {
    let ground = Ground::new();
    let (fds, total) = ground.run(|| {
        let (server, client, accepted) = connection("127.0.0.1:8080");
        let chunk = [7u8; 10_000];
        let mut total = 0;
        while let Ok(sent) = socket::send(&client, &chunk, None, &Default::default(), 0) {
            total += sent;
        }
        socket::set_int_option(&client, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
        (vec![server, client, accepted], total)
    });
    for _ in 0..20 {
        let (image, refusals) = ground.collect(&fds, Choices::default(), &mut BTreeMap::new());
        refusals.into_result().unwrap();
        assert!(!image.tcp[1].send_queue.0.is_empty());
    }
    let option = |number| socket::int_option(&fds[1], libc::SOL_SOCKET, number).unwrap();
    assert_eq!(option(libc::SO_REUSEADDR), 1);
    assert_eq!(read_all(&fds[2], total).len(), total);
    write(&fds[1], b"after");
    assert_eq!(read_all(&fds[2], 5), b"after");
}

#[test]
fn half_closed_connections_stay_half_closed() {
    let trip = trip(|| {
        let (server, client, accepted) = connection("127.0.0.1:8080");
        write(&client, b"all");
        socket::shutdown(&client, libc::SHUT_WR).unwrap();
        vec![server, client, accepted]
    });
    let (client, accepted) = (&trip.fds[1], &trip.fds[2]);
    assert_eq!(read_all(accepted, 3), b"all");
    assert_eq!(read(accepted), b"");
    write(accepted, b"still");
    assert_eq!(read_all(client, 5), b"still");
    let write = socket::send(client, b"x", None, &Default::default(), 0);
    assert_eq!(write.unwrap_err(), Errno::EPIPE);
}

#[test]
fn the_end_of_a_closed_peer_can_still_be_read() {
    let trip = trip(|| {
        let (server, client, accepted) = connection("127.0.0.1:8080");
        write(&client, b"bye");
        drop(client);
        wait_for(accepted.as_fd(), libc::POLLRDHUP);
        vec![server, accepted]
    });
    assert!(matches!(
        trip.image.tcp[1].state,
        TcpState::Inside { peer: None, .. }
    ));
    assert_eq!(read_all(&trip.fds[1], 3), b"bye");
    assert_eq!(read(&trip.fds[1]), b"");
}

#[test]
fn connections_that_are_over_stay_over() {
    for reset in [false, true] {
        let trip = trip(|| {
            let (_, client, accepted) = connection("127.0.0.1:8080");
            if reset {
                write(&accepted, b"never read");
                wait_for(client.as_fd(), libc::POLLIN);
                drop(client);
            } else {
                drop(client);
                wait_for(accepted.as_fd(), libc::POLLRDHUP);
                socket::shutdown(&accepted, libc::SHUT_WR).unwrap();
            }
            wait_for(accepted.as_fd(), libc::POLLHUP);
            vec![accepted]
        });
        assert_eq!(trip.image.tcp[0].state, TcpState::Over { reset });
        let fd = &trip.fds[0];
        match reset {
            true => assert_eq!(socket::receive(fd, 0, 9).unwrap_err(), Errno::ECONNRESET),
            false => assert_eq!(read(fd), b""),
        }
        let write = socket::send(fd, b"x", None, &Default::default(), 0);
        assert_eq!(write.unwrap_err(), Errno::EPIPE);
    }
}

#[test]
fn clients_that_wait_are_accepted_afterwards() {
    let trip = trip(|| {
        let server = listening("127.0.0.1:8080");
        let client = connected("127.0.0.1:8080");
        drop(connected("127.0.0.1:8080"));
        vec![server, client]
    });
    let (server, client) = (&trip.fds[0], &trip.fds[1]);
    let (one, two) = (accept(server), accept(server));
    let (mine, gone) = match ends(&one).1 == ends(client).0 {
        true => (one, two),
        false => (two, one),
    };
    write(client, b"hello");
    assert_eq!(read_all(&mine, 5), b"hello");
    wait_for(gone.as_fd(), libc::POLLRDHUP);
    assert_eq!(read(&gone), b"");
}

#[test]
fn unconnected_sockets_and_one_connected_to_itself_come_back() {
    let trip = trip(|| {
        let itself = bound("127.0.0.1:9000");
        socket::connect(&itself, &raw("127.0.0.1:9000")).unwrap();
        write(&itself, b"me");
        vec![new(true), bound("127.0.0.1:9100"), itself]
    });
    assert_eq!(read(&trip.fds[2]), b"me");
    assert!(matches!(trip.image.tcp[0].state, TcpState::Unconnected));
    socket::listen(&trip.fds[1], 1).unwrap();
    trip.ground.run(|| connected("127.0.0.1:9100"));
}

#[test]
fn megabytes_in_both_directions_come_back() {
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    let mut sent = 0;
    let trip = trip_with(Choices::default(), |_| {
        let (server, client, accepted) = connection("127.0.0.1:8080");
        for fd in [&client, &accepted] {
            let (level, size) = (libc::SOL_SOCKET, 3 << 20);
            socket::set_int_option(fd, level, libc::SO_SNDBUFFORCE, size).unwrap();
            socket::set_int_option(fd, level, libc::SO_RCVBUFFORCE, size).unwrap();
        }
        for (fd, sent) in [(&client, Some(&mut sent)), (&accepted, None)] {
            let count = socket::send(fd, &data, None, &Default::default(), 0).unwrap();
            if let Some(sent) = sent {
                *sent = count;
            }
        }
        vec![server, client, accepted]
    });
    assert_eq!(read_all(&trip.fds[2], sent), data[..sent]);
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let ground = Ground::new();
    let codes = |ground: &Ground, fds: &[OwnedFd], choices| -> Vec<&'static str> {
        let (_, refusals) = ground.collect(fds, choices, &mut BTreeMap::new());
        refusals.as_slice().iter().map(|one| one.code).collect()
    };
    let (server, waiting) = ground.run(|| {
        let server = listening("127.0.0.1:8080");
        let waiting = connected("127.0.0.1:8080");
        write(&waiting, b"too early");
        (server, waiting)
    });
    let fds = [server, waiting];
    assert_eq!(
        codes(&ground, &fds, Choices::default()),
        ["E-TCP-PENDING-DATA"]
    );
    let (client, _server, _accepted) = ground.run(|| {
        let (server, client, accepted) = connection("127.0.0.1:8081");
        (client, server, accepted)
    });
    let fds = [client];
    assert_eq!(codes(&ground, &fds, Choices::default()), ["E-TCP-OUTSIDE"]);
    let close = Choices {
        tcp_close: true,
        ..Choices::default()
    };
    let (image, refusals) = ground.collect(&fds, close, &mut BTreeMap::new());
    refusals.into_result().unwrap();
    let new = Ground::new().rebuild(&image, &BTreeMap::new());
    assert_eq!(read(&new[&1]), b"");
}
