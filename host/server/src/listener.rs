//! Accepts the connections of a door, decrypts them where it speaks TLS, and bounds the handshakes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::connection_setup::{ConnectionSetup, Peer};
use crate::door::{Door, Incoming};
use switchyard_net::descriptors::{ANSWER_TIME, Accepted, Acceptor};
use switchyard_net::slots::{OverShare, Slot};
use switchyard_net::socket::{Plain, Stream};
use switchyard_net::tls::{self, Tls};
use switchyard_telemetry::log::Throttle;
use switchyard_telemetry::stats::Refused;
use switchyard_telemetry::supervise::Ended;

/// Divides the handshake share of an address that is at its connection limit: its clients still
/// receive the reason, a few at a time.
const FULL_ADDRESS_PART: usize = 8;

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

    /// Accepts connections until it is dropped.
    pub async fn accept(self, socket: Arc<TcpListener>) -> Ended {
        let ConnectionSetup { live, services, door: state, .. } = &self.setup;
        let (stats, handshakes) = (&state.stats, &state.handshakes);
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
            if !OPTIONS_ARE_INHERITED && let Err(error) = prepare::<D>(SockRef::from(&stream)) {
                debug!(%remote, %error, "connection lost in the handshake");
                continue;
            }
            let left = services.hub.connections().left_for(remote.ip());
            // How many handshakes may be pending from the address; none: it is not counted.
            let share = left.map(|left| {
                let share = live.config().limits.handshakes_per_address_max;
                if left > 0 { share } else { (share / FULL_ADDRESS_PART).max(1) }
            });
            let (handshaking, dropped) = match handshakes.take(remote.ip(), share) {
                Ok(slot) => slot,
                Err(OverShare) => {
                    stats.record_refused(Refused::HandshakeShare);
                    debug!(%remote, "closed: limits.handshakes_per_address_max");
                    continue;
                }
            };
            if let Some(address) = dropped {
                stats.record_refused(Refused::HandshakeDropped);
                debug!(%address, "a handshake was dropped for a new one");
                self.warn_of_limit(&mut throttle);
            }
            let id = handshaking.id();
            let listener = self.clone();
            let serving = match state.tls.as_ref().map(Tls::acceptor) {
                None => {
                    let peer = Peer { remote, subject: None };
                    let stream = Plain::new(stream, services.stats.clone());
                    tokio::spawn(listener.open(stream, peer, handshaking))
                }
                Some(acceptor) => {
                    tokio::spawn(listener.open_tls(acceptor, stream, remote, handshaking))
                }
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
        self.open(stream, Peer { remote, subject: None }, handshaking).await;
    }

    async fn open<S: Stream>(self, stream: S, peer: Peer, handshaking: Slot) {
        let Listener { door, setup } = self;
        door.open(Incoming { stream, peer, handshaking, setup }).await;
    }

    /// Performs the TLS handshake first.
    async fn open_tls(
        self,
        acceptor: TlsAcceptor,
        stream: TcpStream,
        remote: SocketAddr,
        handshaking: Slot,
    ) {
        let setup = &self.setup;
        let shaking = tokio::time::timeout_at(
            setup.end_of_handshake(&handshaking),
            handshaking.waits(acceptor.accept(stream)),
        );
        let Some(shaken) = setup.unless_ending(shaking).await else { return };
        match shaken {
            Ok(Ok(stream)) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let subject = certificates.and_then(<[_]>::first).and_then(tls::subject_of);
                self.open(stream, Peer { remote, subject }, handshaking).await;
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

    /// Answers a connection that was accepted with the reserved file descriptor, because there is
    /// no other one.
    async fn refuse_shortly(&self, mut stream: TcpStream) {
        match self.setup.door.tls.as_ref().map(Tls::acceptor) {
            None => self.door.refuse_shortly(&mut stream, &self.setup).await,
            Some(acceptor) => {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    self.door.refuse_shortly(&mut stream, &self.setup).await;
                }
            }
        }
    }
}

/// The backlog of a listening socket, the same as tokio's.
const BACKLOG: u32 = 1024;

/// Opens the listening socket of a door.
///
/// # Errors
///
/// The address cannot be bound.
pub fn listen<D: Door>(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As tokio's `TcpListener::bind` does, so that a server that was stopped can be started again.
    if cfg!(not(windows)) {
        socket.set_reuseaddr(true)?;
    }
    prepare::<D>(SockRef::from(&socket))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
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
