//! The layers of the house, checked: a room that reaches up fails here, with file and line.

use std::fs;
use std::path::{Path, PathBuf};

const ALL: &[&str] = &["*"];

/// What a room may use beside itself and `error`, which everybody may use.
const ROOMS: [(&str, &[&str]); 15] = [
    ("cli", ALL),
    ("criu", ALL),
    ("oci", ALL),
    (
        "checkpoint",
        &[
            "request", "resource", "image", "tracee", "proc", "sys", "fault",
        ],
    ),
    (
        "restore",
        &[
            "request", "plan", "resource", "image", "tracee", "proc", "sys", "fault",
        ],
    ),
    (
        "plan",
        &["request", "resource", "image", "tracee", "proc", "sys"],
    ),
    ("check", &["resource", "tracee", "proc", "sys"]),
    ("request", &["image"]),
    ("resource", &["image", "tracee", "proc", "sys", "fault"]),
    ("tracee", &["proc", "sys", "fault"]),
    ("proc", &["sys"]),
    ("sys", &[]),
    ("image", &[]),
    ("fault", &[]),
    ("error", &[]),
];

/// Rooms that stand outside: the doors, and this test.
const OUTSIDE: [&str; 3] = ["lib", "main", "layers"];

#[test]
fn no_room_reaches_up() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut complaints = Vec::new();
    for path in sources(&src) {
        let inside = path.strip_prefix(&src).unwrap();
        let room = room(inside);
        if OUTSIDE.contains(&room.as_str()) {
            continue;
        }
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            complaints.push(format!("{room}: a room without a place in the layers"));
            continue;
        };
        let text = fs::read_to_string(&path).unwrap();
        complaints.extend(
            uses(&text)
                .filter(|(_, used)| !may_use(&room, allowed, used))
                .map(|(line, used)| format!("src/{}:{line}: {room} uses {used}", inside.display())),
        );
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn may_use(room: &str, allowed: &[&str], used: &str) -> bool {
    let known = ROOMS.iter().any(|(name, _)| *name == used);
    // What is no room is a macro or an item at the root.
    !known || used == room || used == "error" || allowed == ALL || allowed.contains(&used)
}

/// All source files that are not tests alone.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name == "tests" || name.ends_with("_tests") || name == "testing" {
            continue;
        }
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// `resource` for `resource/files/pipe.rs`, `check` for `check.rs`.
fn room(inside: &Path) -> String {
    let first = inside.components().next().unwrap().as_os_str();
    let first = first.to_str().unwrap();
    first.strip_suffix(".rs").unwrap_or(first).to_owned()
}

/// The rooms that a source names with `crate::`, with line numbers, up to its tests.
fn uses(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.find("\nmod tests {").map_or(text, |end| &text[..end]);
    (1..)
        .zip(code.lines())
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .flat_map(|(number, line)| {
            let names = line.split("crate::").skip(1).flat_map(|rest| {
                let list = rest.strip_prefix('{').unwrap_or(rest);
                let several = list.len() < rest.len();
                list.split(", ")
                    .take(if several { usize::MAX } else { 1 })
                    .map(first_word)
            });
            names.map(move |name| (number, name))
        })
}

fn first_word(text: &str) -> &str {
    let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    end.map_or(text, |end| &text[..end])
}

#[test]
fn a_reach_upwards_is_seen() {
    let text = "use crate::{image::Tree, error};\n//! crate::cli\nlet x = crate::sys::ns::open();\n\
                #[cfg(test)]\nmod tests {\nuse crate::cli;\n}\n";
    let found: Vec<_> = uses(text).collect();
    assert_eq!(found, [(1, "image"), (1, "error"), (3, "sys")]);
    assert!(may_use("proc", &["sys"], "error") && may_use("proc", &["sys"], "sys"));
    assert!(!may_use("proc", &["sys"], "image"));
}
