//! Trees like a container's, there and back.

use super::peel::own_mountinfo;
use super::*;
use crate::error::Refusals;
use crate::image::namespaces::mnt::{FileSystem, Mounts};
use crate::proc::mountinfo::Mount;
use crate::proc::read::Process;
use crate::sys::mount::Configuration;
use crate::sys::ns;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A shell in namespaces of its own, in a root of its own, that has run a script and waits.
struct Container {
    shell: Child,
    host_pid: i32,
    /// Holds `root` and `outside`.
    place: tempfile::TempDir,
}

impl Drop for Container {
    fn drop(&mut self) {
        self.shell.stdin.take();
        self.shell.wait().unwrap();
    }
}

impl Container {
    /// `script` runs in the new root before the shell pivots to it, `after` then, with nothing but
    /// busybox; `$1` is a directory outside.
    fn new(script: &str, after: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        for name in ["proc", "sys", "dev", "etc", "tmp", "old", "bin", "data"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::write(root.join("etc/given"), b"").unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        let outside = place.path().join("outside");
        fs::create_dir_all(outside.join("data/below")).unwrap();
        fs::write(outside.join("file"), b"from outside").unwrap();
        let script = format!(
            "set -e; mount --make-rprivate /; mount --bind \"$2\" \"$2\"; cd \"$2\"\n{script}\n\
             pivot_root . old; cd /; /bin/busybox umount -l /old\n{after}\necho ready; read line"
        );
        let mut shell = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--ipc", "--net"])
            .args(["sh", "-c", &script, "sh"])
            .args([&outside, &root])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(shell.stdout.as_mut().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        let parent = Process::new(shell.id().cast_signed());
        let host_pid = parent.children().unwrap()[0];
        Self {
            shell,
            host_pid,
            place,
        }
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("root")
    }

    fn capture(&self, options: &Options) -> (Captured, Refusals) {
        let mut refusals = Refusals::new();
        let captured = capture(self.host_pid, options, &mut refusals).unwrap();
        (captured, refusals)
    }

    /// There and back; the same mountinfo but for numbers.
    fn round_trip(&self, options: &Options) -> (Mounts, Rebuilt) {
        let (captured, refusals) = self.capture(options);
        assert_eq!(refusals.as_slice(), []);
        let rebuilt = self.rebuild(&captured).unwrap();
        let before = Process::new(self.host_pid).mountinfo().unwrap();
        assert_eq!(described(&mounts_of(&rebuilt)), described(&before));
        (captured.mounts, rebuilt)
    }

    fn rebuild(&self, captured: &Captured) -> crate::error::Result<Rebuilt> {
        rebuild_beside(self.host_pid, &self.root(), captured, &|key| {
            self.place.path().join("outside").join(key)
        })
    }
}

/// In the namespaces of process `host_pid`, but for the mount namespace, which is made.
fn rebuild_beside(
    host_pid: i32,
    root: &Path,
    captured: &Captured,
    external: &dyn Fn(&str) -> PathBuf,
) -> crate::error::Result<Rebuilt> {
    let contents: HashMap<String, Vec<u8>> = captured.trees.iter().map(layer_of).collect();
    // The host's own does here; in a restore it is made in the new PID namespace.
    let proc = Configuration::new("proc").unwrap();
    proc.text(b"source", b"proc").unwrap();
    let net = ns::open(host_pid, ns::Kind::Net).unwrap();
    let ipc = ns::open(host_pid, ns::Kind::Ipc).unwrap();
    let cgroup = ns::open(host_pid, ns::Kind::Cgroup).unwrap();
    let link = |process: &str| fs::read_link(format!("/proc/{process}/ns/cgroup")).unwrap();
    let own_cgroup = link("self") != link(&host_pid.to_string());
    let record = serde_json::to_string(&captured.mounts).unwrap();
    rebuild(
        &serde_json::from_str(&record).unwrap(),
        &Env {
            root: Root::Directory(root),
            external: &|_, key, _| Ok(external(key)),
            proc: Some(proc.mount().unwrap()),
            net: Some(net.as_fd()),
            ipc: Some(ipc.as_fd()),
            cgroup: own_cgroup.then_some(cgroup.as_fd()),
            cgroup_directory: &|controllers| Ok(cgroup_of(host_pid, controllers)),
            content: &|pieces| Box::new(std::io::Cursor::new(contents[pieces].clone())),
        },
    )
}

/// Where the host sees the cgroup of a process.
fn cgroup_of(host_pid: i32, controllers: &[String]) -> PathBuf {
    let memberships = Process::new(host_pid).cgroup().unwrap();
    let member = memberships
        .iter()
        .find(|one| one.controllers == controllers)
        .unwrap();
    let path = String::from_utf8(member.path.clone()).unwrap();
    let mounts = Process::new(std::process::id().cast_signed())
        .mountinfo()
        .unwrap();
    let has = |one: &Mount, name: &str| one.super_options().any(|o| o == name.as_bytes());
    let mount = mounts.iter().find(|one| match controllers {
        [] => one.fs_type == b"cgroup2",
        some => one.fs_type == b"cgroup" && some.iter().all(|name| has(one, name)),
    });
    let point = String::from_utf8(mount.unwrap().mount_point.clone()).unwrap();
    PathBuf::from(format!("{point}{path}"))
}

fn layer_of(tree: &Tree) -> (String, Vec<u8>) {
    let mut layer = Vec::new();
    let mut refusals = Refusals::new();
    let overlay = crate::resource::layer::Overlay::No;
    crate::resource::layer::capture(
        tree.root.as_fd(),
        overlay,
        "a test",
        &mut layer,
        &mut refusals,
    )
    .unwrap();
    assert_eq!(refusals.as_slice(), []);
    (tree.pieces.clone(), layer)
}

fn mounts_of(rebuilt: &Rebuilt) -> Vec<Mount> {
    let proc = fs::File::open("/proc").unwrap();
    ns::inside(&[rebuilt.namespace.as_fd()], || own_mountinfo(proc.as_fd())).unwrap()
}

/// What is the same on both sides, one line a mount.
fn described(mounts: &[Mount]) -> Vec<String> {
    let point_of: HashMap<u64, String> = mounts
        .iter()
        .map(|one| {
            (
                one.id,
                String::from_utf8_lossy(&one.mount_point).into_owned(),
            )
        })
        .collect();
    let mut sorted: Vec<&Mount> = super::order::order(mounts)
        .into_iter()
        .map(|at| &mounts[at])
        .collect();
    sorted.sort_by_key(|one| one.mount_point.clone());
    let mut groups = HashMap::new();
    let mut devices = HashMap::new();
    let mut lines = Vec::new();
    for one in sorted {
        let mut number = |group: Option<u64>| {
            let next = groups.len();
            group.map(|group| *groups.entry(group).or_insert(next))
        };
        let (shared, master) = (number(one.shared), number(one.master));
        let next = devices.len();
        let device = *devices.entry(one.device).or_insert(next);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        lines.push(format!(
            "{} on {:?}: {device} {} {} {} {} {} shared {shared:?} master {master:?} unbindable {}",
            text(&one.mount_point),
            point_of.get(&one.parent),
            text(&one.root),
            text(&one.fs_type),
            text(&one.source),
            text(&one.options),
            text(&one.raw_super_options),
            one.unbindable,
        ));
    }
    lines
}

fn read(rebuilt: &Rebuilt, path: &str) -> String {
    ns::inside(&[rebuilt.namespace.as_fd()], || {
        Ok(fs::read_to_string(path)?)
    })
    .unwrap()
}

fn given(entries: &[(&str, &str)]) -> Options {
    Options {
        external: entries
            .iter()
            .map(|(point, key)| (point.as_bytes().to_vec(), (*key).to_owned()))
            .collect(),
        ..Options::default()
    }
}

fn shown<'a>(record: &'a Mounts, point: &str) -> &'a FileSystem {
    let found = record
        .mounts
        .iter()
        .rfind(|one| one.point.as_bytes() == point.as_bytes())
        .unwrap();
    &record.file_systems[found.file_system as usize]
}

#[test]
fn a_containers_mounts_come_back_with_their_content() {
    let container = Container::new(
        r#"
        mount -t proc proc proc
        mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
        mount -t tmpfs -o size=64k,mode=755,nosuid,strictatime tmpfs dev
        mknod -m 666 dev/null c 1 3
        mkdir dev/pts dev/mqueue dev/shm
        mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
        ln -s pts/ptmx dev/ptmx
        mount -t mqueue -o noexec mqueue dev/mqueue
        mount -t tmpfs -o size=128k,nr_inodes=100 shm dev/shm
        echo kept > dev/note
        chown 12:34 dev/note
        touch -d @1000 dev
        mount --bind "$1/file" etc/given
        mount --bind dev/null proc/timer_list
        mount -t tmpfs -o ro tmpfs proc/bus
        mount --bind proc/sys proc/sys
        mount -o remount,bind,ro,nosuid proc/sys
        mount -o remount,bind,ro .
        "#,
        "",
    );
    let (record, rebuilt) = container.round_trip(&given(&[("/etc/given", "file")]));
    assert!(matches!(
        shown(&record, "/etc/given"),
        FileSystem::External { .. }
    ));
    assert_eq!(shown(&record, "/proc/timer_list"), shown(&record, "/dev"));
    assert_eq!(read(&rebuilt, "/etc/given"), "from outside");
    assert_eq!(read(&rebuilt, "/dev/note"), "kept\n");
    let (note, dev) = ns::inside(&[rebuilt.namespace.as_fd()], || {
        Ok((fs::metadata("/dev/note")?, fs::metadata("/dev")?))
    })
    .unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((note.uid(), note.gid()), (12, 34));
    assert_eq!(dev.mtime(), 1000);
    assert_eq!(rebuilt.skipped, []);
    // And nothing of it is seen by the host.
    let root = container.root();
    let own = Process::new(std::process::id().cast_signed())
        .mountinfo()
        .unwrap();
    let is_ours = |one: &Mount| {
        one.mount_point
            .starts_with(root.as_os_str().as_encoded_bytes())
    };
    assert!(!own.iter().any(is_ours));
}

#[test]
fn what_is_covered_by_other_mounts_comes_back_too() {
    let container = Container::new(
        r#"
        mount -t proc proc proc
        mount -t tmpfs first tmp; echo first > tmp/file; mkdir -p tmp/a/b
        mount -t tmpfs deep tmp/a/b; echo deep > tmp/a/b/file
        mount -t tmpfs over tmp/a; echo over > tmp/a/file
        mount -t tmpfs second tmp; echo second > tmp/file
        mount -t tmpfs -o size=1m data data; mkdir data/part; echo part > data/part/file
        touch data/there
        mount --bind data/part dev
        mount --bind data/part/file data/there
        umount data/there
        umount -l data
        mount --bind dev data
        mount -t tmpfs third etc; mkdir etc/in
        mount --bind dev etc/in
        "#,
        "",
    );
    let (_, rebuilt) = container.round_trip(&Options::default());
    assert_eq!(read(&rebuilt, "/tmp/file"), "second\n");
    assert_eq!(read(&rebuilt, "/etc/in/file"), "part\n");
    ns::inside(&[rebuilt.namespace.as_fd()], || {
        ns::unshare_own(ns::Kind::Mnt)?;
        let off = |path| nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH);
        off("/tmp")?;
        assert_eq!(fs::read_to_string("/tmp/file")?, "first\n");
        assert_eq!(fs::read_to_string("/tmp/a/file")?, "over\n");
        off("/tmp/a")?;
        assert_eq!(fs::read_to_string("/tmp/a/b/file")?, "deep\n");
        Ok(())
    })
    .unwrap();
    // All of them still show one and the same directory.
    ns::inside(&[rebuilt.namespace.as_fd()], || {
        Ok(fs::write("/dev/file", "changed")?)
    })
    .unwrap();
    assert_eq!(read(&rebuilt, "/data/file"), "changed");
}

#[test]
fn groups_of_mounts_come_back() {
    let container = Container::new(
        r#"
        mount -t proc proc proc
        mount --make-unbindable proc
        mount -t tmpfs data data; mkdir data/in
        mount --make-shared data
        mount --bind data tmp
        mount --bind data/in dev
        mount --make-slave dev
        mount --bind data etc
        mount --make-slave etc
        mount --make-shared etc
        "#,
        "/bin/busybox mount --make-shared /",
    );
    let (record, rebuilt) = container.round_trip(&Options::default());
    assert_eq!(record.groups.len(), 3);
    let proc = fs::File::open("/proc").unwrap();
    ns::inside(&[rebuilt.namespace.as_fd()], || {
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some("/bin"), "/data/in", None::<&str>, flags, None::<&str>)?;
        let has = |point: &str| fs::exists(format!("{point}/in/busybox")).unwrap_or(false);
        assert!(has("/data") && has("/tmp") && has("/etc"));
        // There the same directory is the root of the mount.
        assert!(fs::exists("/dev/busybox")?);
        nix::mount::umount("/etc/in")?;
        assert!(has("/data") && has("/tmp") && !has("/etc"));
        assert_eq!(own_mountinfo(proc.as_fd())?.len(), 9);
        Ok(())
    })
    .unwrap();
}

#[test]
fn groups_that_reach_the_host_do_so_again() {
    let container = Container::new(
        r#"
        mount -t proc proc proc
        mount --bind "$1/data" data
        "#,
        "",
    );
    // Here the host is a namespace of its own, so that nothing of the real one is shared.
    let options = given(&[("/data", "data")]);
    let outside = container.place.path().join("outside/data");
    let host = ns::fresh_with(ns::Kind::Mnt, || {
        let own = |target: &std::path::Path, flags| {
            nix::mount::mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        };
        use nix::mount::MsFlags;
        own("/".as_ref(), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        let bind = Some(&outside);
        nix::mount::mount(bind, &outside, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        own(&outside, MsFlags::MS_SHARED)?;
        let (mut captured, refusals) = container.capture(&options);
        assert_eq!(refusals.as_slice(), []);
        let record = &mut captured.mounts;
        let at = record
            .mounts
            .iter()
            .position(|one| one.point.as_bytes() == b"/data")
            .unwrap();
        record.groups.push(crate::image::namespaces::mnt::Group {
            file_system: record.mounts[at].file_system,
            master: None,
            outside: true,
        });
        record.mounts[at].master = Some(0);
        let rebuilt = container.rebuild(&captured)?;
        let mounts = mounts_of(&rebuilt);
        let data = mounts
            .iter()
            .find(|one| one.mount_point == b"/data")
            .unwrap();
        let own =
            Process::new(std::process::id().cast_signed()).thread(nix::unistd::gettid().as_raw());
        let own = own.mountinfo()?;
        let here = own
            .iter()
            .find(|one| one.mount_point == outside.as_os_str().as_encoded_bytes());
        assert!(data.master.is_some());
        assert_eq!(data.master, here.unwrap().shared);
        assert_eq!(data.shared, None);
        Ok(())
    });
    drop(host.unwrap());
}

#[test]
fn what_cannot_be_taken_along_is_refused_by_name() {
    let container = Container::new(
        r#"
        mount -t proc proc proc
        mkdir gone; mount --bind gone data; rmdir gone
        mkdir tmp/hidden etc/net etc/lower etc/upper etc/work
        mount -t tmpfs hidden tmp; touch tmp/file
        mount --bind tmp/file etc/given; umount -l tmp
        touch etc/net/ns; mount --bind /proc/self/ns/net etc/net/ns
        mount -t overlay -o lowerdir=etc/lower,upperdir=etc/upper,workdir=etc/work overlay dev
        "#,
        "",
    );
    let (_, refusals) = container.capture(&Options::default());
    let mut codes: Vec<(&str, &str)> = refusals
        .as_slice()
        .iter()
        .map(|one| (one.code, &*one.object))
        .collect();
    codes.sort_unstable();
    assert_eq!(
        codes,
        [
            ("E-MOUNT-DELETED", "mount of ext4 at /data"),
            ("E-MOUNT-HIDDEN", "mount of tmpfs at /etc/given"),
            ("E-MOUNT-KIND", "mount of overlay at /dev"),
            ("E-MOUNT-NAMESPACE", "mount of nsfs at /etc/net/ns"),
        ]
    );
    // What the restoring side gives need not be understood.
    let (_, refusals) = container.capture(&given(&[
        ("/data", "data"),
        ("/etc/given", "file"),
        ("/dev", "data"),
        ("/etc/net/ns", "file"),
    ]));
    assert_eq!(refusals.as_slice(), []);
}

#[test]
fn a_terminal_that_is_bound_to_a_console_is_there_before_its_descriptors() {
    let container = Container::new(
        r#"
        mount -t tmpfs tmpfs dev; mkdir dev/pts; touch dev/console
        mount -t proc proc proc
        mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
        exec 5<>dev/pts/ptmx 6<>dev/pts/ptmx
        mount --bind dev/pts/1 dev/console
        mount -t devpts -o newinstance,ptmxmode=666 devpts etc
        "#,
        "",
    );
    let (_, rebuilt) = container.round_trip(&Options::default());
    let [terminal] = &rebuilt.terminals[..] else {
        panic!("{:?}", rebuilt.terminals);
    };
    assert_eq!(terminal.devpts.as_bytes(), b"/dev/pts");
    assert_eq!(terminal.index, 1);
    ns::inside(&[rebuilt.namespace.as_fd()], || {
        use std::os::unix::fs::MetadataExt;
        let (console, node) = (fs::metadata("/dev/console")?, fs::metadata("/dev/pts/1")?);
        assert_eq!((console.dev(), console.ino()), (node.dev(), node.ino()));
        assert!(!fs::exists("/dev/pts/0")?);
        Ok(())
    })
    .unwrap();
}

#[test]
fn masks_and_mount_points_of_another_kernel_are_no_obstacle() {
    let container = Container::new(
        r#"
        mount -t proc proc proc
        mkdir "$1/empty"; mount --bind "$1/empty" proc/bus; mount -o remount,bind,ro proc/bus
        mount --bind /dev/null proc/timer_list
        mkdir etc/link; ln -s etc/link short; mount --bind "$1/data" etc/link
        "#,
        "",
    );
    let mut options = given(&[("/short", "data"), ("/nowhere", "data")]);
    options.masked = [b"/proc/bus".to_vec(), b"/proc/timer_list".to_vec()].into();
    let (mut captured, refusals) = container.capture(&options);
    assert_eq!(refusals.as_slice(), []);
    let record = &captured.mounts;
    assert_eq!(
        shown(record, "/proc/timer_list"),
        &FileSystem::Device { major: 1, minor: 3 }
    );
    assert!(matches!(shown(record, "/proc/bus"), FileSystem::New { .. }));
    assert!(
        matches!(shown(record, "/etc/link"), FileSystem::External { key, .. } if key == "data")
    );
    for mount in &mut captured.mounts.mounts {
        if mount.point.as_bytes() == b"/proc/timer_list" {
            mount.point = "/proc/of_another_kernel".into();
        }
    }
    let rebuilt = container.rebuild(&captured).unwrap();
    assert_eq!(
        rebuilt.skipped,
        [crate::image::PathBytes::from("/proc/of_another_kernel")]
    );
    let bus = mounts_of(&rebuilt);
    let bus = bus
        .iter()
        .find(|one| one.mount_point == b"/proc/bus")
        .unwrap();
    assert_eq!((&*bus.fs_type, bus.is_read_only()), (&b"tmpfs"[..], true));
    assert!(!fs::exists(container.root().join("proc/of_another_kernel")).unwrap());
}

#[test]
fn a_record_that_leads_nowhere_is_an_error() {
    let container = Container::new("mount -t proc proc proc; mount -t tmpfs tmpfs tmp", "");
    let damage: [fn(&mut Mounts); 7] = [
        |record| record.mounts.clear(),
        |record| record.mounts[1].parent = 7,
        |record| record.mounts[1].file_system = 7,
        |record| record.mounts[1].group = Some(0),
        |record| record.mounts[1].point = "../../tmp".into(),
        |record| record.mounts[1].path = "../..".into(),
        |record| {
            record.file_systems[1] = FileSystem::New {
                fs_type: "overlay".to_owned(),
                source: "overlay".into(),
                options: vec!["lowerdir=/:/etc".into()],
                contents: Vec::new(),
            };
        },
    ];
    for damage in damage {
        let (mut captured, _) = container.capture(&Options::default());
        damage(&mut captured.mounts);
        container.rebuild(&captured).unwrap_err();
    }
}

/// A container of runc's, in a state directory of its own.
struct Runc {
    place: tempfile::TempDir,
    id: String,
}

impl Runc {
    fn start(change: impl FnOnce(&mut serde_json::Value, &Path)) -> (Self, serde_json::Value) {
        let place = tempfile::tempdir().unwrap();
        let id = format!("ocimig-mnt-{}-{:p}", std::process::id(), &place);
        let bundle = place.path().join("bundle");
        for name in ["bin", "etc", "data"] {
            fs::create_dir_all(bundle.join("rootfs").join(name)).unwrap();
        }
        fs::copy("/bin/busybox", bundle.join("rootfs/bin/busybox")).unwrap();
        let made = Command::new("runc")
            .arg("spec")
            .current_dir(&bundle)
            .status();
        assert!(made.expect("runc is installed").success());
        let config = bundle.join("config.json");
        let mut spec: serde_json::Value =
            serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = serde_json::json!(["/bin/busybox", "sleep", "1000"]);
        spec["process"]["rlimits"] = serde_json::json!([]);
        spec["linux"]["cgroupsPath"] = format!("/{id}").into();
        change(&mut spec, &bundle);
        fs::write(&config, serde_json::to_vec(&spec).unwrap()).unwrap();
        let this = Self { place, id };
        this.run(&["run", "-d", "-b", bundle.to_str().unwrap(), &this.id]);
        (this, spec)
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("runc")
            .arg("--root")
            .arg(self.place.path().join("state"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(fs::File::create(self.place.path().join("stdout")).unwrap())
            .stderr(fs::File::create(self.place.path().join("stderr")).unwrap())
            .status()
            .unwrap();
        let text = |name| fs::read_to_string(self.place.path().join(name)).unwrap();
        assert!(output.success(), "{}", text("stderr"));
        text("stdout")
    }

    fn host_pid(&self) -> i32 {
        let state: serde_json::Value =
            serde_json::from_str(&self.run(&["state", &self.id])).unwrap();
        i32::try_from(state["pid"].as_i64().unwrap()).unwrap()
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        self.run(&["delete", "-f", &self.id]);
    }
}

#[test]
fn the_mounts_of_a_container_of_runcs_come_back() {
    runc_round_trip(false);
}

#[test]
fn the_mounts_of_a_container_with_a_cgroup_namespace_come_back() {
    runc_round_trip(true);
}

fn runc_round_trip(cgroup_namespace: bool) {
    let (container, spec) = Runc::start(|spec, bundle| {
        let source = bundle.join("volume");
        fs::create_dir_all(source.join("below")).unwrap();
        fs::write(bundle.join("hostname"), "a name\n").unwrap();
        let mounts = spec["mounts"].as_array_mut().unwrap();
        let more = serde_json::json!([
            {"destination": "/data", "type": "bind", "source": source, "options": ["rbind", "rslave"]},
            {"destination": "/data/below/tmp", "type": "tmpfs", "source": "tmpfs",
                "options": ["size=1m"]},
            {"destination": "/etc/hostname", "type": "bind", "source": bundle.join("hostname"),
                "options": ["bind", "ro"]},
        ]);
        mounts.extend(more.as_array().unwrap().iter().cloned());
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|one| one["type"] != "cgroup");
        if cgroup_namespace {
            namespaces.push(serde_json::json!({"type": "cgroup"}));
        }
    });
    let host_pid = container.host_pid();
    container.run(&[
        "exec",
        &container.id,
        "/bin/busybox",
        "sh",
        "-c",
        "echo shared > /dev/shm/note; echo below > /data/below/tmp/note",
    ]);
    let options = Options {
        external: external_of_spec(&spec),
        masked: masked_of_spec(&spec),
        ..Options::default()
    };
    let mut refusals = Refusals::new();
    let captured = capture(host_pid, &options, &mut refusals).unwrap();
    assert_eq!(refusals.as_slice(), []);
    let bundle = container.place.path().join("bundle");
    let external = |key: &str| source_in_spec(&spec, &bundle, key).unwrap();
    let rebuilt = rebuild_beside(host_pid, &bundle.join("rootfs"), &captured, &external).unwrap();
    let before = Process::new(host_pid).mountinfo().unwrap();
    assert!(before.len() > 20, "{before:?}");
    assert_eq!(described(&mounts_of(&rebuilt)), described(&before));
    assert_eq!(read(&rebuilt, "/dev/shm/note"), "shared\n");
    assert_eq!(read(&rebuilt, "/data/below/tmp/note"), "below\n");
    assert_eq!(read(&rebuilt, "/etc/hostname"), "a name\n");
}
