//! The one place that reads `/proc/PID`.

use super::{
    cgroup, fdinfo, limits, maps, mountinfo, small, smaps, stat, status, timer_list, timers,
};
use crate::error::{Cause, Context, Error, Result};
use nix::errno::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A process or a thread in `/proc`, by its number on this host. A process that is not there (any
/// more) is [`Cause::Gone`] in every method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    host_pid: i32,
    directory: PathBuf,
}

impl Process {
    /// `/proc/PID`; looks at nothing yet.
    pub fn new(host_pid: i32) -> Self {
        Self {
            host_pid,
            directory: PathBuf::from(format!("/proc/{host_pid}")),
        }
    }

    /// `/proc/PID/task/TID`, with the same methods; files that exist only per process fail.
    pub fn thread(&self, host_tid: i32) -> Self {
        Self {
            host_pid: host_tid,
            directory: self.directory.join(format!("task/{host_tid}")),
        }
    }

    /// Its number on this host.
    pub fn host_pid(&self) -> i32 {
        self.host_pid
    }

    /// `/proc/PID/NAME`.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// Whether it is there; zombies are.
    pub fn exists(&self) -> bool {
        self.directory.exists()
    }

    /// Opens `/proc/PID/NAME` for reading.
    pub fn open(&self, name: impl AsRef<Path>) -> Result<File> {
        let path = self.path(name);
        File::open(&path)
            .map_err(|error| self.gone_or(error.into()))
            .doing(|| format!("opening {}", path.display()))
    }

    /// All bytes of `/proc/PID/NAME`.
    pub fn bytes(&self, name: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = self.path(name);
        let read = || {
            let mut bytes = Vec::with_capacity(4096);
            File::open(&path)?.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read()
            .map_err(|error: std::io::Error| self.gone_or(error.into()))
            .doing(|| format!("reading {}", path.display()))
    }

    /// All text of `/proc/PID/NAME`; bytes that are no UTF-8 are replaced.
    pub fn text(&self, name: impl AsRef<Path>) -> Result<String> {
        let bytes = self.bytes(name)?;
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    /// Where the link `/proc/PID/NAME` (`exe`, `cwd`, `root`, `fd/3`, `ns/net`) leads, in the bytes
    /// that the kernel gives, ` (deleted)` included.
    pub fn link(&self, name: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = self.path(name);
        std::fs::read_link(&path)
            .map(|target| target.into_os_string().into_vec())
            .map_err(|error| self.gone_or(error.into()))
            .doing(|| format!("reading the link {}", path.display()))
    }

    /// The names in the directory `/proc/PID/NAME` that are numbers, ascending.
    pub fn numbers(&self, name: impl AsRef<Path>) -> Result<Vec<i32>> {
        let path = self.path(name);
        let list = || {
            let mut numbers = Vec::new();
            for entry in std::fs::read_dir(&path)? {
                numbers.extend(number_of(&entry?.file_name()));
            }
            numbers.sort_unstable();
            Ok(numbers)
        };
        list()
            .map_err(|error: std::io::Error| self.gone_or(error.into()))
            .doing(|| format!("listing {}", path.display()))
    }

    /// Its threads, as this host numbers them, ascending.
    pub fn threads(&self) -> Result<Vec<i32>> {
        self.numbers("task")
    }

    /// Its descriptors, ascending.
    pub fn descriptors(&self) -> Result<Vec<i32>> {
        self.numbers("fd")
    }

    /// `maps`.
    pub fn maps(&self) -> Result<Vec<maps::Area>> {
        self.parsed("maps", maps::parse)
    }

    /// `smaps`, streamed.
    pub fn smaps(&self) -> Result<Vec<smaps::Smap>> {
        const BUFFER: usize = 1 << 16;
        let file = self.open("smaps")?;
        smaps::parse(BufReader::with_capacity(BUFFER, file))
            .map_err(|error| self.gone_or(error))
            .doing(|| format!("reading {}", self.path("smaps").display()))
    }

    /// `status`.
    pub fn status(&self) -> Result<status::Status> {
        self.parsed("status", status::parse)
    }

    /// `stat`.
    pub fn stat(&self) -> Result<stat::Stat> {
        self.parsed("stat", stat::parse)
    }

    /// `fdinfo/FD`.
    pub fn fdinfo(&self, fd: i32) -> Result<fdinfo::Fdinfo> {
        self.parsed(format!("fdinfo/{fd}"), fdinfo::parse)
    }

    /// `limits`.
    pub fn limits(&self) -> Result<Vec<limits::Limit>> {
        self.parsed("limits", limits::parse)
    }

    /// `mountinfo`.
    pub fn mountinfo(&self) -> Result<Vec<mountinfo::Mount>> {
        self.parsed("mountinfo", mountinfo::parse)
    }

    /// `timers`.
    pub fn timers(&self) -> Result<Vec<timers::Timer>> {
        self.parsed("timers", timers::parse)
    }

    /// `cgroup`.
    pub fn cgroup(&self) -> Result<Vec<cgroup::Membership>> {
        self.parsed("cgroup", cgroup::parse)
    }

    /// `cmdline`, argument by argument.
    pub fn cmdline(&self) -> Result<Vec<Vec<u8>>> {
        Ok(small::nul_separated(&self.bytes("cmdline")?))
    }

    /// `environ`, variable by variable.
    pub fn environ(&self) -> Result<Vec<Vec<u8>>> {
        Ok(small::nul_separated(&self.bytes("environ")?))
    }

    /// `auxv` as pairs of key and value.
    pub fn auxv(&self) -> Result<Vec<(u64, u64)>> {
        Ok(small::parse_auxv(&self.bytes("auxv")?))
    }

    /// `syscall`.
    pub fn syscall(&self) -> Result<small::Syscall> {
        self.parsed("syscall", small::parse_syscall)
    }

    /// `uid_map`.
    pub fn uid_map(&self) -> Result<Vec<small::IdRange>> {
        self.parsed("uid_map", small::parse_id_map)
    }

    /// `gid_map`.
    pub fn gid_map(&self) -> Result<Vec<small::IdRange>> {
        self.parsed("gid_map", small::parse_id_map)
    }

    /// `comm`, without its line end.
    pub fn comm(&self) -> Result<Vec<u8>> {
        let mut comm = self.bytes("comm")?;
        comm.pop();
        Ok(comm)
    }

    /// `oom_score_adj`.
    pub fn oom_score_adj(&self) -> Result<i32> {
        self.parsed("oom_score_adj", small::parse_number)
    }

    /// Its living and dead (unreaped) children, as this host numbers them, ascending.
    pub fn children(&self) -> Result<Vec<i32>> {
        Ok(children()?.remove(&self.host_pid).unwrap_or_default())
    }

    /// Reads `/proc/PID/NAME` and parses it.
    fn parsed<T>(
        &self,
        name: impl AsRef<Path>,
        parse: impl FnOnce(Vec<u8>) -> Result<T>,
    ) -> Result<T> {
        let bytes = self.bytes(&name)?;
        parse(bytes).doing(|| format!("reading {}", self.path(name).display()))
    }

    /// ESRCH, and ENOENT where the process itself has gone, mean that it is gone.
    fn gone_or(&self, error: Error) -> Error {
        let gone = match error.errno() {
            Some(Errno::ESRCH) => true,
            Some(Errno::ENOENT) => !self.exists(),
            _ => false,
        };
        if gone {
            Error::from(Cause::Gone {
                host_pid: self.host_pid,
            })
        } else {
            error
        }
    }
}

/// `/proc/timer_list`. The kernel may lack it, and only root may read it.
pub fn timer_list() -> Result<timer_list::TimerList> {
    let path = "/proc/timer_list";
    let bytes = std::fs::read(path).doing(|| format!("reading {path}"))?;
    Ok(timer_list::parse(bytes))
}

/// The living and dead (unreaped) children of all processes, ascending. Goes through all of /proc once:
/// kernels without CONFIG_PROC_CHILDREN have no `children` files.
pub fn children() -> Result<HashMap<i32, Vec<i32>>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for pid in processes()? {
        match Process::new(pid).stat() {
            Ok(stat) => children.entry(stat.ppid).or_default().push(pid),
            Err(error) if matches!(error.cause(), Cause::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

/// All processes of this host (thread groups, as the mounted /proc numbers them), ascending.
pub fn processes() -> Result<Vec<i32>> {
    let list = || {
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            pids.extend(number_of(&entry?.file_name()));
        }
        pids.sort_unstable();
        Ok(pids)
    };
    list()
        .map_err(|error: std::io::Error| Error::from(error))
        .doing(|| "listing /proc")
}

fn number_of(name: &OsStr) -> Option<i32> {
    std::str::from_utf8(name.as_bytes()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Process {
        Process::new(std::process::id() as i32)
    }

    #[test]
    fn we_can_read_ourselves() {
        let own = own();
        assert!(own.exists());
        assert_eq!(own.status().unwrap().pid, own.host_pid());
        assert_eq!(own.stat().unwrap().pid, own.host_pid());
        assert!(!own.maps().unwrap().is_empty());
        assert!(!own.smaps().unwrap().is_empty());
        assert!(own.threads().unwrap().contains(&own.host_pid()));
        assert!(own.descriptors().unwrap().contains(&2));
        assert!(own.link("exe").unwrap().starts_with(b"/"));
        assert!(processes().unwrap().contains(&own.host_pid()));
        assert!(!own.limits().unwrap().is_empty());
        assert!(!own.mountinfo().unwrap().is_empty());
        assert!(!own.cgroup().unwrap().is_empty());
        assert!(!own.auxv().unwrap().is_empty());
        assert!(!own.uid_map().unwrap().is_empty() && !own.gid_map().unwrap().is_empty());
        assert!(own.timers().unwrap().is_empty());
        assert!(own.fdinfo(2).unwrap().mnt_id > 0);
        assert!(own.cmdline().unwrap()[0].starts_with(b"/"));
        assert!(
            own.environ()
                .unwrap()
                .iter()
                .any(|variable| variable.starts_with(b"PATH="))
        );
        assert!(!own.comm().unwrap().ends_with(b"\n"));
        own.oom_score_adj().unwrap();
        let thread = own.thread(own.host_pid());
        thread.syscall().unwrap();
        assert_eq!(thread.status().unwrap().tgid, own.host_pid());
    }

    #[test]
    fn children_are_found_dead_ones_too() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(own().children().unwrap().contains(&pid));
        child.wait().unwrap();
        assert!(!own().children().unwrap().contains(&pid));
    }

    #[test]
    fn a_process_that_is_not_there_is_gone() {
        let process = Process::new(i32::MAX);
        for error in [
            process.maps().unwrap_err(),
            process.smaps().unwrap_err(),
            process.link("exe").unwrap_err(),
            process.threads().unwrap_err(),
        ] {
            assert!(
                matches!(error.cause(), Cause::Gone { host_pid: i32::MAX }),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_not_a_process_that_is_gone() {
        let error = own().bytes("no-such-file").unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOENT));
    }
}
