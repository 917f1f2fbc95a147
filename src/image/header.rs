//! `ocimig.json`, readable by every version past and future.
//!
//! Later formats may add fields and may change everything that follows in the tar, but never the
//! place of this member (first), its name, or the meaning of [`Header::format`]: that is read
//! before anything else is looked at, so that an older engine can refuse a newer image by name.

use crate::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The format that this engine writes.
pub const FORMAT: u32 = 1;
/// The oldest format that this engine reads.
pub const OLDEST_FORMAT: u32 = 1;
const _: () = assert!(OLDEST_FORMAT <= FORMAT);

/// The first member of every image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the format of everything that follows.
    pub format: u32,
    /// Name and version of the engine that wrote the image: `ocimig 0.1.0`.
    pub engine: String,
    /// When the image was begun, in seconds since 1970-01-01 UTC.
    pub created: u64,
    /// Where the container ran.
    pub host: Host,
    /// What was checkpointed.
    pub container: Container,
    /// How memory chunks are stored unless they say otherwise by their name.
    pub compression: Compression,
    /// It holds pages and nothing else, to be the parent of another image; it cannot be restored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory_only: bool,
    /// What the restoring host must offer.
    #[serde(default)]
    pub requires: Vec<Requirement>,
}

impl Header {
    /// Whether processes of this image can run on `here`: the same architecture and page size, the
    /// processor features that [`Header::requires`] names, and room for their processor state.
    pub fn check_host(&self, here: &Host) -> Result<()> {
        let there = &self.host;
        let differs = |code, what: &str, image: &str, host: &str| {
            let reason = format!("the image is of a host with {what} {image}, this one has {host}");
            Error::coded(
                code,
                Exit::Host,
                reason,
                "restore it on a host like that one",
            )
        };
        if there.architecture != here.architecture {
            let (image, host) = (&there.architecture, &here.architecture);
            return Err(differs("E-HOST-ARCHITECTURE", "architecture", image, host));
        }
        if there.page_size != here.page_size {
            let (image, host) = (there.page_size.to_string(), here.page_size.to_string());
            return Err(differs("E-HOST-PAGE-SIZE", "page size", &image, &host));
        }
        let missing: Vec<_> = self
            .requires
            .iter()
            .filter(|requirement| {
                let feature = requirement.name.strip_prefix("cpu.");
                feature.is_some_and(|feature| !here.cpu_features.iter().any(|has| has == feature))
            })
            .map(|requirement| format!("{} ({})", requirement.name, requirement.needed_by))
            .collect();
        if !missing.is_empty() {
            return Err(lacks(&missing.join(", ")));
        }
        match there.xsave_components & !here.xsave_components {
            0 => Ok(()),
            more => Err(lacks(&format!("processor state components {more:#x}"))),
        }
    }
}

fn lacks(what: &str) -> Error {
    Error::coded(
        "E-HOST-CPU",
        Exit::Host,
        format!("the processor of this host lacks {what}"),
        "restore it on a host whose processor has at least the features of the other one",
    )
}

/// The host that a container was checkpointed on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    /// Architecture, as `uname -m` prints it.
    pub architecture: String,
    /// Bytes per page of the processor.
    pub page_size: u64,
    /// Model name of the processor; empty where the kernel does not tell.
    #[serde(default)]
    pub cpu_model: String,
    /// What the processor can do, by Linux's flag names (`avx2`), sorted.
    #[serde(default)]
    pub cpu_features: Vec<String>,
    /// State components (XCR0) that the processor state in this image may hold.
    #[serde(default)]
    pub xsave_components: u64,
}

/// The container in an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// The id under which a runtime knew it; empty for a bare `--pid`.
    pub id: String,
    /// A name given by a person, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The runtime that it came from: `runc`, `crun`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}

/// One thing that a host must offer before this image can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// Stable name: `cpu.avx512f`, `kernel.time-namespace`, `capability.sys_admin`.
    pub name: String,
    /// What in the container needs it: `pid 7 (java)`.
    pub needed_by: String,
}

/// How the bytes of an image are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Every memory chunk on its own with zstd.
    #[default]
    Zstd,
    /// Every memory chunk on its own with lz4.
    Lz4,
    /// The whole tar with gzip, for tools that expect `.tar.gz`.
    Gzip,
    /// Nothing is compressed.
    None,
}

impl Compression {
    /// All of them, by the names that a person writes.
    pub const ALL: [(&'static str, Compression); 4] = [
        ("zstd", Compression::Zstd),
        ("lz4", Compression::Lz4),
        ("gzip", Compression::Gzip),
        ("none", Compression::None),
    ];
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Zstd => "zstd",
            Compression::Lz4 => "lz4",
            Compression::Gzip => "gzip",
            Compression::None => "none",
        })
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, compression)| *compression)
            .ok_or_else(|| format!("{text:?} is none of zstd, lz4, gzip, none"))
    }
}

/// What of a header can be read in any format, past and future.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Glance {
    /// See [`Header::format`].
    pub format: u32,
    /// See [`Header::engine`].
    #[serde(default)]
    pub engine: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            format: FORMAT,
            engine: "ocimig 0.1.0".into(),
            created: 1_700_000_000,
            host: Host {
                kernel: "6.18.0".into(),
                architecture: "x86_64".into(),
                page_size: 4096,
                ..Host::default()
            },
            container: Container {
                id: "web".into(),
                ..Container::default()
            },
            compression: Compression::Zstd,
            memory_only: false,
            requires: vec![Requirement {
                name: "cpu.avx2".into(),
                needed_by: "pid 1 (sh)".into(),
            }],
        }
    }

    #[test]
    fn a_header_comes_back_unchanged() {
        let json = serde_json::to_string(&header()).unwrap();
        assert_eq!(serde_json::from_str::<Header>(&json).unwrap(), header());
    }

    #[test]
    fn the_format_of_a_future_header_can_be_read() {
        let json = r#"{"format": 9, "engine": "ocimig 7", "soul": {"weight": 21}}"#;
        let glance: Glance = serde_json::from_str(json).unwrap();
        assert_eq!(glance.format, 9);
        assert!(serde_json::from_str::<Header>(json).is_err());
    }

    #[test]
    fn a_host_that_cannot_run_what_is_in_an_image_is_told_why() {
        let host = Host {
            cpu_features: vec!["avx2".into(), "sse".into()],
            xsave_components: 7,
            ..header().host
        };
        let image = Header {
            host: Host {
                xsave_components: 3,
                ..header().host
            },
            ..header()
        };
        image.check_host(&host).unwrap();
        let change = |change: fn(&mut Host)| {
            let mut other = host.clone();
            change(&mut other);
            let error = image.check_host(&other).unwrap_err();
            assert_eq!(error.exit(), Exit::Host);
            (error.code(), error.to_string())
        };
        let (code, text) = change(|host| host.architecture = "aarch64".into());
        assert_eq!(code, "E-HOST-ARCHITECTURE");
        assert!(
            text.contains("architecture x86_64, this one has aarch64"),
            "{text}"
        );
        assert_eq!(change(|host| host.page_size = 65536).0, "E-HOST-PAGE-SIZE");
        let (code, text) = change(|host| host.cpu_features.clear());
        assert_eq!(code, "E-HOST-CPU");
        assert!(text.contains("cpu.avx2 (pid 1 (sh))"), "{text}");
        assert_eq!(change(|host| host.xsave_components = 5).0, "E-HOST-CPU");
    }

    #[test]
    fn compressions_are_named_as_a_person_writes_them() {
        for (name, compression) in Compression::ALL {
            assert_eq!(name.parse::<Compression>().unwrap(), compression);
            assert_eq!(compression.to_string(), name);
            assert_eq!(
                serde_json::to_string(&compression).unwrap(),
                format!("{name:?}")
            );
        }
        assert!("bzip2".parse::<Compression>().is_err());
    }
}
