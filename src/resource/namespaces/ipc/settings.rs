//! Limits and switches of an ipc namespace.

use crate::error::{Context, Error, Exit, Result};
use std::collections::BTreeMap;
use std::fs;

const FORCED_REMOVAL: &str = "kernel/shm_rmid_forced";

/// Below /proc/sys, with the value that lets everything be made.
const SETTINGS: [(&str, &str); 13] = [
    ("kernel/shmmax", "18446744073692774399"),
    ("kernel/shmall", "18446744073692774399"),
    ("kernel/shmmni", "32768"),
    (FORCED_REMOVAL, "0"),
    ("kernel/msgmax", "2147483647"),
    ("kernel/msgmni", "32768"),
    ("kernel/msgmnb", "2147483647"),
    ("kernel/sem", "65536 2147483647 500 32768"),
    ("fs/mqueue/queues_max", "2147483647"),
    ("fs/mqueue/msg_max", "65536"),
    ("fs/mqueue/msgsize_max", "16777216"),
    ("fs/mqueue/msg_default", "10"),
    ("fs/mqueue/msgsize_default", "8192"),
];

/// All that this kernel has, of the calling thread's namespace.
pub(super) fn read() -> BTreeMap<String, String> {
    SETTINGS
        .iter()
        .filter_map(|(name, _)| {
            let value = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
            Some(((*name).to_owned(), value.trim_end().to_owned()))
        })
        .collect()
}

/// Whether segments go away as soon as nobody has them attached.
pub(super) fn removal_is_forced(settings: &BTreeMap<String, String>) -> bool {
    settings
        .get(FORCED_REMOVAL)
        .is_some_and(|value| value != "0")
}

/// Raises every limit of a new namespace as far as it goes.
pub(super) fn raise() -> Result<()> {
    for (name, most) in SETTINGS {
        let path = format!("/proc/sys/{name}");
        if fs::exists(&path).unwrap_or(false) {
            fs::write(&path, most).doing(|| format!("setting {path} to {most}"))?;
        }
    }
    Ok(())
}

/// Writes the recorded values, all but the one for [`write_last`].
pub(super) fn write(settings: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in settings.iter().filter(|(name, _)| *name != FORCED_REMOVAL) {
        write_one(name, value)?;
    }
    Ok(())
}

/// Writes the value that would remove segments which nobody has attached yet.
pub(super) fn write_last(settings: &BTreeMap<String, String>) -> Result<()> {
    match settings.get(FORCED_REMOVAL) {
        Some(value) => write_one(FORCED_REMOVAL, value),
        None => Ok(()),
    }
}

fn write_one(name: &str, value: &str) -> Result<()> {
    if !SETTINGS.iter().any(|(known, _)| *known == name) {
        let reason = format!("not the name of an ipc setting: {name:?}");
        return Err(Error::coded("E-IMAGE-VALUE", Exit::Image, reason, ""));
    }
    let path = format!("/proc/sys/{name}");
    fs::write(&path, value).doing(|| format!("setting {path} to {value:?}"))
}
