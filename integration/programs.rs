//! Real programs in runc containers: each goes on exactly where it was.
//!
//! `cargo test --test programs redis` runs the tests of one program.

#[allow(
    dead_code,
    unused_imports,
    reason = "each test target uses a part of the harness"
)]
mod harness;

#[path = "programs/counting.rs"]
mod counting;
#[path = "programs/servers.rs"]
mod servers;
#[path = "programs/shells.rs"]
mod shells;

use harness::{Config, Container, Ground, Rootfs};
use serde_json::json;
use std::path::Path;

/// A program, and what was seen of it so far. A clone goes with the copy that a checkpoint made.
trait Program: Clone {
    /// What it runs, and the first thing that it can be waited for with.
    fn config() -> Config;

    /// Brings it into full swing.
    fn reach(container: &Container) -> Self;

    /// Judges that it goes on where it was; panics when it does not.
    fn goes_on(&mut self, container: &Container);

    /// Lets it take a step between two checkpoints. What can be judged only once is not judged here.
    fn step(&mut self, container: &Container) {
        self.goes_on(container);
    }

    /// A checkpoint was taken of `container`, which is gone or still running. Called on what goes with
    /// the copy.
    fn taken(&mut self, _container: &Container) {}
}

/// A container that runs one of `integration/programs/`; its root is this machine's own.
fn config<const N: usize>(args: [&str; N]) -> Config {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/programs");
    let mut config = Config::new(args);
    config.lo = true;
    config.env = vec![
        "HOME=/root".into(),
        "TERM=linux".into(),
        "LC_ALL=C.UTF-8".into(),
    ];
    config.mounts.push(json!({
        "destination": "/programs", "type": "bind", "source": programs, "options": ["bind", "ro"],
    }));
    config
}

fn start<P: Program>(ground: &Ground) -> (Container, P) {
    let container = Container::start(ground, Rootfs::Machine, &P::config());
    let program = P::reach(&container);
    (container, program)
}

/// Without any checkpoint: the program and its judge are right.
fn runs<P: Program>() {
    let ground = Ground::new();
    let (container, mut program) = start::<P>(&ground);
    program.step(&container);
    program.goes_on(&container);
}

fn comes_back<P: Program>() {
    let ground = Ground::new();
    let (mut container, mut program) = start::<P>(&ground);
    let image = container.checkpoint(&[]);
    container.wait_until_gone();
    program.taken(&container);
    let restored = image.restore(&ground);
    program.goes_on(&restored);
    program.goes_on(&restored);
}

fn goes_on_and_comes_back<P: Program>() {
    let ground = Ground::new();
    let (mut container, mut program) = start::<P>(&ground);
    let mut copy = program.clone();
    let image = container.checkpoint(&["--leave-running"]);
    copy.taken(&container);
    program.step(&container);
    let restored = image.restore(&ground);
    copy.goes_on(&restored);
    program.goes_on(&container);
}

fn comes_back_twice<P: Program>() {
    let ground = Ground::new();
    let (mut container, mut program) = start::<P>(&ground);
    let image = container.checkpoint(&[]);
    container.wait_until_gone();
    program.taken(&container);
    let mut once = image.restore(&ground);
    program.step(&once);
    let image = once.checkpoint(&[]);
    once.wait_until_gone();
    program.taken(&once);
    let twice = image.restore(&ground);
    program.goes_on(&twice);
}

macro_rules! programs {
    ($($name:ident: $program:ty,)*) => {
        $(mod $name {
            #[test]
            fn runs() {
                super::runs::<$program>();
            }

            #[test]
            fn comes_back() {
                super::comes_back::<$program>();
            }

            #[test]
            fn goes_on_and_comes_back() {
                super::goes_on_and_comes_back::<$program>();
            }

            #[test]
            fn comes_back_twice() {
                super::comes_back_twice::<$program>();
            }
        })*
    };
}

programs! {
    bash: crate::counting::Bash,
    python: crate::counting::Python,
    java: crate::counting::Java,
    node: crate::servers::Node,
    redis: crate::servers::Redis,
    nginx: crate::servers::Nginx,
    pipeline: crate::shells::Pipeline,
    tmux: crate::shells::Tmux,
}
