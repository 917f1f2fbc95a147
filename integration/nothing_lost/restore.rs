//! A restore that fails or is killed leaves nothing behind.

use super::left::{assert_nothing, marked};
use super::{Chance, container, run, run_with_fault};
use crate::harness::{Ground, Image, patience, unique};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ocimig::fault::RESTORE_POINTS;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// An image, and the mark of the processes in it.
struct Scene {
    ground: Ground,
    mark: String,
    image: Image,
}

impl Scene {
    fn set() -> Self {
        let ground = Ground::new();
        let mark = unique("mark");
        let mut container = container(&ground, &mark);
        let image = container.checkpoint(&[]);
        container.wait_until_gone();
        Self {
            ground,
            mark,
            image,
        }
    }

    fn place(&self) -> (PathBuf, String) {
        (self.ground.fresh("bundle"), unique("ocimig-test"))
    }

    /// After all of it the image is as good as before.
    fn assert_still_restores(&self) {
        self.image.restore(&self.ground).assert_intact();
    }
}

#[test]
fn killed_at_any_point_nothing_stays() {
    let scene = Scene::set();
    for point in RESTORE_POINTS {
        // Then it runs already.
        if point == "released" {
            continue;
        }
        let what = format!("killed at {point}");
        let (bundle, id) = scene.place();
        let mut command = scene.image.restore_command(&bundle, &id);
        run_with_fault(&mut command, &scene.mark, &format!("{point}:kill")).assert_killed(&what);
        assert_nothing(&scene.mark, &bundle, &id, &what);
    }
    scene.assert_still_restores();
}

#[test]
fn failing_at_any_point_nothing_stays() {
    let scene = Scene::set();
    for point in RESTORE_POINTS {
        if point == "released" {
            continue;
        }
        let what = format!("failing at {point}");
        let (bundle, id) = scene.place();
        let mut command = scene.image.restore_command(&bundle, &id);
        let ended = run_with_fault(&mut command, &scene.mark, &format!("{point}:fail"));
        ended.assert_failed(&what, 1, "E-FAULT");
        assert_nothing(&scene.mark, &bundle, &id, &what);
    }
    scene.assert_still_restores();
}

#[test]
fn killed_at_random_moments_nothing_stays_or_all_of_it_runs() {
    const COUNT: u64 = 40;
    let scene = Scene::set();
    let begin = Instant::now();
    drop(scene.image.restore(&scene.ground));
    let whole = begin.elapsed();
    let mut chance = Chance(5);
    for number in 0..COUNT {
        let slice = whole.as_micros() as u64 / COUNT;
        let after = Duration::from_micros(number * slice + chance.below(slice));
        let what = format!("killed after {after:?} of {whole:?}");
        let (bundle, id) = scene.place();
        let mut command = scene.image.restore_command(&bundle, &id);
        let ended = run(command.env("MARK", &scene.mark), after);
        let mut running = marked(&scene.mark);
        if ended.status.success() || !running.is_empty() {
            // Past the point of no return the container is there; or its end is under way.
            std::thread::sleep(Duration::from_millis(300));
            running = marked(&scene.mark);
        }
        if running.is_empty() && !ended.status.success() {
            assert_nothing(&scene.mark, &bundle, &id, &what);
            continue;
        }
        for pid in running {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        remove(&bundle, &id);
    }
    scene.assert_still_restores();
}

/// Removes what a container that ran has left.
fn remove(bundle: &std::path::Path, id: &str) {
    let deadline = Instant::now() + patience();
    for mount in crate::harness::mounts_below(bundle) {
        let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
    }
    let _ = std::fs::remove_dir_all(bundle);
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let group = hierarchy.path().join(id);
        while group.exists() && std::fs::remove_dir(&group).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
