//! TCP connections to another namespace, taken out of the kernel and put into it again.

use super::ground::{Ground, read, write};
use super::*;
use crate::image::sockets::TcpState;
use crate::sys::ns::Kind;
use std::net::SocketAddr;
use std::process::Command;

const KEEP: Choices = Choices {
    tcp_established: true,
    tcp_close: false,
    ext_unix_sk: false,
};

fn ip(args: &str) {
    let done = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(done.success(), "ip {args}");
}

/// A container's ground and another namespace, with a cable between them: 10.9.0.1 and .2,
/// fd09::1 and ::2.
fn cabled() -> (Ground, OwnedFd) {
    let ground = Ground::new();
    let other = ns::fresh(Kind::Net).unwrap();
    let pid = std::process::id();
    let number = {
        use std::os::fd::AsRawFd;
        other.as_raw_fd()
    };
    ns::inside(&[ground.net.as_fd()], || {
        ip("link add inner type veth peer name outer");
        // The other namespace is named by this process's descriptor.
        ip(&format!("link set outer netns /proc/{pid}/fd/{number}"));
        ip("addr add 10.9.0.1/24 dev inner");
        ip("addr add fd09::1/64 dev inner nodad");
        ip("link set inner up");
        Ok(())
    })
    .unwrap();
    ns::inside(&[other.as_fd()], || {
        ip("addr add 10.9.0.2/24 dev outer");
        ip("addr add fd09::2/64 dev outer nodad");
        ip("link set outer up");
        Ok(())
    })
    .unwrap();
    (ground, other)
}

fn raw(text: &str) -> Vec<u8> {
    let address: SocketAddr = text.parse().unwrap();
    address::raw(address, address.is_ipv6()).unwrap()
}

fn new(v6: bool) -> OwnedFd {
    let domain = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    socket::socket(domain, libc::SOCK_STREAM, libc::IPPROTO_TCP).unwrap()
}

/// A connection from the container to the other namespace: both ends.
fn connection(ground: &Ground, other: &OwnedFd, to: &str) -> (OwnedFd, OwnedFd) {
    let v6 = to.starts_with('[');
    let server = ns::inside(&[other.as_fd()], || {
        let server = new(v6);
        socket::bind(&server, &raw(to))?;
        socket::listen(&server, 1)?;
        Ok(server)
    })
    .unwrap();
    let client = ground.run(|| {
        let client = new(v6);
        for attempt in 0.. {
            match socket::connect(&client, &raw(to)) {
                Ok(()) => break,
                Err(errno) => assert!(attempt < 50, "{errno}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        client
    });
    (client, socket::accept(&server).unwrap())
}

fn wait_for(fd: &OwnedFd, events: i16) {
    for _ in 0..5000 {
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
        wait_for(fd, libc::POLLIN);
        let data = read(fd);
        assert!(!data.is_empty(), "ends after {} of {len} bytes", all.len());
        all.extend(data);
    }
    all
}

/// Takes the connection out, silently, and puts it in again.
fn moved(ground: &Ground, client: OwnedFd) -> (Sockets, OwnedFd) {
    let fds = [client];
    let (captured, refusals) = ground.capture(&fds, KEEP, &mut BTreeMap::new());
    refusals.into_result().unwrap();
    captured.outside.silence().unwrap();
    drop(fds);
    captured.outside.gone();
    let mut new = ground.rebuild(&captured.sockets, &BTreeMap::new());
    (captured.sockets, new.remove(&1).unwrap())
}

#[test]
fn a_connection_to_outside_goes_on_over_both_families() {
    for to in ["10.9.0.2:80", "[fd09::2]:80"] {
        let (ground, other) = cabled();
        let (client, far) = connection(&ground, &other, to);
        write(&far, b"for the client");
        wait_for(&client, libc::POLLIN);
        let (image, client) = moved(&ground, client);
        assert!(matches!(image.tcp[0].state, TcpState::Outside { .. }));
        assert_eq!(read_all(&client, 14), b"for the client");
        write(&client, b"question");
        assert_eq!(read_all(&far, 8), b"question");
        write(&far, b"answer");
        assert_eq!(read_all(&client, 6), b"answer");
        drop(client);
        wait_for(&far, libc::POLLRDHUP);
        assert_eq!(read(&far), b"");
    }
}

#[test]
fn bytes_sent_and_unsent_arrive_in_order() {
    let (ground, other) = cabled();
    let (client, far) = connection(&ground, &other, "10.9.0.2:80");
    let data: Vec<u8> = (0..8_000_000u32).map(|n| (n / 3) as u8).collect();
    let sent = socket::send(&client, &data, None, &Default::default(), 0).unwrap();
    let (image, client) = moved(&ground, client);
    assert!(!image.tcp[0].send_queue.0.is_empty());
    assert_eq!(read_all(&far, sent), data[..sent]);
    write(&client, b"end");
    assert_eq!(read_all(&far, 3), b"end");
}

#[test]
fn what_arrives_meanwhile_is_not_lost() {
    let (ground, other) = cabled();
    let (client, far) = connection(&ground, &other, "10.9.0.2:80");
    let fds = [client];
    let (captured, _) = ground.capture(&fds, KEEP, &mut BTreeMap::new());
    write(&far, b"while locked");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(socket::in_queue(&fds[0]), Ok(0));
    // Left running: the other side sends it again.
    drop(captured);
    assert_eq!(read_all(&fds[0], 12), b"while locked");
    write(&fds[0], b"and on");
    assert_eq!(read_all(&far, 6), b"and on");
    assert!(socket::filter(&fds[0]).unwrap().is_empty());
}

#[test]
fn half_closed_connections_to_outside_stay_half_closed() {
    for to in ["10.9.0.2:80", "[fd09::2]:80"] {
        let (ground, other) = cabled();
        let (client, far) = connection(&ground, &other, to);
        write(&far, b"last");
        socket::shutdown(&far, libc::SHUT_WR).unwrap();
        wait_for(&client, libc::POLLRDHUP);
        let (_, client) = moved(&ground, client);
        assert_eq!(read_all(&client, 4), b"last");
        assert_eq!(read(&client), b"");
        write(&client, b"still");
        assert_eq!(read_all(&far, 5), b"still");

        let (client, far) = connection(&ground, &other, &to.replace(":80", ":81"));
        write(&client, b"all");
        socket::shutdown(&client, libc::SHUT_WR).unwrap();
        assert_eq!(read_all(&far, 3), b"all");
        let (_, client) = moved(&ground, client);
        write(&far, b"answer");
        assert_eq!(read_all(&client, 6), b"answer");
    }
}

#[test]
fn a_kept_connection_can_be_dropped_at_restore() {
    let (ground, other) = cabled();
    let (client, _far) = connection(&ground, &other, "10.9.0.2:80");
    let (captured, _) = ground.capture(&[client], KEEP, &mut BTreeMap::new());
    let mut sockets = captured.sockets;
    assert_eq!(tcp_outside::outside(&sockets).len(), 1);
    let refused = tcp_outside::check_kept(&sockets, false).unwrap_err();
    assert_eq!(refused.code(), "E-TCP-OUTSIDE");
    tcp_outside::close_outside(&mut sockets);
    let new = Ground::new().rebuild(&sockets, &BTreeMap::new());
    assert_eq!(read(&new[&1]), b"");
}
