//! Descriptors of namespaces (/proc/PID/ns/…).

use super::capture::Capturer;
use super::kind::Found;
use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::files::FileKind;
use crate::proc::Process;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

impl Capturer<'_> {
    pub(super) fn namespace(&self, found: &Found<'_>, refusals: &mut Refusals) -> Option<FileKind> {
        let link = String::from_utf8_lossy(&found.link);
        let kind = link.split(':').next().unwrap_or_default().to_owned();
        let is_there = |host_pid: i32| {
            Process::new(host_pid)
                .link(format!("ns/{kind}"))
                .is_ok_and(|other| other == found.link)
        };
        match self.subjects.iter().find(|one| is_there(one.host_pid)) {
            Some(subject) => Some(FileKind::Namespace {
                kind,
                ino: found.status.ino,
                pid: subject.pid,
            }),
            None => {
                refusals.add(
                    "E-NAMESPACE-OUTSIDE",
                    found.object(),
                    format!("{link} is a namespace that no process of the container is in"),
                    "let the program close it",
                );
                None
            }
        }
    }
}

pub(super) fn rebuild(kind: &str, pid: i32, processes: &BTreeMap<i32, i32>) -> Result<OwnedFd> {
    let known = crate::sys::ns::Kind::ALL
        .iter()
        .any(|one| one.name() == kind);
    let (true, Some(host)) = (known, processes.get(&pid)) else {
        return Err(Error::coded(
            "E-IMAGE-NAMESPACE",
            Exit::Image,
            format!("there is no {kind} namespace of process {pid}"),
            "the image is damaged",
        ));
    };
    let path = format!("/proc/{host}/ns/{kind}");
    Ok(File::open(&path)
        .doing(|| format!("opening {path}"))?
        .into())
}
