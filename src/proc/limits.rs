//! `/proc/PID/limits`: what prlimit(2) would say, readable where prlimit is not permitted.

use super::text::{decimal, lines, malformed, words};
use crate::error::Result;

/// One resource limit; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// RLIMIT_*.
    pub resource: Resource,
    /// Soft limit in the resource's own unit.
    pub soft: Option<u64>,
    /// Hard limit.
    pub hard: Option<u64>,
}

macro_rules! resources {
    ($($variant:ident, $number:literal, $name:literal, $label:literal;)*) => {
        /// The resources that Linux limits.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Resource {
            $(
                #[doc = $name]
                $variant = $number,
            )*
        }

        impl Resource {
            /// All of them, by number.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name in C: `RLIMIT_NOFILE`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The kernel's words in `/proc/PID/limits`.
            fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

resources! {
    Cpu, 0, "RLIMIT_CPU", "Max cpu time";
    FileSize, 1, "RLIMIT_FSIZE", "Max file size";
    Data, 2, "RLIMIT_DATA", "Max data size";
    Stack, 3, "RLIMIT_STACK", "Max stack size";
    Core, 4, "RLIMIT_CORE", "Max core file size";
    Rss, 5, "RLIMIT_RSS", "Max resident set";
    Processes, 6, "RLIMIT_NPROC", "Max processes";
    OpenFiles, 7, "RLIMIT_NOFILE", "Max open files";
    LockedMemory, 8, "RLIMIT_MEMLOCK", "Max locked memory";
    AddressSpace, 9, "RLIMIT_AS", "Max address space";
    Locks, 10, "RLIMIT_LOCKS", "Max file locks";
    PendingSignals, 11, "RLIMIT_SIGPENDING", "Max pending signals";
    MessageQueues, 12, "RLIMIT_MSGQUEUE", "Max msgqueue size";
    Nice, 13, "RLIMIT_NICE", "Max nice priority";
    RealtimePriority, 14, "RLIMIT_RTPRIO", "Max realtime priority";
    RealtimeTime, 15, "RLIMIT_RTTIME", "Max realtime timeout";
}

/// Parses `/proc/PID/limits`, in the order of the file. Resources that are not known are passed
/// over; nothing known at all is an error.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Vec<Limit>> {
    let text = text.as_ref();
    let mut limits = Vec::with_capacity(Resource::ALL.len());
    for line in lines(text) {
        let known = Resource::ALL.iter().find_map(|&resource| {
            let rest = line.strip_prefix(resource.label().as_bytes())?;
            rest.starts_with(b" ").then_some((resource, rest))
        });
        let Some((resource, rest)) = known else {
            continue;
        };
        let mut values = words(rest).map(value);
        let (Some(Some(soft)), Some(Some(hard))) = (values.next(), values.next()) else {
            return Err(malformed("a line of limits", line));
        };
        limits.push(Limit {
            resource,
            soft,
            hard,
        });
    }
    if limits.is_empty() {
        return Err(malformed("limits", text));
    }
    Ok(limits)
}

fn value(word: &[u8]) -> Option<Option<u64>> {
    if word == b"unlimited" {
        Some(None)
    } else {
        decimal(word).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max stack size            8388608              unlimited            bytes     
Max open files            1024                 20000                files     
Max nice priority         0                    39                   
Max realtime timeout      unlimited            unlimited            us        
Max frobnications         1                    2                    frobs     
";

    #[test]
    fn soft_and_hard_limits_are_read() {
        let limits = parse(SAMPLE).unwrap();
        assert_eq!(limits.len(), 5);
        let limit = |resource, soft, hard| Limit {
            resource,
            soft,
            hard,
        };
        assert_eq!(limits[0], limit(Resource::Cpu, None, None));
        assert_eq!(limits[1], limit(Resource::Stack, Some(8_388_608), None));
        assert_eq!(
            limits[2],
            limit(Resource::OpenFiles, Some(1024), Some(20_000))
        );
        assert_eq!(limits[3], limit(Resource::Nice, Some(0), Some(39)));
    }

    #[test]
    fn this_kernel_shows_all_sixteen() {
        let limits = parse(std::fs::read("/proc/self/limits").unwrap()).unwrap();
        let seen: Vec<_> = limits.iter().map(|limit| limit.resource).collect();
        assert_eq!(seen, Resource::ALL);
        assert_eq!(Resource::OpenFiles.name(), "RLIMIT_NOFILE");
        assert_eq!(Resource::RealtimeTime as i32, 15);
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(parse("").is_err());
        assert!(parse("hello\n").is_err());
        assert!(parse("Max cpu time    many   none\n").is_err());
        assert!(parse("Max cpu time    1\n").is_err());
    }
}
