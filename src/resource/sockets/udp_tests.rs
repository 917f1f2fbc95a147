//! UDP and netlink sockets, there and back; the kinds that are refused.

use super::ground::{Ground, read, trip, write};
use super::*;
use crate::sys::socket::Along;
use std::net::SocketAddr;

fn raw(text: &str) -> Vec<u8> {
    let address: SocketAddr = text.parse().unwrap();
    address::raw(address, address.is_ipv6()).unwrap()
}

fn new(v6: bool) -> OwnedFd {
    let domain = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    socket::socket(domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP).unwrap()
}

fn bound(text: &str) -> OwnedFd {
    let fd = new(text.starts_with('['));
    socket::bind(&fd, &raw(text)).unwrap();
    fd
}

fn send(fd: &OwnedFd, to: &str, data: &[u8]) {
    socket::send(fd, data, Some(&raw(to)), &Along::default(), 0).unwrap();
}

fn receive(fd: &OwnedFd) -> (Vec<u8>, String) {
    let message = socket::receive(fd, 0, 1 << 16).unwrap().unwrap();
    let from = address::parse(&message.from).unwrap();
    (message.data, from.to_string())
}

#[test]
fn datagrams_wait_with_their_senders_alive_gone_and_themselves() {
    for (host, any) in [("127.0.0.1", "0.0.0.0"), ("[::1]", "[::]")] {
        let at = |port: u16| format!("{host}:{port}");
        let trip = trip(|| {
            let server = bound(&format!("{any}:5300"));
            let client = bound(&at(5301));
            socket::connect(&client, &raw(&at(5300))).unwrap();
            send(&bound(&at(5999)), &at(5300), b"from one that is gone");
            send(&client, &at(5300), b"from one that lives");
            send(&server, &at(5300), b"from itself");
            send(&server, &at(5301), b"");
            vec![server, client, new(false)]
        });
        let [server, client, _] = &trip.fds[..] else {
            panic!("three sockets")
        };
        assert_eq!(
            receive(server),
            (b"from one that is gone".to_vec(), at(5999))
        );
        assert_eq!(receive(server), (b"from one that lives".to_vec(), at(5301)));
        assert_eq!(receive(server), (b"from itself".to_vec(), at(5300)));
        assert_eq!(receive(client), (b"".to_vec(), at(5300)));
        write(client, b"still connected");
        assert_eq!(read(server), b"still connected");
    }
}

#[test]
fn a_datagram_from_far_away_keeps_its_sender_and_a_shared_port_its_owner() {
    let trip = trip(|| {
        let far = new(false);
        socket::set_int_option(&far, libc::SOL_IP, 19, 1).unwrap();
        socket::bind(&far, &raw("8.8.8.8:53")).unwrap();
        let shared: Vec<OwnedFd> = (0..3)
            .map(|_| {
                let fd = new(false);
                socket::set_int_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
                socket::bind(&fd, &raw("127.0.0.1:5300")).unwrap();
                fd
            })
            .collect();
        for n in 0..5 {
            send(&far, "127.0.0.1:5300", &[n]);
            send(&bound("127.0.0.1:0"), "127.0.0.1:5300", &[n]);
        }
        shared
    });
    let mut far = 0;
    for fd in &trip.fds {
        while let Some(message) = socket::receive(fd, 0, 9).unwrap() {
            far += u32::from(address::parse(&message.from) == "8.8.8.8:53".parse().ok());
        }
    }
    assert_eq!(far, 5);
}

#[test]
fn multicast_groups_are_joined_again_with_their_sources() {
    let trip = trip(|| {
        let fd = new(false);
        for (group, source) in [
            ([239, 1, 2, 3], None),
            ([239, 9, 9, 9], Some([127, 0, 0, 1])),
        ] {
            let mut request = group.to_vec();
            request.extend([127, 0, 0, 1]);
            let option = match source {
                None => libc::IP_ADD_MEMBERSHIP,
                Some(source) => {
                    request.extend(source);
                    libc::IP_ADD_SOURCE_MEMBERSHIP
                }
            };
            socket::set_option(&fd, libc::SOL_IP, option, &request).unwrap();
        }
        let six = new(true);
        let mut request = "ff02::77"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets()
            .to_vec();
        request.extend(1u32.to_ne_bytes());
        socket::set_option(&six, libc::SOL_IPV6, libc::IPV6_ADD_MEMBERSHIP, &request).unwrap();
        vec![fd, six, new(false)]
    });
    let groups = |n: usize| &trip.image.udp[n].groups;
    assert_eq!(
        (groups(0).len(), groups(1).len(), groups(2).len()),
        (2, 1, 0)
    );
    let specific = groups(0).iter().find(|one| !one.exclude).unwrap();
    assert_eq!(specific.sources, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_netlink_socket_listens_on() {
    let trip = trip(|| {
        let fd = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
        let mut address = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
        address.resize(4, 0);
        address.extend(77u32.to_ne_bytes());
        address.extend(libc::RTMGRP_LINK.to_ne_bytes());
        socket::bind(&fd, &address).unwrap();
        vec![fd]
    });
    assert_eq!(
        (
            trip.image.netlink[0].port,
            &trip.image.netlink[0].groups[..]
        ),
        (77, &[1][..])
    );
    // A device that goes down and up is told to all that listen.
    ns::inside(&[trip.ground.net.as_fd()], || {
        let down = std::process::Command::new("ip")
            .args(["link", "set", "lo", "down"])
            .status();
        down.doing(|| "running ip")
    })
    .unwrap();
    assert!(!read(&trip.fds[0]).is_empty());
}

#[test]
fn other_kinds_are_refused_by_name() {
    let ground = Ground::new();
    let fds = ground.run(|| {
        [
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            (libc::AF_PACKET, libc::SOCK_RAW, 0),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        ]
        .map(|(domain, kind, protocol)| socket::socket(domain, kind, protocol).unwrap())
    });
    let (_, refusals) = ground.collect(&fds, Choices::default(), &mut BTreeMap::new());
    let codes: Vec<_> = refusals.as_slice().iter().map(|one| one.code).collect();
    assert_eq!(codes, ["E-SOCKET-RAW", "E-SOCKET-PACKET", "E-NETLINK"]);
}
