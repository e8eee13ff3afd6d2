//! The address of a client behind proxies, from the header in which they send it.
//!
//! Each proxy appends the address of its own peer: `X-Forwarded-For: CLIENT, PROXY`. What a client
//! sends in this header itself is further left. So the list is read from the right, and each
//! address is used only if the one that appended it is a trusted proxy. An entry that is no address
//! ends the search: the proxy that appended it does not say more.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use switchyard_config::proxies::{AddressHeader, TrustedProxies};

/// The address of the client whose request the peer sent. `values`: the values of the header, in
/// the order in which they were received; they are one list (RFC 9110, section 5.3). The port is 0
/// where the header has none.
pub fn client_address<'a>(
    peer: SocketAddr,
    header: &AddressHeader,
    values: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted: &TrustedProxies,
) -> SocketAddr {
    let mut client = peer;
    for value in values.rev() {
        let mut rest = Some(value);
        while let Some(list) = rest {
            if !trusted.contains(client.ip()) {
                return client;
            }
            let (before, found) = match header.is_forwarded {
                true => {
                    let (before, element) = split_last(list, b',');
                    (before, node_of(element))
                }
                false => {
                    let mut entries = list.rsplitn(2, |byte| *byte == b',');
                    let entry = entries.next().and_then(|entry| str::from_utf8(entry).ok());
                    (entries.next(), entry.and_then(address))
                }
            };
            let Some(found) = found else { return client };
            (client, rest) = (found, before);
        }
    }
    client
}

/// Parses an address with or without a port: `192.0.2.7`, `192.0.2.7:80`, `2001:db8::7`,
/// `[2001:db8::7]` or `[2001:db8::7]:80`. An obfuscated port (`_x`, RFC 7239) is ignored.
fn address(text: &str) -> Option<SocketAddr> {
    let text = trimmed(text);
    let text = match text.rsplit_once(":_") {
        Some((node, _obfuscated)) => node,
        None => text,
    };
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let (ip, port) = match (text.parse::<SocketAddr>(), bare) {
        (Ok(address), _) => (address.ip(), address.port()),
        (Err(_), Some(bare)) => (bare.parse::<Ipv6Addr>().ok()?.into(), 0),
        (Err(_), None) => (text.parse::<IpAddr>().ok()?, 0),
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// The address of the parameter `for` in an element of `Forwarded`. None: it has none, or more than
/// one, or it is hidden.
fn node_of(element: &[u8]) -> Option<SocketAddr> {
    let mut node = None;
    let mut rest = Some(element);
    while let Some(pairs) = rest {
        let (before, pair) = split_last(pairs, b';');
        rest = before;
        let pair = trimmed(str::from_utf8(pair).ok()?);
        if pair.is_empty() {
            continue;
        }
        let (name, value) = pair.split_once('=')?;
        let is_for = trimmed(name).eq_ignore_ascii_case("for");
        if is_for && node.replace(unquoted(trimmed(value))?).is_some() {
            return None;
        }
    }
    address(&node?)
}

fn trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// The text of a token or of a quoted string.
fn unquoted(value: &str) -> Option<String> {
    let Some(quoted) = value.strip_prefix('"') else {
        return (!value.contains('"')).then(|| value.to_owned());
    };
    let mut text = String::new();
    let mut characters = quoted.strip_suffix('"')?.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return None,
            '\\' => text.push(characters.next()?),
            other => text.push(other),
        }
    }
    Some(text)
}

/// Splits off what follows the last separator that is not in a quoted string.
///
/// It reads from the right, because a proxy appends to what the client sent: a quotation mark
/// without its second one, further left, must not make the proxy's own element part of a string.
fn split_last(list: &[u8], separator: u8) -> (Option<&[u8]>, &[u8]) {
    let mut is_quoted = false;
    let mut at = list.len();
    while let Some((&byte, before)) = list.get(..at).and_then(<[u8]>::split_last) {
        at = before.len();
        match byte {
            b'"' => {
                let escapes = before.iter().rev().take_while(|byte| **byte == b'\\').count();
                // The second quotation mark cannot be escaped: it ends the string.
                is_quoted = !is_quoted || escapes % 2 == 1;
            }
            byte if byte == separator && !is_quoted => {
                return (Some(before), list.get(at + 1..).unwrap_or_default());
            }
            _ => {}
        }
    }
    (None, list)
}

#[cfg(test)]
mod tests {
    use switchyard_config::Config;

    use super::*;

    /// Checks the address that follows from these headers, which the peer 10.0.0.1 sent.
    fn check(name: &str, values: &[&str], expected: &str) {
        check_from("10.0.0.1:999", name, values, expected);
    }

    fn check_from(peer: &str, name: &str, values: &[&str], expected: &str) {
        let config = format!(
            "[security]\ntrusted_proxies = ['10.0.0.0/8', 'fd00::/8']\n\
             [http]\nclient_address_header = '{name}'"
        );
        let config = Config::from_text(&config, "test".as_ref()).expect("valid");
        let header = config.http.address_header.expect("it is set");
        let values = values.iter().map(|value| value.as_bytes());
        let found =
            client_address(peer.parse().expect("an address"), &header, values, &config.proxies);
        assert_eq!(found.to_string(), expected, "{header:?} from {peer}");
    }

    #[test]
    fn addresses_in_a_list() {
        let is = |values: &[&str], expected: &str| check("X-Forwarded-For", values, expected);
        is(&[], "10.0.0.1:999");
        is(&["192.0.2.7"], "192.0.2.7:0");
        is(&[" 192.0.2.7\t"], "192.0.2.7:0");
        is(&["192.0.2.7:4711"], "192.0.2.7:4711");
        is(&["2001:db8::7"], "[2001:db8::7]:0");
        is(&["[2001:db8::7]"], "[2001:db8::7]:0");
        is(&["[2001:db8::7]:4711"], "[2001:db8::7]:4711");
        is(&["::ffff:192.0.2.7"], "192.0.2.7:0");
        is(&["[::ffff:192.0.2.7]:80"], "192.0.2.7:80");
        // The last one that a trusted proxy appended; what is further left is the client's.
        is(&["203.0.113.9, 192.0.2.7"], "192.0.2.7:0");
        is(&["203.0.113.9,192.0.2.7, 10.0.0.2,fd00::2"], "192.0.2.7:0");
        is(&["203.0.113.9", "192.0.2.7", "10.0.0.2"], "192.0.2.7:0");
        is(&["\"unfinished, 192.0.2.7"], "192.0.2.7:0");
        // All of them are proxies: the first one is the client.
        is(&["10.0.0.3, 10.0.0.2"], "10.0.0.3:0");
        // An entry that is no address: the proxy that appended it is the last that is known.
        for wrong in [
            "",
            "unknown",
            "192.0.2",
            "192.0.2.7:",
            "192.0.2.7:65536",
            "[192.0.2.7]",
            "[2001:db8::7",
            "fe80::7%eth0",
            "client.example",
            "for=192.0.2.7",
        ] {
            is(&[wrong], "10.0.0.1:999");
            is(&["203.0.113.9", wrong, "10.0.0.2"], "10.0.0.2:0");
            is(&[&format!("203.0.113.9, {wrong}, 10.0.0.2")], "10.0.0.2:0");
        }
        let peer = |peer: &str, expected: &str| {
            check_from(peer, "X-Forwarded-For", &["192.0.2.7"], expected);
        };
        peer("[::ffff:10.0.0.1]:999", "192.0.2.7:0");
        peer("[fd00::1]:999", "192.0.2.7:0");
        peer("203.0.113.9:999", "203.0.113.9:999");
        peer("127.0.0.1:999", "127.0.0.1:999");
        check("CF-Connecting-IP", &["192.0.2.7"], "192.0.2.7:0");
    }

    #[test]
    fn forwarded() {
        let is = |values: &[&str], expected: &str| check("Forwarded", values, expected);
        is(&["for=192.0.2.7"], "192.0.2.7:0");
        is(&["For=\"192.0.2.7:4711\""], "192.0.2.7:4711");
        is(&["for=\"[2001:db8::1]:4711\""], "[2001:db8::1]:4711");
        is(&["for=\"[2001:db8::1]\""], "[2001:db8::1]:0");
        is(&["for=\"[::ffff:192.0.2.7]\""], "192.0.2.7:0");
        is(&["for=\"192.0.2.7:_x\""], "192.0.2.7:0");
        is(&["for=\"\\192.0.2.7\""], "192.0.2.7:0");
        is(&["; for=192.0.2.7 ;"], "192.0.2.7:0");
        is(&["proto=https; FOR = 192.0.2.7 ;by=_a;host=\"a,b;for=203.0.113.9\""], "192.0.2.7:0");
        is(&["for=203.0.113.9, for=192.0.2.7;proto=http, for=10.0.0.2"], "192.0.2.7:0");
        is(&["for=203.0.113.9", "for=192.0.2.7", "for=10.0.0.2"], "192.0.2.7:0");
        // A client cannot hide what the proxy appends.
        for own in ["for=\"203.0.113.9", "for=\"a\\", "\"", "\\\"", "for=a\"b\"c\"", "\",\""] {
            is(&[&format!("{own}, for=192.0.2.7")], "192.0.2.7:0");
            is(&[&format!("{own}, for=\"192.0.2.7:1\"")], "192.0.2.7:1");
            is(&[&format!("{own}, for=192.0.2.7;host=\"\\\"x\\\\\"")], "192.0.2.7:0");
        }
        for wrong in [
            "",
            "unknown",
            "for=unknown",
            "for=_hidden",
            "for=\"_hidden:4711\"",
            "for=\"unknown:80\"",
            "proto=http;by=192.0.2.7",
            "for=192.0.2.7;for=192.0.2.8",
            "for=\"192.0.2.7",
            "for=192.0.2.7\"",
            ";",
            "192.0.2.7",
        ] {
            is(&[wrong], "10.0.0.1:999");
            is(&["for=203.0.113.9", wrong, "for=10.0.0.2"], "10.0.0.2:0");
        }
    }
}
