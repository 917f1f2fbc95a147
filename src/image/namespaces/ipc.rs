//! Records of the ipc namespace: System V segments, semaphores and queues, POSIX message queues.
//!
//! Times of last use and the processes that used something last are not recorded: the kernel lets
//! nobody set them.

use crate::image::PathBytes;
use crate::image::bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An ipc namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipc {
    /// Limits and switches, by their path below /proc/sys.
    pub settings: BTreeMap<String, String>,
    /// Shared memory.
    pub segments: Vec<Segment>,
    /// Semaphores.
    pub semaphores: Vec<SemaphoreSet>,
    /// What is undone in them when processes end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adjustments: Vec<Adjustment>,
    /// System V message queues.
    pub queues: Vec<MessageQueue>,
    /// POSIX message queues.
    pub posix_queues: Vec<PosixQueue>,
}

/// What every System V object has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its number, kept on restore.
    pub id: i32,
    /// The key it is found by; 0 for none.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Who made it.
    pub creator_uid: u32,
    /// The maker's group.
    pub creator_gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// A segment of shared memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Number, key, owner.
    pub identity: Identity,
    /// Bytes, as asked for: not a multiple of the page size.
    pub size: u64,
    /// How often it was attached.
    pub attached: u64,
    /// It goes away with its last user.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
    /// Locked into memory as a whole (SHM_LOCK).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub locked: bool,
    /// Stored pages: (page in the segment, how many, place in its object), ascending.
    pub pages: Vec<(u64, u64, u64)>,
    /// What lies between the end of the segment and the end of its last page, where that is not all
    /// zero: those who attached it can use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Bytes>,
}

impl Segment {
    /// The name of the object with its pages.
    pub fn object(&self) -> String {
        format!("sysv-{}", self.identity.id)
    }
}

/// A set of semaphores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SemaphoreSet {
    /// Number, key, owner.
    pub identity: Identity,
    /// In order.
    pub values: Vec<u16>,
}

/// What is added to a semaphore when a process ends (SEM_UNDO).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adjustment {
    /// The process.
    pub pid: i32,
    /// Number of the set.
    pub set: i32,
    /// Place in the set.
    pub semaphore: u16,
    /// What is added.
    pub value: i32,
}

/// A System V message queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageQueue {
    /// Number, key, owner.
    pub identity: Identity,
    /// Bytes that it may hold.
    pub limit: u64,
    /// Oldest first.
    pub messages: Vec<Message>,
}

/// A message in a System V queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Its type, a positive number.
    pub kind: i64,
    /// Its text.
    pub text: Bytes,
}

/// A POSIX message queue without messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosixQueue {
    /// Without the slash.
    pub name: PathBytes,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Messages that it takes.
    pub capacity: u64,
    /// Bytes that a message may have.
    pub message_size: u64,
}
