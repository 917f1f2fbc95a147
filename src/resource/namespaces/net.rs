//! The net namespace: links, addresses, routes, rules, settings.

use crate::error::{Context, Result};
use crate::sys::netlink::Route;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};

/// The loopback device has this index in every network namespace.
const LO: u32 = 1;

/// Brings `lo` up in the calling thread's network namespace: in a new one it is down.
pub fn lo_up() -> Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = LO;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Route::open()?
        .change(RouteNetlinkMessage::SetLink(link), 0)
        .doing(|| "bringing lo up")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ns::{Kind, fresh, inside};
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    #[test]
    fn lo_of_a_new_namespace_is_down_until_brought_up() {
        let fd = fresh(Kind::Net).unwrap();
        inside(&[fd.as_fd()], || {
            assert!(TcpListener::bind("127.0.0.1:0").is_ok());
            assert!(
                std::net::TcpStream::connect("127.0.0.1:9")
                    .is_err_and(|e| { e.raw_os_error() == Some(libc::ENETUNREACH) })
            );
            lo_up()?;
            assert!(
                std::net::TcpStream::connect("127.0.0.1:9")
                    .is_err_and(|e| { e.raw_os_error() == Some(libc::ECONNREFUSED) })
            );
            Ok(())
        })
        .unwrap();
    }
}
