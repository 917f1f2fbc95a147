//! Addresses and permanent neighbours.

use super::link::{hex, unhex};
use super::{AF_INET, AF_INET6, Names, dump_family, index_of, ip, octets};
use crate::error::{Context, Result};
use crate::image::namespaces::net::{Address, Neighbour};
use crate::sys::netlink::{
    Message, NLM_F_CREATE, NLM_F_EXCL, Netlink, as_u32, attribute, number, string,
};
use std::time::Duration;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// `struct ifaddrmsg`: family, prefix length, flags, scope, index (4).
const IFADDRMSG: usize = 8;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_RT_PRIORITY: u16 = 9;
const IFA_PROTO: u16 = 11;

const IFA_F_NODAD: u32 = 2;
const IFA_F_TENTATIVE: u32 = 0x40;
/// nodad, homeaddress, mngtmpaddr, noprefixroute, mcautojoin: the rest the kernel sets by itself.
const SETTABLE: u32 = 0x712;
const NLM_F_REPLACE: u16 = 0x100;
const FOREVER: u32 = u32::MAX;

/// All addresses, in the order in which they were given (the first of an IPv4 subnet is primary).
pub(super) fn capture(netlink: &mut Netlink, names: &Names) -> Result<Vec<Address>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let messages =
            dump_family(netlink, RTM_GETADDR, family, IFADDRMSG).doing(|| "listing addresses")?;
        let mut addresses: Vec<_> = messages.iter().filter_map(|m| read(m, names)).collect();
        // IPv6 puts a new one in front of those of its scope.
        if family == AF_INET6 {
            addresses.reverse();
        }
        found.extend(addresses);
    }
    Ok(found)
}

fn read(message: &Message, names: &Names) -> Option<Address> {
    let device = names.get(&message.header_u32(4))?.clone();
    let far = ip(message.get(IFA_ADDRESS)?)?;
    let flags = message
        .u32(IFA_FLAGS)
        .unwrap_or_else(|| u32::from(message.header[2]));
    // struct ifa_cacheinfo: preferred, valid, …
    let lifetimes = message.get(IFA_CACHEINFO).unwrap_or_default();
    let lifetime = |at: usize| {
        let seconds = lifetimes.get(at..).and_then(as_u32);
        seconds.filter(|&seconds| seconds != FOREVER)
    };
    let protocol = message.get(IFA_PROTO).and_then(|bytes| bytes.first());
    Some(Address {
        local: message.get(IFA_LOCAL).and_then(ip).unwrap_or(far),
        peer: far,
        prefix: message.header[1],
        scope: message.header[3],
        flags: flags & SETTABLE,
        broadcast: message.get(IFA_BROADCAST).and_then(ip),
        label: message.string(IFA_LABEL).filter(|label| *label != device),
        preferred: lifetime(0),
        valid: lifetime(4),
        metric: message.u32(IFA_RT_PRIORITY),
        protocol: protocol.copied().unwrap_or_default(),
        device,
    })
}

/// What makes two addresses the same one, whatever their lifetimes.
fn same(a: &Address, b: &Address) -> bool {
    let timeless = |address: &Address| Address {
        valid: address.valid.map(|_| 0),
        preferred: address.preferred.map(|_| 0),
        ..address.clone()
    };
    timeless(a) == timeless(b)
}

/// Takes away what the record does not have and adds what is missing.
pub(super) fn rebuild(netlink: &mut Netlink, wanted: &[Address], names: &Names) -> Result<()> {
    let present = capture(netlink, names)?;
    for address in present
        .iter()
        .filter(|p| !wanted.iter().any(|w| same(w, p)))
    {
        let request = write(RTM_DELADDR, address, names)?;
        netlink
            .change(&request, 0)
            .doing(|| format!("removing address {}", address.local))?;
    }
    add_missing(netlink, wanted, names)
}

/// Adds what is missing and leaves the rest.
pub(super) fn add_missing(netlink: &mut Netlink, wanted: &[Address], names: &Names) -> Result<()> {
    let present = capture(netlink, names)?;
    let missing: Vec<_> = wanted
        .iter()
        .filter(|w| !present.iter().any(|p| same(w, p)))
        .collect();
    for address in &missing {
        let request = write(RTM_NEWADDR, &undoubted(address), names)?;
        netlink
            .change(&request, NLM_F_CREATE | NLM_F_EXCL)
            .doing(|| format!("adding address {} to {}", address.local, address.device))?;
    }
    settle(netlink)?;
    for address in missing.iter().filter(|a| undoubted(a) != ***a) {
        let request = write(RTM_NEWADDR, address, names)?;
        netlink
            .change(&request, NLM_F_REPLACE)
            .doing(|| format!("setting the flags of address {}", address.local))?;
    }
    Ok(())
}

/// An IPv6 address that is new would be tentative for a second, in which nobody can use it; the
/// container's has been through that.
fn undoubted(address: &Address) -> Address {
    let mut address = address.clone();
    if address.local.is_ipv6() {
        address.flags |= IFA_F_NODAD;
    }
    address
}

/// Waits until the kernel, on a thread of its own, has seen that nothing need be doubted. Taking
/// the flag back before would make it doubt.
fn settle(netlink: &mut Netlink) -> Result<()> {
    for _ in 0..200 {
        let addresses =
            dump_family(netlink, RTM_GETADDR, AF_INET6, IFADDRMSG).doing(|| "listing addresses")?;
        let tentative = |message: &Message| {
            let flags = message.u32(IFA_FLAGS).unwrap_or_default();
            flags & (IFA_F_TENTATIVE | IFA_F_NODAD) == IFA_F_TENTATIVE | IFA_F_NODAD
        };
        if !addresses.iter().any(tentative) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn write(kind: u16, address: &Address, names: &Names) -> Result<Message> {
    let family = if address.local.is_ipv6() {
        AF_INET6
    } else {
        AF_INET
    };
    let mut header = vec![family, address.prefix, address.flags as u8, address.scope];
    header.extend(index_of(names, &address.device)?.to_ne_bytes());
    let mut attributes = vec![
        attribute(IFA_LOCAL, octets(address.local)),
        attribute(IFA_ADDRESS, octets(address.peer)),
        number(IFA_FLAGS, address.flags),
    ];
    if let Some(broadcast) = address.broadcast {
        attributes.push(attribute(IFA_BROADCAST, octets(broadcast)));
    }
    if address.local.is_ipv4() {
        let label = address.label.as_ref().unwrap_or(&address.device);
        attributes.push(string(IFA_LABEL, label));
    }
    if let Some(metric) = address.metric {
        attributes.push(number(IFA_RT_PRIORITY, metric));
    }
    if address.protocol != 0 {
        attributes.push(attribute(IFA_PROTO, [address.protocol]));
    }
    let mut lifetimes = Vec::new();
    for seconds in [
        address.preferred.unwrap_or(FOREVER),
        address.valid.unwrap_or(FOREVER),
        0,
        0,
    ] {
        lifetimes.extend(seconds.to_ne_bytes());
    }
    attributes.push(attribute(IFA_CACHEINFO, lifetimes));
    Ok(Message {
        kind,
        header,
        attributes,
    })
}

const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
/// `struct ndmsg`: family, index (4), state (8, two bytes), flags (10), type (11).
const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NTF_PROXY: u8 = 8;

/// Permanent neighbours and those answered for; the rest is learnt again.
pub(super) fn neighbours(netlink: &mut Netlink, names: &Names) -> Result<Vec<Neighbour>> {
    let mut found = Vec::new();
    for (family, flags) in [AF_INET, AF_INET6]
        .into_iter()
        .flat_map(|f| [(f, 0), (f, NTF_PROXY)])
    {
        let mut request = Message {
            kind: RTM_GETNEIGH,
            header: vec![0; NDMSG],
            attributes: Vec::new(),
        };
        request.header[0] = family;
        request.header[10] = flags;
        for message in netlink.dump(&request).doing(|| "listing neighbours")? {
            let state = u16::from_ne_bytes([message.header[8], message.header[9]]);
            let proxy = message.header[10] & NTF_PROXY != 0;
            let device = names.get(&message.header_u32(4));
            let (Some(device), Some(address)) = (device, message.get(NDA_DST).and_then(ip)) else {
                continue;
            };
            if message.header[0] != family || !(proxy || state & NUD_PERMANENT != 0) {
                continue;
            }
            found.push(Neighbour {
                device: device.clone(),
                address,
                hardware: message.get(NDA_LLADDR).map(hex),
                proxy,
            });
        }
    }
    found.sort_by(|a, b| (&a.device, a.address).cmp(&(&b.device, b.address)));
    found.dedup();
    Ok(found)
}

/// Adds all of them.
pub(super) fn rebuild_neighbours(
    netlink: &mut Netlink,
    wanted: &[Neighbour],
    names: &Names,
) -> Result<()> {
    let present = neighbours(netlink, names)?;
    for neighbour in wanted.iter().filter(|wanted| !present.contains(wanted)) {
        let mut header = vec![0; NDMSG];
        header[0] = if neighbour.address.is_ipv6() {
            AF_INET6
        } else {
            AF_INET
        };
        header[4..8].copy_from_slice(&index_of(names, &neighbour.device)?.to_ne_bytes());
        header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        header[10] = if neighbour.proxy { NTF_PROXY } else { 0 };
        let mut attributes = vec![attribute(NDA_DST, octets(neighbour.address))];
        if let Some(hardware) = &neighbour.hardware {
            attributes.push(attribute(NDA_LLADDR, unhex(hardware)?));
        }
        let request = Message {
            kind: RTM_NEWNEIGH,
            header,
            attributes,
        };
        netlink
            .change(&request, NLM_F_CREATE | NLM_F_REPLACE)
            .doing(|| format!("adding neighbour {}", neighbour.address))?;
    }
    Ok(())
}
