//! A ground for tests: sockets are made in a network namespace and a root directory of their own,
//! captured, closed, and rebuilt in others; the rebuilt ones are captured again.

use super::*;
use crate::image::sockets::TcpState;
use crate::sys::ns::Kind;
use crate::sys::scratch::rooted;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tempfile::TempDir;

pub(super) struct Ground {
    pub net: OwnedFd,
    pub dir: TempDir,
    root: OwnedFd,
}

impl Ground {
    /// With `lo` up, a way to 8.8.8.8 and the directories that tests bind in.
    pub fn new() -> Self {
        let net = ns::fresh_with(Kind::Net, || {
            for args in ["link set lo up", "route add 8.8.8.0/24 dev lo"] {
                let done = std::process::Command::new("ip")
                    .args(args.split(' '))
                    .status()
                    .doing(|| "running ip")?;
                assert!(done.success());
            }
            Ok(())
        })
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["run", "tmp"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let root = open(
            dir.path(),
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        Self { net, dir, root }
    }

    /// Runs `work` on a thread with this namespace and root.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        ns::inside(&[self.net.as_fd()], || {
            let home = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
            rooted(self.root.as_fd(), home.as_fd(), || Ok(work()))
        })
        .unwrap()
    }

    pub fn collect(
        &self,
        sockets: &[OwnedFd],
        choices: Choices,
        files: &mut BTreeMap<u64, OwnedFd>,
    ) -> (Sockets, Refusals) {
        let (captured, refusals) = self.capture(sockets, choices, files);
        (captured.sockets, refusals)
    }

    pub fn capture(
        &self,
        sockets: &[OwnedFd],
        choices: Choices,
        files: &mut BTreeMap<u64, OwnedFd>,
    ) -> (Captured, Refusals) {
        let mut refusals = Refusals::new();
        let place = Place {
            net: self.net.as_fd(),
            root_prefix: self.dir.path(),
        };
        let taken = sockets
            .iter()
            .zip(1..)
            .map(|(fd, id)| Taken {
                id,
                fd: fd.try_clone().unwrap(),
                inode: socket::inode(fd).unwrap(),
                who: format!("fd {id} of pid 1 (test)"),
            })
            .collect();
        let mut adopt = |fd: OwnedFd| {
            let id = 1000 + files.len() as u64;
            files.insert(id, fd);
            Ok(id)
        };
        let all = collect(place, taken, choices, &mut adopt, &mut refusals).unwrap();
        (all, refusals)
    }

    pub fn rebuild(
        &self,
        sockets: &Sockets,
        files: &BTreeMap<u64, BorrowedFd<'_>>,
    ) -> BTreeMap<u64, OwnedFd> {
        let target = Target {
            net: self.net.as_fd(),
            root: self.root.as_fd(),
        };
        rebuild(target, sockets)
            .unwrap()
            .finish(target, sockets, files, &|pid| Some(pid))
            .unwrap()
    }
}

/// What a round trip leaves: the first capture, the new ground, the new sockets in the order of the
/// old ones.
pub(super) struct Trip {
    pub image: Sockets,
    pub ground: Ground,
    pub fds: Vec<OwnedFd>,
}

/// Makes, captures (twice: the first time must have changed nothing), closes, rebuilds, captures and
/// compares.
pub(super) fn trip(make: impl FnOnce() -> Vec<OwnedFd> + Send) -> Trip {
    trip_with(Choices::default(), |_| make())
}

pub(super) fn trip_with(
    choices: Choices,
    make: impl FnOnce(&Ground) -> Vec<OwnedFd> + Send,
) -> Trip {
    let old = Ground::new();
    let sockets = old.run(|| make(&old));
    let mut files = BTreeMap::new();
    let (image, refusals) = old.collect(&sockets, choices, &mut files);
    refusals.into_result().unwrap();
    let (again, _) = old.collect(&sockets, choices, &mut BTreeMap::new());
    assert_same(&image, &again, "capturing changed something");
    let json = serde_json::to_string_pretty(&image).unwrap();
    let image: Sockets = serde_json::from_str(&json).unwrap();
    let count = sockets.len() as u64;
    drop(sockets);
    drop(old);
    let ground = Ground::new();
    let lent = files.iter().map(|(id, fd)| (*id, fd.as_fd())).collect();
    let mut fds = ground.rebuild(&image, &lent);
    let fds: Vec<_> = (1..=count).map(|id| fds.remove(&id).unwrap()).collect();
    let (after, refusals) = ground.collect(&fds, choices, &mut BTreeMap::new());
    refusals.into_result().unwrap();
    assert_same(&image, &after, "something did not come back");
    Trip { image, ground, fds }
}

/// Compares; says only what differs.
fn assert_same(one: &Sockets, two: &Sockets, what: &str) {
    let lines = |sockets: &Sockets| -> Vec<String> {
        let json = serde_json::to_string_pretty(&comparable(sockets)).unwrap();
        json.lines()
            .map(|line| line.chars().take(100).collect())
            .collect()
    };
    let (one_lines, two_lines) = (lines(one), lines(two));
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these
            .iter()
            .filter(|line| !those.contains(line))
            .cloned()
            .collect()
    };
    assert!(
        comparable(one) == comparable(two),
        "{what}: {:#?} became {:#?}",
        only(&one_lines, &two_lines),
        only(&two_lines, &one_lines)
    );
}

/// Without what cannot be the same: who made a connection, the size that buffers have grown to, and
/// how far bytes on their way to the other end have come.
pub(super) fn comparable(sockets: &Sockets) -> Sockets {
    let mut sockets = sockets.clone();
    let strip = |common: &mut Common| {
        if common.options.get("SO_BUF_LOCK") == Some(&crate::image::sockets::OptionValue::Number(0))
        {
            common.options.remove("SO_SNDBUF");
            common.options.remove("SO_RCVBUF");
        }
    };
    for one in &mut sockets.unix {
        strip(&mut one.common);
        one.peer_credentials = None;
    }
    let queues: BTreeMap<u64, Vec<u8>> = sockets
        .tcp
        .iter_mut()
        .map(|one| (one.common.id, std::mem::take(&mut one.send_queue.0)))
        .collect();
    for one in &mut sockets.tcp {
        strip(&mut one.common);
        if let TcpState::Inside {
            peer: Some(peer), ..
        } = &one.state
        {
            one.receive_queue.0.extend(&queues[peer]);
        }
    }
    for one in &mut sockets.udp {
        strip(&mut one.common);
    }
    sockets
}

/// Reads whatever is there.
pub(super) fn read(fd: impl AsFd) -> Vec<u8> {
    socket::receive(fd, 0, 1 << 20).unwrap().unwrap().data
}

/// Sends everything.
pub(super) fn write(fd: impl AsFd, data: &[u8]) {
    let sent = socket::send(fd, data, None, &Default::default(), 0).unwrap();
    assert_eq!(sent, data.len());
}
