//! The command line of `criu`.

use super::engine::{Engine, Own};
use super::log::{self, Log};
use super::operation::Operation;
use super::service::{Service, exec, page_server_refused};
use super::settings::{Given, OPTIONS, Settings, Takes, find, find_short, wrong};
use super::socket::Socket;
use super::{VERSION, config, cpuinfo, daemon, features, stats};
use crate::error::{Context, Result};
use crate::request::{Extent, Restored};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::ExitCode;

/// What a command line says.
pub struct CommandLine {
    /// Everything that is no option.
    pub words: Vec<String>,
    /// The options, in their order.
    pub given: Vec<Given>,
    /// What follows `--`.
    pub rest: Vec<String>,
}

impl CommandLine {
    /// Reads arguments, the program's name left out.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let mut arguments = arguments.into_iter().map(|argument| {
            argument.into_string().map_err(|argument| {
                wrong(
                    format!("argument {argument:?} is not UTF-8"),
                    "use names that are",
                )
            })
        });
        let mut line = Self {
            words: Vec::new(),
            given: Vec::new(),
            rest: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let argument = argument?;
            let mut next = || arguments.next().transpose();
            if argument == "--" {
                line.rest = arguments.collect::<Result<_>>()?;
                break;
            } else if let Some(long) = argument.strip_prefix("--") {
                line.given.push(long_option(long, &mut next)?);
            } else if argument.len() > 1 && argument.starts_with('-') {
                short_options(&argument[1..], &mut line.given, &mut next)?;
            } else {
                line.words.push(argument);
            }
        }
        Ok(line)
    }

    /// The options over the configuration files.
    pub fn settings(&self) -> Result<Settings> {
        let mut probe = Settings::default();
        probe.apply(&self.given)?;
        let mut settings = Settings::default();
        if !probe.no_default_config {
            config::apply_defaults(&mut settings)?;
        }
        if let Some(file) = &probe.config {
            config::apply(&mut settings, file, true)?;
        }
        settings.apply(&self.given)?;
        Ok(settings)
    }
}

type Next<'n> = &'n mut dyn FnMut() -> Result<Option<String>>;

fn long_option(text: &str, next: Next<'_>) -> Result<Given> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    let (definition, negated) = find(name)?;
    let value = match (definition.takes, value) {
        (Takes::Nothing(_), Some(_)) => {
            return Err(wrong(format!("--{name} takes no value"), "leave it out"));
        }
        (Takes::Value(_), None) => {
            Some(next()?.ok_or_else(|| wrong(format!("--{name} needs a value"), "give it"))?)
        }
        (_, value) => value,
    };
    Ok(Given {
        definition,
        negated,
        value,
    })
}

fn short_options(letters: &str, given: &mut Vec<Given>, next: Next<'_>) -> Result<()> {
    let mut rest = letters;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        let definition = find_short(letter)?;
        let attached = (!rest.is_empty()).then(|| rest.to_owned());
        let value = match definition.takes {
            Takes::Nothing(_) => None,
            Takes::Maybe(_) => {
                rest = "";
                attached
            }
            Takes::Value(_) => {
                rest = "";
                match attached {
                    Some(value) => Some(value),
                    None => Some(
                        next()?
                            .ok_or_else(|| wrong(format!("-{letter} needs a value"), "give it"))?,
                    ),
                }
            }
        };
        given.push(Given {
            definition,
            negated: false,
            value,
        });
    }
    Ok(())
}

/// Runs `criu` with these arguments, the program's name left out.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let log = Log::new();
    log.install();
    match run(arguments, &log, &mut Own) {
        Ok(code) => code,
        Err(error) => {
            // What ended an operation was logged already.
            if !log.is_on_stderr() {
                for line in log::lines(&error) {
                    eprintln!("criu: {line}");
                }
            }
            ExitCode::FAILURE
        }
    }
}

fn run(
    arguments: impl IntoIterator<Item = OsString>,
    log: &Log,
    engine: &mut dyn Engine,
) -> Result<ExitCode> {
    let line = CommandLine::parse(arguments)?;
    let settings = line.settings()?;
    for fd in &settings.close {
        nix::unistd::close(*fd).doing(|| format!("closing descriptor {fd}"))?;
    }
    if settings.version {
        print_version();
        return Ok(ExitCode::SUCCESS);
    }
    if settings.help {
        print!("{}", help());
        return Ok(ExitCode::SUCCESS);
    }
    let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
    match words[..] {
        ["swrk" | daemon::WORKER, fd] => {
            let fd = fd
                .parse()
                .map_err(|_| wrong(format!("{fd:?} is no descriptor"), "give a number"))?;
            serve(fd, words[0] == "swrk", log, engine)?;
        }
        ["service"] => daemon::run(&settings, log)?,
        ["version"] => print_version(),
        ["check"] => return check(&settings),
        ["dump"] => dump(settings, Extent::Whole, log, engine)?,
        ["pre-dump"] => dump(settings, Extent::MemoryOnly, log, engine)?,
        ["restore"] => restore(settings, &line.rest, log, engine)?,
        ["cpuinfo", "dump"] => cpuinfo::dump(&begin(settings, log)?.images)?,
        ["cpuinfo", "check"] => cpuinfo::check(&begin(settings, log)?.images)?,
        ["page-server" | "lazy-pages"] => return Err(page_server_refused()),
        [] => {
            eprint!("{}", help());
            return Ok(ExitCode::FAILURE);
        }
        _ => {
            return Err(wrong(
                format!("there is no command {:?}", line.words.join(" ")),
                "see criu --help",
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_version() {
    println!("Version: {}.{}", VERSION.0, VERSION.1);
}

fn serve(fd: i32, own_caller: bool, log: &Log, engine: &mut dyn Engine) -> Result<()> {
    let socket = super::ask::own(fd).doing(|| format!("taking descriptor {fd}"))?;
    // The one that was inherited would be passed on to everything that is started.
    nix::unistd::close(fd).doing(|| format!("closing descriptor {fd}"))?;
    Service::new(Socket::new(socket), engine, log.clone(), own_caller).run()
}

fn begin(settings: Settings, log: &Log) -> Result<Operation<'static>> {
    let images = settings.images_dir.clone();
    let work = settings.work_dir.clone();
    Operation::begin(
        settings,
        (images.as_deref().unwrap_or(Path::new(".")), work.as_deref()),
        None,
        log,
        None,
    )
}

fn dump(settings: Settings, extent: Extent, log: &Log, engine: &mut dyn Engine) -> Result<()> {
    let tree = settings
        .tree
        .ok_or_else(|| wrong("no process is given", "give --tree PID"))?;
    let operation = begin(settings, log)?;
    let report = operation.dump(tree, extent, engine)?;
    if operation.settings.display_stats {
        print!("{}", stats::display_dump(&report));
    }
    Ok(())
}

fn restore(
    settings: Settings,
    command: &[String],
    log: &Log,
    engine: &mut dyn Engine,
) -> Result<()> {
    if settings.sibling && !settings.detached {
        return Err(wrong(
            "--restore-sibling leaves nothing to wait for",
            "give --restore-detached too",
        ));
    }
    let operation = begin(settings, log)?;
    let restored = operation.restore(engine)?;
    let settings = &operation.settings;
    if settings.display_stats {
        print!("{}", stats::display_restore(&restored.report));
    }
    if settings.exec_command {
        return Err(exec(command));
    }
    if !settings.detached {
        wait(&restored)?;
    }
    Ok(())
}

/// Stays until the init has ended.
fn wait(restored: &Restored) -> Result<()> {
    let Some(init) = &restored.init else {
        return Ok(());
    };
    let status = loop {
        match waitid(Id::PIDFd(init.as_fd()), WaitPidFlag::WEXITED) {
            Err(nix::errno::Errno::EINTR) => {}
            status => break status.doing(|| format!("waiting on {}", init.as_raw_fd()))?,
        }
    };
    match status {
        WaitStatus::Exited(_, code) => tracing::info!("the init ended with status {code}"),
        other => tracing::info!("the init ended: {other:?}"),
    }
    Ok(())
}

fn check(settings: &Settings) -> Result<ExitCode> {
    if settings.feature.iter().any(|name| name == "list") {
        println!("{}", features::names().collect::<Vec<_>>().join(" "));
        return Ok(ExitCode::SUCCESS);
    }
    let mut there = true;
    for name in &settings.feature {
        if !features::has(name)? {
            eprintln!("criu: {}", features::missing(name));
            there = false;
        }
    }
    if !settings.feature.is_empty() {
        return Ok(if there {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    if let Err(error) = features::check_basics() {
        println!("Does not look good.");
        return Err(error);
    }
    let lacking: Vec<&str> = if settings.all || settings.extra {
        features::lacking_on_this_host().collect()
    } else {
        Vec::new()
    };
    if lacking.is_empty() {
        println!("Looks good.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("Looks good but some kernel features are missing which, depending on your use case,");
    println!("may be needed: {}", lacking.join(", "));
    Ok(ExitCode::FAILURE)
}

fn help() -> String {
    let mut text = String::from(
        "Usage:\n  \
         criu dump|pre-dump -t PID [options]\n  \
         criu restore [options] [--exec-cmd -- COMMAND]\n  \
         criu check [--all] [--feature NAME]\n  \
         criu cpuinfo dump|check [options]\n  \
         criu service [options]\n  \
         criu swrk FD\n\n\
         This is ocimig under the name of criu: the images directory holds one ocimig.tar.\n\n\
         Options:\n",
    );
    for option in OPTIONS {
        let short = option
            .short
            .map_or_else(|| "   ".to_owned(), |letter| format!("-{letter},"));
        let takes = match option.takes {
            Takes::Nothing(_) => "",
            Takes::Value(_) => " VALUE",
            Takes::Maybe(_) => "[=VALUE]",
        };
        text.push_str(&format!("  {short} --{}{takes}\n", option.name));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::header::Compression;
    use crate::request::CgroupMode;
    use std::path::PathBuf;

    fn parse(line: &str) -> Result<(Vec<String>, Settings, Vec<String>)> {
        let line = CommandLine::parse(line.split_whitespace().map(OsString::from))?;
        let mut settings = Settings::default();
        settings.apply(&line.given)?;
        Ok((line.words, settings, line.rest))
    }

    #[test]
    fn lxc_is_understood() {
        let (words, settings, _) = parse(
            "dump --tcp-established --file-locks --link-remap --manage-cgroups=full \
             --ext-mount-map auto --enable-external-sharing --enable-external-masters \
             --enable-fs hugetlbfs --enable-fs tracefs -D /img -o /img/dump.log \
             --cgroup-root cpu:/lxc -vvvvvv --freeze-cgroup /sys/fs/cgroup/freezer/lxc/a \
             --force-irmap --external tty[8803:18] -t 4711 --leave-running --ghost-limit 4M",
        )
        .unwrap();
        assert_eq!(words, ["dump"]);
        assert!(settings.tcp_established && settings.file_locks && settings.leave_running);
        assert!(settings.external_mounts_auto && settings.external_sharing);
        assert_eq!(settings.enable_fs, ["hugetlbfs", "tracefs"]);
        assert_eq!(settings.cgroups, CgroupMode::Full);
        assert_eq!(settings.log_level, 8);
        assert_eq!(settings.tree, Some(4711));
        assert_eq!(settings.ghost_limit, Some(4 << 20));
        assert_eq!(settings.external, ["tty[8803:18]"]);
    }

    #[test]
    fn letters_carry_their_values_and_stand_together() {
        let (words, settings, rest) =
            parse("restore -dSj -D/img -W /work -v4 --exec-cmd -- sh -c exit").unwrap();
        assert_eq!(words, ["restore"]);
        assert!(settings.detached && settings.sibling && settings.shell_job);
        assert_eq!(settings.images_dir, Some(PathBuf::from("/img")));
        assert_eq!(settings.work_dir, Some(PathBuf::from("/work")));
        assert_eq!(settings.log_level, 4);
        assert_eq!(rest, ["sh", "-c", "exit"]);
        let (_, settings, _) = parse("dump -t 1 --compress none").unwrap();
        assert_eq!(settings.compression, Compression::None);
        let (_, settings, _) =
            parse("check --no-default-config -verbosity=0 --feature uffd").unwrap();
        assert_eq!(settings.log_level, 0);
        assert_eq!(settings.feature, ["uffd"]);
    }

    #[test]
    fn what_is_not_known_or_not_complete_is_an_error() {
        for line in [
            "dump --soul",
            "dump -y",
            "dump --tree",
            "dump -t",
            "dump -t abc",
            "dump --leave-running=1",
            "dump --manage-cgroups=some",
            "dump --compress=soul",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_help_names_every_option() {
        let text = help();
        assert!(OPTIONS.iter().all(|option| text.contains(option.name)));
    }
}
