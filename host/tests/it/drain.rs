//! Shutdown of a server with many clients: what each client receives, and when it is closed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::raw::exchange;
use crate::support::server::Launch;
use crate::support::websocket::Client;

const CLIENTS: usize = 2_000;
/// Long enough for the requests during the drain, also on a busy machine.
const DRAIN: Duration = Duration::from_secs(6);
const BUCKETS: usize = 10;

/// What one client received, and when it was closed.
struct Goaway {
    reconnect_within_ms: [u64; 2],
    closed_after: Duration,
}

async fn receive_goaway(client: &mut Client, began: Instant) -> Result<Goaway> {
    let said = client.next_json().await?;
    ensure!(said.pointer("/0") == Some(&json!("goaway")), "not a goaway: {said}");
    let bound = |path| said.pointer(path).and_then(Value::as_u64).context("a number");
    let reconnect_within_ms =
        [bound("/1/reconnect_within_ms/0")?, bound("/1/reconnect_within_ms/1")?];
    let (code, _) = client.next_close().await?;
    ensure!(code == Some(1001), "closed with {code:?}");
    Ok(Goaway { reconnect_within_ms, closed_after: began.elapsed() })
}

fn histogram(values: &[u64], from: u64, to: u64) -> [usize; BUCKETS] {
    let mut buckets = [0; BUCKETS];
    for value in values {
        let place = value.saturating_sub(from) * BUCKETS as u64 / (to - from).max(1);
        let place = usize::try_from(place).unwrap_or(BUCKETS).min(BUCKETS - 1);
        if let Some(bucket) = buckets.get_mut(place) {
            *bucket += 1;
        }
    }
    buckets
}

async fn get(address: SocketAddr, path: &str) -> Result<String> {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_clients_are_closed_gradually() -> Result<()> {
    let config = format!(
        "shutdown.drain_ms = {}\nshutdown.closes_per_second = 1\n\
         shutdown.reconnect_spread_ms = 10000\nshutdown.timeout_ms = 20000",
        DRAIN.as_millis()
    );
    let mut server = Launch::with_config(&config).start().await?;
    let address = server.address().await?;
    let resp = server.resp_address().await?;
    ensure!(get(address, "/readyz").await?.starts_with("HTTP/1.1 200"), "not ready");
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(server.client().await?);
    }
    // Queued messages are delivered before the close.
    for client in clients.iter_mut().take(10) {
        client.call(json!(["SUBSCRIBE", "last"])).await?;
    }
    let publisher = clients.last_mut().context("there are clients")?;
    let answer = publisher.call(json!(["PUBLISH", "last", "words"])).await?;
    assert_eq!(answer, json!(["OK", 10]));
    server.signal("TERM")?;
    let began = Instant::now();
    for client in clients.iter_mut().take(10) {
        assert_eq!(client.next_json().await?, json!(["message", "last", "words"]));
    }
    server.wait_for_log("the server is ending").await?;

    let waiting: Vec<_> = clients
        .into_iter()
        .map(|mut client| tokio::spawn(async move { receive_goaway(&mut client, began).await }))
        .collect();
    // During the drain it is alive, not ready, and rejects new connections.
    let ready = get(address, "/readyz").await?;
    ensure!(ready.starts_with("HTTP/1.1 503") && ready.contains("draining"), "{ready}");
    ensure!(get(address, "/healthz").await?.starts_with("HTTP/1.1 200"), "not alive");
    let (code, reason) = server.client().await?.next_close().await?;
    assert_eq!(code, Some(4100), "{reason}");
    let refused = TcpStream::connect(resp).await;
    ensure!(refused.is_err(), "a Redis client was accepted");

    let mut goaways = Vec::new();
    for waiting in waiting {
        goaways.push(waiting.await??);
    }
    assert_eq!(server.exit().await?.0.code(), Some(0));

    let returns: Vec<u64> = goaways.iter().map(|said| said.reconnect_within_ms[0]).collect();
    let closes: Vec<u64> =
        goaways.iter().map(|said| said.closed_after.as_millis() as u64).collect();
    let last_return = goaways.iter().map(|said| said.reconnect_within_ms[1]).max();
    let returning = histogram(&returns, 500, 10_500);
    let closing = histogram(&closes, 0, DRAIN.as_millis() as u64);
    println!("reconnect_within_ms begins at, 1000 ms steps from 500 ms on: {returning:?}");
    println!("closed after, {} ms steps: {closing:?}", DRAIN.as_millis() / BUCKETS as u128);
    println!("the last was closed after {:?} ms", closes.iter().max());

    assert_eq!(last_return, Some(10_500));
    // The server decides when each client reconnects, so these counts are exact.
    assert_eq!(returning, [CLIENTS / BUCKETS; BUCKETS]);
    // When a client sees its close depends on the machine as well: none sees it early.
    let half: usize = closing.iter().take(BUCKETS / 2).sum();
    ensure!(half <= CLIENTS * 6 / 10, "most were closed in the first half: {closing:?}");
    let [first, ..] = closing;
    ensure!(first <= CLIENTS / BUCKETS * 2, "too many were closed at once: {closing:?}");
    for said in &goaways {
        let narrow = said.reconnect_within_ms[1] - said.reconnect_within_ms[0];
        ensure!(narrow == 100, "a slot of {narrow} ms");
    }
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() -> Result<()> {
    let config = "shutdown.drain_ms = 86400000\nshutdown.closes_per_second = 1";
    let mut server = Launch::with_config(config).start().await?;
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(server.client().await?);
    }
    server.signal("TERM")?;
    for client in &mut clients {
        client.next_json().await?;
    }
    server.signal("TERM")?;
    assert_eq!(server.exit().await?.0.code(), Some(1));
    Ok(())
}
