//! Attributes of areas: the kernel's letters in smaps, our names, the madvise(2) that sets them.

use crate::proc::maps::Perms;
use crate::proc::smaps::VmFlags;

/// An attribute that a process gave to an area.
pub(super) struct Attribute {
    letters: &'static str,
    pub name: &'static str,
    /// The advice that sets it, where madvise does.
    pub advice: Option<i32>,
}

impl Attribute {
    /// Changes what fork does: set once all forks are made.
    pub fn is_late(&self) -> bool {
        matches!(
            self.advice,
            Some(libc::MADV_WIPEONFORK | libc::MADV_DONTFORK)
        )
    }
}

const MADV_MERGEABLE: i32 = libc::MADV_MERGEABLE;

/// Those that madvise sets come in the order in which they are set: the ones that only describe
/// first, those that change what fork does last.
pub(super) const ALL: [Attribute; 14] = [
    attribute("gd", "growsdown", None),
    attribute("nr", "noreserve", None),
    attribute("dp", "droppable", None),
    attribute("lo", "locked", None),
    attribute("lf", "lock-on-fault", None),
    attribute("sl", "sealed", None),
    attribute("sr", "sequential", Some(libc::MADV_SEQUENTIAL)),
    attribute("rr", "random", Some(libc::MADV_RANDOM)),
    attribute("hg", "huge-page", Some(libc::MADV_HUGEPAGE)),
    attribute("nh", "no-huge-page", Some(libc::MADV_NOHUGEPAGE)),
    attribute("mg", "mergeable", Some(MADV_MERGEABLE)),
    attribute("dd", "dontdump", Some(libc::MADV_DONTDUMP)),
    attribute("wf", "wipe-on-fork", Some(libc::MADV_WIPEONFORK)),
    attribute("dc", "dontfork", Some(libc::MADV_DONTFORK)),
];

const fn attribute(letters: &'static str, name: &'static str, advice: Option<i32>) -> Attribute {
    Attribute {
        letters,
        name,
        advice,
    }
}

/// What was once writable counts as memory that may be needed (VM_ACCOUNT) when it is no longer: parts of
/// programs that the loader has relocated.
pub(super) const ACCOUNTED: &str = "accounted";

/// The names of those that are set.
pub(super) fn of(flags: &VmFlags, perms: Perms) -> Vec<String> {
    let mut names: Vec<String> = ALL
        .iter()
        .filter(|one| flags.has(one.letters))
        .map(|one| one.name.to_owned())
        .collect();
    if flags.has("ac") && !perms.shared && !perms.write {
        names.push(ACCOUNTED.to_owned());
    }
    names
}

/// Why an area with such flags cannot be taken along: code, reason, remedy.
pub(super) fn refusal(flags: &VmFlags) -> Option<(&'static str, &'static str, &'static str)> {
    const REFUSED: [(&str, &str, &str, &str); 8] = [
        (
            "ht",
            "E-MEMORY-HUGETLB",
            "it consists of huge TLB pages",
            "let the program use transparent huge pages",
        ),
        (
            "io",
            "E-MEMORY-DEVICE",
            "it is memory of a device",
            "close the device before the checkpoint",
        ),
        (
            "pf",
            "E-MEMORY-DEVICE",
            "its pages belong to a driver",
            "close the device before the checkpoint",
        ),
        (
            "mm",
            "E-MEMORY-DEVICE",
            "its pages belong to a driver",
            "close the device before the checkpoint",
        ),
        (
            "um",
            "E-MEMORY-USERFAULTFD",
            "another program handles its page faults (userfaultfd)",
            "unregister it before the checkpoint",
        ),
        (
            "uw",
            "E-MEMORY-USERFAULTFD",
            "another program handles its write faults (userfaultfd)",
            "unregister it before the checkpoint",
        ),
        (
            "ui",
            "E-MEMORY-USERFAULTFD",
            "another program handles its minor faults (userfaultfd)",
            "unregister it before the checkpoint",
        ),
        (
            "ss",
            "E-MEMORY-SHADOW-STACK",
            "it is a shadow stack",
            "run the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
        ),
    ];
    REFUSED
        .iter()
        .find(|one| flags.has(one.0))
        .map(|one| (one.1, one.2, one.3))
}
