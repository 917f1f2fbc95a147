//! The packet filter, nf_tables, by way of `nft`, which knows its own text best.

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::sys;
use crate::sys::netlink::{Message, NETLINK_NETFILTER, Netlink};
use crate::sys::ns::{Kind, fresh};
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

/// The ruleset of the calling thread's namespace as `nft` writes it; empty where there is none.
pub(super) fn capture(refusals: &mut Refusals) -> Result<String> {
    if tables()? == 0 {
        return Ok(String::new());
    }
    let mut refuse = |code, reason: String| {
        refusals.add(
            code,
            "the packet filter of the net namespace",
            reason,
            "empty it (nft flush ruleset), or say that the network namespace is external",
        );
        Ok(String::new())
    };
    let text = match list() {
        Ok(text) => text,
        Err(error) => return refuse("E-NFT", format!("it cannot be read: {error}")),
    };
    // Rules of iptables-nft are more than nft can write; and what depends on an owner or on links
    // that are made later does not stand alone either.
    let scratch = fresh(Kind::Net)?;
    let again = sys::ns::inside(&[scratch.as_fd()], || {
        rebuild(&text)?;
        list()
    });
    match again {
        Ok(again) if timeless(&again) == timeless(&text) => {}
        Ok(_) => return refuse("E-NFT", "nft does not read back what it writes".to_owned()),
        Err(error) => return refuse("E-NFT", format!("nft does not read its own text: {error}")),
    }
    let tracked = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    if text.contains("type nat hook") && tracked.is_ok_and(|count| count.trim() != "0") {
        refuse(
            "E-CONNTRACK",
            "connections are being translated (nat), and that state is not supported".to_owned(),
        )?;
    }
    Ok(text)
}

/// Loads such a ruleset into the calling thread's namespace.
pub(super) fn rebuild(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    nft(&["-f", "-"], text)
        .doing(|| "loading the packet filter's rules")
        .map(drop)
}

/// The text without the time that elements of sets have left.
pub(super) fn timeless(text: &str) -> String {
    let mut words = text.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if word == "expires" {
            // `expires 10799s }`, `expires 10799s,\n…`
            let time = words.next().unwrap_or_default();
            kept.push(time.trim_start_matches(|c: char| c.is_ascii_alphanumeric()));
        }
    }
    kept.join(" ")
}

fn list() -> Result<String> {
    nft(&["-nn", "list", "ruleset"], "")
}

/// The number of tables.
fn tables() -> Result<usize> {
    const NFT_MSG_GETTABLE: u16 = (10 << 8) | 1;
    let request = Message {
        kind: NFT_MSG_GETTABLE,
        header: vec![0; 4],
        attributes: Vec::new(),
    };
    let found = Netlink::open(NETLINK_NETFILTER).and_then(|mut netlink| netlink.dump(&request));
    match found {
        Ok(found) => Ok(found.len()),
        // A kernel without nf_tables.
        Err(error) if error.errno() == Some(nix::errno::Errno::EPROTONOSUPPORT) => Ok(0),
        Err(error) if error.errno() == Some(nix::errno::Errno::EINVAL) => Ok(0),
        Err(error) => Err(error).doing(|| "listing nf_tables"),
    }
}

/// A child starts in the namespaces of the thread that starts it.
fn nft(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| "starting nft")?;
    // nft reads everything before it writes anything.
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .doing(|| "writing to nft")?;
    }
    let output = child.wait_with_output().doing(|| "waiting for nft")?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::coded("E-NFT", Exit::Host, reason, ""));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
