//! The log: its filter, which can be changed while the server runs, and connections that are
//! followed whatever the filter says.

mod queue;
mod throttle;

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::panics;
use queue::LineQueue;
pub use queue::QueueLimits;
pub use throttle::Throttle;

/// The target of log lines about followed connections.
pub const FOLLOWED: &str = "switchyard::followed";

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The settings of the log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The filter, in the syntax of `RUST_LOG`.
    pub filter: String,
    /// The format.
    pub format: LogFormat,
    /// Connections whose activity is logged, whatever the filter says.
    pub connections: Vec<u64>,
    /// How much may be queued.
    pub queue: QueueLimits,
    /// How long the process waits at its end for queued lines.
    pub flush_time: Duration,
}

/// The log of this process.
pub struct Log {
    set: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
    filter: RwLock<String>,
    format: LogFormat,
    queue: Arc<LineQueue>,
}

static LOG: OnceLock<Log> = OnceLock::new();

impl Log {
    /// Starts logging to standard error, on a separate thread. May be called once in a process.
    ///
    /// # Errors
    ///
    /// The filter is invalid, or no thread can be started.
    pub fn start(config: &LogConfig) -> Result<&'static Log, String> {
        let LogConfig { filter, format, queue, .. } = config;
        let queue = LineQueue::new(*queue);
        let lines = queue.clone();
        // A writer that never fails: otherwise tracing-subscriber calls `eprintln!`, which panics
        // when standard error is closed.
        let builder = tracing_subscriber::fmt()
            .with_env_filter(parse(filter)?)
            .with_ansi(io::stderr().is_terminal())
            .with_writer(move || Line(lines.clone()));
        queue
            .start_writing(io::stderr())
            .map_err(|problem| format!("there is no thread for the log: {problem}"))?;
        let set: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync> = match format {
            LogFormat::Text => {
                let builder = builder.with_filter_reloading();
                let handle = builder.reload_handle();
                builder.init();
                Box::new(move |new| handle.reload(new).map_err(|e| e.to_string()))
            }
            LogFormat::Json => {
                let builder = builder.json().with_filter_reloading();
                let handle = builder.reload_handle();
                builder.init();
                Box::new(move |new| handle.reload(new).map_err(|e| e.to_string()))
            }
        };
        let filter = RwLock::new(filter.clone());
        Ok(LOG.get_or_init(|| Log { set, filter, format: *format, queue }))
    }

    /// The log that was started; none: nothing is logged.
    pub fn current() -> Option<&'static Log> {
        LOG.get()
    }

    /// Sets the filter: a level, or levels for targets.
    ///
    /// # Errors
    ///
    /// It is invalid; the old filter stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), String> {
        let parsed = parse(filter)?;
        let mut now = self.filter.write();
        (self.set)(parsed)?;
        filter.clone_into(&mut now);
        Ok(())
    }

    /// The filter.
    pub fn filter(&self) -> String {
        self.filter.read().clone()
    }

    /// The format.
    pub fn format(&self) -> LogFormat {
        self.format
    }

    /// Sets how much may be queued.
    pub fn set_limits(&self, limits: QueueLimits) {
        self.queue.set_limits(limits);
    }

    /// Writes a line unformatted, after what was logged.
    pub fn write(&self, line: &str) {
        self.queue.push(format!("{line}\n").as_bytes());
    }

    /// Waits until all lines are written, with a timeout. False: they are not.
    pub fn flush(&self, limit: Duration) -> bool {
        self.queue.flush(limit)
    }

    /// How many lines were dropped, or could not be written.
    pub fn lines_lost(&self) -> u64 {
        self.queue.lost()
    }

    /// What is wrong with it; none: nothing.
    pub fn problem(&self) -> Option<String> {
        self.queue.problem()
    }
}

/// Queues each write as one line.
struct Line(Arc<LineQueue>);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many lines of this process's log were lost.
pub fn lost() -> u64 {
    Log::current().map_or(0, Log::lines_lost)
}

/// What is wrong with this process's log; none: nothing.
pub fn problem() -> Option<String> {
    Log::current()?.problem()
}

/// Writes a line to standard error without the log, and waits for that no longer than `limit`.
pub fn write_without_log(line: String, limit: Duration) {
    let (done, is_done) = std::sync::mpsc::channel();
    let writing = std::thread::Builder::new().spawn(move || {
        let _it_is_gone = io::stderr().write_all(format!("{line}\n").as_bytes());
        let _timed_out = done.send(());
    });
    if writing.is_ok() {
        let _it_is_stalled = is_done.recv_timeout(limit);
    }
}

/// Parses a filter.
///
/// # Errors
///
/// The error names the problem and the setting.
pub fn parse(filter: &str) -> Result<EnvFilter, String> {
    // A bare level applies to the server and its plugins: the output of the libraries at `debug`
    // would hide theirs.
    let own = match filter.parse::<tracing::Level>() {
        Ok(level) => format!("warn,switchyard={level},plugin={level}"),
        Err(_) => filter.to_owned(),
    };
    EnvFilter::builder()
        .parse(format!("{own},{FOLLOWED}=info,{}=error", panics::TARGET))
        .map_err(|problem| format!("log.filter is \"{filter}\": {problem}"))
}

static IS_ANY_FOLLOWED: AtomicBool = AtomicBool::new(false);
static FOLLOWED_IDS: RwLock<Option<FxHashSet<u64>>> = RwLock::new(None);

/// How many connections may be followed at once.
pub const FOLLOWED_MAX: usize = 1_000;

/// Sets the followed connections: their commands and their end are logged.
pub fn follow(connections: &[u64]) {
    let mut ids = FOLLOWED_IDS.write();
    *ids = Some(connections.iter().copied().collect());
    IS_ANY_FOLLOWED.store(!connections.is_empty(), Ordering::Relaxed);
}

/// Adds and removes followed connections. Returns false, and changes nothing, if there would be too
/// many.
pub fn change_followed(more: &[u64], fewer: &[u64]) -> bool {
    let mut ids = FOLLOWED_IDS.write();
    let mut new: FxHashSet<u64> = ids.clone().unwrap_or_default();
    new.extend(more);
    new.retain(|id| !fewer.contains(id));
    if new.len() > FOLLOWED_MAX {
        return false;
    }
    IS_ANY_FOLLOWED.store(!new.is_empty(), Ordering::Relaxed);
    *ids = Some(new);
    true
}

/// The connections that are followed, by rising id.
pub fn followed() -> Vec<u64> {
    let mut ids: Vec<u64> = FOLLOWED_IDS.read().iter().flatten().copied().collect();
    ids.sort_unstable();
    ids
}

/// Whether this connection is followed. One load when none is.
pub fn is_followed(connection: u64) -> bool {
    IS_ANY_FOLLOWED.load(Ordering::Relaxed)
        && FOLLOWED_IDS.read().as_ref().is_some_and(|ids| ids.contains(&connection))
}
