//! A well-behaved client from a third-party library, over any byte stream.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{self, Message};

/// How long a client that connects waits for an expected message. It is generous: the machine
/// may be busy, and only a test that fails takes this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The result of `future`, or an error that names `what` if it timed out.
///
/// # Errors
///
/// It timed out.
pub async fn within<T>(
    limit: Duration,
    what: impl Display,
    future: impl Future<Output = T>,
) -> Result<T> {
    tokio::time::timeout(limit, future)
        .await
        .map_err(|_| anyhow!("waited {limit:?} in vain for {what}"))
}

/// The upgrade request.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// Path and query.
    pub path: String,
    /// The sub-protocols offered, in order.
    pub subprotocols: Vec<String>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
}

impl Default for Upgrade {
    fn default() -> Upgrade {
        Upgrade { path: "/ws".to_owned(), subprotocols: Vec::new(), headers: Vec::new() }
    }
}

/// A response to an upgrade request other than 101.
#[derive(Debug)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// The part of the body that arrived with the head.
    pub body: String,
}

/// The code of a Close frame, if it has a body, and its reason.
pub type Close = (Option<u16>, String);

/// A client based on tokio-tungstenite. It answers pings whenever it reads.
pub struct Client<S> {
    stream: WebSocketStream<S>,
    /// The sub-protocol the server chose.
    pub subprotocol: Option<String>,
    /// The id of the last command of [`Client::call`].
    last_id: u64,
    patience: Duration,
}

impl Client<TcpStream> {
    /// Connects to a server that listens there, and requests an upgrade.
    ///
    /// # Errors
    ///
    /// As `open`.
    pub async fn connect(
        address: SocketAddr,
        upgrade: &Upgrade,
    ) -> Result<std::result::Result<Client<TcpStream>, Refused>> {
        let stream = within(PATIENCE, "a TCP connection", TcpStream::connect(address)).await??;
        Client::open(stream, &address.to_string(), upgrade, PATIENCE).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Sends an upgrade request, and returns a client if it is accepted.
    ///
    /// # Errors
    ///
    /// There was no response, or it is not HTTP.
    pub async fn open(
        stream: S,
        authority: &str,
        upgrade: &Upgrade,
        patience: Duration,
    ) -> Result<std::result::Result<Client<S>, Refused>> {
        let mut request = format!("ws://{authority}{}", upgrade.path).into_client_request()?;
        if !upgrade.subprotocols.is_empty() {
            let value = HeaderValue::from_str(&upgrade.subprotocols.join(", "))?;
            request.headers_mut().insert("sec-websocket-protocol", value);
        }
        for (name, value) in &upgrade.headers {
            let name = HeaderName::from_bytes(name.as_bytes())?;
            request.headers_mut().append(name, HeaderValue::from_str(value)?);
        }
        let asking = tokio_tungstenite::client_async(request, stream);
        match within(patience, "the answer to an upgrade request", asking).await? {
            Ok((stream, response)) => {
                let subprotocol = response.headers().get("sec-websocket-protocol");
                let subprotocol = subprotocol.map(|name| name.to_str().map(str::to_owned));
                let subprotocol = subprotocol.transpose()?;
                Ok(Ok(Client { stream, subprotocol, last_id: 0, patience }))
            }
            Err(tungstenite::Error::Http(response)) => Ok(Err(Refused {
                status: response.status().as_u16(),
                body: String::from_utf8_lossy(response.body().as_deref().unwrap_or_default())
                    .into_owned(),
            })),
            Err(problem) => Err(problem).context("the upgrade failed"),
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// The connection is closed, or accepts nothing in time.
    pub async fn send(&mut self, message: Message) -> Result<()> {
        within(self.patience, "the server to take a message", self.stream.send(message)).await??;
        Ok(())
    }

    /// The next message of any kind except a ping.
    ///
    /// # Errors
    ///
    /// It timed out, or the connection ended.
    pub async fn next(&mut self) -> Result<Message> {
        within(self.patience, "a message", async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Ping(_))) => {}
                    Some(Ok(message)) => return Ok(message),
                    Some(Err(problem)) => return Err(problem).context("the connection broke"),
                    None => bail!("the connection ended without a Close"),
                }
            }
        })
        .await?
    }

    /// The next message, which must be JSON text.
    ///
    /// # Errors
    ///
    /// As `next`, or the message is not JSON text.
    pub async fn next_json(&mut self) -> Result<Value> {
        match self.next().await? {
            Message::Text(text) => serde_json::from_str(&text).context("the text is not JSON"),
            other => bail!("expected JSON text, but {} came", describe(&other)),
        }
    }

    /// Sends `["VERB", …]` with an id, and returns the reply without its id. No other message may
    /// arrive before it.
    ///
    /// # Errors
    ///
    /// As `next_json`, or another message was received.
    pub async fn call(&mut self, command: Value) -> Result<Value> {
        self.last_id += 1;
        let Value::Array(mut parts) = command else { bail!("a command is an array") };
        parts.insert(0, self.last_id.into());
        self.send(Message::text(Value::Array(parts).to_string())).await?;
        let Value::Array(mut answer) = self.next_json().await? else {
            bail!("the answer is not an array")
        };
        ensure!(answer.first() == Some(&self.last_id.into()), "not the answer: {answer:?}");
        answer.remove(0);
        Ok(Value::Array(answer))
    }

    /// The Close frame, which must be the next message, and the end of the connection after it.
    ///
    /// # Errors
    ///
    /// As `next`, or something else was received.
    pub async fn next_close(&mut self) -> Result<Close> {
        let close = match self.next().await? {
            Message::Close(None) => (None, String::new()),
            Message::Close(Some(frame)) => (Some(frame.code.into()), frame.reason.to_string()),
            other => bail!("expected a Close, but {} came", describe(&other)),
        };
        match within(self.patience, "the end after a Close", self.stream.next()).await? {
            None | Some(Err(tungstenite::Error::ConnectionClosed)) => Ok(close),
            Some(Ok(message)) => bail!("{} came after the Close", describe(&message)),
            Some(Err(problem)) => Err(problem).context("the connection broke after its Close"),
        }
    }
}

/// A message as a failing test shows it.
pub fn describe(message: &Message) -> String {
    match message {
        Message::Text(text) => format!("the text {text}"),
        Message::Binary(bytes) => format!("the binary {}", bytes.escape_ascii()),
        Message::Close(None) => "a Close without a code".to_owned(),
        Message::Close(Some(frame)) => {
            format!("Close {} ({})", u16::from(frame.code), frame.reason)
        }
        other => format!("{other:?}"),
    }
}
