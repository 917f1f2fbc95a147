//! The watcher that a hook leaves: checkpoints a running container now and then.

use super::hook::{Connections, Plan, State};
use crate::error::{Context, Error, Result};
use crate::request::{
    After, Checkpoint, CheckpointOptions, Description, Output, Silent, Target, Tcp,
};
use crate::sys::pidfd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::setsid;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The word after `ocimig hook` that makes a watcher.
pub const COMMAND: &str = "watch";
/// Where watchers leave word of themselves.
const RUN: &str = "/run/ocimig/watchers";
/// How long the end of a watcher is waited for.
const END: Duration = Duration::from_secs(10);

/// What a watcher is started with, as JSON on its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    id: String,
    pid: i32,
    bundle: PathBuf,
    every: u64,
    directory: PathBuf,
    keep: usize,
    tcp: String,
}

/// What a running watcher leaves for `poststop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Word {
    host_pid: i32,
    start_time: u64,
    init: i32,
}

fn word_file(id: &str) -> PathBuf {
    Path::new(RUN).join(format!("{id}.json"))
}

fn read_word(id: &str) -> Option<Word> {
    let text = std::fs::read_to_string(word_file(id)).ok()?;
    serde_json::from_str(&text).ok()
}

fn start_time(host_pid: i32) -> Option<u64> {
    let stat = crate::proc::Process::new(host_pid).stat().ok()?;
    Some(stat.starttime)
}

impl Word {
    fn lives(&self) -> bool {
        start_time(self.host_pid) == Some(self.start_time)
    }
}

/// Leaves a watcher for a container, unless it has one.
pub fn start(state: &State, plan: &Plan) -> Result<()> {
    if read_word(&state.id).is_some_and(|word| word.lives() && word.init == state.pid) {
        return Ok(());
    }
    make_directory(Path::new(RUN), 0o700)?;
    make_directory(&plan.directory, 0o700)?;
    let order = Order {
        id: state.id.clone(),
        pid: state.pid,
        bundle: state.bundle.clone(),
        every: plan.every.as_secs(),
        directory: plan.directory.clone(),
        keep: plan.keep,
        tcp: match plan.connections {
            Connections::Close => "close",
            Connections::Keep => "established",
            Connections::Refuse => "refuse",
        }
        .to_owned(),
    };
    let text = serde_json::to_string(&order).map_err(|why| Error::bug(why.to_string()))?;
    let log_path = plan.directory.join(format!("{}.log", state.id));
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log_path)
        .doing(|| format!("opening {}", log_path.display()))?;
    let mut child = Command::new("/proc/self/exe")
        .args(["hook", COMMAND, &text])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/")
        .spawn()
        .doing(|| "starting a watcher")?;
    let word = Word {
        host_pid: child.id() as i32,
        start_time: start_time(child.id() as i32).unwrap_or(0),
        init: state.pid,
    };
    let text = serde_json::to_string(&word).map_err(|why| Error::bug(why.to_string()))?;
    if let Err(why) = std::fs::write(word_file(&state.id), text) {
        child.kill()?;
        child.wait()?;
        return Err(why).doing(|| format!("writing {}", word_file(&state.id).display()));
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .doing(|| format!("making {}", path.display()))
}

/// Waits until the watcher of a container that has ended has ended too, and makes it end if it does
/// not.
pub fn stop(id: &str) -> Result<()> {
    let Some(word) = read_word(id) else {
        return Ok(());
    };
    if word.lives()
        && let Ok(watcher) = pidfd::open(word.host_pid)
    {
        pidfd::send_signal(watcher.as_fd(), Signal::SIGTERM as i32)?;
        ended(watcher.as_fd(), END)?;
    }
    match std::fs::remove_file(word_file(id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("removing {}", word_file(id).display()))
        }
        _ => Ok(()),
    }
}

/// Whether a process ends within that time.
fn ended(process: BorrowedFd<'_>, within: Duration) -> Result<bool> {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // At most some weeks at a time: poll(2) counts milliseconds in an int.
        let left = left.min(Duration::from_secs(1_000_000));
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(process, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if Instant::now() < until => {}
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing(|| "waiting for a process"),
        }
    }
}

/// The watcher itself. Its argument is its order.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let order = arguments
        .next()
        .and_then(|text| text.into_string().ok())
        .and_then(|text| serde_json::from_str::<Order>(&text).ok());
    let Some(order) = order else {
        eprintln!("ocimig hook {COMMAND}: this is called by ocimig hook poststart only");
        return ExitCode::from(2);
    };
    // A terminal or a session of the caller is none of ours; already a leader is fine too.
    let _ = setsid();
    match watch(&order) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&order, &error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn say(order: &Order, text: &str) {
    eprintln!("{} {}: {text}", timestamp(SystemTime::now()), order.id);
}

fn watch(order: &Order) -> Result<()> {
    let init = pidfd::open(order.pid).doing(|| format!("opening process {}", order.pid))?;
    say(
        order,
        &format!(
            "checkpoints every {} s, the newest {} stay",
            order.every, order.keep
        ),
    );
    while !ended(init.as_fd(), Duration::from_secs(order.every))? {
        let path =
            order
                .directory
                .join(format!("{}-{}.tar", order.id, timestamp(SystemTime::now())));
        let result = catch_unwind(AssertUnwindSafe(|| checkpoint(order, &path)))
            .unwrap_or_else(|_| Err(Error::bug("it panicked")));
        match result {
            Ok(()) => {
                say(order, &format!("{} is complete", path.display()));
                remove_old(&order.directory, &order.id, order.keep)?;
            }
            Err(_) if ended(init.as_fd(), Duration::ZERO)? => break,
            Err(error) => say(order, &format!("not checkpointed: {error}")),
        }
    }
    say(order, "the container has ended");
    Ok(())
}

fn checkpoint(order: &Order, path: &Path) -> Result<()> {
    let options = CheckpointOptions {
        after: After::Run,
        tcp: match order.tcp.as_str() {
            "established" => Tcp::Keep,
            "refuse" => Tcp::Refuse,
            _ => Tcp::Drop,
        },
        description: Description {
            id: Some(order.id.clone()),
            bundle: order
                .bundle
                .join("config.json")
                .exists()
                .then(|| order.bundle.clone()),
            ..Description::default()
        },
        ..CheckpointOptions::default()
    };
    let request = Checkpoint::new(
        Target::Pid(order.pid),
        Output::File(path.to_owned()),
        options,
    )?;
    crate::checkpoint::run(&request, &mut Silent)?;
    Ok(())
}

/// Removes all but the newest images of a container. Only complete ones have such a name.
fn remove_old(directory: &Path, id: &str, keep: usize) -> Result<()> {
    let doing = || format!("looking into {}", directory.display());
    let mut images = Vec::new();
    for entry in std::fs::read_dir(directory).doing(doing)? {
        let name = entry.doing(doing)?.file_name();
        if name.to_str().is_some_and(|name| is_image_of(name, id)) {
            images.push(name);
        }
    }
    // Their names sort by time.
    images.sort();
    let surplus = images.len().saturating_sub(keep);
    for name in &images[..surplus] {
        let path = directory.join(name);
        std::fs::remove_file(&path).doing(|| format!("removing {}", path.display()))?;
    }
    if surplus > 0 {
        File::open(directory)
            .and_then(|opened| opened.sync_all())
            .doing(doing)?;
    }
    Ok(())
}

/// `ID-20260102T030405.678Z.tar`: the id of another container may begin with this one.
fn is_image_of(name: &str, id: &str) -> bool {
    name.strip_prefix(id)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.strip_suffix(".tar"))
        .is_some_and(|time| {
            time.len() == 20
                && time.bytes().enumerate().all(|(at, byte)| match at {
                    8 => byte == b'T',
                    15 => byte == b'.',
                    19 => byte == b'Z',
                    _ => byte.is_ascii_digit(),
                })
        })
}

/// UTC, as `20260102T030405.678Z`.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}.{:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_millis()
    )
}

/// Year, month and day of a day since 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_time_and_sort_by_it() {
        let at = |seconds, millis| {
            timestamp(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis))
        };
        assert_eq!(at(0, 0), "19700101T000000.000Z");
        assert_eq!(at(951_782_400, 5), "20000229T000000.005Z");
        assert_eq!(at(1_767_323_045, 678), "20260102T030405.678Z");
        assert!(at(1_767_323_045, 678) < at(1_767_323_046, 0));
    }

    #[test]
    fn only_the_newest_images_of_that_container_stay() {
        let directory = tempfile::tempdir().unwrap();
        let names = [
            "web-20260102T030405.678Z.tar",
            "web-20260102T030505.678Z.tar",
            "web-20260102T030605.678Z.tar",
            "web-2-20250102T030405.678Z.tar",
            "web-20250102T030405.678Z.tar.part",
            "web.log",
        ];
        for name in names {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        remove_old(directory.path(), "web", 2).unwrap();
        let left = |name: &str| directory.path().join(name).exists();
        assert!(!left(names[0]));
        assert!(names[1..].iter().all(|name| left(name)));
    }

    #[test]
    fn an_end_is_noticed_and_waited_for_only_so_long() {
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        let process = pidfd::open(child.id() as i32).unwrap();
        assert!(!ended(process.as_fd(), Duration::from_millis(10)).unwrap());
        child.kill().unwrap();
        assert!(ended(process.as_fd(), Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
    }
}
