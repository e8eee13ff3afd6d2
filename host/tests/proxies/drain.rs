//! Shutdown of a server with many clients: what each client receives, and when it is closed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::support::admin::Operator;
use crate::support::components::{self, write_atomically};
use crate::support::http_service::{HttpService, ReceivedRequest, answer};
use crate::support::raw::{self, exchange};
use crate::support::resp::Resp;
use crate::support::server::{Launch, Server, with_quick_end};
use crate::support::websocket::{Client, UPGRADE, Upgrade};
use crate::support::{PATIENCE, within};

const CLIENTS: usize = 2_000;
/// Long enough for the requests during the drain, also on a busy machine.
const DRAIN: Duration = Duration::from_secs(4);
const BUCKETS: usize = 10;
/// How much later than it was sent a client may see its notice.
const LATE: Duration = Duration::from_millis(400);

/// What one client received, and when it was closed.
struct Goaway {
    reconnect_within: [Duration; 2],
    closes_in: Duration,
    notified_after: Duration,
    closed_after: Duration,
}

async fn receive_goaway(client: &mut Client, began: Instant) -> Result<Goaway> {
    let said = client.next_json().await?;
    let notified_after = began.elapsed();
    ensure!(said.pointer("/0") == Some(&json!("goaway")), "not a goaway: {said}");
    let time = |path| {
        let ms = said.pointer(path).and_then(Value::as_u64).context("a number")?;
        anyhow::Ok(Duration::from_millis(ms))
    };
    let reconnect_within = [time("/1/reconnect_within_ms/0")?, time("/1/reconnect_within_ms/1")?];
    let closes_in = time("/1/closes_in_ms")?;
    let (code, _) = client.next_close().await?;
    ensure!(code == Some(1001), "closed with {code:?}");
    Ok(Goaway { reconnect_within, closes_in, notified_after, closed_after: began.elapsed() })
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

/// What a request for a WebSocket is answered, if it is not answered with an upgrade.
async fn refused(address: SocketAddr) -> Result<String> {
    let answer = exchange(address, UPGRADE).await?;
    ensure!(!answer.starts_with("HTTP/1.1 101"), "it was upgraded: {answer}");
    Ok(answer)
}

/// The status of `/readyz` at the doors of clients and of the admin API.
async fn readiness(server: &Server) -> Result<(u16, u16)> {
    let admin = Operator::of(server).await?.ask("GET", "/readyz", None)?;
    Ok((raw::get(server.address().await?, "/readyz").await?.0, admin.0))
}

/// Waits until it is not ready.
async fn until_not_ready(server: &Server) -> Result<()> {
    within(PATIENCE, "a server that is not ready", async {
        while readiness(server).await? != (503, 503) {}
        anyhow::Ok(())
    })
    .await?
}

#[tokio::test]
async fn in_the_grace_period_only_the_readiness_changes() -> Result<()> {
    let config = "shutdown.grace_ms = 86400000\nlimits.name_bytes_max = 5";
    let mut server = Launch::with_config(config).start().await?;
    let mut before = server.client().await?;
    before.call(json!(["SUBSCRIBE", "a"])).await?;
    assert_eq!(readiness(&server).await?, (200, 200));
    server.signal("TERM")?;
    until_not_ready(&server).await?;
    let mut after = server.client().await?;
    assert_eq!(after.call(json!(["PUBLISH", "a", "x"])).await?, json!(["OK", 1]));
    assert_eq!(before.next_json().await?, json!(["message", "a", "x"]));
    let mut redis = Resp::connect(server.resp_address().await?).await?;
    assert_eq!(redis.call(&["PUBLISH", "a", "y"]).await?, ":1");
    assert_eq!(before.next_json().await?, json!(["message", "a", "y"]));
    let (status, text) = raw::get(server.address().await?, "/healthz").await?;
    assert_eq!((status, text.as_str()), (200, "ok\n"));
    let changed = with_quick_end("shutdown.grace_ms = 86400000\nlimits.name_bytes_max = 6");
    write_atomically(&server.home().join("switchyard.toml"), changed.as_bytes())?;
    server.wait_for_log("settings were changed").await?;
    server.signal("TERM")?;
    assert_eq!(server.exit().await?.0.code(), Some(1), "a second signal ends it at once");
    Ok(())
}

#[tokio::test]
async fn each_connection_is_closed_a_second_after_its_client_should_be_elsewhere() -> Result<()> {
    let [grace, spread] = [300, 200];
    let config = format!(
        "shutdown.grace_ms = {grace}\nshutdown.reconnect_spread_ms = {spread}\n\
         shutdown.close_delay_ms = 1000"
    );
    let mut server = Launch::with_config(&config).start().await?;
    let (address, resp) = (server.address().await?, server.resp_address().await?);
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(server.client().await?);
    }
    let mut redis = Resp::connect(resp).await?;
    redis.call(&["PING"]).await?;
    server.signal("TERM")?;
    let began = Instant::now();
    let waiting = clients.into_iter().map(|mut client| async move {
        // A client that has the notice knows that nothing new is accepted.
        let said = client.next_json().await?;
        let notified_after = began.elapsed();
        ensure!(said.pointer("/0") == Some(&json!("goaway")), "not a goaway: {said}");
        let answer = refused(address).await?;
        ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        ensure!(answer.to_lowercase().contains("\r\nretry-after: "), "{answer}");
        ensure!(TcpStream::connect(resp).await.is_err(), "a Redis client was accepted");
        let number = |path: &str| said.pointer(path).and_then(Value::as_u64).context("a number");
        let to = number("/1/reconnect_within_ms/1")?;
        ensure!(number("/1/closes_in_ms")? == to + 1_000, "{said}");
        let (code, _) = client.next_close().await?;
        assert_eq!(code, Some(1001));
        // Grace period, then at least the time of its own notice.
        let earliest = Duration::from_millis(grace + to + 1_000);
        let latest = Duration::from_millis(grace + spread + 1_000) + PATIENCE;
        let closed_after = began.elapsed();
        ensure!((earliest..latest).contains(&closed_after), "after {closed_after:?}: {said}");
        let open = closed_after - notified_after + LATE;
        ensure!(open >= Duration::from_millis(to + 1_000), "open for {open:?}: {said}");
        anyhow::Ok(())
    });
    futures_util::future::try_join_all(waiting).await?;
    assert_eq!(server.exit().await?.0.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn ctrl_c_and_a_server_without_connections_have_no_grace() -> Result<()> {
    let config = "shutdown.grace_ms = 86400000";
    let mut server = Launch::with_config(config).start().await?;
    server.signal("TERM")?;
    assert_eq!(server.exit().await?.0.code(), Some(0));

    let mut server = Launch::with_config(config).start().await?;
    let mut client = server.client().await?;
    server.signal("INT")?;
    receive_goaway(&mut client, Instant::now()).await?;
    assert_eq!(server.exit().await?.0.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn a_drain_ends_when_all_clients_have_left() -> Result<()> {
    let config = "shutdown.reconnect_spread_ms = 86400000";
    let mut server = Launch::with_config(config).start().await?;
    let mut client = server.client().await?;
    server.signal("TERM")?;
    let said = client.next_json().await?;
    ensure!(said.pointer("/0") == Some(&json!("goaway")), "not a goaway: {said}");
    drop(client);
    assert_eq!(server.exit().await?.0.code(), Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_clients_are_closed_gradually() -> Result<()> {
    let ms = DRAIN.as_millis() as u64;
    let config = format!(
        "shutdown.drain_ms = {ms}\nshutdown.closes_per_second = 1\n\
         shutdown.reconnect_spread_ms = 1000\nshutdown.close_delay_ms = 500\n\
         shutdown.timeout_ms = 20000"
    );
    let mut server = Launch::with_config(&config).start().await?;
    let address = server.address().await?;
    let resp = server.resp_address().await?;
    assert_eq!(readiness(&server).await?, (200, 200));
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
    assert_eq!(readiness(&server).await?, (503, 503));
    let answer = refused(address).await?;
    ensure!(answer.starts_with("HTTP/1.1 503") && answer.contains("shutting down"), "{answer}");
    let refused = TcpStream::connect(resp).await;
    ensure!(refused.is_err(), "a Redis client was accepted");

    let mut goaways = Vec::new();
    for waiting in waiting {
        goaways.push(waiting.await??);
    }
    assert_eq!(server.exit().await?.0.code(), Some(0));

    let ms_of = |time: fn(&Goaway) -> Duration| -> Vec<u64> {
        goaways.iter().map(|said| time(said).as_millis() as u64).collect()
    };
    let notices = ms_of(|said| said.notified_after);
    let closes = ms_of(|said| said.closed_after);
    let step = DRAIN.as_millis() / BUCKETS as u128;
    let notified = histogram(&notices, 0, ms);
    let closing = histogram(&closes, 500, 500 + ms);
    println!("notified after, {step} ms steps: {notified:?}");
    println!("closed after, {step} ms steps from 500 ms on: {closing:?}");
    println!("the last was closed after {:?} ms", closes.iter().max());
    // When a client sees its notice and its close depends on the machine as well: none sees it
    // early.
    for buckets in [notified, closing] {
        let half: usize = buckets.iter().take(BUCKETS / 2).sum();
        ensure!(half <= CLIENTS * 6 / 10, "most came in the first half: {buckets:?}");
        let [first, ..] = buckets;
        ensure!(first <= CLIENTS / BUCKETS * 2, "too many at once: {buckets:?}");
    }
    for said in &goaways {
        let [from, to] = said.reconnect_within;
        ensure!([from, to] == [Duration::ZERO, DRAIN / 100], "a slot from {from:?} to {to:?}");
        ensure!(said.closes_in == to + Duration::from_millis(500), "{:?}", said.closes_in);
        ensure!(said.closed_after >= said.closes_in, "closed after {:?}", said.closed_after);
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
    server.wait_for_log("the server is ending").await?;
    server.signal("TERM")?;
    assert_eq!(server.exit().await?.0.code(), Some(1));
    Ok(())
}

/// The client of a WebSocket does not answer its Close.
#[tokio::test]
async fn probes_are_answered_until_the_process_ends() -> Result<()> {
    let config = "shutdown.timeout_ms = 86400000\nwebsocket.close_timeout_ms = 86400000";
    let mut server = Launch::with_config(config).start().await?;
    let admin = server.admin_url().await?.trim_start_matches("http://").parse()?;
    let listeners = [server.address().await?, admin];
    let probe =
        |path| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let held = server.raw_client().await?;
    let mut early = Vec::new();
    for address in listeners {
        for begun in ["", "GET /livez HTTP/1.1\r\n"] {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(begun.as_bytes()).await?;
            early.push((stream, begun));
        }
    }
    // They have been accepted before these requests.
    assert_eq!(readiness(&server).await?, (200, 200));
    server.signal("TERM")?;
    server.wait_for_log("connections were notified of the shutdown").await?;
    for _ in 0..20 {
        for address in listeners {
            for (path, status) in [("/livez", "200"), ("/readyz", "503")] {
                let answer = raw::converse(address, &probe(path)).await?;
                let is_expected = answer.starts_with(&format!("HTTP/1.1 {status} "));
                ensure!(is_expected, "{path} of {address}: {answer}");
            }
        }
        let answer = refused(server.address().await?).await?;
        ensure!(answer.starts_with("HTTP/1.1 503") && answer.contains("shutting down"), "{answer}");
    }
    for (mut stream, begun) in early {
        let request = probe("/livez");
        stream.write_all(request.trim_start_matches(begun).as_bytes()).await?;
        let mut answer = String::new();
        within(PATIENCE, "an answer", stream.read_to_string(&mut answer)).await??;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{begun:?}: {answer}");
    }
    drop(held);
    assert_eq!(server.exit().await?.0.code(), Some(0));
    Ok(())
}

/// What was queued has been sent, and there is no close handshake to wait for.
#[tokio::test]
async fn a_redis_client_that_stays_connected_does_not_delay_the_end() -> Result<()> {
    let config = "shutdown.timeout_ms = 86400000\nwebsocket.close_timeout_ms = 86400000";
    let mut server = Launch::with_config(config).start().await?;
    let mut staying = Resp::connect(server.resp_address().await?).await?;
    assert_eq!(staying.call(&["PING"]).await?, "+PONG");
    server.signal("TERM")?;
    assert_eq!(server.exit().await?.0.code(), Some(0));
    drop(staying);
    Ok(())
}

#[tokio::test]
async fn a_client_that_is_admitted_late_does_not_prolong_the_drain() -> Result<()> {
    let (release, released) = watch::channel(false);
    let service = HttpService::start(move |request: ReceivedRequest| {
        let mut released = released.clone();
        async move {
            if request.body.contains("late") {
                let _it_ended = released.wait_for(|is_released| *is_released).await;
            }
            answer(200, "{}")
        }
    })
    .await?;
    let directory = components::directory()?;
    let settings = json!({"url": service.url("/")});
    let beside = json!({"http_allow": [service.origin()], "settings": settings});
    components::configure(directory.path(), "05-webhook-auth", &beside)?;
    let plugin = components::built("webhook-auth")?;
    components::write_atomically(&components::path(directory.path(), "05-webhook-auth"), &plugin)?;
    let plugins = Some(directory.path().to_owned());
    let config = "shutdown.close_delay_ms = 5000";
    let mut server = Launch { plugins, ..Launch::with_config(config) }.start().await?;
    let address = server.address().await?;
    let mut first = server.client().await?;
    let headers = vec![("cookie".to_owned(), "late".to_owned())];
    let upgrade = Upgrade { headers, ..Upgrade::default() };
    let connecting = tokio::spawn(async move { Client::connect(address, &upgrade).await });
    service.wait_for(2).await?;
    server.signal("TERM")?;
    let began = Instant::now();
    let closes_in = |said: &Value| said.pointer("/1/closes_in_ms").and_then(Value::as_u64);
    let said = first.next_json().await?;
    ensure!(closes_in(&said) == Some(5_000), "{said}");
    release.send_replace(true);
    let mut late = connecting.await??.map_err(|refused| anyhow!("HTTP {}", refused.status))?;
    let goaway = receive_goaway(&mut late, began).await?;
    ensure!(goaway.closes_in < Duration::from_secs(5), "{:?}", goaway.closes_in);
    ensure!(goaway.reconnect_within[1] <= goaway.closes_in, "{:?}", goaway.reconnect_within);
    let open = goaway.closed_after - goaway.notified_after;
    ensure!(open + LATE >= goaway.closes_in, "closed {open:?} after the notice");
    drop((first, late));
    assert_eq!(server.exit().await?.0.code(), Some(0));
    Ok(())
}
