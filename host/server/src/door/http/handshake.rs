//! What is served at which path, and the request before a WebSocket: the response is the upgrade, or
//! the reason for refusing it.
//!
//! `tungstenite` checks the request of RFC 6455 and makes the response. This module knows requests
//! and responses, and neither sockets nor the server.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use tokio_tungstenite::tungstenite::handshake::server::create_response;

use crate::health::{Probe, Verdict};
use switchyard_protocol::json;
use switchyard_types::close::{CloseReason, clip};

/// The path of the WebSocket.
pub const WEBSOCKET_PATH: &str = "/ws";

/// A response with its whole body.
pub type Answer = Response<Full<Bytes>>;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The page for trying the server out.
    Page,
    /// A WebSocket.
    WebSocket,
    /// A health probe.
    Probe(Probe),
    /// The methods of a path, which are these. HAProxy's health check asks for them by default, with
    /// the path `/`, so it is answered as `/readyz`.
    Options(&'static str),
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

/// What this method and path are for. One slash at the end of the path makes no difference.
///
/// # Errors
///
/// Nothing: the response says why.
pub fn route(method: &Method, path: &str) -> Result<Route, Box<Answer>> {
    let (route, allowed) = match path.strip_suffix('/').unwrap_or(path) {
        "" => (Route::Page, "GET, HEAD, OPTIONS"),
        WEBSOCKET_PATH => (Route::WebSocket, "GET, OPTIONS"),
        path => match Probe::of_path(path) {
            Some(probe) => (Route::Probe(probe), "GET, HEAD, OPTIONS"),
            None => {
                let why = "not found; the WebSocket is at /ws\n";
                return Err(Box::new(answer(StatusCode::NOT_FOUND, TEXT, why)));
            }
        },
    };
    match *method {
        Method::GET => Ok(route),
        Method::HEAD if route != Route::WebSocket => Ok(route),
        Method::OPTIONS => Ok(Route::Options(allowed)),
        _ => {
            let why = format!("this is served to {allowed}\n");
            let mut answer = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, why);
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            Err(Box::new(answer))
        }
    }
}

/// The sub-protocol of a request for a WebSocket, and the response that accepts it.
///
/// # Errors
///
/// It is refused: the response says why.
pub fn upgrade(request: &Request<()>) -> Result<(Subprotocol, Answer), Box<Answer>> {
    let refuse = |status, why: String| Err(Box::new(answer(status, TEXT, why)));
    // RFC 9110, section 7.8: a server ignores the header in an HTTP/1.0 request.
    if !request.headers().contains_key(UPGRADE) || request.version() == Version::HTTP_10 {
        let why = "this is a WebSocket; ask for an upgrade\n";
        return refuse(StatusCode::UPGRADE_REQUIRED, why.to_owned());
    }
    if request.headers().get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version != "13") {
        let why = "only version 13 of the WebSocket protocol is spoken here\n";
        return refuse(StatusCode::UPGRADE_REQUIRED, why.to_owned());
    }
    let mut accepted = match create_response(request) {
        Ok(accepted) => accepted.map(|()| Full::default()),
        Err(error) => {
            let why = format!("not a WebSocket handshake: {error}\n");
            return refuse(StatusCode::BAD_REQUEST, why);
        }
    };
    let Ok(subprotocol) = choose_subprotocol(request.headers()) else {
        let why =
            format!("no sub-protocol that this server knows; there is {}\n", json::SUBPROTOCOL);
        return refuse(StatusCode::BAD_REQUEST, why);
    };
    if let Some(name) = subprotocol.name() {
        accepted.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((subprotocol, accepted))
}

/// The first requested sub-protocol that is known; an error when there is none.
fn choose_subprotocol(headers: &HeaderMap) -> Result<Subprotocol, ()> {
    let mut is_specified = false;
    for list in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
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
pub fn page() -> Answer {
    answer(StatusCode::OK, HTML, include_str!("try.html"))
}

/// A response after which the connection is closed.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let body = body.into();
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, body.len().into());
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade, close"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    *answer.body_mut() = Full::new(body);
    answer
}

/// The response to a request that is not as RFC 9112 requires.
pub fn bad_request(why: &str) -> Answer {
    answer(StatusCode::BAD_REQUEST, TEXT, format!("{why}\n"))
}

/// The response to a health probe.
pub fn verdict(verdict: Verdict) -> Answer {
    let status = if verdict.is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer(status, TEXT, verdict.text)
}

/// The response to a request for the methods of a path: readiness, without a body.
pub fn options(verdict: &Verdict, allowed: &'static str) -> Answer {
    let mut answer = match verdict.is_good {
        true => answer(StatusCode::OK, TEXT, ""),
        false => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, verdict.text.clone()),
    };
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// The response to a request for a WebSocket while the server accepts no new connections. After
/// `time`, another server may answer.
pub fn draining(time: Duration) -> Answer {
    let why = format!("{}\n", CloseReason::Draining.text());
    let mut answer = answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, why);
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    answer.headers_mut().insert(RETRY_AFTER, seconds.max(1).into());
    answer
}

/// The response to a page of an origin that may not open a WebSocket.
pub fn foreign(origin: &str) -> Answer {
    let shown = clip(origin, 256);
    let why = format!("pages of the origin {shown} may not connect; see http.origins\n");
    answer(StatusCode::FORBIDDEN, TEXT, why)
}

/// The response to a client whose address has its share of handshakes.
pub fn over_share() -> Answer {
    let why = "too many handshakes of this address are under way\n";
    answer(StatusCode::TOO_MANY_REQUESTS, TEXT, why)
}

/// Whether the client asks to keep the connection for more requests.
pub fn keeps_alive(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|list| list.split(','))
        .any(|option| option.trim().eq_ignore_ascii_case("keep-alive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_at_the_end_makes_no_difference() {
        for (path, expected) in [
            ("/", Route::Page),
            ("/ws", Route::WebSocket),
            ("/ws/", Route::WebSocket),
            ("/livez", Route::Probe(Probe::Alive)),
            ("/livez/", Route::Probe(Probe::Alive)),
            ("/readyz/", Route::Probe(Probe::Ready)),
            ("/healthz/", Route::Probe(Probe::Healthy)),
        ] {
            assert_eq!(route(&Method::GET, path).ok(), Some(expected), "{path}");
        }
        for path in ["/w", "/wss", "/ws/x", "/ws//", "/livezx", "/healthz/x", "//", "//x", "*"] {
            let refused = route(&Method::GET, path).expect_err(path);
            assert_eq!(refused.status(), StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[test]
    fn other_methods_are_refused_with_those_that_are_served() {
        let refused = |method: Method, path| {
            let refused = route(&method, path).expect_err(path);
            assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            refused.headers()[ALLOW].to_str().expect("text").to_owned()
        };
        assert_eq!(refused(Method::HEAD, "/ws"), "GET, OPTIONS");
        assert_eq!(refused(Method::POST, "/ws"), "GET, OPTIONS");
        assert_eq!(refused(Method::DELETE, "/readyz"), "GET, HEAD, OPTIONS");
        for (path, allowed) in [("/ws", "GET, OPTIONS"), ("/livez", "GET, HEAD, OPTIONS")] {
            assert_eq!(route(&Method::OPTIONS, path).ok(), Some(Route::Options(allowed)));
        }
        assert_eq!(route(&Method::HEAD, "/livez/").ok(), Some(Route::Probe(Probe::Alive)));
    }
}
