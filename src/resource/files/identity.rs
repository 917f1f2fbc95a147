//! Which descriptors are one open file.

use crate::error::Result;
use crate::image::files::FileId;
use crate::sys::kcmp;
use std::cmp::Ordering;
use std::collections::HashMap;

/// Where an open file can be found: a descriptor of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// As this host numbers it; the conductor's own for adopted files.
    pub host_pid: i32,
    pub fd: i32,
}

impl Place {
    pub fn key(self) -> (i32, u64) {
        (self.host_pid, u64::from(self.fd.cast_unsigned()))
    }
}

/// What two descriptors of one open file have in common, however its offset and flags move
/// meanwhile: mount and inode (and the serial number that eventfds show). All anonymous inodes are
/// one inode, so candidates are many and kept in the order of kcmp.
pub(super) type Candidates = (u64, u64, u64);

/// The open files seen so far.
#[derive(Default)]
pub(super) struct Identities {
    groups: HashMap<Candidates, Vec<(Place, FileId)>>,
    places: Vec<Place>,
}

impl Identities {
    /// The open file at `place`, and whether it is new.
    pub fn identify(&mut self, candidates: Candidates, place: Place) -> Result<(FileId, bool)> {
        let group = self.groups.entry(candidates).or_default();
        match position(group, |known| {
            kcmp::compare(kcmp::Kind::File, known.0.key(), place.key())
        })? {
            Ok(at) => Ok((group[at].1, false)),
            Err(at) => {
                let id = FileId(u32::try_from(self.places.len()).unwrap_or(u32::MAX));
                group.insert(at, (place, id));
                self.places.push(place);
                Ok((id, true))
            }
        }
    }

    /// Where `id` was first seen.
    pub fn place(&self, id: FileId) -> Option<Place> {
        self.places.get(id.0 as usize).copied()
    }

    /// The open file for which `compare` (in the order of kcmp, known first) says `Equal`, among
    /// all with that inode number.
    pub fn find(
        &self,
        ino: u64,
        compare: impl Fn(Place) -> Result<Ordering>,
    ) -> Result<Option<FileId>> {
        for (candidates, group) in &self.groups {
            if candidates.1 == ino
                && let Ok(at) = position(group, |known| compare(known.0))?
            {
                return Ok(Some(group[at].1));
            }
        }
        Ok(None)
    }
}

/// A binary search whose comparison may fail: `Ok(index)` of the equal one, `Err(index)` of the
/// place where it belongs.
pub(super) fn position<T>(
    sorted: &[T],
    compare: impl Fn(&T) -> Result<Ordering>,
) -> Result<std::result::Result<usize, usize>> {
    let (mut low, mut high) = (0, sorted.len());
    while low < high {
        let middle = low.midpoint(high);
        match compare(&sorted[middle])? {
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}
