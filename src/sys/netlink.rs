//! Synchronous NETLINK_ROUTE conversations.

use crate::error::{Context, Error, Exit, Result};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

/// A route socket in the network namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub struct Route {
    socket: Socket,
    sequence: u32,
}

impl Route {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).doing(|| "opening a netlink socket")?;
        socket.bind_auto().doing(|| "binding a netlink socket")?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .doing(|| "connecting a netlink socket")?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Asks for everything of a kind.
    pub fn dump(&mut self, request: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        self.send(request, NLM_F_DUMP)?;
        self.answers()
    }

    /// Makes a change; `flags` are `NLM_F_CREATE` and its like.
    pub fn change(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.send(request, NLM_F_ACK | flags)?;
        self.answers().map(drop)
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket
            .send(&bytes, 0)
            .doing(|| "sending a netlink request")?;
        Ok(())
    }

    /// Everything up to the end marker or the acknowledgement of the last request.
    fn answers(&mut self) -> Result<Vec<RouteNetlinkMessage>> {
        let mut found = Vec::new();
        loop {
            let (datagram, _) = self
                .socket
                .recv_from_full()
                .doing(|| "receiving a netlink answer")?;
            let mut rest = &datagram[..];
            while rest.len() >= 16 {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| malformed(&error))?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(found),
                            Some(code) => Err(Errno::from_raw(-code.get()).into()),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}

fn malformed(error: &dyn std::fmt::Display) -> Error {
    Error::coded(
        "E-NETLINK-ANSWER",
        Exit::Host,
        format!("a netlink answer cannot be read: {error}"),
        "report this with the kernel version",
    )
}
