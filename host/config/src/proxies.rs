//! The proxies in front of the server: which ones are trusted, and how they name the client.

use std::net::IpAddr;

use http::HeaderName;
use serde::{Deserialize, Serialize};

use crate::listen::first_open;
use crate::networks::Network;
use crate::{Config, ConfigError};

/// Whether the connections of a listener begin with a header of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyProtocol {
    /// They do not.
    Off,
    /// All do, in version 1 or 2. Other connections are closed.
    Required,
}

/// The proxies whose information about clients is used.
#[derive(Debug, Clone)]
pub struct TrustedProxies {
    /// Their networks.
    pub networks: Vec<Network>,
    /// The maximum size of a PROXY protocol header of version 2, in bytes.
    pub header_bytes_max: usize,
}

/// The header in which proxies send the address of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressHeader {
    /// Its name.
    pub name: HeaderName,
    /// Whether its syntax is that of `Forwarded` (RFC 7239); otherwise it is a list of addresses.
    pub is_forwarded: bool,
}

impl TrustedProxies {
    /// Whether the address is that of a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }

    /// Whether a PROXY protocol header is accepted from this peer. Without trusted proxies it is
    /// accepted from this machine: the listener then has only loopback addresses.
    pub fn may_send_header(&self, peer: IpAddr) -> bool {
        match self.networks.is_empty() {
            true => peer.to_canonical().is_loopback(),
            false => self.contains(peer),
        }
    }

    /// The setting `http.client_address_header`.
    ///
    /// # Errors
    ///
    /// It is no name of a header, or there are no proxies from which it would be accepted.
    pub(crate) fn header(&self, name: Option<&str>) -> Result<Option<AddressHeader>, ConfigError> {
        let Some(name) = name else { return Ok(None) };
        let wrong = |expected: &str| ConfigError::OutOfRange {
            key: "http.client_address_header",
            value: format!("\"{name}\""),
            expected: expected.to_owned(),
        };
        let Ok(header) = HeaderName::try_from(name) else {
            return Err(wrong("the name of a header, such as X-Forwarded-For or Forwarded"));
        };
        if self.networks.is_empty() {
            let expected = "used with security.trusted_proxies, which says from which addresses \
                            it is accepted";
            return Err(wrong(expected));
        }
        let is_forwarded = header == http::header::FORWARDED;
        Ok(Some(AddressHeader { name: header, is_forwarded }))
    }
}

impl Config {
    /// Where every address may connect, every client could send the header itself.
    pub(crate) fn check_proxy_protocol(&self) -> Result<(), ConfigError> {
        if !self.proxies.networks.is_empty() {
            return Ok(());
        }
        let (http, admin) = (&self.http, &self.admin);
        let resp = self.resp.iter();
        let resp = resp.map(|resp| ("resp.proxy_protocol", &*resp.listen, resp.proxy_protocol));
        let listeners = [
            ("http.proxy_protocol", &*http.listen, http.proxy_protocol),
            ("admin.proxy_protocol", &*admin.listen, admin.proxy_protocol),
        ];
        for (key, listen, proxy_protocol) in listeners.into_iter().chain(resp) {
            if proxy_protocol == ProxyProtocol::Required && first_open(listen).is_some() {
                return Err(ConfigError::OutOfRange {
                    key,
                    value: "\"required\"".to_owned(),
                    expected: "used with security.trusted_proxies where other machines can \
                               connect: a client could send the header itself"
                        .to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::check;

    #[test]
    fn proxies_that_are_not_trusted_are_refused_with_the_setting_that_trusts_them() {
        let refused = |text: &str| check(text).map(|_| ()).expect_err(text);
        let header = "[http]\nclient_address_header = 'X-Forwarded-For'\n";
        assert!(refused(header).contains("security.trusted_proxies"));
        let trusted = "[security]\ntrusted_proxies = ['10.0.0.0/8', '::1']\n";
        let config = check(&format!("{trusted}{header}")).expect("valid");
        assert!(config.http.address_header.is_some_and(|header| !header.is_forwarded));
        let forwarded = header.replace("X-Forwarded-For", "forwarded");
        let config = check(&format!("{trusted}{forwarded}")).expect("valid");
        assert!(config.http.address_header.is_some_and(|header| header.is_forwarded));
        let no_name = header.replace("X-Forwarded-For", "X Forwarded For");
        assert!(refused(&format!("{trusted}{no_name}")).contains("such as X-Forwarded-For"));
        assert!(refused("[security]\ntrusted_proxies = ['nginx']").contains("such as 10.0.0.0/8"));
        for table in ["http", "resp"] {
            let required = |listen: &str| {
                format!("[{table}]\nlisten = '{listen}'\nproxy_protocol = 'required'\n")
            };
            let problem = refused(&required("0.0.0.0:1"));
            assert!(problem.starts_with(&format!("{table}.proxy_protocol is \"required\"")));
            assert!(problem.contains("security.trusted_proxies"), "{problem}");
            check(&required("127.0.0.1:1")).expect("only this machine connects");
            check(&format!("{trusted}{}", required("0.0.0.0:1"))).expect("valid");
        }
        let unknown = refused("[resp]\nproxy_protocol = 'optional'");
        assert!(unknown.contains("`off` or `required`"), "{unknown}");
    }
}
