//! `cpuinfo dump` and `cpuinfo check`: can a container of one host run on the processor of another?

use super::images::Images;
use crate::error::{Context, Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const FILE: &str = "cpuinfo.img";

/// What `cpuinfo.img` holds, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Processor {
    architecture: String,
    model: String,
    features: BTreeSet<String>,
}

impl Processor {
    fn of_this_host() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/cpuinfo").doing(|| "reading /proc/cpuinfo")?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let field = |wanted: &[&str]| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| wanted.contains(&name.trim()))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        Self {
            architecture: std::env::consts::ARCH.to_owned(),
            model: field(&["model name"]),
            features: field(&["flags", "Features"])
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
        }
    }

    /// Why what runs on `self` may not run on `other`.
    fn lacks(&self, other: &Self) -> Option<String> {
        if self.architecture != other.architecture {
            return Some(format!(
                "the images are of {}, this is {}",
                self.architecture, other.architecture
            ));
        }
        let missing: Vec<&str> = self
            .features
            .difference(&other.features)
            .map(String::as_str)
            .collect();
        (!missing.is_empty()).then(|| format!("this processor lacks {}", missing.join(", ")))
    }
}

/// Writes down this processor.
pub fn dump(images: &Images) -> Result<()> {
    let path = images.path().join(FILE);
    let text = serde_json::to_string_pretty(&Processor::of_this_host()?)
        .map_err(|why| Error::bug(why.to_string()))?;
    std::fs::write(&path, text).doing(|| format!("writing {}", path.display()))
}

/// Compares this processor with the one written down.
pub fn check(images: &Images) -> Result<()> {
    let path = images.path().join(FILE);
    let doing = || format!("reading {}", path.display());
    let text = std::fs::read_to_string(&path).doing(doing)?;
    let written: Processor = serde_json::from_str(&text).map_err(|why| {
        Error::coded(
            "E-CPUINFO",
            Exit::Image,
            why.to_string(),
            "write it again with criu cpuinfo dump of ocimig",
        )
        .doing(doing())
    })?;
    match written.lacks(&Processor::of_this_host()?) {
        None => Ok(()),
        Some(reason) => Err(Error::coded(
            "E-CPU",
            Exit::Host,
            reason,
            "restore on a host whose processor has it",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_compatible_with_itself_and_with_a_richer_one() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::open(directory.path()).unwrap();
        assert!(check(&images).is_err());
        dump(&images).unwrap();
        check(&images).unwrap();
        let old = Processor::parse("model name\t: A\nflags\t\t: fpu sse\n");
        let new = Processor::parse("model name\t: B\nflags\t\t: fpu sse avx\n");
        assert_eq!(old.lacks(&new), None);
        assert_eq!(new.lacks(&old).unwrap(), "this processor lacks avx");
        let arm = Processor {
            architecture: "other".into(),
            ..old.clone()
        };
        assert!(arm.lacks(&old).is_some());
    }
}
