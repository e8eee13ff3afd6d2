//! The address that a client came from.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What stands for all addresses that one subscriber of a network can choose
/// from at will: an IPv4 address, or the first 64 bits of an IPv6 address.
/// None for what is no `address:port`.
pub fn network_of_peer(remote: &str) -> Option<String> {
    remote.parse::<SocketAddr>().ok().map(|peer| network(peer.ip()))
}

/// The same for the last address in a list such as `X-Forwarded-For`: the one
/// that was put there by the proxy nearest to the server.
pub fn network_of_forwarded(list: &[u8]) -> Option<String> {
    let last = std::str::from_utf8(list.rsplit(|byte| *byte == b',').next()?).ok()?.trim();
    if let Ok(address) = last.parse::<SocketAddr>() {
        return Some(network(address.ip()));
    }
    let bare = last.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().ok()?.into(),
        None => last.parse::<IpAddr>().ok()?,
    };
    Some(network(address))
}

fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            format!("{}/64", Ipv6Addr::from(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_stands_for_its_network() {
        let check = |remote, expected: Option<&str>| {
            assert_eq!(network_of_peer(remote).as_deref(), expected, "{remote}");
        };
        check("192.0.2.7:80", Some("192.0.2.7"));
        check("[::ffff:192.0.2.7]:80", Some("192.0.2.7"));
        check("[2001:db8:1:2:3:4:5:6]:80", Some("2001:db8:1:2::/64"));
        check("192.0.2.7", None);
        check("", None);
    }

    #[test]
    fn the_nearest_proxy_is_believed() {
        let check = |list: &str, expected: Option<&str>| {
            assert_eq!(network_of_forwarded(list.as_bytes()).as_deref(), expected, "{list}");
        };
        check("192.0.2.7", Some("192.0.2.7"));
        check("10.0.0.1, 192.0.2.7", Some("192.0.2.7"));
        check("10.0.0.1,192.0.2.7:4711", Some("192.0.2.7"));
        check("2001:db8::1", Some("2001:db8::/64"));
        check("[2001:db8::1]", Some("2001:db8::/64"));
        check("[2001:db8::1]:4711", Some("2001:db8::/64"));
        check("[::ffff:192.0.2.7]", Some("192.0.2.7"));
        check("[192.0.2.7]", None);
        check("192.0.2.7,", None);
        check("unknown", None);
    }
}
