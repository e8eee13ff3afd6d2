//! The configuration that can change while the server runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use switchyard_config::{Config, TlsConfig};
use switchyard_net::slots::Slots;
use switchyard_net::tls::{Tls, TlsError};
use switchyard_telemetry::stats::{DoorStats, Stats};

/// The name of the door for WebSocket clients.
pub const HTTP: &str = "http";
/// The name of the door for Redis clients.
pub const RESP: &str = "resp";

/// The minimum time before a pending handshake may be dropped for a new one, where the limit of
/// handshakes is reached. A client that sends its request at once does not need it. A TLS client
/// does, for a round trip and while other handshakes are computed.
const PATIENCE: Duration = Duration::from_millis(100);
const TLS_PATIENCE: Duration = Duration::from_millis(300);

/// The configuration that a listener reads for each connection; it changes at a reload.
pub struct LiveConfig {
    config: RwLock<Arc<Config>>,
    /// How many handshakes may be pending at each door.
    pub handshakes_max: usize,
    doors: RwLock<Vec<Arc<DoorState>>>,
    phase: AtomicU8,
}

/// The server is ready for new connections.
const SERVING: u8 = 0;
/// It is not, and still accepts them.
const IN_GRACE: u8 = 1;
/// It rejects them.
const DRAINING: u8 = 2;

/// A door that is open.
pub struct DoorState {
    /// Its counters, and its name.
    pub stats: Arc<DoorStats>,
    /// Its certificate; none: it does not speak TLS.
    pub tls: Option<Tls>,
    /// Its pending handshakes: a full door does not affect another one. Its `largest` has the
    /// addresses with the most.
    pub handshakes: Arc<Slots>,
}

impl LiveConfig {
    /// Opens the doors that the configuration names, and loads their certificates.
    ///
    /// # Errors
    ///
    /// A certificate cannot be used.
    pub fn new(config: Config, stats: &Stats) -> Result<LiveConfig, TlsError> {
        let (http, resp) = (config.http.tls.clone(), config.resp.clone());
        let live = LiveConfig {
            handshakes_max: config.http.handshakes_max,
            config: RwLock::new(Arc::new(config)),
            doors: RwLock::default(),
            phase: AtomicU8::new(SERVING),
        };
        live.open_door(HTTP, http.as_ref(), stats)?;
        if let Some(resp) = resp {
            live.open_door(RESP, resp.tls.as_ref(), stats)?;
        }
        Ok(live)
    }

    /// Opens a door with this certificate.
    ///
    /// # Errors
    ///
    /// The certificate cannot be used.
    pub fn open_door(
        &self,
        name: &'static str,
        tls: Option<&TlsConfig>,
        stats: &Stats,
    ) -> Result<Arc<DoorState>, TlsError> {
        let patience = if tls.is_some() { TLS_PATIENCE } else { PATIENCE };
        let door = Arc::new(DoorState {
            tls: tls.map(Tls::load).transpose()?,
            handshakes: Slots::new(self.handshakes_max, patience),
            stats: stats.add_door(name),
        });
        self.doors.write().push(door.clone());
        Ok(door)
    }

    /// The configuration that was loaded last.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().clone()
    }

    /// Replaces the configuration.
    pub fn set_config(&self, config: Config) {
        *self.config.write() = Arc::new(config);
    }

    /// The server is not ready from now on, and changes nothing else: balancers notice it.
    pub fn begin_grace(&self) {
        self.phase.store(IN_GRACE, Ordering::SeqCst);
    }

    /// Rejects new connections from now on.
    pub fn begin_draining(&self) {
        self.phase.store(DRAINING, Ordering::SeqCst);
    }

    /// The doors that are open.
    pub fn doors(&self) -> Vec<Arc<DoorState>> {
        self.doors.read().clone()
    }

    /// The door with this name; none: it is not open.
    pub fn door(&self, name: &str) -> Option<Arc<DoorState>> {
        self.doors.read().iter().find(|door| door.stats.name() == name).cloned()
    }

    /// Whether the server is ending: it is not ready, and may still accept connections.
    pub fn is_ending(&self) -> bool {
        self.phase.load(Ordering::SeqCst) != SERVING
    }

    /// Whether new connections are rejected.
    pub fn is_draining(&self) -> bool {
        self.phase.load(Ordering::SeqCst) == DRAINING
    }
}
