//! Sockets with both ends inside.

use super::sys::call;
use super::{Check, Child, SetUp, ensure};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    recvmsg, sendmsg, setsockopt, shutdown, socketpair, sockopt,
};
use std::error::Error;
use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("socket_pairs", pairs),
    ("socket_unix_named", unix_named),
    ("socket_unix_waiting", unix_waiting),
    ("socket_in_flight", in_flight),
    ("socket_options", options),
    ("socket_tcp", tcp),
    ("socket_tcp_waiting", tcp_waiting),
    ("socket_tcp_half_closed", tcp_half_closed),
    ("socket_tcp_six", tcp_six),
    ("socket_udp", udp),
];

/// A socket as a file, for plain reading and writing.
type Pair = (File, File);

fn pair(kind: SockType) -> nix::Result<Pair> {
    let (left, right) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
    Ok((left.into(), right.into()))
}

/// All three sorts, with messages under way in both directions.
fn pairs() -> Result<Check, Box<dyn Error>> {
    let mut all = Vec::new();
    for kind in [SockType::Stream, SockType::Datagram, SockType::SeqPacket] {
        let (left, right) = pair(kind)?;
        let fill = move |(left, right): &Pair| -> std::io::Result<()> {
            for number in 0..5_u8 {
                (&*left).write_all(&[number; 100])?;
                (&*right).write_all(&vec![number | 0x80; 1000 + usize::from(number)])?;
            }
            Ok(())
        };
        let ends = (left, right);
        fill(&ends)?;
        all.push((kind, ends, fill));
    }
    let (closed, other) = pair(SockType::Stream)?;
    shutdown(closed.as_raw_fd(), Shutdown::Write)?;
    let (orphan, gone) = UnixStream::pair()?;
    (&gone).write_all(b"bye")?;
    drop(gone);
    orphan.set_nonblocking(true)?;
    let mut bye = Some(orphan);
    Ok(Box::new(move |_| {
        for (kind, ends, fill) in &all {
            let mut bytes = vec![0; 4096];
            for number in 0..5_u8 {
                let long = 1000 + usize::from(number);
                let count = read_message(&ends.1, *kind, &mut bytes, 100)?;
                ensure!(
                    bytes[..count] == [number; 100],
                    "{kind:?}: message {number}"
                );
                let count = read_message(&ends.0, *kind, &mut bytes, long)?;
                ensure!(
                    bytes[..count] == vec![number | 0x80; long],
                    "{kind:?}: answer {number}"
                );
            }
            fill(ends)?;
        }
        ensure!((&other).read(&mut [0])? == 0, "what was shut down is open");
        (&other).write_all(b"x")?;
        ensure!(
            (&closed).read(&mut [0])? == 1,
            "the other direction is shut too"
        );
        if let Some(mut orphan) = bye.take() {
            let mut text = String::new();
            orphan.read_to_string(&mut text)?;
            ensure!(text == "bye", "the last words were {text:?}");
        }
        Ok(())
    }))
}

fn read_message(
    file: &File,
    kind: SockType,
    bytes: &mut [u8],
    len: usize,
) -> std::io::Result<usize> {
    if kind == SockType::Stream {
        (&*file).read_exact(&mut bytes[..len])?;
        return Ok(len);
    }
    (&*file).read(bytes)
}

/// Listening and connected under a path, an abstract name, and a name that is gone.
fn unix_named() -> Result<Check, Box<dyn Error>> {
    use std::os::linux::net::SocketAddrExt;
    fs::create_dir_all("/sockets")?;
    let listener = UnixListener::bind("/sockets/stream")?;
    let abstract_name = std::os::unix::net::SocketAddr::from_abstract_name(b"abstract name")?;
    let abstract_listener = UnixListener::bind_addr(&abstract_name)?;
    let datagram = UnixDatagram::bind("/sockets/datagram")?;
    let sender = UnixDatagram::unbound()?;
    sender.connect("/sockets/datagram")?;
    let named_sender = UnixDatagram::bind("/sockets/sender")?;
    let deleted = UnixListener::bind("/sockets/deleted")?;
    let mut to_deleted = UnixStream::connect("/sockets/deleted")?;
    let (mut from_deleted, _) = deleted.accept()?;
    fs::remove_file("/sockets/deleted")?;
    named_sender.send_to(b"queued", "/sockets/datagram")?;
    Ok(Box::new(move |_| {
        let mut client = UnixStream::connect("/sockets/stream")?;
        let (mut server, _) = listener.accept()?;
        client.write_all(b"hello")?;
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes)?;
        ensure!(&bytes == b"hello", "{bytes:?} by path");
        let client = UnixStream::connect_addr(&abstract_name)?;
        abstract_listener.accept()?;
        drop(client);
        let mut bytes = [0; 16];
        let (count, from) = datagram.recv_from(&mut bytes)?;
        ensure!(&bytes[..count] == b"queued", "{bytes:?} was queued");
        let from = from.as_pathname().map(std::path::Path::to_path_buf);
        ensure!(
            from.as_deref() == Some("/sockets/sender".as_ref()),
            "it came from {from:?}"
        );
        sender.send(b"new")?;
        let count = datagram.recv(&mut bytes)?;
        ensure!(&bytes[..count] == b"new", "{bytes:?} was sent");
        named_sender.send_to(b"queued", "/sockets/datagram")?;
        to_deleted.write_all(b"still")?;
        let mut bytes = [0; 5];
        from_deleted.read_exact(&mut bytes)?;
        ensure!(&bytes == b"still", "{bytes:?} over a deleted name");
        let name = from_deleted.local_addr()?;
        ensure!(
            name.as_pathname() == Some("/sockets/deleted".as_ref()),
            "{name:?}"
        );
        Ok(())
    }))
}

/// Connections that nobody accepted yet.
fn unix_waiting() -> Result<Check, Box<dyn Error>> {
    let listener = UnixListener::bind("/waiting")?;
    let connect = || {
        (0..3)
            .map(|_| UnixStream::connect("/waiting"))
            .collect::<Result<Vec<_>, _>>()
    };
    let mut clients = connect()?;
    Ok(Box::new(move |_| {
        for (number, client) in clients.iter_mut().enumerate() {
            let (mut server, _) = listener.accept()?;
            server.write_all(&[number as u8])?;
            client.write_all(&[number as u8 + 10])?;
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            ensure!(byte[0] == number as u8, "client {number} got {byte:?}");
            server.read_exact(&mut byte)?;
            ensure!(byte[0] == number as u8 + 10, "server {number} got {byte:?}");
        }
        clients = connect()?;
        Ok(())
    }))
}

fn send_fds(socket: &impl AsRawFd, text: &[u8], fds: &[i32]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let parts = [IoSlice::new(text)];
    sendmsg::<()>(socket.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None)
}

fn receive_fds(
    socket: &impl AsRawFd,
    text: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), Box<dyn Error>> {
    let mut space = nix::cmsg_space!([i32; 8]);
    let mut parts = [IoSliceMut::new(text)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel just made these numbers, and nobody else owns them.
            fds.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok((message.bytes, fds))
}

/// Descriptors that are nowhere but in a queue: a pipe with content, and a deleted file.
fn in_flight() -> Result<Check, Box<dyn Error>> {
    let (left, right) = pair(SockType::SeqPacket)?;
    let send = move |left: &File| -> Result<(), Box<dyn Error>> {
        let (reader, mut writer) = std::io::pipe()?;
        writer.write_all(b"inside")?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open("/flying")?;
        file.write_all(b"deleted")?;
        fs::remove_file("/flying")?;
        send_fds(
            left,
            b"both ends",
            &[reader.as_raw_fd(), writer.as_raw_fd()],
        )?;
        send_fds(left, b"a file", &[file.as_raw_fd()])?;
        Ok(())
    };
    send(&left)?;
    Ok(Box::new(move |_| {
        let mut text = [0; 32];
        let (count, mut fds) = receive_fds(&right, &mut text)?;
        ensure!(
            &text[..count] == b"both ends" && fds.len() == 2,
            "{count}, {} fds",
            fds.len()
        );
        let (writer, reader) = (fds.pop(), fds.pop());
        drop(writer);
        let mut content = String::new();
        reader
            .map(File::from)
            .ok_or("no reader")?
            .read_to_string(&mut content)?;
        ensure!(content == "inside", "the pipe held {content:?}");
        let (count, mut fds) = receive_fds(&right, &mut text)?;
        ensure!(
            &text[..count] == b"a file" && fds.len() == 1,
            "{count}, {} fds",
            fds.len()
        );
        let file = fds.pop().map(File::from).ok_or("no file")?;
        let mut bytes = [0; 7];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0)?;
        ensure!(&bytes == b"deleted", "the file held {bytes:?}");
        send(&left)
    }))
}

fn options() -> Result<Check, Box<dyn Error>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (unix, other) = UnixStream::pair()?;
    setsockopt(&socket, sockopt::RcvBuf, &30_000)?;
    setsockopt(&socket, sockopt::SndBuf, &40_000)?;
    setsockopt(&socket, sockopt::Broadcast, &true)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::Priority, &5)?;
    socket.set_read_timeout(Some(Duration::from_millis(1500)))?;
    socket.set_ttl(33)?;
    setsockopt(&unix, sockopt::PassCred, &true)?;
    unix.set_nonblocking(true)?;
    use nix::sys::socket::getsockopt;
    let values = move || -> Result<Vec<usize>, Box<dyn Error>> {
        Ok(vec![
            getsockopt(&socket, sockopt::RcvBuf)?,
            getsockopt(&socket, sockopt::SndBuf)?,
            usize::from(getsockopt(&socket, sockopt::Broadcast)?),
            usize::from(getsockopt(&socket, sockopt::ReuseAddr)?),
            getsockopt(&socket, sockopt::Priority)? as usize,
            socket.read_timeout()?.unwrap_or_default().as_millis() as usize,
            socket.ttl()? as usize,
            usize::from(getsockopt(&unix, sockopt::PassCred)?),
            usize::from((&unix).read(&mut [0]).is_err()),
            usize::from(getsockopt(&other, sockopt::PassCred)?),
        ])
    };
    let before = values()?;
    ensure!(before[2..] == [1, 1, 5, 1500, 33, 1, 1, 0], "{before:?}");
    Ok(Box::new(move |_| {
        let now = values()?;
        ensure!(now == before, "options {now:?}, not {before:?}");
        Ok(())
    }))
}

fn connect(listener: &TcpListener) -> std::io::Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    }
    Ok((client, server))
}

fn read_pattern(stream: &mut TcpStream, seed: u8, len: usize) -> super::Verdict {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    for (index, byte) in bytes.into_iter().enumerate() {
        ensure!(
            byte == pattern(seed, index),
            "byte {index} of {len} is {byte}"
        );
    }
    Ok(())
}

fn pattern(seed: u8, index: usize) -> u8 {
    (index * 31 + index / 256) as u8 ^ seed
}

fn write_pattern(stream: &mut TcpStream, seed: u8, len: usize) -> std::io::Result<()> {
    let bytes: Vec<u8> = (0..len).map(|index| pattern(seed, index)).collect();
    stream.write_all(&bytes)
}

/// Connections between two processes with data that were not read, and some that were not taken by
/// the other side.
fn tcp() -> Result<Check, Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut all = Vec::new();
    for seed in 0..3 {
        let (mut client, server) = connect(&listener)?;
        client.set_nodelay(seed == 1)?;
        write_pattern(&mut client, seed, 100_000)?;
        all.push((client, server));
    }
    // A reader with a small window: the rest stays with the sender.
    let (mut sender, mut reader) = connect(&listener)?;
    setsockopt(&reader, sockopt::RcvBuf, &4096)?;
    setsockopt(&sender, sockopt::SndBuf, &16_384)?;
    sender.set_nonblocking(true)?;
    let mut sent = 0;
    while let Ok(count) = sender.write(&pattern_from(sent)) {
        sent += count;
    }
    let mut read = 0;
    let (mut to_child, server) = connect(&listener)?;
    let mut child = Child::fork(move || {
        let mut stream = server;
        let mut asked = 0_u8;
        Ok(Box::new(move |_| {
            asked += 1;
            read_pattern(&mut stream, asked, 1000)?;
            write_pattern(&mut stream, !asked, 1000)?;
            Ok(())
        }))
    })?;
    let mut asked = 0_u8;
    Ok(Box::new(move |_| {
        asked += 1;
        write_pattern(&mut to_child, asked, 1000)?;
        child.check()?;
        read_pattern(&mut to_child, !asked, 1000)?;
        for (seed, (client, server)) in all.iter_mut().enumerate() {
            read_pattern(server, seed as u8, 100_000)?;
            write_pattern(server, seed as u8, 50_000)?;
            read_pattern(client, seed as u8, 50_000)?;
            ensure!(client.nodelay()? == (seed == 1), "TCP_NODELAY of {seed}");
            write_pattern(client, seed as u8, 100_000)?;
        }
        // A third of what is under way, and then as much again.
        for _ in 0..(sent - read) / 3 / 1000 {
            let mut bytes = [0; 1000];
            reader.read_exact(&mut bytes)?;
            ensure!(
                bytes[..] == pattern_from(read)[..1000],
                "byte {read} or after it"
            );
            read += 1000;
        }
        while let Ok(count) = sender.write(&pattern_from(sent)) {
            sent += count;
        }
        let _open = &listener;
        Ok(())
    }))
}

/// 8 KiB of an endless pattern from `offset` on.
fn pattern_from(offset: usize) -> Vec<u8> {
    (offset..offset + 8192)
        .map(|index| pattern(9, index))
        .collect()
}

/// Listening with connections that nobody accepted yet.
fn tcp_waiting() -> Result<Check, Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let start = move || -> std::io::Result<Vec<TcpStream>> {
        let mut clients = Vec::new();
        for _ in 0..3 {
            let client = TcpStream::connect(address)?;
            client.set_read_timeout(Some(Duration::from_secs(20)))?;
            clients.push(client);
        }
        Ok(clients)
    };
    let mut clients = start()?;
    Ok(Box::new(move |_| {
        for (number, client) in clients.iter_mut().enumerate() {
            let (mut server, from) = listener.accept()?;
            ensure!(
                from == client.local_addr()?,
                "{from} instead of client {number}"
            );
            server.set_read_timeout(Some(Duration::from_secs(20)))?;
            write_pattern(client, number as u8, 500)?;
            read_pattern(&mut server, number as u8, 500)?;
            write_pattern(&mut server, number as u8, 500)?;
            read_pattern(client, number as u8, 500)?;
        }
        clients = start()?;
        Ok(())
    }))
}

/// One direction closed, before and after its data were read.
fn tcp_half_closed() -> Result<Check, Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let start = move || -> std::io::Result<(TcpStream, TcpStream)> {
        let (mut client, server) = connect(&listener)?;
        write_pattern(&mut client, 4, 3000)?;
        client.shutdown(std::net::Shutdown::Write)?;
        Ok((client, server))
    };
    let (mut client, mut server) = start()?;
    Ok(Box::new(move |_| {
        read_pattern(&mut server, 4, 3000)?;
        ensure!(server.read(&mut [0])? == 0, "it is open again");
        ensure!(
            client.write(b"x").is_err(),
            "what was shut can be written to"
        );
        write_pattern(&mut server, 5, 3000)?;
        read_pattern(&mut client, 5, 3000)?;
        (client, server) = start()?;
        Ok(())
    }))
}

fn tcp_six() -> Result<Check, Box<dyn Error>> {
    let listener = TcpListener::bind("[::1]:0")?;
    let (mut client, mut server) = connect(&listener)?;
    write_pattern(&mut client, 6, 5000)?;
    let addresses = (client.local_addr()?, client.peer_addr()?);
    Ok(Box::new(move |_| {
        read_pattern(&mut server, 6, 5000)?;
        let now = (client.local_addr()?, client.peer_addr()?);
        ensure!(now == addresses, "{now:?}, not {addresses:?}");
        write_pattern(&mut client, 6, 5000)?;
        drop(connect(&listener)?);
        Ok(())
    }))
}

/// Bound, connected, with datagrams queued from both.
fn udp() -> Result<Check, Box<dyn Error>> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    receiver.set_read_timeout(Some(Duration::from_secs(20)))?;
    let address = receiver.local_addr()?;
    let (bound, connected) = (
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?,
        UdpSocket::bind("127.0.0.1:0")?,
    );
    connected.connect(address)?;
    let names = (bound.local_addr()?, connected.local_addr()?);
    let send = move || -> std::io::Result<()> {
        bound.send_to(b"from the bound one", address)?;
        connected.send(b"from the connected one")?;
        bound.send_to(b"", address).map(drop)
    };
    send()?;
    Ok(Box::new(move |_| {
        let expected = [
            (&b"from the bound one"[..], names.0),
            (b"from the connected one", names.1),
            (b"", names.0),
        ];
        for (text, name) in expected {
            let mut bytes = [0; 64];
            let (count, from) = receiver.recv_from(&mut bytes)?;
            ensure!(
                &bytes[..count] == text && from == name,
                "{count} bytes from {from}"
            );
        }
        let mut left = 0_i32;
        call!(libc::ioctl(receiver.as_raw_fd(), libc::FIONREAD, &mut left))?;
        ensure!(left == 0, "more is queued than was sent");
        send()?;
        Ok(())
    }))
}
