//! The net namespace: links, addresses, routes, rules, neighbours, settings, packet filter.
//!
//! Routes, rules and addresses are rebuilt by comparison: what bringing links up has made by itself
//! is left, what is missing is added, what the record does not have is taken away. So routes that
//! the kernel made are neither doubled nor lost, and one that was deleted stays deleted.
//!
//! Not seen, since the kernel does not show it per namespace: programs attached by bpf(2) to the
//! namespace itself (flow dissector, sk_lookup) and to tcx hooks.

mod address;
mod filter;
mod link;
mod refuse;
mod route;
mod settings;

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::namespaces::net::{Address, Net};
use crate::sys;
use crate::sys::netlink::{Message, NETLINK_ROUTE, Netlink};
use crate::sys::ns::{Kind, fresh};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// Names of links by index.
type Names = BTreeMap<u32, String>;

/// Reads what is in the network namespace behind `namespace`. `external` says that somebody else
/// makes it and will make it again on restore: then nothing in it is refused, and only its settings,
/// its links and addresses are recorded, of which those of `lo` come back and the others are there to
/// be read by people.
pub fn capture(namespace: BorrowedFd<'_>, external: bool, refusals: &mut Refusals) -> Result<Net> {
    let new = fresh(Kind::Net)?;
    let ordinary = sys::ns::inside(&[new.as_fd()], settings::read)?;
    let (net, found) = sys::ns::inside(&[namespace], || {
        let mut refusals = Refusals::new();
        let net = if external {
            capture_external(&ordinary)?
        } else {
            capture_own(&ordinary, &mut refusals)?
        };
        Ok((net, refusals))
    })
    .doing(|| "capturing the net namespace")?;
    refusals.append(found);
    Ok(net)
}

fn capture_external(ordinary: &BTreeMap<String, String>) -> Result<Net> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let (links, names) = link::capture(&mut netlink, None)?;
    Ok(Net {
        external: true,
        addresses: address::capture(&mut netlink, &names)?,
        links,
        routes: Vec::new(),
        rules: Vec::new(),
        neighbours: Vec::new(),
        settings: settings::split(settings::read()?, ordinary).0,
        defaults: BTreeMap::new(),
        nftables: String::new(),
    })
}

fn capture_own(ordinary: &BTreeMap<String, String>, refusals: &mut Refusals) -> Result<Net> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let (links, names) = link::capture(&mut netlink, Some(refusals))?;
    refuse::look(&mut netlink, &names, refusals)?;
    let (settings, defaults) = settings::split(settings::read()?, ordinary);
    Ok(Net {
        external: false,
        addresses: address::capture(&mut netlink, &names)?,
        links,
        routes: route::routes(&mut netlink, &names)?,
        rules: route::rules(&mut netlink)?,
        neighbours: address::neighbours(&mut netlink, &names)?,
        settings,
        defaults,
        nftables: filter::capture(refusals)?,
    })
}

/// Makes a new network namespace what the record says, from a thread that is inside it. Of an
/// external one only `lo` and those settings are brought back that it has a place for: the runtime
/// that made it knows nothing of what the container did there, and a new one has `lo` down. Nothing
/// that it already holds is taken away.
pub fn rebuild(record: &Net) -> Result<()> {
    if record.external {
        return rebuild_external(record).doing(|| "rebuilding lo in the net namespace");
    }
    let rebuild = || {
        let mut netlink = Netlink::open(NETLINK_ROUTE)?;
        link::create(&mut netlink, &record.links)?;
        let names = link::names(&mut netlink)?;
        // Rules of the filter may name links, and must be there before a packet can be.
        filter::rebuild(&record.nftables)?;
        settings::without_automatic_addresses(&record.links)?;
        settings::write(record, settings::Which::NoneThatMakeAddresses)?;
        link::bring_up(&mut netlink, &record.links)?;
        address::rebuild(&mut netlink, &record.addresses, &names)?;
        // Links that came up have changed some, and may take them up again now.
        settings::write(record, settings::Which::All)?;
        address::rebuild(&mut netlink, &record.addresses, &names)?;
        route::rebuild_rules(&mut netlink, &record.rules)?;
        route::rebuild_routes(&mut netlink, &record.routes, &names)?;
        address::rebuild_neighbours(&mut netlink, &record.neighbours, &names)
    };
    rebuild().doing(|| "rebuilding the net namespace")
}

fn rebuild_external(record: &Net) -> Result<()> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    settings::write_where_present(record)?;
    for lo in record.links.iter().filter(|link| link.index == link::LO) {
        link::bring_up(&mut netlink, std::slice::from_ref(lo))?;
    }
    let of_lo = |address: &&Address| address.device == LO_NAME;
    let wanted: Vec<_> = record.addresses.iter().filter(of_lo).cloned().collect();
    let names = link::names(&mut netlink)?;
    address::add_missing(&mut netlink, &wanted, &names)
}

/// The loopback device cannot be renamed.
const LO_NAME: &str = "lo";

/// Brings `lo` up in the calling thread's network namespace: in a new one it is down.
pub fn lo_up() -> Result<()> {
    link::up(&mut Netlink::open(NETLINK_ROUTE)?, link::LO).doing(|| "bringing lo up")
}

/// The bytes of an address.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An address from its bytes.
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    Some(<[u8; 16]>::try_from(bytes).ok()?.into())
}

const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;

/// Everything of a kind for one protocol family, whose number is the first byte of the header.
/// Asked for a family it does not have, the kernel answers with others or with an error.
fn dump_family(
    netlink: &mut Netlink,
    kind: u16,
    family: u8,
    header: usize,
) -> Result<Vec<Message>> {
    use nix::errno::Errno;
    let mut request = Message {
        kind,
        header: vec![0; header],
        attributes: Vec::new(),
    };
    request.header[0] = family;
    match netlink.dump(&request) {
        Ok(mut found) => {
            found.retain(|message| message.header[0] == family);
            Ok(found)
        }
        Err(error) if matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn index_of(names: &Names, name: &str) -> Result<u32> {
    let found = names.iter().find(|(_, known)| *known == name);
    found.map(|(&index, _)| index).ok_or_else(|| {
        image_error(format!(
            "the record names a network device that is not in it: {name:?}"
        ))
    })
}

fn image_error(reason: String) -> Error {
    Error::coded("E-IMAGE-VALUE", Exit::Image, reason, "")
}

#[cfg(test)]
mod tests;
