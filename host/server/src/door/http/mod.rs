//! HTTP, and WebSocket after an upgrade, with JSON or Redis' protocol in its messages.

mod client_address;
mod exchange;
pub mod handshake;
pub mod head;
pub mod json;
pub mod starting;
pub mod websocket;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use http::header::CONNECTION;
use http::{HeaderValue, Request, StatusCode};
use hyper::body::{Body as _, Incoming as Body};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::resp::{FramedResp, Resp, RespDoor, Transport};
use super::{Door, Incoming};
use crate::connection_setup::{ConnectionSetup, Peer, is_local};
use crate::health::{Health, Probe};
use crate::live_config::HTTP;
use crate::session::Framing;
use client_address::client_address;
use exchange::{Ended, Exchange};
use handshake::{Answer, Route, Subprotocol};
use json::Json;
use switchyard_config::proxies::ProxyProtocol;
use switchyard_config::{Config, OwnHosts};
use switchyard_hub::connections::Connection;
use switchyard_hub::encoding::Encoding;
use switchyard_middleware::bindings::{Client, Door as ClientDoor};
use switchyard_net::slots::Slot;
use switchyard_net::socket::Stream;
use switchyard_protocol::websocket as frames;
use switchyard_telemetry::stats::Refused;
use switchyard_types::close::CloseReason;
use websocket::WebSocket;

/// The door for WebSocket clients, and for a few pages.
pub struct HttpDoor {
    config: Arc<Config>,
    health: Arc<Health>,
    /// Decodes the sub-protocol `resp`.
    resp: Arc<RespDoor>,
    /// The port of the console, where it is served on loopback.
    console_port: Option<u16>,
    /// Whether only this machine can connect.
    is_on_loopback: bool,
}

impl HttpDoor {
    /// `console_port`: pages from this port of this machine may connect from it.
    pub fn new(
        config: Arc<Config>,
        health: Arc<Health>,
        resp: Arc<RespDoor>,
        console_port: Option<u16>,
    ) -> HttpDoor {
        let is_on_loopback = config.http.listen.iter().all(|address| address.open().is_none());
        HttpDoor { config, health, resp, console_port, is_on_loopback }
    }

    /// Serves a client that was admitted.
    fn serve<S: Stream>(
        &self,
        setup: ConnectionSetup,
        stream: S,
        connection: Arc<Connection>,
        subprotocol: Subprotocol,
        received: Vec<u8>,
    ) {
        let message_bytes_max = self.config.websocket.message_bytes_max;
        match subprotocol {
            Subprotocol::Json | Subprotocol::Unspecified => {
                let json = Json::new(self.config.websocket.bad_frames_max);
                let decoder = WebSocket::new(json, message_bytes_max);
                setup.serve(stream, connection, decoder, received, Framing::None);
            }
            Subprotocol::Resp => {
                let resp = FramedResp::new(self.resp.decoder(Transport::Frames));
                let decoder = WebSocket::new(resp, message_bytes_max);
                setup.serve(stream, connection, decoder, received, Framing::BinaryFrame);
            }
        }
    }
}

/// The requests of one connection, until one is for a WebSocket.
struct Handshake<'a> {
    door: &'a HttpDoor,
    setup: &'a ConnectionSetup,
    handshaking: &'a Slot,
    exchange: Exchange<'a>,
    /// The client, until the plugins are called for it.
    peer: Mutex<Option<Peer>>,
    outcome: Mutex<Option<Outcome>>,
    /// Whether the last request had a body. It is not read.
    has_body: AtomicBool,
}

/// What becomes of the connection once the upgrade was sent.
enum Outcome {
    /// The client was admitted.
    Admitted(Arc<Connection>, Subprotocol),
    /// It is to be rejected.
    Rejected(Peer, CloseReason),
}

impl Handshake<'_> {
    async fn respond(&self, request: hyper::Request<Body>) -> Result<Answer, Infallible> {
        let may_continue = self.exchange.begin();
        let (mut head, body) = request.into_parts();
        let has_body = !body.is_end_stream();
        self.has_body.store(has_body, Ordering::Relaxed);
        if let Err(why) = head::check(&mut head) {
            self.exchange.end(false);
            return Ok(handshake::bad_request(why));
        }
        let request = Request::from_parts(head, ());
        let keeps_alive = may_continue && handshake::keeps_alive(request.headers());
        let health = &self.door.health;
        let (mut answer, is_probe) = match handshake::route(request.method(), request.uri().path())
        {
            Ok(Route::Page) => (handshake::page(), false),
            Ok(Route::Probe(probe)) => (handshake::verdict(health.verdict(probe).await), true),
            Ok(Route::Options(allowed)) => {
                (handshake::options(&health.verdict(Probe::Ready).await, allowed), true)
            }
            // After the upgrade, the body would be read as frames.
            Ok(Route::WebSocket) if has_body => {
                (handshake::bad_request("a request for a WebSocket has no body"), false)
            }
            Ok(Route::WebSocket) => (self.upgrade(&request).await, false),
            Err(refused) => (*refused, false),
        };
        let keeps_alive = keeps_alive && is_probe;
        if keeps_alive {
            answer.headers_mut().remove(CONNECTION);
        }
        debug!(status = %answer.status(), "request answered");
        self.exchange.end(keeps_alive);
        Ok(answer)
    }

    /// Checks a request for a WebSocket and calls the chain. The response is an upgrade if there is
    /// an outcome then.
    async fn upgrade(&self, request: &Request<()>) -> Answer {
        let setup = self.setup;
        let config = setup.live.config();
        if setup.live.is_draining() {
            return self.draining(&config);
        }
        let (subprotocol, accepted) = match handshake::upgrade(request) {
            Ok(accepted) => accepted,
            Err(refused) => return *refused,
        };
        let Some(mut peer) = self.peer.lock().take() else {
            let why = "a connection is upgraded once\n";
            return handshake::answer(StatusCode::BAD_REQUEST, handshake::TEXT, why);
        };
        if let Some(header) = &config.http.address_header {
            let values = request.headers().get_all(&header.name).into_iter();
            let values = values.map(HeaderValue::as_bytes);
            let client = client_address(peer.remote, header, values, &config.proxies);
            if setup.is_from(&mut peer, client, self.handshaking).is_err() {
                return handshake::over_share();
            }
        }
        let remote = peer.remote;
        let console_port = self.door.console_port.filter(|_| is_local(remote));
        let own = match self.door.is_on_loopback {
            true => OwnHosts::Loopback,
            false => OwnHosts::Any,
        };
        if let Some(origin) = config.http.origins.refused(request.headers(), own, console_port) {
            setup.door.stats.record_refused(Refused::Origin);
            debug!(%remote, origin, "a page of another origin was rejected");
            return handshake::foreign(&origin);
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
        let encoding = match subprotocol {
            Subprotocol::Json | Subprotocol::Unspecified => Encoding::JSON,
            Subprotocol::Resp => Resp::first_encoding(Transport::Frames),
        };
        // Do not block other handshakes while a plugin waits for an HTTP response.
        self.handshaking.counts_for_address();
        // Plugins are called before the upgrade is answered, but a refusal is sent after it: a
        // browser gives its page the close code, but no details of a refused upgrade.
        let admitted = setup.unless_ending(setup.admit(client, &peer, encoding)).await;
        let outcome = match admitted {
            Some(Ok(connection)) => Outcome::Admitted(connection, subprotocol),
            None | Some(Err(CloseReason::Draining)) => return self.draining(&config),
            Some(Err(reason)) => Outcome::Rejected(peer, reason),
        };
        *self.outcome.lock() = Some(outcome);
        accepted
    }

    /// The response of a server that accepts no new connections: before the upgrade, so that a proxy
    /// passes the request on to another node.
    fn draining(&self, config: &Config) -> Answer {
        self.setup.door.stats.record_refused((&CloseReason::Draining).into());
        handshake::draining(config.shutdown.time_max())
    }
}

impl Drop for Handshake<'_> {
    /// A client that was admitted, and whose connection was lost before it was served.
    fn drop(&mut self) {
        if let Some(Outcome::Admitted(connection, _)) = self.outcome.get_mut().take() {
            self.setup.forget(connection);
        }
    }
}

impl Door for HttpDoor {
    const NAME: &'static str = HTTP;
    const CLIENT_SENDS_FIRST: bool = true;

    fn proxy_protocol(&self, config: &Config) -> ProxyProtocol {
        config.http.proxy_protocol
    }

    async fn open<S: Stream>(&self, incoming: Incoming<S>) {
        let Incoming { stream, peer, handshaking, setup } = incoming;
        let remote = peer.remote;
        let handshake = Handshake {
            door: self,
            setup: &setup,
            handshaking: &handshaking,
            exchange: Exchange::new(&handshaking, self.config.http.handshake_time),
            peer: Mutex::new(Some(peer)),
            outcome: Mutex::default(),
            has_body: AtomicBool::new(false),
        };
        let respond = |request| handshake.respond(request).boxed();
        let running = handshake.exchange.run(stream, self.config.http.request_bytes_max, respond);
        let (stream, received) = match running.await {
            Ended::Answered(stream, received) => (stream, received),
            Ended::TimedOut => {
                setup.door.stats.record_refused(Refused::HandshakeTimeout);
                debug!(%remote, "handshake timed out");
                return;
            }
            Ended::Lost => {
                debug!(%remote, "connection lost in the handshake");
                return;
            }
        };
        let outcome = handshake.outcome.lock().take();
        let has_body = handshake.has_body.load(Ordering::Relaxed);
        drop(handshake);
        match outcome {
            None if has_body => {
                handshaking.idles(Duration::ZERO);
                exchange::close_unread(stream).await;
            }
            None => exchange::close(stream).await,
            Some(Outcome::Rejected(peer, reason)) => {
                handshaking.counts_again();
                setup.reject(stream, &peer, &reason, frames::close(&reason)).await;
            }
            Some(Outcome::Admitted(connection, subprotocol)) => {
                drop(handshaking);
                self.serve(setup, stream, connection, subprotocol, received);
            }
        }
    }

    /// A health probe gets the state of the server, everything else a refusal.
    async fn refuse_shortly<S: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        stream: &mut S,
        setup: &ConnectionSetup,
    ) {
        let respond = |request: hyper::Request<Body>| {
            async move {
                let (mut head, _body) = request.into_parts();
                if let Err(why) = head::check(&mut head) {
                    return Ok(handshake::bad_request(why));
                }
                Ok(match handshake::route(&head.method, head.uri.path()) {
                    Ok(Route::Probe(probe)) => handshake::verdict(self.health.verdict(probe).await),
                    Ok(Route::Options(allowed)) => {
                        handshake::options(&self.health.verdict(Probe::Ready).await, allowed)
                    }
                    Ok(Route::Page) => handshake::page(),
                    Ok(Route::WebSocket) => {
                        setup.door.stats.record_refused((&CloseReason::OverCapacity).into());
                        let why = "the server has no file descriptors left; try again later\n";
                        let status = StatusCode::SERVICE_UNAVAILABLE;
                        handshake::answer(status, handshake::TEXT, why)
                    }
                    Err(refused) => *refused,
                })
            }
            .boxed()
        };
        exchange::answer_one(stream, self.config.http.request_bytes_max, respond).await;
    }
}
