//! The HTTP request before a WebSocket, answered with an upgrade or with the reason for refusing
//! it.
//!
//! `tungstenite` parses the request and makes the response. Other requests to this port
//! (`/healthz`, the page for trying it out) get one response, and the connection is closed.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite;
use tungstenite::error::{CapacityError, Error, ProtocolError};
use tungstenite::handshake::headers::MAX_HEADERS;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::StatusCode;
use tungstenite::http::header::{
    HeaderValue, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};

use crate::health::{Report, Status};
use switchyard_protocol::json;
use switchyard_types::close::clip;

/// The path of the WebSocket.
pub const WEBSOCKET_PATH: &str = "/ws";

/// A request that was received.
pub enum Received {
    /// An upgrade, which the server can answer with `accept`.
    Upgrade(Box<Upgrade>),
    /// A health request, for `answer_health`.
    Health(Question),
    /// A request that was answered already; the connection ends.
    Answered(StatusCode),
}

/// The health endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// `/healthz`: whether the server is healthy.
    Healthy,
    /// `/readyz`: whether the server is ready for new connections.
    Ready,
}

/// A request for a WebSocket that this server can serve.
pub struct Upgrade {
    /// The request.
    pub request: Request,
    /// The sub-protocol.
    pub subprotocol: Subprotocol,
    /// The bytes after the request.
    pub received: Vec<u8>,
}

/// The sub-protocol of a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subprotocol {
    /// The client requested none: JSON, without naming it in the response.
    Unspecified,
    /// `switchyard.v1.json`.
    Json,
    /// `resp`: Redis' protocol in binary frames.
    Resp,
}

impl Subprotocol {
    const ALL: [Subprotocol; 2] = [Subprotocol::Json, Subprotocol::Resp];

    /// As written in `Sec-WebSocket-Protocol`.
    fn name(self) -> Option<&'static str> {
        match self {
            Subprotocol::Unspecified => None,
            Subprotocol::Json => Some(json::SUBPROTOCOL),
            Subprotocol::Resp => Some("resp"),
        }
    }
}

/// Reads one request. Answers it unless it is an upgrade or a health request.
///
/// # Errors
///
/// The stream broke or ended.
pub async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request_bytes_max: usize,
) -> io::Result<Received> {
    let mut bytes = Vec::with_capacity(1 << 10);
    let mut parsed = 0;
    let (length, request) = loop {
        let before = bytes.len();
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A head that arrives byte by byte is not parsed after each byte: that would take quadratic
        // time.
        let new = bytes.get(before.saturating_sub(2)..).unwrap_or_default();
        let may_be_whole = new.windows(2).any(|two| two == b"\n\n")
            || new.windows(3).any(|three| three == b"\n\r\n");
        if !may_be_whole && bytes.len() < (2 * parsed).min(request_bytes_max) {
            continue;
        }
        parsed = bytes.len();
        match Request::try_parse(&bytes) {
            Ok(Some((length, _))) if length > request_bytes_max => {}
            Ok(Some(parsed)) => break parsed,
            Ok(None) if bytes.len() < request_bytes_max => continue,
            Ok(None) => {}
            Err(Error::Capacity(CapacityError::TooManyHeaders)) => {}
            Err(Error::Protocol(ProtocolError::WrongHttpMethod)) => {
                let why = "only GET is served here\n";
                return answer(stream, StatusCode::METHOD_NOT_ALLOWED, TEXT, why).await;
            }
            Err(error) => {
                let why = format!("not an HTTP request: {error}\n");
                return answer(stream, StatusCode::BAD_REQUEST, TEXT, &why).await;
            }
        }
        let why =
            format!("the request has over {request_bytes_max} bytes or {MAX_HEADERS} headers\n");
        return answer(stream, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, TEXT, &why).await;
    };
    let received = bytes.split_off(length);
    match request.uri().path() {
        WEBSOCKET_PATH => {}
        "/" => return answer(stream, StatusCode::OK, HTML, TRY_PAGE).await,
        "/healthz" => return Ok(Received::Health(Question::Healthy)),
        "/readyz" => return Ok(Received::Health(Question::Ready)),
        _ => {
            let why = "not found; the WebSocket is at /ws\n";
            return answer(stream, StatusCode::NOT_FOUND, TEXT, why).await;
        }
    }
    if !request.headers().contains_key(UPGRADE) {
        let why = "this is a WebSocket; ask for an upgrade\n";
        return answer(stream, StatusCode::UPGRADE_REQUIRED, TEXT, why).await;
    }
    if request.headers().get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version != "13") {
        let why = "only version 13 of the WebSocket protocol is spoken here\n";
        return answer(stream, StatusCode::UPGRADE_REQUIRED, TEXT, why).await;
    }
    if let Err(error) = create_response(&request) {
        let why = format!("not a WebSocket handshake: {error}\n");
        return answer(stream, StatusCode::BAD_REQUEST, TEXT, &why).await;
    }
    let Ok(subprotocol) = choose_subprotocol(&request) else {
        let why =
            format!("no sub-protocol that this server knows; there is {}\n", json::SUBPROTOCOL);
        return answer(stream, StatusCode::BAD_REQUEST, TEXT, &why).await;
    };
    Ok(Received::Upgrade(Box::new(Upgrade { request, subprotocol, received })))
}

impl Upgrade {
    /// Accepts the upgrade.
    ///
    /// # Errors
    ///
    /// The stream broke.
    pub async fn accept<S: AsyncWrite + Unpin>(&self, stream: &mut S) -> io::Result<()> {
        let mut response = create_response(&self.request).map_err(io::Error::other)?;
        if let Some(name) = self.subprotocol.name() {
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        }
        let mut bytes = Vec::new();
        write_response(&mut bytes, &response).map_err(io::Error::other)?;
        stream.write_all(&bytes).await
    }
}

/// The first requested sub-protocol that is known; an error when there is none.
fn choose_subprotocol(request: &Request) -> Result<Subprotocol, ()> {
    let mut is_specified = false;
    for list in request.headers().get_all(SEC_WEBSOCKET_PROTOCOL) {
        for name in list.to_str().unwrap_or_default().split(',') {
            is_specified = true;
            let is_it = |known: &Subprotocol| known.name() == Some(name.trim());
            if let Some(known) = Subprotocol::ALL.into_iter().find(is_it) {
                return Ok(known);
            }
        }
    }
    if is_specified { Err(()) } else { Ok(Subprotocol::Unspecified) }
}

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// The page for trying the server out.
const TRY_PAGE: &str = include_str!("try.html");

/// Answers a request that was not for a WebSocket, and closes the connection.
///
/// # Errors
///
/// The stream broke.
pub async fn answer<S: AsyncWrite + Unpin>(
    stream: &mut S,
    status: StatusCode,
    content_type: &str,
    body: &str,
) -> io::Result<Received> {
    let upgrade = match status {
        StatusCode::UPGRADE_REQUIRED => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        StatusCode::METHOD_NOT_ALLOWED => "Allow: GET\r\n",
        _ => "",
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{upgrade}\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(Received::Answered(status))
}

/// Answers a health request, and closes the connection.
///
/// # Errors
///
/// The stream broke.
pub async fn answer_health<S: AsyncWrite + Unpin>(
    stream: &mut S,
    question: Question,
    report: &Report,
) -> io::Result<Received> {
    if question == Question::Ready && report.is_draining {
        return answer(stream, StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n").await;
    }
    let status = match report.status() {
        Status::Ok | Status::Degraded => StatusCode::OK,
        Status::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    };
    answer(stream, status, TEXT, &report.text()).await
}

/// Answers that pages of this origin may not open a WebSocket, and closes the connection.
///
/// # Errors
///
/// The stream broke.
pub async fn answer_foreign<S: AsyncWrite + Unpin>(
    stream: &mut S,
    origin: &str,
) -> io::Result<Received> {
    let shown = clip(origin, 256);
    let why = format!("pages of the origin {shown} may not connect; see http.origins\n");
    answer(stream, StatusCode::FORBIDDEN, TEXT, &why).await
}

/// Answers that the handshake timed out.
///
/// # Errors
///
/// The stream broke.
pub async fn answer_timeout<S: AsyncWrite + Unpin>(stream: &mut S) -> io::Result<Received> {
    answer(stream, StatusCode::REQUEST_TIMEOUT, TEXT, "the request took too long\n").await
}
