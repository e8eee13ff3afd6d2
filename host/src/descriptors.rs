//! File descriptors: how many the process may have, and one that is kept for when they run out.
//!
//! A connection that cannot be accepted for want of a descriptor stays in the kernel's queue, and
//! a probe of `/healthz` behind it. So each listener keeps a descriptor in reserve, as servers on
//! libev do: it is closed, one connection is accepted in its place and answered shortly, and it
//! is opened again.

use std::fs::File;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

use crate::config::Config;

/// Descriptors besides those of connections: listeners, reserves, watched directories, files that
/// are read, connections of the backplane, of the admin API and of plugins.
const OTHERS: u64 = 128;

/// Raises the soft limit to the hard one, and warns where that is too little for as many
/// connections as the configuration allows.
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

/// A descriptor that is there when no other is.
pub struct Reserve(Option<File>);

impl Default for Reserve {
    fn default() -> Reserve {
        Reserve::new()
    }
}

impl Reserve {
    /// One that is kept, if there is one.
    pub fn new() -> Reserve {
        let mut reserve = Reserve(None);
        reserve.refill();
        reserve
    }

    /// Closes it, so that another can be had. False: there is none.
    pub fn release(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// Opens it again if it was released. This can fail when another file has taken the
    /// descriptor since; then the reserve stays empty until the next call.
    pub fn refill(&mut self) {
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
    }
}
