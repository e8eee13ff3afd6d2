//! A client that sends Redis commands and reads the replies as they are.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub use crate::value::command;
use crate::{PATIENCE, within};

/// A connection to the listener for Redis clients.
pub struct Resp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Resp {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Result<Resp> {
        let (reader, writer) = TcpStream::connect(address).await?.into_split();
        Ok(Resp { reader: BufReader::new(reader), writer })
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        within(PATIENCE, "the server to read", self.writer.write_all(bytes)).await??;
        Ok(())
    }

    /// The next line: what a simple reply, an error or a number says, or how long what follows
    /// is.
    pub async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        within(PATIENCE, "a reply", self.reader.read_line(&mut line)).await??;
        Ok(line.strip_suffix("\r\n").context("a whole line")?.to_owned())
    }

    /// Sends a command that is answered with one line.
    pub async fn call(&mut self, words: &[impl AsRef<[u8]>]) -> Result<String> {
        self.send(&command(words)).await?;
        self.line().await
    }

    /// The elements of an array of bulk strings and numbers, as text.
    pub async fn array(&mut self) -> Result<Vec<String>> {
        let head = self.line().await?;
        let length: usize =
            head.strip_prefix('*').with_context(|| format!("not an array: {head}"))?.parse()?;
        let mut elements = Vec::with_capacity(length);
        for _ in 0..length {
            let head = self.line().await?;
            match head.strip_prefix('$') {
                None => elements.push(head),
                Some(length) => {
                    let mut bytes = vec![0; length.parse::<usize>()? + 2];
                    within(PATIENCE, "a reply", self.reader.read_exact(&mut bytes)).await??;
                    ensure!(bytes.ends_with(b"\r\n"), "a bulk string has an end");
                    bytes.truncate(bytes.len() - 2);
                    elements.push(String::from_utf8(bytes)?);
                }
            }
        }
        Ok(elements)
    }
}
