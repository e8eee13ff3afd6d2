//! Accepts connections, performs their handshakes, and has the plugin chain admit them.

mod reserve;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use crate::connection::{End, OpenConnection};
use crate::door::json::Json;
use crate::door::resp::info::ServerInfo;
use crate::door::resp::{self, FramedResp, Resp, Transport};
use crate::door::websocket::WebSocket;
use crate::door::{self, Door};
use crate::handshake::{self, Asked, Subprotocol, Upgrade};
use crate::health::Health;
use crate::live_config::LiveConfig;
use crate::session::{Framing, Services, Session};
use switchyard_config::Config;
use switchyard_hub::connections::Connection;
use switchyard_hub::connections::expiries;
use switchyard_hub::encoding::Encoding;
use switchyard_middleware::bindings::{Client, Door as ClientDoor};
use switchyard_middleware::chain::{AdmissionProgress, Step};
use switchyard_net::descriptors::{Accepted, Acceptor};
use switchyard_net::slots::{OverShare, Slot, Slots};
use switchyard_net::socket::{self, Plain, Stream};
use switchyard_net::tls::{self, Tls};
use switchyard_protocol::resp::RequestLimits;
use switchyard_protocol::websocket;
use switchyard_telemetry::log;
use switchyard_telemetry::log::Throttle;
use switchyard_telemetry::panics;
use switchyard_telemetry::stats::{self, Refused, count};
use switchyard_telemetry::supervise::Ended;
use switchyard_types::close::CloseReason;
use switchyard_types::command::{EXPIRED, LIMIT, NOAUTH, Refusal, UNAVAILABLE};

/// Divides the handshake share of an address that is at its connection limit: its clients still
/// receive the reason, a few at a time.
const FULL_ADDRESS_PART: usize = 8;
/// How long a client may take to read a reply that ends its connection.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Redis' `tcp-keepalive`.
const KEEPALIVE_TIME: Duration = Duration::from_secs(300);

/// The protocol of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP, and WebSocket after an upgrade.
    Http,
    /// Redis' protocol, RESP.
    Resp,
}

impl From<Protocol> for stats::Door {
    fn from(protocol: Protocol) -> stats::Door {
        match protocol {
            Protocol::Http => stats::Door::Http,
            Protocol::Resp => stats::Door::Resp,
        }
    }
}

/// The origin of a client, as far as the connection itself shows it.
struct Peer {
    remote: SocketAddr,
    /// The subject of its client certificate.
    subject: Option<String>,
}

/// Accepts connections.
#[derive(Clone)]
pub struct Listener {
    config: Arc<Config>,
    services: Services,
    health: Arc<Health>,
    resp_limits: RequestLimits,
    resp_info: ServerInfo,
    live: Arc<LiveConfig>,
    /// The port of the console, where it is served on loopback.
    console_port: Option<u16>,
    is_ending: watch::Receiver<bool>,
    /// Held by each connection while it is served.
    served: mpsc::Sender<()>,
}

impl Listener {
    /// Creates it. `admin` is the address of the admin listener. Each connection holds a clone
    /// of `served` until it ends. Handshakes are aborted once `is_ending` is true.
    pub fn new(
        config: Arc<Config>,
        health: Arc<Health>,
        resp: Option<&TcpListener>,
        admin: Option<SocketAddr>,
        is_ending: watch::Receiver<bool>,
        served: mpsc::Sender<()>,
    ) -> Listener {
        let port = resp.and_then(|resp| resp.local_addr().ok()).map_or(0, |local| local.port());
        let request_bytes_max = match &config.resp {
            Some(resp) => resp.request_bytes_max,
            None => config.websocket.message_bytes_max,
        };
        Listener {
            resp_limits: RequestLimits {
                bulk_bytes_max: request_bytes_max.min(RequestLimits::default().bulk_bytes_max),
                request_bytes_max,
                ..RequestLimits::default()
            },
            resp_info: ServerInfo::new(&config, port, request_bytes_max),
            config,
            live: health.live().clone(),
            services: health.services().clone(),
            console_port: admin.filter(|admin| is_local(*admin)).map(|admin| admin.port()),
            health,
            is_ending,
            served,
        }
    }

    /// Accepts connections until it is dropped.
    pub async fn accept(self, listener: Arc<TcpListener>, protocol: Protocol) -> Ended {
        let handshakes = self.live.handshakes(protocol.into()).clone();
        let door = stats::Door::from(protocol);
        let mut throttle = Throttle::default();
        let stats = self.services.stats.clone();
        let mut acceptor = Acceptor::new(listener, door.name(), &self.services.reserves);
        loop {
            if !handshakes.has_room() {
                self.services.stats.waits_for_handshakes(protocol.into());
                self.say_that_it_is_full(&handshakes, protocol, &mut throttle);
                handshakes.room().await;
            }
            let Accepted { stream, remote, is_on_reserve } =
                acceptor.accept(|| stats.could_not_accept(door)).await;
            if is_on_reserve {
                self.serve_on_reserve(stream, protocol).await;
                continue;
            }
            if !OPTIONS_ARE_INHERITED && let Err(error) = prepare(SockRef::from(&stream), protocol)
            {
                debug!(%remote, %error, "connection lost in the handshake");
                continue;
            }
            let share = self.share_of(remote.ip());
            let (handshaking, dropped) = match handshakes.take(remote.ip(), share) {
                Ok(taken) => taken,
                Err(OverShare) => {
                    self.services.stats.refused(door, Refused::HandshakeShare);
                    debug!(%remote, "closed: limits.handshakes_per_address_max");
                    continue;
                }
            };
            if let Some(address) = dropped {
                self.services.stats.refused(door, Refused::HandshakeDropped);
                debug!(%address, "a handshake was dropped for a new one");
                self.say_that_it_is_full(&handshakes, protocol, &mut throttle);
            }
            let id = handshaking.id();
            let tls = match protocol {
                Protocol::Http => &self.live.http_tls,
                Protocol::Resp => &self.live.resp_tls,
            };
            let listener = self.clone();
            let serving = match tls.as_ref().map(Tls::acceptor) {
                None => {
                    let peer = Peer { remote, subject: None };
                    let stream = Plain::new(stream, self.services.stats.clone());
                    tokio::spawn(listener.serve(stream, peer, protocol, handshaking))
                }
                Some(acceptor) => {
                    let serving =
                        listener.serve_tls(acceptor, stream, remote, protocol, handshaking);
                    tokio::spawn(serving)
                }
            };
            handshakes.attach(id, serving.abort_handle());
        }
    }

    /// Logs, throttled, that the limit of pending handshakes is reached.
    fn say_that_it_is_full(&self, handshakes: &Slots, protocol: Protocol, throttle: &mut Throttle) {
        if !throttle.is_due() {
            return;
        }
        let (door, max) = (stats::Door::from(protocol).name(), self.live.handshakes_max);
        let (address, held) =
            handshakes.largest(1).first().copied().unwrap_or((IpAddr::from([0; 4]), 0));
        warn!(
            door, max, %address, held,
            "handshake limit reached (http.handshakes_max): those whose clients send nothing are \
             dropped; the address has most of them"
        );
    }

    /// How many handshakes may be pending from an address; none: it is not counted.
    fn share_of(&self, address: IpAddr) -> Option<usize> {
        let left = self.services.hub.connections().left_for(address)?;
        let share = self.live.config().limits.handshakes_per_address_max;
        Some(if left > 0 { share } else { (share / FULL_ADDRESS_PART).max(1) })
    }

    /// Serves a connection that was not made by a listener.
    pub async fn take<S: Stream>(self, stream: S, remote: SocketAddr, protocol: Protocol) {
        let handshakes = self.live.handshakes(protocol.into());
        let Ok((handshaking, _)) = handshakes.take(remote.ip(), None) else { return };
        self.serve(stream, Peer { remote, subject: None }, protocol, handshaking).await;
    }

    /// Performs the TLS handshake first.
    async fn serve_tls(
        self,
        acceptor: TlsAcceptor,
        stream: TcpStream,
        remote: SocketAddr,
        protocol: Protocol,
        handshaking: Slot,
    ) {
        let mut is_ending = self.is_ending.clone();
        let shaken = tokio::select! {
            shaken = tokio::time::timeout_at(
                self.end_of_handshake(&handshaking),
                handshaking.waits(acceptor.accept(stream)),
            ) => shaken,
            _ = is_ending.wait_for(|is_ending| *is_ending) => return,
        };
        match shaken {
            Ok(Ok(stream)) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let subject = certificates.and_then(<[_]>::first).and_then(tls::subject_of);
                self.serve(stream, Peer { remote, subject }, protocol, handshaking).await;
            }
            Ok(Err(error)) => {
                self.services.stats.refused(protocol.into(), Refused::Tls);
                debug!(%remote, %error, "no TLS handshake");
            }
            Err(_) => {
                self.services.stats.refused(protocol.into(), Refused::TlsTimeout);
                debug!(%remote, "TLS handshake timed out");
            }
        }
    }

    /// The deadline of a handshake starts when the connection was accepted, and covers both TLS and
    /// HTTP.
    fn end_of_handshake(&self, handshaking: &Slot) -> tokio::time::Instant {
        (handshaking.began() + self.config.http.handshake_time).into()
    }

    async fn serve<S: Stream>(self, stream: S, peer: Peer, protocol: Protocol, handshaking: Slot) {
        let remote = peer.remote;
        match protocol {
            Protocol::Http => {
                let mut is_ending = self.is_ending.clone();
                let opened = tokio::select! {
                    opened = self.open_websocket(stream, &peer, &handshaking) => opened,
                    _ = is_ending.wait_for(|is_ending| *is_ending) => None,
                };
                let (stream, connection, upgrade) = match opened {
                    Some(Ok(opened)) => opened,
                    Some(Err((stream, reason))) => {
                        let words = websocket::close(&reason);
                        handshaking.counts_again();
                        return self.turn_away(stream, remote, protocol, &reason, words).await;
                    }
                    None => return,
                };
                drop(handshaking);
                let websocket = &self.config.websocket;
                let behind = upgrade.came_behind;
                match upgrade.subprotocol {
                    Subprotocol::Json | Subprotocol::NotAsked => {
                        let json = Json::new(websocket.bad_frames_max);
                        let door = WebSocket::new(json, websocket.message_bytes_max);
                        self.run(stream, connection, door, behind, Framing::None);
                    }
                    Subprotocol::Resp => {
                        let resp = FramedResp::new(self.resp(Transport::Frames));
                        let door = WebSocket::new(resp, websocket.message_bytes_max);
                        self.run(stream, connection, door, behind, Framing::BinaryFrame);
                    }
                }
            }
            Protocol::Resp => {
                // The plugin calls are part of the handshake. While it waits for them, it only uses
                // a slot of its own address.
                handshaking.counts_for_address();
                let mut is_ending = self.is_ending.clone();
                let admitted = tokio::select! {
                    admitted = self.admit_resp(&peer) => admitted,
                    _ = is_ending.wait_for(|is_ending| *is_ending) => Err(CloseReason::Draining),
                };
                let connection = match admitted {
                    Ok(connection) => connection,
                    Err(reason) => {
                        let words = resp::rejection_reply(&reason);
                        handshaking.counts_again();
                        return self.turn_away(stream, remote, protocol, &reason, words).await;
                    }
                };
                drop(handshaking);
                let door = self.resp(Transport::Stream);
                self.run(stream, connection, door, Vec::new(), Framing::None);
            }
        }
    }

    fn resp(&self, transport: Transport) -> Resp {
        Resp::new(transport, self.resp_limits, self.resp_info.clone())
    }

    /// Serves an admitted connection to its end, in a task of its own that holds nothing of the
    /// handshake. This task is most of what an idle connection uses.
    fn run<S: Stream, D: Door + Send + 'static>(
        self,
        stream: S,
        connection: Arc<Connection>,
        door: D,
        came_behind: Vec<u8>,
        framing: Framing,
    ) {
        let Listener { config, live, services, is_ending, served, .. } = self;
        let (connections, stats) = (services.hub.connections().clone(), services.stats.clone());
        let id = connection.id;
        // From now on, the connection ends with its session, whatever happens.
        let session = Session::new(connection.clone(), services, framing);
        debug!(connection = id, remote = %connection.remote, "connection opened");
        connections.opened(&connection);
        connection.outbox.attach(stream.socket());
        // A drain that began before `opened` did not see this connection, so close it here.
        if live.is_draining() || *is_ending.borrow() {
            door::close_gracefully(&connection, CloseReason::ShuttingDown);
        }
        stats.accepted(match connection.encoding().is_framed() {
            true => stats::Door::Http,
            false => stats::Door::Resp,
        });
        let close_time = config.websocket.close_time;
        let open = OpenConnection::new(stream, came_behind, session, door, close_time);
        tokio::spawn(open.run(connections, stats, move |end, stats| {
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
            drop(served);
        }));
    }

    #[allow(clippy::type_complexity, reason = "lost, admitted, or to be rejected")]
    /// Performs the handshake and calls the chain. None: the request was answered in another way,
    /// or the connection was lost. An error: the connection is to be rejected.
    async fn open_websocket<S: Stream>(
        &self,
        mut stream: S,
        peer: &Peer,
        handshaking: &Slot,
    ) -> Option<Result<(S, Arc<Connection>, Upgrade), (S, CloseReason)>> {
        let http = &self.config.http;
        let remote = peer.remote;
        let shaking = handshaking.waits(handshake::read(&mut stream, http.request_bytes_max));
        let shaken = tokio::time::timeout_at(self.end_of_handshake(handshaking), shaking).await;
        handshaking.works();
        let upgrade = match shaken {
            Ok(Ok(Asked::Upgrade(upgrade))) => *upgrade,
            Ok(Ok(Asked::Health(question))) => {
                let report = self.health.report().await;
                let answering = handshake::answer_health(&mut stream, question, &report);
                let _ = tokio::time::timeout(ANSWER_TIME, answering).await;
                return None;
            }
            Ok(Ok(Asked::Answered(status))) => {
                debug!(%remote, %status, "request answered");
                return None;
            }
            Ok(Err(error)) => {
                debug!(%remote, %error, "connection lost in the handshake");
                return None;
            }
            Err(_) => {
                self.services.stats.refused(stats::Door::Http, Refused::HandshakeTimeout);
                debug!(%remote, "handshake timed out");
                let answering = handshake::answer_timeout(&mut stream);
                let _ = tokio::time::timeout(ANSWER_TIME, answering).await;
                return None;
            }
        };
        let request = &upgrade.request;
        let origins = &self.live.config().http.origins;
        let console_port = self.console_port.filter(|_| is_local(remote));
        if let Some(origin) = origins.refused(request.headers(), console_port) {
            self.services.stats.refused(stats::Door::Http, Refused::Origin);
            debug!(%remote, origin, "a page of another origin was rejected");
            let answering = handshake::answer_foreign(&mut stream, &origin);
            let _ = tokio::time::timeout(ANSWER_TIME, answering).await;
            return None;
        }
        let client = Client {
            door: ClientDoor::WebSocket,
            remote: remote.to_string(),
            path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
            headers: request
                .headers()
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect(),
        };
        let encoding = match upgrade.subprotocol {
            Subprotocol::Json | Subprotocol::NotAsked => Encoding::Json,
            Subprotocol::Resp => Resp::first_encoding(Transport::Frames),
        };
        // Do not block other handshakes while a plugin waits for an HTTP response.
        handshaking.counts_for_address();
        // Plugins are called before the upgrade is answered, but a refusal is sent after it: a
        // browser gives its page the close code, but no details of a refused upgrade.
        let admitted = self.admit(client, peer, encoding).await;
        let accepted = upgrade.accept(&mut stream).await;
        match (admitted, accepted) {
            (Ok(connection), Ok(())) => Some(Ok((stream, connection, upgrade))),
            (Ok(connection), Err(error)) => {
                debug!(%remote, %error, "connection lost in the handshake");
                drop(Session::new(connection, self.services.clone(), Framing::None));
                None
            }
            (Err(reason), _) => Some(Err((stream, reason))),
        }
    }

    async fn admit_resp(&self, peer: &Peer) -> Result<Arc<Connection>, CloseReason> {
        let client = Client {
            door: ClientDoor::Resp,
            remote: peer.remote.to_string(),
            path: String::new(),
            headers: Vec::new(),
        };
        self.admit(client, peer, Resp::first_encoding(Transport::Stream)).await
    }

    /// Calls the chain to admit this client. If the future is dropped, the client is not admitted.
    async fn admit(
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
            drop(Session::new(admitted, self.services.clone(), Framing::None));
            return Err(expiries::expired());
        }
        Ok(admitted)
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
        // Ids are assigned while the chain is locked, so that it is known for which connections
        // a plugin that is added has been called.
        let chain = self.services.middleware.chain();
        if !self.config.is_open_to_all && !is_local(peer.remote) && !chain.has_admission() {
            return Err(CloseReason::Unavailable(UNPROTECTED.to_owned()));
        }
        let connections = self.services.hub.connections();
        let connection = connections.add(encoding, peer.remote)?;
        if let Some(subject) = &peer.subject
            && !connection.set_attribute(tls::SUBJECT, Some(subject.clone()))
        {
            connections.remove(connection.id);
            let why = "the certificate's subject is over limits.attributes_bytes_max";
            return Err(CloseReason::Forbidden(why.to_owned()));
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

    async fn turn_away<S: Stream>(
        &self,
        mut stream: S,
        remote: SocketAddr,
        protocol: Protocol,
        reason: &CloseReason,
        words: Bytes,
    ) {
        self.services.stats.refused(protocol.into(), reason.into());
        debug!(%remote, reason = reason.label(), why = %reason.text(), "connection rejected");
        let telling = async {
            stream.write_all(&words).await?;
            stream.shutdown().await?;
            socket::discard_input(&mut stream).await
        };
        let _ = tokio::time::timeout(self.config.websocket.close_time, telling).await;
    }
}

/// The backlog of a listening socket, the same as tokio's.
const BACKLOG: u32 = 1024;

/// Opens the listening socket of a door.
///
/// # Errors
///
/// The address cannot be bound.
pub fn listen(address: SocketAddr, protocol: Protocol) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As tokio's `TcpListener::bind` does, so that a server that was stopped can be started again.
    if cfg!(not(windows)) {
        socket.set_reuseaddr(true)?;
    }
    prepare(SockRef::from(&socket), protocol)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether an accepted connection inherits the socket options of its listener (`sk_clone_lock` in
/// Linux' net/core/sock.c). Elsewhere they are set on each connection.
const OPTIONS_ARE_INHERITED: bool = cfg!(target_os = "linux");

/// Sets the socket options of a door.
fn prepare(socket: SockRef<'_>, protocol: Protocol) -> io::Result<()> {
    // Replies and messages are written in as few writes as possible: delaying them gains nothing.
    socket.set_tcp_nodelay(true)?;
    if protocol == Protocol::Resp {
        // As in Redis, there are no application-level pings on an idle connection: TCP detects a
        // peer that is gone.
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_TIME))?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn what_came_before_it_was_accepted_has_the_options_of_a_door() -> io::Result<()> {
        let listener = listen(([127, 0, 0, 1], 0).into(), Protocol::Resp)?;
        let _client = TcpStream::connect(listener.local_addr()?).await?;
        let (accepted, _) = listener.accept().await?;
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay()? && socket.keepalive()?);
        assert_eq!(socket.tcp_keepalive_time()?, KEEPALIVE_TIME);
        Ok(())
    }
}
