//! Reading a receive queue without taking anything from it.

use super::Taken;
use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::sys::socket::{self, Control, Message};
use crate::sys::undo::Undo;
use std::os::fd::BorrowedFd;

/// Larger than any message that fits the buffers Linux gives out by default; only what is used of it
/// is ever touched.
const ROOM: usize = 16 << 20;

/// Arms an [`Undo`] for a group of sockets when the first of them needs it.
pub struct Guard<'a> {
    sockets: Vec<(BorrowedFd<'a>, i32)>,
    undo: Option<Undo>,
}

impl<'a> Guard<'a> {
    /// For these sockets, all of which may get their SO_PEEK_OFF changed.
    pub fn new(sockets: impl Iterator<Item = BorrowedFd<'a>>) -> Self {
        Self {
            sockets: sockets
                .filter_map(|fd| peek_offset(fd).map(|offset| (fd, offset)))
                .collect(),
            undo: None,
        }
    }

    fn arm(&mut self) -> Result<()> {
        if self.undo.is_none() {
            let back: Vec<_> = self
                .sockets
                .iter()
                .map(|(fd, offset)| (*fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, *offset))
                .collect();
            self.undo = Some(Undo::arm(&back)?);
        }
        Ok(())
    }

    /// Everything is as it was: nothing to undo.
    pub fn disarm(mut self) {
        if let Some(undo) = self.undo.take() {
            undo.disarm();
        }
    }
}

fn peek_offset(fd: BorrowedFd<'_>) -> Option<i32> {
    socket::int_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).ok()
}

fn set_offset(fd: BorrowedFd<'_>, offset: i32) -> Result<()> {
    socket::set_int_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
        .doing(|| "setting SO_PEEK_OFF")
}

fn peek(fd: BorrowedFd<'_>, room: usize) -> Result<Option<Message>> {
    let message = socket::receive(fd, libc::MSG_PEEK, room).doing(|| "looking into a queue")?;
    Ok(message.map(|mut message| {
        message.data.shrink_to_fit();
        message
    }))
}

fn has_rights(message: &Message) -> bool {
    message
        .control
        .iter()
        .any(|control| matches!(control, Control::Rights(_)))
}

/// A waiting error (ECONNREFUSED, ECONNRESET) would be told to whoever looks into a datagram queue
/// first, and then be gone. True where there is one and nothing else; with messages besides, the
/// socket is refused.
pub fn error_first(taken: &Taken, refusals: &mut Refusals) -> Result<bool> {
    if socket::ready(&taken.fd).doing(|| "polling a socket")? & libc::POLLERR == 0 {
        return Ok(false);
    }
    if socket::in_queue(&taken.fd).unwrap_or(0) > 0 {
        refusals.add(
            "E-SOCKET-ERROR-PENDING",
            taken.who.as_str(),
            "an error waits to be told before the messages in the queue, and looking would take it",
            "let the program read first",
        );
    }
    Ok(true)
}

/// All datagrams (or packets) in the queue, first one first. At the end of a stopped sequenced-packet
/// connection the kernel reports empty packets for ever: `ends` says that one of those is the end.
///
/// The kernel shows an empty datagram behind others to one such walk only (it remembers that it was
/// peeked at); a second capture of the same queue finds it no more.
pub fn datagrams(fd: BorrowedFd<'_>, ends: bool, guard: &mut Guard<'_>) -> Result<Vec<Message>> {
    let original = peek_offset(fd).unwrap_or(-1);
    let mut all = Vec::new();
    let mut offset = 0;
    if original < 0 {
        match peek(fd, ROOM)? {
            None => return Ok(all),
            Some(first) if ends && first.data.is_empty() => return Ok(all),
            Some(first) => {
                offset = first.data.len();
                all.push(first);
            }
        }
    }
    guard.arm()?;
    let rest = (|| {
        set_offset(fd, i32::try_from(offset).unwrap_or(i32::MAX))?;
        while let Some(message) = peek(fd, ROOM)? {
            if ends && message.data.is_empty() {
                break;
            }
            all.push(message);
        }
        Ok(())
    })();
    finish(rest, set_offset(fd, original))?;
    if all
        .iter()
        .any(|message| message.flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0)
    {
        return Err(Error::coded(
            "E-SOCKET-MESSAGE-SIZE",
            Exit::Refused,
            format!("a datagram is larger than {ROOM} bytes"),
            "let the program read it first",
        ));
    }
    Ok(all)
}

fn finish(result: Result<()>, cleanup: Result<()>) -> Result<()> {
    match result {
        Ok(()) => cleanup,
        Err(error) => Err(error.and_cleanup(cleanup)),
    }
}

/// The bytes of a stream's queue, cut where descriptors travel: they arrive with the first byte of
/// their message, and one read never goes past such a message.
pub fn stream(fd: BorrowedFd<'_>, guard: &mut Guard<'_>) -> Result<Vec<Message>> {
    let len = socket::in_queue(fd).doing(|| "asking for the length of a queue")?;
    let len = usize::try_from(len).unwrap_or(0);
    if len == 0 {
        return Ok(Vec::new());
    }
    let original = peek_offset(fd).unwrap_or(-1);
    if original < 0
        && let Some(message) = peek(fd, len)?
        && message.data.len() == len
        && !has_rights(&message)
    {
        return Ok(vec![message]);
    }
    guard.arm()?;
    let mut all = Vec::new();
    let walk = (|| {
        let mut at = 0;
        while at < len {
            set_offset(fd, i32::try_from(at).unwrap_or(i32::MAX))?;
            let Some(mut message) = peek(fd, len - at)? else {
                break;
            };
            if message.data.is_empty() {
                break;
            }
            let end = at + message.data.len();
            if has_rights(&message) {
                let start = rights_start(fd, at, end)?;
                if start > at {
                    let tail = message.data.split_off(start - at);
                    let control = message
                        .control
                        .extract_if(.., |control| matches!(control, Control::Rights(_)))
                        .collect();
                    let from = message.from.clone();
                    all.push(message);
                    message = Message {
                        data: tail,
                        from,
                        control,
                        flags: 0,
                    };
                }
            }
            all.push(message);
            at = end;
        }
        Ok(())
    })();
    finish(walk, set_offset(fd, original))?;
    Ok(all)
}

/// Where the message begins whose last byte is before `end` and that carries descriptors.
///
/// A peek reports the descriptors of the next message that has any, however few bytes it may copy,
/// so they do not tell. But the kernel copies message by message, and one that does not fit into
/// accessible memory is not counted at all: with room for one byte too few, exactly the messages
/// before the last are.
fn rights_start(fd: BorrowedFd<'_>, at: usize, end: usize) -> Result<usize> {
    set_offset(fd, i32::try_from(at).unwrap_or(i32::MAX))?;
    let before = socket::peek_whole(fd, end - at, end - at - 1)
        .doing(|| "looking for the bounds of a message")?;
    Ok(at + before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::Along;
    use std::os::fd::AsFd;

    fn send(fd: impl AsFd, data: &[u8], rights: &[BorrowedFd<'_>]) {
        let along = Along {
            rights,
            credentials: None,
        };
        assert_eq!(socket::send(fd, data, None, &along, 0).unwrap(), data.len());
    }

    #[test]
    fn a_stream_is_cut_exactly_where_descriptors_travel_and_stays_as_it_was() {
        let (one, two) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        send(&one, b"before", &[]);
        send(&one, b"with", &[one.as_fd()]);
        send(&one, b"again", &[one.as_fd(), two.as_fd()]);
        send(&one, b"after", &[]);
        for _ in 0..2 {
            let mut guard = Guard::new([two.as_fd()].into_iter());
            let all: Vec<_> = stream(two.as_fd(), &mut guard)
                .unwrap()
                .into_iter()
                .map(|m| {
                    let rights = has_rights(&m);
                    (String::from_utf8(m.data).unwrap(), rights)
                })
                .collect();
            guard.disarm();
            let expected = [
                ("before", false),
                ("with", true),
                ("again", true),
                ("after", false),
            ];
            assert_eq!(all, expected.map(|(text, r)| (text.to_owned(), r)));
            assert_eq!(peek_offset(two.as_fd()), Some(-1));
        }
        let read = socket::receive(&two, 0, 100).unwrap().unwrap();
        assert_eq!(read.data, b"beforewith");
    }

    #[test]
    fn datagrams_keep_their_bounds_and_a_programs_own_peek_offset_stays() {
        for original in [-1, 3] {
            let (one, two) = socket::pair(libc::AF_UNIX, libc::SOCK_SEQPACKET).unwrap();
            for data in [&b"one"[..], b"twotwo", b"3"] {
                send(&one, data, &[]);
            }
            set_offset(two.as_fd(), original).unwrap();
            let mut guard = Guard::new([two.as_fd()].into_iter());
            let all = datagrams(two.as_fd(), false, &mut guard).unwrap();
            guard.disarm();
            let all: Vec<_> = all.into_iter().map(|m| m.data).collect();
            assert_eq!(all, [&b"one"[..], b"twotwo", b"3"]);
            assert_eq!(peek_offset(two.as_fd()), Some(original));
        }
    }
}
