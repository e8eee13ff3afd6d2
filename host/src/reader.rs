//! Reloads files that changed. Each kind has a task of its own, so that none waits for another:
//! compiling a component takes long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::{error, warn};

use crate::reload::{self, Refusals, Reloading, Unread};
use crate::watch::{Pending, Watched};
use switchyard_config::Config;
use switchyard_middleware::stats::Initiator;
use switchyard_server::engine_swap::EngineSwaps;
use switchyard_server::live_config::LiveConfig;
use switchyard_server::prepare::check_protection;
use switchyard_server::session::Services;
use switchyard_telemetry::supervise::{Ended, Supervisor};

/// How long after a failure to read a changed file it is read again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Reloads what changed.
pub struct Reader {
    /// The configuration at start.
    pub config: Arc<Config>,
    /// The configuration in use.
    pub live: Arc<LiveConfig>,
    /// What is changed.
    pub services: Services,
    /// The engine.
    pub engine: Arc<EngineSwaps>,
    /// The source of the configuration.
    pub reloading: Reloading,
    /// What must be reloaded.
    pub pending: Arc<Pending>,
    /// What was refused.
    pub refusals: Refusals,
    /// Whether a plugin decided which clients may connect, at the last check: plugins are also
    /// changed by the admin API.
    pub was_protected: AtomicBool,
}

/// The name of the task that reloads these files.
fn task(what: Watched) -> &'static str {
    match what {
        Watched::Plugins => "reload-plugins",
        Watched::Engine => "reload-engine",
        Watched::Config => "reload-config",
        Watched::Certificates => "reload-certificates",
    }
}

impl Reader {
    /// Reloads until the returned value is dropped.
    pub fn start(self, supervisor: &Arc<Supervisor>) -> JoinSet<()> {
        let reader = Arc::new(self);
        let mut reading = JoinSet::new();
        for what in Watched::ALL {
            let (name, reader) = (task(what), reader.clone());
            let read = move || reader.clone().keep_reloaded(what);
            reading.spawn(supervisor.clone().keep(name, read));
        }
        let put_back = move || reader.clone().put_back();
        reading.spawn(supervisor.clone().keep("reload-parked", put_back));
        reading
    }

    /// Reloads files when they must be, and, if they could not be read, again a second later.
    async fn keep_reloaded(self: Arc<Reader>, what: Watched) -> Ended {
        let mut is_unread = false;
        loop {
            let is_requested = tokio::select! {
                is_requested = self.pending.next(what) => is_requested,
                () = tokio::time::sleep(READ_AGAIN_AFTER), if is_unread => false,
            };
            let reader = self.clone();
            let reading = tokio::task::spawn_blocking(move || reader.read(what, is_requested));
            if what == Watched::Plugins {
                // A change does not wait until the plugins of the one before are compiled.
                tokio::spawn(async {
                    if let Err(panic) = reading.await {
                        error!(%panic, "loading the changed plugins failed");
                    }
                });
                continue;
            }
            match reading.await {
                Ok(Ok(())) => is_unread = false,
                Ok(Err(Unread(problem))) => {
                    if !std::mem::replace(&mut is_unread, true) {
                        warn!(problem, "a changed file could not be read; reading it again");
                    }
                }
                Err(panic) => error!(%panic, "reading the changed files failed"),
            }
        }
    }

    /// # Errors
    ///
    /// They must be read again.
    fn read(&self, what: Watched, is_requested: bool) -> Result<(), Unread> {
        let Reader { live, services, engine, reloading, pending, refusals, .. } = self;
        let by = if is_requested { Initiator::Signal } else { Initiator::File };
        match what {
            Watched::Config => {
                let read = reload::reload(reloading, live, services, refusals, is_requested);
                // It may name other files.
                match is_requested {
                    true => pending.request(Watched::Certificates),
                    false => pending.changed(Watched::Certificates),
                }
                read
            }
            Watched::Certificates => reload::reload_certificates(live, refusals, is_requested),
            Watched::Engine => engine.reload(&by).map_err(Unread),
            Watched::Plugins => {
                self.rescan(&by);
                Ok(())
            }
        }
    }

    fn rescan(&self, by: &Initiator) {
        let middleware = &self.services.middleware;
        if *by == Initiator::Signal {
            middleware.look_again();
        }
        // A refusal has been logged already.
        middleware.rescan(by);
        let checked = check_protection(&self.config, middleware);
        let was_protected = self.was_protected.swap(checked.is_ok(), Ordering::Relaxed);
        if let (true, Err(problem)) = (was_protected, checked) {
            warn!(%problem, "connections from other machines are rejected");
        }
    }

    /// Restores the version before a plugin that was parked, where its settings say so.
    async fn put_back(self: Arc<Reader>) -> Ended {
        loop {
            self.services.middleware.parked().await;
            let middleware = self.services.middleware.clone();
            let done = tokio::task::spawn_blocking(move || middleware.put_back()).await;
            if let Err(panic) = done {
                error!(%panic, "restoring the version before a parked plugin failed");
            }
        }
    }
}
