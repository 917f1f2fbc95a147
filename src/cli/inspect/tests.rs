//! What is printed of an image with a little of everything.

use super::view::View;
use super::*;
use crate::image::PathBytes;
use crate::image::archive::{Output, Writer};
use crate::image::files::{Descriptor, FileId, FileKind, FileReference, Files, Inode, OpenFile};
use crate::image::header::{Compression, Container, FORMAT, Header, Host, Requirement};
use crate::image::memory::{Area, Backing, Memory, Objects, PageRun, Program, Shared, SharedKind};
use crate::image::namespaces::Namespace;
use crate::image::namespaces::uts::Uts;
use crate::image::process::{Alive, Credentials, Place, Process, Thread};
use crate::image::sockets::{Common, Sockets, Tcp, TcpState};
use crate::image::tree;
use std::collections::BTreeMap;

fn header() -> Header {
    Header {
        format: FORMAT,
        engine: "ocimig 0.1.0".into(),
        created: 1_700_000_000,
        host: Host {
            kernel: "6.18.0".into(),
            architecture: "x86_64".into(),
            page_size: 4096,
            cpu_model: "Some CPU".into(),
            ..Host::default()
        },
        container: Container {
            id: "web".into(),
            name: None,
            runtime: Some("runc".into()),
        },
        compression: Compression::Zstd,
        memory_only: false,
        requires: vec![Requirement {
            name: "cpu.avx2".into(),
            needed_by: "pid 1 (sh)".into(),
        }],
    }
}

fn file(path: &str) -> FileReference {
    FileReference {
        path: PathBytes::from(path),
        inode: Inode { dev: 1, ino: 2 },
        file_type: "regular".into(),
        size: 100,
        mtime: (0, 0),
        ghost: None,
        opened_as: None,
    }
}

fn area(start: u64, pages: u64, perms: &str, backing: Backing) -> Area {
    Area {
        start,
        end: start + pages * 4096,
        perms: perms.into(),
        backing,
        name: None,
        attributes: Vec::new(),
    }
}

fn memory() -> Memory {
    let mut stack = area(0x7ffc_0000_0000, 33, "rw-p", Backing::Anonymous);
    stack.attributes.push("growsdown".into());
    let text = Backing::File {
        file: 0,
        offset: 0,
        writable: false,
    };
    let shared = Backing::Shared {
        object: 0,
        offset: 0,
        writable: true,
    };
    Memory {
        program: Program {
            exe: Some(file("/bin/sh")),
            start_brk: 0x5600_0000_0000,
            brk: 0x5600_0000_3000,
            start_stack: 0x7ffc_0002_0100,
            arg_start: 0x7ffc_0002_0ff8,
            arg_end: 0x7ffc_0002_100c,
            ..Program::default()
        },
        areas: vec![
            area(0x5500_0000_0000, 10, "r-xp", text),
            area(0x5600_0000_0000, 3, "rw-p", Backing::Anonymous),
            area(0x7000_0000_0000, 4, "rw-s", shared),
            stack,
        ],
        pages: vec![
            PageRun {
                start: 0x5600_0000_0000,
                pages: 2,
                index: 0,
            },
            PageRun {
                start: 0x7ffc_0002_0000,
                pages: 1,
                index: 3,
            },
            PageRun {
                start: 0x7ffc_0002_1000,
                pages: 1,
                index: 2,
            },
        ],
        ..Memory::default()
    }
}

fn process(pid: i32, ppid: i32, comm: &str) -> Process {
    Process {
        member: tree::Member {
            pid,
            ppid,
            pgid: 1,
            sid: 1,
            ..tree::Member::default()
        },
        comm: PathBytes::from(comm),
        stopped: None,
        alive: Some(Alive {
            threads: vec![Thread {
                tid: pid,
                comm: PathBytes::from(comm),
                credentials: Credentials {
                    uids: [0, 33, 33, 33],
                    gids: [0, 44, 44, 44],
                    ..Credentials::default()
                },
                ..Thread::default()
            }],
            place: Place {
                cwd: Some(file("/srv")),
                root: None,
                umask: 0o22,
            },
            ..Alive::default()
        }),
    }
}

fn processes() -> Vec<Process> {
    let mut shell = process(1, 0, "sh");
    if let Some(alive) = &mut shell.alive {
        alive.memory = memory();
    }
    let mut sleeper = process(7, 1, "sleep\x1b[2J");
    sleeper.stopped = Some(19);
    let mut dead = process(9, 7, "true");
    dead.alive = None;
    dead.member.zombie = Some(0x300);
    vec![shell, dead, process(8, 1, "worker"), sleeper]
}

fn open_file(id: u32, flag: &str, kind: FileKind) -> OpenFile {
    OpenFile {
        id: FileId(id),
        flags: vec![flag.into()],
        pos: 5,
        owner: None,
        signal: 0,
        locks: Vec::new(),
        kind,
    }
}

fn files() -> Files {
    let descriptor = |fd: i32, id: u32| Descriptor {
        fd,
        cloexec: fd > 2,
        file: FileId(id),
    };
    Files {
        tables: BTreeMap::from([(1, vec![descriptor(0, 1), descriptor(3, 2)])]),
        shared_tables: BTreeMap::from([(8, 1)]),
        open_files: vec![
            open_file(1, "O_RDONLY", FileKind::Path(file("/srv/input"))),
            open_file(2, "O_RDWR", FileKind::Socket { socket: 777 }),
        ],
        ..Files::default()
    }
}

fn sockets() -> Sockets {
    Sockets {
        tcp: vec![Tcp {
            common: Common {
                id: 2,
                uid: 0,
                gid: 0,
                options: BTreeMap::new(),
            },
            v6: false,
            local: Some("127.0.0.1:80".parse().unwrap()),
            state: TcpState::Listening {
                backlog: 5,
                pending: Vec::new(),
            },
            shut_read: false,
            shut_write: false,
            receive_queue: Default::default(),
            send_queue: Default::default(),
        }],
        ..Sockets::default()
    }
}

fn image(processes: &[Process]) -> Reader {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image.tar");
    let mut writer = Writer::create(Output::New(path.clone()), &header()).unwrap();
    for process in processes {
        let name = format!("processes/{}.json", process.member.pid);
        writer.record(&name, process).unwrap();
    }
    writer.record("objects/files.json", &files()).unwrap();
    writer.record("objects/sockets.json", &sockets()).unwrap();
    let objects = Objects {
        anonymous_pages: 4,
        files: vec![file("/bin/sh")],
        shared: vec![Shared {
            inode: Inode { dev: 0x1a, ino: 99 },
            kind: SharedKind::Memfd {
                name: PathBytes::from("ring"),
            },
            size: 16384,
            pages: vec![(0, 1, 0)],
        }],
    };
    writer.record("objects/memory.json", &objects).unwrap();
    let names = Uts {
        hostname: "web-1".into(),
        domainname: "(none)".into(),
    };
    writer.record("namespaces/uts.json", &names).unwrap();
    let listed = |kind: &str, host| Namespace {
        kind: kind.into(),
        inode: 1,
        host,
        external: None,
    };
    let list = [
        listed("pid", false),
        listed("user", true),
        listed("uts", false),
    ];
    writer.record("namespaces/list.json", &list).unwrap();
    let mut pages = vec![0; 4 * 4096];
    pages[3 * 4096 + 0xff8..].copy_from_slice(b"/bin/sh\0");
    pages[2 * 4096..2 * 4096 + 12].copy_from_slice(b"-c\0echo\nhi\0\0");
    writer.piece("memory/anonymous", 0, pages).unwrap();
    writer
        .piece("memory/shared-1a-99", 0, vec![1; 4096])
        .unwrap();
    writer.bytes("files/ghost-1", b"abc").unwrap();
    writer.finish().unwrap();
    Reader::open(&path).unwrap()
}

fn printed(view: &View) -> String {
    let mut out = Vec::new();
    text::print(view, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_person_sees_the_tree_and_each_process_with_regions_and_descriptors() {
    let reader = image(&processes());
    verify(&reader).unwrap();
    let view = View::of(&reader).unwrap();
    let text = printed(&view);
    let expected = include_str!("expected.txt");
    // Sizes of records change with every field.
    let steady = |text: &str| {
        let lines = text.lines();
        lines
            .filter(|line| !line.starts_with("  records") && !line.starts_with("  image"))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    assert_eq!(steady(&text), steady(expected));
    assert!(!text.contains('\x1b'));
}

#[test]
fn a_program_gets_the_same_as_json() {
    let view = View::of(&image(&processes())).unwrap();
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!(json["header"]["container"]["id"], "web");
    assert_eq!(json["sizes"]["pages"], 5 * 4096);
    let shell = &json["processes"][0];
    assert_eq!(shell["pid"], 1);
    assert_eq!(shell["command"][2], "echo\nhi");
    assert_eq!(shell["regions"][1]["kind"], "heap");
    assert_eq!(shell["regions"][1]["stored"], 8192);
    assert_eq!(shell["regions"][3]["start"], "7ffc00000000");
    assert_eq!(shell["descriptors"][1]["kind"], "tcp");
    assert_eq!(json["processes"][1]["state"], "stopped");
    // It shares the table of process 1.
    assert_eq!(
        json["processes"][2]["descriptors"][0]["about"],
        "/srv/input"
    );
    assert_eq!(json["processes"][3]["state"], "zombie");
    assert_eq!(json["shared_memory"][0]["processes"][0], 1);
    assert_eq!(json["namespaces"][1]["host"], true);
    assert_eq!(json["namespaces"][2]["member"], "namespaces/uts.json");
    assert_eq!(json["members"][0]["name"], "ocimig.json");
}

#[test]
fn one_process_can_be_picked() {
    let mut view = View::of(&image(&processes())).unwrap();
    view.only(7).unwrap();
    assert!(printed(&view).contains("Processes (1)"));
    assert_eq!(view.only(4).unwrap_err().code(), "E-NO-SUCH-PROCESS");
}

#[test]
fn records_that_make_no_sense_do_no_harm() {
    let mut endless = process(3, 4, "a");
    if let Some(alive) = &mut endless.alive {
        let mut memory = memory();
        memory.areas[1].end = u64::MAX;
        memory.areas[2].start = u64::MAX;
        memory.areas[0].backing = Backing::File {
            file: 9,
            offset: u64::MAX,
            writable: true,
        };
        memory.pages[0].pages = u64::MAX;
        memory.pages[1].index = u64::MAX;
        memory.program.arg_start = 0x5600_0000_0010;
        memory.program.arg_end = u64::MAX;
        alive.memory = memory;
    }
    // Each other's parents, and a very long line of descent.
    let circle = process(4, 3, "b");
    let chain = (5..3000).map(|pid| process(pid, pid - 1, "c"));
    let all: Vec<_> = [endless, circle].into_iter().chain(chain).collect();
    let reader = image(&all);
    assert_eq!(verify(&reader).unwrap_err().code(), "E-IMAGE-RECORD");
    let view = View::of(&reader).unwrap();
    let text = printed(&view);
    assert_eq!(text.matches("\nProcess ").count(), all.len());
    assert!(text.len() < 2_000_000);
}
