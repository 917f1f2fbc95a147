//! Nothing but the program itself, and a good deal of everything.

use super::{Check, SetUp, ensure, fds, memory, processor, signals, sleep, sockets, threads, tree};
use std::error::Error;

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[("idle", idle), ("mixed", mixed)];

fn idle() -> Result<Check, Box<dyn Error>> {
    let pid = std::process::id();
    Ok(Box::new(move |_| {
        ensure!(std::process::id() == pid, "another pid");
        Ok(())
    }))
}

/// Something of most kinds in one program, quickly checked.
fn mixed() -> Result<Check, Box<dyn Error>> {
    // Those that fork come first, while there is a single thread.
    let mut all = [
        "tree_children",
        "socket_tcp",
        "signal_pending",
        "memory_private",
        "fd_pipes",
        "socket_pairs",
        "thread_locals",
        "sleep_short",
        "processor_vectors",
    ]
    .into_iter()
    .map(|name| {
        let known = [
            tree::KINDS,
            sockets::KINDS,
            signals::KINDS,
            memory::KINDS,
            fds::KINDS,
            threads::KINDS,
            sleep::KINDS,
            processor::KINDS,
        ];
        let kind = known.into_iter().flatten().find(|kind| kind.0 == name);
        let (_, set_up) = kind.ok_or_else(|| format!("there is no kind {name}"))?;
        Ok((name, set_up()?))
    })
    .collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    Ok(Box::new(move |gap| {
        for (name, check) in &mut all {
            check(gap).map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(())
    }))
}
