//! The config.json of a test container, made from what `runc spec` gives.

use super::tools::run;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// What a container of a test runs and has; every field may be changed before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`, beside PATH.
    pub env: Vec<String>,
    /// User and group.
    pub user: (u32, u32),
    /// Capabilities beside the ones of most runtimes' default: `CAP_SYS_NICE`.
    pub capabilities: Vec<String>,
    /// Bring `lo` up before the program starts.
    pub lo: bool,
    /// Mounts beside the usual ones, as config.json has them.
    pub mounts: Vec<Value>,
    /// Anything else: JSON pointer and value, written last.
    pub also: Vec<(String, Value)>,
}

/// What docker, podman and containerd grant by default.
const USUAL_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_SETFCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
];

impl Config {
    /// One that runs `args`.
    pub fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            user: (0, 0),
            capabilities: Vec::new(),
            lo: false,
            mounts: Vec::new(),
            also: Vec::new(),
        }
    }

    /// Writes config.json into `bundle`.
    pub fn write(&self, bundle: &Path) {
        run(Command::new("runc").arg("spec").arg("--bundle").arg(bundle));
        let path = bundle.join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut spec: Value = serde_json::from_str(&text).unwrap();
        let process = spec["process"].as_object_mut().unwrap();
        // The limits that it proposes are above what some hosts allow.
        process.remove("rlimits");
        process.insert("terminal".into(), json!(false));
        process.insert("args".into(), json!(self.args));
        process.insert("noNewPrivileges".into(), json!(false));
        let (uid, gid) = self.user;
        process.insert("user".into(), json!({"uid": uid, "gid": gid}));
        process["env"]
            .as_array_mut()
            .unwrap()
            .extend(self.env.iter().map(|text| json!(text)));
        let granted: Vec<&str> = USUAL_CAPABILITIES
            .into_iter()
            .chain(self.capabilities.iter().map(String::as_str))
            .collect();
        process.insert(
            "capabilities".into(),
            json!({"bounding": granted, "effective": granted, "permitted": granted}),
        );
        spec["root"]["readonly"] = json!(false);
        spec["mounts"]
            .as_array_mut()
            .unwrap()
            .extend(self.mounts.iter().cloned());
        for (pointer, value) in &self.also {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        std::fs::write(&path, serde_json::to_vec_pretty(&spec).unwrap()).unwrap();
    }
}
