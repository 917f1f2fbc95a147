//! Routes of all tables, and routing rules.

use super::{AF_INET, AF_INET6, Names, dump_family, image_error, index_of, ip, octets};
use crate::error::{Context, Result};
use crate::image::bytes::Bytes;
use crate::image::namespaces::net::{Attribute, Route, Rule};
use crate::sys::netlink::{
    self, Message, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Netlink, as_u32, attribute, number,
};
use nix::errno::Errno;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
/// `struct rtmsg`: family, destination and source lengths, tos, table, protocol, scope, type,
/// flags (8).
const RTMSG: usize = 12;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_EXPIRES: u16 = 23;
/// Recorded in fields of their own.
const ROUTE_FIELDS: [u16; 8] = [
    RTA_DST,
    RTA_SRC,
    RTA_OIF,
    RTA_GATEWAY,
    RTA_PRIORITY,
    RTA_CACHEINFO,
    RTA_TABLE,
    RTA_EXPIRES,
];
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;
/// Ticks of `rta_expires` per second (USER_HZ).
const TICKS: u32 = 100;

/// All routes of all tables.
pub(super) fn routes(netlink: &mut Netlink, names: &Names) -> Result<Vec<Route>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let messages =
            dump_family(netlink, RTM_GETROUTE, family, RTMSG).doing(|| "listing routes")?;
        for message in messages {
            if message.header_u32(8) & RTM_F_CLONED == 0 {
                found.push(read_route(&message, names)?);
            }
        }
    }
    Ok(found)
}

fn read_route(message: &Message, names: &Names) -> Result<Route> {
    let header = &message.header;
    let prefix = |kind, length| prefix(message.get(kind), length);
    let device = message.u32(RTA_OIF).map(|index| {
        let name = names.get(&index).cloned();
        name.ok_or(Errno::ENODEV)
            .doing(|| format!("a route to network device {index}"))
    });
    // struct rta_cacheinfo: references, last use, expiry, …
    let expiry = message
        .get(RTA_CACHEINFO)
        .and_then(|bytes| as_u32(bytes.get(8..)?));
    Ok(Route {
        ipv6: header[0] == AF_INET6,
        table: message.u32(RTA_TABLE).unwrap_or(u32::from(header[4])),
        protocol: header[5],
        kind: header[7],
        scope: header[6],
        tos: header[3],
        flags: message.header_u32(8) & RTNH_F_ONLINK,
        destination: prefix(RTA_DST, header[1]),
        source: prefix(RTA_SRC, header[2]),
        gateway: message.get(RTA_GATEWAY).and_then(ip),
        device: device.transpose()?,
        priority: message.u32(RTA_PRIORITY),
        expires: expiry
            .filter(|&ticks| ticks != 0)
            .map(|ticks| ticks.div_ceil(TICKS)),
        more: more(message, &ROUTE_FIELDS),
    })
}

/// Adds what is missing, as soon as the way to its next hop is there, and takes away the rest.
pub(super) fn rebuild_routes(netlink: &mut Netlink, wanted: &[Route], names: &Names) -> Result<()> {
    let timeless = |route: &Route| Route {
        expires: route.expires.map(|_| 0),
        ..route.clone()
    };
    let present: Vec<_> = routes(netlink, names)?.iter().map(timeless).collect();
    let mut missing: Vec<_> = wanted
        .iter()
        .filter(|w| !present.contains(&timeless(w)))
        .collect();
    // A route through a gateway needs the one to the gateway.
    missing.sort_by_key(|route| route.gateway.is_some());
    while !missing.is_empty() {
        let mut later = Vec::new();
        let mut failure = None;
        let before = missing.len();
        for route in missing {
            let request = write_route(RTM_NEWROUTE, route, names)?;
            match netlink.change(&request, NLM_F_CREATE | NLM_F_APPEND) {
                Ok(()) => {}
                Err(error) => {
                    failure = Some(error.doing(format!("adding route {}", name(route))));
                    later.push(route);
                }
            }
        }
        if let Some(error) = failure.filter(|_| later.len() == before) {
            return Err(error);
        }
        missing = later;
    }
    let wanted: Vec<_> = wanted.iter().map(timeless).collect();
    for route in routes(netlink, names)?
        .iter()
        .filter(|route| !wanted.contains(&timeless(route)))
    {
        let request = write_route(RTM_DELROUTE, route, names)?;
        match netlink.change(&request, 0) {
            Err(error) if error.errno() != Some(Errno::ESRCH) => {
                return Err(error).doing(|| format!("removing route {}", name(route)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn name(route: &Route) -> String {
    let destination = route.destination.as_deref().unwrap_or("default");
    format!("{destination} of table {}", route.table)
}

fn write_route(kind: u16, route: &Route, names: &Names) -> Result<Message> {
    let mut attributes = more_back(&route.more);
    let destination = push_prefix(&mut attributes, RTA_DST, route.destination.as_deref())?;
    let source = push_prefix(&mut attributes, RTA_SRC, route.source.as_deref())?;
    if let Some(gateway) = route.gateway {
        attributes.push(attribute(RTA_GATEWAY, octets(gateway)));
    }
    if let Some(device) = &route.device {
        attributes.push(number(RTA_OIF, index_of(names, device)?));
    }
    if let Some(priority) = route.priority {
        attributes.push(number(RTA_PRIORITY, priority));
    }
    if let Some(seconds) = route.expires {
        attributes.push(number(RTA_EXPIRES, seconds));
    }
    attributes.push(number(RTA_TABLE, route.table));
    let mut header = vec![
        family(route.ipv6),
        destination,
        source,
        route.tos,
        u8::try_from(route.table).unwrap_or(0),
        route.protocol,
        route.scope,
        route.kind,
    ];
    header.extend(route.flags.to_ne_bytes());
    Ok(Message {
        kind,
        header,
        attributes,
    })
}

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
/// `struct fib_rule_hdr`: family, destination and source lengths, tos, table, two reserved, action,
/// flags (8).
const RULE_HEADER: usize = 12;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_PAD: u16 = 18;
const RULE_FIELDS: [u16; 5] = [FRA_DST, FRA_SRC, FRA_PRIORITY, FRA_TABLE, FRA_PAD];
const FIB_RULE_INVERT: u32 = 2;

/// All rules, in order.
pub(super) fn rules(netlink: &mut Netlink) -> Result<Vec<Rule>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let messages = dump_family(netlink, RTM_GETRULE, family, RULE_HEADER)
            .doing(|| "listing routing rules")?;
        found.extend(messages.iter().map(read_rule));
    }
    Ok(found)
}

fn read_rule(message: &Message) -> Rule {
    let header = &message.header;
    Rule {
        ipv6: header[0] == AF_INET6,
        priority: message.u32(FRA_PRIORITY).unwrap_or_default(),
        source: prefix(message.get(FRA_SRC), header[2]),
        destination: prefix(message.get(FRA_DST), header[1]),
        tos: header[3],
        action: header[7],
        flags: message.header_u32(8) & FIB_RULE_INVERT,
        table: message.u32(FRA_TABLE).unwrap_or(u32::from(header[4])),
        more: more(message, &RULE_FIELDS),
    }
}

/// Adds what is missing and takes away the rest.
pub(super) fn rebuild_rules(netlink: &mut Netlink, wanted: &[Rule]) -> Result<()> {
    let mut unwanted = rules(netlink)?;
    for rule in wanted {
        if let Some(at) = unwanted.iter().position(|present| present == rule) {
            unwanted.remove(at);
            continue;
        }
        netlink
            .change(&write_rule(RTM_NEWRULE, rule)?, NLM_F_CREATE | NLM_F_EXCL)
            .doing(|| format!("adding routing rule {}", rule.priority))?;
    }
    for rule in unwanted {
        netlink
            .change(&write_rule(RTM_DELRULE, &rule)?, 0)
            .doing(|| format!("removing routing rule {}", rule.priority))?;
    }
    Ok(())
}

fn write_rule(kind: u16, rule: &Rule) -> Result<Message> {
    let mut attributes = more_back(&rule.more);
    let destination = push_prefix(&mut attributes, FRA_DST, rule.destination.as_deref())?;
    let source = push_prefix(&mut attributes, FRA_SRC, rule.source.as_deref())?;
    attributes.push(number(FRA_PRIORITY, rule.priority));
    attributes.push(number(FRA_TABLE, rule.table));
    let table = u8::try_from(rule.table).unwrap_or(0);
    let mut header = vec![
        family(rule.ipv6),
        destination,
        source,
        rule.tos,
        table,
        0,
        0,
        rule.action,
    ];
    header.extend(rule.flags.to_ne_bytes());
    Ok(Message {
        kind,
        header,
        attributes,
    })
}

fn family(ipv6: bool) -> u8 {
    if ipv6 { AF_INET6 } else { AF_INET }
}

fn prefix(bytes: Option<&[u8]>, length: u8) -> Option<String> {
    Some(format!("{}/{length}", ip(bytes?)?))
}

/// Adds the address of a prefix and returns its length.
fn push_prefix(
    attributes: &mut Vec<netlink::Attribute>,
    kind: u16,
    prefix: Option<&str>,
) -> Result<u8> {
    let Some(prefix) = prefix else {
        return Ok(0);
    };
    let parsed = prefix
        .split_once('/')
        .and_then(|(address, length)| Some((address.parse().ok()?, length.parse().ok()?)));
    let (address, length) =
        parsed.ok_or_else(|| image_error(format!("not an address prefix: {prefix:?}")))?;
    attributes.push(attribute(kind, octets(address)));
    Ok(length)
}

fn more(message: &Message, fields: &[u16]) -> Vec<Attribute> {
    let rest = message.attributes.iter();
    rest.filter(|attribute| !fields.contains(&attribute.kind))
        .map(|attribute| Attribute {
            number: attribute.kind,
            value: Bytes(attribute.value.clone()),
        })
        .collect()
}

fn more_back(more: &[Attribute]) -> Vec<netlink::Attribute> {
    more.iter()
        .map(|more| attribute(more.number, more.value.0.clone()))
        .collect()
}
