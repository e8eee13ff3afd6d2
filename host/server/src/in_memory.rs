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

use crate::connection_setup::ConnectionSetup;
use crate::door::Door;
use crate::door::http::HttpDoor;
use crate::door::resp::RespDoor;
use crate::health::Health;
use crate::listener::Listener;
use crate::prepare::prepare_with;
use crate::session::Services;
use crate::upkeep;
use switchyard_config::Config;
use switchyard_engine::EngineCode;
use switchyard_hub::connections::expiries::expire;
use switchyard_hub::engine::EngineFactory;
use switchyard_middleware::changes::{ChangeError, Offer};
use switchyard_middleware::stats::{Failure, Initiator};
use switchyard_net::socket::Stream;
use switchyard_telemetry::supervise::Ended;

/// How many bytes may be in flight to or from one client; more wait.
const PIPE_BYTES: usize = 64 << 10;

/// A running server without listeners. Connections to it are opened with `dial` and `connect` only.
pub struct InMemoryServer {
    listener: Listener<HttpDoor>,
    services: Services,
    clients: AtomicU16,
    /// While it exists, the server does not shut down.
    _ending: watch::Sender<bool>,
    served: mpsc::Sender<()>,
    all_served: mpsc::Receiver<()>,
    keeping: JoinHandle<Ended>,
    expiring: JoinHandle<Ended>,
    rechecking: JoinHandle<Ended>,
}

impl InMemoryServer {
    /// Loads the engine, as a server does before it listens. Must be called within a
    /// runtime.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub fn open(config: Config) -> anyhow::Result<InMemoryServer> {
        InMemoryServer::open_with(config, |code| Arc::new(code))
    }

    /// The same with an engine that `engine` makes of the configured one.
    ///
    /// # Errors
    ///
    /// As for `open`.
    pub fn open_with(
        config: Config,
        engine: impl FnOnce(EngineCode) -> Arc<dyn EngineFactory>,
    ) -> anyhow::Result<InMemoryServer> {
        let (live, services, _) = prepare_with(&config, &Initiator::Start, engine)?;
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
        let of_connections = served.downgrade();
        let setup =
            ConnectionSetup { config, services: of, live, door, is_ending, served: of_connections };
        let listener = Listener::new(http, setup);
        Ok(InMemoryServer {
            listener,
            services,
            clients: AtomicU16::new(1),
            _ending: ending,
            served,
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

    /// Replaces the instances of a plugin by new ones with another settings file, whose text is
    /// `toml`. Returns the identity of the plugin after that.
    ///
    /// # Errors
    ///
    /// There is no such plugin, or it refuses the settings.
    pub fn swap(&self, slot: &str, toml: String) -> Result<String, ChangeError> {
        let swap = self.services.middleware.reload(slot, Some(toml), false, &Initiator::Local)?;
        Ok(swap.to.as_deref().unwrap_or_default().to_owned())
    }

    /// A stream for one more client, for HTTP and WebSocket.
    pub fn dial(&self) -> DuplexStream {
        let (theirs, ours) = tokio::io::duplex(PIPE_BYTES);
        self.connect(ours);
        theirs
    }

    /// Serves the connection of one more client.
    pub fn connect<S: Stream>(&self, stream: S) {
        // The number only distinguishes the clients.
        let port = self.clients.fetch_add(1, Ordering::Relaxed);
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (listener, served) = (self.listener.clone(), self.served.clone());
        tokio::spawn(async move {
            listener.open_unaccepted(stream, remote).await;
            // `close` waits for handshakes, too.
            drop(served);
        });
    }

    /// What the server consists of.
    pub fn services(&self) -> &Services {
        &self.services
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
            served,
            mut all_served,
            keeping,
            expiring,
            rechecking,
            ..
        } = self;
        drop((listener, served));
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
