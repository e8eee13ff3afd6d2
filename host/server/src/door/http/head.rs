//! What both HTTP listeners require of the head of a request (RFC 9112, sections 3.2 and 3.3).
//!
//! Behind this check, a request has one `Host` at most, and it is the host that the request is for.

use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Uri, Version};

/// How many headers a request may have.
pub const HEADERS_MAX: usize = 124;

/// Checks the host and the target of a request. The host of an absolute target replaces `Host`, and
/// the target `*` becomes `/`.
///
/// # Errors
///
/// What is wrong: the response has the status 400.
pub fn check(head: &mut Parts) -> Result<(), &'static str> {
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err("there is more than one Host header"),
        (Some(host), None) if !is_host(host.as_bytes()) => {
            return Err("the Host header is no host");
        }
        (None, _) if head.version > Version::HTTP_10 => return Err("the Host header is missing"),
        _ => {}
    }
    if let (Some(_), Some(authority)) = (head.uri.scheme(), head.uri.authority()) {
        let host = HeaderValue::from_str(authority.as_str()).ok();
        let host = host.filter(|host| is_host(host.as_bytes())).ok_or("the target has no host")?;
        head.headers.insert(HOST, host);
    }
    if head.uri.path() == "*" {
        if head.method != Method::OPTIONS {
            return Err("the target * is for OPTIONS");
        }
        head.uri = Uri::from_static("/");
    }
    Ok(())
}

/// Whether this is a host with or without a port. It may be empty: the target has none either.
fn is_host(value: &[u8]) -> bool {
    value.is_empty() || (!value.contains(&b'@') && Authority::try_from(value).is_ok())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// The `Host` of a request with this target and these headers after the check.
    fn checked(version: Version, target: &str, hosts: &[&str]) -> Result<String, &'static str> {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        check(&mut head)?;
        let host = head.headers.get(HOST).map(|host| host.to_str().expect("text"));
        Ok(host.unwrap_or("none").to_owned())
    }

    #[test]
    fn a_request_has_one_host() {
        let http_11 = |target, hosts: &[&str]| checked(Version::HTTP_11, target, hosts);
        for host in ["a.example", "a.example:80", "[::1]:80", "node_a", ""] {
            assert_eq!(http_11("/", &[host]).as_deref(), Ok(host));
            assert_eq!(http_11("http://b.example:81/x", &[host]).as_deref(), Ok("b.example:81"));
        }
        assert!(http_11("/", &[]).is_err());
        assert!(http_11("http://b.example/", &[]).is_err());
        assert!(http_11("http://user@b.example/", &["a"]).is_err());
        for host in ["a b", "user@a", "a/b", "a?b"] {
            assert!(http_11("/", &[host]).is_err(), "{host}");
        }
        for version in [Version::HTTP_10, Version::HTTP_11] {
            assert!(checked(version, "/", &["a", "a"]).is_err());
        }
        assert_eq!(checked(Version::HTTP_10, "/", &[]).as_deref(), Ok("none"));
    }
}
