//! A tree like a container's, there and back.

use super::*;
use crate::error::{Error, Refusals};
use crate::image::namespaces::mnt::What;
use crate::proc::read::Process;
use crate::sys::ns;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A shell in namespaces of its own that has mounted what a container has.
fn container(root: &Path, outside: &Path) -> Child {
    let script = r#"
        set -e
        mount --make-rprivate /
        mount --bind "$1" "$1"
        cd "$1"
        mount -t proc proc proc
        mount -t sysfs -o ro,nosuid sysfs sys
        mount -t tmpfs -o size=64k,mode=755 tmpfs dev
        mknod -m 666 dev/null c 1 3
        mkdir dev/pts dev/mqueue
        mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
        ln -s pts/ptmx dev/ptmx
        mount -t mqueue mqueue dev/mqueue
        echo kept > dev/note
        mount --bind "$2" etc/given
        mount --bind dev/null proc/timer_list
        mount -t tmpfs -o ro tmpfs proc/acpi
        mount --bind proc/sys proc/sys
        mount -o remount,bind,ro,nosuid proc/sys
        mount -t tmpfs tmpfs tmp
        mount -t tmpfs tmpfs tmp
        echo upper > tmp/file
        pivot_root . old
        /bin/busybox umount -l /old
        echo ready
        read line
    "#;
    let mut child = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--ipc", "--net"])
        .args(["sh", "-c", script, "sh"])
        .arg(root)
        .arg(outside)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.as_mut().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready");
    child
}

fn summary(host_pid: i32, namespace: Option<&std::os::fd::OwnedFd>) -> Vec<String> {
    let found = match namespace {
        None => Process::new(host_pid).mountinfo().unwrap(),
        Some(namespace) => {
            let proc = std::fs::File::open("/proc").unwrap();
            let text = ns::inside(&[namespace.as_fd()], || {
                let file = nix::fcntl::openat(
                    &proc,
                    "thread-self/mountinfo",
                    nix::fcntl::OFlag::O_RDONLY,
                    nix::sys::stat::Mode::empty(),
                )?;
                let mut text = Vec::new();
                std::fs::File::from(file).read_to_end(&mut text)?;
                Ok(text)
            })
            .unwrap();
            crate::proc::mountinfo::parse(&text).unwrap()
        }
    };
    let mut lines: Vec<String> = found
        .iter()
        .map(|one| {
            format!(
                "{} {} {} {}",
                String::from_utf8_lossy(&one.mount_point),
                String::from_utf8_lossy(&one.fs_type),
                String::from_utf8_lossy(&one.options),
                String::from_utf8_lossy(&one.raw_super_options),
            )
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn a_containers_mounts_come_back_with_their_content() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    for name in ["proc", "sys", "dev", "etc", "tmp", "old", "bin"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    std::fs::write(root.join("etc/given"), b"").unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let outside = place.path().join("outside");
    std::fs::write(&outside, b"from outside").unwrap();
    // The shell needs nothing of the new root any more once it is there.
    let mut child = container(&root, &outside);
    let parent = Process::new(child.id().cast_signed());
    let host_pid = parent.children().unwrap()[0];

    let mut refusals = Refusals::new();
    let options = Options {
        external: [(b"/etc/given".to_vec(), "given".to_owned())].into(),
        ..Options::default()
    };
    let captured = capture(host_pid, &options, &mut refusals).unwrap();
    assert_eq!(refusals.as_slice(), []);
    let contents: Vec<(String, Vec<u8>)> = captured
        .trees
        .iter()
        .map(|tree| {
            let mut layer = Vec::new();
            crate::resource::layer::capture(
                tree.root.as_fd(),
                crate::resource::layer::Overlay::No,
                "a test",
                &mut layer,
                &mut refusals,
            )
            .unwrap();
            (tree.pieces.clone(), layer)
        })
        .collect();
    let before = summary(host_pid, None);
    let what = |point: &str| {
        let mounts = &captured.mounts.mounts;
        mounts
            .iter()
            .rfind(|one| one.point.as_bytes() == point.as_bytes())
            .map(|one| one.what.clone())
    };
    assert!(matches!(what("/proc/timer_list"), Some(What::Bind { .. })));
    assert!(matches!(what("/etc/given"), Some(What::External { .. })));

    // The host's own does here; in a restore it is made in the new PID namespace.
    let proc = crate::sys::mount::Configuration::new("proc")
        .unwrap()
        .mount()
        .unwrap();
    let net = ns::open(host_pid, ns::Kind::Net).unwrap();
    let ipc = ns::open(host_pid, ns::Kind::Ipc).unwrap();
    let env = Env {
        root: &root,
        external: &|_, key, _| {
            assert_eq!(key, "given");
            Ok(outside.clone())
        },
        proc: Some(proc),
        net: Some(net.as_fd()),
        ipc: Some(ipc.as_fd()),
        cgroup: None,
        cgroup_directory: &|_| Err::<PathBuf, _>(Error::bug("no cgroups here")),
        content: &|pieces| {
            let found = contents.iter().find(|one| one.0 == pieces).unwrap();
            Box::new(&found.1[..])
        },
    };
    let namespace = rebuild(&captured.mounts, &env).unwrap();
    assert_eq!(summary(0, Some(&namespace)), before);
    let read = |path: &str| {
        ns::inside(&[namespace.as_fd()], || Ok(std::fs::read_to_string(path)?)).unwrap()
    };
    assert_eq!(read("/etc/given"), "from outside");
    assert_eq!(read("/dev/note"), "kept\n");
    assert_eq!(read("/tmp/file"), "upper\n");
    assert!(
        Process::new(std::process::id().cast_signed())
            .mountinfo()
            .unwrap()
            .iter()
            .all(|one| !one
                .mount_point
                .starts_with(root.to_str().unwrap().as_bytes()))
    );
    writeln!(child.stdin.take().unwrap()).unwrap();
    child.wait().unwrap();
}
