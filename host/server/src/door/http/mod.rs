//! HTTP, and WebSocket after an upgrade, with JSON or Redis' protocol in its messages.

pub mod handshake;
pub mod json;
pub mod websocket;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tracing::debug;

use super::resp::{FramedResp, Resp, RespDoor, Transport};
use super::{Door, Incoming};
use crate::connection_setup::{ConnectionSetup, Peer, is_local};
use crate::health::Health;
use crate::live_config::HTTP;
use crate::session::Framing;
use handshake::{Received, Subprotocol, Upgrade};
use json::Json;
use switchyard_config::Config;
use switchyard_hub::connections::Connection;
use switchyard_hub::encoding::Encoding;
use switchyard_middleware::bindings::{Client, Door as ClientDoor};
use switchyard_net::slots::Slot;
use switchyard_net::socket::Stream;
use switchyard_protocol::websocket as frames;
use switchyard_telemetry::stats::Refused;
use switchyard_types::close::CloseReason;
use websocket::WebSocket;

/// How long a client may take to read a reply that ends its connection.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// The door for WebSocket clients, and for a few pages.
pub struct HttpDoor {
    config: Arc<Config>,
    health: Arc<Health>,
    /// Decodes the sub-protocol `resp`.
    resp: Arc<RespDoor>,
    /// The port of the console, where it is served on loopback.
    console_port: Option<u16>,
}

impl HttpDoor {
    /// `console_port`: pages from this port of this machine may connect from it.
    pub fn new(
        config: Arc<Config>,
        health: Arc<Health>,
        resp: Arc<RespDoor>,
        console_port: Option<u16>,
    ) -> HttpDoor {
        HttpDoor { config, health, resp, console_port }
    }

    /// Performs the handshake and calls the chain. None: the request was answered in another way,
    /// or the connection was lost. An error: the connection is to be rejected.
    async fn upgrade<S: Stream>(
        &self,
        stream: &mut S,
        peer: &Peer,
        handshaking: &Slot,
        setup: &ConnectionSetup,
    ) -> Option<Result<(Arc<Connection>, Upgrade), CloseReason>> {
        let remote = peer.remote;
        let reading = handshake::read(stream, self.config.http.request_bytes_max);
        let reading = handshaking.waits(reading);
        let read = tokio::time::timeout_at(setup.end_of_handshake(handshaking), reading).await;
        handshaking.works();
        let upgrade = match read {
            Ok(Ok(Received::Upgrade(upgrade))) => *upgrade,
            Ok(Ok(Received::Health(question))) => {
                let report = self.health.report().await;
                let answering = handshake::answer_health(stream, question, &report);
                let _ = tokio::time::timeout(ANSWER_TIME, answering).await;
                return None;
            }
            Ok(Ok(Received::Answered(status))) => {
                debug!(%remote, %status, "request answered");
                return None;
            }
            Ok(Err(error)) => {
                debug!(%remote, %error, "connection lost in the handshake");
                return None;
            }
            Err(_) => {
                setup.door.stats.record_refused(Refused::HandshakeTimeout);
                debug!(%remote, "handshake timed out");
                let answering = handshake::answer_timeout(stream);
                let _ = tokio::time::timeout(ANSWER_TIME, answering).await;
                return None;
            }
        };
        let request = &upgrade.request;
        let origins = &setup.live.config().http.origins;
        let console_port = self.console_port.filter(|_| is_local(remote));
        if let Some(origin) = origins.refused(request.headers(), console_port) {
            setup.door.stats.record_refused(Refused::Origin);
            debug!(%remote, origin, "a page of another origin was rejected");
            let answering = handshake::answer_foreign(stream, &origin);
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
            Subprotocol::Json | Subprotocol::Unspecified => Encoding::JSON,
            Subprotocol::Resp => Resp::first_encoding(Transport::Frames),
        };
        // Do not block other handshakes while a plugin waits for an HTTP response.
        handshaking.counts_for_address();
        // Plugins are called before the upgrade is answered, but a refusal is sent after it: a
        // browser gives its page the close code, but no details of a refused upgrade.
        let admitted = setup.admit(client, peer, encoding).await;
        let accepted = upgrade.accept(stream).await;
        match (admitted, accepted) {
            (Ok(connection), Ok(())) => Some(Ok((connection, upgrade))),
            (Ok(connection), Err(error)) => {
                debug!(%remote, %error, "connection lost in the handshake");
                setup.forget(connection);
                None
            }
            (Err(reason), _) => Some(Err(reason)),
        }
    }
}

impl Door for HttpDoor {
    const NAME: &'static str = HTTP;

    async fn open<S: Stream>(&self, incoming: Incoming<S>) {
        let Incoming { mut stream, peer, handshaking, setup } = incoming;
        let upgrading = self.upgrade(&mut stream, &peer, &handshaking, &setup);
        let upgraded = setup.unless_ending(upgrading).await.flatten();
        let (connection, upgrade) = match upgraded {
            Some(Ok(upgraded)) => upgraded,
            Some(Err(reason)) => {
                handshaking.counts_again();
                return setup.reject(stream, &peer, &reason, frames::close(&reason)).await;
            }
            None => return,
        };
        drop(handshaking);
        let message_bytes_max = self.config.websocket.message_bytes_max;
        let received = upgrade.received;
        match upgrade.subprotocol {
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

    /// A health probe gets the state of the server, everything else a refusal.
    async fn refuse_shortly<S: AsyncRead + AsyncWrite + Unpin + Send>(
        &self,
        stream: &mut S,
        setup: &ConnectionSetup,
    ) {
        match handshake::read(stream, self.config.http.request_bytes_max).await {
            Ok(Received::Health(question)) => {
                let report = self.health.report().await;
                let _gone = handshake::answer_health(stream, question, &report).await;
            }
            Ok(Received::Upgrade(_)) => {
                setup.door.stats.record_refused((&CloseReason::OverCapacity).into());
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let why = "the server has no file descriptors left; try again later\n";
                let _gone = handshake::answer(stream, status, handshake::TEXT, why).await;
            }
            Ok(Received::Answered(_)) | Err(_) => {}
        }
    }
}
