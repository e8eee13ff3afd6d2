//! Two WebSocket clients: a well-behaved one that is third-party code, and
//! one whose every byte the test decides.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

#[allow(unused_imports, reason = "`tests/redis` shows messages")]
pub use switchyard_cli::authors::conversation::client::describe;
pub use switchyard_cli::authors::conversation::client::{Close, Upgrade};

use crate::{PATIENCE, within};

/// A client made of tokio-tungstenite.
pub type Client = switchyard_cli::authors::conversation::client::Client<TcpStream>;

/// How a frame says how long it is.
#[derive(Debug, Clone, Copy)]
pub enum Length {
    /// As RFC 6455 wants it.
    Shortest,
    /// In 16 bits, needed or not.
    Bits16,
    /// In 64 bits, needed or not.
    Bits64,
    /// In 64 bits, and this long, whatever the payload is.
    Claimed(u64),
}

/// A frame by hand: everything that RFC 6455 fixes can be wrong.
#[derive(Debug, Clone)]
pub struct Frame {
    is_last: bool,
    reserved: u8,
    opcode: u8,
    mask: Option<[u8; 4]>,
    length: Length,
    payload: Vec<u8>,
}

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

impl Frame {
    /// A frame with nothing wrong with it.
    pub fn new(opcode: u8, payload: impl AsRef<[u8]>) -> Frame {
        let payload = payload.as_ref().to_vec();
        let (mask, length) = (Some([0x37, 0xfa, 0x21, 0x3d]), Length::Shortest);
        Frame { is_last: true, reserved: 0, opcode, mask, length, payload }
    }

    /// A Close with this code and reason.
    pub fn close(code: u16, reason: impl AsRef<[u8]>) -> Frame {
        Frame::new(CLOSE, [&code.to_be_bytes(), reason.as_ref()].concat())
    }

    /// The same, but more of the message follows.
    pub fn part(self) -> Frame {
        Frame { is_last: false, ..self }
    }

    /// The same with these of the three reserved bits set.
    pub fn reserved(self, bits: u8) -> Frame {
        Frame { reserved: bits, ..self }
    }

    /// The same without a mask, as only a server may send it.
    pub fn unmasked(self) -> Frame {
        Frame { mask: None, ..self }
    }

    /// The same with this mask.
    pub fn masked_with(self, mask: [u8; 4]) -> Frame {
        Frame { mask: Some(mask), ..self }
    }

    /// The same with its length in this form.
    pub fn length(self, length: Length) -> Frame {
        Frame { length, ..self }
    }

    /// What goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.is_last) << 7 | self.reserved << 4 | self.opcode];
        let masked = u8::from(self.mask.is_some()) << 7;
        let actual = self.payload.len();
        match self.length {
            Length::Claimed(claimed) => {
                bytes.push(masked | 127);
                bytes.extend(claimed.to_be_bytes());
            }
            Length::Shortest if actual < 126 => bytes.push(masked | actual as u8),
            Length::Shortest | Length::Bits16 if actual <= 0xffff => {
                bytes.push(masked | 126);
                bytes.extend((actual as u16).to_be_bytes());
            }
            Length::Shortest | Length::Bits16 | Length::Bits64 => {
                bytes.push(masked | 127);
                bytes.extend((actual as u64).to_be_bytes());
            }
        }
        let mask = self.mask.unwrap_or_default();
        if self.mask.is_some() {
            bytes.extend(mask);
        }
        bytes.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }
}

/// A frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// What kind of frame it is.
    pub opcode: u8,
    /// What is in it.
    pub payload: Vec<u8>,
}

/// A client that sends whatever bytes it is given, and is strict about what it
/// receives.
pub struct RawClient {
    stream: TcpStream,
    /// What was received and not yet understood.
    buffer: Vec<u8>,
}

/// The upgrade request that RFC 6455 shows, and how it must be answered.
pub const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

impl RawClient {
    /// A TCP connection on which nothing has been said.
    pub async fn dial(address: SocketAddr) -> Result<RawClient> {
        let stream = within(PATIENCE, "a TCP connection", TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(RawClient { stream, buffer: Vec::new() })
    }

    /// The same with a small receive buffer, so that what is not read soon waits
    /// in the server.
    pub async fn dial_narrow(address: SocketAddr) -> Result<RawClient> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        let stream = within(PATIENCE, "a TCP connection", socket.connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(RawClient { stream, buffer: Vec::new() })
    }

    /// Sends a proper upgrade request, which must be accepted.
    pub async fn upgrade(mut self) -> Result<RawClient> {
        self.send(UPGRADE).await?;
        let (status, head) = self.response_head().await?;
        ensure!(status == 101, "the upgrade was answered with HTTP {status}");
        ensure!(head.contains(ACCEPT), "the key was not answered with {ACCEPT}: {head}");
        Ok(self)
    }

    /// Sends these bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        within(PATIENCE, "the server to take bytes", self.stream.write_all(bytes.as_ref()))
            .await??;
        Ok(())
    }

    /// Sends a text frame.
    pub async fn send_text(&mut self, text: &str) -> Result<()> {
        self.send(Frame::new(TEXT, text).bytes()).await
    }

    /// Shuts down the sending half, and still reads.
    pub async fn end_sending(&mut self) -> Result<()> {
        // Fails when the server has gone first, which is its right.
        let _ = self.stream.shutdown().await;
        Ok(())
    }

    /// Closes with a reset instead of an orderly end.
    pub fn reset(self) -> Result<()> {
        self.stream.set_zero_linger()?;
        Ok(())
    }

    /// The status and the head, in lower case but for values, of an HTTP answer.
    pub async fn response_head(&mut self) -> Result<(u16, String)> {
        within(PATIENCE, "an HTTP answer", async {
            loop {
                if let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                    let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                    let head = String::from_utf8(head).context("the head is not text")?;
                    let rest = ["HTTP/1.1 ", "HTTP/1.0 "].map(|version| head.strip_prefix(version));
                    let rest = rest.into_iter().flatten().next();
                    let status = rest.and_then(|rest| rest.get(..3));
                    let status = status.and_then(|status| status.parse().ok());
                    return Ok((status.with_context(|| format!("no status: {head}"))?, head));
                }
                ensure!(self.receive().await?, "the connection ended before an HTTP answer");
            }
        })
        .await?
    }

    /// The next frame; none at the end of the connection. Fails if the frame is
    /// not one that a server may send.
    pub async fn next_frame(&mut self) -> Result<Option<Received>> {
        within(PATIENCE, "a frame", async {
            loop {
                if let Some(frame) = self.take_frame()? {
                    return Ok(Some(frame));
                }
                if !self.receive().await? {
                    ensure!(
                        self.buffer.is_empty(),
                        "the connection ended within a frame, after {} bytes of it",
                        self.buffer.len()
                    );
                    return Ok(None);
                }
            }
        })
        .await?
    }

    /// The Close that must come next, echoed as RFC 6455 wants it, and the end
    /// of the connection after it.
    pub async fn next_close(&mut self) -> Result<Close> {
        let frame = self.next_frame().await?.context("the connection ended without a Close")?;
        let close = close_of(&frame)?;
        // The server may have closed the connection already; it need not wait for this frame.
        let _ = self.send(Frame::new(CLOSE, &frame.payload).bytes()).await;
        self.ends().await?;
        Ok(close)
    }

    /// The connection must end, without another byte.
    pub async fn ends(&mut self) -> Result<()> {
        let rest = self.rest().await?;
        ensure!(rest.is_empty(), "{} came before the end", rest.escape_ascii());
        Ok(())
    }

    /// All that comes until the connection ends.
    pub async fn rest(&mut self) -> Result<Vec<u8>> {
        within(PATIENCE, "the end of the connection", async {
            while self.receive().await? {}
            Ok(std::mem::take(&mut self.buffer))
        })
        .await?
    }

    /// Waits for more bytes; false at the end, be it orderly or a reset.
    async fn receive(&mut self) -> Result<bool> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(bytes) => Ok(bytes > 0),
            Err(problem) if problem.kind() == std::io::ErrorKind::ConnectionReset => Ok(false),
            Err(problem) => Err(problem).context("cannot read"),
        }
    }

    fn take_frame(&mut self) -> Result<Option<Received>> {
        let Some((&[first, second], rest)) = self.buffer.split_first_chunk() else {
            return Ok(None);
        };
        let (length, header) = match second {
            0..126 => (usize::from(second), 2),
            126 => match rest.first_chunk() {
                Some(length) => (usize::from(u16::from_be_bytes(*length)), 4),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(length) => (u64::from_be_bytes(*length) as usize, 10),
                None => return Ok(None),
            },
            _ => bail!("the server masked a frame"),
        };
        ensure!(first & 0x70 == 0, "the server set reserved bits: {first:#x}");
        ensure!(first & 0x80 != 0, "the server fragmented a message: {first:#x}");
        let shortest = match length {
            0..126 => 2,
            126..=0xffff => 4,
            _ => 10,
        };
        ensure!(header == shortest, "the server wrote the length {length} in a long form");
        if self.buffer.len() < header + length {
            return Ok(None);
        }
        let payload = self.buffer.drain(..header + length).skip(header).collect();
        Ok(Some(Received { opcode: first & 0x0f, payload }))
    }
}

/// What a frame that must be a Close says.
pub fn close_of(frame: &Received) -> Result<Close> {
    let shown = frame.payload.escape_ascii();
    ensure!(frame.opcode == CLOSE, "expected a Close, but opcode {} came: {shown}", frame.opcode);
    ensure!(frame.payload.len() <= 125, "the Close is too long: {shown}");
    match frame.payload.split_first_chunk() {
        Some((code, reason)) => Ok((
            Some(u16::from_be_bytes(*code)),
            std::str::from_utf8(reason).context("the reason is not UTF-8")?.to_owned(),
        )),
        None => {
            ensure!(frame.payload.is_empty(), "the Close has one byte");
            Ok((None, String::new()))
        }
    }
}
