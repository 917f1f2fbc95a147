//! Socket options, all kinds of sockets alike: read by name into a map, set again where a new
//! socket differs.

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::sockets::OptionValue;
use crate::sys::socket;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// Options by name, as in the image.
pub type Options = BTreeMap<String, OptionValue>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Int,
    /// So many `int`s.
    Ints(usize),
    /// So many 64-bit numbers.
    Longs(usize),
    /// A name with NUL.
    Text,
}

/// Before bind(2) and connect(2), or when everything else is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Early,
    Late,
}

use Form::{Int, Ints, Longs, Text};
use When::{Early, Late};

const SOL: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::SOL_IP;
const IP6: i32 = libc::SOL_IPV6;
const TCP: i32 = libc::SOL_TCP;
const UDP: i32 = libc::SOL_UDP;
const NETLINK: i32 = 270;

/// Numbers are those of the kernel's uapi headers. Not here: options that only report, buffers
/// (see [`buffers`]), filters, SO_PEEK_OFF and SO_LOCK_FILTER (set last of all), TCP_QUICKACK (a
/// passing mode).
#[rustfmt::skip]
const KNOWN: &[(&str, i32, i32, Form, When)] = &[
    ("SO_REUSEADDR", SOL, 2, Int, Early), ("SO_REUSEPORT", SOL, 15, Int, Early),
    ("SO_BINDTODEVICE", SOL, 25, Text, Early), ("SO_MARK", SOL, 36, Int, Early),
    ("SO_PRIORITY", SOL, 12, Int, Early), ("SO_DONTROUTE", SOL, 5, Int, Late),
    ("SO_BROADCAST", SOL, 6, Int, Late), ("SO_KEEPALIVE", SOL, 9, Int, Late),
    ("SO_OOBINLINE", SOL, 10, Int, Late), ("SO_NO_CHECK", SOL, 11, Int, Late),
    ("SO_LINGER", SOL, 13, Ints(2), Late), ("SO_RCVLOWAT", SOL, 18, Int, Late),
    ("SO_RCVTIMEO", SOL, 66, Longs(2), Late), ("SO_SNDTIMEO", SOL, 67, Longs(2), Late),
    ("SO_PASSCRED", SOL, 16, Int, Late), ("SO_PASSSEC", SOL, 34, Int, Late),
    ("SO_PASSPIDFD", SOL, 76, Int, Late), ("SO_PASSRIGHTS", SOL, 83, Int, Late),
    ("SO_TIMESTAMP", SOL, 29, Int, Late), ("SO_TIMESTAMPNS", SOL, 35, Int, Late),
    ("SO_TIMESTAMP_NEW", SOL, 63, Int, Late), ("SO_TIMESTAMPNS_NEW", SOL, 64, Int, Late),
    ("SO_TIMESTAMPING", SOL, 37, Int, Late), ("SO_RXQ_OVFL", SOL, 40, Int, Late),
    ("SO_WIFI_STATUS", SOL, 41, Int, Late), ("SO_NOFCS", SOL, 43, Int, Late),
    ("SO_SELECT_ERR_QUEUE", SOL, 45, Int, Late), ("SO_BUSY_POLL", SOL, 46, Int, Late),
    ("SO_PREFER_BUSY_POLL", SOL, 69, Int, Late), ("SO_BUSY_POLL_BUDGET", SOL, 70, Int, Late),
    ("SO_MAX_PACING_RATE", SOL, 47, Longs(1), Late), ("SO_ZEROCOPY", SOL, 60, Int, Late),
    ("SO_TXTIME", SOL, 61, Ints(2), Late), ("SO_TXREHASH", SOL, 74, Int, Late),
    ("SO_RCVPRIORITY", SOL, 82, Int, Late),

    ("IP_TOS", IP, 1, Int, Early), ("IP_TTL", IP, 2, Int, Late),
    ("IP_RECVOPTS", IP, 6, Int, Late), ("IP_RETOPTS", IP, 7, Int, Late),
    ("IP_PKTINFO", IP, 8, Int, Late), ("IP_MTU_DISCOVER", IP, 10, Int, Late),
    ("IP_RECVERR", IP, 11, Int, Late), ("IP_RECVTTL", IP, 12, Int, Late),
    ("IP_RECVTOS", IP, 13, Int, Late), ("IP_FREEBIND", IP, 15, Int, Early),
    ("IP_PASSSEC", IP, 18, Int, Late), ("IP_TRANSPARENT", IP, 19, Int, Early),
    ("IP_RECVORIGDSTADDR", IP, 20, Int, Late), ("IP_MINTTL", IP, 21, Int, Late),
    ("IP_NODEFRAG", IP, 22, Int, Late), ("IP_CHECKSUM", IP, 23, Int, Late),
    ("IP_BIND_ADDRESS_NO_PORT", IP, 24, Int, Late), ("IP_RECVFRAGSIZE", IP, 25, Int, Late),
    ("IP_RECVERR_RFC4884", IP, 26, Int, Late), ("IP_MULTICAST_IF", IP, 32, Int, Late),
    ("IP_MULTICAST_TTL", IP, 33, Int, Late), ("IP_MULTICAST_LOOP", IP, 34, Int, Late),
    ("IP_MULTICAST_ALL", IP, 49, Int, Late), ("IP_UNICAST_IF", IP, 50, Int, Late),
    ("IP_LOCAL_PORT_RANGE", IP, 51, Int, Late),

    ("IPV6_FLOWINFO", IP6, 11, Int, Late), ("IPV6_UNICAST_HOPS", IP6, 16, Int, Late),
    ("IPV6_MULTICAST_IF", IP6, 17, Int, Late), ("IPV6_MULTICAST_HOPS", IP6, 18, Int, Late),
    ("IPV6_MULTICAST_LOOP", IP6, 19, Int, Late), ("IPV6_MTU_DISCOVER", IP6, 23, Int, Late),
    ("IPV6_RECVERR", IP6, 25, Int, Late), ("IPV6_V6ONLY", IP6, 26, Int, Early),
    ("IPV6_MULTICAST_ALL", IP6, 29, Int, Late), ("IPV6_RECVERR_RFC4884", IP6, 31, Int, Late),
    ("IPV6_FLOWINFO_SEND", IP6, 33, Int, Late), ("IPV6_RECVPKTINFO", IP6, 49, Int, Late),
    ("IPV6_RECVHOPLIMIT", IP6, 51, Int, Late), ("IPV6_RECVHOPOPTS", IP6, 53, Int, Late),
    ("IPV6_RECVRTHDR", IP6, 56, Int, Late), ("IPV6_RECVDSTOPTS", IP6, 58, Int, Late),
    ("IPV6_RECVPATHMTU", IP6, 60, Int, Late), ("IPV6_DONTFRAG", IP6, 62, Int, Late),
    ("IPV6_RECVTCLASS", IP6, 66, Int, Late), ("IPV6_TCLASS", IP6, 67, Int, Late),
    ("IPV6_AUTOFLOWLABEL", IP6, 70, Int, Late), ("IPV6_ADDR_PREFERENCES", IP6, 72, Int, Late),
    ("IPV6_MINHOPCOUNT", IP6, 73, Int, Late), ("IPV6_RECVORIGDSTADDR", IP6, 74, Int, Late),
    ("IPV6_TRANSPARENT", IP6, 75, Int, Early), ("IPV6_UNICAST_IF", IP6, 76, Int, Late),
    ("IPV6_RECVFRAGSIZE", IP6, 77, Int, Late), ("IPV6_FREEBIND", IP6, 78, Int, Early),

    ("TCP_CONGESTION", TCP, 13, Text, Early), ("TCP_NODELAY", TCP, 1, Int, Late),
    ("TCP_KEEPIDLE", TCP, 4, Int, Late), ("TCP_KEEPINTVL", TCP, 5, Int, Late),
    ("TCP_KEEPCNT", TCP, 6, Int, Late), ("TCP_SYNCNT", TCP, 7, Int, Late),
    ("TCP_LINGER2", TCP, 8, Int, Late), ("TCP_THIN_LINEAR_TIMEOUTS", TCP, 16, Int, Late),
    ("TCP_USER_TIMEOUT", TCP, 18, Int, Late), ("TCP_NOTSENT_LOWAT", TCP, 25, Int, Late),
    ("TCP_SAVE_SYN", TCP, 27, Int, Late), ("TCP_INQ", TCP, 36, Int, Late),
    ("TCP_TX_DELAY", TCP, 37, Int, Late), ("TCP_CORK", TCP, 3, Int, Late),
    ("TCP_RTO_MAX_MS", TCP, 44, Int, Late), ("TCP_RTO_MIN_US", TCP, 45, Int, Late),
    ("TCP_DELACK_MAX_US", TCP, 46, Int, Late),

    ("UDP_CORK", UDP, 1, Int, Late), ("UDP_ENCAP", UDP, 100, Int, Late),
    ("UDP_NO_CHECK6_TX", UDP, 101, Int, Late), ("UDP_NO_CHECK6_RX", UDP, 102, Int, Late),
    ("UDP_SEGMENT", UDP, 103, Int, Late), ("UDP_GRO", UDP, 104, Int, Late),

    ("NETLINK_PKTINFO", NETLINK, 3, Int, Late), ("NETLINK_BROADCAST_ERROR", NETLINK, 4, Int, Late),
    ("NETLINK_NO_ENOBUFS", NETLINK, 5, Int, Late), ("NETLINK_LISTEN_ALL_NSID", NETLINK, 8, Int, Late),
    ("NETLINK_CAP_ACK", NETLINK, 10, Int, Late), ("NETLINK_EXT_ACK", NETLINK, 11, Int, Late),
    ("NETLINK_GET_STRICT_CHK", NETLINK, 12, Int, Late),
];

/// Options that mean something only on a TCP socket that has no connection: on a connected one the
/// kernel reports what the connection came to use.
#[rustfmt::skip]
const BEFORE_CONNECTION: &[(&str, i32, i32, Form, When)] = &[
    ("TCP_MAXSEG", TCP, 2, Int, Early), ("TCP_DEFER_ACCEPT", TCP, 9, Int, Late),
    ("TCP_WINDOW_CLAMP", TCP, 10, Int, Early), ("TCP_FASTOPEN", TCP, 23, Int, Late),
    ("TCP_FASTOPEN_CONNECT", TCP, 30, Int, Late), ("TCP_FASTOPEN_NO_COOKIE", TCP, 34, Int, Late),
    ("SO_INCOMING_CPU", SOL, 49, Int, Late),
];

const SO_BUF_LOCK: i32 = 72;
const SO_PEEK_OFF: i32 = libc::SO_PEEK_OFF;
const SO_LOCK_FILTER: i32 = 44;
const TCP_ULP: i32 = 31;
const V6ONLY: &str = "IPV6_V6ONLY";

fn applies(name: &str, level: i32, domain: i32, protocol: i32, connected: bool) -> bool {
    // A connected socket may say 1 because bind(2) set it, and it can be set no more.
    if protocol == libc::IPPROTO_TCP && (name.contains("MULTICAST") || connected && name == V6ONLY)
    {
        return false;
    }
    let inet = domain == libc::AF_INET || domain == libc::AF_INET6;
    match level {
        IP => inet,
        IP6 => domain == libc::AF_INET6,
        TCP => inet && protocol == libc::IPPROTO_TCP,
        UDP => inet && protocol == libc::IPPROTO_UDP,
        NETLINK => domain == libc::AF_NETLINK,
        _ => true,
    }
}

fn read(fd: BorrowedFd<'_>, level: i32, number: i32, form: Form) -> Result<OptionValue, Errno> {
    let words = |data: Vec<u8>, size: usize| -> Vec<i64> {
        data.chunks_exact(size)
            .map(|word| match *word {
                [a, b, c, d] => i64::from(i32::from_ne_bytes([a, b, c, d])),
                [a, b, c, d, e, f, g, h] => i64::from_ne_bytes([a, b, c, d, e, f, g, h]),
                _ => 0,
            })
            .collect()
    };
    Ok(match form {
        Int => OptionValue::Number(i64::from(socket::int_option(fd, level, number)?)),
        Ints(count) => {
            OptionValue::Numbers(words(socket::option(fd, level, number, &[], count * 4)?, 4))
        }
        Longs(count) => {
            OptionValue::Numbers(words(socket::option(fd, level, number, &[], count * 8)?, 8))
        }
        Text => {
            let text = socket::option(fd, level, number, &[], 16)?;
            let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
            OptionValue::Text(String::from_utf8_lossy(&text[..end]).into_owned())
        }
    })
}

fn write(
    fd: BorrowedFd<'_>,
    level: i32,
    number: i32,
    form: Form,
    value: &OptionValue,
) -> Result<(), Errno> {
    let bytes = match (form, value) {
        (Int, OptionValue::Number(n)) => int(*n)?.to_ne_bytes().to_vec(),
        (Ints(count), OptionValue::Numbers(all)) if all.len() == count => {
            let mut bytes = Vec::new();
            for n in all {
                bytes.extend(int(*n)?.to_ne_bytes());
            }
            bytes
        }
        (Longs(count), OptionValue::Numbers(all)) if all.len() == count => {
            all.iter().flat_map(|n| n.to_ne_bytes()).collect()
        }
        (Text, OptionValue::Text(text)) if text.len() < 16 => {
            let mut bytes = text.as_bytes().to_vec();
            bytes.push(0);
            bytes
        }
        _ => return Err(Errno::EINVAL),
    };
    socket::set_option(fd, level, number, &bytes)
}

fn int(number: i64) -> Result<i32, Errno> {
    i32::try_from(number).map_err(|_| Errno::ERANGE)
}

/// SO_DOMAIN, SO_TYPE, SO_PROTOCOL.
pub fn kind(fd: BorrowedFd<'_>) -> Result<(i32, i32, i32)> {
    let one = |number| {
        socket::int_option(fd, SOL, number).doing(|| "asking a socket for its family and type")
    };
    Ok((
        one(libc::SO_DOMAIN)?,
        one(libc::SO_TYPE)?,
        one(libc::SO_PROTOCOL)?,
    ))
}

/// Reads all options of a socket. `connected` is for TCP: some options then only report.
pub fn collect(
    fd: BorrowedFd<'_>,
    who: &str,
    connected: bool,
    refusals: &mut Refusals,
) -> Result<Options> {
    let (domain, _, protocol) = kind(fd)?;
    let mut options = Options::new();
    let more: &[_] = if protocol == libc::IPPROTO_TCP && !connected {
        BEFORE_CONNECTION
    } else {
        &[]
    };
    for &(name, level, number, form, _) in KNOWN.iter().chain(more) {
        if applies(name, level, domain, protocol, connected)
            && let Ok(value) = read(fd, level, number, form)
        {
            options.insert(name.to_owned(), value);
        }
    }
    for (name, number) in [
        ("SO_SNDBUF", libc::SO_SNDBUF),
        ("SO_RCVBUF", libc::SO_RCVBUF),
        ("SO_BUF_LOCK", SO_BUF_LOCK),
        ("SO_LOCK_FILTER", SO_LOCK_FILTER),
        ("SO_PEEK_OFF", SO_PEEK_OFF),
    ] {
        if let Ok(value) = socket::int_option(fd, SOL, number) {
            options.insert(name.to_owned(), OptionValue::Number(i64::from(value)));
        }
    }
    match socket::filter(fd) {
        Ok(program) if program.is_empty() => {}
        Ok(program) => {
            let words = program
                .chunks_exact(8)
                .map(|i| i64::from_ne_bytes([i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7]]))
                .collect();
            options.insert("SO_ATTACH_FILTER".to_owned(), OptionValue::Numbers(words));
        }
        Err(Errno::EACCES) => refusals.add(
            "E-SOCKET-BPF",
            who,
            "an eBPF program is attached to the socket, and the kernel does not give it out",
            "detach it before the checkpoint (SO_DETACH_FILTER), or use a classic filter",
        ),
        Err(errno) => return Err(errno).doing(|| "reading a socket filter"),
    }
    if protocol == libc::IPPROTO_TCP
        && let Ok(ulp) = socket::option(fd, TCP, TCP_ULP, &[], 16)
        && ulp.first().is_some_and(|&b| b != 0)
    {
        refusals.add(
            "E-TCP-ULP",
            who,
            format!(
                "an upper layer protocol ({}) works inside the kernel on this connection",
                String::from_utf8_lossy(&ulp).trim_end_matches('\0')
            ),
            "close the connection, or turn kernel TLS off in the program",
        );
    }
    Ok(options)
}

fn apply(fd: BorrowedFd<'_>, options: &Options, when: Option<When>) -> Result<()> {
    for &(name, level, number, form, stage) in KNOWN.iter().chain(BEFORE_CONNECTION) {
        let Some(value) = options.get(name) else {
            continue;
        };
        // V6ONLY cannot be changed after bind(2), which sets it by itself for some addresses.
        if when.is_some_and(|when| when != stage)
            || when.is_none() && name == V6ONLY
            || read(fd, level, number, form).as_ref() == Ok(value)
        {
            continue;
        }
        write(fd, level, number, form, value).doing(|| format!("setting {name} to {value:?}"))?;
    }
    Ok(())
}

/// Sets what must be set before bind(2), listen(2) and connect(2).
pub fn set_early(fd: BorrowedFd<'_>, options: &Options) -> Result<()> {
    apply(fd, options, Some(When::Early))
}

fn number(options: &Options, name: &str) -> Option<i32> {
    match options.get(name) {
        Some(OptionValue::Number(n)) => i32::try_from(*n).ok(),
        _ => None,
    }
}

/// Makes room in both buffers for queues that are about to be filled: at least as much as there was,
/// and `extra` bytes more.
pub fn roomy_buffers(fd: BorrowedFd<'_>, options: &Options, extra: usize) -> Result<()> {
    let extra = i32::try_from(extra)
        .unwrap_or(i32::MAX / 8)
        .min(i32::MAX / 8);
    for (name, get, force) in [
        ("SO_SNDBUF", libc::SO_SNDBUF, libc::SO_SNDBUFFORCE),
        ("SO_RCVBUF", libc::SO_RCVBUF, libc::SO_RCVBUFFORCE),
    ] {
        let now = socket::int_option(fd, SOL, get).doing(|| format!("reading {name}"))?;
        let wanted = number(options, name)
            .unwrap_or(0)
            .min(i32::MAX / 8)
            .max(now)
            .saturating_add(extra);
        if wanted > now {
            socket::set_int_option(fd, SOL, force, wanted / 2 + 1)
                .doing(|| format!("making room with {name}"))?;
        }
    }
    Ok(())
}

/// Sets both buffers to what they were. Where the program had not set them they stay what they grew to.
fn buffers(fd: BorrowedFd<'_>, options: &Options) -> Result<()> {
    for (name, get, force) in [
        ("SO_SNDBUF", libc::SO_SNDBUF, libc::SO_SNDBUFFORCE),
        ("SO_RCVBUF", libc::SO_RCVBUF, libc::SO_RCVBUFFORCE),
    ] {
        let Some(wanted) = number(options, name) else {
            continue;
        };
        if socket::int_option(fd, SOL, get) != Ok(wanted) {
            socket::set_int_option(fd, SOL, force, wanted / 2)
                .doing(|| format!("setting {name} to {wanted}"))?;
        }
    }
    if let Some(lock) = number(options, "SO_BUF_LOCK") {
        socket::set_int_option(fd, SOL, SO_BUF_LOCK, lock).doing(|| "setting SO_BUF_LOCK")?;
    }
    Ok(())
}

/// Sets everything else, once queues are full and connections made.
pub fn set_late(fd: BorrowedFd<'_>, options: &Options) -> Result<()> {
    apply(fd, options, None)?;
    buffers(fd, options)?;
    match options.get("SO_ATTACH_FILTER") {
        Some(OptionValue::Numbers(words)) => {
            let program: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            socket::attach_filter(fd, &program).doing(|| "attaching a socket filter")?;
        }
        Some(_) => {
            return Err(Error::coded(
                "E-IMAGE-SOCKET",
                Exit::Image,
                "SO_ATTACH_FILTER is no list of instructions",
                "",
            ));
        }
        None => {}
    }
    for (name, option, unset) in [
        ("SO_LOCK_FILTER", SO_LOCK_FILTER, 0),
        ("SO_PEEK_OFF", SO_PEEK_OFF, -1),
    ] {
        if let Some(value) = number(options, name)
            && value != unset
        {
            socket::set_int_option(fd, SOL, option, value)
                .doing(|| format!("setting {name} to {value}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn every_kind() -> Vec<(i32, i32, i32)> {
        let mut all = vec![(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)];
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            all.push((libc::AF_UNIX, kind, 0));
        }
        for domain in [libc::AF_INET, libc::AF_INET6] {
            all.push((domain, libc::SOCK_STREAM, libc::IPPROTO_TCP));
            all.push((domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP));
        }
        all
    }

    #[test]
    fn options_of_a_fresh_socket_come_back_on_every_kind_of_socket() {
        for (domain, kind, protocol) in every_kind() {
            let make = || socket::socket(domain, kind, protocol).unwrap();
            let (one, two) = (make(), make());
            let mut refusals = Refusals::new();
            let options = collect(one.as_fd(), "", false, &mut refusals).unwrap();
            set_early(two.as_fd(), &options).unwrap();
            set_late(two.as_fd(), &options).unwrap();
            let again = collect(two.as_fd(), "", false, &mut refusals).unwrap();
            assert_eq!(options, again);
            refusals.into_result().unwrap();
        }
    }

    #[test]
    fn options_that_were_changed_come_back() {
        let make = || socket::socket(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP).unwrap();
        let (one, two) = (make(), make());
        for (level, option, value) in [
            (SOL, libc::SO_KEEPALIVE, 1),
            (SOL, libc::SO_PRIORITY, 3),
            (SOL, libc::SO_SNDBUF, 10_000),
            (SOL, libc::SO_TIMESTAMPNS, 1),
            (SOL, libc::SO_RCVLOWAT, 7),
            (IP6, libc::IPV6_V6ONLY, 1),
            (IP6, libc::IPV6_TCLASS, 8),
            (IP, libc::IP_TTL, 9),
            (TCP, libc::TCP_NODELAY, 1),
            (TCP, libc::TCP_KEEPIDLE, 77),
            (TCP, libc::TCP_USER_TIMEOUT, 5000),
            (TCP, libc::TCP_MAXSEG, 900),
            (TCP, libc::TCP_DEFER_ACCEPT, 3),
        ] {
            socket::set_int_option(&one, level, option, value).unwrap();
        }
        let linger: Vec<u8> = [1i32, 5].iter().flat_map(|n| n.to_ne_bytes()).collect();
        socket::set_option(&one, SOL, libc::SO_LINGER, &linger).unwrap();
        let timeout: Vec<u8> = [3i64, 500_000]
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .collect();
        socket::set_option(&one, SOL, libc::SO_RCVTIMEO, &timeout).unwrap();
        socket::set_option(&one, SOL, libc::SO_BINDTODEVICE, b"lo\0").unwrap();
        socket::attach_filter(&one, &[6, 0, 0, 0, 0xff, 0xff, 0, 0]).unwrap();
        let mut refusals = Refusals::new();
        let options = collect(one.as_fd(), "", false, &mut refusals).unwrap();
        let expected = OptionValue::Numbers(vec![3, 500_000]);
        assert_eq!(options["SO_RCVTIMEO"], expected);
        set_early(two.as_fd(), &options).unwrap();
        roomy_buffers(two.as_fd(), &options, 1 << 20).unwrap();
        set_late(two.as_fd(), &options).unwrap();
        let again = collect(two.as_fd(), "", false, &mut refusals).unwrap();
        assert_eq!(options, again);
        refusals.into_result().unwrap();
    }
}
