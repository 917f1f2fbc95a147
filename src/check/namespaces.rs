//! Namespaces and what is in them: mounts, the network, System V objects.

use super::ground::{Ground, Outcome};
use super::{Question, needed, useful};
use crate::error::{Error, Result};
use crate::sys::mount::{self, Configuration, Propagation};
use crate::sys::netlink::{Message, NETLINK_NETFILTER, Netlink};
use crate::sys::ns::{self, Kind};
use crate::sys::{scratch, sock_diag, socket, sysv, tcp_repair};
use std::os::fd::AsFd;

pub(super) const QUESTIONS: &[Question] = &[
    needed(
        "namespace-pid",
        |_| Outcome::of(ns::inside(&[], || ns::unshare_own(Kind::Pid))),
        "no container can be made",
        KERNEL,
    ),
    needed(
        "namespace-mnt",
        |_| make(Kind::Mnt),
        "no container can be made",
        KERNEL,
    ),
    needed(
        "namespace-time",
        |_| make(Kind::Time),
        "the monotonic clock of a container would jump",
        "use Linux 5.6 or later with CONFIG_TIME_NS, and CAP_SYS_ADMIN",
    ),
    useful(
        "namespace-net",
        |_| make(Kind::Net),
        "a container with a network of its own cannot be restored",
        KERNEL,
    ),
    useful(
        "namespace-uts",
        |_| make(Kind::Uts),
        "a container with a host name of its own cannot be restored",
        KERNEL,
    ),
    useful(
        "namespace-ipc",
        |_| make(Kind::Ipc),
        "a container with System V IPC of its own cannot be restored",
        KERNEL,
    ),
    useful(
        "namespace-cgroup",
        |_| make(Kind::Cgroup),
        "a container with a cgroup namespace cannot be restored",
        KERNEL,
    ),
    needed(
        "mount-api",
        mounts,
        "the mounts of a container cannot be made",
        "use Linux 5.12 or later, with CAP_SYS_ADMIN",
    ),
    useful(
        "mount-groups",
        mount_groups,
        "mounts that propagate to each other cannot be made so again",
        "use Linux 6.15 or later",
    ),
    useful(
        "overlayfs",
        |_| Outcome::of(Configuration::new("overlay")),
        "a root file system that is kept as its upper layer cannot be put together",
        "load the module: modprobe overlay",
    ),
    needed(
        "sock-diag",
        |_| {
            let (inet, tcp) = (libc::AF_INET, libc::IPPROTO_TCP);
            Outcome::of(sock_diag::unix().and_then(|_| sock_diag::inet(inet, tcp)))
        },
        "sockets cannot be looked at",
        "use a kernel with CONFIG_UNIX_DIAG, CONFIG_INET_DIAG and CONFIG_INET_UDP_DIAG",
    ),
    useful(
        "tcp-repair",
        repair,
        "TCP connections cannot be kept, not even those inside a container",
        "use a kernel with CONFIG_CHECKPOINT_RESTORE, with CAP_NET_ADMIN",
    ),
    useful(
        "nftables",
        nftables,
        "rules inside a container are refused, and its TCP connections to the outside cannot be kept",
        "load the module: modprobe nf_tables",
    ),
    useful(
        "nft",
        nft,
        "rules inside a container are refused, and its TCP connections to the outside cannot be kept",
        "install the package nftables",
    ),
    useful(
        "ipc-next-id",
        next_id,
        "System V objects cannot come back under their old numbers",
        "use a kernel with CONFIG_CHECKPOINT_RESTORE",
    ),
    useful(
        "msg-copy",
        peek_message,
        "System V message queues cannot be read without emptying them",
        "use a kernel with CONFIG_CHECKPOINT_RESTORE",
    ),
];

const KERNEL: &str = "use a kernel with this kind of namespace, and CAP_SYS_ADMIN";

fn make(kind: Kind) -> Outcome {
    Outcome::of(ns::fresh(kind))
}

fn mounts(_: &Ground) -> Outcome {
    let tried = || -> Result<()> {
        let tmpfs = scratch::detached_tmpfs()?;
        mount::set_attributes(tmpfs.as_fd(), libc::MOUNT_ATTR_NOSUID)
    };
    Outcome::of(tried())
}

/// Two detached mounts of one file system become one group.
fn mount_groups(_: &Ground) -> Outcome {
    let tried = || -> Result<()> {
        let first = scratch::detached_tmpfs()?;
        let second = mount::clone_tree(first.as_fd())?;
        mount::set_propagation(first.as_fd(), Propagation::Shared, false)?;
        mount::join_group(first.as_fd(), second.as_fd())
    };
    Outcome::of(tried())
}

fn repair(_: &Ground) -> Outcome {
    let tried = || -> Result<()> {
        let tcp = socket::socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
        tcp_repair::begin(&tcp)?;
        Ok(tcp_repair::end(&tcp, false, 0)?)
    };
    Outcome::of(tried())
}

/// Lists the tables of a new namespace.
fn nftables(_: &Ground) -> Outcome {
    const NFT_MSG_GETTABLE: u16 = (10 << 8) | 1;
    let list = || -> Result<()> {
        let request = Message {
            kind: NFT_MSG_GETTABLE,
            header: vec![0; 4],
            attributes: Vec::new(),
        };
        Netlink::open(NETLINK_NETFILTER)?.dump(&request).map(drop)
    };
    Outcome::of(ns::fresh_with(Kind::Net, list))
}

fn nft(_: &Ground) -> Outcome {
    let output = std::process::Command::new("nft").arg("--version").output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Outcome::Ok(text.trim().to_owned())
        }
        Ok(output) => Outcome::Missing(format!("nft --version: {}", output.status)),
        Err(error) => Outcome::Missing(format!("running nft: {error}")),
    }
}

fn next_id(_: &Ground) -> Outcome {
    let files = ["shm_next_id", "sem_next_id", "msg_next_id"];
    let open = |name: &str| {
        std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/sys/kernel/{name}"))
            .map(drop)
    };
    Outcome::of(files.into_iter().try_for_each(open))
}

/// Looks at a message in a queue of a new namespace.
fn peek_message(_: &Ground) -> Outcome {
    let look = || -> Result<()> {
        let queue = sysv::new_queue(1, 0o600)?;
        sysv::send(queue, 1, b"?")?;
        match sysv::peek(queue, 0, 16)? {
            Some((1, text)) if text == b"?" => Ok(()),
            _ => Err(Error::from(nix::errno::Errno::ENOMSG)),
        }
    };
    Outcome::of(ns::fresh_with(Kind::Ipc, look))
}
