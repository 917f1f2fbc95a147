//! Named moments at which a test can make this program fail, hang or die.
//!
//! `OCIMIG_FAULT=frozen:kill` lets SIGKILL end the process when it comes to the point `frozen`,
//! `frozen:fail` makes it report `E-FAULT` there, `frozen:pause:500` makes it wait there for 500
//! milliseconds. Without the variable a point costs one comparison. That a container survives a
//! death at any of them is proved by `integration/nothing_lost.rs`.

use crate::error::{Error, Exit, Result};
use nix::sys::signal::{Signal, raise};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// The variable that is read, once, when the first point is passed.
pub const VARIABLE: &str = "OCIMIG_FAULT";

/// The points of a checkpoint, in the order in which they are passed.
pub const CHECKPOINT_POINTS: [&str; 12] = [
    "found",
    "guarded",
    "seized",
    "frozen",
    "thawed-into-trap",
    "collected",
    "refused-check",
    "metadata-written",
    "pages-half",
    "pages-written",
    "renamed",
    "released",
];

/// The points of a restore, in the order in which they are passed.
pub const RESTORE_POINTS: [&str; 13] = [
    "opened",
    "planned",
    "namespaces-made",
    "mounts-made",
    "init-born",
    "tree-born",
    "memory-filled",
    "files-built",
    "files-installed",
    "threads-built",
    "finished",
    "before-release",
    "released",
];

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Fail,
    Pause(Duration),
}

/// Passes the point `name`, which is one of [`CHECKPOINT_POINTS`] or [`RESTORE_POINTS`].
///
/// # Errors
///
/// `E-FAULT` where [`VARIABLE`] asks for it here; also where it asks for something unknown.
pub fn point(name: &'static str) -> Result<()> {
    static ASKED: OnceLock<Option<String>> = OnceLock::new();
    debug_assert!(is_point(name), "{name} is missing from the lists of points");
    let asked = ASKED.get_or_init(|| std::env::var(VARIABLE).ok());
    let Some(asked) = asked else {
        return Ok(());
    };
    let Some((wanted, fault)) = parse(asked) else {
        return Err(Error::coded(
            "E-FAULT-UNKNOWN",
            Exit::Usage,
            format!("{VARIABLE}={asked} names no point or no fault"),
            "write POINT:kill, POINT:fail or POINT:pause:MILLISECONDS",
        ));
    };
    if wanted != name {
        return Ok(());
    }
    match fault {
        Fault::Kill => raise(Signal::SIGKILL)?,
        Fault::Pause(duration) => thread::sleep(duration),
        Fault::Fail => {
            return Err(Error::coded(
                "E-FAULT",
                Exit::Failure,
                format!("{VARIABLE} asks for a failure at {name}"),
                "unset it",
            ));
        }
    }
    Ok(())
}

fn is_point(name: &str) -> bool {
    CHECKPOINT_POINTS.contains(&name) || RESTORE_POINTS.contains(&name)
}

fn parse(text: &str) -> Option<(&str, Fault)> {
    let (name, fault) = text.split_once(':')?;
    let fault = match fault {
        "kill" => Fault::Kill,
        "fail" => Fault::Fail,
        other => {
            let milliseconds = other.strip_prefix("pause:")?.parse().ok()?;
            Fault::Pause(Duration::from_millis(milliseconds))
        }
    };
    is_point(name).then_some((name, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_a_point_and_what_happens_there() {
        assert_eq!(parse("frozen:kill"), Some(("frozen", Fault::Kill)));
        assert_eq!(parse("opened:fail"), Some(("opened", Fault::Fail)));
        let pause = Fault::Pause(Duration::from_millis(250));
        assert_eq!(parse("renamed:pause:250"), Some(("renamed", pause)));
    }

    #[test]
    fn a_misspelt_fault_is_not_taken_for_none() {
        for text in ["frozen", "froze:kill", "frozen:die", "frozen:pause:soon"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn without_the_variable_every_point_is_passed() {
        for name in CHECKPOINT_POINTS.into_iter().chain(RESTORE_POINTS) {
            point(name).unwrap();
        }
    }
}
