//! Links: lo, dummy, veth pairs inside, bridges.

use super::{Names, image_error};
use crate::error::{Context, Refusals, Result};
use crate::image::bytes::Bytes;
use crate::image::namespaces::net::{Attribute, Link, LinkFlag, LinkKind};
use crate::sys::netlink::{
    self, Message, NLM_F_CREATE, NLM_F_EXCL, Netlink, as_string, attribute, nested, number, string,
};
use nix::errno::Errno;

/// The loopback device has this index in every network namespace.
pub(super) const LO: u32 = 1;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
/// `struct ifinfomsg`: family, type (2), index (4), flags (8), change (12).
const IFINFOMSG: usize = 16;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_GROUP: u16 = 27;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_XDP_ATTACHED: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

/// `IFLA_BR_*` that can be set: timers' lengths, STP, VLAN filtering, group address, multicast,
/// netfilter hooks, statistics, learning. The rest is state that a bridge makes by itself.
const BRIDGE_OPTIONS: [u16; 34] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37,
    38, 39, 41, 42, 43, 44, 46, 49,
];

const FLAGS: [(LinkFlag, u32); 5] = [
    (LinkFlag::Up, libc::IFF_UP as u32),
    (LinkFlag::Noarp, libc::IFF_NOARP as u32),
    (LinkFlag::Multicast, libc::IFF_MULTICAST as u32),
    (LinkFlag::Allmulti, libc::IFF_ALLMULTI as u32),
    (LinkFlag::Promisc, libc::IFF_PROMISC as u32),
];

/// Devices that some kernels put into every new namespace.
const FALLBACKS: [&str; 10] = [
    "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0",
    "teql0",
];

/// All links, and their names by index. What cannot be rebuilt is refused, where that is asked for.
pub(super) fn capture(
    netlink: &mut Netlink,
    mut refusals: Option<&mut Refusals>,
) -> Result<(Vec<Link>, Names)> {
    let found = dump(netlink)?;
    let mut links = Vec::new();
    for message in &found {
        let link = read(message);
        if let Some(refusals) = refusals.as_deref_mut() {
            refuse(&link, message, refusals);
        }
        links.push(link);
    }
    links.sort_by_key(|link| link.index);
    let names = links.iter().map(|l| (l.index, l.name.clone())).collect();
    Ok((links, names))
}

/// Names by index of the links that are there.
pub(super) fn names(netlink: &mut Netlink) -> Result<Names> {
    Ok(capture(netlink, None)?.1)
}

fn dump(netlink: &mut Netlink) -> Result<Vec<Message>> {
    let request = message(RTM_GETLINK, 0, 0, 0);
    netlink.dump(&request).doing(|| "listing network devices")
}

fn message(kind: u16, index: u32, flags: u32, change: u32) -> Message {
    Message {
        kind,
        header: header(index, flags, change),
        attributes: Vec::new(),
    }
}

fn header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    for field in [index, flags, change] {
        header.extend(field.to_ne_bytes());
    }
    debug_assert_eq!(header.len(), IFINFOMSG);
    header
}

fn read(message: &Message) -> Link {
    let flags = message.header_u32(8);
    let address = message.get(IFLA_ADDRESS).unwrap_or_default();
    Link {
        index: message.header_u32(4),
        name: message.string(IFLA_IFNAME).unwrap_or_default(),
        kind: read_kind(message),
        flags: FLAGS
            .into_iter()
            .filter_map(|(flag, bit)| (flags & bit != 0).then_some(flag))
            .collect(),
        mtu: message.u32(IFLA_MTU).unwrap_or_default(),
        tx_queue_length: message.u32(IFLA_TXQLEN).unwrap_or_default(),
        address: hex(address),
        master: message.u32(IFLA_MASTER),
        alias: message.string(IFLA_IFALIAS),
        group: message.u32(IFLA_GROUP).unwrap_or_default(),
    }
}

fn read_kind(message: &Message) -> LinkKind {
    if message.header_u32(8) & libc::IFF_LOOPBACK as u32 != 0 {
        return LinkKind::Loopback;
    }
    let name = message.string(IFLA_IFNAME).unwrap_or_default();
    let info = netlink::decode(message.get(IFLA_LINKINFO).unwrap_or_default());
    let driver = netlink::get(&info, IFLA_INFO_KIND)
        .map(as_string)
        .unwrap_or_default();
    let peer = message.u32(IFLA_LINK).unwrap_or_default();
    let inside = message.get(IFLA_LINK_NETNSID).is_none() && peer != 0;
    match driver.as_str() {
        "dummy" => LinkKind::Dummy,
        "veth" if inside => LinkKind::Veth { peer },
        "bridge" => LinkKind::Bridge {
            options: netlink::decode(netlink::get(&info, IFLA_INFO_DATA).unwrap_or_default())
                .into_iter()
                .filter(|option| BRIDGE_OPTIONS.contains(&option.kind))
                .map(|option| Attribute {
                    number: option.kind,
                    value: Bytes(option.value),
                })
                .collect(),
        },
        _ if FALLBACKS.contains(&name.as_str()) => LinkKind::Fallback { driver },
        _ => LinkKind::Other { driver },
    }
}

fn refuse(link: &Link, message: &Message, refusals: &mut Refusals) {
    let object = format!("network device {}", link.name);
    let mut refuse = |reason: String| {
        refusals.add(
            "E-NET-LINK",
            object.clone(),
            reason,
            "remove it, or say that the network namespace is external, so that whoever made it \
             makes it again",
        );
    };
    match &link.kind {
        LinkKind::Other { driver } if driver == "veth" => {
            refuse("its other end is outside the container".to_owned());
        }
        LinkKind::Other { driver } if driver.is_empty() => {
            refuse("it is a device of the host".to_owned());
        }
        LinkKind::Other { driver } => {
            refuse(format!("devices of kind {driver} are not supported"));
        }
        LinkKind::Fallback { driver } if link.flags.contains(&LinkFlag::Up) => {
            refuse(format!("devices of kind {driver} are not supported"));
        }
        LinkKind::Loopback
        | LinkKind::Dummy
        | LinkKind::Veth { .. }
        | LinkKind::Bridge { .. }
        | LinkKind::Fallback { .. } => {}
    }
    if message.get(IFLA_PROP_LIST).is_some() {
        refuse("alternative names are not supported".to_owned());
    }
    let xdp = netlink::decode(message.get(IFLA_XDP).unwrap_or_default());
    if netlink::get(&xdp, IFLA_XDP_ATTACHED).is_some_and(|mode| mode != [0]) {
        refuse("an XDP program is attached".to_owned());
    }
}

/// Makes all links, down, with their numbers, and sets everything but their being up.
pub(super) fn create(netlink: &mut Netlink, links: &[Link]) -> Result<()> {
    let present = capture(netlink, None)?.0;
    let mut made: Vec<u32> = present.iter().map(|link| link.index).collect();
    for link in links {
        if matches!(link.kind, LinkKind::Fallback { .. }) || made.contains(&link.index) {
            continue;
        }
        let request = creation(link, links)?;
        netlink
            .change(&request, NLM_F_CREATE | NLM_F_EXCL)
            .doing(|| format!("making network device {}", link.name))?;
        made.push(link.index);
        if let LinkKind::Veth { peer } = link.kind {
            made.push(peer);
        }
    }
    let present = capture(netlink, None)?.0;
    for link in links {
        if matches!(link.kind, LinkKind::Fallback { .. }) {
            continue;
        }
        let now = present
            .iter()
            .find(|now| now.index == link.index && now.name == link.name)
            .ok_or(Errno::ENODEV)
            .doing(|| format!("network device {} as number {}", link.name, link.index))?;
        configure(netlink, link, now)
            .doing(|| format!("setting up network device {}", link.name))?;
    }
    Ok(())
}

fn creation(link: &Link, links: &[Link]) -> Result<Message> {
    let mut info = Vec::new();
    match &link.kind {
        LinkKind::Dummy => info.push(string(IFLA_INFO_KIND, "dummy")),
        LinkKind::Bridge { .. } => info.push(string(IFLA_INFO_KIND, "bridge")),
        LinkKind::Veth { peer } => {
            let far = links
                .iter()
                .find(|far| far.index == *peer && far.kind == LinkKind::Veth { peer: link.index })
                .ok_or_else(|| image_error(format!("veth {} has no other end", link.name)))?;
            let mut bytes = header(far.index, 0, 0);
            bytes.extend(netlink::encode(&identity(far)?));
            info.push(string(IFLA_INFO_KIND, "veth"));
            info.push(nested(IFLA_INFO_DATA, &[attribute(VETH_INFO_PEER, bytes)]));
        }
        LinkKind::Loopback | LinkKind::Fallback { .. } | LinkKind::Other { .. } => {
            return Err(image_error(format!(
                "a network device that cannot be made: {}",
                link.name
            )));
        }
    }
    let mut request = message(RTM_NEWLINK, link.index, 0, 0);
    request.attributes = identity(link)?;
    request.attributes.push(nested(IFLA_LINKINFO, &info));
    Ok(request)
}

fn identity(link: &Link) -> Result<Vec<netlink::Attribute>> {
    Ok(vec![
        string(IFLA_IFNAME, &link.name),
        attribute(IFLA_ADDRESS, unhex(&link.address)?),
    ])
}

fn configure(netlink: &mut Netlink, link: &Link, now: &Link) -> Result<()> {
    let wanted = bits(&link.flags) & !(libc::IFF_UP as u32);
    let change = (bits(&now.flags) ^ wanted) & !(libc::IFF_UP as u32);
    let mut request = message(RTM_NEWLINK, link.index, wanted, change);
    if now.mtu != link.mtu {
        request.attributes.push(number(IFLA_MTU, link.mtu));
    }
    if now.tx_queue_length != link.tx_queue_length {
        let length = link.tx_queue_length;
        request.attributes.push(number(IFLA_TXQLEN, length));
    }
    if now.address != link.address {
        let address = unhex(&link.address)?;
        request.attributes.push(attribute(IFLA_ADDRESS, address));
    }
    if now.group != link.group {
        request.attributes.push(number(IFLA_GROUP, link.group));
    }
    if now.master != link.master {
        let master = link.master.unwrap_or_default();
        request.attributes.push(number(IFLA_MASTER, master));
    }
    if now.alias != link.alias {
        let alias = link.alias.as_deref().unwrap_or_default();
        request.attributes.push(attribute(IFLA_IFALIAS, alias));
    }
    if let Some(options) = bridge_options(link, now) {
        request.attributes.push(options);
    }
    if change == 0 && request.attributes.is_empty() {
        return Ok(());
    }
    netlink.change(&request, 0)
}

/// Those options that are not yet as recorded: a kernel built without VLAN filtering reports that
/// option and refuses to have it set, even to what it is.
fn bridge_options(link: &Link, now: &Link) -> Option<netlink::Attribute> {
    let (LinkKind::Bridge { options }, LinkKind::Bridge { options: present }) =
        (&link.kind, &now.kind)
    else {
        return None;
    };
    let other: Vec<_> = options
        .iter()
        .filter(|option| !present.contains(option))
        .map(|option| attribute(option.number, option.value.0.clone()))
        .collect();
    let info = [
        string(IFLA_INFO_KIND, "bridge"),
        nested(IFLA_INFO_DATA, &other),
    ];
    (!other.is_empty()).then(|| nested(IFLA_LINKINFO, &info))
}

/// Brings up those links that were.
pub(super) fn bring_up(netlink: &mut Netlink, links: &[Link]) -> Result<()> {
    for link in links.iter().filter(|l| l.flags.contains(&LinkFlag::Up)) {
        up(netlink, link.index).doing(|| format!("bringing up network device {}", link.name))?;
    }
    Ok(())
}

/// Brings one link up.
pub(super) fn up(netlink: &mut Netlink, index: u32) -> Result<()> {
    let up = libc::IFF_UP as u32;
    netlink.change(&message(RTM_NEWLINK, index, up, up), 0)
}

fn bits(flags: &[LinkFlag]) -> u32 {
    FLAGS
        .into_iter()
        .filter(|(flag, _)| flags.contains(flag))
        .fold(0, |bits, (_, bit)| bits | bit)
}

/// Hexadecimal digits, two for each byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of such digits.
pub(super) fn unhex(text: &str) -> Result<Vec<u8>> {
    let pairs = (0..text.len()).step_by(2);
    pairs
        .map(|at| {
            text.get(at..at + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        })
        .collect::<Option<_>>()
        .ok_or_else(|| image_error(format!("no hexadecimal digits: {text:?}")))
}
