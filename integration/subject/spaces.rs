//! What namespaces hold.

use super::sys::{Area, PAGE, call};
use super::{Check, Child, SetUp, ensure};
use std::error::Error;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::process::Command;

/// The kinds of this module.
pub const KINDS: &[(&str, SetUp)] = &[
    ("space_tmpfs", tmpfs),
    ("space_mounts", mounts),
    ("space_rootfs", rootfs),
    ("space_names", names),
    ("space_shm", shm),
    ("space_semaphores", semaphores),
    ("space_messages", messages),
    ("space_network", network),
];

/// Runs a program of the container's root.
fn run(command: &str) -> Result<String, Box<dyn Error>> {
    let output = Command::new("/bin/sh").args(["-c", command]).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Files of every sort below `place`, and a check that they are all there.
fn fill(place: &'static str) -> Result<Check, Box<dyn Error>> {
    let path = move |name: &str| format!("{place}/{name}");
    fs::create_dir_all(path("a/b/c"))?;
    let content: Vec<u8> = (0..300_000_u32)
        .map(|index| (index * 7 % 253) as u8)
        .collect();
    fs::write(path("a/content"), &content)?;
    fs::set_permissions(path("a/content"), fs::Permissions::from_mode(0o4751))?;
    chown(path("a/b"), Some(1234), Some(4321))?;
    fs::set_permissions(path("a/b/c"), fs::Permissions::from_mode(0o1777))?;
    symlink("to/nowhere", path("a/link"))?;
    fs::hard_link(path("a/content"), path("a/b/other-name"))?;
    nix::unistd::mkfifo(
        path("fifo").as_str(),
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )?;
    let hole = fs::File::create(path("hole"))?;
    hole.set_len(1 << 22)?;
    std::os::unix::fs::FileExt::write_all_at(&hole, b"middle", 1 << 21)?;
    fs::write(path("a/b/c/name with \n and \u{e4}"), "odd")?;
    Ok(Box::new(move |_| {
        ensure!(
            fs::read(path("a/content"))? == content,
            "another content in {place}"
        );
        let data = fs::metadata(path("a/content"))?;
        ensure!(data.mode() & 0o7777 == 0o4751, "mode {:o}", data.mode());
        let other = fs::metadata(path("a/b/other-name"))?;
        ensure!(
            other.ino() == data.ino() && data.nlink() == 2,
            "two files instead of one"
        );
        let owned = fs::metadata(path("a/b"))?;
        ensure!((owned.uid(), owned.gid()) == (1234, 4321), "another owner");
        ensure!(
            fs::metadata(path("a/b/c"))?.mode() & 0o7777 == 0o1777,
            "another mode"
        );
        ensure!(
            fs::read_link(path("a/link"))?.as_os_str() == "to/nowhere",
            "another link"
        );
        ensure!(fs::metadata(path("fifo"))?.file_type().is_fifo(), "no FIFO");
        let hole = fs::read(path("hole"))?;
        ensure!(
            hole.len() == 1 << 22 && &hole[1 << 21..][..6] == b"middle",
            "the hole"
        );
        ensure!(
            hole[..1 << 21].iter().all(|byte| *byte == 0),
            "the hole's first half"
        );
        let odd = fs::read(path("a/b/c/name with \n and \u{e4}"))?;
        ensure!(odd == b"odd", "the odd name");
        Ok(())
    }))
}

/// In a tmpfs that the spec mounts.
fn tmpfs() -> Result<Check, Box<dyn Error>> {
    fill("/dev/shm")
}

/// In the root.
fn rootfs() -> Result<Check, Box<dyn Error>> {
    fs::remove_file("/etc/group")?;
    fs::create_dir_all("/var")?;
    let mut filled = fill("/var")?;
    fs::write("/etc/passwd", "changed\n")?;
    Ok(Box::new(move |gap| {
        ensure!(
            fs::metadata("/etc/group").is_err(),
            "what was deleted is back"
        );
        ensure!(
            fs::read("/etc/passwd")? == b"changed\n",
            "what was changed is not"
        );
        filled(gap)
    }))
}

/// Mounts that were made inside.
fn mounts() -> Result<Check, Box<dyn Error>> {
    run("mkdir -p /mnt/one /mnt/two /mnt/three /mnt/read-only
        mount -t tmpfs -o size=8m,mode=700 one /mnt/one
        mount --bind /mnt/one /mnt/two
        mount -t tmpfs over /mnt/two
        mount -t proc proc /mnt/three
        mount --bind /var /mnt/read-only
        mount -o remount,bind,ro /mnt/read-only
        echo below > /mnt/one/file; echo above > /mnt/two/file")?;
    Ok(Box::new(|_| {
        ensure!(fs::read("/mnt/one/file")? == b"below\n", "the first tmpfs");
        ensure!(
            fs::read("/mnt/two/file")? == b"above\n",
            "the mount over another"
        );
        ensure!(
            fs::metadata("/mnt/one")?.mode() & 0o777 == 0o700,
            "another mode"
        );
        ensure!(fs::metadata("/mnt/three/1/stat").is_ok(), "no proc");
        ensure!(
            fs::write("/mnt/read-only/x", "").is_err(),
            "what is read-only is written"
        );
        Ok(())
    }))
}

/// Host and domain name.
fn names() -> Result<Check, Box<dyn Error>> {
    nix::unistd::sethostname("another-name")?;
    call!(libc::setdomainname(c"another-domain".as_ptr(), 14))?;
    Ok(Box::new(|_| {
        let now = nix::sys::utsname::uname()?;
        ensure!(
            now.nodename() == "another-name",
            "host name {:?}",
            now.nodename()
        );
        ensure!(
            now.domainname() == "another-domain",
            "domain name {:?}",
            now.domainname()
        );
        Ok(())
    }))
}

/// Attached by two, attached by nobody, deleted but attached.
fn shm() -> Result<Check, Box<dyn Error>> {
    let get = |key, pages: usize| call!(libc::shmget(key, pages * PAGE, libc::IPC_CREAT | 0o640));
    let (attached, lonely) = (get(0x1234, 16)?, get(0x5678, 8)?);
    let doomed = get(libc::IPC_PRIVATE, 4)?;
    let area = Area::attach(attached, 16)?;
    area.pages(0, 8).fill(1);
    let doomed_area = Area::attach(doomed, 4)?;
    doomed_area.fill(2);
    call!(libc::shmctl(doomed, libc::IPC_RMID, std::ptr::null_mut()))?;
    let other = Area::attach(lonely, 8)?;
    other.fill(3);
    other.detach()?;
    let mut child = Child::fork(move || {
        let mut asked = 0;
        Ok(Box::new(move |_| {
            asked += 1;
            super::eventually("the parent's word", || area.get(8 * PAGE / 8) == asked)?;
            area.set(8 * PAGE / 8 + 1, asked * 2);
            Ok(())
        }))
    })?;
    let mut asked = 0;
    Ok(Box::new(move |_| {
        asked += 1;
        area.set(8 * PAGE / 8, asked);
        child.check()?;
        ensure!(
            area.get(8 * PAGE / 8 + 1) == asked * 2,
            "the child writes elsewhere"
        );
        area.pages(0, 8).check("the segment", 1)?;
        doomed_area.check("the deleted segment", 2)?;
        let id = call!(libc::shmget(0x5678, 0, 0))?;
        ensure!(id == lonely, "segment {id}, not {lonely}");
        let other = Area::attach(id, 8)?;
        other.check("what nobody attached", 3)?;
        other.detach()?;
        Ok(())
    }))
}

fn semaphores() -> Result<Check, Box<dyn Error>> {
    let id = call!(libc::semget(0xabc, 4, libc::IPC_CREAT | 0o600))?;
    for number in 0..4 {
        call!(libc::semctl(id, number, libc::SETVAL, number * 100 + 5))?;
    }
    Ok(Box::new(move |_| {
        let now = call!(libc::semget(0xabc, 4, 0))?;
        ensure!(now == id, "set {now}, not {id}");
        for number in 0..4 {
            let value = call!(libc::semctl(id, number, libc::GETVAL))?;
            ensure!(value == number * 100 + 5, "semaphore {number} is {value}");
        }
        Ok(())
    }))
}

fn messages() -> Result<Check, Box<dyn Error>> {
    #[repr(C)]
    struct Message {
        kind: i64,
        text: [u8; 200],
    }
    let id = call!(libc::msgget(0xdef, libc::IPC_CREAT | 0o600))?;
    let send = move || -> std::io::Result<()> {
        for number in 1..=5_u8 {
            let message = Message {
                kind: i64::from(number % 3 + 1),
                text: [number; 200],
            };
            let pointer = (&raw const message).cast();
            call!(libc::msgsnd(
                id,
                pointer,
                usize::from(number) * 30,
                libc::IPC_NOWAIT
            ))?;
        }
        Ok(())
    };
    send()?;
    Ok(Box::new(move |_| {
        for number in 1..=5_u8 {
            let mut message = Message {
                kind: 0,
                text: [0; 200],
            };
            let pointer = (&raw mut message).cast();
            let count = call!(libc::msgrcv(id, pointer, 200, 0, libc::IPC_NOWAIT))?;
            ensure!(
                count as usize == usize::from(number) * 30,
                "{count} bytes in {number}"
            );
            ensure!(
                message.kind == i64::from(number % 3 + 1),
                "type {}",
                message.kind
            );
            ensure!(
                message.text[0] == number,
                "message {} at {number}",
                message.text[0]
            );
        }
        send()?;
        Ok(())
    }))
}

/// Addresses, routes, a device of its own and settings.
fn network() -> Result<Check, Box<dyn Error>> {
    run("ip addr add 10.99.0.1/24 dev lo
        ip addr add fd00::99/64 dev lo
        ip route add 10.98.0.0/16 dev lo
        echo 1 > /proc/sys/net/ipv4/ip_forward
        echo 77 > /proc/sys/net/ipv4/ip_default_ttl || true")?;
    let look = || {
        run(
            "ip -o addr show lo | sed 's/valid_lft.*//; s/ tentative//'; ip route; cat /proc/sys/net/ipv4/ip_forward",
        )
    };
    let before = look()?;
    ensure!(
        before.contains("10.99.0.1") && before.contains("10.98.0.0"),
        "{before}"
    );
    Ok(Box::new(move |_| {
        let now = look()?;
        ensure!(now == before, "{now}, not {before}");
        Ok(())
    }))
}
