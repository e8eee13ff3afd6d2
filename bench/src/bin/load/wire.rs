//! What each protocol says, in bytes. Everything a server answers in the scenarios
//! has a length that is known beforehand, so that the load counts bytes and parses
//! nothing.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, ensure};

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Redis' protocol, version 2.
    Resp,
    /// Switchyard's JSON sub-protocol over WebSocket, which the peers speak too.
    Json,
    /// NATS. It acknowledges nothing by itself, so a PING follows each batch.
    Nats,
}

/// How long the server's WebSocket header for so many bytes is.
fn header_len(payload: usize) -> usize {
    if payload < 126 { 2 } else { 4 }
}

/// A masked text frame, as clients send it. The mask is zero: the server unmasks
/// all the same.
fn frame(text: &str) -> Vec<u8> {
    let mut bytes = vec![0x81];
    match u8::try_from(text.len()).ok().filter(|len| *len < 126) {
        Some(len) => bytes.push(0x80 | len),
        None => {
            bytes.push(0x80 | 126);
            // A command of the load has less than 64 KiB.
            bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn resp(words: &[&str]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    text.into_bytes()
}

impl Wire {
    /// What a fresh connection says first; none: nothing.
    pub fn greeting(self) -> &'static [u8] {
        match self {
            Wire::Resp => b"",
            Wire::Json => {
                b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n\
                  Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            }
            Wire::Nats => b"CONNECT {\"verbose\":false}\r\nPING\r\n",
        }
    }

    /// How what the server says to that ends.
    pub fn welcome(self) -> &'static [u8] {
        match self {
            Wire::Resp => b"",
            Wire::Json => b"\r\n\r\n",
            Wire::Nats => b"PONG\r\n",
        }
    }

    /// Subscribes to names, and how the last acknowledgement ends when the
    /// connection then holds so many.
    pub fn subscribe(self, names: &[String], held: usize) -> (Vec<u8>, Vec<u8>) {
        self.listen("SUBSCRIBE", names, held)
    }

    /// The same for patterns.
    pub fn psubscribe(self, patterns: &[String], held: usize) -> (Vec<u8>, Vec<u8>) {
        self.listen("PSUBSCRIBE", patterns, held)
    }

    fn listen(self, verb: &str, names: &[String], held: usize) -> (Vec<u8>, Vec<u8>) {
        match self {
            Wire::Resp => {
                let words: Vec<&str> =
                    std::iter::once(verb).chain(names.iter().map(String::as_str)).collect();
                (resp(&words), format!(":{held}\r\n").into_bytes())
            }
            Wire::Json => {
                let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
                let command = format!("[1,\"{verb}\",{}]", quoted.join(","));
                (frame(&command), format!("\"OK\",{held}]").into_bytes())
            }
            Wire::Nats => {
                let subs =
                    names.iter().enumerate().map(|(sid, name)| format!("SUB {name} {sid}\r\n"));
                ((subs.collect::<String>() + "PING\r\n").into_bytes(), b"PONG\r\n".to_vec())
            }
        }
    }

    /// Publishes on a channel.
    pub fn publish(self, channel: &str, payload: &str) -> Vec<u8> {
        match self {
            Wire::Resp => resp(&["PUBLISH", channel, payload]),
            Wire::Json => frame(&format!("[1,\"PUBLISH\",\"{channel}\",\"{payload}\"]")),
            Wire::Nats => format!("PUB {channel} {}\r\n{payload}\r\n", payload.len()).into_bytes(),
        }
    }

    /// What follows a batch of publications.
    pub fn after_batch(self) -> &'static [u8] {
        match self {
            Wire::Resp | Wire::Json => b"",
            Wire::Nats => b"PING\r\n",
        }
    }

    /// What servers send once to each connection, unsolicited: nats-server
    /// looks for a sign of life two seconds after the connection was made.
    pub fn uninvited(self) -> Option<&'static [u8]> {
        match self {
            Wire::Resp | Wire::Json => None,
            Wire::Nats => Some(b"PING\r\n"),
        }
    }

    /// How many bytes answer a batch of so many publications with so many receivers
    /// each.
    pub fn reply_len(self, publications: usize, receivers: usize) -> usize {
        match self {
            Wire::Resp => publications * format!(":{receivers}\r\n").len(),
            Wire::Json => publications * (2 + format!("[1,\"OK\",{receivers}]").len()),
            Wire::Nats => b"PONG\r\n".len(),
        }
    }

    /// How many bytes a subscriber of the channel is sent.
    pub fn message_len(self, channel: &str, payload: &str) -> usize {
        match self {
            Wire::Resp => resp(&["message", channel, payload]).len(),
            Wire::Json => {
                let text = format!("[\"message\",\"{channel}\",\"{payload}\"]").len();
                header_len(text) + text
            }
            Wire::Nats => format!("MSG {channel} 0 {}\r\n{payload}\r\n", payload.len()).len(),
        }
    }

    /// How many bytes a subscriber of the pattern is sent.
    pub fn pmessage_len(self, pattern: &str, channel: &str, payload: &str) -> usize {
        match self {
            Wire::Resp => resp(&["pmessage", pattern, channel, payload]).len(),
            Wire::Json => {
                let text =
                    format!("[\"pmessage\",\"{pattern}\",\"{channel}\",\"{payload}\"]").len();
                header_len(text) + text
            }
            // It has no patterns of this kind.
            Wire::Nats => 0,
        }
    }

    /// A connection that has been greeted.
    pub fn connect(self, port: u16) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        if !self.greeting().is_empty() {
            stream.write_all(self.greeting())?;
            read_until(&mut stream, self.welcome())?;
        }
        Ok(stream)
    }

    /// Whether a server executes commands. It may listen before it does, and then reject a
    /// WebSocket; a Redis client waits until then.
    pub fn is_served(self, port: u16) -> bool {
        let ping = (b"PING\r\n".to_vec(), b"+PONG\r\n".to_vec());
        let connected = self.connect(port);
        connected.is_ok_and(|mut stream| self != Wire::Resp || ask(&mut stream, &ping).is_ok())
    }
}

/// Reads until what was read ends so.
pub fn read_until(stream: &mut TcpStream, end: &[u8]) -> Result<()> {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    while !read.ends_with(end) {
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, "closed after {:?}", String::from_utf8_lossy(&read));
        read.extend_from_slice(buffer.get(..length).unwrap_or_default());
    }
    Ok(())
}

/// Says something, and reads until the answer ends so.
pub fn ask(stream: &mut TcpStream, question: &(Vec<u8>, Vec<u8>)) -> Result<()> {
    stream.write_all(&question.0)?;
    read_until(stream, &question.1)
}
