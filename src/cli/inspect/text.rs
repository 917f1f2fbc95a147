//! The view for a person.

use super::view::{Part, ProcessView, View, printable};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Result, Write};

/// Of a longer list the rest is counted.
const LONGEST: usize = 200;
/// Deeper branches of a tree are drawn no deeper.
const DEEPEST: usize = 30;

/// Prints everything.
pub fn print(view: &View, out: &mut dyn Write) -> Result<()> {
    head(view, out)?;
    sizes(view, out)?;
    tree(&view.processes, out)?;
    namespaces(view, out)?;
    for process in &view.processes {
        if process.state != "zombie" {
            details(process, out)?;
        }
    }
    shared(view, out)
}

/// `1.5 MiB`; whole bytes below one KiB.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64 / 1024.0;
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    for unit in UNITS {
        // What would be rounded to 1024.0 has the next unit.
        if value < 1023.95 {
            return format!("{value:.1} {unit}");
        }
        value /= 1024.0;
    }
    format!("{:.1} EiB", value * 1024.0)
}

/// Seconds since 1970 as `2026-11-27 06:24:01 UTC`.
fn date(seconds: u64) -> String {
    let days = seconds / 86400;
    if days > 2_932_896 {
        return format!("{seconds} s after 1970");
    }
    // Years that begin in March, in cycles of 400.
    let shifted = days + 719_468;
    let (cycle, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = cycle * 400 + year + u64::from(month <= 2);
    let rest = seconds % 86400;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

fn head(view: &View, out: &mut dyn Write) -> Result<()> {
    let header = &view.header;
    let container = &header.container;
    let mut name = match container.id.as_str() {
        "" => "a process without a runtime".to_owned(),
        id => printable(id),
    };
    for more in [&container.name, &container.runtime].into_iter().flatten() {
        name.push_str(&format!(" ({})", printable(more)));
    }
    let host = &header.host;
    let pages = host.page_size / 1024;
    writeln!(out, "Container   {name}")?;
    writeln!(
        out,
        "Image       format {}, {}, {}",
        header.format,
        printable(&header.engine),
        header.compression
    )?;
    writeln!(out, "Taken       {}", date(header.created))?;
    writeln!(
        out,
        "Host        Linux {}, {}, pages of {pages} KiB",
        printable(&host.kernel),
        printable(&host.architecture)
    )?;
    if !host.cpu_model.is_empty() {
        writeln!(out, "Processor   {}", printable(&host.cpu_model))?;
    }
    for (number, requirement) in header.requires.iter().enumerate() {
        let title = if number == 0 { "Requires" } else { "" };
        let (what, who) = (&requirement.name, &requirement.needed_by);
        writeln!(out, "{title:11} {} for {}", printable(what), printable(who))?;
    }
    Ok(())
}

fn sizes(view: &View, out: &mut dyn Write) -> Result<()> {
    let sizes = &view.sizes;
    writeln!(out, "\nSizes")?;
    let mut line = |name: &str, part: Part, more: String| {
        let members = match part.members {
            0 => return Ok(()),
            1 => "1 member".to_owned(),
            members => format!("{members} members"),
        };
        writeln!(out, "  {name:16}{:>10}  {members}{more}", human(part.bytes))
    };
    let pages = match sizes.pages {
        0 => String::new(),
        pages => format!(", {} of memory", human(pages)),
    };
    line("memory", sizes.memory, pages)?;
    line("root file system", sizes.rootfs, String::new())?;
    line("contents", sizes.contents, String::new())?;
    line("records", sizes.records, String::new())?;
    writeln!(out, "  {:16}{:>10}", "image", human(sizes.image))
}

/// Children below their parents, siblings by number. Each line: what leads to it, and the process.
fn branches(processes: &[ProcessView]) -> Vec<(String, &ProcessView)> {
    let known: BTreeSet<i32> = processes.iter().map(|process| process.pid).collect();
    let mut children: BTreeMap<i32, Vec<&ProcessView>> = BTreeMap::new();
    for process in processes {
        let parent = Some(process.ppid).filter(|ppid| known.contains(ppid));
        children
            .entry(parent.unwrap_or(0))
            .or_default()
            .push(process);
    }
    let mut lines = Vec::new();
    let mut seen = BTreeSet::new();
    // What is its own ancestor is in no tree, but it is there.
    let roots = children.remove(&0).unwrap_or_default();
    for root in roots.into_iter().chain(processes) {
        let mut waiting = vec![(root, Vec::<bool>::new())];
        while let Some((process, lasts)) = waiting.pop() {
            if !seen.insert(process.pid) {
                continue;
            }
            let below = children.remove(&process.pid).unwrap_or_default();
            for (number, child) in below.iter().enumerate().rev() {
                let mut lasts = lasts.clone();
                lasts.truncate(DEEPEST);
                lasts.push(number + 1 == below.len());
                waiting.push((child, lasts));
            }
            let mut lead = String::new();
            if let Some((last, before)) = lasts.split_last() {
                for last in before {
                    lead.push_str(if *last { "   " } else { "│  " });
                }
                lead.push_str(if *last { "└─ " } else { "├─ " });
            }
            lines.push((lead, process));
        }
    }
    lines
}

fn tree(processes: &[ProcessView], out: &mut dyn Write) -> Result<()> {
    writeln!(out, "\nProcesses ({})", processes.len())?;
    if processes.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "  {:>7} {:>6} {:>7} {:>5} {:>7} {:>10} {:>10}  COMMAND",
        "PID", "UID", "THREADS", "FDS", "REGIONS", "SIZE", "STORED"
    )?;
    for (lead, process) in branches(processes) {
        let pid = process.pid;
        if process.state == "zombie" {
            let end = of_status(process.status.unwrap_or(0));
            let name = &process.name;
            writeln!(
                out,
                "  {pid:>7} {:>6} {:>7} {:>5} {:>7} {:>10} {:>10}  {lead}{name} (zombie, {end})",
                "-", "-", "-", "-", "-", "-"
            )?;
            continue;
        }
        let stopped = if process.state == "stopped" {
            " (stopped)"
        } else {
            ""
        };
        writeln!(
            out,
            "  {pid:>7} {:>6} {:>7} {:>5} {:>7} {:>10} {:>10}  {lead}{}{stopped}",
            process.uid.unwrap_or(0),
            process.threads.len(),
            process.descriptors.len(),
            process.regions.len(),
            human(process.memory.size),
            human(process.memory.stored),
            command(process, 60)
        )?;
    }
    Ok(())
}

fn of_status(status: i32) -> String {
    match status & 0x7f {
        0 => format!("exit code {}", status >> 8 & 0xff),
        signal => format!("killed by signal {signal}"),
    }
}

/// The command line, or the name in brackets; cut to a number of characters.
fn command(process: &ProcessView, most: usize) -> String {
    if process.command.is_empty() {
        return format!("[{}]", process.name);
    }
    let words: Vec<_> = process
        .command
        .iter()
        .map(|word| match word.as_str() {
            "" => "''".to_owned(),
            word => printable(word),
        })
        .collect();
    let line = words.join(" ");
    if line.chars().count() <= most {
        return line;
    }
    line.chars().take(most - 1).chain(['…']).collect()
}

fn namespaces(view: &View, out: &mut dyn Write) -> Result<()> {
    if view.namespaces.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nNamespaces")?;
    for namespace in &view.namespaces {
        let kind = printable(&namespace.kind);
        let bare = match namespace.host {
            true => "of the host",
            false => "own",
        };
        let bare = [bare.to_owned()];
        let lines = match namespace.about.as_slice() {
            [] => &bare[..],
            lines => lines,
        };
        for (number, line) in lines.iter().enumerate() {
            let title = if number == 0 { kind.as_str() } else { "" };
            let of_host = match namespace.host && !namespace.about.is_empty() {
                true => "of the host; ",
                false => "",
            };
            writeln!(out, "  {title:6} {of_host}{}", printable(line))?;
        }
    }
    Ok(())
}

fn details(process: &ProcessView, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "\nProcess {} ({})", process.pid, process.name)?;
    if !process.command.is_empty() {
        writeln!(out, "  command    {}", command(process, 400))?;
    }
    for (title, path) in [
        ("program", &process.program),
        ("directory", &process.directory),
    ] {
        if let Some(path) = path {
            writeln!(out, "  {title:10} {path}")?;
        }
    }
    if let (Some(uid), Some(gid)) = (process.uid, process.gid) {
        writeln!(
            out,
            "  identity   user {uid}, group {gid}; session {}, process group {}",
            process.sid, process.pgid
        )?;
    }
    if process.threads.len() > 1 {
        let threads = process.threads.iter().take(LONGEST);
        let threads: Vec<_> = threads
            .map(|thread| format!("{} {}", thread.tid, thread.name))
            .collect();
        let rest = process.threads.len() - threads.len();
        let rest = if rest > 0 {
            format!(" and {rest} more")
        } else {
            String::new()
        };
        writeln!(out, "  threads    {}{rest}", threads.join(", "))?;
    }
    regions(process, out)?;
    descriptors(process, out)
}

fn regions(process: &ProcessView, out: &mut dyn Write) -> Result<()> {
    if process.regions.is_empty() {
        return Ok(());
    }
    let shown = process.regions.iter().take(LONGEST);
    let addresses = |start: &str, end: &str| format!("{start}-{end}");
    let width = shown
        .clone()
        .map(|region| region.start.len() + region.end.len() + 1)
        .fold(7, usize::max);
    writeln!(
        out,
        "\n  {:width$}  PERM {:>10} {:>10}  WHAT",
        "REGIONS", "SIZE", "STORED"
    )?;
    for region in shown {
        let mut what = match (region.kind, region.name.as_str()) {
            ("file", name) => name.to_owned(),
            ("anonymous", "") => String::new(),
            (kind, "") => format!("[{kind}]"),
            (kind, name) => format!("[{kind}] {name}"),
        };
        if !region.attributes.is_empty() {
            let attributes = printable(&region.attributes.join(", "));
            let space = if what.is_empty() { "" } else { " " };
            what.push_str(&format!("{space}({attributes})"));
        }
        let stored = match region.amount.stored {
            0 => "-".to_owned(),
            stored => human(stored),
        };
        let line = format!(
            "  {:width$}  {:4} {:>10} {stored:>10}  {what}",
            addresses(&region.start, &region.end),
            printable(&region.perms),
            human(region.amount.size),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    let rest = process.regions.get(LONGEST..).unwrap_or_default();
    if !rest.is_empty() {
        let sum =
            |amounts: &mut dyn Iterator<Item = u64>| human(amounts.fold(0, u64::saturating_add));
        let size = sum(&mut rest.iter().map(|region| region.amount.size));
        let stored = sum(&mut rest.iter().map(|region| region.amount.stored));
        let more = format!("{} more (--json)", rest.len());
        writeln!(out, "  {more:width$}       {size:>10} {stored:>10}")?;
    }
    Ok(())
}

fn descriptors(process: &ProcessView, out: &mut dyn Write) -> Result<()> {
    if process.descriptors.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n  {:>5}  KIND       WHAT", "FD")?;
    for line in process.descriptors.iter().take(LONGEST) {
        let access = line.flags.iter().find_map(|flag| match flag.as_str() {
            "O_RDONLY" => Some("r"),
            "O_WRONLY" => Some("w"),
            "O_RDWR" => Some("rw"),
            _ => None,
        });
        let about = printable(&line.about);
        let offset = match line.offset {
            Some(offset) => format!(", at {offset}"),
            None => String::new(),
        };
        let access = match (line.kind, access) {
            ("file" | "pipe" | "fifo" | "device" | "memfd", Some(access)) => {
                format!(" ({access}{offset})")
            }
            _ => String::new(),
        };
        writeln!(out, "  {:>5}  {:10} {about}{access}", line.fd, line.kind)?;
    }
    match process.descriptors.len().saturating_sub(LONGEST) {
        0 => Ok(()),
        rest => writeln!(out, "  {:>5}  {rest} more (--json)", ""),
    }
}

fn shared(view: &View, out: &mut dyn Write) -> Result<()> {
    if view.shared_memory.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nShared memory")?;
    for memory in &view.shared_memory {
        let pids: Vec<_> = memory.processes.iter().map(i32::to_string).collect();
        let who = match pids.len() {
            0 => "mapped by nobody".to_owned(),
            _ => format!("mapped by {}", pids.join(", ")),
        };
        let name = match memory.name.as_str() {
            "" => memory.object.clone(),
            name => format!("[memfd] {name}"),
        };
        writeln!(
            out,
            "  {:>10} {:>10}  {name}, {who}",
            human(memory.amount.size),
            human(memory.amount.stored)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_reads_best() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_700_000_000, "2023-11-14 22:13:20 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59:59 UTC"),
            (u64::MAX, "18446744073709551615 s after 1970"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn the_end_of_a_zombie_is_told_in_words() {
        assert_eq!(of_status(0x300), "exit code 3");
        assert_eq!(of_status(9), "killed by signal 9");
        assert_eq!(of_status(0x8b), "killed by signal 11");
    }
}
