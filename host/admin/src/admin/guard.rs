//! Authorization of requests.
//!
//! Where there are tokens, each request must have one. Without tokens, which is possible on
//! loopback only, the danger is a page in a browser on this machine: requests of other origins are
//! rejected, and so are other host names, because they may have been pointed at loopback (DNS
//! rebinding).

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::Admin;
use super::error::ApiError;
use switchyard_config::is_loopback;
use switchyard_middleware::stats::Initiator;

/// Rejects requests that a browser sends for a page of another origin.
///
/// # Errors
///
/// The origin is another one, or the host name is not this server's.
pub async fn keep_out_other_origins(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    check_origin(request.headers(), admin.live.config().admin.tokens.is_empty())?;
    Ok(next.run(request).await)
}

/// The same for probes. A probe by HTTP/1.0 may have no `Host`; a browser always sends one.
///
/// # Errors
///
/// The origin is another one, or the host name is not this server's.
pub async fn keep_pages_from_probes(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if request.headers().contains_key(HOST) {
        check_origin(request.headers(), admin.config.tokens.is_empty())?;
    }
    Ok(next.run(request).await)
}

/// Admits requests with a valid token, or all where no token is required, and stores the
/// token's name in the request.
///
/// # Errors
///
/// There is no token, or an unknown one.
pub async fn ask_for_token(
    State(admin): State<Admin>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let config = admin.live.config();
    let tokens = &config.admin.tokens;
    let by = if tokens.is_empty() {
        Initiator::Local
    } else {
        let token = bearer(request.headers());
        let name = token.and_then(|token| tokens.name_of(token));
        Initiator::Token(name.ok_or_else(|| {
            let words = match token {
                None => "a token is required: Authorization: Bearer TOKEN",
                Some(_) => "the token is not known",
            };
            ApiError::new(StatusCode::UNAUTHORIZED, "unauthorised", words)
        })?)
    };
    request.extensions_mut().insert(by);
    Ok(next.run(request).await)
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

fn check_origin(headers: &HeaderMap, is_open: bool) -> Result<(), ApiError> {
    let forbidden = |message| Err(ApiError::new(StatusCode::FORBIDDEN, "other-origin", message));
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let Some(host) = text(&HOST).and_then(|host| host.parse::<Authority>().ok()) else {
        return Err(ApiError::bad_request("the Host header is missing or is none"));
    };
    if is_open && !is_loopback(host.host()) {
        return forbidden("without tokens, the Host must be localhost or a loopback address");
    }
    if matches!(text(&SEC_FETCH_SITE), Some("cross-site" | "same-site")) {
        return forbidden("requests from other origins are not allowed");
    }
    match text(&ORIGIN).map(|origin| origin.split_once("://").map(|(_, host)| host)) {
        None => Ok(()),
        Some(Some(origin)) if origin.eq_ignore_ascii_case(host.as_str()) => Ok(()),
        Some(_) => forbidden("requests from other origins are not allowed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(HeaderName, &'static str)], is_open: bool, expected: bool) {
        let map: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.clone(), value.parse().expect("a value")))
            .collect();
        assert_eq!(check_origin(&map, is_open).is_ok(), expected, "{headers:?}");
    }

    #[test]
    fn a_page_of_another_origin_is_kept_out() {
        for host in ["127.0.0.1:8081", "localhost:8081", "[::1]:8081", "127.8.8.8"] {
            check(&[(HOST, host)], true, true);
        }
        // A name that was pointed at loopback.
        check(&[(HOST, "evil.example:8081")], true, false);
        check(&[(HOST, "admin.example:8081")], false, true);
        check(&[], true, false);
        let host = (HOST, "localhost:8081");
        check(&[host.clone(), (ORIGIN, "http://localhost:8081")], true, true);
        check(&[host.clone(), (ORIGIN, "http://localhost:8080")], true, false);
        check(&[host.clone(), (ORIGIN, "https://evil.example")], false, false);
        check(&[host.clone(), (ORIGIN, "null")], true, false);
        check(&[host.clone(), (SEC_FETCH_SITE, "same-origin")], true, true);
        check(&[host.clone(), (SEC_FETCH_SITE, "none")], true, true);
        check(&[host, (SEC_FETCH_SITE, "cross-site")], true, false);
    }
}
