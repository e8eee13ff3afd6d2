//! One HTTP request of a plugin, from its bytes to those of the answer.
//!
//! Needs `http_allow` in the plugin's `.toml`, and works in `on-connect` and
//! `on-authenticate` only. Times and sizes are bounded by the server; whatever is
//! passed is an error here, in words. It knows nothing of the contract.

use std::fmt;

use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest,
    Scheme,
};
use wasip2::io::streams::StreamError;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    is_tls: bool,
    authority: String,
    path_and_query: String,
}

impl Url {
    /// Reads `https://HOST/PATH`, `http://HOST:PORT/PATH?QUERY` and their like.
    /// None: it is no such thing.
    pub fn parse(text: &str) -> Option<Url> {
        let (scheme, rest) = text.split_once("://")?;
        let is_tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let is_bad = |c: char| c.is_whitespace() || c.is_control() || c == '@';
        // Other characters are percent-encoded in a URL.
        let is_written = path.bytes().all(|byte| byte.is_ascii_graphic());
        let host = authority.rsplit_once(':').map_or(authority, |(host, port)| {
            let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
            // What stands behind the last colon may be a part of an address.
            if is_port || port.ends_with(']') { host } else { "" }
        });
        if host.is_empty() || authority.contains(is_bad) || !is_written {
            return None;
        }
        let path_and_query = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        Some(Url { is_tls, authority: authority.to_owned(), path_and_query })
    }

    /// What must stand in `http_allow` for it.
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.is_tls { "https" } else { "http" }, self.authority)
    }
}

/// What a service said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status. Redirects are not followed.
    pub status: u16,
    /// All of the body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAnswer(String);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Asks with GET.
///
/// # Errors
///
/// There is no answer, or not a whole one.
pub fn get(url: &Url, headers: &[(String, Vec<u8>)]) -> Result<Answer, NoAnswer> {
    send(&Method::Get, url, headers, &[])
}

/// Asks with POST and this body.
///
/// # Errors
///
/// There is no answer, or not a whole one.
pub fn post(url: &Url, headers: &[(String, Vec<u8>)], body: &[u8]) -> Result<Answer, NoAnswer> {
    send(&Method::Post, url, headers, body)
}

fn send(
    method: &Method,
    url: &Url,
    headers: &[(String, Vec<u8>)],
    body: &[u8],
) -> Result<Answer, NoAnswer> {
    let fields = Fields::from_list(headers)
        .map_err(|error| NoAnswer(format!("a header cannot be sent: {error:?}")))?;
    let length = body.len().to_string().into_bytes();
    fields
        .set("content-length", &[length])
        .map_err(|error| NoAnswer(format!("its length cannot be sent: {error:?}")))?;
    let request = OutgoingRequest::new(fields);
    let scheme = if url.is_tls { Scheme::Https } else { Scheme::Http };
    request
        .set_method(method)
        .and_then(|()| request.set_scheme(Some(&scheme)))
        .and_then(|()| request.set_authority(Some(&url.authority)))
        .and_then(|()| request.set_path_with_query(Some(&url.path_and_query)))
        .map_err(|()| NoAnswer("the URL cannot be asked".to_owned()))?;
    let outgoing = request.body().map_err(|()| nothing("its body"))?;
    // Send the request first: the body is read only while the request is being sent.
    let future = handle(request, None).map_err(in_words)?;
    let written = write(&outgoing, body);
    // What is wrong with the request is said where the answer is.
    let finished = match written {
        true => OutgoingBody::finish(outgoing, None).is_ok(),
        false => false,
    };
    future.subscribe().block();
    let response = future.get().ok_or_else(|| nothing("an answer"))?;
    let response = response.map_err(|()| nothing("an answer"))?.map_err(in_words)?;
    if !finished && response.status() < 300 {
        return Err(NoAnswer("the request was not taken whole".to_owned()));
    }
    read(response)
}

fn write(outgoing: &OutgoingBody, body: &[u8]) -> bool {
    /// What one such call may take.
    const CHUNK_BYTES_MAX: usize = 4096;
    let Ok(stream) = outgoing.write() else { return false };
    body.chunks(CHUNK_BYTES_MAX).all(|chunk| stream.blocking_write_and_flush(chunk).is_ok())
}

fn read(response: IncomingResponse) -> Result<Answer, NoAnswer> {
    let status = response.status();
    let incoming: IncomingBody = response.consume().map_err(|()| nothing("a body"))?;
    let stream = incoming.stream().map_err(|()| nothing("a body"))?;
    let mut body = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(bytes) => body.extend(bytes),
            Err(StreamError::Closed) => return Ok(Answer { status, body }),
            Err(StreamError::LastOperationFailed(error)) => {
                let code = wasip2::http::types::http_error_code(&error);
                return Err(code.map_or_else(|| NoAnswer(error.to_debug_string()), in_words));
            }
        }
    }
}

fn nothing(what: &str) -> NoAnswer {
    NoAnswer(format!("{what} is not to be had"))
}

/// What people look for when it happens, in their words; the rest in those of WASI.
fn in_words(code: ErrorCode) -> NoAnswer {
    NoAnswer(match code {
        ErrorCode::HttpRequestDenied => {
            "the host is not in http_allow, or this hook may not ask".to_owned()
        }
        ErrorCode::ConnectionTimeout
        | ErrorCode::HttpResponseTimeout
        | ErrorCode::ConnectionReadTimeout => "it did not answer in time".to_owned(),
        ErrorCode::ConnectionRefused => "it refused the connection".to_owned(),
        ErrorCode::HttpResponseBodySize(Some(most)) => {
            format!("its answer is longer than {most} bytes")
        }
        ErrorCode::ConnectionLimitReached => "more requests than one call may make".to_owned(),
        ErrorCode::TlsCertificateError => "its certificate is not trusted".to_owned(),
        ErrorCode::DestinationIpProhibited => {
            "its name leads to the server's own machine".to_owned()
        }
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_parsed() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let url = Url::parse(text);
            let parts = url.as_ref().map(|url| (url.origin(), url.path_and_query.clone()));
            let parts = parts.as_ref().map(|(origin, path)| (origin.as_str(), path.as_str()));
            assert_eq!(parts, expected, "{text}");
        };
        check("https://id.example.com", Some(("https://id.example.com", "/")));
        check("http://[::1]:80/a?b=c#d", Some(("http://[::1]:80", "/a?b=c")));
        check("https://id.example.com?a", Some(("https://id.example.com", "/?a")));
        check("https://[2001:db8::1]/a", Some(("https://[2001:db8::1]", "/a")));
        for not_one in [
            "id.example.com",
            "ftp://a/",
            "https://",
            "https:///a",
            "https://a@b/",
            "https://:80/",
            "https://a:99999/",
            "https://a:/",
            "https://a:x/",
            "https://a/b c",
            "https://a/é",
        ] {
            check(not_one, None);
        }
    }
}
