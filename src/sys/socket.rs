//! Sockets as the kernel sees them: raw addresses, raw options, messages with their control data.
//!
//! nix types every option and address; a checkpoint wants the bytes as they are.

use crate::error::Result;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A `struct sockaddr` as the kernel wrote it, its length included. Empty for "no address".
pub type RawAddress = Vec<u8>;

const ADDRESS_MAX: usize = 128;
const CONTROL_MAX: usize = 16384;

/// What came beside the bytes of a message.
#[derive(Debug)]
pub enum Control {
    /// SCM_RIGHTS: duplicates of the descriptors in flight.
    Rights(Vec<OwnedFd>),
    /// SCM_CREDENTIALS: pid (as this process sees it), uid, gid.
    Credentials(i32, u32, u32),
    /// Anything else: level and type.
    Other(i32, i32),
}

/// One received message.
#[derive(Debug)]
pub struct Message {
    /// The bytes.
    pub data: Vec<u8>,
    /// The sender's address; empty for none.
    pub from: RawAddress,
    /// Control messages in the order they came.
    pub control: Vec<Control>,
    /// The flags that recvmsg(2) set (MSG_TRUNC, MSG_EOR, …).
    pub flags: i32,
}

/// Rights and credentials to send along.
#[derive(Debug, Default)]
pub struct Along<'a> {
    /// Descriptors for SCM_RIGHTS.
    pub rights: &'a [BorrowedFd<'a>],
    /// pid, uid and gid for SCM_CREDENTIALS.
    pub credentials: Option<(i32, u32, u32)>,
}

fn owned(fd: libc::c_int) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// socket(2), close-on-exec.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    owned(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })
}

/// socketpair(2), close-on-exec.
pub fn pair(domain: i32, kind: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors.
    Errno::result(unsafe {
        libc::socketpair(domain, kind | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr())
    })?;
    Ok((owned(fds[0])?, owned(fds[1])?))
}

/// bind(2).
pub fn bind(fd: impl AsFd, address: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of a live slice.
    Errno::result(unsafe {
        libc::bind(
            fd.as_fd().as_raw_fd(),
            address.as_ptr().cast(),
            address.len() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// connect(2).
pub fn connect(fd: impl AsFd, address: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of a live slice.
    Errno::result(unsafe {
        libc::connect(
            fd.as_fd().as_raw_fd(),
            address.as_ptr().cast(),
            address.len() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// listen(2).
pub fn listen(fd: impl AsFd, backlog: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::listen(fd.as_fd().as_raw_fd(), backlog) }).map(drop)
}

/// accept4(2), close-on-exec.
pub fn accept(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: null address pointers are allowed.
    owned(unsafe {
        libc::accept4(
            fd.as_fd().as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    })
}

/// shutdown(2) with SHUT_RD, SHUT_WR or SHUT_RDWR.
pub fn shutdown(fd: impl AsFd, how: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::shutdown(fd.as_fd().as_raw_fd(), how) }).map(drop)
}

type NameCall =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn name(fd: BorrowedFd<'_>, call: NameCall) -> Result<RawAddress, Errno> {
    let mut address = vec![0u8; ADDRESS_MAX];
    let mut len = ADDRESS_MAX as libc::socklen_t;
    // SAFETY: `address` has `len` bytes of room.
    Errno::result(unsafe { call(fd.as_raw_fd(), address.as_mut_ptr().cast(), &mut len) })?;
    address.truncate(len as usize);
    Ok(address)
}

/// getsockname(2).
pub fn local_address(fd: impl AsFd) -> Result<RawAddress, Errno> {
    name(fd.as_fd(), libc::getsockname)
}

/// getpeername(2); `None` when not connected.
pub fn peer_address(fd: impl AsFd) -> Result<Option<RawAddress>, Errno> {
    match name(fd.as_fd(), libc::getpeername) {
        Ok(address) => Ok(Some(address)),
        Err(Errno::ENOTCONN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// getsockopt(2) into a buffer of `max` bytes that holds `input` at first.
pub fn option(
    fd: impl AsFd,
    level: i32,
    option: i32,
    input: &[u8],
    max: usize,
) -> Result<Vec<u8>, Errno> {
    let mut value = input.to_vec();
    value.resize(max.max(input.len()), 0);
    let mut len = max as libc::socklen_t;
    // SAFETY: `value` has at least `len` bytes of room.
    Errno::result(unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            option,
            value.as_mut_ptr().cast(),
            &mut len,
        )
    })?;
    value.truncate(len as usize);
    Ok(value)
}

/// getsockopt(2) of an `int`; options that answer with one byte are understood.
pub fn int_option(fd: impl AsFd, level: i32, number: i32) -> Result<i32, Errno> {
    let value = option(fd, level, number, &[], 4)?;
    Ok(match value.len() {
        4.. => i32::from_ne_bytes([value[0], value[1], value[2], value[3]]),
        1.. => i32::from(value[0]),
        0 => 0,
    })
}

/// setsockopt(2).
pub fn set_option(fd: impl AsFd, level: i32, option: i32, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of a live slice.
    Errno::result(unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// setsockopt(2) of an `int`.
pub fn set_int_option(fd: impl AsFd, level: i32, option: i32, value: i32) -> Result<(), Errno> {
    set_option(fd, level, option, &value.to_ne_bytes())
}

/// The classic BPF program of SO_ATTACH_FILTER, eight bytes an instruction; empty for none.
/// EACCES when an eBPF program is attached.
pub fn filter(fd: impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut count: libc::socklen_t = 0;
    // The length of this option counts instructions. Zero asks how many there are.
    // SAFETY: nothing is written for a length of zero.
    Errno::result(unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            std::ptr::null_mut(),
            &mut count,
        )
    })?;
    let mut program = vec![0u8; count as usize * 8];
    if count == 0 {
        return Ok(program);
    }
    // SAFETY: `program` has room for `count` instructions of eight bytes.
    Errno::result(unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            program.as_mut_ptr().cast(),
            &mut count,
        )
    })?;
    program.truncate(count as usize * 8);
    Ok(program)
}

/// SO_ATTACH_FILTER with a program of eight bytes an instruction.
pub fn attach_filter(fd: impl AsFd, program: &[u8]) -> Result<(), Errno> {
    let mut instructions: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|i| libc::sock_filter {
            code: u16::from_ne_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        })
        .collect();
    let header = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: `header` points at `len` live instructions; the kernel copies them.
    Errno::result(unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const header).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// recvmsg(2) with `flags` (MSG_DONTWAIT and MSG_CMSG_CLOEXEC are added) and room for `room` bytes.
/// `None` when nothing is there.
pub fn receive(fd: impl AsFd, flags: i32, room: usize) -> Result<Option<Message>, Errno> {
    let mut data = vec![0u8; room];
    let mut from = vec![0u8; ADDRESS_MAX];
    // u64s, so that control headers are aligned.
    let mut control = vec![0u64; CONTROL_MAX / 8];
    let mut part = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = from.as_mut_ptr().cast();
    header.msg_namelen = ADDRESS_MAX as libc::socklen_t;
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_MAX;
    // SAFETY: every pointer in `header` is to a live buffer of the length given beside it.
    let got = Errno::result(unsafe {
        libc::recvmsg(
            fd.as_fd().as_raw_fd(),
            &mut header,
            flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
        )
    });
    let got = match got {
        Ok(got) => got as usize,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    data.truncate(got);
    from.truncate(header.msg_namelen as usize);
    Ok(Some(Message {
        data,
        from,
        // SAFETY: `header` was filled by a successful recvmsg and its buffers live.
        control: unsafe { controls(&header) },
        flags: header.msg_flags,
    }))
}

/// Peeks at `size` bytes of a Unix stream with only `accessible` bytes of memory to put them:
/// returns the length of the messages that fit there whole, 0 when not even the first does.
pub fn peek_whole(fd: impl AsFd, size: usize, accessible: usize) -> Result<usize, Errno> {
    const PAGE: usize = 4096;
    let before = accessible.next_multiple_of(PAGE);
    let length = before + size.saturating_sub(accessible).next_multiple_of(PAGE) + PAGE;
    // SAFETY: a fresh private mapping without access, that nothing else knows of, given back below.
    // The kernel writes only to the part made writable; a fault in the rest is an errno.
    unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let mut got = Ok(0);
        if before > 0 {
            let writable = libc::PROT_READ | libc::PROT_WRITE;
            got = Errno::result(libc::mprotect(start, before, writable) as libc::ssize_t);
        }
        if got.is_ok() {
            got = Errno::result(libc::recv(
                fd.as_fd().as_raw_fd(),
                start.cast::<u8>().add(before - accessible).cast(),
                size,
                libc::MSG_PEEK | libc::MSG_DONTWAIT,
            ));
        }
        libc::munmap(start, length);
        match got {
            Ok(got) => Ok(got as usize),
            Err(Errno::EFAULT) => Ok(0),
            Err(errno) => Err(errno),
        }
    }
}

/// # Safety
///
/// `header` must have been filled by a successful recvmsg(2), its control buffer must live, and the
/// descriptors in it must not have been taken yet.
unsafe fn controls(header: &libc::msghdr) -> Vec<Control> {
    let mut all = Vec::new();
    // SAFETY: the CMSG macros walk within msg_controllen, which the kernel set; descriptors in an
    // SCM_RIGHTS message are new and ours alone.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = at.as_ref() {
            let data = libc::CMSG_DATA(at);
            let len = found.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            match (found.cmsg_level, found.cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => all.push(Control::Rights(
                    (0..len / 4)
                        .map(|n| {
                            OwnedFd::from_raw_fd(data.cast::<libc::c_int>().add(n).read_unaligned())
                        })
                        .collect(),
                )),
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if len >= size_of::<libc::ucred>() => {
                    let ucred = data.cast::<libc::ucred>().read_unaligned();
                    all.push(Control::Credentials(ucred.pid, ucred.uid, ucred.gid));
                }
                (level, kind) => all.push(Control::Other(level, kind)),
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    all
}

/// sendmsg(2), never waiting and without SIGPIPE. Returns how many bytes were taken.
pub fn send(
    fd: impl AsFd,
    data: &[u8],
    to: Option<&[u8]>,
    along: &Along<'_>,
    flags: i32,
) -> Result<usize, Errno> {
    let mut control = vec![0u64; CONTROL_MAX / 8];
    let mut part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if let Some(to) = to {
        header.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_namelen = to.len() as libc::socklen_t;
    }
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    let mut used = 0;
    let rights: Vec<u8> = along
        .rights
        .iter()
        .flat_map(|fd| fd.as_raw_fd().to_ne_bytes())
        .collect();
    if !rights.is_empty() {
        used += put_control(&mut control, used, libc::SCM_RIGHTS, &rights)?;
    }
    if let Some((pid, uid, gid)) = along.credentials {
        let mut ucred = pid.to_ne_bytes().to_vec();
        ucred.extend(uid.to_ne_bytes());
        ucred.extend(gid.to_ne_bytes());
        used += put_control(&mut control, used, libc::SCM_CREDENTIALS, &ucred)?;
    }
    if used > 0 {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = used;
    }
    // SAFETY: every pointer in `header` is to a live buffer of the length given beside it.
    let sent = Errno::result(unsafe {
        libc::sendmsg(
            fd.as_fd().as_raw_fd(),
            &header,
            flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    })?;
    Ok(sent as usize)
}

/// Writes one SOL_SOCKET control message at byte `used` of `control`; returns the room it takes.
fn put_control(
    control: &mut [u64],
    used: usize,
    kind: libc::c_int,
    data: &[u8],
) -> Result<usize, Errno> {
    // SAFETY: plain arithmetic.
    let (space, len) = unsafe {
        (
            libc::CMSG_SPACE(data.len() as u32) as usize,
            libc::CMSG_LEN(data.len() as u32) as usize,
        )
    };
    if used + space > control.len() * 8 {
        return Err(Errno::EMSGSIZE);
    }
    // SAFETY: `used` is a multiple of the header's alignment and the message fits, as checked.
    unsafe {
        let at = control
            .as_mut_ptr()
            .cast::<u8>()
            .add(used)
            .cast::<libc::cmsghdr>();
        (*at).cmsg_level = libc::SOL_SOCKET;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = len;
        libc::CMSG_DATA(at).copy_from_nonoverlapping(data.as_ptr(), data.len());
    }
    Ok(space)
}

fn int_ioctl(fd: BorrowedFd<'_>, request: libc::c_ulong) -> Result<i32, Errno> {
    let mut value: libc::c_int = 0;
    // SAFETY: these requests write one int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &mut value) })?;
    Ok(value)
}

/// SIOCINQ: bytes that can be read (of the first message, for datagrams).
pub fn in_queue(fd: impl AsFd) -> Result<i32, Errno> {
    int_ioctl(fd.as_fd(), libc::FIONREAD)
}

/// SIOCOUTQ: bytes sent and not yet acknowledged or read by the other side.
pub fn out_queue(fd: impl AsFd) -> Result<i32, Errno> {
    int_ioctl(fd.as_fd(), libc::TIOCOUTQ)
}

const SIOCUNIXFILE: libc::c_ulong = 0x89e0;

/// SIOCUNIXFILE: an O_PATH descriptor of the file that a Unix socket is bound to. ENOENT when it is
/// bound to none. Needs CAP_NET_ADMIN over the socket's network namespace.
pub fn unix_file(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; the result is a new descriptor.
    owned(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SIOCUNIXFILE as _) })
}

/// poll(2) without waiting: which of POLLIN, POLLERR, POLLHUP, POLLRDHUP hold.
pub fn ready(fd: impl AsFd) -> Result<i16, Errno> {
    let mut one = libc::pollfd {
        fd: fd.as_fd().as_raw_fd(),
        events: libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP | libc::POLLPRI,
        revents: 0,
    };
    // SAFETY: one live pollfd.
    Errno::result(unsafe { libc::poll(&mut one, 1, 0) })?;
    Ok(one.revents)
}

/// The inode number that names a socket in sock_diag(7) and in `socket:[N]`.
pub fn inode(fd: impl AsFd) -> Result<u64, Errno> {
    Ok(nix::sys::stat::fstat(fd)?.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_descriptors_and_credentials_and_can_be_peeked_at() {
        let (one, two) = pair(libc::AF_UNIX, libc::SOCK_DGRAM).unwrap();
        set_int_option(&two, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let rights = [one.as_fd()];
        let pid = std::process::id() as i32;
        let along = Along {
            rights: &rights,
            credentials: Some((pid, 1, 2)),
        };
        send(&one, b"hello", None, &along, 0).unwrap();
        for _ in 0..2 {
            let message = receive(&two, libc::MSG_PEEK, 100).unwrap().unwrap();
            assert_eq!(message.data, b"hello");
            assert!(
                message
                    .control
                    .iter()
                    .any(|c| matches!(c, Control::Rights(fds) if inode(&fds[0]) == inode(&one)))
            );
            assert!(
                message
                    .control
                    .iter()
                    .any(|c| matches!(c, Control::Credentials(p, 1, 2) if *p == pid))
            );
        }
    }

    #[test]
    fn a_filter_reads_back_as_it_was_attached() {
        let (one, _two) = pair(libc::AF_UNIX, libc::SOCK_DGRAM).unwrap();
        assert!(filter(&one).unwrap().is_empty());
        let accept = [6u8, 0, 0, 0, 0xff, 0xff, 0, 0];
        attach_filter(&one, &accept).unwrap();
        assert_eq!(filter(&one).unwrap(), accept);
    }
}
