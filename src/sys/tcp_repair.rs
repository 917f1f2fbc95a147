//! TCP_REPAIR: taking a connection out of, and putting one into, the kernel.
//!
//! A socket in repair mode sends nothing, refuses plain send and receive calls and stays so when its
//! owner dies; see [`crate::sys::undo`]. Switching it off sets SO_REUSEADDR to 0, whatever it was.

use crate::sys::socket::{int_option, option, receive, set_int_option, set_option};
use nix::errno::Errno;
use std::os::fd::AsFd;

const TCP: i32 = libc::SOL_TCP;
/// `TCP_REPAIR`.
pub const REPAIR: i32 = libc::TCP_REPAIR;
/// The value that ends repair mode without sending a window probe.
pub const OFF_SILENT: i32 = -1;
const WINDOW: i32 = 29;

/// The two queues of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// TCP_RECV_QUEUE
    Receive = 1,
    /// TCP_SEND_QUEUE
    Send = 2,
}

/// What of TCP_INFO matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// The kernel's state number.
    pub state: u8,
    /// TCPI_OPT_TIMESTAMPS (1), TCPI_OPT_SACK (2), TCPI_OPT_WSCALE (4), TCPI_OPT_ECN (8).
    pub options: u8,
    /// Window scale: theirs, ours.
    pub window_scale: (u8, u8),
    /// Bytes in the send queue that were never sent.
    pub unsent: u32,
}

/// TCP_INFO.
pub fn info(fd: impl AsFd) -> Result<Info, Errno> {
    let raw = option(fd, TCP, libc::TCP_INFO, &[], 256)?;
    let unsent: Option<[u8; 4]> = raw.get(144..148).and_then(|word| word.try_into().ok());
    let [state, _, _, _, _, options, scale, ..] = raw[..] else {
        return Err(Errno::EINVAL);
    };
    Ok(Info {
        state,
        options,
        window_scale: (scale & 15, scale >> 4),
        unsent: unsent.map_or(0, u32::from_ne_bytes),
    })
}

/// Switches repair mode on.
pub fn begin(fd: impl AsFd) -> Result<(), Errno> {
    set_int_option(fd, TCP, REPAIR, 1)
}

/// Switches repair mode off; `probe` sends a window probe, which makes the other side tell its
/// window. Puts back SO_REUSEADDR.
pub fn end(fd: impl AsFd, probe: bool, reuse: i32) -> Result<(), Errno> {
    let off = if probe { 0 } else { OFF_SILENT };
    set_int_option(&fd, TCP, REPAIR, off)?;
    set_int_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)
}

/// Chooses the queue that the other calls mean.
pub fn choose(fd: impl AsFd, queue: Queue) -> Result<(), Errno> {
    set_int_option(fd, TCP, libc::TCP_REPAIR_QUEUE, queue as i32)
}

/// The sequence number after the last byte of the chosen queue.
pub fn sequence(fd: impl AsFd) -> Result<u32, Errno> {
    Ok(int_option(fd, TCP, libc::TCP_QUEUE_SEQ)? as u32)
}

/// Sets the sequence number of the chosen queue, before the connection is made.
pub fn set_sequence(fd: impl AsFd, sequence: u32) -> Result<(), Errno> {
    set_int_option(fd, TCP, libc::TCP_QUEUE_SEQ, sequence as i32)
}

/// All bytes in the chosen queue, at most `room`.
pub fn contents(fd: impl AsFd, room: usize) -> Result<Vec<u8>, Errno> {
    if room == 0 {
        return Ok(Vec::new());
    }
    Ok(receive(fd, libc::MSG_PEEK, room)?.map_or(Vec::new(), |message| message.data))
}

/// TCP_REPAIR_WINDOW: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
pub fn window(fd: impl AsFd) -> Result<[u32; 5], Errno> {
    let raw = option(fd, TCP, WINDOW, &[], 20)?;
    let mut words = [0; 5];
    for (word, bytes) in words.iter_mut().zip(raw.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    Ok(words)
}

/// See [`window`].
pub fn set_window(fd: impl AsFd, window: [u32; 5]) -> Result<(), Errno> {
    let raw: Vec<u8> = window.iter().flat_map(|word| word.to_ne_bytes()).collect();
    set_option(fd, TCP, WINDOW, &raw)
}

/// TCP_REPAIR_OPTIONS: what the two sides agreed on. Kinds are those of the TCP header: 2 maximum
/// segment size, 3 window scale (theirs | ours << 16), 4 selective acknowledgements, 8 timestamps.
pub fn set_agreed(fd: impl AsFd, options: &[(u32, u32)]) -> Result<(), Errno> {
    let raw: Vec<u8> = options
        .iter()
        .flat_map(|(kind, value)| [kind.to_ne_bytes(), value.to_ne_bytes()].concat())
        .collect();
    set_option(fd, TCP, libc::TCP_REPAIR_OPTIONS, &raw)
}
