//! One message, one packet: the socket between a caller and us.

use super::wire::{Request, Response};
use crate::error::{Context, Error, Exit, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, recv, sendmsg};
use nix::sys::stat::Mode;
use prost::Message;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Larger requests are not read.
const LARGEST: usize = 1 << 20;
/// The smallest buffer among callers is 8 KiB.
const LONGEST_MESSAGE: usize = 2000;

/// A SOCK_SEQPACKET socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Takes a connected socket.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The process at the other end: that which made the pair, or connected.
    pub fn peer(&self) -> Result<i32> {
        let credentials =
            getsockopt(&self.0, PeerCredentials).doing(|| "asking who is at the other end")?;
        match credentials.pid() {
            0 => Err(Error::coded(
                "E-CRIU-PEER",
                Exit::Usage,
                "the caller is in a PID namespace that cannot be seen from here",
                "run criu in the caller's PID namespace or above it",
            )),
            pid => Ok(pid),
        }
    }

    /// The user at the other end.
    pub fn peer_uid(&self) -> Result<u32> {
        let credentials =
            getsockopt(&self.0, PeerCredentials).doing(|| "asking who is at the other end")?;
        Ok(credentials.uid())
    }

    /// Where descriptor `fd` of the process at the other end can be opened once more.
    pub fn peer_path(&self, fd: i32) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/fd/{fd}", self.peer()?)))
    }

    /// Opens a descriptor of the other end once more, for writing.
    pub fn peer_writable(&self, fd: i32) -> Result<OwnedFd> {
        let path = self.peer_path(fd)?;
        open(&path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
            .doing(|| format!("opening {}", path.display()))
    }

    /// The next request; `None` when the other end has said all.
    pub fn receive(&self) -> Result<Option<Request>> {
        let doing = || "receiving a request";
        let raw = self.0.as_raw_fd();
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        let size = match again(|| recv(raw, &mut [], peek)) {
            Err(Errno::ECONNRESET) | Ok(0) => return Ok(None),
            size => size.doing(doing)?,
        };
        if size > LARGEST {
            return Err(garbage(format!("it has {size} bytes")).doing(doing()));
        }
        let mut bytes = vec![0; size];
        let got = again(|| recv(raw, &mut bytes, MsgFlags::empty())).doing(doing)?;
        Request::decode(&bytes[..got])
            .map(Some)
            .map_err(|why| garbage(why.to_string()).doing(doing()))
    }

    /// Sends an answer, with a descriptor if there is one.
    pub fn send(&self, response: &Response, along: Option<BorrowedFd<'_>>) -> Result<()> {
        let bytes = response.encode_to_vec();
        let parts = [IoSlice::new(&bytes)];
        let rights: Vec<i32> = along.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&rights)];
        let control = if rights.is_empty() {
            &[][..]
        } else {
            &control[..]
        };
        again(|| {
            sendmsg::<()>(
                self.0.as_raw_fd(),
                &parts,
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )
        })
        .doing(|| "answering")?;
        Ok(())
    }
}

fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn garbage(reason: String) -> Error {
    Error::coded(
        "E-CRIU-MESSAGE",
        Exit::Usage,
        format!("the request cannot be read: {reason}"),
        "send one criu_req message a packet",
    )
}

/// An error in as few bytes as every caller can read.
pub fn short(text: &str) -> String {
    let mut end = text.len().min(LONGEST_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::wire::Kind;
    use crate::sys::socket::{Control, pair, receive};
    use std::os::fd::AsFd;

    fn sockets() -> (Socket, OwnedFd) {
        let (ours, theirs) = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET).unwrap();
        (Socket::new(ours), theirs)
    }

    #[test]
    fn requests_are_read_one_a_packet_until_the_end() {
        let (socket, theirs) = sockets();
        for kind in [Kind::Version, Kind::Check] {
            let request = Request {
                r#type: kind as i32,
                ..Request::default()
            };
            nix::unistd::write(&theirs, &request.encode_to_vec()).unwrap();
        }
        nix::unistd::write(&theirs, b"\xff\xff\xff").unwrap();
        drop(theirs);
        let kind = |request: Option<Request>| request.unwrap().r#type();
        assert_eq!(kind(socket.receive().unwrap()), Kind::Version);
        assert_eq!(kind(socket.receive().unwrap()), Kind::Check);
        assert_eq!(socket.receive().unwrap_err().code(), "E-CRIU-MESSAGE");
        assert!(socket.receive().unwrap().is_none());
    }

    #[test]
    fn an_answer_can_carry_one_descriptor() {
        let (socket, theirs) = sockets();
        let file = tempfile::tempfile().unwrap();
        socket
            .send(&Response::new(Kind::Notify, true), Some(file.as_fd()))
            .unwrap();
        let message = receive(theirs.as_fd(), 0, 4096).unwrap().unwrap();
        assert!(matches!(&message.control[..], [Control::Rights(fds)] if fds.len() == 1));
        socket
            .send(&Response::new(Kind::Notify, true), None)
            .unwrap();
        let message = receive(theirs.as_fd(), 0, 4096).unwrap().unwrap();
        assert!(message.control.is_empty());
    }

    #[test]
    fn the_other_end_is_who_made_the_pair() {
        let (socket, _theirs) = sockets();
        assert_eq!(socket.peer().unwrap(), std::process::id() as i32);
        let path = socket.peer_path(7).unwrap();
        assert_eq!(
            path,
            PathBuf::from(format!("/proc/{}/fd/7", std::process::id()))
        );
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let text = "ä".repeat(3000);
        let cut = short(&text);
        assert!(cut.len() <= 2000 && text.starts_with(&cut));
    }
}
