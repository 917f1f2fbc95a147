//! Packets of connections whose owner is away.
//!
//! Between a checkpoint that ends the container and the restore, its connections have no socket: the
//! kernel would answer the other side's next packet with a reset. In a network namespace that
//! outlives the container a table of our own drops such packets; the other side sends them again. The
//! table's name says which connections it is about, so that a restore finds it without being told.

use crate::error::{Context, Error, Exit, Result};
use crate::sys::guard::{Guard, Undo};
use crate::sys::ns;
use std::ffi::CString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

/// The ends of a connection: local, remote.
pub type Ends = (SocketAddr, SocketAddr);

/// Packets are held back until this is dropped, or [stays](Self::stay).
pub struct Hold {
    namespace: OwnedFd,
    connections: Vec<Ends>,
    guard: Option<Guard>,
}

impl Hold {
    /// The owner is gone: the packets are held back until the restore.
    pub fn stay(mut self) -> Result<()> {
        match self.guard.take() {
            Some(guard) => guard.end(),
            None => Ok(()),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Not after `stay`, which took it.
        if let Some(guard) = self.guard.take() {
            if let Err(error) = release(self.namespace.as_fd(), &self.connections) {
                tracing::warn!("{error}");
            }
            if let Err(error) = guard.end() {
                tracing::warn!("{error}");
            }
        }
    }
}

/// Holds back packets of these connections in a network namespace. Should this process die before
/// [`Hold::stay`], a guard lets them through again.
pub fn hold(namespace: BorrowedFd<'_>, connections: &[Ends]) -> Result<Hold> {
    let name = table(connections);
    let doing = || format!("holding back packets by the table {name}");
    let nft = find_nft().doing(doing)?;
    let guard = ns::inside(&[namespace], || {
        // The guard is born in this namespace, and so is what it runs.
        let undo = Undo::Run {
            program: text(&nft)?,
            arguments: ["nft", "delete", "table", "inet", &name]
                .into_iter()
                .map(text)
                .collect::<Result<_>>()?,
        };
        let guard = Guard::start(vec![undo])?;
        run_nft(&nft, &rules(&name, connections))?;
        Ok(guard)
    })
    .doing(doing)?;
    tracing::info!(
        "packets of {} connections are held back by the table inet {name}",
        connections.len()
    );
    Ok(Hold {
        namespace: namespace.try_clone_to_owned()?,
        connections: connections.to_vec(),
        guard: Some(guard),
    })
}

/// Lets packets of these connections through, where they are held back.
pub fn release(namespace: BorrowedFd<'_>, connections: &[Ends]) -> Result<()> {
    let name = table(connections);
    ns::inside(&[namespace], || {
        let nft = match find_nft() {
            Ok(nft) => nft,
            // Then nothing can have been held back on this host.
            Err(_) => return Ok(()),
        };
        // Adding what is there changes nothing; deleting what is not there would fail.
        run_nft(
            &nft,
            &format!("add table inet {name}\ndelete table inet {name}\n"),
        )
    })
    .doing(|| format!("letting packets through that the table {name} may hold back"))
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::bug("a NUL in a table's name"))
}

/// The name of the table for these connections, in whatever order.
fn table(connections: &[Ends]) -> String {
    let mut lines: Vec<String> = connections
        .iter()
        .map(|(local, remote)| format!("{local} {remote}"))
        .collect();
    lines.sort();
    let digest = blake3::hash(lines.join("\n").as_bytes()).to_hex();
    format!("ocimig-{}", &digest.as_str()[..16])
}

fn rules(name: &str, connections: &[Ends]) -> String {
    let mut text = String::new();
    let (mut incoming, mut outgoing) = (String::new(), String::new());
    for (local, remote) in connections {
        let (family, here, there) = match (plain(local.ip()), plain(remote.ip())) {
            (IpAddr::V4(here), IpAddr::V4(there)) => ("ip", here.to_string(), there.to_string()),
            (here, there) => ("ip6", here.to_string(), there.to_string()),
        };
        let (near, far) = (local.port(), remote.port());
        // Writing to a string does not fail.
        let written = writeln!(
            incoming,
            "    {family} saddr {there} {family} daddr {here} tcp sport {far} tcp dport {near} drop"
        )
        .and(writeln!(
            outgoing,
            "    {family} saddr {here} {family} daddr {there} tcp sport {near} tcp dport {far} drop"
        ))
        .and(Ok(()));
        debug_assert!(written.is_ok());
    }
    for (hook, rules) in [("input", incoming), ("output", outgoing)] {
        text.push_str(&format!(
            "  chain {hook} {{\n    type filter hook {hook} priority -400; policy accept;\n{rules}  }}\n"
        ));
    }
    format!("table inet {name} {{\n{text}}}\n")
}

fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

fn find_nft() -> Result<String> {
    [
        "/usr/sbin/nft",
        "/sbin/nft",
        "/usr/local/sbin/nft",
        "/usr/bin/nft",
    ]
    .into_iter()
    .find(|path| std::fs::exists(path).unwrap_or(false))
    .map(str::to_owned)
    .ok_or_else(|| {
        Error::coded(
            "E-NFT",
            Exit::Host,
            "there is no nft here, and the other side of a connection would be reset",
            "install nftables, or hold packets back yourself and say --network-lock skip",
        )
    })
}

fn run_nft(nft: &str, script: &str) -> Result<()> {
    let mut child = Command::new(nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| format!("starting {nft}"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::coded(
        "E-NFT",
        Exit::Host,
        format!("nft ended with {}: {why}", output.status),
        "see whether this host's kernel has nf_tables",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::namespaces::net::lo_up;
    use crate::sys::ns::{Kind, fresh_with};
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    /// A connection in a namespace of its own, and whether something sent on it arrives.
    struct Pair {
        namespace: OwnedFd,
        near: TcpStream,
        far: TcpStream,
    }

    impl Pair {
        fn new() -> Self {
            let namespace = fresh_with(Kind::Net, lo_up).unwrap();
            let (near, far) = ns::inside(&[namespace.as_fd()], || {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let near = TcpStream::connect(listener.local_addr()?)?;
                Ok((near, listener.accept()?.0))
            })
            .unwrap();
            Self {
                namespace,
                near,
                far,
            }
        }

        fn ends(&self) -> Vec<Ends> {
            vec![(
                self.near.local_addr().unwrap(),
                self.near.peer_addr().unwrap(),
            )]
        }

        fn arrives(&mut self) -> bool {
            self.far.write_all(b"x").unwrap();
            let patience = Some(Duration::from_millis(300));
            self.near.set_read_timeout(patience).unwrap();
            self.near.read(&mut [0]).is_ok()
        }
    }

    #[test]
    fn packets_are_held_back_until_they_are_let_through() {
        let mut pair = Pair::new();
        assert!(pair.arrives());
        let held = hold(pair.namespace.as_fd(), &pair.ends()).unwrap();
        assert!(!pair.arrives());
        held.stay().unwrap();
        assert!(!pair.arrives());
        release(pair.namespace.as_fd(), &pair.ends()).unwrap();
        // What was held back is sent again.
        let patience = Some(Duration::from_secs(20));
        pair.near.set_read_timeout(patience).unwrap();
        pair.near.read_exact(&mut [0; 2]).unwrap();
        // Once more does no harm.
        release(pair.namespace.as_fd(), &pair.ends()).unwrap();
    }

    #[test]
    fn a_hold_that_does_not_stay_is_undone() {
        let mut pair = Pair::new();
        drop(hold(pair.namespace.as_fd(), &pair.ends()).unwrap());
        assert!(pair.arrives());
    }

    #[test]
    fn the_name_depends_on_the_connections_and_not_on_their_order() {
        let one: Ends = (
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:2".parse().unwrap(),
        );
        let other: Ends = ("[::1]:1".parse().unwrap(), "[::1]:2".parse().unwrap());
        assert_eq!(table(&[one, other]), table(&[other, one]));
        assert_ne!(table(&[one]), table(&[other]));
        let mapped: Ends = (
            "[::ffff:10.0.0.1]:1".parse().unwrap(),
            "[::ffff:10.0.0.2]:2".parse().unwrap(),
        );
        let text = rules("t", &[one, other, mapped]);
        assert!(
            text.contains("ip saddr 10.0.0.2 ip daddr 10.0.0.1"),
            "{text}"
        );
        assert!(text.contains("ip6 saddr ::1"), "{text}");
    }
}
