//! Synchronous netlink conversations, with attributes as they are on the wire: whatever a newer
//! kernel adds is carried along instead of failing to parse.

use crate::error::{Context, Error, Exit, Result};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

pub use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};

const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Fail where the object exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// Make the object.
pub const NLM_F_CREATE: u16 = 0x400;
/// Put it after its equals.
pub const NLM_F_APPEND: u16 = 0x800;

/// One attribute; nested ones hold more attributes in their value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// The number, with the nested and byte-order bits taken off.
    pub kind: u16,
    /// The bytes, without padding.
    pub value: Vec<u8>,
}

/// One message: the fixed header of its family, and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `RTM_NEWLINK` and its like.
    pub kind: u16,
    /// `struct ifinfomsg` and its like.
    pub header: Vec<u8>,
    /// What follows.
    pub attributes: Vec<Attribute>,
}

impl Message {
    /// The value of the first attribute of that kind.
    pub fn get(&self, kind: u16) -> Option<&[u8]> {
        get(&self.attributes, kind)
    }

    /// The first attribute of that kind as a number.
    pub fn u32(&self, kind: u16) -> Option<u32> {
        as_u32(self.get(kind)?)
    }

    /// The first attribute of that kind as a string.
    pub fn string(&self, kind: u16) -> Option<String> {
        self.get(kind).map(as_string)
    }

    /// A number of the fixed header.
    pub fn header_u32(&self, offset: usize) -> u32 {
        self.header
            .get(offset..offset + 4)
            .and_then(as_u32)
            .unwrap_or_default()
    }
}

/// The value of the first attribute of that kind.
pub fn get(attributes: &[Attribute], kind: u16) -> Option<&[u8]> {
    let found = attributes.iter().find(|attribute| attribute.kind == kind)?;
    Some(&found.value)
}

/// Four bytes in this machine's order.
pub fn as_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// A string without its terminating zero.
pub fn as_string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An attribute from its bytes.
pub fn attribute(kind: u16, value: impl Into<Vec<u8>>) -> Attribute {
    Attribute {
        kind,
        value: value.into(),
    }
}

/// An attribute that is a number.
pub fn number(kind: u16, value: u32) -> Attribute {
    attribute(kind, value.to_ne_bytes())
}

/// An attribute that is a string.
pub fn string(kind: u16, value: &str) -> Attribute {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    attribute(kind, bytes)
}

/// An attribute that holds attributes; `NLA_F_NESTED` is set.
pub fn nested(kind: u16, attributes: &[Attribute]) -> Attribute {
    attribute(kind | libc::NLA_F_NESTED as u16, encode(attributes))
}

/// The attributes in these bytes; whatever does not make sense ends the list.
pub fn decode(mut bytes: &[u8]) -> Vec<Attribute> {
    let mut found = Vec::new();
    while let [l0, l1, k0, k1, rest @ ..] = bytes {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let Some(value) = length.checked_sub(4).and_then(|length| rest.get(..length)) else {
            break;
        };
        let kind = u16::from_ne_bytes([*k0, *k1]) & libc::NLA_TYPE_MASK as u16;
        found.push(attribute(kind, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The bytes of these attributes, padded.
pub fn encode(attributes: &[Attribute]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for attribute in attributes {
        let length = (attribute.value.len() + 4) as u16;
        bytes.extend(length.to_ne_bytes());
        bytes.extend(attribute.kind.to_ne_bytes());
        bytes.extend(&attribute.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A netlink socket in the network namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket of a protocol ([`NETLINK_ROUTE`] …) in the calling thread's network namespace.
    pub fn open(protocol: isize) -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().doing(|| format!("opening a netlink socket ({protocol})"))?,
            sequence: 0,
        })
    }

    /// Asks for everything of a kind. The answers' fixed headers are as long as the request's. Asks
    /// again where the kernel says that a change came in between.
    pub fn dump(&mut self, request: &Message) -> Result<Vec<Message>> {
        for _ in 0..16 {
            self.send(request, NLM_F_DUMP)?;
            if let Some(found) = self.answers(request.header.len())? {
                return Ok(found);
            }
        }
        Err(Errno::EINTR.into())
    }

    /// Makes a change; `flags` are [`NLM_F_CREATE`] and its like.
    pub fn change(&mut self, request: &Message, flags: u16) -> Result<()> {
        self.send(request, NLM_F_ACK | flags)?;
        self.answers(request.header.len()).map(drop)
    }

    fn send(&mut self, request: &Message, flags: u16) -> Result<()> {
        self.sequence += 1;
        let attributes = encode(&request.attributes);
        let length = HEADER + request.header.len() + attributes.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend((length as u32).to_ne_bytes());
        bytes.extend(request.kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(&request.header);
        bytes.extend(attributes);
        self.socket
            .send(&bytes, 0)
            .doing(|| "sending a netlink request")?;
        Ok(())
    }

    /// Everything up to the end marker or the acknowledgement; nothing where the dump was disturbed.
    fn answers(&mut self, header: usize) -> Result<Option<Vec<Message>>> {
        let mut found = Vec::new();
        let mut disturbed = false;
        loop {
            let (datagram, _) = self
                .socket
                .recv_from_full()
                .doing(|| "receiving a netlink answer")?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let length = as_u32(rest).ok_or_else(malformed)? as usize;
                let message = rest.get(HEADER..length).ok_or_else(malformed)?;
                let word = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
                let (kind, flags, sequence) = (word(4), word(6), as_u32(&rest[8..]));
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if sequence != Some(self.sequence) {
                    continue;
                }
                disturbed |= flags & NLM_F_DUMP_INTR != 0;
                match kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let errno = as_u32(message).unwrap_or_default() as i32;
                        if errno != 0 {
                            return Err(Errno::from_raw(errno.wrapping_neg()).into());
                        }
                        return Ok((!disturbed).then_some(found));
                    }
                    _ => found.push(Message {
                        kind,
                        header: message.get(..header).ok_or_else(malformed)?.to_vec(),
                        attributes: decode(&message[header..]),
                    }),
                }
            }
        }
    }
}

fn malformed() -> Error {
    Error::coded(
        "E-NETLINK-ANSWER",
        Exit::Host,
        "a netlink answer cannot be read",
        "report this with the kernel version",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_the_way_through_bytes() {
        let attributes = vec![
            number(1, 7),
            string(2, "eth0"),
            attribute(3, []),
            attribute(4, [1, 2, 3]),
        ];
        assert_eq!(decode(&encode(&attributes)), attributes);
        assert_eq!(as_string(&attributes[1].value), "eth0");
    }

    #[test]
    fn nonsense_ends_the_list() {
        assert_eq!(decode(&[3, 0, 1, 0]), []);
        assert_eq!(decode(&[200, 0, 1, 0, 9, 9]), []);
        assert_eq!(decode(&[4, 0]), []);
    }
}
