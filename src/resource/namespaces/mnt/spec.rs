//! What a container's OCI spec says about its mounts.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The mount points that lead to the host, each called by its destination.
pub fn external_of_spec(spec: &Value) -> BTreeMap<Vec<u8>, String> {
    bind_mounts(spec)
        .map(|(destination, _)| (destination.as_bytes().to_vec(), destination.to_owned()))
        .collect()
}

/// The paths that the runtime covers with something empty.
pub fn masked_of_spec(spec: &Value) -> BTreeSet<Vec<u8>> {
    let paths = spec["linux"]["maskedPaths"].as_array();
    paths
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|path| path.as_bytes().to_vec())
        .collect()
}

/// What the spec of the bundle in `bundle` binds to the destination called `key`.
pub fn source_in_spec(spec: &Value, bundle: &Path, key: &str) -> Option<PathBuf> {
    bind_mounts(spec)
        .filter(|(destination, _)| *destination == key)
        // Of two on one place the later covers the earlier.
        .last()
        .and_then(|(_, source)| source)
        .map(|source| bundle.join(source))
}

fn bind_mounts(spec: &Value) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mounts = spec["mounts"].as_array();
    mounts.into_iter().flatten().filter_map(|mount| {
        let options = mount["options"].as_array();
        let is_bind = mount["type"] == "bind"
            || options
                .into_iter()
                .flatten()
                .any(|option| option == "bind" || option == "rbind");
        let destination = mount["destination"].as_str()?;
        is_bind.then(|| (destination, mount["source"].as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn binds_and_masks_are_found() {
        let spec = json!({
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/srv/data"},
                {"destination": "/here", "source": "here", "options": ["rbind", "ro"]},
            ],
            "linux": {"maskedPaths": ["/proc/keys", "/proc/acpi"]},
        });
        let external: Vec<_> = external_of_spec(&spec).into_iter().collect();
        assert_eq!(
            external,
            [
                (b"/data".to_vec(), "/data".to_owned()),
                (b"/here".to_vec(), "/here".to_owned()),
            ]
        );
        assert!(masked_of_spec(&spec).contains(&b"/proc/acpi"[..]));
        let source = |key| source_in_spec(&spec, Path::new("/bundle"), key);
        assert_eq!(source("/data"), Some("/srv/data".into()));
        assert_eq!(source("/here"), Some("/bundle/here".into()));
        assert_eq!(source("/proc"), None);
        assert_eq!(external_of_spec(&json!({})).len(), 0);
    }
}
