//! Handshakes: one address, or many that send nothing, cannot keep other clients out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::admin::Operator;
use crate::support::flood::{Flood, HALF, connect_from, loopback};
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, within};
use crate::tls::Authority;

/// A probe must be answered within this time.
const PROBE_TIME: Duration = Duration::from_secs(1);
/// How many connections a flood has: several times the number of permitted handshakes.
const FLOOD: usize = 350;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The value of a counter in the metrics.
pub async fn metric(server: &Server, line: &str) -> Result<f64> {
    let operator = Operator::of(server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (status, _, body) = operator.exchange(&head, b"")?;
    ensure!(status == 200, "{status} {body}");
    let value = body.lines().find_map(|it| it.strip_prefix(line)).unwrap_or("0");
    value.trim().parse().with_context(|| format!("{line}{value}"))
}

async fn probe(address: SocketAddr) -> Result<Duration> {
    let began = Instant::now();
    let mut stream = connect_from(HERE, address).await?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut answer = String::new();
    within(PATIENCE, "an answer", stream.read_to_string(&mut answer)).await??;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    Ok(began.elapsed())
}

async fn probes_are_answered(config: &str, from: impl Fn(usize) -> IpAddr) -> Result<Server> {
    let config = format!("http.handshakes_max = 100\n{config}");
    let server = Launch::with_config(&config).start().await?;
    let address = server.address().await?;
    let flood = Flood::start(address, FLOOD, from).await?;
    for _ in 0..20 {
        let took = probe(address).await?;
        ensure!(took < PROBE_TIME, "answered after {took:?}");
    }
    drop(flood);
    Ok(server)
}

#[tokio::test]
async fn half_requests_of_one_address_do_not_delay_probes() -> Result<()> {
    let config = "limits.uncounted_networks = []\nlimits.handshakes_per_address_max = 25";
    let server = probes_are_answered(config, |_| loopback(1)).await?;
    let refused = r#"switchyard_connections_refused_total{door="http",reason="handshake_share"}"#;
    ensure!(metric(&server, refused).await? > 0.0, "none was refused");
    server.stop().await
}

#[tokio::test]
async fn half_requests_of_many_addresses_do_not_delay_probes() -> Result<()> {
    let server = probes_are_answered("limits.uncounted_networks = []", loopback).await?;
    let dropped = r#"switchyard_connections_refused_total{door="http",reason="handshake_dropped"}"#;
    ensure!(metric(&server, dropped).await? > 0.0, "none was dropped");
    let line = server.wait_for_log("handshake limit reached").await?;
    ensure!(line.contains("WARN") && line.contains("max=100"), "{line}");
    server.stop().await
}

/// The probe comes from the address that has no share.
#[tokio::test]
async fn half_requests_of_an_uncounted_address_do_not_delay_probes() -> Result<()> {
    probes_are_answered("", |_| HERE).await?.stop().await
}

/// Whether the server closes this connection without sending a byte.
async fn is_closed_at_once(mut stream: TcpStream) -> Result<bool> {
    let mut answer = Vec::new();
    match tokio::time::timeout(PROBE_TIME, stream.read_to_end(&mut answer)).await {
        Ok(_) => Ok(answer.is_empty()),
        Err(_) => Ok(false),
    }
}

async fn a_share_holds(tls: bool, is_resp: bool) -> Result<()> {
    const SHARE: usize = 3;
    let mut config =
        "limits.handshakes_per_address_max = 3\nlimits.uncounted_networks = []\n".to_owned();
    let mut files = Vec::new();
    if tls {
        let (certificate, key) = Authority::new()?.sign("server")?;
        files = vec![("s.pem".to_owned(), certificate), ("s.key".to_owned(), key)];
        for door in ["http", "resp"] {
            config += &format!("{door}.tls.certificate = 's.pem'\n{door}.tls.key = 's.key'\n");
        }
    }
    let server = Launch { config, files, ..Launch::default() }.start().await?;
    let address = if is_resp { server.resp_address().await? } else { server.address().await? };
    let mut held = Vec::new();
    for _ in 0..SHARE {
        let mut stream = connect_from(loopback(1), address).await?;
        // Over TLS it is half of a first record: the server cannot answer it.
        let half = if tls { "\u{16}\u{3}\u{1}" } else { HALF };
        stream.write_all(half.as_bytes()).await?;
        held.push(stream);
    }
    ensure!(is_closed_at_once(connect_from(loopback(1), address).await?).await?, "one too many");
    // Another address has a share of its own.
    ensure!(!is_closed_at_once(connect_from(loopback(2), address).await?).await?);
    // A connection that ends frees its slot for the next.
    held.pop();
    within(PATIENCE, "a free place", async {
        while is_closed_at_once(connect_from(loopback(1), address).await?).await? {}
        anyhow::Ok(())
    })
    .await??;
    let door = if is_resp { "resp" } else { "http" };
    let refused = format!(
        r#"switchyard_connections_refused_total{{door="{door}",reason="handshake_share"}}"#
    );
    ensure!(metric(&server, &refused).await? >= 1.0);
    server.stop().await
}

#[tokio::test]
async fn an_address_has_a_share_of_the_http_door() -> Result<()> {
    a_share_holds(false, false).await
}

#[tokio::test]
async fn an_address_has_a_share_of_the_http_door_with_tls() -> Result<()> {
    a_share_holds(true, false).await
}

#[tokio::test]
async fn an_address_has_a_share_of_the_resp_door_with_tls() -> Result<()> {
    a_share_holds(true, true).await
}

/// Sending byte by byte does not extend the time.
#[tokio::test]
async fn the_time_of_a_handshake_begins_when_it_is_accepted() -> Result<()> {
    let config = "http.handshake_timeout_ms = 500";
    let server = Launch::with_config(config).start().await?;
    let mut stream = TcpStream::connect(server.address().await?).await?;
    let began = Instant::now();
    let (mut input, mut output) = stream.split();
    let trickling = async {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        for byte in HALF.bytes().chain(std::iter::repeat(b'x')) {
            pace.tick().await;
            if output.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    };
    let mut answer = [0; 12];
    tokio::select! {
        read = within(PATIENCE, "an answer", input.read_exact(&mut answer)) => drop(read??),
        () = trickling => anyhow::bail!("it takes bytes and answers nothing"),
    }
    ensure!(&answer == b"HTTP/1.1 408", "{answer:?}");
    ensure!(began.elapsed() < Duration::from_secs(3), "after {:?}", began.elapsed());
    server.stop().await
}
