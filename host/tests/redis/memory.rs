//! What is only announced takes no memory of the server, through either door.

use anyhow::{Context, Result, ensure};

use crate::client::RespClient;
use crate::support::server::Launch;
use crate::value::Value;

/// How many connections announce something.
const CONNECTIONS: usize = 100;
/// How much each of them announces: within the limits of its door.
const ANNOUNCED_BYTES: usize = 16_000_000;
const ANNOUNCED_FRAME_BYTES: usize = 1 << 20;
/// What a connection and its few bytes may take.
const CONNECTION_BYTES_MAX: usize = 128 << 10;

/// What the server says it holds.
async fn memory(client: &mut RespClient) -> Result<usize> {
    let Value::Bulk(text) = client.call(&["INFO", "memory"]).await? else {
        anyhow::bail!("INFO answers no text")
    };
    let text = String::from_utf8(text)?;
    let line = text.lines().find_map(|line| line.strip_prefix("used_memory:"));
    Ok(line.context("used_memory is missing")?.parse()?)
}

#[tokio::test]
async fn what_is_announced_takes_none_before_it_comes() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    let mut monitor = RespClient::connect(address).await?;
    let before = memory(&mut monitor).await?;
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        let mut client = RespClient::connect(address).await?;
        let announced = match number % 2 {
            0 => format!("*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n${ANNOUNCED_BYTES}\r\nabc"),
            _ => "*2147483647\r\n$4\r\nPING\r\n".to_owned(),
        };
        // The answer to what comes before it says that it has been seen, for it was
        // sent in one piece.
        client.send(format!("PING\r\n{announced}").as_bytes()).await?;
        ensure!(client.next().await? == Value::Simple(b"PONG".to_vec()));
        clients.push(client);
    }
    let mut browsers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = server.raw_client().await?;
        let ping = [0x89, 0x80, 0, 0, 0, 0];
        let length = (ANNOUNCED_FRAME_BYTES as u64).to_be_bytes();
        let announced = [&ping[..], &[0x81, 0x80 | 127], &length, b"mask", b"abc"].concat();
        client.send(&announced).await?;
        client.next_frame().await?.context("the ping is answered")?;
        browsers.push(client);
    }
    let more = memory(&mut monitor).await?.saturating_sub(before);
    println!("{CONNECTIONS} connections at each door took {} KiB", more >> 10);
    ensure!(more < 2 * CONNECTIONS * CONNECTION_BYTES_MAX, "the server took {more} bytes more");

    // What was announced may still come.
    let mut first = clients.swap_remove(0);
    first.send(&vec![b'x'; ANNOUNCED_BYTES - 3]).await?;
    first.send(b"\r\n").await?;
    let refused = first.next().await?;
    ensure!(matches!(&refused, Value::Error(text) if text.starts_with(b"TOOLARGE ")), "{refused}");
    first.nothing(0).await?;
    drop((first, clients, browsers, monitor));
    server.stop().await
}
