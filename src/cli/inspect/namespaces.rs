//! The namespaces in an image, in a few words each.

use super::view::path;
use crate::error::Result;
use crate::image::archive::Reader;
use crate::image::namespaces::Namespace as Listed;
use crate::image::namespaces::mnt::{FileSystem, Mount, Mounts};
use crate::image::namespaces::net::Net;
use crate::image::namespaces::time::Time;
use crate::image::namespaces::uts::Uts;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A namespace.
#[derive(Debug, Serialize)]
pub struct Namespace {
    /// `mnt`, `net`, …
    pub kind: String,
    /// The host's own, of which nothing is recorded.
    pub host: bool,
    /// The member with its record, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// For a reader, a line each.
    pub about: Vec<String>,
}

/// The member that lists all namespaces.
const LIST: &str = "namespaces/list.json";

/// All namespaces of an image, in their order.
pub fn namespaces(reader: &Reader) -> Result<Vec<Namespace>> {
    let list: Vec<Listed> = reader.optional(LIST)?;
    let mut all: Vec<_> = list
        .into_iter()
        .map(|listed| Namespace {
            kind: listed.kind,
            host: listed.host,
            member: None,
            about: Vec::new(),
        })
        .collect();
    for member in reader.names().filter(|name| *name != LIST) {
        let file = member
            .strip_prefix("namespaces/")
            .and_then(|file| file.strip_suffix(".json"));
        let Some(file) = file else { continue };
        let kind = file.split('-').next().unwrap_or(file);
        let mut found = Namespace {
            kind: kind.to_owned(),
            host: false,
            member: Some(member.to_owned()),
            about: about(reader, member, kind)?,
        };
        let listed = all
            .iter_mut()
            .find(|one| one.kind == kind && one.member.is_none());
        match listed {
            Some(listed) => {
                found.host = listed.host;
                *listed = found;
            }
            None => all.push(found),
        }
    }
    Ok(all)
}

fn about(reader: &Reader, member: &str, kind: &str) -> Result<Vec<String>> {
    Ok(match kind {
        "mnt" => record(reader, member)?.map(of_mounts),
        "net" => record(reader, member)?.map(of_net),
        "uts" => record(reader, member)?.map(of_uts),
        "time" => record(reader, member)?.map(of_time),
        _ => None,
    }
    .unwrap_or_default())
}

/// A record; `None` where there is another one under this name.
fn record<T: DeserializeOwned>(reader: &Reader, member: &str) -> Result<Option<T>> {
    Ok(serde_json::from_slice(&reader.bytes(member)?).ok())
}

fn of_mounts(mounts: Mounts) -> Vec<String> {
    let line = |mount: &Mount| {
        let what = match mounts.file_systems.get(mount.file_system as usize) {
            Some(FileSystem::Root) => "the root file system".to_owned(),
            Some(FileSystem::External { key, host_path }) => {
                let point = path(&mount.point);
                let host_path = host_path.as_ref().map(path).unwrap_or_default();
                let from = match host_path.as_str() {
                    "" => "of the host".to_owned(),
                    host_path if host_path == point => "the same of the host".to_owned(),
                    host_path => format!("{host_path} of the host"),
                };
                match *key == point {
                    true => from,
                    false => format!("{from}, named {key}"),
                }
            }
            Some(FileSystem::Device { major, minor }) => format!("device {major}:{minor}"),
            Some(FileSystem::New {
                fs_type, contents, ..
            }) => match contents.len() {
                0 => fs_type.clone(),
                _ => format!("{fs_type} with its content"),
            },
            Some(FileSystem::Cgroup { controllers, .. }) => match controllers.len() {
                0 => "cgroup2".to_owned(),
                _ => format!("cgroup {}", controllers.join(",")),
            },
            None => "nothing".to_owned(),
        };
        let below = match mount.path.as_bytes() {
            b"" => String::new(),
            _ => format!("{} of ", path(&mount.path)),
        };
        let read_only = mount.options.iter().any(|option| option == "ro");
        let read_only = if read_only { ", read-only" } else { "" };
        format!("{}: {below}{what}{read_only}", path(&mount.point))
    };
    mounts.mounts.iter().map(line).collect()
}

fn of_net(net: Net) -> Vec<String> {
    let mut lines = Vec::new();
    if net.external {
        lines.push("made by somebody else, who makes it again".to_owned());
    }
    for link in &net.links {
        let addresses: Vec<_> = net
            .addresses
            .iter()
            .filter(|address| address.device == link.name)
            .map(|address| format!("{}/{}", address.local, address.prefix))
            .collect();
        lines.push(match addresses.len() {
            0 => format!("{}: no address", link.name),
            _ => format!("{}: {}", link.name, addresses.join(", ")),
        });
    }
    let routes = net.routes.len();
    if routes > 0 {
        lines.push(format!("routes: {routes}"));
    }
    lines
}

fn of_uts(uts: Uts) -> Vec<String> {
    vec![format!("host name: {}", uts.hostname)]
}

fn of_time(time: Time) -> Vec<String> {
    let seconds = time.monotonic_ns as f64 / 1e9;
    vec![format!("monotonic clock: {seconds:.3} s")]
}
