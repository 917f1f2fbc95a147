//! Configuration files: `/etc/criu/default.conf`, `$HOME/.criu/default.conf`,
//! `$CRIU_CONFIG_FILE`, `--config FILE`, and the file that an RPC caller names.

use super::settings::{Given, Settings, Takes, find, wrong};
use crate::error::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where defaults are, in the order in which they are applied.
pub fn default_files(environment: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/criu/default.conf")];
    if let Some(home) = environment("HOME") {
        files.push(Path::new(&home).join(".criu/default.conf"));
    }
    if let Some(file) = environment("CRIU_CONFIG_FILE") {
        files.push(file.into());
    }
    files
}

/// Applies the defaults of this host; files that are not there are passed over.
pub fn apply_defaults(settings: &mut Settings) -> Result<()> {
    for file in default_files(|name| std::env::var_os(name)) {
        apply(settings, &file, false)?;
    }
    Ok(())
}

/// Applies one file. One that is not there is an error if it is `required`.
pub fn apply(settings: &mut Settings, file: &Path, required: bool) -> Result<()> {
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(()),
        text => text.doing(|| format!("reading {}", file.display()))?,
    };
    let given = parse(&text).doing(|| format!("reading {}", file.display()))?;
    settings
        .apply(&given)
        .doing(|| format!("reading {}", file.display()))?;
    tracing::info!("configuration {} applied", file.display());
    Ok(())
}

/// One option a line: `name`, `name value`, `name=value`, `name "quoted \" value"`, `# comment`.
pub fn parse(text: &str) -> Result<Vec<Given>> {
    let mut given = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let option = parse_line(line).doing(|| format!("line {}", number + 1))?;
        given.extend(option);
    }
    Ok(given)
}

fn parse_line(line: &str) -> Result<Option<Given>> {
    let line = line.trim_start();
    let end = line
        .find(|c: char| c.is_whitespace() || c == '=' || c == '#')
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return match rest.chars().next() {
            None | Some('#') => Ok(None),
            Some(_) => Err(wrong("there is no name before the =", "write NAME=VALUE")),
        };
    }
    let (definition, negated) = find(name.trim_start_matches('-'))?;
    let value = parse_value(rest)?;
    match (definition.takes, &value) {
        (Takes::Nothing(_), Some(value)) => Err(wrong(
            format!("{name} takes no value, {value:?} is given"),
            "leave it out",
        )),
        (Takes::Value(_), None) => Err(wrong(format!("{name} needs a value"), "give it")),
        _ => Ok(Some(Given {
            definition,
            negated,
            value,
        })),
    }
}

fn parse_value(rest: &str) -> Result<Option<String>> {
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let Some(quoted) = rest.strip_prefix('"') else {
        // A comment begins after blank space; `#` inside of a word belongs to it.
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() || word.starts_with('#') {
            return Ok(None);
        }
        return only_comment(after).map(|()| Some(word.to_owned()));
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return only_comment(characters.as_str()).map(|()| Some(value)),
            '\\' if characters.as_str().starts_with('"') => {
                value.push('"');
                characters.next();
            }
            other => value.push(other),
        }
    }
    Err(wrong("a quotation has no end", "add the second \""))
}

fn only_comment(rest: &str) -> Result<()> {
    let rest = rest.trim();
    if rest.is_empty() || rest.starts_with('#') {
        Ok(())
    } else {
        Err(wrong(
            format!("{rest:?} follows the value"),
            "put values that contain blanks in double quotes",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::CgroupMode;

    fn settings(text: &str) -> Result<Settings> {
        let mut settings = Settings::default();
        settings.apply(&parse(text)?)?;
        Ok(settings)
    }

    #[test]
    fn options_stand_one_a_line() {
        let read = settings(
            "# defaults of this host\n\
             tcp-established\n\
             \n\
             work-dir \"/srv/my \\\"work\\\" directory\"   # where\n\
             ghost-limit=2M # and how much\n\
             manage-cgroups=ignore\n\
             no-shell-job\n\
             --log-file dump#1.log\n",
        )
        .unwrap();
        assert!(read.tcp_established);
        assert!(!read.shell_job);
        assert_eq!(
            read.work_dir,
            Some(PathBuf::from("/srv/my \"work\" directory"))
        );
        assert_eq!(read.ghost_limit, Some(2 << 20));
        assert_eq!(read.cgroups, CgroupMode::Ignore);
        assert_eq!(read.log_file, Some(PathBuf::from("dump#1.log")));
        assert_eq!(
            settings("manage-cgroups").unwrap().cgroups,
            CgroupMode::Soft
        );
        assert_eq!(
            settings("manage-cgroups full").unwrap().cgroups,
            CgroupMode::Full
        );
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        for text in [
            "\nsoul",
            "\ntcp-established yes",
            "\nwork-dir",
            "\nwork-dir \"/a",
            "\nwork-dir /a b",
            "\n=3",
        ] {
            let error = parse(text).err().unwrap().to_string();
            assert!(error.starts_with("line 2: "), "{error}");
        }
    }

    #[test]
    fn defaults_come_from_the_host_the_home_and_the_environment() {
        let environment = |name: &str| match name {
            "HOME" => Some("/root".into()),
            "CRIU_CONFIG_FILE" => Some("/srv/criu.conf".into()),
            _ => None,
        };
        assert_eq!(
            default_files(environment),
            [
                PathBuf::from("/etc/criu/default.conf"),
                PathBuf::from("/root/.criu/default.conf"),
                PathBuf::from("/srv/criu.conf"),
            ]
        );
        assert_eq!(default_files(|_| None).len(), 1);
    }

    #[test]
    fn a_file_that_is_not_there_matters_only_where_it_was_named() {
        let mut settings = Settings::default();
        let file = Path::new("/nonexistent/criu.conf");
        assert!(apply(&mut settings, file, false).is_ok());
        assert!(apply(&mut settings, file, true).is_err());
    }
}
