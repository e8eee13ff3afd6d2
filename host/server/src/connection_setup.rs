//! Admits a client and serves its connection: the same for all doors.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::connection::{End, OpenConnection};
use crate::decoder::Decoder;
use crate::goaway::close_gracefully;
use crate::live_config::{DoorState, LiveConfig};
use crate::session::{Framing, Services, Session};
use switchyard_config::Config;
use switchyard_hub::connections::Connection;
use switchyard_hub::connections::expiries;
use switchyard_hub::connections::ids::ReservedId;
use switchyard_hub::encoding::Encoding;
use switchyard_middleware::admission::{AdmissionProgress, Step};
use switchyard_middleware::bindings::Client;
use switchyard_net::slots::{OverShare, Slot};
use switchyard_net::socket::{self, Stream};
use switchyard_net::tls;
use switchyard_telemetry::log;
use switchyard_telemetry::panics;
use switchyard_telemetry::stats::{Refused, Stats, count};
use switchyard_types::close::CloseReason;
use switchyard_types::command::{EXPIRED, LIMIT, NOAUTH, Refusal, UNAVAILABLE};

/// Divides the handshake share of an address that is at its connection limit: its clients still
/// receive the reason, a few at a time.
const FULL_ADDRESS_PART: usize = 8;

/// The client at the other end, as far as the connection itself shows it.
#[derive(Debug)]
pub struct Peer {
    /// Its address, as far as it is known: that of the proxy until the proxy has said it.
    pub remote: SocketAddr,
    /// The proxy at the other end of the socket; none: the client itself, or a proxy that has not
    /// said the client's address.
    pub proxy: Option<SocketAddr>,
    /// The subject of its client certificate.
    pub subject: Option<String>,
    /// The id that its connection gets.
    pub id: ReservedId,
}

impl Peer {
    /// A client that is not known to be behind a proxy.
    pub fn new(remote: SocketAddr, id: ReservedId) -> Peer {
        Peer { remote, proxy: None, subject: None, id }
    }

    /// Whether the other end of the socket, the client or a proxy, is on this machine.
    fn is_local(&self) -> bool {
        is_local(self.proxy.unwrap_or(self.remote))
    }
}

/// The key under which plugins find the address of the proxy that a client is behind, such as
/// `10.0.0.1:4711`. It is set only if the client's own address is known.
const PROXY: &str = "proxy.address";

/// What a door needs to admit clients and to serve their connections.
#[derive(Clone)]
pub struct ConnectionSetup {
    /// The configuration at start.
    pub config: Arc<Config>,
    /// What all sessions share.
    pub services: Services,
    /// The configuration now.
    pub live: Arc<LiveConfig>,
    /// The door.
    pub door: Arc<DoorState>,
    /// Whether no client is admitted any more, and connections are closed that were admitted and are
    /// not served yet.
    pub is_ending: watch::Receiver<bool>,
    /// Each connection holds one while it is served. None is left: the server has shut down.
    pub served: mpsc::WeakSender<()>,
}

impl ConnectionSetup {
    /// The deadline of a handshake starts when the connection was accepted, and covers TLS and the
    /// handshake of the protocol.
    pub fn end_of_handshake(&self, handshaking: &Slot) -> tokio::time::Instant {
        handshaking.began() + self.config.http.handshake_time
    }

    /// The result of admitting a client; none: the server is shutting down.
    pub async fn unless_ending<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        let mut is_ending = self.is_ending.clone();
        tokio::select! {
            result = step => Some(result),
            _ = is_ending.wait_for(|is_ending| *is_ending) => None,
        }
    }

    /// How many handshakes may be pending from this address; none: it is not counted.
    pub fn handshake_share(&self, address: IpAddr) -> Option<usize> {
        let left = self.services.hub.connections().left_for(address)?;
        let share = self.live.config().limits.handshakes_per_address_max;
        Some(if left > 0 { share } else { (share / FULL_ADDRESS_PART).max(1) })
    }

    /// Notes the address of the client, which a proxy has said. The handshake counts for it.
    ///
    /// # Errors
    ///
    /// It has used its share of handshakes. That was counted and logged.
    pub fn is_from(
        &self,
        peer: &mut Peer,
        client: SocketAddr,
        handshaking: &Slot,
    ) -> Result<(), OverShare> {
        if client == peer.remote {
            return Ok(());
        }
        let proxy = std::mem::replace(&mut peer.remote, client);
        peer.proxy.get_or_insert(proxy);
        let share = self.handshake_share(client.ip());
        handshaking.belongs_to(client.ip(), share).inspect_err(|_| self.over_share(client))
    }

    /// Counts and logs a connection of an address that has used its share of handshakes.
    pub fn over_share(&self, remote: SocketAddr) {
        self.door.stats.record_refused(Refused::HandshakeShare);
        debug!(%remote, "closed: limits.handshakes_per_address_max");
    }

    /// Calls the chain to admit this client. If the future is dropped, the client is not admitted.
    ///
    /// # Errors
    ///
    /// The client is to be rejected, for this reason.
    pub async fn admit(
        &self,
        client: Client,
        peer: &Peer,
        encoding: Encoding,
    ) -> Result<Arc<Connection>, CloseReason> {
        let mut progress = AdmissionProgress::default();
        let (connection, step) = self.add(&client, peer, encoding, &mut progress)?;
        let admitted = match step {
            Step::Settled(settled) => settled.map(|()| connection.clone()),
            Step::Apart(plugin) => {
                let middleware = self.services.middleware.clone();
                middleware.admit(connection.clone(), client, progress, plugin).await
            }
        };
        let admitted = admitted.map_err(|refusal| {
            self.services.auth_attempts.connect_refused(&connection, &refusal);
            close_reason_for(&refusal)
        })?;
        if admitted.is_expired() {
            // The plugins admitted it, so they are notified of its end.
            self.forget(admitted);
            return Err(expiries::expired());
        }
        Ok(admitted)
    }

    /// Removes a connection that was admitted and is not served. The plugins are notified of its
    /// end.
    pub fn forget(&self, admitted: Arc<Connection>) {
        drop(Session::new(admitted, self.services.clone(), Framing::None));
    }

    /// Gives a client an id, and calls the plugins that are called on the data path. A client that
    /// is rejected is removed again.
    #[allow(clippy::type_complexity, reason = "the connection, and the result of the calls")]
    fn add(
        &self,
        client: &Client,
        peer: &Peer,
        encoding: Encoding,
        progress: &mut AdmissionProgress,
    ) -> Result<(Arc<Connection>, Step<Result<(), Refusal>>), CloseReason> {
        if self.live.is_draining() {
            return Err(CloseReason::Draining);
        }
        // Connections are added while the chain is locked, so that it is known for which of them a
        // plugin that is added has been called.
        let chain = self.services.middleware.chain();
        if !self.config.is_open_to_all && !peer.is_local() && !chain.has_admission() {
            return Err(CloseReason::Unavailable(UNPROTECTED.to_owned()));
        }
        let connections = self.services.hub.connections();
        let connection = connections.add_accepted(&peer.id, encoding, peer.remote)?;
        let proxy = peer.proxy.map(|proxy| proxy.to_string());
        for (key, value) in [(tls::SUBJECT, &peer.subject), (PROXY, &proxy)] {
            let Some(value) = value else { continue };
            if !connection.set_attribute(key, Some(value.clone())) {
                connections.remove(connection.id);
                let why = format!("{key} is over limits.attributes_bytes_max");
                return Err(CloseReason::Forbidden(why));
            }
        }
        if chain.has_admission() && !self.services.auth_attempts.may_connect(&connection) {
            connections.remove(connection.id);
            return Err(CloseReason::AuthFlood);
        }
        let Some(step) = panics::contain(|| chain.connect(connection.id, client, progress)) else {
            connections.remove(connection.id);
            return Err(CloseReason::Internal);
        };
        if let Step::Settled(Err(_)) = &step {
            let plugins = chain.let_go(connection.id, progress);
            self.services.middleware.forget(connection.clone(), plugins);
        }
        Ok((connection, step))
    }

    /// Serves an admitted connection to its end, in a task of its own that holds nothing of the
    /// handshake. This task is most of what an idle connection uses. `received`: the bytes that
    /// followed the handshake.
    pub fn serve<S: Stream, D: Decoder + Send + 'static>(
        self,
        stream: S,
        connection: Arc<Connection>,
        decoder: D,
        received: Vec<u8>,
        framing: Framing,
    ) {
        let Some(served) = self.served.upgrade() else { return self.forget(connection) };
        let ConnectionSetup { config, services, door, is_ending, .. } = self;
        let (connections, stats) = (services.hub.connections().clone(), services.stats.clone());
        let id = connection.id;
        // From now on, the connection ends with its session, whatever happens.
        let session = Session::new(connection.clone(), services, framing);
        debug!(connection = id, remote = %connection.remote, "connection opened");
        connections.opened(&connection);
        connection.outbox.attach(stream.socket());
        // A drain that has ended did not see this connection, so close it here.
        if *is_ending.borrow() {
            close_gracefully(&connection, CloseReason::ShuttingDown);
        }
        door.stats.record_accepted();
        let close_time = config.websocket.close_time;
        let open = OpenConnection::new(stream, received, session, decoder, close_time);
        tokio::spawn(open.run(connections, stats, move |end, stats| {
            report_end(id, end, stats);
            served
        }));
    }

    /// Sends a client that is not admitted these last bytes, and closes its connection.
    pub async fn reject<S: Stream>(
        &self,
        mut stream: S,
        peer: &Peer,
        reason: &CloseReason,
        last_bytes: Bytes,
    ) {
        let remote = peer.remote;
        self.door.stats.record_refused(reason.into());
        debug!(%remote, reason = reason.label(), why = %reason.text(), "connection rejected");
        let sending = socket::write_and_close(&mut stream, &last_bytes);
        let _ = tokio::time::timeout(self.config.websocket.close_time, sending).await;
    }
}

/// Counts and logs the end of a connection.
fn report_end(id: u64, end: End<'_>, stats: &Stats) {
    if log::is_followed(id) {
        info!(target: log::FOLLOWED, connection = id, ?end, "connection ended");
    }
    match &end {
        End::Closed(reason) => stats.closed(reason),
        End::Gone(_) => count(&stats.lost),
    }
    match end {
        End::Closed(reason @ CloseReason::SlowConsumer { outbox_bytes }) => {
            let reason = reason.label();
            warn!(connection = id, outbox_bytes, reason, "connection closed");
        }
        End::Closed(reason) => {
            let code = reason.code();
            debug!(connection = id, reason = reason.label(), code, "connection closed");
        }
        End::Gone(error) => debug!(connection = id, %error, "connection lost"),
    }
}

/// Whether an address is this machine's own.
pub fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Why connections from other machines are rejected while no plugin has `admission`.
const UNPROTECTED: &str = "no plugin decides who may connect; see security.open_to_all";

fn close_reason_for(refusal: &Refusal) -> CloseReason {
    let why = match &refusal.by {
        Some(plugin) => format!("{plugin}: {}", refusal.message),
        None => refusal.message.clone().into_owned(),
    };
    match &*refusal.code {
        NOAUTH => CloseReason::Unauthorised(why),
        EXPIRED => CloseReason::Expired(why),
        UNAVAILABLE => CloseReason::Unavailable(why),
        LIMIT => CloseReason::Limited(why),
        _ => CloseReason::Forbidden(why),
    }
}
