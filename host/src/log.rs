//! The log: what is in it, changed while the server runs, and connections that are
//! followed whatever it says.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use rustc_hash::FxHashSet;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// What is logged of followed connections has this target.
pub const FOLLOWED: &str = "switchyard::followed";

/// The log of this process.
pub struct Log {
    set: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

impl Log {
    /// Begins to log to standard error. Once in a process.
    pub fn start(filter: EnvFilter, format: LogFormat) -> Log {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        match format {
            LogFormat::Text => {
                let builder = builder.with_filter_reloading();
                let handle = builder.reload_handle();
                builder.init();
                Log { set: Box::new(move |new| handle.reload(new).map_err(|e| e.to_string())) }
            }
            LogFormat::Json => {
                let builder = builder.json().with_filter_reloading();
                let handle = builder.reload_handle();
                builder.init();
                Log { set: Box::new(move |new| handle.reload(new).map_err(|e| e.to_string())) }
            }
        }
    }

    /// From here on, this is logged: a level, or levels for targets.
    ///
    /// # Errors
    ///
    /// It is no filter; what was logged is logged on.
    pub fn set_filter(&self, filter: &str) -> Result<(), String> {
        (self.set)(parse(filter)?)
    }
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

/// From here on, the commands of these connections are logged, and their end; of
/// others, not any more.
pub fn follow(connections: &[u64]) {
    *FOLLOWED_IDS.write() = Some(connections.iter().copied().collect());
    IS_ANY_FOLLOWED.store(!connections.is_empty(), Ordering::Relaxed);
}

/// Whether this connection is followed. One load when none is.
pub fn is_followed(connection: u64) -> bool {
    IS_ANY_FOLLOWED.load(Ordering::Relaxed)
        && FOLLOWED_IDS.read().as_ref().is_some_and(|ids| ids.contains(&connection))
}
