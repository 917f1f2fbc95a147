//! Against real processes: forks of the test itself.

use super::*;
use crate::tracee::bare::{Vdso, Zone};

/// A child that is killed and reaped when the test ends, however it ends.
struct Child(i32);

impl Drop for Child {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        // An init ends only once its processes are reaped, and those that are traced report to us first.
        while let Ok(Some((found, event))) = ptrace::wait(-1, true) {
            if found == self.0 && matches!(event, Event::Gone(_)) {
                break;
            }
        }
    }
}

fn own_vdso() -> Vdso {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let parts: Vec<(u64, u64)> = maps
        .lines()
        .filter(|line| line.contains("[vvar") || line.ends_with("[vdso]"))
        .map(|line| {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            (
                u64::from_str_radix(start, 16).unwrap(),
                u64::from_str_radix(end, 16).unwrap(),
            )
        })
        .collect();
    let start = parts[0].0;
    Vdso {
        start,
        parts: parts
            .iter()
            .map(|(from, to)| (from - start, to - from))
            .collect(),
        code: parts.last().unwrap().0 - start,
    }
}

fn spawn_child() -> Child {
    Child(crate::sys::clone::bare(0, &[]).unwrap())
}

#[test]
fn a_batch_chains_results_and_leaves_maps_and_registers_as_they_were() {
    let child = spawn_child();
    let maps = || std::fs::read_to_string(format!("/proc/{}/maps", child.0)).unwrap();
    let mut stopped = seize(child.0, false)
        .unwrap()
        .wait(Instant::now() + SOON)
        .unwrap();
    let before = (maps(), *stopped.registers());
    let vdso = own_vdso();
    let instruction = find_syscall(child.0, vdso.start + vdso.code, vdso.start + vdso.length())
        .unwrap()
        .unwrap();
    let mut scratch = Scratch::map(
        &mut stopped,
        child.0,
        vec![(child.0, child.0)],
        instruction,
        libc::SIGURG,
        None,
        SCRATCH_DATA,
    )
    .unwrap();
    let mut batch = Batch::new();
    let path = batch.string(b"/dev/zero");
    let fd = batch.push(calls::Openat {
        directory: libc::AT_FDCWD.into(),
        path: path.into(),
        flags: 0u64.into(),
        mode: 0u64.into(),
    });
    let mapped = batch.push(calls::Mmap {
        address: 0u64.into(),
        length: 4096u64.into(),
        protection: 1u64.into(),
        flags: 2u64.into(),
        fd: fd.into(),
        offset: 0u64.into(),
    });
    batch.push(calls::Munmap {
        address: mapped.into(),
        length: 4096u64.into(),
    });
    batch.push(calls::Close { fd: fd.into() });
    let own = batch.push(calls::Getpid {});
    let failing = batch.push_tolerant(calls::Close { fd: 999.into() });
    let answers = stopped.run(&scratch, &batch).unwrap();
    assert_eq!(answers.get(own), child.0);
    assert_eq!(answers.result(failing), Err(Errno::EBADF));
    let mut failing = Batch::new();
    failing.push(calls::Close { fd: 999.into() });
    failing.push(calls::Getpid {});
    let error = stopped.run(&scratch, &failing).unwrap_err().to_string();
    assert!(
        error.contains("Close(0x3e7") && error.contains("EBADF"),
        "{error}"
    );
    scratch.unmap(&mut stopped).unwrap();
    assert_eq!(maps(), before.0);
    stopped.put_back().unwrap();
    assert_eq!(ptrace::registers(child.0).unwrap(), before.1);
    stopped.release().unwrap();
}

#[test]
fn a_bare_process_holds_only_the_zone_and_has_children_and_threads_with_chosen_numbers() {
    let zone = Zone { start: 0x1000_0000 };
    let mut first = bare::spawn(
        libc::CLONE_NEWPID as u64,
        1,
        zone,
        &own_vdso(),
        crate::sys::clone::own_rseq(),
    )
    .unwrap();
    let _init = Child(first.host_pid);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", first.host_pid)).unwrap();
    let outside: Vec<&str> = maps
        .lines()
        .filter(|line| !line.contains("[vsyscall]"))
        .filter(|line| {
            let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
            start < zone.start || start >= zone.start + Zone::SIZE
        })
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
    let mut second = first.fork(4321, libc::SIGCHLD, false).unwrap();
    second.spawn_threads(&[5000, 4999, 77]).unwrap();
    let tids: Vec<i32> = second
        .threads
        .iter()
        .map(|t| second.scratch.tid_of(t.host_tid()).unwrap())
        .collect();
    assert_eq!(tids, [4321, 5000, 4999, 77]);
    let mut batch = Batch::new();
    let pid = batch.push(calls::Getpid {});
    let parent = batch.push(calls::Getppid {});
    let answers = second.run_in(3, &batch).unwrap();
    assert_eq!((answers.get(pid), answers.get(parent)), (4321, 1));
    second.place_vdso(0x7f00_0000_0000).unwrap();
    second.remove_scratch().unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", second.host_pid)).unwrap();
    assert!(maps.starts_with("7f0000000000-"), "{maps}");
}
