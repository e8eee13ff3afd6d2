//! One connection to a server: opening it, commands, messages, and the reason of its end.

use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_tungstenite::tungstenite::{self, Bytes};

use super::endpoint::{EndpointArgs, resolve};
use super::wire::{self, Goaway, Refusal, Said};
use crate::tls;

/// How long the server may send nothing at all before it is pinged. It pings every 25 seconds
/// unless its config says otherwise.
const SILENCE_MAX: Duration = Duration::from_secs(40);

/// The timeout of the reply to that ping.
const PONG_TIME: Duration = Duration::from_secs(10);

/// How long a server may take to close a connection that the client closes.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// The largest message that is accepted from the server. Its own limit for payloads is 1 MiB by
/// default.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// A connection to a server.
pub struct Client {
    stream: WebSocketStream<Box<dyn Socket>>,
    last_id: u64,
    last_received: Instant,
    is_pinged: bool,
    /// The notice, and when it was received.
    goaway: Option<(Goaway, Instant)>,
}

/// A TCP connection, encrypted or not.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// Why there is no connection, or no longer.
#[derive(Debug, Error)]
pub enum Ended {
    /// The server closed it.
    #[error("the server closed the connection: {}", closed(*code, reason))]
    Closed {
        /// The code of its Close frame.
        code: Option<u16>,
        /// The reason as text.
        reason: String,
        /// The notice that it sent before, with times from the close on.
        goaway: Option<Goaway>,
    },
    /// The response to the upgrade was another one.
    #[error("HTTP {status}: {body}")]
    Unupgraded {
        /// The HTTP status.
        status: u16,
        /// The first line of the response's body.
        body: String,
    },
    /// It could not be made, failed, or timed out.
    #[error("{0}")]
    Lost(String),
    /// There is no TLS connection because of certificates.
    #[error("{0}")]
    Untrusted(String),
    /// The server violated the protocol.
    #[error("the server does not speak switchyard.v1.json: {0}")]
    Foreign(String),
    /// The server refused a command.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

fn closed(code: Option<u16>, reason: &str) -> String {
    let code = code.map_or("no code".to_owned(), |code| code.to_string());
    if reason.is_empty() { code } else { format!("{code}, {reason}") }
}

impl From<tungstenite::Error> for Ended {
    fn from(error: tungstenite::Error) -> Ended {
        match error {
            tungstenite::Error::Http(response) => {
                let body = String::from_utf8_lossy(response.body().as_deref().unwrap_or_default());
                let body = body.lines().next().unwrap_or_default().to_owned();
                Ended::Unupgraded { status: response.status().as_u16(), body }
            }
            tungstenite::Error::Capacity(_) => Ended::Foreign(error.to_string()),
            other => Ended::Lost(other.to_string()),
        }
    }
}

impl Client {
    /// An authenticated connection.
    ///
    /// # Errors
    ///
    /// The server is not reachable within `time`, or refuses the credentials.
    pub async fn open(endpoint: &EndpointArgs, time: Duration) -> Result<Client, Ended> {
        let opening = async {
            let mut client = Client::connect(endpoint).await?;
            if let Some(credentials) = endpoint.credentials().map_err(Ended::Foreign)? {
                client.call("AUTH", &credentials).await?;
            }
            Ok(client)
        };
        match timeout(time, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Ended::Lost(format!("no answer from {} within {time:?}", endpoint.url))),
        }
    }

    async fn connect(endpoint: &EndpointArgs) -> Result<Client, Ended> {
        let request = endpoint.request().map_err(Ended::Foreign)?;
        let cannot = |error| Ended::Lost(format!("cannot connect to {}: {error}", endpoint.url));
        let addresses = resolve(&endpoint.url.authority).await.map_err(cannot)?;
        let stream = TcpStream::connect(&*addresses).await.map_err(cannot)?;
        stream.set_nodelay(true).map_err(cannot)?;
        let stream: Box<dyn Socket> = match &endpoint.url.tls_name {
            None => Box::new(stream),
            Some(name) => {
                let config = endpoint.trust.for_websocket().map_err(Ended::Untrusted)?;
                let encrypting = TlsConnector::from(config).connect(name.clone(), stream);
                Box::new(encrypting.await.map_err(|error| {
                    let problem = format!("no TLS with {}: {error}", endpoint.url);
                    match tls::advice(&problem) {
                        Some(advice) => Ended::Untrusted(problem + advice),
                        None => Ended::Lost(problem),
                    }
                })?)
            }
        };
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            // Commands are sent at once.
            .write_buffer_size(0);
        let (stream, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await?;
        Ok(Client {
            stream,
            last_id: 0,
            last_received: Instant::now(),
            is_pinged: false,
            goaway: None,
        })
    }

    /// Sends a command. Returns its id, which its reply will carry.
    ///
    /// # Errors
    ///
    /// The connection is closed.
    pub async fn say<A: Serialize>(&mut self, verb: &str, arguments: &[A]) -> Result<u64, Ended> {
        self.last_id += 1;
        let said = Message::text(wire::command(self.last_id, verb, arguments));
        match self.stream.send(said).await {
            Ok(()) => Ok(self.last_id),
            Err(error) => Err(self.why_it_ended(error).await),
        }
    }

    /// The reply to a command. Earlier messages are lost, so there may be no subscriptions.
    ///
    /// # Errors
    ///
    /// The command was refused, or the connection is closed.
    pub async fn call<A: Serialize>(
        &mut self,
        verb: &str,
        arguments: &[A],
    ) -> Result<Value, Ended> {
        let id = self.say(verb, arguments).await?;
        loop {
            match self.next().await? {
                Said::Answer(answered, result) if answered == Some(id) => return Ok(result?),
                _ => {}
            }
        }
    }

    /// The next message or reply of the server. A silent server is pinged. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The connection is closed.
    pub async fn next(&mut self) -> Result<Said, Ended> {
        loop {
            let patience = if self.is_pinged { SILENCE_MAX + PONG_TIME } else { SILENCE_MAX };
            match timeout_at(self.last_received + patience, self.stream.next()).await {
                Ok(frame) => {
                    if let Some(said) = self.receive(frame)? {
                        return Ok(said);
                    }
                }
                Err(_) if self.is_pinged => {
                    return Err(Ended::Lost(format!("the server was silent for {patience:?}")));
                }
                Err(_) => {
                    self.is_pinged = true;
                    self.stream.send(Message::Ping(Bytes::new())).await?;
                }
            }
        }
    }

    /// The same, if it has arrived already.
    ///
    /// # Errors
    ///
    /// The connection is closed.
    pub fn next_now(&mut self) -> Option<Result<Said, Ended>> {
        loop {
            let frame = self.stream.next().now_or_never()?;
            match self.receive(frame) {
                Ok(Some(said)) => return Some(Ok(said)),
                Ok(None) => {}
                Err(ended) => return Some(Err(ended)),
            }
        }
    }

    fn receive(
        &mut self,
        frame: Option<Result<Message, tungstenite::Error>>,
    ) -> Result<Option<Said>, Ended> {
        let Some(frame) = frame else {
            return Err(Ended::Lost("the connection ended without a close handshake".to_owned()));
        };
        self.last_received = Instant::now();
        self.is_pinged = false;
        let foreign = |problem: String| Err(Ended::Foreign(problem));
        match frame? {
            Message::Text(text) => match wire::parse(&text) {
                Ok(Some(Said::Goaway(goaway))) => {
                    self.goaway = Some((goaway.clone(), self.last_received));
                    Ok(Some(Said::Goaway(goaway)))
                }
                Ok(said) => Ok(said),
                Err(problem) => foreign(problem.to_string()),
            },
            Message::Binary(_) => foreign("a binary frame".to_owned()),
            Message::Close(frame) => Err(Ended::Closed {
                code: frame.as_ref().map(|frame| frame.code.into()),
                reason: frame.map(|frame| frame.reason.to_string()).unwrap_or_default(),
                goaway: self.goaway.take().map(|(goaway, at)| goaway.after(at.elapsed())),
            }),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(None),
        }
    }

    /// A server that closes the connection sends the reason first, unless the network lost it.
    async fn why_it_ended(&mut self, error: tungstenite::Error) -> Ended {
        let words = async {
            loop {
                if let Err(ended) = self.next().await {
                    return ended;
                }
            }
        };
        match timeout(CLOSE_TIME, words).await {
            Ok(closed @ Ended::Closed { .. }) => closed,
            _ => error.into(),
        }
    }

    /// Closes the connection with a close handshake, if the server takes part.
    pub async fn close(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let closing = async {
            self.stream.close(Some(frame)).await?;
            while let Some(Ok(_)) = self.stream.next().await {}
            Ok::<(), tungstenite::Error>(())
        };
        let _ = timeout(CLOSE_TIME, closing).await;
    }
}
