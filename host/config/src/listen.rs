//! The addresses of listeners: an IP address with a port, or the path of a Unix socket.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::values::OFF;
use crate::{Config, ConfigError};

/// The address that clients on a Unix socket have, everywhere where a client's address is used:
/// they are on this machine, and no TCP client has the port 0.
pub const UNIX_PEER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// The prefix of the path of a Unix socket.
const UNIX: &str = "unix:";
/// Linux' `sockaddr_un` has 108 bytes for the path, with its final zero.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl ListenAddress {
    /// The address, if other machines can reach it.
    pub fn open(&self) -> Option<SocketAddr> {
        match self {
            ListenAddress::Tcp(address) if !address.ip().to_canonical().is_loopback() => {
                Some(*address)
            }
            ListenAddress::Tcp(_) | ListenAddress::Unix(_) => None,
        }
    }

    /// Whether a socket of the other address could not be bound beside one of this.
    fn excludes(&self, other: &ListenAddress) -> bool {
        match (self, other) {
            (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => is_shared(*one, *other),
            (ListenAddress::Unix(one), ListenAddress::Unix(other)) => place(one) == place(other),
            _ => false,
        }
    }
}

/// The path of a socket behind links and `..`; the socket itself need not exist.
fn place(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent().map(Path::canonicalize), absolute.file_name()) {
        (Some(Ok(directory)), Some(name)) => directory.join(name),
        _ => absolute,
    }
}

/// Whether two sockets cannot be bound at once. `[::]` includes all addresses of IPv4. A free port
/// is chosen for each port 0.
fn is_shared(one: SocketAddr, other: SocketAddr) -> bool {
    let includes = |all: IpAddr, ip: IpAddr| match all {
        IpAddr::V4(all) => all == Ipv4Addr::UNSPECIFIED && ip.is_ipv4(),
        IpAddr::V6(all) => all.is_unspecified(),
    };
    let [a, b] = [one, other].map(|address| address.ip().to_canonical());
    one.port() == other.port() && one.port() != 0 && (a == b || includes(a, b) || includes(b, a))
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// The first of these addresses that other machines can reach.
pub fn first_open(addresses: &[ListenAddress]) -> Option<SocketAddr> {
    addresses.iter().find_map(ListenAddress::open)
}

/// The setting `listen` of a table: one address, or a list of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "an address such as \"127.0.0.1:8080\" or \"unix:/run/x.sock\", or a list of them"
)]
pub(crate) enum RawListen {
    One(String),
    Several(Vec<String>),
}

impl RawListen {
    /// From the flags of the command line: one or more.
    pub(crate) fn from_flags(texts: &[String]) -> RawListen {
        match texts {
            [one] => RawListen::One(one.clone()),
            several => RawListen::Several(several.to_vec()),
        }
    }

    /// Paths in the file are relative to its directory.
    pub(crate) fn resolve_against(&mut self, base: &Path) {
        let texts = match self {
            RawListen::One(text) => std::slice::from_mut(text),
            RawListen::Several(texts) => texts.as_mut_slice(),
        };
        for text in texts {
            if let Some(path) = text.strip_prefix(UNIX).filter(|path| !path.is_empty()) {
                *text = format!("{UNIX}{}", base.join(path).display());
            }
        }
    }

    /// The addresses. `"off"` is none, where that is possible.
    pub(crate) fn check(
        &self,
        key: &'static str,
        may_be_off: bool,
    ) -> Result<Vec<ListenAddress>, ConfigError> {
        let texts = match self {
            RawListen::One(off) if off == OFF && may_be_off => return Ok(Vec::new()),
            RawListen::One(text) => std::slice::from_ref(text),
            RawListen::Several(texts) => texts,
        };
        if texts.is_empty() {
            return Err(ConfigError::OutOfRange {
                key,
                value: "[]".to_owned(),
                expected: match may_be_off {
                    true => "at least one address, or \"off\"",
                    false => "at least one address",
                }
                .to_owned(),
            });
        }
        texts.iter().map(|text| address(key, text)).collect()
    }
}

fn address(key: &'static str, text: &str) -> Result<ListenAddress, ConfigError> {
    let wrong = |expected: &str| ConfigError::OutOfRange {
        key,
        value: format!("\"{text}\""),
        expected: expected.to_owned(),
    };
    if let Some(path) = text.strip_prefix(UNIX) {
        if path.is_empty() || path.contains('\0') {
            return Err(wrong("the path of a socket, such as unix:/run/switchyard/http.sock"));
        }
        if path.len() > UNIX_PATH_BYTES_MAX {
            return Err(wrong("a path of at most 107 bytes: the operating system takes no more"));
        }
        return Ok(ListenAddress::Unix(path.into()));
    }
    let resolved = text
        .strip_prefix("localhost:")
        .map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    resolved.parse().map(ListenAddress::Tcp).map_err(|_| {
        wrong(
            "an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080, or a path such as \
             unix:/run/switchyard/http.sock",
        )
    })
}

/// The setting `security.unix_socket_mode`: octal digits.
pub(crate) fn socket_mode(text: &str) -> Result<u32, ConfigError> {
    let is_octal =
        (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if is_octal && mode <= 0o777 => Ok(mode),
        Ok(_) | Err(_) => Err(ConfigError::OutOfRange {
            key: "security.unix_socket_mode",
            value: format!("\"{text}\""),
            expected: "permissions in octal digits, such as \"0660\"".to_owned(),
        }),
    }
}

impl Config {
    /// All addresses with the keys of their settings.
    pub fn listeners(&self) -> impl Iterator<Item = (&'static str, &ListenAddress)> {
        let resp = self.resp.as_ref().map_or_else(Default::default, |resp| &*resp.listen);
        [
            ("http.listen", &*self.http.listen),
            ("resp.listen", resp),
            ("admin.listen", &*self.admin.listen),
        ]
        .into_iter()
        .flat_map(|(key, addresses)| addresses.iter().map(move |address| (key, address)))
    }

    /// Each address must be that of one listener.
    pub(crate) fn check_listeners(&self) -> Result<(), ConfigError> {
        let all: Vec<_> = self.listeners().collect();
        for (position, (key, address)) in all.iter().enumerate() {
            let before = all.iter().take(position).find(|(_, other)| address.excludes(other));
            if let Some((other, _)) = before {
                return Err(ConfigError::OutOfRange {
                    key,
                    value: format!("\"{address}\""),
                    expected: format!("another address: {other} has this one already"),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::check;

    #[test]
    fn a_listener_has_one_address_or_several() {
        let config = check(
            "[http]\nlisten = ['127.0.0.1:1', '[::1]:1', 'unix:/run/a.sock']\n\
             [resp]\nlisten = 'unix:b.sock'\n[admin]\nlisten = ['localhost:2']",
        );
        let config = config.expect("valid");
        let all: Vec<_> = config.listeners().map(|(_, address)| address.to_string()).collect();
        let expected = ["127.0.0.1:1", "[::1]:1", "unix:/run/a.sock", "unix:b.sock", "127.0.0.1:2"];
        assert_eq!(all, expected);
        assert!(config.listeners().all(|(_, address)| address.open().is_none()));
        assert!(ListenAddress::Tcp(([0, 0, 0, 0], 1).into()).open().is_some());
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_would_be_right() {
        let refused = |text: &str| check(text).map(|_| ()).expect_err(text);
        let long = format!("[http]\nlisten = 'unix:/{}'", "a".repeat(107));
        for (text, says) in [
            ("[http]\nlisten = []", "http.listen is [], but must be at least one address"),
            ("[resp]\nlisten = []", "at least one address, or \"off\""),
            ("[http]\nlisten = 'off'", "such as 127.0.0.1:8080"),
            ("[resp]\nlisten = ['127.0.0.1:1', 'off']", "such as 127.0.0.1:8080"),
            ("[resp]\nlisten = ['127.0.0.1:1', 'here']", "resp.listen is \"here\""),
            ("[admin]\nlisten = 'unix:'", "such as unix:/run/switchyard/http.sock"),
            (&long, "at most 107 bytes"),
            ("[http]\nlisten = 8080", "or a list of them"),
            ("[http]\nlisten = ['127.0.0.1:1', '127.0.0.1:1']", "http.listen has this one already"),
            (
                "[http]\nlisten = '127.0.0.1:1'\n[admin]\nlisten = '127.0.0.1:1'",
                "admin.listen is \"127.0.0.1:1\", but must be another address: http.listen has",
            ),
            (
                "[http]\nlisten = 'unix:/a'\n[resp]\nlisten = ['127.0.0.1:1', 'unix:/a']",
                "resp.listen is \"unix:/a\"",
            ),
            (
                "[http]\nlisten = 'unix:a.sock'\n[resp]\nlisten = 'unix:./a.sock'",
                "http.listen has this one already",
            ),
            (
                "[http]\nlisten = 'unix:/tmp/../a.sock'\n[resp]\nlisten = 'unix:/a.sock'",
                "http.listen has this one already",
            ),
            ("[admin]\nlisten = ['127.0.0.1:1', '0.0.0.0:2']", "admin.tokens_file"),
            ("[resp]\nlisten = '[::]:8080'", "resp.listen is \"[::]:8080\""),
            ("[security]\nunix_socket_mode = '0999'", "such as \"0660\""),
            ("[security]\nunix_socket_mode = '1777'", "such as \"0660\""),
            ("[security]\nunix_socket_mode = ''", "such as \"0660\""),
        ] {
            let problem = refused(text);
            assert!(problem.contains(says), "{text}: {problem}");
        }
        check("[http]\nlisten = ['127.0.0.1:0', '127.0.0.1:0']").expect("two free ports");
    }

    #[test]
    fn sockets_that_cannot_be_bound_at_once_are_recognised() {
        let shared = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse().expect("an address"));
            is_shared(one, other) && is_shared(other, one)
        };
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("127.0.0.1:1", "0.0.0.0:1"),
            ("127.0.0.1:1", "[::]:1"),
            ("[::1]:1", "[::]:1"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
        ] {
            assert!(shared(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("[::1]:1", "0.0.0.0:1"),
        ] {
            assert!(!shared(one, other), "{one} {other}");
        }
    }
}
