//! Records of the net namespace: links, addresses, routes, rules, settings.

use crate::image::bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Somebody else made it and makes it again (a CNI plugin, podman, a hook). Then only settings,
    /// links and addresses are here, and nothing but the settings and `lo` is rebuilt.
    pub external: bool,
    /// In the order of their indices.
    pub links: Vec<Link>,
    /// In the order in which they were given.
    pub addresses: Vec<Address>,
    /// All tables.
    pub routes: Vec<Route>,
    /// In the order in which they apply.
    pub rules: Vec<Rule>,
    /// Permanent and proxy entries.
    pub neighbours: Vec<Neighbour>,
    /// Settings below /proc/sys/net that a new namespace of that host would not have had.
    pub settings: BTreeMap<String, String>,
    /// The other per-namespace settings: brought back where the new host's kernel has them.
    pub defaults: BTreeMap<String, String>,
    /// `nft list ruleset`, empty where there is none.
    pub nftables: String,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its number, kept on restore.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// `up`, `noarp`, `multicast`, `allmulti`, `promisc`.
    pub flags: Vec<LinkFlag>,
    /// Bytes.
    pub mtu: u32,
    /// Packets.
    pub tx_queue_length: u32,
    /// Hardware address in hexadecimal.
    pub address: String,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Free text.
    pub alias: Option<String>,
    /// Group number.
    pub group: u32,
}

/// Kinds of network devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LinkKind {
    /// `lo`, part of every namespace.
    Loopback,
    /// Swallows everything.
    Dummy,
    /// One end of a cable whose other end is in this namespace.
    Veth {
        /// Index of the other end.
        peer: u32,
    },
    /// A bridge with its settings.
    Bridge {
        /// `IFLA_BR_*`, those that can be set.
        options: Vec<Attribute>,
    },
    /// `tunl0`, `sit0` and their like, which some kernels put into every namespace.
    Fallback {
        /// `ipip`, `sit`, ….
        driver: String,
    },
    /// Anything else; only in external namespaces.
    Other {
        /// `macvlan`, `tun`, …; empty where the kernel does not say (physical devices).
        driver: String,
    },
}

/// Switches of a link that are brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkFlag {
    /// IFF_UP
    Up,
    /// IFF_NOARP
    Noarp,
    /// IFF_MULTICAST
    Multicast,
    /// IFF_ALLMULTI
    Allmulti,
    /// IFF_PROMISC
    Promisc,
}

/// A netlink attribute carried as it is on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attribute {
    /// Its number.
    pub number: u16,
    /// Its value.
    pub value: Bytes,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// Name of the link.
    pub device: String,
    /// The address itself (`IFA_LOCAL`).
    pub local: IpAddr,
    /// The far end of a point-to-point link, the same as `local` elsewhere (`IFA_ADDRESS`).
    pub peer: IpAddr,
    /// Length of the network part.
    pub prefix: u8,
    /// As in rtnetlink(7).
    pub scope: u8,
    /// Those bits of `IFA_F_*` that can be set: nodad 2, homeaddress 0x10, mngtmpaddr 0x100,
    /// noprefixroute 0x200, mcautojoin 0x400.
    pub flags: u32,
    /// IPv4 broadcast address.
    pub broadcast: Option<IpAddr>,
    /// IPv4 label, `eth0:1`.
    pub label: Option<String>,
    /// Seconds for which it is still valid; none for ever.
    pub valid: Option<u32>,
    /// Seconds for which it is still preferred; none for ever.
    pub preferred: Option<u32>,
    /// Metric of the route that comes with it.
    pub metric: Option<u32>,
    /// Who gave it (`IFA_PROTO`); 0 where nobody says.
    pub protocol: u8,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// IPv6 rather than IPv4.
    pub ipv6: bool,
    /// Table number; 254 is main, 255 local.
    pub table: u32,
    /// Who made it; 2 is the kernel.
    pub protocol: u8,
    /// `RTN_*`: 1 is unicast.
    pub kind: u8,
    /// As in rtnetlink(7).
    pub scope: u8,
    /// Type of service.
    pub tos: u8,
    /// `RTNH_F_ONLINK` (4) or nothing.
    pub flags: u32,
    /// `10.0.0.0/8`; none for the default route.
    pub destination: Option<String>,
    /// Source prefix (IPv6 subtrees).
    pub source: Option<String>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Name of the link.
    pub device: Option<String>,
    /// Metric.
    pub priority: Option<u32>,
    /// Seconds after which it goes away.
    pub expires: Option<u32>,
    /// All other attributes: preferred source, metrics, several next hops (with link numbers), ….
    pub more: Vec<Attribute>,
}

/// A routing rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// IPv6 rather than IPv4.
    pub ipv6: bool,
    /// Where in the order; 0 for the first.
    pub priority: u32,
    /// `10.0.0.0/8`; none for all.
    pub source: Option<String>,
    /// `10.0.0.0/8`; none for all.
    pub destination: Option<String>,
    /// Type of service.
    pub tos: u8,
    /// `FR_ACT_*`: 1 is "look up in the table".
    pub action: u8,
    /// `FIB_RULE_INVERT` (2) or nothing.
    pub flags: u32,
    /// Table number.
    pub table: u32,
    /// All other attributes: marks, interfaces, ports, ….
    pub more: Vec<Attribute>,
}

/// A permanent or proxy neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    /// Name of the link.
    pub device: String,
    /// Its network address.
    pub address: IpAddr,
    /// Its hardware address in hexadecimal; none for a proxy entry.
    pub hardware: Option<String>,
    /// Answer for it instead of asking for it.
    pub proxy: bool,
}
