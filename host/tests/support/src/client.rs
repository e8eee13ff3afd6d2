//! A client that speaks RESP, over TCP or in the binary frames of a WebSocket.
//!
//! Over a WebSocket it cuts what it sends into frames at will, and takes the
//! replies however they are cut.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use guest_core::model::Random;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use crate::server::Server;
use crate::value::{self, Value};
use crate::websocket::{self, Upgrade, describe};
use crate::{PATIENCE, within};

/// A connection.
pub struct RespClient {
    wire: Wire,
    /// What was received and not yet looked at.
    buffer: Vec<u8>,
}

enum Wire {
    Stream(TcpStream),
    Frames { client: Box<websocket::Client>, cuts: Random },
}

impl RespClient {
    /// Over TCP.
    pub async fn connect(address: SocketAddr) -> Result<RespClient> {
        let stream = within(PATIENCE, "a TCP connection", TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(RespClient { wire: Wire::Stream(stream), buffer: Vec::new() })
    }

    /// The same with a small receive buffer, so that what is not read soon waits
    /// in the server.
    pub async fn connect_narrow(address: SocketAddr) -> Result<RespClient> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        let stream = within(PATIENCE, "a TCP connection", socket.connect(address)).await??;
        Ok(RespClient { wire: Wire::Stream(stream), buffer: Vec::new() })
    }

    /// Over a WebSocket with the sub-protocol `resp`. The seed decides how what
    /// is sent is cut into frames.
    pub async fn connect_framed(server: &Server, seed: u64) -> Result<RespClient> {
        let upgrade = Upgrade { subprotocols: vec!["resp".to_owned()], ..Upgrade::default() };
        let address = server.address().await?;
        let Ok(client) = websocket::Client::connect(address, &upgrade).await? else {
            bail!("the sub-protocol resp was refused")
        };
        ensure!(client.subprotocol.as_deref() == Some("resp"), "the server chose another one");
        let wire = Wire::Frames { client: Box::new(client), cuts: Random::new(seed) };
        Ok(RespClient { wire, buffer: Vec::new() })
    }

    /// Sends bytes.
    pub async fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        match &mut self.wire {
            Wire::Stream(stream) => {
                within(PATIENCE, "the server to take bytes", stream.write_all(bytes)).await??;
            }
            Wire::Frames { client, cuts } => {
                while !bytes.is_empty() {
                    // A third of the time whole, else at any place, also before
                    // the first byte.
                    let cut = match cuts.index(3) {
                        0 => bytes.len(),
                        1 => cuts.index(bytes.len().min(10)),
                        _ => cuts.index(bytes.len()),
                    };
                    let (frame, rest) = bytes.split_at(cut);
                    client.send(Message::binary(frame.to_vec())).await?;
                    bytes = rest;
                }
            }
        }
        Ok(())
    }

    /// Sends a command.
    pub async fn command(&mut self, words: &[impl AsRef<[u8]>]) -> Result<()> {
        self.send(&value::command(words)).await
    }

    /// Sends a command and gives the next value that comes.
    pub async fn call(&mut self, words: &[impl AsRef<[u8]>]) -> Result<Value> {
        self.command(words).await?;
        self.next().await
    }

    /// The next value.
    pub async fn next(&mut self) -> Result<Value> {
        within(PATIENCE, "a reply", async {
            loop {
                if let Some((value, length)) = value::parse(&self.buffer)? {
                    self.buffer.drain(..length);
                    return Ok(value);
                }
                ensure!(
                    self.receive().await?,
                    "the connection ended after {}",
                    self.buffer.escape_ascii()
                );
            }
        })
        .await?
    }

    /// The next so many values.
    pub async fn next_many(&mut self, count: usize) -> Result<Vec<Value>> {
        let mut values = Vec::with_capacity(count);
        // One drain for all: there may be many in the buffer.
        let mut start = 0;
        while values.len() < count {
            match value::parse(self.buffer.get(start..).unwrap_or_default())? {
                Some((value, length)) => {
                    values.push(value);
                    start += length;
                }
                None => {
                    self.buffer.drain(..std::mem::take(&mut start));
                    let came = within(PATIENCE, "more replies", self.receive()).await??;
                    ensure!(came, "the connection ended after {} replies", values.len());
                }
            }
        }
        self.buffer.drain(..start);
        Ok(values)
    }

    /// Sends a command until it is answered like this: what another connection
    /// does, or that it closed, takes its time to be known.
    pub async fn until(&mut self, words: &[&str], expected: &Value) -> Result<()> {
        within(PATIENCE, format_args!("{words:?} to be answered with {expected}"), async {
            while self.call(words).await? != *expected {
                tokio::task::yield_now().await;
            }
            Ok(())
        })
        .await?
    }

    /// Fails if anything has come that was not read. It holds for what happened
    /// before: this asks the server a question, whose answer must come next.
    pub async fn nothing(&mut self, question: u64) -> Result<()> {
        let question = format!("nothing, at {question}");
        let answer = self.call(&["PING", question.as_str()]).await?;
        let listening = [Value::bulk("pong"), Value::bulk(&question)];
        let is_answer = match &answer {
            Value::Bulk(text) => text == question.as_bytes(),
            Value::Aggregate(value::Shape::Array, items) => *items == listening,
            _ => false,
        };
        ensure!(is_answer, "this came: {answer}");
        Ok(())
    }

    /// Ends its half of the connection.
    pub async fn end_sending(&mut self) -> Result<()> {
        match &mut self.wire {
            Wire::Stream(stream) => Ok(stream.shutdown().await?),
            Wire::Frames { .. } => bail!("a WebSocket has no half-close"),
        }
    }

    /// Closes with a reset instead of an orderly end.
    pub fn reset(self) -> Result<()> {
        match self.wire {
            Wire::Stream(stream) => Ok(stream.set_zero_linger()?),
            Wire::Frames { .. } => bail!("this is for TCP"),
        }
    }

    /// All that comes until the connection ends.
    pub async fn rest(&mut self) -> Result<Vec<u8>> {
        within(PATIENCE, "the end", async {
            while self.receive().await? {}
            Ok(std::mem::take(&mut self.buffer))
        })
        .await?
    }

    /// The connection must end, with nothing before that. Over a WebSocket a
    /// Close comes, and this is its code.
    pub async fn ends(&mut self) -> Result<Option<u16>> {
        let code = match &mut self.wire {
            Wire::Stream(_) => {
                self.buffer = self.rest().await?;
                None
            }
            Wire::Frames { client, .. } => client.next_close().await?.0,
        };
        ensure!(self.buffer.is_empty(), "before the end came {}", self.buffer.escape_ascii());
        Ok(code)
    }

    /// Waits for more bytes; false at the end, be it orderly or a reset.
    async fn receive(&mut self) -> Result<bool> {
        match &mut self.wire {
            Wire::Stream(stream) => match stream.read_buf(&mut self.buffer).await {
                Ok(bytes) => Ok(bytes > 0),
                Err(problem) if problem.kind() == std::io::ErrorKind::ConnectionReset => Ok(false),
                Err(problem) => Err(problem).context("cannot read"),
            },
            Wire::Frames { client, .. } => match client.next().await? {
                Message::Binary(bytes) => {
                    self.buffer.extend(bytes);
                    Ok(true)
                }
                Message::Close(_) => Ok(false),
                other => bail!("{} came", describe(&other)),
            },
        }
    }
}
