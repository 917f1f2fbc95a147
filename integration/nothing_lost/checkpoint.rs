//! A checkpoint that fails or is killed leaves the container running as it was.

use super::left::{assert_free, assert_no_process, assert_only};
use super::{Chance, container, run, run_with_fault};
use crate::harness::{Container, Ground, Snapshot, patience, unique};
use ocimig::fault::CHECKPOINT_POINTS;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A container, what it looked like, and where its images go.
struct Scene {
    mark: String,
    container: Container,
    images: PathBuf,
    _ground: Ground,
}

impl Scene {
    fn set() -> Self {
        let ground = Ground::new();
        let mark = unique("mark");
        let container = container(&ground, &mark);
        let images = ground.fresh("images");
        std::fs::create_dir(&images).unwrap();
        Self {
            mark,
            container,
            images,
            _ground: ground,
        }
    }

    fn image(&self) -> PathBuf {
        self.images.join("image.tar")
    }

    fn checkpoint(&self) -> Command {
        let mut command = self.container.checkpoint_command(&self.image());
        command.env("MARK", &self.mark);
        command
    }

    /// The container goes on, and nobody of ours is left.
    fn assert_goes_on(&mut self, what: &str) {
        assert_free(&self.container, what);
        assert_no_process(&self.mark, Some(&self.container), what);
        self.container.assert_intact();
    }

    /// All that is visible from outside is as it was, and it goes on.
    fn assert_unchanged(&mut self, before: &Snapshot, what: &str) {
        assert_free(&self.container, what);
        let diff = before.diff(&self.container.snapshot());
        assert!(diff.is_empty(), "{what}:\n{diff}");
        self.assert_goes_on(what);
    }

    /// Under the final name is nothing, or all of it; beside it is nothing.
    fn assert_whole_or_nothing(&self, what: &str) {
        assert_only(&self.images, &["image.tar"], what);
        if self.image().exists() {
            assert_complete(&self.image(), what);
            std::fs::remove_file(self.image()).unwrap();
        }
    }
}

fn assert_complete(image: &Path, what: &str) {
    let mut inspect = Command::new(env!("CARGO_BIN_EXE_ocimig"));
    let ended = run(inspect.arg("inspect").arg(image), patience());
    assert!(
        ended.status.success(),
        "{what}: half an image: {}",
        ended.errors
    );
}

/// The points up to the one from which on the image has its name.
fn points_before_the_name() -> &'static [&'static str] {
    let renamed = CHECKPOINT_POINTS
        .iter()
        .position(|point| *point == "renamed");
    &CHECKPOINT_POINTS[..renamed.unwrap()]
}

#[test]
fn killed_at_any_point_the_container_goes_on() {
    let mut scene = Scene::set();
    for point in points_before_the_name() {
        let what = format!("killed at {point}");
        let before = scene.container.snapshot();
        let ended = run_with_fault(
            &mut scene.checkpoint(),
            &scene.mark,
            &format!("{point}:kill"),
        );
        ended.assert_killed(&what);
        scene.assert_unchanged(&before, &what);
        assert_only(&scene.images, &[], &what);
    }
}

#[test]
fn killed_at_any_point_while_it_is_left_running_the_container_goes_on() {
    let mut scene = Scene::set();
    for point in CHECKPOINT_POINTS {
        let what = format!("killed at {point}");
        let before = scene.container.snapshot();
        let mut command = scene.checkpoint();
        command.arg("--leave-running");
        run_with_fault(&mut command, &scene.mark, &format!("{point}:kill")).assert_killed(&what);
        scene.assert_unchanged(&before, &what);
        scene.assert_whole_or_nothing(&what);
    }
}

#[test]
fn failing_at_any_point_the_container_goes_on() {
    let mut scene = Scene::set();
    for point in points_before_the_name() {
        let what = format!("failing at {point}");
        let before = scene.container.snapshot();
        let ended = run_with_fault(
            &mut scene.checkpoint(),
            &scene.mark,
            &format!("{point}:fail"),
        );
        ended.assert_failed(&what, 1, "E-FAULT");
        scene.assert_unchanged(&before, &what);
        assert_only(&scene.images, &[], &what);
    }
}

/// Kills checkpoints at `count` moments all over the time that one takes.
fn killed_at_random_moments(seed: u64, count: u64) {
    let mut scene = Scene::set();
    let begin = Instant::now();
    let undisturbed = run(scene.checkpoint().arg("--leave-running"), patience());
    let whole = begin.elapsed();
    assert!(undisturbed.status.success(), "{}", undisturbed.errors);
    scene.assert_whole_or_nothing("undisturbed");
    let mut chance = Chance(seed);
    let mut killed = 0;
    for number in 0..count {
        // One moment in each of as many slices: no stretch is left out.
        let slice = whole.as_micros() as u64 / count;
        let after = Duration::from_micros(number * slice + chance.below(slice));
        let ended = run(scene.checkpoint().arg("--leave-running"), after);
        killed += u32::from(!ended.status.success());
        let what = format!("killed after {after:?} of {whole:?}");
        scene.assert_goes_on(&what);
        scene.assert_whole_or_nothing(&what);
    }
    assert!(killed > 0, "all of them ended before they were killed");
}

#[test]
fn killed_at_random_moments_first_fifty() {
    killed_at_random_moments(1, 50);
}

#[test]
fn killed_at_random_moments_second_fifty() {
    killed_at_random_moments(2, 50);
}

#[test]
fn killed_at_random_moments_third_fifty() {
    killed_at_random_moments(3, 50);
}

#[test]
fn killed_at_random_moments_fourth_fifty() {
    killed_at_random_moments(4, 50);
}
