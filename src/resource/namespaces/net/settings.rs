//! What can be read and written below /proc/sys/net.
//!
//! Which namespace these files speak of is decided by the thread that opens them. A network
//! namespace that is not the first one sees only settings of its own there, and the few that it
//! shares with the host are read-only.

use crate::error::{Context, Result};
use crate::image::namespaces::net::{Link, Net};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const ROOT: &str = "/proc/sys/net";

/// All settings by their path below /proc/sys/net, without the line's end.
pub(super) fn read() -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    walk(Path::new(ROOT), &mut found)?;
    Ok(found)
}

fn walk(directory: &Path, found: &mut BTreeMap<String, String>) -> Result<()> {
    let doing = || format!("reading {}", directory.display());
    for entry in fs::read_dir(directory).doing(doing)? {
        let entry = entry.doing(doing)?;
        let path = entry.path();
        if entry.file_type().doing(doing)?.is_dir() {
            walk(&path, found)?;
            continue;
        }
        let mode = entry.metadata().doing(doing)?.permissions().mode();
        if mode & 0o600 != 0o600 {
            continue;
        }
        // Some are unset, and say so with EIO.
        let Ok(value) = fs::read_to_string(&path) else {
            continue;
        };
        if let Ok(name) = path.strip_prefix(ROOT) {
            let value = value.strip_suffix('\n').unwrap_or(&value).to_owned();
            found.insert(name.to_string_lossy().into_owned(), value);
        }
    }
    Ok(())
}

/// Splits what differs from `ordinary`, the settings of a new namespace, from what does not.
pub(super) fn split(
    all: BTreeMap<String, String>,
    ordinary: &BTreeMap<String, String>,
) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    all.into_iter().partition(|(name, value)| {
        let usual = ordinary
            .get(name)
            .or_else(|| ordinary.get(&of_default_device(name)?));
        usual != Some(value)
    })
}

/// `ipv4/conf/veth0/x` → `ipv4/conf/default/x`, where a new device has its settings from.
fn of_default_device(name: &str) -> Option<String> {
    let mut parts: Vec<_> = name.split('/').collect();
    if parts.len() != 4 || !["conf", "neigh"].contains(&parts[1]) {
        return None;
    }
    parts[2] = "default";
    Some(parts.join("/"))
}

/// Which settings to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Those that can be set without a device giving itself an address, tentative and so unusable
    /// for a second or two.
    NoneThatMakeAddresses,
    /// All.
    All,
}

const ADDRESS_MAKER: &str = "/addr_gen_mode";

/// Writes every setting that is not yet as recorded. Some set others in passing (`ip_forward` all
/// `forwarding`, `all` all devices'), so it looks again until nothing is left to do. A setting that
/// was changed must succeed; one that was as in any new namespace need not exist here.
pub(super) fn write(record: &Net, which: Which) -> Result<()> {
    let due =
        |(name, _): &(&String, &String)| which == Which::All || !name.ends_with(ADDRESS_MAKER);
    for last in [false, false, false, true] {
        let mut wrote = false;
        for (name, value) in record.defaults.iter().filter(due) {
            let path = path_of(name)?;
            if !is(&path, value) {
                wrote |= fs::write(&path, value).is_ok();
            }
        }
        for (name, value) in record.settings.iter().filter(due) {
            let path = path_of(name)?;
            if is(&path, value) {
                continue;
            }
            wrote = true;
            let doing = || format!("setting {path} to {value:?}");
            fs::write(&path, value).doing(doing)?;
            if last && !is(&path, value) {
                return Err(nix::errno::Errno::EINVAL).doing(doing);
            }
        }
        if !wrote {
            break;
        }
    }
    Ok(())
}

/// Writes those settings that exist here: devices of an external namespace come and go.
pub(super) fn write_where_present(record: &Net) -> Result<()> {
    let mut present = record.clone();
    present.defaults.clear();
    present.settings.clear();
    for (name, value) in &record.settings {
        if fs::exists(path_of(name)?).unwrap_or(false) {
            present.settings.insert(name.clone(), value.clone());
        }
    }
    write(&present, Which::All)
}

fn is(path: &str, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.strip_suffix('\n').unwrap_or(&text) == value)
}

/// An image may name nothing outside /proc/sys/net.
fn path_of(name: &str) -> Result<String> {
    if name.split('/').any(|part| part.is_empty() || part == "..") {
        let reason = format!("not the name of a network setting: {name:?}");
        return Err(super::image_error(reason));
    }
    Ok(format!("{ROOT}/{name}"))
}

/// Keeps links that come up from giving themselves IPv6 addresses: the recorded ones are given to
/// them. The setting itself comes back with [`write`].
pub(super) fn without_automatic_addresses(links: &[Link]) -> Result<()> {
    const NONE: &str = "1";
    for link in links {
        let path = path_of(&format!("ipv6/conf/{}{ADDRESS_MAKER}", link.name))?;
        // `lo` gets ::1 either way.
        if link.index != super::link::LO && fs::exists(&path).unwrap_or(false) {
            fs::write(&path, NONE).doing(|| format!("writing {path}"))?;
        }
    }
    Ok(())
}
