//! Freezing a container's cgroup: v1's freezer, v2's cgroup.freeze.
//!
//! What was found is what is left: a container that was paused stays paused, a nested group that
//! was frozen by itself stays so, whether the checkpoint succeeds, fails, or is killed
//! ([`Freezer::undo`] is what the [guard](crate::sys::guard) needs for that).
//!
//! A v1 freezer holds its tasks where ptrace cannot stop them: seize and interrupt all while
//! frozen, then [`Freezer::let_trace`], and they stop at once. A task frozen by v2 can be seized and
//! stopped, but not run a batch: the same call lets it.

use super::{Cgroups, Place, Version, read_members, refuse_self};
use crate::error::{Context, Error, Exit, Result};
use crate::sys::guard::Undo;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a cgroup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its processes run.
    Thawed,
    /// Told to freeze; not all of its processes have stopped yet.
    Freezing,
    /// All of its processes stand still.
    Frozen,
}

/// The freezer of one container.
#[derive(Debug)]
pub struct Freezer {
    version: Version,
    top: Control,
    /// Nested groups that were found frozen by themselves.
    nested: Vec<Control>,
    /// The top group was found frozen.
    paused: bool,
    /// We changed something that is not put back yet.
    changed: bool,
}

/// One cgroup's switch.
#[derive(Debug)]
struct Control {
    directory: PathBuf,
    version: Version,
}

impl Freezer {
    /// The freezer of the container, in a hierarchy where it has a cgroup of its own. `None` when it
    /// has none: the caller then stops the processes without one. The hierarchy in which the
    /// container is paused comes first, then v2, then v1.
    ///
    /// Errors: E-SELF-FREEZE when this process is inside, E-FROZEN-ABOVE when a group above the
    /// container's is frozen (nobody could run a process of it, then).
    pub fn find(cgroups: &Cgroups) -> Result<Option<Self>> {
        let mut found: Option<Self> = None;
        for place in cgroups.own()? {
            let Some(freezer) = Self::at(&place)? else {
                continue;
            };
            let better = match &found {
                None => true,
                Some(known) => (freezer.paused, freezer.version) > (known.paused, known.version),
            };
            if better {
                found = Some(freezer);
            }
        }
        Ok(found)
    }

    /// The freezer in the hierarchy of `place`; `None` when that hierarchy has none.
    pub fn at(place: &Place) -> Result<Option<Self>> {
        let top = Control {
            directory: place.directory.clone(),
            version: place.hierarchy.version,
        };
        if place.is_root() || !top.file().exists() {
            return Ok(None);
        }
        refuse_self(place)?;
        if top.frozen_above()? {
            return Err(Error::coded(
                "E-FROZEN-ABOVE",
                Exit::Refused,
                format!(
                    "a cgroup above {} is frozen, so the container's processes cannot be stopped \
                     or run",
                    place.directory.display()
                ),
                "thaw that cgroup (resume the pod or slice) first",
            ));
        }
        let mut nested = Vec::new();
        for directory in place.subtree()?.into_iter().skip(1) {
            let control = Control {
                directory,
                version: top.version,
            };
            if control.told_to_freeze().unwrap_or(false) {
                nested.push(control);
            }
        }
        Ok(Some(Self {
            version: top.version,
            paused: top.told_to_freeze()?,
            top,
            nested,
            changed: false,
        }))
    }

    /// Which interface it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The directory of the container's cgroup in the freezer's hierarchy.
    pub fn directory(&self) -> &Path {
        &self.top.directory
    }

    /// Whether the container was paused when the freezer was found.
    pub fn was_paused(&self) -> bool {
        self.paused
    }

    /// How the container's cgroup is now.
    pub fn state(&self) -> Result<State> {
        self.top.state()
    }

    /// Freezes the whole subtree and waits until nothing in it runs. On failure it is left as it
    /// was found. E-FREEZE-TIMEOUT names the processes that would not stop.
    pub fn freeze(&mut self, timeout: Duration) -> Result<()> {
        self.changed = true;
        let result = self.top.freeze(timeout);
        result.map_err(|error| error.and_cleanup(self.as_found()))
    }

    /// Thaws the whole subtree, groups included that were found frozen: for the time in which every
    /// process of it is held by ptrace. [`Freezer::as_found`] is the way back.
    pub fn let_trace(&mut self) -> Result<()> {
        self.changed = true;
        for control in self.nested.iter().chain([&self.top]) {
            control.write(false)?;
        }
        Ok(())
    }

    /// Thaws the container's cgroup for good, one that was paused too; nested groups that were found
    /// frozen are left so.
    pub fn thaw(&mut self) -> Result<()> {
        self.paused = false;
        self.as_found()
    }

    /// Puts everything back as it was found: paused is paused, and everything else runs. Does not
    /// wait for a group that is to be frozen again.
    pub fn as_found(&mut self) -> Result<()> {
        for control in &self.nested {
            // A nested group may be gone by now.
            if control.file().exists() {
                control.write(true)?;
            }
        }
        self.top.write(self.paused)?;
        self.changed = false;
        Ok(())
    }

    /// The container is dead or is left frozen on purpose: nothing is put back on drop.
    pub fn forget(mut self) {
        self.changed = false;
    }

    /// What the guard has to do when this process dies: the same as [`Freezer::as_found`].
    pub fn undo(&self) -> Result<Vec<Undo>> {
        let nested = self.nested.iter().map(|control| (control, true));
        nested
            .chain([(&self.top, self.paused)])
            .map(|(control, freeze)| {
                let path = control.file();
                let file = File::options()
                    .write(true)
                    .open(&path)
                    .doing(|| format!("opening {}", path.display()))?;
                let bytes = control.word(freeze).into();
                Ok(Undo::Write { file, bytes })
            })
            .collect()
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if self.changed {
            // Nobody is left to tell of a failure; the guard stands behind this.
            drop(self.as_found());
        }
    }
}

impl Control {
    fn file(&self) -> PathBuf {
        self.directory.join(match self.version {
            Version::V1 => "freezer.state",
            Version::V2 => "cgroup.freeze",
        })
    }

    fn word(&self, freeze: bool) -> &'static str {
        match (self.version, freeze) {
            (Version::V1, true) => "FROZEN",
            (Version::V1, false) => "THAWED",
            (Version::V2, true) => "1",
            (Version::V2, false) => "0",
        }
    }

    fn write(&self, freeze: bool) -> Result<()> {
        let path = self.file();
        let word = self.word(freeze);
        File::options()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(word.as_bytes()))
            .doing(|| format!("writing {word} to {}", path.display()))
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.directory.join(name);
        std::fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))
    }

    /// Whether this very group was told to freeze, not one above it.
    fn told_to_freeze(&self) -> Result<bool> {
        let text = self.read(match self.version {
            Version::V1 => "freezer.self_freezing",
            Version::V2 => "cgroup.freeze",
        })?;
        Ok(text.trim() == "1")
    }

    fn frozen_above(&self) -> Result<bool> {
        match self.version {
            Version::V1 => Ok(self.read("freezer.parent_freezing")?.trim() == "1"),
            // v2 does not say it of itself: ask upwards, as far as the mount shows.
            Version::V2 => Ok(self.directory.ancestors().skip(1).any(|above| {
                std::fs::read_to_string(above.join("cgroup.freeze"))
                    .is_ok_and(|text| text.trim() == "1")
            })),
        }
    }

    fn state(&self) -> Result<State> {
        match self.version {
            Version::V1 => Ok(match self.read("freezer.state")?.trim() {
                "FROZEN" => State::Frozen,
                "FREEZING" => State::Freezing,
                _ => State::Thawed,
            }),
            Version::V2 => {
                let events = self.read("cgroup.events")?;
                let frozen = events.lines().any(|line| line == "frozen 1");
                Ok(match (frozen, self.told_to_freeze()?) {
                    (true, _) => State::Frozen,
                    (false, true) => State::Freezing,
                    (false, false) => State::Thawed,
                })
            }
        }
    }

    fn freeze(&self, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(50);
        self.write(true)?;
        // v1 looks at its tasks when the state is read, and only then: a task that was in the
        // middle of something is found frozen at a later reading. From time to time the order is
        // given anew, which tells tasks again that have lost it.
        let mut readings = 0;
        while self.state()? != State::Frozen {
            if start.elapsed() > timeout {
                return Err(self.timed_out(timeout));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
            readings += 1;
            if readings % 50 == 0 {
                self.write(true)?;
            }
        }
        Ok(())
    }

    fn timed_out(&self, timeout: Duration) -> Error {
        let directories = super::subtree(&self.directory).unwrap_or_default();
        let mut running = Vec::new();
        for directory in directories {
            for host_pid in read_members(&directory.join("cgroup.procs")).unwrap_or_default() {
                running.extend(unfrozen(host_pid));
            }
        }
        running.truncate(8);
        Error::coded(
            "E-FREEZE-TIMEOUT",
            Exit::Failure,
            format!(
                "{} is not frozen after {timeout:?}; waited for: {}",
                self.directory.display(),
                if running.is_empty() {
                    "no process that can be named".into()
                } else {
                    running.join(", ")
                }
            ),
            "a process that waits for a device or a dead network file system cannot be frozen; \
             wait for it or end it",
        )
    }
}

/// Says who a process is and where it waits, when it is not frozen.
fn unfrozen(host_pid: i32) -> Option<String> {
    let text = |name: &str| std::fs::read_to_string(format!("/proc/{host_pid}/{name}")).ok();
    let wchan = text("wchan")?;
    let frozen = ["__refrigerator", "do_freezer_trap", "get_signal"];
    if frozen.contains(&wchan.as_str()) {
        return None;
    }
    let comm = text("comm")?;
    Some(format!(
        "pid {host_pid} on this host ({}) in {}",
        comm.trim_end(),
        if wchan == "0" { "user mode" } else { &wchan }
    ))
}

#[cfg(test)]
mod tests {
    use super::super::Hierarchies;
    use super::*;
    use crate::sys::guard::Guard;
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicU32, Ordering};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A cgroup of a test, removed with its processes.
    struct Group {
        place: Place,
        children: Vec<Child>,
    }

    impl Group {
        fn new(version: Version) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let hierarchies = Hierarchies::of_this_host().unwrap().0;
            let hierarchy = hierarchies
                .iter()
                .find(|one| match version {
                    Version::V1 => one.controllers.contains(&"freezer".into()),
                    Version::V2 => one.version == Version::V2,
                })
                .unwrap();
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = format!("/ocimig-test-{}-{number}", std::process::id());
            let place = Place::new(hierarchy, &path).unwrap();
            std::fs::create_dir(&place.directory).unwrap();
            Self {
                place,
                children: Vec::new(),
            }
        }

        fn nested(&self, name: &str) -> Control {
            let directory = self.place.directory.join(name);
            std::fs::create_dir(&directory).unwrap();
            Control {
                directory,
                version: self.place.hierarchy.version,
            }
        }

        fn freezer(&self) -> Freezer {
            Freezer::at(&self.place).unwrap().unwrap()
        }

        fn control(&self) -> Control {
            Control {
                directory: self.place.directory.clone(),
                version: self.place.hierarchy.version,
            }
        }

        /// A process in the group (or in the nested one) that counts in a file.
        fn spawn(&mut self, nested: &str) -> i32 {
            let child = Command::new("sleep")
                .arg("1000")
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let host_pid = child.id();
            self.children.push(child);
            let procs = self.place.directory.join(nested).join("cgroup.procs");
            std::fs::write(procs, host_pid.to_string()).unwrap();
            host_pid as i32
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            let all = self.place.subtree().unwrap_or_default();
            for directory in all.iter().rev() {
                let control = Control {
                    directory: directory.clone(),
                    version: self.place.hierarchy.version,
                };
                drop(control.write(false));
            }
            for child in &mut self.children {
                drop(child.kill());
                drop(child.wait());
            }
            for directory in all.iter().rev() {
                for _ in 0..100 {
                    if std::fs::remove_dir(directory).is_ok() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }

    fn both(test: impl Fn(Version)) {
        test(Version::V1);
        test(Version::V2);
    }

    /// The kernel tells a nested group's state a moment later than that of the top.
    fn settles(state: impl Fn() -> Result<State>, wanted: State) {
        let deadline = Instant::now() + PATIENCE;
        while state().unwrap() != wanted {
            assert!(Instant::now() < deadline, "{wanted:?}: not in time");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_group_and_its_nested_groups_freeze_and_thaw() {
        both(|version| {
            let mut group = Group::new(version);
            let nested = group.nested("a");
            let host_pids = [group.spawn(""), group.spawn("a")];
            assert_eq!(
                group.place.processes().unwrap(),
                host_pids.into_iter().collect()
            );
            assert_eq!(
                group.place.threads().unwrap(),
                group.place.processes().unwrap()
            );
            let mut freezer = group.freezer();
            assert!(!freezer.was_paused());
            freezer.freeze(PATIENCE).unwrap();
            settles(|| freezer.state(), State::Frozen);
            settles(|| nested.state(), State::Frozen);
            freezer.as_found().unwrap();
            settles(|| freezer.state(), State::Thawed);
            settles(|| nested.state(), State::Thawed);
        });
    }

    #[test]
    fn a_paused_container_stays_paused() {
        both(|version| {
            let mut group = Group::new(version);
            group.spawn("");
            group.control().freeze(PATIENCE).unwrap();
            let mut freezer = group.freezer();
            assert!(freezer.was_paused());
            freezer.freeze(PATIENCE).unwrap();
            freezer.let_trace().unwrap();
            assert_eq!(freezer.state().unwrap(), State::Thawed);
            freezer.as_found().unwrap();
            drop(freezer);
            assert_ne!(group.control().state().unwrap(), State::Thawed);
        });
    }

    #[test]
    fn a_nested_group_frozen_by_itself_stays_frozen() {
        both(|version| {
            let mut group = Group::new(version);
            let nested = group.nested("a");
            group.spawn("");
            group.spawn("a");
            nested.freeze(PATIENCE).unwrap();
            let mut freezer = group.freezer();
            freezer.freeze(PATIENCE).unwrap();
            freezer.let_trace().unwrap();
            assert_eq!(nested.state().unwrap(), State::Thawed);
            freezer.as_found().unwrap();
            assert!(nested.told_to_freeze().unwrap());
            assert_eq!(group.control().state().unwrap(), State::Thawed);
        });
    }

    #[test]
    fn a_dropped_freezer_leaves_the_group_as_found() {
        both(|version| {
            let mut group = Group::new(version);
            group.spawn("");
            group.freezer().freeze(PATIENCE).unwrap();
            assert_eq!(group.control().state().unwrap(), State::Thawed);
        });
    }

    #[test]
    fn a_group_below_a_frozen_one_is_refused() {
        both(|version| {
            let mut group = Group::new(version);
            let nested = group.nested("a");
            group.spawn("a");
            group.control().freeze(PATIENCE).unwrap();
            let mut place = group.place.clone();
            place.path.push_str("/a");
            place.directory.clone_from(&nested.directory);
            let error = Freezer::at(&place).unwrap_err();
            assert_eq!(error.code(), "E-FROZEN-ABOVE");
        });
    }

    #[test]
    fn a_root_cgroup_has_no_freezer() {
        for hierarchy in &Hierarchies::of_this_host().unwrap().0 {
            let place = Place::new(hierarchy, "/").unwrap();
            assert!(Freezer::at(&place).unwrap().is_none());
        }
    }

    #[test]
    fn a_process_that_does_not_freeze_is_named_and_the_group_is_thawed() {
        let mut group = Group::new(Version::V1);
        let host_pid = group.spawn("");
        let mut freezer = group.freezer();
        // No time at all: whoever has not stopped at the first look is late. A frozen process is
        // never named, so the text has one of two forms.
        match freezer.freeze(Duration::ZERO) {
            Ok(()) => freezer.as_found().unwrap(),
            Err(error) => {
                assert_eq!(error.code(), "E-FREEZE-TIMEOUT");
                assert!(
                    error.to_string().contains(&host_pid.to_string())
                        || error.to_string().contains("can be named"),
                    "{error}"
                );
            }
        }
        assert_eq!(group.control().state().unwrap(), State::Thawed);
    }

    /// Runs `conductor` in a forked child of this test.
    fn killed_conductor(group: &Group) {
        // The child is this very test binary, told by an environment variable which group to freeze.
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "resource::cgroup::freezer::tests::conductor",
                "--nocapture",
            ])
            .env("OCIMIG_TEST_FREEZE", &group.place.path)
            .env(
                "OCIMIG_TEST_VERSION",
                format!("{:?}", group.place.hierarchy.version),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.unwrap();
        let start = Instant::now();
        while group.control().state().unwrap() != State::Frozen {
            assert!(start.elapsed() < PATIENCE, "the conductor never froze it");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The child's half of the test below; does nothing in an ordinary run.
    #[test]
    fn conductor() {
        let (Ok(path), Ok(version)) = (
            std::env::var("OCIMIG_TEST_FREEZE"),
            std::env::var("OCIMIG_TEST_VERSION"),
        ) else {
            return;
        };
        let hierarchies = Hierarchies::of_this_host().unwrap().0;
        let hierarchy = hierarchies.iter().find(|one| match version.as_str() {
            "V1" => one.controllers.contains(&"freezer".into()),
            _ => one.version == Version::V2,
        });
        let place = Place::new(hierarchy.unwrap(), &path).unwrap();
        let mut freezer = Freezer::at(&place).unwrap().unwrap();
        let _guard = Guard::start(freezer.undo().unwrap()).unwrap();
        freezer.freeze(PATIENCE).unwrap();
        loop {
            std::thread::sleep(PATIENCE);
        }
    }

    #[test]
    fn a_killed_conductor_leaves_a_thawed_cgroup() {
        both(|version| {
            let mut group = Group::new(version);
            group.spawn("");
            killed_conductor(&group);
            let start = Instant::now();
            while group.control().state().unwrap() != State::Thawed {
                assert!(start.elapsed() < PATIENCE, "nobody thawed it");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }

    #[test]
    fn a_process_never_freezes_itself() {
        both(|version| {
            let group = Group::new(version);
            let script = format!(
                "echo $$ > {}/cgroup.procs && exec {} --exact {} --nocapture",
                group.place.directory.display(),
                std::env::current_exe().unwrap().display(),
                "resource::cgroup::freezer::tests::conductor",
            );
            let output = Command::new("sh")
                .args(["-c", &script])
                .env("OCIMIG_TEST_FREEZE", &group.place.path)
                .env("OCIMIG_TEST_VERSION", format!("{version:?}"))
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("E-SELF-FREEZE"), "{text}");
        });
    }
}
