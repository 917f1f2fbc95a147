//! Sockets: addresses, state, options and what lies in their queues.
//!
//! `id` is the id of the open file that a socket is; descriptors in flight are named by such ids
//! too. Everything a socket refers to by id is in the same image.

use crate::image::bytes::{Bytes, NameBytes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// All sockets of one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    /// AF_UNIX.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unix: Vec<Unix>,
    /// TCP over IPv4 and IPv6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<Tcp>,
    /// UDP over IPv4 and IPv6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub udp: Vec<Udp>,
    /// AF_NETLINK.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub netlink: Vec<Netlink>,
}

/// What sockets of every family have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// The open file.
    pub id: u64,
    /// Owner of the socket's inode, as the host numbers it.
    pub uid: u32,
    /// Group of the socket's inode, as the host numbers it.
    pub gid: u32,
    /// Options by their Linux name.
    pub options: BTreeMap<String, OptionValue>,
}

/// The value of a socket option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OptionValue {
    /// An `int`.
    Number(i64),
    /// The members of a structure in order, or the words of a filter program.
    Numbers(Vec<i64>),
    /// A name: a device, a congestion control algorithm.
    Text(String),
}

/// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnixKind {
    /// SOCK_STREAM
    Stream,
    /// SOCK_DGRAM
    Datagram,
    /// SOCK_SEQPACKET
    SeqPacket,
}

/// A Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unix {
    /// See there.
    pub common: Common,
    /// See there.
    pub kind: UnixKind,
    /// The name as bound: a path, or a NUL byte and an abstract name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<NameBytes>,
    /// The socket file, for a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<UnixFile>,
    /// See there.
    pub state: UnixState,
    /// Nothing more can be received.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shut_read: bool,
    /// Nothing more can be sent.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shut_write: bool,
    /// An error is waiting to be told (ECONNRESET: the other side closed without reading all).
    #[serde(default, skip_serializing_if = "is_false")]
    pub reset: bool,
    /// What SO_PEERCRED says, where it says anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_credentials: Option<Credentials>,
    /// What can be received, first message first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue: Vec<UnixMessage>,
}

/// The file of a Unix socket that is bound to a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnixFile {
    /// Where the file is now, from the container's root; `None` when it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<NameBytes>,
    /// Tells files apart that were bound under the same name one after another.
    pub identity: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner, as the host numbers it.
    pub uid: u32,
    /// Group, as the host numbers it.
    pub gid: u32,
}

/// Where a Unix socket is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum UnixState {
    /// Neither listening nor connected.
    Unconnected,
    /// listen(2).
    Listening {
        /// As given to listen(2).
        backlog: u32,
        /// Who connected and was not accepted yet, oldest first; `None` for one that has closed
        /// its end already.
        pending: Vec<Option<u64>>,
    },
    /// Connected to another socket of this image.
    Connected {
        /// Its id.
        peer: u64,
    },
    /// Connected, and waiting in the queue of a listening socket of this image.
    Pending,
    /// Was connected; the other side is closed.
    PeerGone {
        /// The name that the other side had.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer_name: Option<NameBytes>,
    },
    /// A datagram socket connected to one outside the container.
    External {
        /// Its name.
        peer_name: NameBytes,
    },
}

/// A message (for streams: a run of bytes) in the queue of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnixMessage {
    /// The bytes.
    pub data: Bytes,
    /// The name of the sender of a datagram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NameBytes>,
    /// Open files in flight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<u64>,
    /// Who sent it, where the receiver asked to be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

/// A process and the ids it acts under, as the host of the checkpoint numbered them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Process; 0 when the host could not see it.
    pub host_pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A TCP socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// See there.
    pub common: Common,
    /// AF_INET6 rather than AF_INET.
    pub v6: bool,
    /// Where it is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// See there.
    pub state: TcpState,
    /// shutdown(SHUT_RD), or the other side has closed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shut_read: bool,
    /// shutdown(SHUT_WR).
    #[serde(default, skip_serializing_if = "is_false")]
    pub shut_write: bool,
    /// Bytes received and not read yet.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub receive_queue: Bytes,
    /// Bytes sent that the other side has not received yet.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub send_queue: Bytes,
}

/// Where a TCP socket is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TcpState {
    /// Never connected.
    Unconnected,
    /// Was connected; the connection is over.
    Over {
        /// An error (ECONNRESET) is waiting to be told.
        reset: bool,
    },
    /// listen(2).
    Listening {
        /// As given to listen(2).
        backlog: u32,
        /// Connections that were not accepted yet: their remote ends, oldest first. The other end is
        /// a socket of this image, or already closed.
        pending: Vec<SocketAddr>,
    },
    /// Connected with another socket of this namespace.
    Inside {
        /// The remote end's address.
        remote: SocketAddr,
        /// The remote end's id; `None` when it is closed, or waits to be accepted.
        peer: Option<u64>,
        /// The other end waits in the queue of a listening socket of this image.
        #[serde(default, skip_serializing_if = "is_false")]
        pending: bool,
    },
    /// Connected with something outside this namespace, kept by TCP_REPAIR.
    Outside {
        /// The remote end's address.
        remote: SocketAddr,
        /// See there.
        repair: TcpRepair,
    },
}

/// What TCP_REPAIR tells of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpRepair {
    /// Sequence number after the last byte of the send queue (and the FIN, if sent).
    pub send_sequence: u32,
    /// Sequence number after the last byte of the receive queue (and the FIN, if received).
    pub receive_sequence: u32,
    /// How many bytes at the end of the send queue were never sent.
    pub unsent: u32,
    /// We have sent our FIN (it may be unacknowledged).
    pub fin_sent: bool,
    /// The other side has acknowledged our FIN.
    pub fin_acknowledged: bool,
    /// The other side's FIN has arrived.
    pub fin_received: bool,
    /// Maximum segment size agreed on.
    pub mss: u32,
    /// Window scale of both directions: theirs, ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_scale: Option<(u8, u8)>,
    /// Selective acknowledgements agreed on.
    pub sack: bool,
    /// Timestamps agreed on: our clock then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u32>,
    /// snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup of `struct tcp_repair_window`.
    pub window: [u32; 5],
}

/// A UDP socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Udp {
    /// See there.
    pub common: Common,
    /// AF_INET6 rather than AF_INET.
    pub v6: bool,
    /// Where it is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// connect(2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// shutdown(SHUT_RD).
    #[serde(default, skip_serializing_if = "is_false")]
    pub shut_read: bool,
    /// shutdown(SHUT_WR).
    #[serde(default, skip_serializing_if = "is_false")]
    pub shut_write: bool,
    /// Multicast groups joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Membership>,
    /// What can be received, first datagram first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue: Vec<UdpMessage>,
}

/// A multicast group that a socket has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The group.
    pub group: IpAddr,
    /// The network device.
    pub device: String,
    /// `sources` are left out, rather than the only ones let in.
    pub exclude: bool,
    /// See above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<IpAddr>,
}

/// A datagram in a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UdpMessage {
    /// The bytes.
    pub data: Bytes,
    /// Who sent it.
    pub from: SocketAddr,
}

/// A netlink socket with an empty queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Netlink {
    /// See there.
    pub common: Common,
    /// NETLINK_ROUTE …, by number.
    pub protocol: u32,
    /// SOCK_DGRAM rather than SOCK_RAW.
    pub datagram: bool,
    /// Port id; 0 when not bound.
    pub port: u32,
    /// Multicast groups joined, by number from 1.
    pub groups: Vec<u32>,
    /// connect(2): port id and group mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<(u32, u32)>,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_empty(value: &Bytes) -> bool {
    value.0.is_empty()
}
