//! The command lines of processes, which lie in their memory.

use crate::error::Result;
use crate::image::archive::Reader;
use crate::image::memory::{ANONYMOUS, CHUNK_PAGES, Memory, PAGE};

/// A longer command line is cut.
const LONGEST: u64 = 4096;

/// Reads private memory out of an image.
pub struct Pages<'r> {
    reader: &'r Reader,
    prefix: String,
    /// Command lines of several processes often lie in one piece.
    last: Option<(u64, Vec<u8>)>,
}

impl<'r> Pages<'r> {
    pub fn of(reader: &'r Reader) -> Self {
        Self {
            reader,
            prefix: format!("memory/{ANONYMOUS}"),
            last: None,
        }
    }

    /// The command line as the process would see it now; empty where the image does not have it.
    pub fn command_line(&mut self, memory: &Memory) -> Result<Vec<String>> {
        let (start, end) = (memory.program.arg_start, memory.program.arg_end);
        let mut bytes = Vec::new();
        let mut at = start;
        let end = end.min(start.saturating_add(LONGEST));
        while at < end {
            let until = (at / PAGE + 1).saturating_mul(PAGE).min(end);
            let Some(part) = self.page(memory, at)? else {
                return Ok(Vec::new());
            };
            let first = (at % PAGE) as usize;
            let Some(part) = part.get(first..first + (until - at) as usize) else {
                return Ok(Vec::new());
            };
            bytes.extend_from_slice(part);
            at = until;
        }
        Ok(bytes
            .strip_suffix(b"\0")
            .unwrap_or(&bytes)
            .split(|&byte| byte == 0)
            .filter(|_| !bytes.is_empty())
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect())
    }

    /// From the page at `address` on, to the end of its piece.
    fn page(&mut self, memory: &Memory, address: u64) -> Result<Option<&[u8]>> {
        let after = memory.pages.partition_point(|run| run.start <= address);
        let Some(run) = after.checked_sub(1).map(|last| &memory.pages[last]) else {
            return Ok(None);
        };
        let number = (address - run.start) / PAGE;
        let Some(index) = run.index.checked_add(number).filter(|_| number < run.pages) else {
            return Ok(None);
        };
        let piece = index / CHUNK_PAGES;
        if piece >= self.reader.pieces(&self.prefix) {
            return Ok(None);
        }
        if self.last.as_ref().is_none_or(|last| last.0 != piece) {
            self.last = Some((piece, self.reader.piece(&self.prefix, piece)?));
        }
        let first = (index % CHUNK_PAGES * PAGE) as usize;
        Ok(self.last.as_ref().and_then(|last| last.1.get(first..)))
    }
}
