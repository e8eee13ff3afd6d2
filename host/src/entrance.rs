//! Whom the server lets in: accepting, shaking hands, asking the chain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tracing::{debug, warn};

use crate::close::CloseReason;
use crate::config::Config;
use crate::connection::{End, OpenConnection};
use crate::door::json::Json;
use crate::door::resp::info::ServerInfo;
use crate::door::resp::{self, FramedResp, Resp, Transport};
use crate::door::websocket::WebSocket;
use crate::door::{self, Door};
use crate::handshake::{self, Asked, Subprotocol, Upgrade};
use crate::hub::connections::Connection;
use crate::hub::encoding::Encoding;
use crate::middleware::bindings::{Client, Door as ClientDoor};
use crate::protocol::command::{NOAUTH, Refusal, UNAVAILABLE};
use crate::protocol::resp::RequestLimits;
use crate::protocol::websocket;
use crate::session::{Framing, Services, Session};
use crate::stats::count;

/// How long to wait before accepting again after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take to take an answer that ends its connection.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Redis' `tcp-keepalive`.
const KEEPALIVE_TIME: Duration = Duration::from_secs(300);

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP, and WebSocket after an upgrade.
    Http,
    /// Redis' protocol.
    Resp,
}

/// Lets clients in.
#[derive(Clone)]
pub struct Entrance {
    config: Arc<Config>,
    services: Services,
    resp_limits: RequestLimits,
    resp_info: ServerInfo,
    is_ending: watch::Receiver<bool>,
    /// Held by each connection while it is served.
    served: mpsc::Sender<()>,
}

impl Entrance {
    /// An entrance that nobody has come through. Each connection holds a clone of
    /// `served` until it ends. Once `is_ending` says so, handshakes end.
    pub fn new(
        config: Arc<Config>,
        services: Services,
        resp: Option<&TcpListener>,
        is_ending: watch::Receiver<bool>,
        served: mpsc::Sender<()>,
    ) -> Entrance {
        let port = resp.and_then(|resp| resp.local_addr().ok()).map_or(0, |local| local.port());
        let request_bytes_max = match &config.resp {
            Some(resp) => resp.request_bytes_max,
            None => config.websocket.message_bytes_max,
        };
        Entrance {
            resp_limits: RequestLimits {
                bulk_bytes_max: request_bytes_max.min(RequestLimits::default().bulk_bytes_max),
                request_bytes_max,
                ..RequestLimits::default()
            },
            resp_info: ServerInfo::new(&config, port, request_bytes_max),
            config,
            services,
            is_ending,
            served,
        }
    }

    /// Takes connections until it is dropped.
    pub async fn accept(self, listener: TcpListener, protocol: Protocol) {
        // One for each listener, so that one door cannot be held shut at another.
        let handshakes = Arc::new(Semaphore::new(self.config.http.handshakes_max));
        loop {
            let permit = handshakes.clone().acquire_owned().await.expect("it is never closed");
            match listener.accept().await {
                Ok((stream, remote)) => {
                    tokio::spawn(self.clone().serve(stream, remote, protocol, permit));
                }
                Err(error) => {
                    // Out of files, most likely: someone has to go first.
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(
        self,
        stream: TcpStream,
        remote: SocketAddr,
        protocol: Protocol,
        handshaking: OwnedSemaphorePermit,
    ) {
        // Replies and messages are written as whole as they can be: nothing is
        // gained by waiting for more.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%remote, %error, "connection lost in the handshake");
            return;
        }
        match protocol {
            // On the heap for as long as it takes, so that the task of a
            // connection stays small.
            Protocol::Http => {
                let mut is_ending = self.is_ending.clone();
                let opened = tokio::select! {
                    opened = Box::pin(self.open_websocket(stream, remote)) => opened,
                    _ = is_ending.wait_for(|is_ending| *is_ending) => None,
                };
                drop(handshaking);
                let (stream, connection, upgrade) = match opened {
                    Some(Ok(opened)) => opened,
                    Some(Err((stream, reason))) => {
                        let words = websocket::close(&reason);
                        return self.turn_away(stream, remote, &reason, words).await;
                    }
                    None => return,
                };
                let websocket = &self.config.websocket;
                let behind = upgrade.came_behind;
                match upgrade.subprotocol {
                    Subprotocol::Json | Subprotocol::NotAsked => {
                        let json = Json::new(websocket.bad_frames_max);
                        let door = WebSocket::new(json, websocket.message_bytes_max);
                        self.run(stream, connection, door, behind, Framing::None).await;
                    }
                    Subprotocol::Resp => {
                        let resp = FramedResp::new(self.resp(Transport::Frames));
                        let door = WebSocket::new(resp, websocket.message_bytes_max);
                        self.run(stream, connection, door, behind, Framing::BinaryFrame).await;
                    }
                }
            }
            Protocol::Resp => {
                // Nothing is said on an idle connection, as in Redis: whether the
                // peer is still there is left to TCP.
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME);
                if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
                    debug!(%remote, %error, "connection lost in the handshake");
                    return;
                }
                drop(handshaking);
                let connection = match self.admit_resp(remote) {
                    Ok(connection) => connection,
                    Err(reason) => {
                        let words = resp::unwelcome(&reason);
                        return self.turn_away(stream, remote, &reason, words).await;
                    }
                };
                let door = self.resp(Transport::Stream);
                self.run(stream, connection, door, Vec::new(), Framing::None).await;
            }
        }
    }

    fn resp(&self, transport: Transport) -> Resp {
        Resp::new(transport, self.resp_limits, self.resp_info.clone())
    }

    /// Serves a connection that was let in, to its end.
    async fn run<D: Door>(
        self,
        stream: TcpStream,
        connection: Arc<Connection>,
        door: D,
        came_behind: Vec<u8>,
        framing: Framing,
    ) {
        let Entrance { config, services, is_ending, served, .. } = self;
        let (connections, stats) = (services.hub.connections().clone(), services.stats.clone());
        let id = connection.id;
        debug!(connection = id, remote = %connection.remote, "connection opened");
        connections.opened(&connection);
        if *is_ending.borrow() {
            door::farewell(&connection);
        }
        drop(is_ending);
        count(&stats.connections);
        let session = Session::new(connection, services, framing);
        let open =
            OpenConnection::new(stream, came_behind, session, door, config.websocket.close_time);
        drop(config);
        match open.run(&connections, &stats).await {
            End::Closed(reason @ CloseReason::SlowConsumer { outbox_bytes }) => {
                count(&stats.outbox_overflows);
                warn!(connection = id, outbox_bytes, reason = reason.label(), "connection closed");
            }
            End::Closed(reason) => {
                let code = reason.code();
                debug!(connection = id, reason = reason.label(), code, "connection closed");
            }
            End::Gone(error) => debug!(connection = id, %error, "connection lost"),
        }
        drop(served);
    }

    #[allow(clippy::type_complexity, reason = "gone, let in, or to be turned away")]
    /// Shakes hands and asks the chain. None: it was answered otherwise, or is
    /// gone. An error: it is to be turned away.
    async fn open_websocket(
        &self,
        mut stream: TcpStream,
        remote: SocketAddr,
    ) -> Option<Result<(TcpStream, Arc<Connection>, Upgrade), (TcpStream, CloseReason)>> {
        let http = &self.config.http;
        let ailment = || self.services.ailment();
        let shaking = handshake::read(&mut stream, http.request_bytes_max, ailment);
        let upgrade = match tokio::time::timeout(http.handshake_time, shaking).await {
            Ok(Ok(Asked::Upgrade(upgrade))) => *upgrade,
            Ok(Ok(Asked::Answered(status))) => {
                debug!(%remote, %status, "request answered");
                return None;
            }
            Ok(Err(error)) => {
                debug!(%remote, %error, "connection lost in the handshake");
                return None;
            }
            Err(_) => {
                debug!(%remote, "handshake timed out");
                let answering = handshake::answer_timeout(&mut stream);
                let _ = tokio::time::timeout(ANSWER_TIME, answering).await;
                return None;
            }
        };
        let request = &upgrade.request;
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
        // Asked before the upgrade is answered; told after it, because a browser
        // shows its page a close code, and of a refused upgrade nothing.
        let admitted = self.admit(&client, remote, encoding);
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

    fn admit_resp(&self, remote: SocketAddr) -> Result<Arc<Connection>, CloseReason> {
        let client = Client {
            door: ClientDoor::Resp,
            remote: remote.to_string(),
            path: String::new(),
            headers: Vec::new(),
        };
        self.admit(&client, remote, Resp::first_encoding(Transport::Stream))
    }

    /// Asks the chain whether this client may connect.
    fn admit(
        &self,
        client: &Client,
        remote: SocketAddr,
        encoding: Encoding,
    ) -> Result<Arc<Connection>, CloseReason> {
        // Ids are given while the chain is held, so that a plugin that is added
        // knows which connections it has been asked about.
        let chain = self.services.middleware.chain();
        let connections = self.services.hub.connections();
        let connection = connections.add(encoding, remote).ok_or(CloseReason::OverCapacity)?;
        match chain.connect(connection.id, client) {
            Ok(()) => Ok(connection),
            Err(refusal) => {
                connections.remove(connection.id);
                Err(unwanted(&refusal))
            }
        }
    }

    async fn turn_away(
        &self,
        mut stream: TcpStream,
        remote: SocketAddr,
        reason: &CloseReason,
        words: Bytes,
    ) {
        count(&self.services.stats.rejected_connections);
        debug!(%remote, reason = reason.label(), why = %reason.text(), "connection turned away");
        let telling = async {
            stream.write_all(&words).await?;
            stream.shutdown().await?;
            // Read until it is gone, lest the words are lost in a reset.
            let mut sink = [0; 1024];
            while stream.read(&mut sink).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(self.config.websocket.close_time, telling).await;
    }
}

fn unwanted(refusal: &Refusal) -> CloseReason {
    let why = match &refusal.by {
        Some(plugin) => format!("{plugin}: {}", refusal.message),
        None => refusal.message.clone().into_owned(),
    };
    match &*refusal.code {
        NOAUTH => CloseReason::Unauthorised(why),
        UNAVAILABLE => CloseReason::Unavailable(why),
        _ => CloseReason::Forbidden(why),
    }
}
