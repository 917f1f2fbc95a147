//! What the container's namespaces hold.

use super::Scribe;
use crate::harness::tools::{read, try_run};
use std::collections::BTreeMap;
use std::process::Command;

/// Writes down the contents of the namespaces of the first process.
pub fn write(scribe: &mut Scribe, host_pid: i32) {
    let asked = [
        (
            "hostname",
            "-u",
            "hostname; cat /proc/sys/kernel/domainname",
        ),
        ("addresses", "-n", "ip -o addr | sed 's/ valid_lft.*//'"),
        ("links", "-n", "ip -o link | sed 's/ qlen.*//'"),
        (
            "routes",
            "-n",
            "ip -o route show table all; ip -o -6 route show table all",
        ),
        ("rules", "-n", "ip rule; ip -6 rule"),
        ("nftables", "-n", "nft list ruleset"),
        ("sysctls", "-n", NET_SYSCTLS),
        ("tcp", "-n", "cat /proc/net/tcp /proc/net/tcp6"),
        ("udp", "-n", "cat /proc/net/udp /proc/net/udp6"),
        ("unix", "-n", "cat /proc/net/unix"),
        ("shm", "-i", "cat /proc/sysvipc/shm"),
        ("sem", "-i", "cat /proc/sysvipc/sem"),
        ("msg", "-i", "cat /proc/sysvipc/msg"),
        ("ipc sysctls", "-i", IPC_SYSCTLS),
    ];
    for (what, namespace, script) in asked {
        let mut command = Command::new("nsenter");
        command.arg("-t").arg(host_pid.to_string()).arg(namespace);
        let text = try_run(command.args(["--", "sh", "-c", script])).unwrap_or_else(|e| e);
        let mut lines: Vec<String> = match what {
            "tcp" => connections(&text),
            _ => text.lines().map(|line| lasting(what, line)).collect(),
        };
        lines.sort();
        scribe.put(format!("namespace {what}"), lines.join(" | "));
    }
}

const NET_SYSCTLS: &str = "cd /proc/sys/net && find . -type f ! -name flush ! -name stable_secret \
    ! -name nf_conntrack_count ! -path '*/route/*' | sort | xargs grep -Hs ''";
const IPC_SYSCTLS: &str =
    "cd /proc/sys && grep -Hs '' kernel/shm* kernel/msg* kernel/sem fs/mqueue/*";

/// TCP sockets with their states, and how much is under way in each direction: whether it still waits
/// with the sender is the kernel's affair. So is what has outlived its socket (state 06, TIME_WAIT).
fn connections(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut under_way: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, queues, _, _, uid, ..] = words[..] else {
            continue;
        };
        let Some((sent, received)) = queues.split_once(':') else {
            continue;
        };
        match state {
            "06" => {}
            // Of one that listens it is how many wait.
            "0A" => lines.push(format!("{local} listens {received} {uid}")),
            _ => {
                lines.push(format!("{local} {remote} {state} {uid}"));
                let bytes = |hex| u64::from_str_radix(hex, 16).unwrap_or(0);
                let (local, remote) = (local.to_owned(), remote.to_owned());
                let forth = under_way.entry((local.clone(), remote.clone()));
                *forth.or_default() += bytes(sent);
                *under_way.entry((remote, local)).or_default() += bytes(received);
            }
        }
    }
    for ((from, to), bytes) in under_way {
        lines.push(format!("{bytes} from {from} to {to}"));
    }
    lines
}

/// The columns of a line that last.
fn lasting(what: &str, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let columns: &[usize] = match what {
        // Addresses, state and queues; not the timers, the inode or kernel pointers.
        "udp" => &[1, 2, 3, 4, 7],
        // Flags, type, state, path; not the reference count or the inode.
        "unix" => &[3, 4, 5, 7],
        // Key, id, rights, size, attached, owners; not pids and times.
        "shm" => &[0, 1, 2, 3, 6, 7, 8, 9, 10],
        "sem" => &[0, 1, 2, 3, 4, 5, 6, 7],
        "msg" => &[0, 1, 2, 3, 4, 7, 8, 9, 10],
        _ => return line.to_owned(),
    };
    let kept = columns
        .iter()
        .filter_map(|column| words.get(*column).copied());
    kept.collect::<Vec<_>>().join(" ")
}

/// Writes down the mounts that the process at `proc` sees.
pub fn write_mounts(scribe: &mut Scribe, at: &str, proc: &str) {
    let text = read(format!("{proc}/mountinfo")).unwrap_or_default();
    let mut seen: Vec<String> = Vec::new();
    // Device and place of the root.
    let mut top: Option<(String, String)> = None;
    for line in text.lines() {
        let Some((mount, system)) = line.split_once(" - ") else {
            continue;
        };
        let fields: Vec<&str> = mount.split(' ').collect();
        let [_id, _parent, device, root, point, options, optional @ ..] = &fields[..] else {
            continue;
        };
        let system: Vec<&str> = system.splitn(3, ' ').collect();
        if *point == "/" {
            top = Some(((*device).to_owned(), root.trim_end_matches('/').to_owned()));
        }
        // The runtime or the engine chose what the root lies on, and so what is bound from it.
        let within = top
            .as_ref()
            .filter(|(root_device, _)| root_device == device)
            .and_then(|(_, above)| root.strip_prefix(above.as_str()));
        let (root, system) = match within {
            Some(below) => (
                format!("/{}", below.trim_start_matches('/')),
                "the root".into(),
            ),
            None => ((*root).to_owned(), system.join(" ")),
        };
        let mut sharing = String::new();
        for tag in optional {
            sharing.push_str(tag.split(':').next().unwrap_or_default());
        }
        let above = seen.iter().filter(|other| *other == point).count();
        seen.push((*point).to_owned());
        let nth = if above == 0 {
            String::new()
        } else {
            format!(" ({above} below)")
        };
        scribe.put(
            format!("{at} mount {point}{nth}"),
            format!("{root} {options} {sharing} {system}"),
        );
    }
}
