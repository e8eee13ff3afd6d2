//! Bytes to a listener, and what comes back until it closes.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{PATIENCE, within};

/// Says this and no more; what is answered until the end.
pub async fn exchange(address: SocketAddr, says: &str) -> Result<String> {
    within(PATIENCE, "an answer", async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(says.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    })
    .await?
}

/// The same where the client leaves its half open: what is sent must ask for the end of the
/// connection.
pub async fn converse(address: SocketAddr, says: &str) -> Result<String> {
    within(PATIENCE, "an answer", async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(says.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    })
    .await?
}

/// What a `GET` of this path is answered: status and body.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let answer = exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("an answer has a status")?, body.to_owned()))
}
