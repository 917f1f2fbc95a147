//! `/proc/PID/stat`: all fields of proc_pid_stat(5).

use super::status::State;
use super::text::{decimal, malformed, words};
use crate::error::Result;

/// All fields, with the names of proc_pid_stat(5). Addresses and the exit code are 0 for a reader
/// who may not trace the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// As /proc's pid namespace numbers it.
    pub pid: i32,
    /// comm as it is; may hold blanks, parentheses and line feeds.
    pub comm: Vec<u8>,
    /// State letter.
    pub state: State,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Controlling terminal, encoded as the kernel's new_encode_dev does; 0 for none.
    pub tty_nr: i32,
    /// Foreground process group of the terminal; -1 for none.
    pub tpgid: i32,
    /// PF_* flags.
    pub flags: u32,
    /// Page faults without I/O.
    pub minflt: u64,
    /// … of children waited for.
    pub cminflt: u64,
    /// Page faults with I/O.
    pub majflt: u64,
    /// … of children waited for.
    pub cmajflt: u64,
    /// In user mode, in clock ticks.
    pub utime: u64,
    /// In kernel mode, in clock ticks.
    pub stime: u64,
    /// … of children waited for.
    pub cutime: i64,
    /// … of children waited for.
    pub cstime: i64,
    /// Priority as the kernel shows it.
    pub priority: i64,
    /// Nice value.
    pub nice: i64,
    /// Number of threads.
    pub num_threads: i64,
    /// Start, in clock ticks since boot (as the reader's time namespace sees it).
    pub starttime: u64,
    /// Address space in bytes.
    pub vsize: u64,
    /// Resident pages.
    pub rss: i64,
    /// Soft RLIMIT_RSS in bytes.
    pub rsslim: u64,
    /// First address of the program's text.
    pub start_code: u64,
    /// Its end.
    pub end_code: u64,
    /// Bottom (highest address) of the stack.
    pub start_stack: u64,
    /// Stack pointer; 0 unless the process is exiting or dumping core.
    pub kstkesp: u64,
    /// Instruction pointer; likewise.
    pub kstkeip: u64,
    /// 1 when asleep (wchan).
    pub wchan: u64,
    /// Signal that the parent gets at the end (SIGCHLD is 17); -1 for threads.
    pub exit_signal: i32,
    /// Last processor.
    pub processor: i32,
    /// Real-time priority.
    pub rt_priority: u32,
    /// SCHED_*.
    pub policy: u32,
    /// Waited for block I/O, in clock ticks.
    pub delayacct_blkio_ticks: u64,
    /// Guest time in clock ticks.
    pub guest_time: u64,
    /// … of children.
    pub cguest_time: i64,
    /// First address of initialised and uninitialised data.
    pub start_data: u64,
    /// Its end.
    pub end_data: u64,
    /// Where brk begins.
    pub start_brk: u64,
    /// Command line.
    pub arg_start: u64,
    /// Its end.
    pub arg_end: u64,
    /// Environment.
    pub env_start: u64,
    /// Its end.
    pub env_end: u64,
    /// Exit status in waitpid's form.
    pub exit_code: i32,
}

impl Stat {
    /// PF_KTHREAD.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & 0x0020_0000 != 0
    }

    /// Major and minor number of the controlling terminal.
    pub fn tty(&self) -> Option<(u32, u32)> {
        let nr = self.tty_nr as u32;
        (nr != 0).then_some(((nr >> 8) & 0xfff, (nr & 0xff) | ((nr >> 12) & 0xf_ff00)))
    }
}

/// Parses `/proc/PID/stat` or `/proc/PID/task/TID/stat`. Fields that an older kernel lacks at the
/// end are 0.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Stat> {
    let text = text.as_ref();
    parse_fields(text).ok_or_else(|| malformed("stat", text))
}

fn parse_fields(text: &[u8]) -> Option<Stat> {
    // comm may hold anything, parentheses too: it ends at the last one.
    let open = text.iter().position(|&byte| byte == b'(')?;
    let close = text.iter().rposition(|&byte| byte == b')')?;
    let comm = text.get(open + 1..close)?.to_vec();
    let pid = decimal(text[..open].trim_ascii())?;
    let mut fields = Fields(words(&text[close + 1..]));
    let state = State::from_letter(*fields.0.next()?.first()?);
    let stat = Stat {
        pid,
        comm,
        state,
        ppid: fields.must()?,
        pgrp: fields.must()?,
        session: fields.must()?,
        tty_nr: fields.must()?,
        tpgid: fields.must()?,
        flags: fields.must()?,
        minflt: fields.must()?,
        cminflt: fields.must()?,
        majflt: fields.must()?,
        cmajflt: fields.must()?,
        utime: fields.must()?,
        stime: fields.must()?,
        cutime: fields.must()?,
        cstime: fields.must()?,
        priority: fields.must()?,
        nice: fields.must()?,
        num_threads: fields.must()?,
        starttime: {
            fields.0.next()?; // itrealvalue, always 0
            fields.must()?
        },
        vsize: fields.must()?,
        rss: fields.must()?,
        rsslim: fields.must()?,
        start_code: fields.must()?,
        end_code: fields.must()?,
        start_stack: fields.must()?,
        kstkesp: fields.must()?,
        kstkeip: fields.must()?,
        wchan: {
            fields.0.by_ref().take(4).count(); // signal masks, obsolete: status has them
            fields.must()?
        },
        exit_signal: {
            fields.0.by_ref().take(2).count(); // nswap, cnswap: not maintained
            fields.must()?
        },
        processor: fields.may()?,
        rt_priority: fields.may()?,
        policy: fields.may()?,
        delayacct_blkio_ticks: fields.may()?,
        guest_time: fields.may()?,
        cguest_time: fields.may()?,
        start_data: fields.may()?,
        end_data: fields.may()?,
        start_brk: fields.may()?,
        arg_start: fields.may()?,
        arg_end: fields.may()?,
        env_start: fields.may()?,
        env_end: fields.may()?,
        exit_code: fields.may()?,
    };
    Some(stat)
}

struct Fields<I>(I);

impl<'a, I: Iterator<Item = &'a [u8]>> Fields<I> {
    /// The next field, which has to be there.
    fn must<T: std::str::FromStr>(&mut self) -> Option<T> {
        decimal(self.0.next()?)
    }

    /// The next field, 0 where this kernel's line has ended; `None` when it is no number.
    fn may<T: std::str::FromStr + Default>(&mut self) -> Option<T> {
        self.0.next().map_or(Some(T::default()), decimal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "13647 (a) b (\nc) t 13641 13642 10192 34816 -1 4194304 99 1 2 3 4 5 6 7 \
        20 -5 3 0 624029 3133440 390 18446744073709551615 94140401254400 94140401274281 \
        140726767514080 11 12 0 1 2 3 1 0 0 17 1 50 2 8 9 10 94140401290288 94140401291904 \
        94141346332672 140726767516177 140726767516197 140726767516198 140726767517675 256 77\n";

    #[test]
    fn every_field_is_read_whatever_comm_holds() {
        let stat = parse(SAMPLE).unwrap();
        assert_eq!(stat.comm, b"a) b (\nc");
        assert_eq!((stat.pid, stat.state), (13647, State::Tracing));
        assert_eq!(
            [stat.ppid, stat.pgrp, stat.session, stat.tty_nr, stat.tpgid],
            [13641, 13642, 10192, 34816, -1]
        );
        assert_eq!(stat.tty(), Some((136, 0)));
        assert_eq!(
            (stat.flags, stat.nice, stat.num_threads),
            (4_194_304, -5, 3)
        );
        assert_eq!([stat.utime, stat.stime, stat.starttime], [4, 5, 624_029]);
        assert_eq!(stat.rsslim, u64::MAX);
        assert_eq!(stat.start_code, 94_140_401_254_400);
        assert_eq!(stat.start_stack, 140_726_767_514_080);
        assert_eq!([stat.kstkesp, stat.kstkeip, stat.wchan], [11, 12, 1]);
        assert_eq!((stat.exit_signal, stat.processor), (17, 1));
        assert_eq!((stat.rt_priority, stat.policy), (50, 2));
        assert_eq!(stat.start_brk, 94_141_346_332_672);
        assert_eq!(stat.arg_end, 140_726_767_516_197);
        assert_eq!((stat.env_end, stat.exit_code), (140_726_767_517_675, 256));
        assert!(!stat.is_kernel_thread());
    }

    #[test]
    fn an_older_kernels_shorter_line_reads_with_zeros() {
        let short: Vec<_> = SAMPLE.split(' ').take(46).collect();
        let stat = parse(short.join(" ")).unwrap();
        assert_eq!((stat.env_end, stat.exit_code), (0, 0));
    }

    #[test]
    fn our_own_stat_is_ours() {
        let stat = parse(std::fs::read("/proc/self/stat").unwrap()).unwrap();
        assert_eq!(stat.pid, std::process::id() as i32);
        assert!(stat.start_code != 0 && stat.start_stack != 0);
    }

    #[test]
    fn garbage_is_an_error() {
        for text in [
            "",
            "1",
            "1 (",
            "1 )(",
            "1 (a)",
            "1 (a) R x",
            "x (a) R 1 1 1",
        ] {
            assert_eq!(parse(text).unwrap_err().code(), "E-PROC-FORMAT", "{text}");
        }
    }
}
