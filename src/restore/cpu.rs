//! Can what runs on one processor run on another? A SIGILL after a restore that went well is the worst
//! end.

use crate::error::{Context, Refusals, Result};
use crate::image::header::Host;
use crate::request::CpuCheck;
use std::collections::BTreeSet;

/// What programs find out about and use, by Linux's names, where a prefix is enough.
const FAMILIES: [&str; 12] = [
    "amx", "apx", "avx", "bmi", "fma", "sha", "sse", "vaes", "vpcl", "xgetbv", "xop", "xsave",
];
/// And the others.
const SINGLE: [&str; 36] = [
    "abm",
    "adx",
    "aes",
    "cldemote",
    "clflush",
    "clflushopt",
    "clwb",
    "clzero",
    "cmov",
    "cmpccxadd",
    "cx16",
    "cx8",
    "erms",
    "f16c",
    "fsgsbase",
    "fsrm",
    "fxsr",
    "gfni",
    "hle",
    "lahf_lm",
    "misalignsse",
    "mmx",
    "movbe",
    "movdir64b",
    "movdiri",
    "ospke",
    "pclmulqdq",
    "pni",
    "popcnt",
    "rdpid",
    "rdrand",
    "rdseed",
    "rtm",
    "serialize",
    "ssse3",
    "tbm",
];

/// Refuses an image that may need what this processor lacks.
pub(super) fn check(from: &Host, how: CpuCheck, refusals: &mut Refusals) -> Result<()> {
    if how == CpuCheck::None {
        return Ok(());
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").doing(|| "reading /proc/cpuinfo")?;
    let missing = missing(from, &features(&text), how);
    if !missing.is_empty() {
        refusals.add(
            "E-CPU",
            format!("the processor of the image ({})", from.cpu_model),
            format!("it has what this one lacks: {}", missing.join(", ")),
            "restore it on a processor that has it",
        );
    }
    Ok(())
}

fn features(cpuinfo: &str) -> BTreeSet<&str> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| matches!(name.trim(), "flags" | "Features"))
        .map(|(_, flags)| flags.split_whitespace().collect())
        .unwrap_or_default()
}

fn missing<'h>(from: &'h Host, here: &BTreeSet<&str>, how: CpuCheck) -> Vec<&'h str> {
    let matters = |name: &str| {
        how == CpuCheck::Exact
            || SINGLE.contains(&name)
            || FAMILIES.iter().any(|family| name.starts_with(family))
    };
    from.cpu_features
        .iter()
        .map(String::as_str)
        .filter(|name| matters(name) && !here.contains(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_programs_use_has_to_be_there() {
        let from = Host {
            cpu_features: ["avx2", "hypervisor", "ssse3", "tsc_adjust"]
                .map(String::from)
                .into(),
            ..Host::default()
        };
        let here = features("model name : x\nflags\t\t: fpu ssse3\n\nflags : other\n");
        assert_eq!(missing(&from, &here, CpuCheck::Needed), ["avx2"]);
        assert_eq!(
            missing(&from, &here, CpuCheck::Exact),
            ["avx2", "hypervisor", "tsc_adjust"]
        );
    }

    #[test]
    fn this_processor_is_good_enough_for_itself() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let from = Host {
            cpu_features: features(&text).into_iter().map(str::to_owned).collect(),
            ..Host::default()
        };
        let mut refusals = Refusals::new();
        check(&from, CpuCheck::Exact, &mut refusals).unwrap();
        refusals.into_result().unwrap();
    }
}
