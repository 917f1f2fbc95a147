//! A batch: a table of system calls that a stopped thread makes in one go.

use super::arch;
use super::calls::{Call, FromWord};
use nix::errno::Errno;
use std::marker::PhantomData;

/// An address in a tracee. Never followed by the conductor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct RemoteAddr(pub u64);

/// A descriptor number in a tracee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemoteFd(pub i32);

/// An argument of a call in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// A number.
    Value(u64),
    /// The result of an earlier entry.
    Result(usize),
    /// The address of bytes that travel with the batch, by their offset.
    Data(usize),
}

macro_rules! arg_from {
    ($($from:ty),*) => { $(impl From<$from> for Arg {
        fn from(value: $from) -> Self { Arg::Value(value as u64) }
    })* };
}
arg_from!(u64, i64, u32, usize);

impl From<i32> for Arg {
    /// Sign-extended, as a C caller's int would be.
    fn from(value: i32) -> Self {
        Arg::Value(i64::from(value) as u64)
    }
}

impl From<RemoteAddr> for Arg {
    fn from(address: RemoteAddr) -> Self {
        Arg::Value(address.0)
    }
}

impl From<RemoteFd> for Arg {
    fn from(fd: RemoteFd) -> Self {
        fd.0.into()
    }
}

impl From<Data> for Arg {
    fn from(data: Data) -> Self {
        Arg::Data(data.offset)
    }
}

impl<T> From<Answer<T>> for Arg {
    fn from(answer: Answer<T>) -> Self {
        Arg::Result(answer.index)
    }
}

/// Bytes that travel with a batch: input for its calls, or room for their output.
#[derive(Debug, Clone, Copy)]
pub struct Data {
    offset: usize,
    length: usize,
}

/// Stands for the result of an entry, before and after the batch has run.
#[derive(Debug)]
pub struct Answer<T> {
    index: usize,
    of: PhantomData<T>,
}

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Answer<T> {}

/// Which results let a batch go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allow {
    Success,
    Anything,
}

#[derive(Debug)]
struct Entry {
    name: &'static str,
    number: u64,
    arguments: [Arg; 6],
    allow: Allow,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Batch {
    entries: Vec<Entry>,
    data: Vec<u8>,
    /// (offset in `data`, offset that it points to): addresses known only once it is laid out.
    pointers: Vec<(usize, usize)>,
}

const ENTRY_BYTES: usize = arch::ENTRY_WORDS * 8;

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a call whose failure ends the batch and makes it an error.
    pub fn push<C: Call>(&mut self, call: C) -> Answer<C::Output> {
        self.add(call, Allow::Success)
    }

    /// Adds a call that may fail; ask [`Answers::result`] afterwards.
    pub fn push_tolerant<C: Call>(&mut self, call: C) -> Answer<C::Output> {
        self.add(call, Allow::Anything)
    }

    fn add<C: Call>(&mut self, call: C, allow: Allow) -> Answer<C::Output> {
        let (number, arguments) = call.encode(self);
        self.entries.push(Entry {
            name: C::NAME,
            number: number as u64,
            arguments,
            allow,
        });
        Answer {
            index: self.entries.len() - 1,
            of: PhantomData,
        }
    }

    /// Bytes for a call to read.
    pub fn bytes(&mut self, bytes: &[u8]) -> Data {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        let data = Data {
            offset: self.data.len(),
            length: bytes.len(),
        };
        self.data.extend_from_slice(bytes);
        data
    }

    /// A NUL-terminated string for a call to read.
    pub fn string(&mut self, bytes: &[u8]) -> Data {
        let mut terminated = Vec::with_capacity(bytes.len() + 1);
        terminated.extend_from_slice(bytes);
        terminated.push(0);
        self.bytes(&terminated)
    }

    /// 64-bit words for a call to read.
    pub fn words(&mut self, words: &[u64]) -> Data {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    /// Zeroed room for a call to write to.
    pub fn space(&mut self, length: usize) -> Data {
        self.bytes(&vec![0; length])
    }

    /// Makes word number `word` of `inside` the address of `to`.
    pub fn pointer(&mut self, inside: Data, word: usize, to: Data) {
        self.pointers.push((inside.offset + word * 8, to.offset));
    }

    /// How many calls it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds no call.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes it takes in a scratch data area.
    pub fn size(&self) -> usize {
        arch::HOME_SIZE + self.entries.len() * ENTRY_BYTES + self.data.len() + 16
    }

    fn data_start(&self) -> usize {
        arch::HOME_SIZE + self.entries.len() * ENTRY_BYTES
    }

    /// The table and the data as they lie in the data area at `base`, behind the home block.
    pub(super) fn lay_out(&self, base: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size());
        for (index, entry) in self.entries.iter().enumerate() {
            let own = base + (arch::HOME_SIZE + index * ENTRY_BYTES) as u64;
            let mut words = [0u64; arch::ENTRY_WORDS];
            words[0] = entry.number;
            for (slot, argument) in entry.arguments.iter().enumerate() {
                let (address, value) = match *argument {
                    Arg::Value(value) => (own + (10 + slot as u64) * 8, value),
                    Arg::Data(offset) => (
                        own + (10 + slot as u64) * 8,
                        base + (self.data_start() + offset) as u64,
                    ),
                    Arg::Result(of) => (
                        base + (arch::HOME_SIZE + of * ENTRY_BYTES + 7 * 8) as u64,
                        0,
                    ),
                };
                words[1 + slot] = address;
                words[10 + slot] = value;
            }
            words[9] = match entry.allow {
                Allow::Success => i64::MAX as u64,
                Allow::Anything => u64::MAX,
            };
            for word in words {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        let data = bytes.len();
        bytes.extend_from_slice(&self.data);
        for &(at, to) in &self.pointers {
            let address = base + (self.data_start() + to) as u64;
            bytes[data + at..data + at + 8].copy_from_slice(&address.to_le_bytes());
        }
        bytes
    }

    /// `mmap(4096, …) = EINVAL` of entry `index`, for an error.
    pub(super) fn describe(&self, index: usize, errno: Errno) -> String {
        match self.entries.get(index) {
            Some(entry) => {
                let arguments: Vec<String> = entry
                    .arguments
                    .iter()
                    .map(|argument| match argument {
                        Arg::Value(value) => format!("{value:#x}"),
                        Arg::Result(of) => format!("result {of}"),
                        Arg::Data(offset) => format!("data {offset:#x}"),
                    })
                    .collect();
                format!(
                    "{}({}), call {} of {}: {errno:?}",
                    entry.name,
                    arguments.join(", "),
                    index + 1,
                    self.entries.len()
                )
            }
            None => format!("call {index}"),
        }
    }
}

/// What a batch brought back.
#[derive(Debug)]
pub struct Answers {
    /// The area as read back, from the first entry on.
    bytes: Vec<u8>,
    entries: usize,
}

impl Answers {
    pub(super) fn new(batch: &Batch, bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            entries: batch.entries.len(),
        }
    }

    pub(super) fn word(&self, index: usize) -> u64 {
        let at = index * ENTRY_BYTES + 7 * 8;
        self.bytes
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    }

    /// The result of a call that had to succeed.
    pub fn get<T: FromWord>(&self, answer: Answer<T>) -> T {
        T::from_word(self.word(answer.index))
    }

    /// The result of a call that might fail.
    pub fn result<T: FromWord>(&self, answer: Answer<T>) -> Result<T, Errno> {
        let word = self.word(answer.index);
        match word as i64 {
            error @ -4095..=-1 => Err(Errno::from_raw(-error as i32)),
            _ => Ok(T::from_word(word)),
        }
    }

    /// What the calls wrote to a piece of data.
    pub fn bytes(&self, data: Data) -> &[u8] {
        let start = self.entries * ENTRY_BYTES + data.offset;
        self.bytes.get(start..start + data.length).unwrap_or(&[])
    }

    /// The same as 64-bit words.
    pub fn words(&self, data: Data) -> Vec<u64> {
        self.bytes(data)
            .chunks_exact(8)
            .filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes))
            .collect()
    }
}
