//! A host, as permitted and as requested.

use std::fmt;
use std::net::Ipv6Addr;

/// A scheme, a host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Whether requests to it use TLS.
    pub is_tls: bool,
    /// A name in lower case, or an address; that of IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Destination {
    /// Parses `https://HOST`, `http://HOST:PORT` and the like. None: it is not of this form, or has
    /// more parts (a path, a user, a wildcard).
    pub fn parse(text: &str) -> Option<Destination> {
        match text.split_once("://")? {
            ("https", authority) => Destination::new(true, authority),
            ("http", authority) => Destination::new(false, authority),
            _ => None,
        }
    }

    /// The host and port of a URL. Without a port, that of the scheme.
    pub fn new(is_tls: bool, authority: &str) -> Option<Destination> {
        let (host, after) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (address, after) = rest.split_once(']')?;
                (address.parse::<Ipv6Addr>().ok()?.to_string(), after)
            }
            None => {
                let (host, after) =
                    authority.split_at(authority.find(':').unwrap_or(authority.len()));
                let is_in_names =
                    |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
                let is_name = !host.is_empty() && host.chars().all(is_in_names);
                (is_name.then(|| host.to_ascii_lowercase())?, after)
            }
        };
        let port = match after.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port > 0)?
            }
            None if after.is_empty() => default_port(is_tls),
            _ => return None,
        };
        Some(Destination { is_tls, host, port })
    }
}

fn default_port(is_tls: bool) -> u16 {
    if is_tls { 443 } else { 80 }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]", self.host)?,
            false => write!(f, "{scheme}://{}", self.host)?,
        }
        match self.port == default_port(self.is_tls) {
            true => Ok(()),
            false => write!(f, ":{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_scheme_a_host_and_a_port() {
        let check = |text: &str, expected: Option<&str>| {
            let read = Destination::parse(text).map(|destination| destination.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        };
        check("https://id.example.com", Some("https://id.example.com"));
        check("https://ID.Example.com:443", Some("https://id.example.com"));
        check("http://id.example.com:443", Some("http://id.example.com:443"));
        check("http://127.0.0.1:80", Some("http://127.0.0.1"));
        check("https://[0:0::1]:8443", Some("https://[::1]:8443"));
        for not_one in [
            "id.example.com",
            "ftp://id.example.com",
            "https://",
            "https://*.example.com",
            "https://*",
            "https://id.example.com/",
            "https://id.example.com/path",
            "https://id.example.com?query",
            "https://user@id.example.com",
            "https://id.example.com:",
            "https://id.example.com:0",
            "https://id.example.com:+80",
            "https://id.example.com:65536",
            "https://id.example.com:80:80",
            "https://[::1",
            "https://[id.example.com]",
            "https://[::1]x",
            "https://id.exämple.com",
            "HTTPS://id.example.com",
        ] {
            check(not_one, None);
        }
    }
}
