//! Namespaces: mnt, net, uts, ipc, time, cgroup.

pub mod ipc;
pub mod mnt;
pub mod net;
pub mod time;
pub mod uts;

use crate::error::{Context, Error, Exit, Refusals, Result};
use crate::image::namespaces::Namespace;
use crate::sys::ns::Kind;
use nix::errno::Errno;
use std::fs;

/// Which namespaces the container is in, one per [`Kind`] that this kernel has, in the order of
/// [`Kind::ALL`]. They are those of `init`; another process of `host_pids` that is elsewhere is
/// refused by name. Threads can be elsewhere too: pass their ids as well. Zombies have left theirs.
/// "Host" is whatever this process itself is in.
pub fn survey(init: i32, host_pids: &[i32], refusals: &mut Refusals) -> Result<Vec<Namespace>> {
    let mut found = Vec::new();
    for kind in Kind::ALL {
        if !fs::exists(format!("/proc/self/ns/{}", kind.name())).unwrap_or(false) {
            continue;
        }
        let own = required_inode("self", kind.name())?;
        let inode_of_init = required_inode(&init.to_string(), kind.name())?;
        found.push(Namespace {
            kind: kind.name().to_owned(),
            inode: inode_of_init,
            host: inode_of_init == own,
            external: None,
        });
        if kind == Kind::User && inode_of_init != own {
            refusals.add(
                "E-USERNS",
                format!("process {init}"),
                "it is in a user namespace other than the host's",
                "run the container without a user namespace",
            );
        }
        for &host_pid in host_pids {
            let there = inode(&host_pid.to_string(), kind.name())?;
            if there.is_some_and(|there| there != inode_of_init) {
                refuse_nested(kind, host_pid, refusals);
            }
        }
        if kind == Kind::Pid {
            refuse_pid_for_children(init, host_pids, inode_of_init, refusals)?;
        }
    }
    Ok(found)
}

fn refuse_nested(kind: Kind, host_pid: i32, refusals: &mut Refusals) {
    let code = match kind {
        Kind::User => "E-USERNS",
        Kind::Pid => "E-PIDNS-NESTED",
        Kind::Cgroup | Kind::Ipc | Kind::Mnt | Kind::Net | Kind::Time | Kind::Uts => "E-NS-NESTED",
    };
    refusals.add(
        code,
        format!("{} namespace of process {host_pid}", kind.name()),
        "it is not the one that the container's first process is in",
        "end that process, or do not start it in a namespace of its own",
    );
}

/// A process that called unshare(CLONE_NEWPID) and has no child yet.
fn refuse_pid_for_children(
    init: i32,
    host_pids: &[i32],
    expected: u64,
    refusals: &mut Refusals,
) -> Result<()> {
    for &host_pid in host_pids.iter().chain([&init]) {
        let process = host_pid.to_string();
        // Of a zombie no link can be read; of a namespace without a first process, only this one.
        let future = inode(&process, "pid_for_children")?;
        if future != Some(expected) && inode(&process, "uts")?.is_some() {
            refuse_nested(Kind::Pid, host_pid, refusals);
        }
    }
    Ok(())
}

fn required_inode(process: &str, name: &str) -> Result<u64> {
    inode(process, name)?
        .ok_or(Errno::ESRCH)
        .doing(|| format!("reading /proc/{process}/ns/{name}"))
}

/// The number in `net:[4026531840]`; none where the process has left its namespaces.
fn inode(process: &str, name: &str) -> Result<Option<u64>> {
    let path = format!("/proc/{process}/ns/{name}");
    let link = match fs::read_link(&path) {
        Ok(link) => link,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).doing(|| format!("reading {path}")),
    };
    let text = link.to_string_lossy();
    text.split_once(":[")
        .and_then(|(_, rest)| rest.strip_suffix(']'))
        .and_then(|number| number.parse().ok())
        .map(Some)
        .ok_or_else(|| {
            Error::coded(
                "E-PROC-FORMAT",
                Exit::Host,
                format!("{path} cannot be understood: {text:?}"),
                "report this with the kernel version",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// `unshare` with these arguments in front of a shell that has started for certain.
    fn sleeper(arguments: &[&str]) -> Child {
        let mut child = Command::new("unshare")
            .args(arguments)
            .args(["sh", "-c", "echo; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        child
    }

    fn end(mut child: Child) {
        child.stdin.take();
        child.wait().unwrap();
    }

    #[test]
    fn namespaces_are_told_from_the_hosts_and_nested_ones_are_refused() {
        let init = sleeper(&["--uts", "--ipc"]);
        let other = sleeper(&["--net"]);
        let (a, b) = (init.id() as i32, other.id() as i32);

        let mut refusals = Refusals::new();
        let found = survey(a, &[a], &mut refusals).unwrap();
        assert_eq!(refusals.as_slice(), []);
        for namespace in &found {
            let private = namespace.kind == "uts" || namespace.kind == "ipc";
            assert_eq!(namespace.host, !private, "{namespace:?}");
        }

        survey(a, &[a, b], &mut refusals).unwrap();
        let codes: Vec<_> = refusals
            .as_slice()
            .iter()
            .map(|r| (r.code, &*r.object))
            .collect();
        assert_eq!(
            codes,
            [
                ("E-NS-NESTED", &*format!("ipc namespace of process {b}")),
                ("E-NS-NESTED", &*format!("net namespace of process {b}")),
                ("E-NS-NESTED", &*format!("uts namespace of process {b}")),
            ]
        );
        end(init);
        end(other);
    }

    #[test]
    fn a_zombie_has_no_namespaces() {
        let mut zombie = Command::new("true").spawn().unwrap();
        let own = std::process::id() as i32;
        let host_pid = zombie.id() as i32;
        nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(host_pid)),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        )
        .unwrap();
        let mut refusals = Refusals::new();
        survey(own, &[host_pid], &mut refusals).unwrap();
        assert_eq!(refusals.as_slice(), []);
        zombie.wait().unwrap();
    }

    #[test]
    fn a_user_namespace_and_a_pid_namespace_without_a_process_are_refused() {
        let user = sleeper(&["--user"]);
        // Without --fork the shell stays outside and its children would be inside; `read` and
        // `echo` are built in, so that there are none.
        let pid = sleeper(&["--pid"]);
        for (child, code) in [(user, "E-USERNS"), (pid, "E-PIDNS-NESTED")] {
            let mut refusals = Refusals::new();
            let host_pid = child.id() as i32;
            survey(host_pid, &[host_pid], &mut refusals).unwrap();
            assert!(
                refusals.as_slice().iter().any(|r| r.code == code),
                "{refusals:?}"
            );
            end(child);
        }
    }
}
