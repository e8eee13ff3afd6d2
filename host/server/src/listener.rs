//! Accepts the connections of a door, decrypts them where it speaks TLS, and bounds the handshakes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_util::either::Either;
use tracing::{debug, warn};

use crate::connection_setup::{ConnectionSetup, Peer};
use crate::door::{Door, Incoming};
use switchyard_config::Config;
use switchyard_config::listen::ListenAddress;
use switchyard_config::proxies::ProxyProtocol;
use switchyard_net::descriptors::{ANSWER_TIME, Accepted, Acceptor};
use switchyard_net::listening::{Connection, ListeningSocket};
use switchyard_net::proxy_protocol;
use switchyard_net::slots::Slot;
use switchyard_net::socket::{Plain, Stream};
use switchyard_net::tls::{self, Tls};
use switchyard_telemetry::log::Throttle;
use switchyard_telemetry::stats::Refused;
use switchyard_telemetry::supervise::{Ended, Supervisor};

/// Accepts the connections of a door.
pub struct Listener<D> {
    door: Arc<D>,
    setup: ConnectionSetup,
}

impl<D> Clone for Listener<D> {
    fn clone(&self) -> Listener<D> {
        Listener { door: self.door.clone(), setup: self.setup.clone() }
    }
}

impl<D: Door> Listener<D> {
    /// Accepts for this door.
    pub fn new(door: Arc<D>, setup: ConnectionSetup) -> Listener<D> {
        Listener { door, setup }
    }

    /// The supervisor of the server's tasks.
    pub fn supervisor(&self) -> Arc<Supervisor> {
        self.setup.services.supervisor.clone()
    }

    /// Accepts connections until it is dropped.
    pub async fn accept(self, socket: Arc<ListeningSocket>) -> Ended {
        let ConnectionSetup { live, services, door: state, .. } = &self.setup;
        let (stats, handshakes) = (&state.stats, &state.handshakes);
        let is_proxied = self.door.proxy_protocol(&self.setup.config) == ProxyProtocol::Required;
        let mut throttle = Throttle::default();
        let mut acceptor = Acceptor::new(socket, D::NAME, &services.reserves);
        loop {
            if !handshakes.has_room() {
                stats.record_handshake_wait();
                self.warn_of_limit(&mut throttle);
                handshakes.room().await;
            }
            let Accepted { stream, remote, is_on_reserve } =
                acceptor.accept(|| stats.record_not_accepted()).await;
            if is_on_reserve {
                let refusing = self.refuse_shortly(stream);
                let _it_took_too_long = tokio::time::timeout(ANSWER_TIME, refusing).await;
                continue;
            }
            if !OPTIONS_ARE_INHERITED
                && let Either::Left(stream) = &stream
                && let Err(error) = prepare::<D>(SockRef::from(stream))
            {
                debug!(%remote, %error, "connection lost in the handshake");
                continue;
            }
            if is_proxied && !live.config().proxies.may_send_header(remote.ip()) {
                stats.record_refused(Refused::ProxyProtocol);
                debug!(%remote, "closed: it is not in security.trusted_proxies");
                continue;
            }
            let share = self.setup.handshake_share(remote.ip());
            let Ok((handshaking, dropped)) = handshakes.take(remote.ip(), share) else {
                self.setup.over_share(remote);
                continue;
            };
            if let Some(address) = dropped {
                stats.record_refused(Refused::HandshakeDropped);
                debug!(%address, "a handshake was dropped for a new one");
                self.warn_of_limit(&mut throttle);
            }
            let reserved = services.hub.connections().ids().reserve();
            let id = handshaking.id();
            let listener = self.clone();
            let peer = Peer::new(remote, reserved);
            let serving = match stream {
                Either::Left(stream) if !is_proxied && state.tls.is_none() => {
                    tokio::spawn(listener.open_plain(stream, peer, handshaking))
                }
                stream => tokio::spawn(listener.open_wrapped(stream, peer, handshaking)),
            };
            handshakes.attach(id, serving.abort_handle());
        }
    }

    /// Logs, throttled, that the limit of pending handshakes is reached.
    fn warn_of_limit(&self, throttle: &mut Throttle) {
        if !throttle.is_due() {
            return;
        }
        let (door, max) = (D::NAME, self.setup.live.handshakes_max);
        let largest = self.setup.door.handshakes.largest(1);
        let (address, held) = largest.first().copied().unwrap_or((IpAddr::from([0; 4]), 0));
        warn!(
            door, max, %address, held,
            "handshake limit reached (http.handshakes_max): those whose clients send nothing are \
             dropped; the address has most of them"
        );
    }

    /// Serves a connection that was not made by a listener.
    pub async fn open_unaccepted<S: Stream>(self, stream: S, remote: SocketAddr) {
        let handshakes = self.setup.door.handshakes.clone();
        let Ok((handshaking, _)) = handshakes.take(remote.ip(), None) else { return };
        let id = self.setup.services.hub.connections().ids().reserve();
        self.open(stream, Peer::new(remote, id), handshaking).await;
    }

    async fn open<S: Stream>(self, stream: S, peer: Peer, handshaking: Slot) {
        let Listener { door, setup } = self;
        door.open(Incoming { stream, peer, handshaking, setup }).await;
    }

    async fn open_plain(self, stream: TcpStream, peer: Peer, handshaking: Slot) {
        if D::CLIENT_SENDS_FIRST && !self.is_used(&stream, peer.remote, &handshaking).await {
            return;
        }
        let stream = Plain::new(stream, self.setup.services.stats.clone());
        self.open(stream, peer, handshaking).await;
    }

    /// Waits for the first byte. False: the client closed the connection without sending one, or
    /// did not send one within the time of a handshake. Browsers open connections in advance, so
    /// this is no refusal.
    async fn is_used(&self, stream: &TcpStream, remote: SocketAddr, handshaking: &Slot) -> bool {
        let setup = &self.setup;
        let mut first = [0];
        let peeking = handshaking.waits(stream.peek(&mut first));
        let peeking = tokio::time::timeout_at(setup.end_of_handshake(handshaking), peeking);
        let is_used = matches!(peeking.await, Ok(Ok(1..)));
        if !is_used {
            setup.door.stats.record_unused();
            debug!(%remote, "a connection ended before its client sent a byte");
        }
        is_used
    }

    /// Reads the PROXY protocol header and performs the TLS handshake first, where the door has
    /// them.
    async fn open_wrapped(self, mut stream: Connection, mut peer: Peer, handshaking: Slot) {
        let setup = &self.setup;
        let is_proxied = self.door.proxy_protocol(&setup.config) == ProxyProtocol::Required;
        // A proxy sends its header at once.
        if !is_proxied
            && let Either::Left(stream) = &stream
            && !self.is_used(stream, peer.remote, &handshaking).await
        {
            return;
        }
        if is_proxied {
            let reading = self.read_proxy_header(&mut stream, &mut peer, &handshaking);
            if reading.await.is_none() {
                return;
            }
        }
        let stream = match stream {
            Either::Left(stream) => stream,
            // It does not leave this machine.
            Either::Right(stream) => return self.open(stream, peer, handshaking).await,
        };
        let Some(acceptor) = setup.door.tls.as_ref().map(Tls::acceptor) else {
            let stream = Plain::new(stream, setup.services.stats.clone());
            return self.open(stream, peer, handshaking).await;
        };
        let remote = peer.remote;
        let shaking = tokio::time::timeout_at(
            setup.end_of_handshake(&handshaking),
            handshaking.waits(acceptor.accept(stream)),
        );
        match shaking.await {
            Ok(Ok(stream)) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let subject = certificates.and_then(<[_]>::first).and_then(tls::subject_of);
                self.open(stream, Peer { subject, ..peer }, handshaking).await;
            }
            Ok(Err(error)) => {
                setup.door.stats.record_refused(Refused::Tls);
                debug!(%remote, %error, "no TLS handshake");
            }
            Err(_) => {
                setup.door.stats.record_refused(Refused::TlsTimeout);
                debug!(%remote, "TLS handshake timed out");
            }
        }
    }

    /// Reads the PROXY protocol header. None: there is none, or the connection is one too many of
    /// its client; that was counted.
    async fn read_proxy_header(
        &self,
        stream: &mut Connection,
        peer: &mut Peer,
        handshaking: &Slot,
    ) -> Option<()> {
        let setup = &self.setup;
        let bytes_max = setup.live.config().proxies.header_bytes_max;
        let reading = handshaking.waits(proxy_protocol::read(stream, bytes_max));
        let read = tokio::time::timeout_at(setup.end_of_handshake(handshaking), reading).await;
        let remote = peer.remote;
        match read {
            Ok(Ok(None)) => Some(()),
            Ok(Ok(Some(client))) => setup.is_from(peer, client, handshaking).ok(),
            Ok(Err(error)) => {
                setup.door.stats.record_refused(Refused::ProxyProtocol);
                debug!(%remote, %error, "closed: no PROXY protocol header");
                None
            }
            Err(_) => {
                setup.door.stats.record_refused(Refused::ProxyProtocol);
                debug!(%remote, "closed: the PROXY protocol header took too long");
                None
            }
        }
    }

    /// Answers a connection that was accepted with the reserved file descriptor, because there is
    /// no other one.
    async fn refuse_shortly(&self, mut stream: Connection) {
        if self.door.proxy_protocol(&self.setup.config) == ProxyProtocol::Required {
            let bytes_max = self.setup.live.config().proxies.header_bytes_max;
            let Ok(_) = proxy_protocol::read(&mut stream, bytes_max).await else { return };
        }
        match (stream, self.setup.door.tls.as_ref().map(Tls::acceptor)) {
            (Either::Left(stream), Some(acceptor)) => {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    self.door.refuse_shortly(&mut stream, &self.setup).await;
                }
            }
            (mut stream, _) => self.door.refuse_shortly(&mut stream, &self.setup).await,
        }
    }
}

/// Opens the listening socket of a door that has these addresses.
///
/// # Errors
///
/// The address cannot be bound.
pub fn listen<D: Door>(
    address: &ListenAddress,
    all: &[ListenAddress],
    config: &Config,
) -> io::Result<ListeningSocket> {
    ListeningSocket::open(address, all, config, prepare::<D>)
}

/// Whether an accepted connection inherits the socket options of its listener (`sk_clone_lock` in
/// Linux' net/core/sock.c). Elsewhere they are set on each connection.
const OPTIONS_ARE_INHERITED: bool = cfg!(target_os = "linux");

/// Sets the socket options of a door.
fn prepare<D: Door>(socket: SockRef<'_>) -> io::Result<()> {
    // Replies and messages are written in as few writes as possible: delaying them gains nothing.
    socket.set_tcp_nodelay(true)?;
    if let Some(time) = D::TCP_KEEPALIVE {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time))?;
    }
    Ok(())
}
