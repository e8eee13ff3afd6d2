//! What the server reports about itself while it runs.
//!
//! `stats` holds the counters, `histogram` times, `log` the log and its queue, `panics` contains and counts panics,
//! `supervise` restarts tasks that end, and `process` reads what the kernel knows of this process.
//! None of them knows what is counted, logged or run; the metrics page is made elsewhere. Read
//! `stats` first.

pub mod histogram;
pub mod log;
pub mod panics;
pub mod process;
pub mod stats;
pub mod supervise;
