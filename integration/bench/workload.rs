//! What is checkpointed: processes that get ready, say so, let go of everything and wait.

use super::Result;
use super::system;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// The word on the command line that makes this program a workload.
pub const WORD: &str = "workload";
/// With this status a workload ends that found everything in place.
pub const INTACT: i32 = 7;
const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// Everything that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    Idle,
    Random,
    Compressible,
    Threads,
    Processes,
    Areas,
    Fork,
}

/// How large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Full,
    Quick,
}

impl Scale {
    fn pick(self, full: usize, quick: usize) -> usize {
        match self {
            Scale::Full => full,
            Scale::Quick => quick,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Scale::Full => "full",
            Scale::Quick => "quick",
        }
    }
}

impl Workload {
    pub const ALL: [Self; 7] = [
        Self::Idle,
        Self::Random,
        Self::Compressible,
        Self::Threads,
        Self::Processes,
        Self::Areas,
        Self::Fork,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Random => "random",
            Self::Compressible => "compressible",
            Self::Threads => "threads",
            Self::Processes => "processes",
            Self::Areas => "areas",
            Self::Fork => "fork",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// How many of its kind there are.
    fn count(self, scale: Scale) -> usize {
        match self {
            Self::Idle => 1,
            Self::Random | Self::Compressible => scale.pick(1024, 64),
            Self::Threads => scale.pick(1000, 100),
            Self::Processes => scale.pick(200, 20),
            Self::Areas => scale.pick(20_000, 2_000),
            Self::Fork => scale.pick(32, 4),
        }
    }

    /// MiB that forked children share.
    fn shared(scale: Scale) -> usize {
        scale.pick(256, 16)
    }

    pub fn title(self, scale: Scale) -> String {
        let count = self.count(scale);
        match self {
            Self::Idle => "idle process".to_owned(),
            Self::Random => format!("{count} MiB random memory"),
            Self::Compressible => format!("{count} MiB compressible memory"),
            Self::Threads => format!("{count} threads"),
            Self::Processes => format!("{count} processes"),
            Self::Areas => format!("{count} areas"),
            Self::Fork => format!(
                "{count} forked children over {} MiB, shared copy-on-write",
                Self::shared(scale)
            ),
        }
    }

    /// Whether its time goes into bytes, so that compression matters.
    pub fn is_bulk(self) -> bool {
        matches!(self, Self::Random | Self::Compressible | Self::Fork)
    }

    pub fn pairs(self, scale: Scale) -> usize {
        let full = match self {
            Self::Idle => 15,
            Self::Random | Self::Compressible | Self::Threads | Self::Areas => 7,
            Self::Processes => 5,
            Self::Fork => 3,
        };
        scale.pick(full, 3)
    }

    /// The arguments that make this program the workload.
    pub fn arguments(self, scale: Scale) -> [&'static str; 3] {
        [WORD, self.name(), scale.word()]
    }
}

/// Is the workload.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let [name, scale] = arguments else {
        return Err("a workload needs its name and its scale".into());
    };
    let workload = Workload::from_name(name).ok_or("there is no such workload")?;
    let scale = match scale.as_str() {
        "quick" => Scale::Quick,
        _ => Scale::Full,
    };
    // Blocked before there are threads, so that all have it blocked.
    let signal = system::block_signal()?;
    let count = workload.count(scale);
    let check: Box<dyn Fn() -> bool> = match workload {
        Workload::Idle => Box::new(|| true),
        Workload::Random => filled(count, random_page),
        Workload::Compressible => filled(count, text_page),
        Workload::Threads => threads(count)?,
        Workload::Processes => processes(count, &|| {})?,
        Workload::Areas => areas(count)?,
        Workload::Fork => forked(count, Workload::shared(scale))?,
    };
    std::io::stdout().write_all(b"ready\n")?;
    system::let_go_of_streams()?;
    signal.wait()?;
    Ok(ExitCode::from(match check() {
        true => INTACT as u8,
        false => 1,
    }))
}

/// Memory that `page` fills.
fn filled(mib: usize, page: fn(usize, &mut [u8])) -> Box<dyn Fn() -> bool> {
    let mut memory = vec![0_u8; mib * MIB];
    for (number, bytes) in memory.chunks_exact_mut(PAGE).enumerate() {
        page(number, bytes);
    }
    Box::new(move || {
        let mut expected = [0; PAGE];
        memory
            .chunks_exact(PAGE)
            .enumerate()
            .step_by(7)
            .all(|(number, bytes)| {
                page(number, &mut expected);
                bytes == expected
            })
    })
}

/// A page that nothing compresses.
fn random_page(number: usize, page: &mut [u8]) {
    let mut state = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// A page of lines as a log or a database has them: a few letters of each differ.
fn text_page(number: usize, page: &mut [u8]) {
    let mut state = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (at, line) in page.chunks_exact_mut(64).enumerate() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let text = format!(
            "{:010} user={:05} action=view path=/item/{:06} took=000{:03}us\n",
            number * 64 + at,
            state % 100_000,
            (state >> 20) % 1_000_000,
            (state >> 40) % 1_000
        );
        for (to, from) in line.iter_mut().zip(text.bytes()) {
            *to = from;
        }
    }
}

fn threads(count: usize) -> Result<Box<dyn Fn() -> bool>> {
    for _ in 1..count {
        std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(|| {
                loop {
                    std::thread::park();
                }
            })?;
    }
    // All of them have arrived where they wait.
    std::thread::sleep(Duration::from_millis(100));
    Ok(Box::new(move || {
        std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == count)
    }))
}

fn processes(count: usize, change: &dyn Fn()) -> Result<Box<dyn Fn() -> bool>> {
    let mut children = Vec::new();
    for _ in 0..count {
        children.push(system::fork_waiting(change)?);
    }
    std::thread::sleep(Duration::from_millis(100));
    Ok(Box::new(move || {
        children.iter().all(|child| system::is_running(*child))
    }))
}

/// Every other page of an area gets other rights, so that each is an area of its own.
fn areas(count: usize) -> Result<Box<dyn Fn() -> bool>> {
    let memory = system::Pages::map(count)?;
    for number in 0..count {
        memory.write(number, number as u64 + 1);
    }
    for number in (1..count).step_by(2) {
        memory.protect(number)?;
    }
    Ok(Box::new(move || {
        (0..count).all(|number| memory.read(number) == number as u64 + 1)
    }))
}

/// Children that each changed a little of what they share.
fn forked(count: usize, mib: usize) -> Result<Box<dyn Fn() -> bool>> {
    const CHANGED: usize = 64;
    let pages = mib * MIB / PAGE;
    let memory = system::Pages::map(pages)?;
    let mut page = [0; PAGE];
    for number in 0..pages {
        random_page(number, &mut page);
        memory.fill(number, &page);
    }
    let first = memory.read(0);
    let alive = processes(count, &|| {
        for number in 0..CHANGED {
            memory.write(number * (pages / CHANGED), std::process::id().into());
        }
    })?;
    Ok(Box::new(move || alive() && memory.read(0) == first))
}
