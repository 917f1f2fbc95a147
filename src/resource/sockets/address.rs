//! Internet addresses, to and from what the kernel reads and writes.

use crate::error::{Error, Exit, Result};
use crate::sys::socket::RawAddress;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// `None` for anything but a whole `sockaddr_in` or `sockaddr_in6`.
pub(super) fn parse(raw: &[u8]) -> Option<SocketAddr> {
    let part = |at: usize, len: usize| raw.get(at..at + len);
    let word = |at: usize| -> Option<[u8; 4]> { part(at, 4)?.try_into().ok() };
    let family = i32::from(u16::from_ne_bytes(part(0, 2)?.try_into().ok()?));
    let port = u16::from_be_bytes(part(2, 2)?.try_into().ok()?);
    match family {
        libc::AF_INET => {
            let address = Ipv4Addr::from(word(4)?);
            Some(SocketAddrV4::new(address, port).into())
        }
        libc::AF_INET6 => {
            let address: [u8; 16] = part(8, 16)?.try_into().ok()?;
            let flow = u32::from_be_bytes(word(4)?);
            let scope = u32::from_ne_bytes(word(24)?);
            Some(SocketAddrV6::new(Ipv6Addr::from(address), port, flow, scope).into())
        }
        _ => None,
    }
}

/// The address as a socket of that family takes it: IPv4 becomes a mapped address for an IPv6
/// socket and the other way round.
pub(super) fn raw(address: SocketAddr, v6: bool) -> Result<RawAddress> {
    let port = address.port().to_be_bytes();
    if v6 {
        let (ip, flow, scope) = match address {
            SocketAddr::V4(four) => (four.ip().to_ipv6_mapped(), 0, 0),
            SocketAddr::V6(six) => (*six.ip(), six.flowinfo(), six.scope_id()),
        };
        let mut raw = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        raw.extend(port);
        raw.extend(flow.to_be_bytes());
        raw.extend(ip.octets());
        raw.extend(scope.to_ne_bytes());
        return Ok(raw);
    }
    let IpAddr::V4(ip) = address.ip().to_canonical() else {
        return Err(Error::coded(
            "E-IMAGE-SOCKET",
            Exit::Image,
            format!("an IPv4 socket has the address {address}"),
            "",
        ));
    };
    let mut raw = (libc::AF_INET as u16).to_ne_bytes().to_vec();
    raw.extend(port);
    raw.extend(ip.octets());
    raw.extend([0; 8]);
    Ok(raw)
}

/// An address to compare with: mapped IPv4 is IPv4, scope and flow do not count.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Neither address nor port: not bound.
pub(super) fn bound(raw: &[u8]) -> Option<SocketAddr> {
    parse(raw).filter(|found| found.port() != 0 || !found.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_and_change_family() {
        for text in ["127.0.0.1:80", "[fe80::1%3]:22", "[::ffff:10.0.0.1]:5"] {
            let address: SocketAddr = text.parse().unwrap();
            let read = parse(&raw(address, address.is_ipv6()).unwrap());
            assert_eq!(read, Some(address));
        }
        let mapped = raw("10.0.0.1:5".parse().unwrap(), true).unwrap();
        assert_eq!(parse(&mapped), "[::ffff:10.0.0.1]:5".parse().ok());
        let four = raw("[::ffff:10.0.0.1]:5".parse().unwrap(), false).unwrap();
        assert_eq!(parse(&four), "10.0.0.1:5".parse().ok());
        assert!(raw("[::1]:5".parse().unwrap(), false).is_err());
        assert_eq!(
            (
                bound(&raw("0.0.0.0:0".parse().unwrap(), false).unwrap()),
                parse(b"")
            ),
            (None, None)
        );
    }
}
