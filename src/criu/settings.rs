//! Every option of `criu`, whether it came by command line, configuration file or message.
//!
//! One table names them all; [`super::ask`] turns the outcome into a request of the engine, and
//! refuses by name what the engine cannot do.

use crate::error::{Context, Error, Exit, Result};
use crate::image::header::Compression;
use crate::request::{CgroupMode, CgroupRoot, JoinNamespace};
use std::path::PathBuf;

/// All options, with what holds when nobody says anything.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each is the option of that name; see the table"
)]
pub struct Settings {
    pub action_scripts: Vec<PathBuf>,
    pub address: Option<String>,
    pub all: bool,
    pub allow_uprobes: bool,
    pub auto_dedup: bool,
    pub cgroup_controllers: Vec<String>,
    pub cgroup_props: Option<String>,
    pub cgroup_props_file: Option<PathBuf>,
    pub cgroup_roots: Vec<CgroupRoot>,
    pub cgroup_yard: Option<PathBuf>,
    pub close: Vec<i32>,
    pub compression: Compression,
    pub config: Option<PathBuf>,
    pub cpu_cap: Option<String>,
    pub detached: bool,
    pub display_stats: bool,
    pub empty_namespaces: Vec<String>,
    pub enable_fs: Vec<String>,
    pub evasive_devices: bool,
    pub exec_command: bool,
    pub experimental: bool,
    pub external: Vec<String>,
    pub external_masters: bool,
    pub external_mounts_auto: bool,
    pub external_sharing: bool,
    pub external_unix: bool,
    pub extra: bool,
    pub feature: Vec<String>,
    pub file_locks: bool,
    pub file_validation: Option<String>,
    pub freeze_cgroup: Option<PathBuf>,
    pub ghost_limit: Option<u64>,
    pub help: bool,
    pub images_dir: Option<PathBuf>,
    pub inherit: Vec<(i32, String)>,
    pub join: Vec<JoinNamespace>,
    pub lazy_pages: bool,
    pub leave_running: bool,
    pub leave_stopped: bool,
    pub libdir: Option<PathBuf>,
    pub link_remap: bool,
    pub log_file: Option<PathBuf>,
    pub log_level: u8,
    pub log_to_stderr: bool,
    pub lsm_mount_context: Option<String>,
    pub lsm_profile: Option<String>,
    pub cgroups: CgroupMode,
    pub network_lock: Option<String>,
    pub no_default_config: bool,
    pub notify_scripts: bool,
    pub orphan_terminal: bool,
    pub page_server: bool,
    pub parent: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub pidfd_store: bool,
    pub port: Option<u16>,
    pub ps_socket: Option<i32>,
    pub root: Option<PathBuf>,
    pub satisfied: Satisfied,
    pub shell_job: bool,
    pub sibling: bool,
    pub skip_in_flight: bool,
    pub skip_mounts: Vec<PathBuf>,
    pub status_fd: Option<i32>,
    pub stream: bool,
    pub tcp_close: bool,
    pub tcp_established: bool,
    pub timeout: u64,
    pub tls: bool,
    pub track_mem: bool,
    pub tree: Option<i32>,
    pub version: bool,
    pub weak_sysctls: bool,
    pub work_dir: Option<PathBuf>,
}

/// Options that choose between ways to the same end, of which this engine has one, or that allow
/// what it does anyway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each is the option of that name; see the table"
)]
pub struct Satisfied {
    pub deprecated: bool,
    pub force_irmap: bool,
    pub ghost_fiemap: bool,
    pub log_pid: bool,
    pub mntns_compat_mode: bool,
    pub skip_file_rwx_check: bool,
    pub unprivileged: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            action_scripts: Vec::new(),
            address: None,
            all: false,
            allow_uprobes: false,
            auto_dedup: false,
            cgroup_controllers: Vec::new(),
            cgroup_props: None,
            cgroup_props_file: None,
            cgroup_roots: Vec::new(),
            cgroup_yard: None,
            close: Vec::new(),
            compression: Compression::default(),
            config: None,
            cpu_cap: None,
            detached: false,
            display_stats: false,
            empty_namespaces: Vec::new(),
            enable_fs: Vec::new(),
            evasive_devices: false,
            exec_command: false,
            experimental: false,
            external: Vec::new(),
            external_masters: false,
            external_mounts_auto: false,
            external_sharing: false,
            external_unix: false,
            extra: false,
            feature: Vec::new(),
            file_locks: false,
            file_validation: None,
            freeze_cgroup: None,
            ghost_limit: None,
            help: false,
            images_dir: None,
            inherit: Vec::new(),
            join: Vec::new(),
            lazy_pages: false,
            leave_running: false,
            leave_stopped: false,
            libdir: None,
            link_remap: false,
            log_file: None,
            log_level: 2,
            log_to_stderr: false,
            lsm_mount_context: None,
            lsm_profile: None,
            cgroups: CgroupMode::Ignore,
            network_lock: None,
            no_default_config: false,
            notify_scripts: false,
            orphan_terminal: false,
            page_server: false,
            parent: None,
            pid_file: None,
            pidfd_store: false,
            port: None,
            ps_socket: None,
            root: None,
            satisfied: Satisfied::default(),
            shell_job: false,
            sibling: false,
            skip_in_flight: false,
            skip_mounts: Vec::new(),
            status_fd: None,
            stream: false,
            tcp_close: false,
            tcp_established: false,
            timeout: 10,
            tls: false,
            track_mem: false,
            tree: None,
            version: false,
            weak_sysctls: false,
            work_dir: None,
        }
    }
}

/// What an option does.
#[derive(Clone, Copy)]
pub enum Takes {
    /// No argument; `--no-NAME` is its opposite.
    Nothing(fn(&mut Settings) -> &mut bool),
    /// An argument.
    Value(fn(&mut Settings, &str) -> Result<()>),
    /// An argument that may be left out.
    Maybe(fn(&mut Settings, Option<&str>) -> Result<()>),
}

/// One option.
pub struct Definition {
    /// Without the dashes.
    pub name: &'static str,
    /// Of one letter.
    pub short: Option<char>,
    /// See [`Takes`].
    pub takes: Takes,
}

/// An option that somebody gave.
pub struct Given {
    /// Which.
    pub definition: &'static Definition,
    /// As `--no-NAME`.
    pub negated: bool,
    /// Its argument.
    pub value: Option<String>,
}

impl Settings {
    /// Applies options in the order in which they were given.
    pub fn apply(&mut self, given: &[Given]) -> Result<()> {
        for option in given {
            let name = option.definition.name;
            match option.definition.takes {
                Takes::Nothing(flag) => *flag(self) = !option.negated,
                Takes::Value(set) => set(self, option.value.as_deref().unwrap_or_default())
                    .doing(|| format!("reading option --{name}"))?,
                Takes::Maybe(set) => set(self, option.value.as_deref())
                    .doing(|| format!("reading option --{name}"))?,
            }
        }
        Ok(())
    }
}

/// Finds an option by its long name, `no-…` included.
pub fn find(name: &str) -> Result<(&'static Definition, bool)> {
    let exact = |wanted: &str| OPTIONS.iter().find(|option| option.name == wanted);
    if let Some(option) = exact(name) {
        return Ok((option, false));
    }
    if let Some(option) = name.strip_prefix("no-").and_then(exact)
        && matches!(option.takes, Takes::Nothing(_))
    {
        return Ok((option, true));
    }
    let mut longer = OPTIONS
        .iter()
        .filter(|option| option.name.starts_with(name));
    match (longer.next(), longer.next()) {
        (Some(option), None) => Ok((option, false)),
        (None, _) => Err(wrong(
            format!("there is no option --{name}"),
            "see criu --help",
        )),
        (Some(one), Some(other)) => Err(wrong(
            format!("--{name} is --{} or --{}", one.name, other.name),
            "write it out",
        )),
    }
}

/// Finds an option by its letter.
pub fn find_short(letter: char) -> Result<&'static Definition> {
    OPTIONS
        .iter()
        .find(|option| option.short == Some(letter))
        .ok_or_else(|| wrong(format!("there is no option -{letter}"), "see criu --help"))
}

/// A request that is wrong in itself.
pub fn wrong(reason: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::coded("E-CRIU-OPTION", Exit::Usage, reason, remedy)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.trim()
        .parse()
        .map_err(|_| wrong(format!("{text:?} is no number"), "give a number"))
}

/// Bytes, with K, M or G.
fn size(text: &str) -> Result<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    number::<u64>(digits)?
        .checked_mul(1 << shift)
        .ok_or_else(|| wrong(format!("{text:?} is too much"), "give a smaller size"))
}

/// `none`, `props`, …; nothing at all is `soft`.
pub fn cgroup_mode(text: Option<&str>) -> Result<CgroupMode> {
    Ok(match text {
        None | Some("soft") => CgroupMode::Soft,
        Some("ignore") => CgroupMode::Ignore,
        Some("none") => CgroupMode::None,
        Some("props") => CgroupMode::Props,
        Some("full") => CgroupMode::Full,
        Some("strict") => CgroupMode::Strict,
        Some(other) => {
            return Err(wrong(
                format!("{other:?} is no mode of managing cgroups"),
                "give one of ignore, none, props, soft, full, strict",
            ));
        }
    })
}

/// `[CONTROLLER:]/PATH`.
fn cgroup_root(text: &str) -> CgroupRoot {
    match text.split_once(':') {
        Some((controller, path)) => CgroupRoot {
            controller: Some(controller.to_owned()),
            path: path.to_owned(),
        },
        None => CgroupRoot {
            controller: None,
            path: text.to_owned(),
        },
    }
}

/// `fd[N]:KEY`.
fn inherit(text: &str) -> Result<(i32, String)> {
    let parsed = text
        .strip_prefix("fd[")
        .and_then(|rest| rest.split_once("]:"))
        .filter(|(_, key)| !key.is_empty());
    match parsed {
        Some((fd, key)) => Ok((number(fd)?, key.to_owned())),
        None => Err(wrong(
            format!("{text:?} gives no descriptor"),
            "write fd[N]:RESOURCE",
        )),
    }
}

/// `NS:PID[,EXTRA]` or `NS:FILE[,EXTRA]`.
fn join(text: &str) -> Result<JoinNamespace> {
    let (kind, rest) = text.split_once(':').ok_or_else(|| {
        wrong(
            format!("{text:?} names no namespace"),
            "write NS:PID or NS:FILE",
        )
    })?;
    let (place, extra) = match rest.split_once(',') {
        Some((place, extra)) => (place, Some(extra.to_owned())),
        None => (rest, None),
    };
    Ok(join_namespace(kind, place, extra))
}

/// A namespace by the file or the process that it belongs to.
pub fn join_namespace(kind: &str, place: &str, extra: Option<String>) -> JoinNamespace {
    let path = match place.parse::<i32>() {
        Ok(pid) => format!("/proc/{pid}/ns/{kind}").into(),
        Err(_) => PathBuf::from(place),
    };
    JoinNamespace {
        kind: kind.to_owned(),
        path,
        extra,
    }
}

/// `auto` or `KEY:VALUE`.
fn mount_map(settings: &mut Settings, text: &str) -> Result<()> {
    if text == "auto" {
        settings.external_mounts_auto = true;
        return Ok(());
    }
    let (key, value) = text.split_once(':').ok_or_else(|| {
        wrong(
            format!("{text:?} maps no mount"),
            "write auto or MOUNTPOINT:NAME",
        )
    })?;
    settings.external.push(format!("mnt[{key}]:{value}"));
    Ok(())
}

fn verbosity(settings: &mut Settings, text: Option<&str>) -> Result<()> {
    settings.log_level = match text {
        None => settings.log_level.saturating_add(1),
        Some(text) if text.bytes().all(|byte| byte == b'v') => {
            settings.log_level.saturating_add(1 + text.len() as u8)
        }
        // One caller writes `-verbosity=0` with one dash.
        Some(text) => number(text.trim_start_matches(|c: char| c.is_alphabetic() || c == '='))?,
    };
    Ok(())
}

fn split_list(into: &mut Vec<String>, text: &str) {
    into.extend(
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(str::to_owned),
    );
}

const fn flag(
    name: &'static str,
    short: Option<char>,
    of: fn(&mut Settings) -> &mut bool,
) -> Definition {
    Definition {
        name,
        short,
        takes: Takes::Nothing(of),
    }
}

const fn value(
    name: &'static str,
    short: Option<char>,
    set: fn(&mut Settings, &str) -> Result<()>,
) -> Definition {
    Definition {
        name,
        short,
        takes: Takes::Value(set),
    }
}

const fn maybe(
    name: &'static str,
    short: Option<char>,
    set: fn(&mut Settings, Option<&str>) -> Result<()>,
) -> Definition {
    Definition {
        name,
        short,
        takes: Takes::Maybe(set),
    }
}

macro_rules! done {
    ($expression:expr) => {{
        $expression;
        Ok(())
    }};
}

/// All of them.
pub static OPTIONS: &[Definition] = &[
    value("action-script", None, |s, v| {
        done!(s.action_scripts.push(v.into()))
    }),
    value("address", None, |s, v| done!(s.address = Some(v.into()))),
    flag("all", None, |s| &mut s.all),
    flag("allow-uprobes", None, |s| &mut s.allow_uprobes),
    flag("auto-dedup", None, |s| &mut s.auto_dedup),
    value("cgroup-dump-controller", None, |s, v| {
        done!(s.cgroup_controllers.push(v.into()))
    }),
    value("cgroup-props", None, |s, v| {
        done!(s.cgroup_props = Some(v.into()))
    }),
    value("cgroup-props-file", None, |s, v| {
        done!(s.cgroup_props_file = Some(v.into()))
    }),
    value("cgroup-root", None, |s, v| {
        done!(s.cgroup_roots.push(cgroup_root(v)))
    }),
    value("cgroup-yard", None, |s, v| {
        done!(s.cgroup_yard = Some(v.into()))
    }),
    value("close", None, |s, v| done!(s.close.push(number(v)?))),
    // Of our own: how the image is compressed.
    value("compress", None, |s, v| {
        done!(
            s.compression = v
                .parse()
                .map_err(|why: String| wrong(why, "give one of zstd, lz4, gzip, none"))?
        )
    }),
    value("config", None, |s, v| done!(s.config = Some(v.into()))),
    maybe("cpu-cap", None, |s, v| {
        done!(s.cpu_cap = Some(v.unwrap_or("all").into()))
    }),
    flag("daemon", None, |s| &mut s.detached),
    flag("deprecated", None, |s| &mut s.satisfied.deprecated),
    flag("display-stats", None, |s| &mut s.display_stats),
    value("empty-ns", None, |s, v| {
        done!(s.empty_namespaces.push(v.into()))
    }),
    flag("enable-external-masters", None, |s| &mut s.external_masters),
    flag("enable-external-sharing", None, |s| &mut s.external_sharing),
    value("enable-fs", None, |s, v| {
        done!(split_list(&mut s.enable_fs, v))
    }),
    flag("evasive-devices", None, |s| &mut s.evasive_devices),
    flag("exec-cmd", None, |s| &mut s.exec_command),
    flag("experimental", None, |s| &mut s.experimental),
    value("ext-mount-map", Some('M'), mount_map),
    maybe("ext-unix-sk", Some('x'), |s, v| {
        s.external_unix = true;
        if let Some(inodes) = v {
            for inode in inodes.split(',') {
                s.external.push(format!("unix[{}]", number::<u64>(inode)?));
            }
        }
        Ok(())
    }),
    value("external", None, |s, v| done!(s.external.push(v.into()))),
    flag("extra", None, |s| &mut s.extra),
    value("feature", None, |s, v| done!(s.feature.push(v.into()))),
    flag("file-locks", Some('l'), |s| &mut s.file_locks),
    value("file-validation", None, |s, v| {
        done!(s.file_validation = Some(v.into()))
    }),
    flag("force-irmap", None, |s| &mut s.satisfied.force_irmap),
    value("freeze-cgroup", None, |s, v| {
        done!(s.freeze_cgroup = Some(v.into()))
    }),
    flag("ghost-fiemap", None, |s| &mut s.satisfied.ghost_fiemap),
    value("ghost-limit", None, |s, v| {
        done!(s.ghost_limit = Some(size(v)?))
    }),
    flag("help", Some('h'), |s| &mut s.help),
    value("images-dir", Some('D'), |s, v| {
        done!(s.images_dir = Some(v.into()))
    }),
    value("inherit-fd", None, |s, v| {
        done!(s.inherit.push(inherit(v)?))
    }),
    // Where to look for names of inodes: the whole mount is looked through anyway.
    value("irmap-scan-path", None, |s, _| {
        done!(s.satisfied.force_irmap = true)
    }),
    value("join-ns", Some('J'), |s, v| done!(s.join.push(join(v)?))),
    flag("lazy-pages", None, |s| &mut s.lazy_pages),
    flag("leave-running", Some('R'), |s| &mut s.leave_running),
    flag("leave-stopped", Some('s'), |s| &mut s.leave_stopped),
    value("libdir", Some('L'), |s, v| done!(s.libdir = Some(v.into()))),
    flag("link-remap", None, |s| &mut s.link_remap),
    value("log-file", Some('o'), |s, v| {
        done!(s.log_file = Some(v.into()))
    }),
    flag("log-pid", None, |s| &mut s.satisfied.log_pid),
    value("lsm-mount-context", None, |s, v| {
        done!(s.lsm_mount_context = Some(v.into()))
    }),
    value("lsm-profile", None, |s, v| {
        done!(s.lsm_profile = Some(v.into()))
    }),
    maybe("manage-cgroups", None, |s, v| {
        done!(s.cgroups = cgroup_mode(v)?)
    }),
    flag("mntns-compat-mode", None, |s| {
        &mut s.satisfied.mntns_compat_mode
    }),
    flag("ms", None, |s| &mut s.satisfied.deprecated),
    value("network-lock", None, |s, v| {
        done!(s.network_lock = Some(v.into()))
    }),
    flag("no-default-config", None, |s| &mut s.no_default_config),
    flag("page-server", None, |s| &mut s.page_server),
    value("pidfile", None, |s, v| done!(s.pid_file = Some(v.into()))),
    value("port", None, |s, v| done!(s.port = Some(number(v)?))),
    value("pre-dump-mode", None, |_, v| match v {
        "splice" | "read" => Ok(()),
        other => Err(wrong(
            format!("{other:?} is no way to read memory"),
            "give splice or read",
        )),
    }),
    value("prev-images-dir", None, |s, v| {
        done!(s.parent = Some(v.into()))
    }),
    value("ps-socket", None, |s, v| {
        done!(s.ps_socket = Some(number(v)?))
    }),
    flag("restore-detached", Some('d'), |s| &mut s.detached),
    flag("restore-sibling", Some('S'), |s| &mut s.sibling),
    value("root", Some('r'), |s, v| done!(s.root = Some(v.into()))),
    flag("shell-job", Some('j'), |s| &mut s.shell_job),
    flag("skip-file-rwx-check", None, |s| {
        &mut s.satisfied.skip_file_rwx_check
    }),
    flag("skip-in-flight", None, |s| &mut s.skip_in_flight),
    value("skip-mnt", None, |s, v| done!(s.skip_mounts.push(v.into()))),
    value("status-fd", None, |s, v| {
        done!(s.status_fd = Some(number(v)?))
    }),
    flag("stream", None, |s| &mut s.stream),
    flag("tcp-close", None, |s| &mut s.tcp_close),
    flag("tcp-established", None, |s| &mut s.tcp_established),
    value("timeout", None, |s, v| done!(s.timeout = number(v)?)),
    flag("tls", None, |s| &mut s.tls),
    value("tls-cacert", None, |s, _| done!(s.tls = true)),
    value("tls-cacrl", None, |s, _| done!(s.tls = true)),
    value("tls-cert", None, |s, _| done!(s.tls = true)),
    value("tls-key", None, |s, _| done!(s.tls = true)),
    flag("tls-no-cn-verify", None, |s| &mut s.tls),
    flag("track-mem", None, |s| &mut s.track_mem),
    value("tree", Some('t'), |s, v| done!(s.tree = Some(number(v)?))),
    flag("unprivileged", None, |s| &mut s.satisfied.unprivileged),
    maybe("verbosity", Some('v'), verbosity),
    flag("version", Some('V'), |s| &mut s.version),
    value("veth-pair", None, |s, v| {
        let (inner, outer) = v
            .split_once('=')
            .ok_or_else(|| wrong(format!("{v:?} is no pair"), "write IN=OUT"))?;
        done!(s.external.push(format!("veth[{inner}]:{outer}")))
    }),
    flag("weak-sysctls", None, |s| &mut s.weak_sysctls),
    value("work-dir", Some('W'), |s, v| {
        done!(s.work_dir = Some(v.into()))
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_no_name_or_letter_twice() {
        assert!(OPTIONS.windows(2).all(|pair| pair[0].name < pair[1].name));
        let mut letters: Vec<char> = OPTIONS.iter().filter_map(|option| option.short).collect();
        letters.sort_unstable();
        assert!(letters.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn names_may_be_negated_and_cut_short() {
        assert_eq!(find("tcp-established").unwrap().0.name, "tcp-established");
        assert!(find("no-tcp-established").unwrap().1);
        assert!(!find("no-default-config").unwrap().1);
        assert_eq!(find("freeze").unwrap().0.name, "freeze-cgroup");
        assert!(find("tcp-").is_err());
        assert!(find("no-images-dir").is_err());
        assert!(find("soul").is_err());
    }

    #[test]
    fn arguments_are_read_as_they_are_documented() {
        assert_eq!(size("1M").unwrap(), 1 << 20);
        assert_eq!(size("12").unwrap(), 12);
        assert!(size("G").is_err());
        assert!(size("99999999999G").is_err());
        assert_eq!(
            inherit("fd[4]:tty[1:2]").unwrap(),
            (4, "tty[1:2]".to_owned())
        );
        assert!(inherit("fd[4]").is_err());
        let joined = join("net:123").unwrap();
        assert_eq!(joined.path, PathBuf::from("/proc/123/ns/net"));
        let joined = join("user:/proc/1/ns/user,0,0").unwrap();
        assert_eq!(joined.extra.as_deref(), Some("0,0"));
        assert_eq!(cgroup_root("cpu:/a").controller.as_deref(), Some("cpu"));
        assert_eq!(cgroup_root("/a").controller, None);
    }

    #[test]
    fn verbosity_is_counted_and_given() {
        let mut settings = Settings::default();
        verbosity(&mut settings, Some("vvv")).unwrap();
        assert_eq!(settings.log_level, 6);
        verbosity(&mut settings, Some("4")).unwrap();
        assert_eq!(settings.log_level, 4);
        verbosity(&mut settings, Some("erbosity=0")).unwrap();
        assert_eq!(settings.log_level, 0);
    }
}
