//! epoll(7).
//!
//! A registration is an open file and the number under which it was added; the number may be closed
//! or something else by now, and only kcmp tells which file it was.

use super::capture::{Capturer, find};
use super::identity::Place;
use super::kind::Found;
use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::files::{EpollItem, FileId, FileKind, Files};
use crate::proc::fdinfo::EpollTarget;
use crate::sys::epoll::Registration;
use crate::sys::kcmp;
use nix::errno::Errno;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};

/// An instance whose registrations are looked up once all open files are known.
pub(super) struct Pending {
    id: FileId,
    place: Place,
    object: String,
    targets: Vec<EpollTarget>,
}

pub(super) fn capture(found: &Found<'_>) -> (FileKind, Pending) {
    let pending = Pending {
        id: found.id,
        place: found.place,
        object: found.object(),
        targets: found.info.epoll.clone(),
    };
    (FileKind::Epoll { items: Vec::new() }, pending)
}

impl Capturer<'_> {
    pub(super) fn finish_epolls(&mut self, refusals: &mut Refusals) -> Result<()> {
        for pending in std::mem::take(&mut self.epolls) {
            let items = self
                .epoll_items(&pending, refusals)
                .doing(|| format!("capturing registrations of {}", pending.object))?;
            if let Some(file) = find(&mut self.records.open_files, pending.id) {
                file.kind = FileKind::Epoll { items };
            }
        }
        Ok(())
    }

    fn epoll_items(&self, pending: &Pending, refusals: &mut Refusals) -> Result<Vec<EpollItem>> {
        let mut seen: HashMap<i32, u32> = HashMap::new();
        let mut items = Vec::new();
        for target in &pending.targets {
            let nth = seen.entry(target.fd).or_default();
            match self.registered(pending, target, *nth)? {
                Some(file) => items.push(EpollItem {
                    fd: target.fd,
                    file,
                    events: target.events,
                    data: target.data,
                }),
                None => refusals.add(
                    "E-EPOLL-TARGET",
                    &pending.object,
                    format!(
                        "what was registered with it as descriptor {} is held by no process of the \
                         container any more",
                        target.fd
                    ),
                    "let the program remove the registration before it closes the file",
                ),
            }
            *nth += 1;
        }
        // The kernel lists them in the order of addresses, which mean nothing elsewhere.
        items.sort_by_key(|item| (item.fd, item.file));
        Ok(items)
    }

    /// Which open file a registration is: nearly always what has the number in the same process.
    fn registered(
        &self,
        pending: &Pending,
        target: &EpollTarget,
        nth: u32,
    ) -> Result<Option<FileId>> {
        let compare =
            |place: Place| kcmp::compare_epoll(place.key(), pending.place.key(), target.fd, nth);
        let here = self.at_number(pending.place.host_pid, target.fd);
        if let Some(id) = here
            && let Some(place) = self.identities.place(id)
            && compare(place)? == Ordering::Equal
        {
            return Ok(Some(id));
        }
        self.identities.find(target.inode, compare)
    }
}

/// Makes the registrations of all instances.
pub(super) fn register(files: &Files, made: &BTreeMap<FileId, OwnedFd>) -> Result<()> {
    let fd = |id: FileId| {
        made.get(&id).map(AsFd::as_fd).ok_or_else(|| {
            Error::coded(
                "E-IMAGE-EPOLL",
                Exit::Image,
                format!("there is no record of open file {}", id.0),
                "the image is damaged",
            )
        })
    };
    let mut registrations = Vec::new();
    for file in &files.open_files {
        let FileKind::Epoll { items } = &file.kind else {
            continue;
        };
        for item in items {
            registrations.push(Registration {
                epoll: fd(file.id)?,
                file: fd(item.file)?,
                number: item.fd,
                events: item.events,
                data: item.data,
            });
        }
    }
    match crate::sys::epoll::register(&registrations) {
        Err(error) if error.errno() == Some(Errno::EBADF) => Err(Error::coded(
            "E-HOST-NOFILE",
            Exit::Host,
            format!("{error}: it lies above this process's limit of open files"),
            "raise the limit (ulimit -n)",
        )),
        other => other,
    }
}
