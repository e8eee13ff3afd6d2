//! Which web pages may open a WebSocket.
//!
//! A browser lets any page connect anywhere and sends the page's origin in `Origin`; the server has
//! to refuse. Other programs send no origin. This module knows headers and nothing else of HTTP.
//!
//! The console is a page on another port of this machine, that of the admin listener. Only a
//! program on this machine could serve another page there, and it needs no browser to connect.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{HOST, ORIGIN};

/// Which names in a request's `Host` are the server's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnHosts {
    /// All: the name leads to this server, or to a proxy before it.
    Any,
    /// Those of loopback, because only this machine can connect. The owner of any other name can
    /// point it at loopback (DNS rebinding).
    Loopback,
}

/// The origins that are allowed besides the server's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins {
    is_any: bool,
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    /// The origin of sandboxed frames and files.
    Null,
    Site {
        scheme: String,
        host: HostPattern,
        port: PortPattern,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    Exactly(String),
    /// One or more labels before this, which begins with a dot.
    EndingIn(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PortPattern {
    Any,
    Exactly(Option<u16>),
}

impl Origins {
    /// Parses a list of patterns.
    ///
    /// # Errors
    ///
    /// The first invalid pattern.
    pub fn parse(patterns: &[String]) -> Result<Origins, String> {
        let mut origins = Origins::default();
        for pattern in patterns {
            if pattern == "*" {
                origins.is_any = true;
            } else {
                origins.patterns.push(Pattern::parse(pattern).ok_or_else(|| pattern.clone())?);
            }
        }
        Ok(origins)
    }

    /// The origin in these headers, if it is not allowed. `own`: which names are the server's own.
    /// `console_port` is that of the admin
    /// listener, if both it and the client are on loopback.
    pub fn refused(
        &self,
        headers: &HeaderMap,
        own: OwnHosts,
        console_port: Option<u16>,
    ) -> Option<String> {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        headers
            .get_all(ORIGIN)
            .iter()
            .map(|origin| String::from_utf8_lossy(origin.as_bytes()))
            .find(|origin| !self.allows(origin, host, own, console_port))
            .map(|origin| origin.into_owned())
    }

    fn allows(&self, origin: &str, host: &str, own: OwnHosts, console_port: Option<u16>) -> bool {
        if self.is_any {
            return true;
        }
        let origin = origin.to_ascii_lowercase();
        if origin == "null" {
            return self.patterns.contains(&Pattern::Null);
        }
        let Some(site) = Site::parse(&origin) else { return false };
        (site.is_at(host) && (own == OwnHosts::Any || is_loopback(site.host)))
            || console_port.is_some_and(|port| site.is_console(host, port))
            || self.patterns.iter().any(|pattern| pattern.matches(&site))
    }
}

/// An origin in its parts, in lower case. A default port is none.
struct Site<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Site<'a> {
    fn parse(origin: &'a str) -> Option<Site<'a>> {
        let (scheme, authority) = origin.split_once("://")?;
        let (host, port) = host_and_port(authority)?;
        let port = port.filter(|port| implied_port(scheme) != Some(*port));
        Some(Site { scheme, host, port })
    }

    /// Whether it is the origin of this server. The scheme is not compared: a proxy may have
    /// terminated TLS.
    fn is_at(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        host_and_port(&host).is_some_and(|(name, port)| {
            let port = port.filter(|port| implied_port(self.scheme) != Some(*port));
            name == self.host && port == self.port
        })
    }

    /// Whether it is the console of the server that has the host name `host`. Only names of
    /// loopback are accepted: the owner of any other name can point it at loopback, and a name in
    /// front of a proxy belongs to another machine.
    fn is_console(&self, host: &str, port: u16) -> bool {
        let host = host.to_ascii_lowercase();
        let is_same_host = host_and_port(&host).is_some_and(|(name, _)| name == self.host);
        let port = Some(port).filter(|port| implied_port(self.scheme) != Some(*port));
        self.scheme == "http" && is_same_host && self.port == port && is_loopback(self.host)
    }
}

/// Whether a host in a URL can only be loopback.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Pattern {
    fn parse(text: &str) -> Option<Pattern> {
        let text = text.to_ascii_lowercase();
        if text == "null" {
            return Some(Pattern::Null);
        }
        let (scheme, authority) = text.split_once("://")?;
        let (authority, port) = match authority.strip_suffix(":*") {
            Some(authority) => (authority, PortPattern::Any),
            None => (authority, PortPattern::Exactly(None)),
        };
        let (host, given) = host_and_port(authority)?;
        let port = match given {
            Some(_) if port == PortPattern::Any => return None,
            Some(given) => {
                PortPattern::Exactly(Some(given).filter(|port| implied_port(scheme) != Some(*port)))
            }
            None => port,
        };
        let host = match host.strip_prefix('*') {
            Some(end) if end.len() > 1 && end.starts_with('.') => {
                HostPattern::EndingIn(end.to_owned())
            }
            Some(_) => return None,
            None => HostPattern::Exactly(host.to_owned()),
        };
        let is_literal = match &host {
            HostPattern::Exactly(text) | HostPattern::EndingIn(text) => !text.contains('*'),
        };
        let scheme = scheme.to_owned();
        (is_literal && is_scheme(&scheme)).then_some(Pattern::Site { scheme, host, port })
    }

    fn matches(&self, site: &Site<'_>) -> bool {
        let Pattern::Site { scheme, host, port } = self else { return false };
        let is_host = match host {
            HostPattern::Exactly(name) => name == site.host,
            HostPattern::EndingIn(end) => {
                site.host.strip_suffix(end.as_str()).is_some_and(|labels| !labels.is_empty())
            }
        };
        let is_port = match port {
            PortPattern::Any => true,
            PortPattern::Exactly(port) => *port == site.port,
        };
        is_host && is_port && scheme == site.scheme
    }
}

/// A host name or address with its port, if it is no more than that.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let is_clean = |c: char| c.is_ascii_alphanumeric() || ".-_[]:*".contains(c);
    if authority.is_empty() || !authority.chars().all(is_clean) {
        return None;
    }
    let port_at = match authority.rfind(':') {
        Some(colon) if !authority.ends_with(']') => colon,
        _ => return Some((authority, None)),
    };
    let (host, port) = (authority.get(..port_at)?, authority.get(port_at + 1..)?);
    if host.is_empty() || (host.contains(':') && !host.ends_with(']')) {
        return None;
    }
    Some((host, Some(port.parse().ok()?)))
}

fn is_scheme(scheme: &str) -> bool {
    !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn implied_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(patterns: &[&str], origin: &str, host: &str, is_allowed: bool) {
        let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
        let origins = Origins::parse(&patterns).expect("these are patterns");
        assert_eq!(
            origins.allows(origin, host, OwnHosts::Any, None),
            is_allowed,
            "{patterns:?} {origin} {host}"
        );
    }

    #[test]
    fn the_console_is_a_page_of_the_admin_listener_on_loopback() {
        let check = |origin: &str, host: &str, is_allowed: bool| {
            let origins = Origins::default();
            let allowed = origins.allows(origin, host, OwnHosts::Any, Some(8081));
            assert_eq!(allowed, is_allowed, "{origin} {host}");
            let elsewhere = origins.allows(origin, host, OwnHosts::Any, None);
            assert!(!elsewhere, "{origin} {host}");
        };
        check("http://127.0.0.1:8081", "127.0.0.1:8080", true);
        check("http://localhost:8081", "localhost:8080", true);
        check("http://LOCALHOST:8081", "localhost:8080", true);
        check("http://[::1]:8081", "[::1]:8080", true);
        check("http://127.0.0.1:8082", "127.0.0.1:8080", false);
        check("https://127.0.0.1:8081", "127.0.0.1:8080", false);
        // The request's host name differs from the page's: there is a proxy.
        check("http://localhost:8081", "example.com", false);
        check("http://localhost:8081", "127.0.0.1:8080", false);
        // A name that was pointed at loopback.
        check("http://evil.example:8081", "evil.example:8080", false);
        check("http://127.0.0.1.evil.example:8081", "127.0.0.1.evil.example:8080", false);
        check("http://10.0.0.1:8081", "10.0.0.1:8080", false);
        check("null", "127.0.0.1:8080", false);
    }

    #[test]
    fn pages_of_the_server_itself_are_allowed() {
        check(&[], "http://127.0.0.1:8080", "127.0.0.1:8080", true);
        check(&[], "http://Example.com", "example.COM", true);
        check(&[], "https://example.com", "example.com:443", true);
        check(&[], "http://[::1]:8080", "[::1]:8080", true);
        check(&[], "http://127.0.0.1:3000", "127.0.0.1:8080", false);
        check(&[], "http://localhost:8080", "127.0.0.1:8080", false);
        check(&[], "http://example.com", "", false);
        check(&[], "null", "example.com", false);
        check(&[], "", "", false);
        check(&[], "example.com", "example.com", false);
    }

    #[test]
    fn on_loopback_only_names_of_loopback_are_the_servers_own() {
        let check = |origin: &str, host: &str, is_allowed: bool| {
            let origins = Origins::parse(&["https://app.example".to_owned()]).expect("a pattern");
            let allowed = origins.allows(origin, host, OwnHosts::Loopback, None);
            assert_eq!(allowed, is_allowed, "{origin} {host}");
        };
        for own in ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "127.8.8.8"] {
            check(&format!("http://{own}"), own, true);
        }
        for other in ["evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1:8080", "localhost.x"]
        {
            check(&format!("http://{other}"), other, false);
        }
        check("https://app.example", "app.example", true);
        check("https://app.example", "localhost:8080", true);
    }

    #[test]
    fn a_star_stands_for_names_below() {
        let list = ["https://*.example.com"];
        check(&list, "https://a.example.com", "x", true);
        check(&list, "https://a.b.example.com", "x", true);
        check(&list, "https://a.example.com:443", "x", true);
        check(&list, "https://a.example.com:8443", "x", false);
        check(&list, "http://a.example.com", "x", false);
        check(&list, "https://example.com", "x", false);
        check(&list, "https://.example.com", "x", false);
        check(&list, "https://badexample.com", "x", false);
        check(&list, "https://evil.com/.example.com", "x", false);
        check(&list, "https://evil.com#.example.com", "x", false);
        check(&list, "https://a.example.com.evil.com", "x", false);
    }

    #[test]
    fn the_rest_is_said_explicitly() {
        check(&["*"], "https://anything", "x", true);
        check(&["*"], "null", "x", true);
        check(&["null"], "null", "x", true);
        check(&["http://localhost:*"], "http://localhost:3000", "x", true);
        check(&["http://localhost:*"], "http://localhost", "x", true);
        check(&["http://localhost:3000"], "http://localhost:3001", "x", false);
        for wrong in ["", "example.com", "https://", "https://*", "https://a.*.b", "https://*a.b"]
            .into_iter()
            .chain(["https://a/b", "https://a:b", "://a", "https://a:1:*", "https://a:70000"])
        {
            assert!(Origins::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
