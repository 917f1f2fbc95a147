//! `ocimig` as a person calls it: what it prints, and what its exit code says.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

fn ocimig(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ocimig"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("running ocimig")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn fails(arguments: &[&str], code: i32, says: &str) {
    let output = ocimig(arguments);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    assert!(errors.contains(says), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty());
}

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/proc/classify/samples");

#[test]
fn regions_of_a_file_stand_under_five_headings() {
    let output = ocimig(&["regions", "--maps", &format!("{SAMPLES}/bash-centos7.maps")]);
    assert!(output.status.success());
    let headings: Vec<String> = text(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_prefix("#### "))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        headings,
        [
            "1. TEXT",
            "2. DATA",
            "3. HEAP + Shared Library",
            "4. STACK",
            "5. VDSO (Virtual Dynamic Shared Object) Segment + Vsyscall Segment"
        ]
    );
}

#[test]
fn regions_of_a_process_are_all_there_once() {
    let mut child = Command::new("sleep")
        .arg("60")
        .spawn()
        .expect("running sleep");
    let pid = child.id().to_string();
    let executed = || {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
        exe.is_ok_and(|exe| exe.ends_with("sleep") || exe.ends_with("busybox"))
    };
    let settled = || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/wchan"));
        executed() && state.is_ok_and(|place| place.contains("nanosleep"))
    };
    while !settled() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    let printed = ocimig(&["regions", &pid]);
    let json = ocimig(&["regions", "--json", &pid]);
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    assert!(printed.status.success() && json.status.success());
    let printed = text(&printed.stdout);
    for line in maps.lines() {
        let found = printed.matches(line.trim_end()).count();
        assert_eq!(found, 1, "{line}\n{printed}");
    }
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["pid"].to_string(), pid);
    let segments = json["segments"].as_array().expect("segments");
    let count: usize = segments
        .iter()
        .map(|segment| segment["regions"].as_array().expect("regions").len())
        .sum();
    assert_eq!(count, maps.lines().count());
    for figure in ["size", "resident", "private_dirty", "stored"] {
        let sum: u64 = segments
            .iter()
            .map(|segment| segment["total"][figure].as_u64().expect("a figure"))
            .sum();
        assert_eq!(json["total"][figure], sum, "{figure}");
        assert!(sum > 0, "{figure}");
    }
}

#[test]
fn what_cannot_be_looked_at_is_said() {
    fails(
        &["regions", "2147483647"],
        4,
        "there is no process 2147483647",
    );
    fails(&["regions", "0"], 2, "0");
    fails(&["regions"], 2, "PID");
    fails(&["regions", "--maps", "/nonexistent"], 4, "no such file");
    fails(&["regions", "--maps", "/etc/hostname"], 2, "line 1 ");
}

/// Runs the program as a user without any rights. It is executed as a descriptor, since its path may
/// lie where nobody may look.
fn as_nobody(arguments: &[&str]) -> Output {
    let program = std::fs::File::open(env!("CARGO_BIN_EXE_ocimig")).expect("the program");
    Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .args(arguments)
        .uid(65534)
        .gid(65534)
        .output()
        .expect("running ocimig as another user")
}

#[test]
fn what_may_not_be_looked_at_is_said() {
    let output = as_nobody(&["regions", "1"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{errors}");
    assert!(errors.contains("E-PERMISSION"), "{errors}");
}

#[test]
fn a_host_that_can_is_told_so_with_the_price_of_each_gap() {
    let output = ocimig(&["check"]);
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("can be checkpointed and restored here"));
    let json: serde_json::Value =
        serde_json::from_slice(&ocimig(&["check", "--json"]).stdout).expect("JSON");
    assert_eq!(json["usable"], true);
    let findings = json["findings"].as_array().expect("findings");
    let gaps = findings.iter().filter(|one| one["state"] != "ok").count();
    assert_eq!(printed.matches("\n           costs:  ").count(), gaps);
}

#[test]
fn a_user_without_rights_is_told_what_is_missing() {
    let output = as_nobody(&["check"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{errors}");
    assert!(errors.contains("E-HOST-MISSING"), "{errors}");
    assert!(errors.contains("clone3-set-tid"), "{errors}");
    let printed = text(&output.stdout);
    assert!(printed.contains("missing  cap-sys-admin"), "{printed}");
    assert!(printed.contains("cannot be checkpointed and restored here"));
}
