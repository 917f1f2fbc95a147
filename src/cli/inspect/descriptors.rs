//! What descriptors refer to, in a few words.

use super::view::path;
use crate::image::bytes::NameBytes;
use crate::image::files::{Descriptor, FileKind, FileReference, Files, OpenFile, Pty};
use crate::image::files::{FileId, Inode, PidfdTarget, Timerfd};
use crate::image::sockets::{Sockets, Tcp, TcpState, Udp, Unix, UnixKind, UnixState};
use serde::Serialize;
use std::collections::HashMap;
use std::net::SocketAddr;

/// A descriptor.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Its number.
    pub fd: i32,
    /// The open file, by its number in the image: the same one where descriptors share it.
    pub file: u32,
    /// `file`, `directory`, `device`, `pipe`, `fifo`, `unix`, `tcp`, `udp`, `netlink`, `socket`,
    /// `eventfd`, `epoll`, `timerfd`, `signalfd`, `inotify`, `pidfd`, `namespace`, `memfd`,
    /// `terminal`, `external`.
    pub kind: &'static str,
    /// For a reader.
    pub about: String,
    /// As in [`OpenFile::flags`].
    pub flags: Vec<String>,
    /// The offset, where the file has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
    /// FD_CLOEXEC.
    pub cloexec: bool,
}

/// Finds what descriptors refer to.
pub struct Describer<'i> {
    files: &'i Files,
    open: HashMap<FileId, &'i OpenFile>,
    sockets: HashMap<u64, (&'static str, String)>,
    ptys: HashMap<u32, &'i Pty>,
}

impl<'i> Describer<'i> {
    pub fn new(files: &'i Files, sockets: &[Sockets]) -> Self {
        Self {
            files,
            open: files
                .open_files
                .iter()
                .map(|file| (file.id, file))
                .collect(),
            sockets: sockets.iter().flat_map(of_sockets).collect(),
            ptys: files.ptys.iter().map(|pty| (pty.id, pty)).collect(),
        }
    }

    /// The descriptors of a process; those that share a table have the same.
    pub fn table(&self, pid: i32) -> Vec<Line> {
        let owner = self.files.shared_tables.get(&pid).unwrap_or(&pid);
        let table = self.files.tables.get(owner).map(Vec::as_slice);
        let lines = table.unwrap_or_default().iter();
        lines.map(|descriptor| self.line(descriptor)).collect()
    }

    fn line(&self, descriptor: &Descriptor) -> Line {
        let line = Line {
            fd: descriptor.fd,
            file: descriptor.file.0,
            kind: "unknown",
            about: String::new(),
            flags: Vec::new(),
            offset: None,
            cloexec: descriptor.cloexec,
        };
        let Some(file) = self.open.get(&descriptor.file) else {
            return line;
        };
        let (kind, about) = self.about(file);
        Line {
            kind,
            about,
            flags: file.flags.clone(),
            offset: (kind == "file" || kind == "memfd").then_some(file.pos),
            ..line
        }
    }

    fn about(&self, file: &OpenFile) -> (&'static str, String) {
        match &file.kind {
            FileKind::Path(file) if file.file_type == "directory" => ("directory", named(file)),
            FileKind::Path(file) => ("file", named(file)),
            FileKind::Device { file, major, minor } => {
                ("device", format!("{} ({major}:{minor})", named(file)))
            }
            FileKind::Pipe { pipe } => ("pipe", format!("{}{}", pipe.ino, self.queued(pipe))),
            FileKind::Fifo { file, pipe } => {
                ("fifo", format!("{}{}", named(file), self.queued(pipe)))
            }
            FileKind::Socket { socket } => match self.sockets.get(&file.id.0.into()) {
                Some((kind, about)) => (kind, about.clone()),
                None => ("socket", socket.to_string()),
            },
            FileKind::Eventfd { count, semaphore } => {
                let semaphore = if *semaphore { ", semaphore" } else { "" };
                ("eventfd", format!("counter {count}{semaphore}"))
            }
            FileKind::Epoll { items } => {
                let fds: Vec<_> = items.iter().map(|item| item.fd.to_string()).collect();
                ("epoll", format!("watches {}", list(&fds)))
            }
            FileKind::Timerfd(timer) => ("timerfd", of_timer(timer)),
            FileKind::Signalfd { mask } => {
                let signals: Vec<_> = (0..64)
                    .filter(|bit| mask >> bit & 1 == 1)
                    .map(|bit| (bit + 1).to_string())
                    .collect();
                ("signalfd", format!("signals {}", list(&signals)))
            }
            FileKind::Inotify { watches } => {
                let files: Vec<_> = watches.iter().map(|watch| named(&watch.file)).collect();
                ("inotify", format!("watches {}", list(&files)))
            }
            FileKind::Pidfd(target) => ("pidfd", of_pidfd(*target)),
            FileKind::Namespace { kind, pid, .. } => {
                ("namespace", format!("{kind} of process {pid}"))
            }
            FileKind::Memory { memory } => ("memfd", self.memory_file(memory)),
            FileKind::PtyMaster { pty, .. } => ("terminal", self.terminal(*pty, "master of ")),
            FileKind::PtySlave { pty, .. } => ("terminal", self.terminal(*pty, "")),
            FileKind::External(external) => {
                let stream = match external.stream {
                    Some(0) => "standard input: ",
                    Some(1) => "standard output: ",
                    Some(2) => "standard error: ",
                    _ => "",
                };
                ("external", format!("{stream}{}", path(&external.what)))
            }
        }
    }

    fn queued(&self, pipe: &Inode) -> String {
        let pipe = self.files.pipes.iter().find(|known| known.inode == *pipe);
        let bytes: u64 = pipe.map_or(0, |pipe| {
            pipe.pieces.iter().map(|piece| u64::from(piece.len)).sum()
        });
        waiting(bytes)
    }

    fn memory_file(&self, inode: &Inode) -> String {
        let known = self.files.memory_files.iter();
        match known.clone().find(|known| known.inode == *inode) {
            Some(file) => path(&file.name),
            None => inode.ino.to_string(),
        }
    }

    fn terminal(&self, id: u32, side: &str) -> String {
        match self.ptys.get(&id) {
            Some(pty) => format!("{side}{}/{}", path(&pty.devpts), pty.index),
            None => format!("{side}terminal {id}"),
        }
    }
}

fn waiting(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(", {bytes} bytes wait"),
    }
}

fn list(items: &[String]) -> String {
    const SHOWN: usize = 8;
    match items.len() {
        0 => "nothing".to_owned(),
        length if length <= SHOWN => items.join(", "),
        length => format!("{} and {} more", items[..SHOWN].join(", "), length - SHOWN),
    }
}

fn named(file: &FileReference) -> String {
    match file.ghost {
        Some(_) => format!("{} (deleted)", path(&file.path)),
        None => path(&file.path),
    }
}

fn of_timer(timer: &Timerfd) -> String {
    let clock = timer.clock.strip_prefix("CLOCK_").unwrap_or(&timer.clock);
    let seconds = |nanoseconds: u64| format!("{:.3} s", nanoseconds as f64 / 1e9);
    let due = match (timer.remaining, timer.interval) {
        (0, _) => "not armed".to_owned(),
        (remaining, 0) => format!("in {}", seconds(remaining)),
        (remaining, interval) => format!("in {}, every {}", seconds(remaining), seconds(interval)),
    };
    format!("{}, {due}", clock.to_lowercase())
}

fn of_pidfd(target: PidfdTarget) -> String {
    match target {
        PidfdTarget::Process(pid) => format!("process {pid}"),
        PidfdTarget::Thread(tid) => format!("thread {tid}"),
        PidfdTarget::Gone(_) => "of one that is gone".to_owned(),
    }
}

/// All sockets by the number of their open file.
fn of_sockets(sockets: &Sockets) -> Vec<(u64, (&'static str, String))> {
    let unix = sockets.unix.iter();
    let tcp = sockets.tcp.iter();
    let udp = sockets.udp.iter();
    let netlink = sockets.netlink.iter();
    unix.map(|one| (one.common.id, ("unix", of_unix(one))))
        .chain(tcp.map(|one| (one.common.id, ("tcp", of_tcp(one)))))
        .chain(udp.map(|one| (one.common.id, ("udp", of_udp(one)))))
        .chain(netlink.map(|one| {
            let about = format!("protocol {}, port {}", one.protocol, one.port);
            (one.common.id, ("netlink", about))
        }))
        .collect()
}

fn of_unix(socket: &Unix) -> String {
    let kind = match socket.kind {
        UnixKind::Stream => "stream",
        UnixKind::Datagram => "datagram",
        UnixKind::SeqPacket => "seqpacket",
    };
    let name = match &socket.name {
        Some(name) => format!(" {}", unix_name(name)),
        None => String::new(),
    };
    let state = match &socket.state {
        UnixState::Unconnected => String::new(),
        UnixState::Listening { pending, .. } => match pending.len() {
            0 => ", listens".to_owned(),
            waiting => format!(", listens, {waiting} wait to be accepted"),
        },
        UnixState::Connected { peer } => format!(", connected to open file {peer}"),
        UnixState::Pending => ", waits to be accepted".to_owned(),
        UnixState::PeerGone { .. } => ", the other side is closed".to_owned(),
        UnixState::External { peer_name } => {
            format!(", connected to {} outside", unix_name(peer_name))
        }
    };
    let bytes = socket
        .queue
        .iter()
        .map(|message| message.data.0.len() as u64);
    format!("{kind}{name}{state}{}", waiting(bytes.sum()))
}

/// `/run/x.sock`, or `@name` for an abstract one, as ss(8) writes it.
fn unix_name(name: &NameBytes) -> String {
    match name.0.strip_prefix(b"\0") {
        Some(rest) => format!("@{}", path(&rest.into())),
        None => path(&name.0.as_slice().into()),
    }
}

fn of_tcp(socket: &Tcp) -> String {
    let local = address(socket.local);
    let state = match &socket.state {
        TcpState::Unconnected => format!("{local}, not connected"),
        TcpState::Over { .. } => format!("{local}, the connection is over"),
        TcpState::Listening { pending, .. } => match pending.len() {
            0 => format!("{local}, listens"),
            waiting => format!("{local}, listens, {waiting} wait to be accepted"),
        },
        TcpState::Inside { remote, .. } => format!("{local} - {remote}"),
        TcpState::Outside { remote, .. } => format!("{local} - {remote} outside"),
    };
    let bytes = socket.receive_queue.0.len() as u64;
    format!("{state}{}", waiting(bytes))
}

fn of_udp(socket: &Udp) -> String {
    let local = address(socket.local);
    let remote = match socket.remote {
        Some(remote) => format!(" - {remote}"),
        None => String::new(),
    };
    let bytes = socket
        .queue
        .iter()
        .map(|message| message.data.0.len() as u64);
    format!("{local}{remote}{}", waiting(bytes.sum()))
}

fn address(address: Option<SocketAddr>) -> String {
    match address {
        Some(address) => address.to_string(),
        None => "not bound".to_owned(),
    }
}
