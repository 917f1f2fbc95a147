//! `/proc/timer_list`: the high-resolution timers that run on this host. Only root may read it.

use super::text::{decimal, lines};

/// A timer that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Running {
    /// Stands for its address in the kernel; the same as long as the timer exists.
    pub id: u64,
    /// When it expires at the earliest: nanoseconds of CLOCK_MONOTONIC.
    pub expires: u64,
}

/// What `/proc/timer_list` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimerList {
    /// When it was read: nanoseconds of CLOCK_MONOTONIC.
    pub now: u64,
    /// Timers that wake a sleeping thread, ascending.
    pub sleepers: Vec<Running>,
}

/// The function of timers that wake a thread.
const WAKEUP: &[u8] = b"hrtimer_wakeup";

/// Parses a whole timer_list. Lines of kinds that are not known are left out.
pub fn parse(text: impl AsRef<[u8]>) -> TimerList {
    let mut list = TimerList::default();
    let mut offset = 0u64;
    let mut sleeper = None;
    for line in lines(text.as_ref()) {
        let line = line.trim_ascii();
        if let Some(now) = line.strip_prefix(b"now at ") {
            list.now = leading(now).unwrap_or(0);
        } else if let Some(rest) = line.strip_prefix(b".offset:") {
            // How far the clock of the timers that follow is ahead of CLOCK_MONOTONIC.
            offset = leading(rest.trim_ascii()).unwrap_or(0);
        } else if let Some(rest) = line.strip_prefix(b"# expires at ") {
            let Some(id) = sleeper.take() else { continue };
            if let Some(expires) = leading(rest) {
                list.sleepers.push(Running {
                    id,
                    expires: expires.wrapping_sub(offset),
                });
            }
        } else if line.starts_with(b"#") {
            sleeper = sleeping(line);
        }
    }
    list.sleepers.sort_unstable();
    list
}

fn leading(text: &[u8]) -> Option<u64> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit());
    decimal(&text[..end.unwrap_or(text.len())])
}

/// The id in `#4: <000000007c93970e>, hrtimer_wakeup, S:01`.
fn sleeping(line: &[u8]) -> Option<u64> {
    let start = line.iter().position(|&byte| byte == b'<')? + 1;
    let end = line.iter().position(|&byte| byte == b'>')?;
    let function = line.get(end + 1..)?.strip_prefix(b", ")?;
    if !function.starts_with(WAKEUP) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(line.get(start..end)?).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "Timer List Version: v0.10
HRTIMER_MAX_CLOCK_BASES: 8
now at 24857381648392 nsecs

cpu: 0
 clock 0:
  .base:       00000000729514d6
  .index:      0
  .resolution: 1 nsecs
  .offset:     0 nsecs
active timers:
 #0: <000000002f949721>, tick_nohz_handler, S:01
 # expires at 24857384000000-24857384000000 nsecs [in 2351608 to 2351608 nsecs]
 #1: <00000000e8a91210>, hrtimer_wakeup, S:01
 # expires at 24857386352244-24857386402244 nsecs [in 4703852 to 4753852 nsecs]
 clock 1:
  .offset:     1000 nsecs
active timers:
 #0: <0000000000000010>, hrtimer_wakeup, S:01
 # expires at 24857386353244-24857386402244 nsecs [in 4703852 to 4753852 nsecs]
  .expires_next   : 24857384000000 nsecs
";

    #[test]
    fn sleepers_are_found_with_their_time_by_one_clock() {
        let expected = [0x10, 0xe8a9_1210].map(|id| Running {
            id,
            expires: 24_857_386_352_244,
        });
        let list = parse(SAMPLE);
        assert_eq!(list.now, 24_857_381_648_392);
        assert_eq!(list.sleepers, expected);
    }

    #[test]
    fn nothing_is_made_of_nonsense() {
        for text in [
            "",
            "#: <",
            " #0: >x<, hrtimer_wakeup\n# expires at \n",
            "now at x",
        ] {
            assert_eq!(parse(text), TimerList::default(), "{text}");
        }
    }
}
