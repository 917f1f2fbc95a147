//! `ocimig codes`: exit codes and the codes of messages, all of them or one.

use crate::error::{Context, Error, Exit, Result};
use std::io::{ErrorKind, Write};

const TEXT: &str = include_str!("codes.txt");

/// The arguments of `ocimig codes`.
#[derive(clap::Args)]
#[command(after_long_help = TEXT)]
pub struct Arguments {
    /// A code of a message, like E-TCP-OUTSIDE [default: all]
    code: Option<String>,
}

/// Runs `ocimig codes`.
pub fn run(arguments: Arguments) -> Result<()> {
    let text = match &arguments.code {
        None => TEXT.to_owned(),
        Some(code) => line(code).map(|line| format!("{line}\n")).ok_or_else(|| {
            Error::coded(
                "E-REQUEST",
                Exit::Usage,
                format!("there is no code {code:?}"),
                "ocimig codes lists all of them",
            )
        })?,
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.doing(|| "writing the codes"),
    }
}

fn line(code: &str) -> Option<&'static str> {
    entries()
        .find(|(known, _)| known.eq_ignore_ascii_case(code))
        .map(|entry| entry.1)
}

/// Codes and their lines.
fn entries() -> impl Iterator<Item = (&'static str, &'static str)> {
    TEXT.lines()
        .map(str::trim)
        .filter(|line| line.starts_with("E-"))
        .map(|line| (line.split(' ').next().unwrap_or(line), line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    const README: &str = include_str!("../../README.md");

    /// Every `"E-…"` in the sources but their tests.
    fn used(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if name == "tests" || name.ends_with("_tests") {
                continue;
            }
            if path.is_dir() {
                used(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("\nmod tests {").next().unwrap();
                for literal in code.split('"').filter(|part| part.starts_with("E-")) {
                    let is_code =
                        |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '-';
                    if literal.len() > 2 && literal.chars().all(is_code) {
                        found.insert(literal.to_owned());
                    }
                }
            }
        }
    }

    #[test]
    fn every_code_is_explained_and_none_that_is_not_there() {
        let mut used_codes = BTreeSet::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        used(&source, &mut used_codes);
        let known: BTreeSet<String> = entries().map(|entry| entry.0.to_owned()).collect();
        let unexplained: Vec<_> = used_codes.difference(&known).collect();
        let unused: Vec<_> = known.difference(&used_codes).collect();
        assert!(
            unexplained.is_empty(),
            "add to src/cli/codes.txt: {unexplained:?}"
        );
        assert!(
            unused.is_empty(),
            "remove from src/cli/codes.txt: {unused:?}"
        );
        assert_eq!(known.len(), entries().count(), "a code is explained twice");
    }

    #[test]
    fn the_exit_codes_are_those_that_are_used() {
        for exit in [
            Exit::Failure,
            Exit::Usage,
            Exit::Refused,
            Exit::NotFound,
            Exit::Image,
            Exit::Host,
        ] {
            let number = exit as u8;
            let said = TEXT
                .lines()
                .find_map(|line| line.strip_prefix(&format!("  {number}  ")))
                .unwrap();
            assert!(
                README.contains(&format!("| {number} | {said} |")),
                "{number}"
            );
        }
    }

    #[test]
    fn one_code_is_found_however_it_is_written() {
        assert!(line("e-tcp-outside").unwrap().contains("--tcp-established"));
        assert_eq!(line("E-NONSENSE"), None);
    }

    #[test]
    fn lines_fit_a_terminal() {
        assert!(TEXT.lines().all(|line| line.len() <= 98));
    }
}
