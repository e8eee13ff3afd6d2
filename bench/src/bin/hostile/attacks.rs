//! The attacks. Each is bounded in connections and bytes, and ends when the run is over. What the
//! server closes or refuses is tried again after a moment, as a hostile client does.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::server::{Ports, connect_from};

/// One kind of hostile client.
pub struct Attack {
    pub name: &'static str,
    pub needs_tls: bool,
    pub run: fn(&Field),
}

/// What an attack knows.
pub struct Field {
    pub ports: Ports,
    /// Which attack of a run it is.
    pub number: usize,
    pub is_over: Arc<AtomicBool>,
}

pub const ATTACKS: &[Attack] = &[
    Attack { name: "slow readers", needs_tls: false, run: slow_readers },
    Attack { name: "half-sent requests", needs_tls: false, run: half_sent },
    Attack { name: "names", needs_tls: false, run: names },
    Attack { name: "patterns", needs_tls: false, run: patterns },
    Attack { name: "SETNAME", needs_tls: false, run: set_name },
    Attack { name: "AUTH flood", needs_tls: false, run: auth_flood },
    Attack { name: "handshakes", needs_tls: false, run: handshakes },
    Attack { name: "TLS handshakes", needs_tls: true, run: tls_handshakes },
    Attack { name: "admin slowloris", needs_tls: false, run: admin_slowloris },
    Attack { name: "NUMSUB flood", needs_tls: false, run: numsub_flood },
];

/// The time between two rounds of an attack that holds connections.
const ROUND: Duration = Duration::from_millis(20);

impl Field {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// Connects from an address of this attack; a later one of the same attack has it, too.
    fn connect(&self, port: u16) -> Result<TcpStream> {
        let stream = connect_from(Ipv4Addr::new(127, 2, self.number as u8, 1), port)?;
        stream.set_write_timeout(Some(Duration::from_millis(50)))?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(stream)
    }

    /// Holds so many connections, each begun by `begin`, and replaces what was closed.
    fn hold(&self, count: usize, port: u16, begin: impl Fn(usize, &mut TcpStream)) {
        let mut held: Vec<TcpStream> = Vec::new();
        while self.goes_on() {
            held.retain(|stream| !is_closed(stream));
            while held.len() < count && self.goes_on() {
                let Ok(mut stream) = self.connect(port) else { break };
                begin(held.len(), &mut stream);
                held.push(stream);
            }
            std::thread::sleep(ROUND);
        }
    }

    /// Sends the same again and again over so many connections, and reads what comes.
    fn flood(&self, count: usize, port: u16, bytes: &[u8]) {
        let mut streams: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
        let mut buffer = vec![0; 1 << 20];
        while self.goes_on() {
            for slot in &mut streams {
                let Some(stream) = slot else {
                    *slot = self.connect(port).ok();
                    continue;
                };
                let is_sent = stream.write_all(bytes).is_ok();
                let has_ended = stream.set_nonblocking(true).is_err()
                    || matches!(stream.read(&mut buffer), Ok(0))
                    || stream.set_nonblocking(false).is_err();
                if !is_sent || has_ended {
                    *slot = None;
                }
            }
        }
    }
}

/// Whether the peer closed the connection; what it sent is left unread.
fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = [0];
    let _ = stream.set_nonblocking(true);
    let peeked = stream.peek(&mut byte);
    let _ = stream.set_nonblocking(false);
    match peeked {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

fn resp(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// 150 subscribers of a channel each that do not read, and payloads of 200 kB for them.
fn slow_readers(field: &Field) {
    const READERS: usize = 150;
    let channel = |number: usize| format!("slow:{number:03}");
    let mut readers: Vec<Option<TcpStream>> = (0..READERS).map(|_| None).collect();
    let mut publisher = field.connect(field.ports.resp).ok();
    let mut buffer = vec![0; 64 << 10];
    let mut count = 0_u64;
    while field.goes_on() {
        for (number, slot) in readers.iter_mut().enumerate() {
            if slot.as_ref().is_none_or(is_closed) {
                *slot = field.connect(field.ports.resp).ok();
                if let Some(stream) = slot {
                    let name = channel(number);
                    let _ = stream.write_all(&resp(&[b"SUBSCRIBE", name.as_bytes()]));
                }
            }
            let Some(stream) = &mut publisher else {
                publisher = field.connect(field.ports.resp).ok();
                continue;
            };
            // Each payload is another, so that none is in memory once for all.
            count += 1;
            let payload = vec![count as u8; 200_000];
            let name = channel(number);
            let is_sent = stream.write_all(&resp(&[b"PUBLISH", name.as_bytes(), &payload])).is_ok();
            let _ = stream.set_nonblocking(true);
            let read = stream.read(&mut buffer);
            let _ = stream.set_nonblocking(false);
            if !is_sent || matches!(read, Ok(0)) {
                publisher = None;
            }
        }
    }
}

/// 200 requests of a megabyte of which the end is never sent.
fn half_sent(field: &Field) {
    let mut request = resp(&[b"PUBLISH", b"half", &vec![b'x'; 1_000_000]]);
    request.truncate(request.len() - 100);
    field.hold(200, field.ports.resp, |_, stream| {
        let _ = stream.write_all(&request);
    });
}

/// 20 connections that subscribe to 10,000 names of 1,000 bytes each.
fn names(field: &Field) {
    field.hold(20, field.ports.resp, |number, stream| {
        for part in 0..100 {
            let names: Vec<Vec<u8>> = (0..100)
                .map(|name| {
                    let mut bytes = format!("{number}:{part}:{name}:").into_bytes();
                    bytes.resize(1_000, b'n');
                    bytes
                })
                .collect();
            let mut words: Vec<&[u8]> = vec![b"SUBSCRIBE"];
            words.extend(names.iter().map(Vec::as_slice));
            if stream.write_all(&resp(&words)).is_err() {
                return;
            }
        }
    });
}

/// 10 connections with 1,000 patterns that are open at both ends and full of stars, and long names
/// to try them on.
fn patterns(field: &Field) {
    field.hold(10, field.ports.resp, |number, stream| {
        for pattern in 0..1_000 {
            let stars = "*a".repeat(200);
            let pattern = format!("{stars}*{number}*{pattern}*z*");
            if stream.write_all(&resp(&[b"PSUBSCRIBE", pattern.as_bytes()])).is_err() {
                break;
            }
        }
        let Ok(mut publisher) = field.connect(field.ports.resp) else { return };
        for name in 0..100 {
            let name = format!("{number}{name}{}", "a".repeat(980));
            if publisher.write_all(&resp(&[b"PUBLISH", name.as_bytes(), b"x"])).is_err() {
                return;
            }
        }
    });
}

/// 100 connections that are called by 15 megabytes each.
fn set_name(field: &Field) {
    let request = resp(&[b"CLIENT", b"SETNAME", &vec![b'x'; 15 << 20]]);
    field.hold(100, field.ports.resp, |_, stream| {
        let _ = stream.write_all(&request);
    });
}

/// Tokens with a signature that is wrong, over 20 connections.
fn auth_flood(field: &Field) {
    let token = format!(
        "{}.{}.{}",
        // {"alg":"ES256","typ":"JWT"} and {"sub":"mallory","exp":4102444800}
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9",
        "eyJzdWIiOiJtYWxsb3J5IiwiZXhwIjo0MTAyNDQ0ODAwfQ",
        "A".repeat(86)
    );
    field.flood(20, field.ports.resp, &resp(&[b"AUTH", token.as_bytes()]));
}

/// 600 requests without an end, replaced as they are closed.
fn handshakes(field: &Field) {
    field.hold(600, field.ports.http, |_, stream| {
        let _ = stream.write_all(b"GET /ws HTTP/1.1\r\nHost: localhost\r\nX-Slow: ");
    });
}

/// 600 TLS handshakes that end after the first message of the client.
fn tls_handshakes(field: &Field) {
    let hello = client_hello().unwrap_or_default();
    field.hold(600, field.ports.http, |_, stream| {
        let _ = stream.write_all(&hello);
    });
}

fn client_hello() -> Result<Vec<u8>> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into()?)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}

/// 200 requests to the admin listener without an end.
fn admin_slowloris(field: &Field) {
    let connect = || -> Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, field.ports.admin))?;
        stream.set_write_timeout(Some(Duration::from_millis(50)))?;
        Ok(stream)
    };
    let mut held: Vec<TcpStream> = Vec::new();
    while field.goes_on() {
        held.retain(|stream| !is_closed(stream));
        while held.len() < 200 && field.goes_on() {
            let Ok(mut stream) = connect() else { break };
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: ");
            held.push(stream);
        }
        std::thread::sleep(ROUND);
    }
}

/// Counts of 10,000 names, again and again, over 10 connections.
fn numsub_flood(field: &Field) {
    let names: Vec<String> = (0..10_000).map(|number| format!("name:{number:06}")).collect();
    let mut words: Vec<&[u8]> = vec![b"PUBSUB", b"NUMSUB"];
    words.extend(names.iter().map(String::as_bytes));
    field.flood(10, field.ports.resp, &resp(&words));
}
