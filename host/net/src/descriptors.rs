//! File descriptors: how many the process may have, and a reserve for when they run out.
//!
//! A connection that cannot be accepted for lack of a descriptor stays in the kernel's queue, and a
//! probe of `/healthz` behind it. So each listener keeps a descriptor in reserve, as servers on
//! libev do: it is closed, one connection is accepted in its place and answered briefly, and it is
//! opened again.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::listening::{Connection, ListeningSocket};
use switchyard_config::Config;
use switchyard_telemetry::log::Throttle;

/// Descriptors for other purposes than client connections: listeners, reserves, watched
/// directories, files, connections of the backplane, of the admin API and of plugins.
const OTHERS: u64 = 128;

/// How long a connection that is answered with a reserved descriptor may take: the next ones wait.
pub const ANSWER_TIME: Duration = Duration::from_millis(500);

/// How long to wait before accepting again after it failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Raises the soft limit to the hard one, and warns if that is too low for the configured number of
/// connections.
pub fn raise_limit(config: &Config) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let mut limit = current;
    if current != maximum {
        match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
            Ok(()) => {
                limit = maximum;
                let [from, to] = [current, maximum].map(shown);
                info!(from, to, "the soft limit of file descriptors was raised to the hard one");
            }
            Err(error) => warn!(%error, "the soft limit of file descriptors was not raised"),
        }
    }
    let connections_max = config.limits.connections_max as u64;
    let needed = connections_max.saturating_add(OTHERS);
    if limit.is_some_and(|limit| limit < needed) {
        let limit = shown(limit);
        warn!(
            limit,
            needed,
            connections_max,
            "limits.connections_max does not fit the limit of file descriptors: raise that \
             (ulimit -n, LimitNOFILE), or lower limits.connections_max"
        );
    }
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

/// Whether the process or the system has no descriptor left.
pub fn are_exhausted(error: &io::Error) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Descriptors that are kept open for when there is no other: one for each listener.
///
/// While one of them is in use, the process has no free descriptor. Every connection that any
/// listener accepts then replaces a reserved descriptor.
#[derive(Default)]
pub struct Reserves {
    /// Whether fewer are held than should be.
    is_short: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    files: Vec<File>,
    wanted: usize,
}

impl Reserves {
    /// Keeps one more for as long as the returned value exists.
    fn keep_one(self: &Arc<Self>) -> Reserve {
        self.kept.lock().wanted += 1;
        self.is_short.store(true, Ordering::SeqCst);
        self.refill();
        Reserve(self.clone())
    }

    /// Closes one, so that another file or connection can be opened. False: there is none.
    fn release(&self) -> bool {
        let mut kept = self.kept.lock();
        self.is_short.store(true, Ordering::SeqCst);
        kept.files.pop().is_some()
    }

    /// Reopens the descriptors that were released. False: there are too few descriptors for that.
    fn refill(&self) -> bool {
        if !self.is_short.load(Ordering::SeqCst) {
            return true;
        }
        let mut kept = self.kept.lock();
        while kept.files.len() < kept.wanted {
            let Ok(file) = File::open("/dev/null") else { return false };
            kept.files.push(file);
        }
        self.is_short.store(false, Ordering::SeqCst);
        true
    }
}

/// The reserve of one listener.
struct Reserve(Arc<Reserves>);

impl Drop for Reserve {
    fn drop(&mut self) {
        let mut kept = self.0.kept.lock();
        kept.wanted -= 1;
        let wanted = kept.wanted;
        kept.files.truncate(wanted);
    }
}

/// Accepts the connections of a listener, whether or not there are descriptors.
pub struct Acceptor {
    listener: Arc<ListeningSocket>,
    door: &'static str,
    reserve: Reserve,
    throttle: Throttle,
}

/// A connection that was accepted.
pub struct Accepted {
    /// The connection.
    pub stream: Connection,
    /// The peer's address.
    pub remote: SocketAddr,
    /// There is no other descriptor: answer it briefly, and close it before the next connection is
    /// accepted.
    pub is_on_reserve: bool,
}

impl Acceptor {
    /// Accepts from this listener, which the log calls by the name of its door.
    pub fn new(
        listener: Arc<ListeningSocket>,
        door: &'static str,
        reserves: &Arc<Reserves>,
    ) -> Acceptor {
        Acceptor { listener, door, reserve: reserves.keep_one(), throttle: Throttle::default() }
    }

    /// The next connection. `on_failure` is called each time that a connection could not be
    /// accepted, or only with a reserved descriptor.
    pub async fn accept(&mut self, on_failure: impl Fn()) -> Accepted {
        let Reserve(reserves) = &self.reserve;
        loop {
            reserves.refill();
            let error = match self.listener.accept().await {
                Ok((stream, remote)) => {
                    // Another listener may have released its reserve for a connection of its own.
                    let is_on_reserve = !reserves.refill();
                    if is_on_reserve {
                        on_failure();
                    }
                    return Accepted { stream, remote, is_on_reserve };
                }
                Err(error) => error,
            };
            on_failure();
            if self.throttle.is_due() {
                warn!(%error, door = self.door, "connections could not be accepted");
            }
            // A listener or a file may take the descriptor first; then `accept` fails or waits.
            if are_exhausted(&error)
                && reserves.release()
                && let Ok(Ok((stream, remote))) = timeout(PAUSE, self.listener.accept()).await
            {
                debug!(%remote, "a connection was accepted with the reserved descriptor");
                return Accepted { stream, remote, is_on_reserve: true };
            }
            sleep(PAUSE).await;
        }
    }
}
