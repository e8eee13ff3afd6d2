//! The log: what is in it, changed while the server runs, and connections that are
//! followed whatever it says.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;
use rustc_hash::FxHashSet;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// What is logged of followed connections has this target.
pub const FOLLOWED: &str = "switchyard::followed";

/// The log of this process.
pub struct Log {
    set: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
    filter: RwLock<String>,
    format: LogFormat,
}

static LOG: OnceLock<Log> = OnceLock::new();

impl Log {
    /// Begins to log to standard error: a level, or levels for targets. Once in a
    /// process.
    ///
    /// # Errors
    ///
    /// It is no filter.
    pub fn start(filter: &str, format: LogFormat) -> Result<&'static Log, String> {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(parse(filter)?)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(|| StandardError);
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
        Ok(LOG.get_or_init(|| Log { set, filter: RwLock::new(filter.to_owned()), format }))
    }

    /// The one that was started; none: nothing is logged.
    pub fn current() -> Option<&'static Log> {
        LOG.get()
    }

    /// From here on, this is logged: a level, or levels for targets.
    ///
    /// # Errors
    ///
    /// It is no filter; what was logged is logged on.
    pub fn set_filter(&self, filter: &str) -> Result<(), String> {
        let parsed = parse(filter)?;
        let mut now = self.filter.write();
        (self.set)(parsed)?;
        filter.clone_into(&mut now);
        Ok(())
    }

    /// What is logged.
    pub fn filter(&self) -> String {
        self.filter.read().clone()
    }

    /// How it looks.
    pub fn format(&self) -> LogFormat {
        self.format
    }
}

/// Standard error, where it is noticed when that cannot be written.
struct StandardError;

static IS_WRITTEN: AtomicBool = AtomicBool::new(true);
static LOST: AtomicU64 = AtomicU64::new(0);

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stderr().write(bytes);
        IS_WRITTEN.store(written.is_ok(), Ordering::Relaxed);
        if written.is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Whether the last line of the log could be written.
pub fn is_written() -> bool {
    IS_WRITTEN.load(Ordering::Relaxed)
}

/// How many lines could not.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Reads a filter.
///
/// # Errors
///
/// Says what is wrong with it, and with which setting.
pub fn parse(filter: &str) -> Result<EnvFilter, String> {
    // A level alone is meant for the server and its plugins: what the libraries
    // under it have to say at `debug` would bury them.
    let own = match filter.parse::<tracing::Level>() {
        Ok(level) => format!("warn,switchyard={level},plugin={level}"),
        Err(_) => filter.to_owned(),
    };
    EnvFilter::builder()
        .parse(format!("{own},{FOLLOWED}=info"))
        .map_err(|problem| format!("log.filter is \"{filter}\": {problem}"))
}

static IS_ANY_FOLLOWED: AtomicBool = AtomicBool::new(false);
static FOLLOWED_IDS: RwLock<Option<FxHashSet<u64>>> = RwLock::new(None);

/// How many connections may be followed at once.
pub const FOLLOWED_MAX: usize = 1_000;

/// From here on, the commands of these connections are logged, and their end; of
/// others, not any more.
pub fn follow(connections: &[u64]) {
    let mut ids = FOLLOWED_IDS.write();
    *ids = Some(connections.iter().copied().collect());
    IS_ANY_FOLLOWED.store(!connections.is_empty(), Ordering::Relaxed);
}

/// From here on, those of the first are, too, and those of the others not any more.
/// False: that would be too many, and nothing has changed.
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
