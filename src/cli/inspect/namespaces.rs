//! The namespaces in an image, in a few words each.

use super::view::path;
use crate::error::Result;
use crate::image::archive::Reader;
use crate::image::namespaces::mnt::{Mounts, What};
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
    /// The member with its record.
    pub member: String,
    /// For a reader, a line each.
    pub about: Vec<String>,
}

/// All namespaces of an image, in their order.
pub fn namespaces(reader: &Reader) -> Result<Vec<Namespace>> {
    let members = reader.names().filter_map(|name| {
        let file = name.strip_prefix("namespaces/")?.strip_suffix(".json")?;
        Some((name, file.split('-').next().unwrap_or(file)))
    });
    members
        .map(|(member, kind)| {
            Ok(Namespace {
                kind: kind.to_owned(),
                member: member.to_owned(),
                about: about(reader, member, kind)?,
            })
        })
        .collect()
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
    let line = |mount: &crate::image::namespaces::mnt::Mount| {
        let what = match &mount.what {
            What::Root => "the root file system".to_owned(),
            What::External { key, host_path } => match host_path {
                Some(host_path) => format!("{} of the host, as {key}", path(host_path)),
                None => format!("of the host, as {key}"),
            },
            What::New {
                fs_type, content, ..
            } => match content {
                Some(_) => format!("{fs_type} with its content"),
                None => fs_type.clone(),
            },
            What::Bind { of, path: below } => {
                let point = mounts
                    .mounts
                    .get(*of as usize)
                    .map(|mount| path(&mount.point));
                let below = path(below);
                format!("{below} of {}", point.unwrap_or_default())
            }
            What::Cgroup { controllers, .. } => match controllers.len() {
                0 => "cgroup2".to_owned(),
                _ => format!("cgroup {}", controllers.join(",")),
            },
        };
        let read_only = mount.options.iter().any(|option| option == "ro");
        let read_only = if read_only { ", read-only" } else { "" };
        format!("{}: {what}{read_only}", path(&mount.point))
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
