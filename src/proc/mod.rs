//! `/proc` text → values: pure parsers with captured samples, and one place of I/O ([`read`]).
//!
//! A parser takes the bytes (or the text) of one file and never panics. Lines and fields that a
//! newer kernel adds are passed over; what an older kernel lacks is `None` or empty. What cannot be
//! understood where it matters is an error with the code `E-PROC-FORMAT`, never a guess.

pub mod cgroup;
pub mod classify;
pub mod fdinfo;
pub mod limits;
pub mod locks;
pub mod maps;
pub mod mountinfo;
pub mod read;
pub mod small;
pub mod smaps;
pub mod stat;
pub mod status;
pub mod sysvipc;
mod text;
pub mod timer_list;
pub mod timers;

pub use read::Process;
pub use text::unescape_octal;
