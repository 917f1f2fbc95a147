//! What /proc shows of a process's descriptors.

use super::{Scribe, split_link};
use crate::harness::tools::read;
use std::collections::BTreeMap;
use std::fs;

/// Writes down every descriptor of the process at `proc`.
pub fn write(scribe: &mut Scribe, at: &str, proc: &str) {
    let mut fds: BTreeMap<u32, String> = BTreeMap::new();
    for entry in fs::read_dir(format!("{proc}/fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let number = entry.file_name().to_string_lossy().parse();
        let target = fs::read_link(entry.path());
        if let (Ok(number), Ok(target)) = (number, target) {
            fds.insert(number, target.to_string_lossy().into_owned());
        }
    }
    for (number, target) in fds {
        let at = format!("{at} fd {number}");
        let target = match split_link(&target) {
            Some(("anon_inode", _)) | None => target.clone(),
            Some((kind, inode)) => scribe.name(kind, inode),
        };
        let from_outside = number <= 2;
        scribe.put(format!("{at} is"), target);
        let info = read(format!("{proc}/fdinfo/{number}")).unwrap_or_default();
        for (place, line) in info.lines().enumerate() {
            write_info(scribe, &at, place, line, from_outside);
        }
    }
}

fn write_info(scribe: &mut Scribe, at: &str, place: usize, line: &str, from_outside: bool) {
    if line.starts_with("inotify ") {
        let words = line
            .split(' ')
            .filter(|word| !word.contains("ino:") && !word.contains("sdev:"));
        let words =
            words.filter(|word| !word.starts_with("fhandle") && !word.starts_with("f_handle"));
        scribe.put(
            format!("{at} line {place}"),
            words.collect::<Vec<_>>().join(" "),
        );
        return;
    }
    let Some((field, value)) = line.split_once(':') else {
        scribe.put(format!("{at} line {place}"), line);
        return;
    };
    let value = value.trim();
    match field {
        // Numbers of this boot, or what goes on by itself.
        "mnt_id" | "ino" | "eventfd-id" | "it_value" | "ticks" => {}
        // Of what the caller hands over only the kind is the container's.
        "flags" | "pos" if from_outside => {}
        // O_LARGEFILE means nothing where every file is large.
        "flags" => {
            let mut flags = u32::from_str_radix(value, 8).unwrap_or(0) & !0o100_000;
            // How a file without a name was made shows, and means nothing afterwards.
            if flags & 0o20_000_000 != 0 {
                flags &= !0o20_200_000;
            }
            scribe.put(format!("{at} flags"), format!("{flags:o}"));
        }
        "tfd" => {
            let mut words = value.split_whitespace();
            let target = words.next().unwrap_or_default();
            let rest: Vec<&str> = words.collect();
            let kept = rest.join(" ");
            let kept = kept.split(" pos:").next().unwrap_or_default();
            scribe.put(format!("{at} tfd {target} {kept}"), "watched");
        }
        "lock" => {
            let words: Vec<&str> = value.split_whitespace().collect();
            let host_pid = words.get(4).and_then(|text| text.parse().ok()).unwrap_or(0);
            // One that belongs to the open file has no process, whoever took it.
            let pid = match words.get(1) {
                Some(&"POSIX") => scribe.pid(host_pid),
                _ => 0,
            };
            let kind = words.get(1..4).unwrap_or_default().join(" ");
            let range = words.get(6..).unwrap_or_default().join(" ");
            scribe.put(
                format!("{at} lock {place}"),
                format!("{kind} {pid} {range}"),
            );
        }
        "Pid" => {
            let pid = scribe.pid(value.parse().unwrap_or(0));
            scribe.put(format!("{at} Pid"), pid.to_string());
        }
        "NSpid" => {
            let inner = value.split_whitespace().next_back().unwrap_or_default();
            scribe.put(format!("{at} NSpid"), inner);
        }
        _ => scribe.put(format!("{at} {field}"), value),
    }
}
