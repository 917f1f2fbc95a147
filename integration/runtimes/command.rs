//! The command line of `criu`, as LXC and scripts call it.

use super::{COUNT, counts_on, images, runc::Runc, with_criu};
use crate::harness::{run, try_run};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::Stdio;

#[test]
fn the_version_has_the_form_that_callers_parse() {
    let ground = crate::harness::Ground::new();
    let text = run(with_criu(&ground, "criu").arg("--version"));
    let number = text.strip_prefix("Version: ").unwrap().trim();
    let (major, minor) = number.split_once('.').unwrap();
    assert!((major.parse::<u32>().unwrap(), minor.parse::<u32>().unwrap()) >= (3, 16));
}

#[test]
fn check_says_what_is_there_by_its_status() {
    let ground = crate::harness::Ground::new();
    let check = |args: &[&str]| try_run(with_criu(&ground, "criu").arg("check").args(args));
    assert_eq!(check(&[]).unwrap(), "Looks good.\n");
    assert!(check(&["--feature", "external_net_ns"]).is_ok());
    assert!(check(&["--feature", "compat_cr"]).is_err());
    assert!(check(&["--feature", "soul"]).is_err());
    assert!(check(&["--feature", "list"]).unwrap().contains("uffd"));
}

#[test]
fn dump_and_restore_by_the_command_line_run_scripts_and_write_pids() {
    let container = Runc::shell(COUNT);
    counts_on(&container.out());
    let images = images(&container.ground);
    let script = container.ground.fresh("script");
    let told = container.ground.fresh("told");
    let text = format!(
        "#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION >> {}\n",
        told.display()
    );
    std::fs::write(&script, text).unwrap();
    run(std::process::Command::new("chmod").arg("755").arg(&script));
    let host_pid = container.host_pid().to_string();
    run(with_criu(&container.ground, "criu")
        .args([
            "dump",
            "-v4",
            "-o",
            "dump.log",
            "--leave-running",
            "-t",
            &host_pid,
            "-D",
        ])
        .arg(&images)
        .arg("--action-script")
        .arg(&script));
    counts_on(&container.out());
    let stages = std::fs::read_to_string(&told).unwrap();
    assert_eq!(
        stages.lines().collect::<Vec<_>>(),
        ["pre-dump", "network-lock", "post-dump", "network-unlock"]
    );
    let log = std::fs::read_to_string(images.join("dump.log")).unwrap();
    assert!(log.starts_with("(00.") && !log.contains("Error"), "{log}");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let ground = crate::harness::Ground::new();
    let text = try_run(
        with_criu(&ground, "criu")
            .args(["dump", "-t", "1", "--lazy-pages", "--stream", "-D"])
            .arg(ground.path()),
    )
    .unwrap_err();
    assert!(
        text.contains("option lazy-pages") && text.contains("option stream"),
        "{text}"
    );
    let text = try_run(with_criu(&ground, "criu").args(["page-server", "--port", "7"]));
    assert!(text.unwrap_err().contains("E-CRIU-PAGE-SERVER"));
}

#[test]
fn the_service_answers_whoever_connects() {
    let ground = crate::harness::Ground::new();
    let address = ground.path().join("service");
    // The write end of a pipe is where it says that it is ready: its standard output.
    let mut service = with_criu(&ground, "criu")
        .args(["service", "--status-fd", "1", "--address"])
        .arg(&address)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = Vec::new();
    let stdout = service.stdout.as_mut().unwrap();
    stdout.read_to_end(&mut ready).unwrap();
    assert_eq!(ready, [0]);
    for _ in 0..2 {
        let caller = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::empty(),
            None,
        )
        .unwrap();
        connect(caller.as_raw_fd(), &UnixAddr::new(&address).unwrap()).unwrap();
        // Request 10 asks for the version.
        send(caller.as_raw_fd(), &[8, 10], MsgFlags::empty()).unwrap();
        let mut answer = [0; 512];
        let length = recv(caller.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        assert_eq!(&answer[..4], [8, 10, 16, 1]);
        let text = String::from_utf8_lossy(&answer[..length]);
        assert!(text.contains("ocimig"), "{text}");
    }
    service.kill().unwrap();
    service.wait().unwrap();
}
