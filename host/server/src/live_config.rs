//! The configuration that can change while the server runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use switchyard_config::{Config, TlsConfig};
use switchyard_telemetry::stats;

use switchyard_net::slots::Slots;
use switchyard_net::tls::{Tls, TlsError};

/// The minimum time before a pending handshake may be dropped for a new one, where the limit of
/// handshakes is reached. A client that sends its request at once does not need it. A TLS client
/// does, for a round trip and while other handshakes are computed.
const PATIENCE: Duration = Duration::from_millis(100);
const TLS_PATIENCE: Duration = Duration::from_millis(300);

/// The configuration that a listener reads for each connection; it changes at a reload.
pub struct LiveConfig {
    config: RwLock<Arc<Config>>,
    /// The certificate of the HTTP and WebSocket door.
    pub http_tls: Option<Tls>,
    /// The certificate of the door for Redis clients.
    pub resp_tls: Option<Tls>,
    /// How many handshakes may be pending at each door.
    pub handshakes_max: usize,
    /// The pending handshakes of each door: a full door does not affect another one.
    handshakes: [Arc<Slots>; stats::Door::ALL.len()],
    is_draining: AtomicBool,
}

impl LiveConfig {
    /// Loads the certificates that the configuration names.
    ///
    /// # Errors
    ///
    /// A certificate cannot be used.
    pub fn new(config: Config) -> Result<LiveConfig, TlsError> {
        let resp_tls = config.resp.as_ref().and_then(|resp| resp.tls.as_ref());
        let handshakes = |tls: Option<&TlsConfig>| {
            let patience = if tls.is_some() { TLS_PATIENCE } else { PATIENCE };
            Slots::new(config.http.handshakes_max, patience)
        };
        Ok(LiveConfig {
            handshakes: [handshakes(config.http.tls.as_ref()), handshakes(resp_tls)],
            http_tls: config.http.tls.as_ref().map(Tls::load).transpose()?,
            resp_tls: resp_tls.map(Tls::load).transpose()?,
            handshakes_max: config.http.handshakes_max,
            config: RwLock::new(Arc::new(config)),
            is_draining: AtomicBool::new(false),
        })
    }

    /// The configuration that was loaded last.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().clone()
    }

    /// Replaces the configuration.
    pub fn set_config(&self, config: Config) {
        *self.config.write() = Arc::new(config);
    }

    /// Rejects new connections from now on.
    pub fn begin_draining(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
    }

    /// The pending handshakes of a door. Its `largest` has the addresses with the most.
    pub fn handshakes(&self, door: stats::Door) -> &Arc<Slots> {
        let [http, resp] = &self.handshakes;
        match door {
            stats::Door::Http => http,
            stats::Door::Resp => resp,
        }
    }

    /// The doors that are open, and whether they speak TLS.
    pub fn doors(&self) -> Vec<(stats::Door, bool)> {
        let http = (stats::Door::Http, self.http_tls.is_some());
        let resp = (stats::Door::Resp, self.resp_tls.is_some());
        let has_resp = self.config.read().resp.is_some();
        std::iter::once(http).chain(has_resp.then_some(resp)).collect()
    }

    /// Whether new connections are rejected.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }
}
