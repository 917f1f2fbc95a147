//! What a network namespace may hold and this engine does not carry.

use super::Names;
use crate::error::{Context, Refusals, Result};
use crate::sys::netlink::{Message, NETLINK_XFRM, Netlink};
use std::fs;

/// Names everything of that kind.
pub(super) fn look(netlink: &mut Netlink, names: &Names, refusals: &mut Refusals) -> Result<()> {
    next_hops(netlink, refusals)?;
    queueing(netlink, names, refusals)?;
    bridge_entries(netlink, names, refusals)?;
    ipsec(refusals);
    legacy_tables(refusals);
    Ok(())
}

fn request(kind: u16, header: usize) -> Message {
    Message {
        kind,
        header: vec![0; header],
        attributes: Vec::new(),
    }
}

fn next_hops(netlink: &mut Netlink, refusals: &mut Refusals) -> Result<()> {
    const RTM_GETNEXTHOP: u16 = 106;
    let found = match netlink.dump(&request(RTM_GETNEXTHOP, 8)) {
        Err(error) if error.errno() == Some(nix::errno::Errno::EOPNOTSUPP) => return Ok(()),
        found => found.doing(|| "listing next hops")?,
    };
    if !found.is_empty() {
        refusals.add(
            "E-NET-NEXTHOP",
            format!("{} next hop objects", found.len()),
            "next hop objects are not supported",
            "name the next hops in the routes themselves",
        );
    }
    Ok(())
}

fn queueing(netlink: &mut Netlink, names: &Names, refusals: &mut Refusals) -> Result<()> {
    const RTM_GETQDISC: u16 = 38;
    const TCA_KIND: u16 = 1;
    // struct tcmsg: family, index (4), handle (8), parent (12), info (16).
    let found = netlink
        .dump(&request(RTM_GETQDISC, 20))
        .doing(|| "listing queueing disciplines")?;
    for qdisc in found {
        // Those that a device comes with have no handle.
        if qdisc.header_u32(8) == 0 {
            continue;
        }
        let kind = qdisc.string(TCA_KIND).unwrap_or_default();
        let device = names.get(&qdisc.header_u32(4)).map_or("?", String::as_str);
        refusals.add(
            "E-NET-QDISC",
            format!("queueing discipline {kind} of network device {device}"),
            "traffic control is not supported",
            format!("remove it: tc qdisc del dev {device} root"),
        );
    }
    Ok(())
}

fn bridge_entries(netlink: &mut Netlink, names: &Names, refusals: &mut Refusals) -> Result<()> {
    const RTM_GETNEIGH: u16 = 30;
    const NUD_NOARP: u8 = 0x40;
    // struct ndmsg: family, index (4), state (8).
    let mut fdb = request(RTM_GETNEIGH, 12);
    fdb.header[0] = libc::AF_BRIDGE as u8;
    let mut found = netlink.dump(&fdb).doing(|| "listing bridge entries")?;
    found.retain(|entry| entry.header[0] == libc::AF_BRIDGE as u8);
    for entry in found {
        if entry.header[8] & NUD_NOARP == 0 {
            continue;
        }
        let device = names.get(&entry.header_u32(4)).map_or("?", String::as_str);
        refusals.add(
            "E-NET-FDB",
            format!("static forwarding entry of network device {device}"),
            "static entries of bridges are not supported",
            "let the bridge learn it",
        );
    }
    Ok(())
}

fn ipsec(refusals: &mut Refusals) {
    const XFRM_MSG_GETSA: u16 = 0x12;
    const XFRM_MSG_GETPOLICY: u16 = 0x15;
    // A kernel without IPsec has no such socket, and no such state.
    let Ok(mut netlink) = Netlink::open(NETLINK_XFRM) else {
        return;
    };
    for (kind, header) in [(XFRM_MSG_GETSA, 24), (XFRM_MSG_GETPOLICY, 64)] {
        if netlink
            .dump(&request(kind, header))
            .is_ok_and(|found| !found.is_empty())
        {
            refusals.add(
                "E-XFRM",
                "the net namespace",
                "IPsec states and policies are not supported",
                "remove them: ip xfrm state flush; ip xfrm policy flush",
            );
        }
    }
}

fn legacy_tables(refusals: &mut Refusals) {
    for family in ["ip", "ip6", "arp"] {
        // Not /proc/net, which is the main thread's.
        let path = format!("/proc/thread-self/net/{family}_tables_names");
        let tables = fs::read_to_string(path).unwrap_or_default();
        if !tables.trim().is_empty() {
            refusals.add(
                "E-IPTABLES-LEGACY",
                format!(
                    "{family}tables: {}",
                    tables.split_whitespace().collect::<Vec<_>>().join(", ")
                ),
                "tables of legacy iptables are not supported",
                "use nft, or say that the network namespace is external",
            );
        }
    }
}
