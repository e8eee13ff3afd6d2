//! A server without sockets: the same listener, sessions, chain and engine, with clients that
//! connect in memory.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use switchyard_config::Config;
use switchyard_hub::connections::expiries::expire;
use switchyard_middleware::changes::{ChangeError, Offer};
use switchyard_middleware::stats::{Failure, Initiator};
use switchyard_server::connection_setup::ConnectionSetup;
use switchyard_server::door::Door;
use switchyard_server::door::http::HttpDoor;
use switchyard_server::door::resp::RespDoor;
use switchyard_server::health::Health;
use switchyard_server::listener::Listener;
use switchyard_server::prepare::prepare;
use switchyard_server::session::Services;
use switchyard_server::upkeep;
use switchyard_telemetry::supervise::Ended;

/// How many bytes may be in flight to or from one client; more wait.
const PIPE_BYTES: usize = 64 << 10;

/// A running server without listeners. Connections to it are opened with `dial` only.
pub struct InMemoryServer {
    listener: Listener<HttpDoor>,
    services: Services,
    clients: AtomicU16,
    /// While it exists, the server does not shut down.
    _ending: watch::Sender<bool>,
    all_served: mpsc::Receiver<()>,
    keeping: JoinHandle<Ended>,
    expiring: JoinHandle<()>,
    rechecking: JoinHandle<()>,
}

impl InMemoryServer {
    /// Loads the engine, as a server does before it listens. Must be called within a
    /// runtime.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub fn open(config: Config) -> anyhow::Result<InMemoryServer> {
        let (live, services, _) = prepare(&config)?;
        let live = Arc::new(live);
        let door = live.door(HttpDoor::NAME).context("every server has this door")?;
        let health = Health::new(services.clone(), live.clone(), config.health);
        let config = Arc::new(config);
        let (served, all_served) = mpsc::channel(1);
        let (ending, is_ending) = watch::channel(false);
        let keeping = tokio::spawn(upkeep::keep_alive(config.clone(), services.hub.clone()));
        let expiring = tokio::spawn(expire(services.hub.connections().clone()));
        let rechecking = tokio::spawn(upkeep::recheck(&config, &services));
        let resp = Arc::new(RespDoor::new(&config, 0));
        let http = Arc::new(HttpDoor::new(config.clone(), health, resp, None));
        let of = services.clone();
        let setup = ConnectionSetup { config, services: of, live, door, is_ending, served };
        let listener = Listener::new(http, setup);
        Ok(InMemoryServer {
            listener,
            services,
            clients: AtomicU16::new(1),
            _ending: ending,
            all_served,
            keeping,
            expiring,
            rechecking,
        })
    }

    /// Puts a plugin into the chain, from this file and with these settings. Blocks while it is
    /// compiled.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub fn load(
        &self,
        slot: &str,
        file: &Path,
        wasm: Vec<u8>,
        toml: Option<String>,
    ) -> Result<(), ChangeError> {
        let offer = Offer { wasm: wasm.into(), file: Some(file.to_owned()), toml, is_fresh: false };
        self.services.middleware.load(slot, offer, &Initiator::Local).map(drop)
    }

    /// Replaces the instances of a plugin by new ones with other settings. Returns the identity of
    /// the plugin after that.
    ///
    /// # Errors
    ///
    /// There is no such plugin, or it refuses the settings.
    pub fn swap(&self, slot: &str, settings: &serde_json::Value) -> anyhow::Result<String> {
        let beside = Some(super::play::beside(settings)?);
        let swap = self.services.middleware.reload(slot, beside, false, &Initiator::Local)?;
        Ok(swap.to.as_deref().unwrap_or_default().to_owned())
    }

    /// A stream for one more client, for HTTP and WebSocket.
    pub fn dial(&self) -> DuplexStream {
        let (theirs, ours) = tokio::io::duplex(PIPE_BYTES);
        // The number only distinguishes the clients.
        let port = self.clients.fetch_add(1, Ordering::Relaxed);
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        tokio::spawn(self.listener.clone().open_unaccepted(ours, remote));
        theirs
    }

    /// The plugins' identities, with their versions, in order.
    pub fn plugins(&self) -> Vec<String> {
        let chain = self.services.middleware.chain();
        chain.plugins().iter().map(|plugin| plugin.identity.to_string()).collect()
    }

    /// Calls that ended an instance, in all plugins.
    pub fn failures(&self) -> Vec<Failure> {
        failures(&self.services)
    }

    /// Waits until all clients that disconnected are removed, and returns what failed until then.
    pub async fn close(self, patience: Duration) -> Vec<Failure> {
        let InMemoryServer {
            listener,
            services,
            mut all_served,
            keeping,
            expiring,
            rechecking,
            ..
        } = self;
        drop(listener);
        let _ = tokio::time::timeout(patience, all_served.recv()).await;
        let _ =
            tokio::time::timeout(patience, services.middleware.all_disconnects_notified()).await;
        keeping.abort();
        expiring.abort();
        rechecking.abort();
        failures(&services)
    }
}

fn failures(services: &Services) -> Vec<Failure> {
    let chain = services.middleware.chain();
    chain.plugins().iter().flat_map(|plugin| plugin.stats.failures()).collect()
}
