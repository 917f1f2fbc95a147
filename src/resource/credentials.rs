//! Rights: ids, capabilities, securebits, no_new_privs.

use crate::error::Refusals;
use crate::image::process::Credentials;
use crate::proc::status::{Ids, Status};
use crate::tracee::batch::{Answer, Answers, Batch};
use crate::tracee::calls;

const PR_CAPBSET_DROP: i32 = 24;
const PR_GET_SECUREBITS: i32 = 27;
const PR_SET_SECUREBITS: i32 = 28;
const PR_CAP_AMBIENT: i32 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;
/// SECBIT_NO_SETUID_FIXUP: changing ids changes no capabilities.
const NO_SETUID_FIXUP: u64 = 1 << 2;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// What a thread has to be asked about its rights.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    securebits: Answer<i32>,
}

/// Pushes the question.
pub fn ask(batch: &mut Batch) -> Ask {
    Ask {
        securebits: batch.push(prctl(PR_GET_SECUREBITS, 0, 0)),
    }
}

pub(super) fn prctl(option: i32, arg2: u64, arg3: u64) -> calls::Prctl {
    calls::Prctl {
        option: option.into(),
        arg2: arg2.into(),
        arg3: arg3.into(),
        arg4: 0u64.into(),
        arg5: 0u64.into(),
    }
}

impl Ask {
    /// The rights; all but securebits /proc shows.
    pub fn collect(&self, answers: &Answers, status: &Status) -> Credentials {
        let ids = |ids: &Ids| [ids.real, ids.effective, ids.saved, ids.fs];
        Credentials {
            uids: ids(&status.uid),
            gids: ids(&status.gid),
            groups: status.groups.clone(),
            inheritable: status.cap_inheritable,
            permitted: status.cap_permitted,
            effective: status.cap_effective,
            bounding: status.cap_bounding,
            ambient: status.cap_ambient,
            securebits: answers.get(self.securebits).cast_unsigned(),
            no_new_privs: status.no_new_privs,
        }
    }
}

/// Names capabilities that this process, which has `held`, cannot hand on.
pub fn check(wanted: &Credentials, held: u64, who: &str, refusals: &mut Refusals) {
    for (set, capabilities) in [
        ("permitted", wanted.permitted),
        ("inheritable", wanted.inheritable),
        ("bounding", wanted.bounding),
    ] {
        let lacking = capabilities & !held;
        if lacking != 0 {
            refusals.add(
                "E-CAPABILITY",
                who,
                format!(
                    "its {set} capabilities have {}, which this command lacks",
                    names(lacking)
                ),
                "restore it with these capabilities",
            );
        }
    }
}

fn names(set: u64) -> String {
    let names: Vec<String> = (0..64)
        .filter(|bit| set >> bit & 1 == 1)
        .map(|bit| match CAPABILITIES.get(bit) {
            Some(name) => format!("CAP_{name}"),
            None => format!("capability {bit}"),
        })
        .collect();
    names.join(", ")
}

/// `<linux/capability.h>`
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Gives a bare thread these rights. It begins as root with the conductor's capabilities, `held`; what
/// needs a capability comes before that one is given up.
pub fn rebuild(batch: &mut Batch, wanted: &Credentials, held: u64) {
    batch.push(prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0));
    batch.push(calls::Prctl {
        option: PR_CAP_AMBIENT.into(),
        arg2: PR_CAP_AMBIENT_CLEAR_ALL.into(),
        arg3: 0u64.into(),
        arg4: 0u64.into(),
        arg5: 0u64.into(),
    });
    // Inheritable before bounding: it may hold what bounding lacks, but cannot gain it then.
    push_capset(batch, held, held, wanted.inheritable);
    for capability in (0..64).filter(|bit| held >> bit & 1 == 1 && wanted.bounding >> bit & 1 == 0)
    {
        batch.push(prctl(PR_CAPBSET_DROP, capability, 0));
    }
    let groups: Vec<u8> = wanted
        .groups
        .iter()
        .flat_map(|group| group.to_le_bytes())
        .collect();
    let list = batch.bytes(&groups);
    batch.push(calls::Setgroups {
        count: wanted.groups.len().into(),
        list: list.into(),
    });
    let [real, effective, saved, fs] = wanted.gids;
    batch.push(calls::Setresgid {
        real: real.into(),
        effective: effective.into(),
        saved: saved.into(),
    });
    batch.push_tolerant(calls::Setfsgid { gid: fs.into() });
    let [real, effective, saved, fs] = wanted.uids;
    batch.push(calls::Setresuid {
        real: real.into(),
        effective: effective.into(),
        saved: saved.into(),
    });
    batch.push_tolerant(calls::Setfsuid { uid: fs.into() });
    for capability in (0..64).filter(|bit| wanted.ambient >> bit & 1 == 1) {
        batch.push(calls::Prctl {
            option: PR_CAP_AMBIENT.into(),
            arg2: PR_CAP_AMBIENT_RAISE.into(),
            arg3: u64::from(capability as u32).into(),
            arg4: 0u64.into(),
            arg5: 0u64.into(),
        });
    }
    batch.push(prctl(PR_SET_SECUREBITS, wanted.securebits.into(), 0));
    push_capset(
        batch,
        wanted.effective & held,
        wanted.permitted & held,
        wanted.inheritable,
    );
    if wanted.no_new_privs {
        batch.push(prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0));
    }
}

fn push_capset(batch: &mut Batch, effective: u64, permitted: u64, inheritable: u64) {
    let header = batch.words(&[u64::from(CAPABILITY_VERSION_3)]);
    let half = |shift: u32| {
        [effective, permitted, inheritable].map(|set| ((set >> shift) as u32).to_le_bytes())
    };
    let data: Vec<u8> = half(0).into_iter().chain(half(32)).flatten().collect();
    let data = batch.bytes(&data);
    batch.push(calls::Capset {
        header: header.into(),
        data: data.into(),
    });
}
