//! The part of a runtime is played here, that of the engine as well: order, pids, descriptors and
//! answers are those that were recorded from the real ones.

use super::*;
use crate::request::{
    Checkpoint, CheckpointReport, External, Facts, Restore, Restored, Stage, Tcp, Watcher,
};
use crate::sys::socket::{Control, pair, receive};
use prost::Message;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::{JoinHandle, spawn};

/// Goes through the stages of its real counterpart, and does nothing else.
#[derive(Default)]
struct Mock {
    fails: bool,
    leave_running: bool,
    asked: Option<String>,
    external: Vec<External>,
}

const PID: i32 = 29950;

impl Engine for Mock {
    fn checkpoint(
        &mut self,
        request: &Checkpoint,
        watcher: &mut dyn Watcher,
    ) -> Result<CheckpointReport> {
        self.asked = Some(format!("{request:?}"));
        let nothing = Facts::default();
        if request.options().extent == Extent::Whole {
            watcher.notify(Stage::PreDump, &nothing)?;
            watcher.notify(Stage::NetworkLock, &nothing)?;
            watcher.notify(Stage::QueryExtFiles, &nothing)?;
            self.external = watcher.external();
            if self.fails {
                watcher.notify(Stage::NetworkUnlock, &nothing)?;
                let mut refusals = crate::error::Refusals::new();
                refusals.add("E-IOURING", "fd 3 of pid 1", "io_uring", "close it");
                refusals.into_result()?;
            }
            watcher.notify(Stage::PostDump, &nothing)?;
            if self.leave_running {
                watcher.notify(Stage::NetworkUnlock, &nothing)?;
            }
        }
        Ok(CheckpointReport {
            pages_written: 12,
            ..CheckpointReport::default()
        })
    }

    fn restore(&mut self, request: &Restore, watcher: &mut dyn Watcher) -> Result<Restored> {
        self.asked = Some(format!("{request:?}"));
        let nothing = Facts::default();
        let with_pid = Facts {
            pid: Some(PID),
            master: None,
        };
        let master = File::open("/dev/null")?;
        let with_master = Facts {
            pid: Some(PID),
            master: Some(master.as_fd()),
        };
        watcher.notify(Stage::PreRestore, &nothing)?;
        watcher.notify(Stage::SetupNamespaces, &with_pid)?;
        watcher.notify(Stage::PostSetupNamespaces, &with_pid)?;
        watcher.notify(Stage::OrphanPtsMaster, &with_master)?;
        watcher.notify(Stage::PostRestore, &with_pid)?;
        watcher.notify(Stage::NetworkUnlock, &with_pid)?;
        watcher.notify(Stage::PreResume, &with_pid)?;
        watcher.notify(Stage::PostResume, &with_pid)?;
        Ok(Restored {
            host_pid: PID,
            init: None,
            id: "px".into(),
            report: crate::request::RestoreReport::default(),
        })
    }
}

/// The runtime's side.
struct Runtime {
    socket: OwnedFd,
    images: tempfile::TempDir,
    directory: File,
    service: JoinHandle<(Result<()>, Mock)>,
}

impl Runtime {
    fn with(mut engine: Mock) -> Self {
        let (socket, theirs) = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET).unwrap();
        let images = tempfile::tempdir().unwrap();
        let directory = File::open(images.path()).unwrap();
        let service = spawn(move || {
            let socket = Socket::new(theirs);
            let result = Service::new(socket, &mut engine, Log::new(), true).run();
            (result, engine)
        });
        Self {
            socket,
            images,
            directory,
            service,
        }
    }

    fn options(&self) -> wire::Options {
        wire::Options {
            images_dir_fd: Some(self.directory.as_raw_fd()),
            pid: Some(6400),
            log_level: Some(4),
            log_file: Some("dump.log".into()),
            notify_scripts: Some(true),
            root: Some("/bundle/rootfs".into()),
            ..wire::Options::default()
        }
    }

    fn ask(&self, kind: Kind, opts: Option<wire::Options>) {
        self.send(&Request {
            r#type: kind as i32,
            opts,
            ..Request::default()
        });
    }

    fn send(&self, request: &Request) {
        nix::unistd::write(&self.socket, &request.encode_to_vec()).unwrap();
    }

    /// An answer and the number of descriptors with it; `None` at the end.
    fn receive(&self) -> Option<(Response, usize)> {
        let mut fds = [nix::poll::PollFd::new(
            self.socket.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(20_000u16)).unwrap();
        let message = receive(self.socket.as_fd(), 0, 8192).unwrap()?;
        if message.data.is_empty() {
            return None;
        }
        let rights = message.control.iter().map(|control| match control {
            Control::Rights(fds) => fds.len(),
            _ => 0,
        });
        Some((Response::decode(&message.data[..]).unwrap(), rights.sum()))
    }

    fn acknowledge(&self, success: bool) {
        self.send(&Request {
            r#type: Kind::Notify as i32,
            notify_success: Some(success),
            ..Request::default()
        });
    }

    /// Acknowledges notifications, written as `name`, `name(pid)`, `name+fd`, up to the answer.
    fn follow(&self) -> (Vec<String>, Response) {
        let mut told = Vec::new();
        loop {
            let (response, rights) = self.receive().unwrap();
            if response.r#type() != Kind::Notify {
                return (told, response);
            }
            assert!(response.success);
            let notify = response.notify.unwrap();
            let pid = notify.pid.map_or(String::new(), |pid| format!("({pid})"));
            let fds = "+fd".repeat(rights);
            told.push(format!("{}{pid}{fds}", notify.script.unwrap()));
            self.acknowledge(true);
        }
    }

    /// The end: nothing more comes.
    fn end(self) -> (Mock, tempfile::TempDir) {
        nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Write)
            .unwrap();
        let (result, engine) = self.service.join().unwrap();
        result.unwrap();
        assert!(
            receive(self.socket.as_fd(), 0, 16)
                .unwrap()
                .is_none_or(|m| m.data.is_empty())
        );
        (engine, self.images)
    }
}

#[test]
fn the_version_is_high_enough_for_everybody() {
    let runtime = Runtime::with(Mock::default());
    // As crun does it.
    let options = wire::Options {
        images_dir_fd: Some(-1),
        ..wire::Options::default()
    };
    runtime.ask(Kind::Version, Some(options));
    let (response, _) = runtime.receive().unwrap();
    let version = response.version.unwrap();
    assert!(response.success && version.gitid.is_none());
    let number = version.major_number * 10_000 + version.minor_number * 100;
    assert!(number >= 31_600);
    runtime.end();
}

#[test]
fn a_checkpoint_is_told_of_in_the_order_that_runc_knows() {
    let runtime = Runtime::with(Mock::default());
    runtime.ask(Kind::Dump, Some(runtime.options()));
    let (told, response) = runtime.follow();
    assert_eq!(
        told,
        ["pre-dump", "network-lock", "query-ext-files", "post-dump"]
    );
    assert_eq!(response.r#type(), Kind::Dump);
    assert!(response.success);
    assert_eq!(response.dump.unwrap().restored, Some(false));
    let (engine, images) = runtime.end();
    assert!(engine.asked.unwrap().contains("Pid(6400)"));
    for file in ["dump.log", "stats-dump", "inventory.img"] {
        assert!(images.path().join(file).exists(), "{file}");
    }
}

#[test]
fn with_leave_running_the_network_is_unlocked_at_the_end() {
    let runtime = Runtime::with(Mock {
        leave_running: true,
        ..Mock::default()
    });
    let options = wire::Options {
        leave_running: Some(true),
        ..runtime.options()
    };
    runtime.ask(Kind::Dump, Some(options));
    let (told, response) = runtime.follow();
    assert_eq!(told[3..], ["post-dump", "network-unlock"]);
    assert!(response.success);
    let (engine, _) = runtime.end();
    assert!(engine.asked.unwrap().contains("after: Run"));
}

#[test]
fn without_notify_scripts_nothing_is_told() {
    let runtime = Runtime::with(Mock::default());
    let options = wire::Options {
        notify_scripts: None,
        ..runtime.options()
    };
    runtime.ask(Kind::Dump, Some(options));
    let (told, response) = runtime.follow();
    assert!(told.is_empty() && response.success);
    let (_, images) = runtime.end();
    assert!(images.path().join("inventory.img").exists());
}

#[test]
fn what_the_acknowledgement_names_may_be_outside() {
    let runtime = Runtime::with(Mock::default());
    runtime.ask(Kind::Dump, Some(runtime.options()));
    for _ in 0..2 {
        runtime.receive().unwrap();
        runtime.acknowledge(true);
    }
    let (query, _) = runtime.receive().unwrap();
    assert_eq!(
        query.notify.unwrap().script.as_deref(),
        Some("query-ext-files")
    );
    runtime.send(&Request {
        r#type: Kind::Notify as i32,
        notify_success: Some(true),
        opts: Some(wire::Options {
            external: vec!["file[1f:2c]".into()],
            ..wire::Options::default()
        }),
        ..Request::default()
    });
    let (_, response) = runtime.follow();
    assert!(response.success);
    let (engine, _) = runtime.end();
    assert_eq!(engine.external, ["file[1f:2c]".parse().unwrap()]);
}

#[test]
fn a_failure_is_answered_and_logged_with_its_real_cause_first() {
    let runtime = Runtime::with(Mock {
        fails: true,
        ..Mock::default()
    });
    runtime.ask(Kind::Dump, Some(runtime.options()));
    let (told, response) = runtime.follow();
    assert_eq!(told.last().unwrap(), "network-unlock");
    assert!(!response.success);
    assert_eq!(response.cr_errno, Some(Errno::EOPNOTSUPP as i32));
    let message = response.cr_errmsg.unwrap();
    assert!(message.starts_with("E-IOURING: fd 3 of pid 1"), "{message}");
    let (_, images) = runtime.end();
    assert!(!images.path().join("inventory.img").exists());
}

#[test]
fn a_caller_that_says_no_or_goes_away_ends_the_checkpoint() {
    let runtime = Runtime::with(Mock::default());
    runtime.ask(Kind::Dump, Some(runtime.options()));
    runtime.receive().unwrap();
    runtime.acknowledge(false);
    let (response, _) = runtime.receive().unwrap();
    assert!(!response.success);
    assert!(response.cr_errmsg.unwrap().contains("pre-dump"));
    runtime.end();

    let runtime = Runtime::with(Mock::default());
    runtime.ask(Kind::Dump, Some(runtime.options()));
    runtime.receive().unwrap();
    drop(runtime.socket);
    let (result, _) = runtime.service.join().unwrap();
    assert!(result.is_err());
}

#[test]
fn a_restore_is_told_of_with_pid_and_terminal() {
    let runtime = Runtime::with(Mock::default());
    std::fs::write(runtime.images.path().join("ocimig.tar"), "").unwrap();
    let options = wire::Options {
        pid: None,
        log_file: Some("restore.log".into()),
        root: Some("/run/runc/px/criu-root".into()),
        rst_sibling: Some(true),
        tcp_established: Some(true),
        orphan_pts_master: Some(true),
        manage_cgroups: Some(true),
        ..runtime.options()
    };
    runtime.ask(Kind::Restore, Some(options));
    let (told, response) = runtime.follow();
    assert_eq!(
        told,
        [
            "pre-restore",
            "setup-namespaces(29950)",
            "post-setup-namespaces",
            "orphan-pts-master+fd",
            "post-restore(29950)",
            "network-unlock",
            "pre-resume",
            "post-resume"
        ]
    );
    assert!(response.success);
    assert_eq!(response.restore.unwrap().pid, PID);
    let (engine, images) = runtime.end();
    let asked = engine.asked.unwrap();
    assert!(asked.contains("sibling: true") && asked.contains(&format!("{:?}", Tcp::Keep)));
    assert!(images.path().join("stats-restore").exists());
}

#[test]
fn pre_dumps_go_on_until_the_caller_has_enough() {
    let runtime = Runtime::with(Mock::default());
    for _ in 0..2 {
        runtime.ask(Kind::PreDump, Some(runtime.options()));
        let (told, response) = runtime.follow();
        assert!(told.is_empty());
        assert_eq!(response.r#type(), Kind::PreDump);
        assert!(response.success);
    }
    let (engine, _) = runtime.end();
    assert!(engine.asked.unwrap().contains("MemoryOnly"));

    let runtime = Runtime::with(Mock::default());
    runtime.ask(Kind::SinglePreDump, Some(runtime.options()));
    let (_, response) = runtime.follow();
    assert_eq!(response.r#type(), Kind::SinglePreDump);
    assert!(response.success);
    runtime.end();
}

#[test]
fn a_parent_is_linked_and_must_be_there() {
    let runtime = Runtime::with(Mock::default());
    std::fs::create_dir(runtime.images.path().join("pre")).unwrap();
    let options = || wire::Options {
        parent_img: Some("pre".into()),
        track_mem: Some(true),
        ..runtime.options()
    };
    let request = Request {
        r#type: Kind::Dump as i32,
        opts: Some(options()),
        keep_open: Some(true),
        ..Request::default()
    };
    runtime.send(&request);
    let (_, response) = runtime.follow();
    assert!(!response.success);
    std::fs::write(runtime.images.path().join("pre/ocimig.tar"), "").unwrap();
    runtime.send(&request);
    let (_, response) = runtime.follow();
    assert!(response.success);
    let (engine, images) = runtime.end();
    assert!(engine.asked.unwrap().contains("parent/ocimig.tar"));
    let link = std::fs::read_link(images.path().join("parent")).unwrap();
    assert_eq!(link, Path::new("pre"));
}

#[test]
fn a_work_directory_and_a_configuration_of_the_caller_are_used() {
    let runtime = Runtime::with(Mock::default());
    let work = tempfile::tempdir().unwrap();
    let directory = File::open(work.path()).unwrap();
    let config = work.path().join("runc.conf");
    std::fs::write(&config, "tcp-established\nlog-file other.log\n").unwrap();
    let options = wire::Options {
        tcp_established: Some(false),
        work_dir_fd: Some(directory.as_raw_fd()),
        config_file: Some(config.to_str().unwrap().into()),
        ..runtime.options()
    };
    runtime.ask(Kind::Dump, Some(options));
    let (_, response) = runtime.follow();
    assert!(response.success);
    let (engine, images) = runtime.end();
    assert!(engine.asked.unwrap().contains("tcp: Keep"));
    assert!(work.path().join("other.log").exists());
    assert!(work.path().join("stats-dump").exists());
    assert!(!images.path().join("stats-dump").exists());
}

#[test]
fn requests_that_make_no_sense_are_answered_by_name() {
    for (request, errno) in [
        (Kind::Dump, Errno::EBADRQC),
        (Kind::PageServer, Errno::EOPNOTSUPP),
        (Kind::Empty, Errno::EBADRQC),
        (Kind::WaitPid, Errno::EBADRQC),
    ] {
        let runtime = Runtime::with(Mock::default());
        runtime.ask(request, None);
        let (response, _) = runtime.receive().unwrap();
        assert!(!response.success);
        assert_eq!(response.cr_errno, Some(errno as i32), "{request:?}");
        assert!(!response.cr_errmsg.unwrap().is_empty());
        runtime.end();
    }
    let runtime = Runtime::with(Mock::default());
    nix::unistd::write(&runtime.socket, b"\xff\xff").unwrap();
    let (response, _) = runtime.receive().unwrap();
    assert_eq!(response.r#type(), Kind::Empty);
    assert!(!response.success);
    runtime.end();
}

#[test]
fn options_that_cannot_be_honoured_are_named() {
    let runtime = Runtime::with(Mock::default());
    let options = wire::Options {
        lazy_pages: Some(true),
        ps: Some(wire::PageServer {
            port: Some(7),
            ..wire::PageServer::default()
        }),
        ..runtime.options()
    };
    runtime.ask(Kind::Dump, Some(options));
    let (told, response) = runtime.follow();
    assert!(told.is_empty() && !response.success);
    assert_eq!(response.cr_errno, Some(Errno::EBADRQC as i32));
    let message = response.cr_errmsg.unwrap();
    assert!(message.contains("lazy-pages") && message.contains("page-server"));
    let (engine, _) = runtime.end();
    assert!(engine.asked.is_none());
}

#[test]
fn a_bug_is_an_answer_too() {
    struct Panics;
    impl Engine for Panics {
        fn checkpoint(&mut self, _: &Checkpoint, _: &mut dyn Watcher) -> Result<CheckpointReport> {
            panic!("no soul");
        }
        fn restore(&mut self, _: &Restore, _: &mut dyn Watcher) -> Result<Restored> {
            panic!("no soul");
        }
    }
    let (ours, theirs) = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET).unwrap();
    let images = tempfile::tempdir().unwrap();
    let directory = File::open(images.path()).unwrap();
    let service =
        spawn(move || Service::new(Socket::new(theirs), &mut Panics, Log::new(), true).run());
    let request = Request {
        r#type: Kind::Dump as i32,
        opts: Some(wire::Options {
            images_dir_fd: Some(directory.as_raw_fd()),
            ..wire::Options::default()
        }),
        ..Request::default()
    };
    nix::unistd::write(&ours, &request.encode_to_vec()).unwrap();
    service.join().unwrap().unwrap();
    let message = receive(ours.as_fd(), 0, 8192).unwrap().unwrap();
    let response = Response::decode(&message.data[..]).unwrap();
    assert!(!response.success && response.cr_errmsg.unwrap().contains("no soul"));
}
