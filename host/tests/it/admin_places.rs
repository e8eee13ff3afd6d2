//! The admin listener answers while other clients hold connections to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::handshakes::metric;
use crate::support::flood::{Flood, connect_from, loopback};
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, within};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ANSWER_TIME: Duration = Duration::from_secs(1);

async fn address(server: &Server) -> Result<SocketAddr> {
    let url = server.admin_url().await?;
    Ok(url.strip_prefix("http://").context("it is a URL")?.parse()?)
}

async fn ask(address: SocketAddr, path: &str) -> Result<()> {
    let began = Instant::now();
    let mut stream = connect_from(HERE, address).await?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    within(PATIENCE, "an answer", stream.read_to_string(&mut answer)).await??;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer:?}");
    ensure!(began.elapsed() < ANSWER_TIME, "{path}: answered after {:?}", began.elapsed());
    Ok(())
}

async fn answers_during(from: impl Fn(usize) -> IpAddr) -> Result<()> {
    let server = Launch::default().start().await?;
    let address = address(&server).await?;
    let flood = Flood::start(address, 200, from).await?;
    for _ in 0..10 {
        for path in ["/metrics", "/healthz"] {
            ask(address, path).await?;
        }
    }
    let dropped = r#"switchyard_admin_connections_refused_total{reason="dropped"}"#;
    let are_dropped = async {
        while metric(&server, dropped).await? == 0.0 {}
        anyhow::Ok(())
    };
    within(PATIENCE, "a connection to be dropped", are_dropped).await??;
    drop(flood);
    server.stop().await
}

#[tokio::test]
async fn slow_requests_of_the_same_address_do_not_silence_it() -> Result<()> {
    answers_during(|_| HERE).await
}

#[tokio::test]
async fn slow_requests_of_many_addresses_do_not_silence_it() -> Result<()> {
    answers_during(loopback).await
}

/// Connections that send half of a body, and connections that were answered and stay idle.
#[tokio::test]
async fn slow_bodies_and_idle_connections_do_not_silence_it() -> Result<()> {
    let config = "admin.connections_max = 8\nadmin.connections_per_address_max = 8";
    let server = Launch::with_config(config).start().await?;
    let address = address(&server).await?;
    let mut held = Vec::new();
    for number in 0..8 {
        let mut stream = connect_from(HERE, address).await?;
        let head = match number % 2 {
            0 => format!(
                "POST /v1/plugins/x HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000\r\n\
                 Content-Type: application/wasm\r\n\r\nx"
            ),
            _ => format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n"),
        };
        stream.write_all(head.as_bytes()).await?;
        if number % 2 == 1 {
            stream.read_exact(&mut [0; 12]).await?;
        }
        held.push(stream);
    }
    for _ in 0..20 {
        ask(address, "/healthz").await?;
    }
    server.stop().await
}

/// A trace stream is not closed when other clients connect.
#[tokio::test]
async fn a_stream_is_not_closed_for_others() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = address(&server).await?;
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("GET /v1/trace?channel=x HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut said = vec![0; 4096];
    let mut length = 0;
    within(PATIENCE, "the first line", async {
        while !String::from_utf8_lossy(&said[..length]).contains("began") {
            let read = stream.read(&mut said[length..]).await?;
            ensure!(read > 0, "it ended");
            length += read;
        }
        Ok(())
    })
    .await??;
    let flood = Flood::start(address, 200, |_| HERE).await?;
    ask(address, "/healthz").await?;
    drop(flood);
    // It is still open: only the keep-alive lines of the stream arrive.
    match tokio::time::timeout(Duration::from_millis(300), stream.read(&mut said)).await {
        Err(_) => {}
        Ok(read) => ensure!(read? > 0, "it was closed"),
    }
    server.stop().await
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for_long() -> Result<()> {
    let server = Launch::with_config("admin.head_timeout_ms = 200").start().await?;
    let mut stream = TcpStream::connect(address(&server).await?).await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\n").await?;
    let mut rest = Vec::new();
    let began = Instant::now();
    let _reset = within(PATIENCE, "the end", stream.read_to_end(&mut rest)).await?;
    ensure!(began.elapsed() < Duration::from_secs(5), "after {:?}", began.elapsed());
    server.stop().await
}
