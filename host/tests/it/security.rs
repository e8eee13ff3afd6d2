//! Access: protected mode, origins, addresses, and the limits on accepted connections.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::admin::Operator;
use crate::support::components;
use crate::support::raw::exchange;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Upgrade};
use crate::support::{PATIENCE, within};

#[tokio::test]
async fn an_open_address_needs_a_plugin_that_admits() -> Result<()> {
    let everywhere = "0.0.0.0:0";
    for (words, key) in [
        (["--http", everywhere, "--resp", "127.0.0.1:0"], "http.listen"),
        (["--http", "127.0.0.1:0", "--resp", everywhere], "resp.listen"),
        (["--http", "[::]:0", "--resp", "off"], "http.listen"),
    ] {
        for check in [None, Some("--check")] {
            let words: Vec<&str> = ["serve"].into_iter().chain(words).chain(check).collect();
            let mut server = Server::run_with(&words)?;
            let (status, stdout) = server.exit().await?;
            let log = server.log();
            assert_eq!((status.code(), stdout.len()), (Some(64), 0), "{words:?}: {log}");
            for says in [key, "--plugins", "--open-to-all", "127.0.0.1"] {
                ensure!(log.contains(says), "{words:?} does not say {says}: {log}");
            }
        }
    }

    // With the explicit flag it starts.
    let words =
        ["serve", "--http", everywhere, "--resp", everywhere, "--admin", "off", "--open-to-all"];
    let server = Server::run_with(&words)?;
    server.url().await?;
    server.stop().await?;

    // A plugin that only rewrites messages is not enough; one plugin with `admission` is.
    let plugins = components::directory()?;
    let path = plugins.path().to_str().context("a path in UTF-8")?.to_owned();
    let masking = json!({"rules": [{"channels": ["*"], "regex": "secret", "action": "mask"}]});
    components::install(plugins.path(), "20-redact", &components::built("redact")?, &masking)?;
    let (local, off) = ("127.0.0.1:0", "off");
    let words =
        ["serve", "--http", everywhere, "--resp", off, "--admin", local, "--plugins", &path];
    let mut server = Server::run_with(&words)?;
    assert_eq!(server.exit().await?.0.code(), Some(64), "{}", server.log());
    components::install(plugins.path(), "10-probe", &components::built("test/probe")?, &json!({}))?;
    let server = Server::run_with(&words)?;
    let url = server.url().await?;

    // When it is removed, only connections from other machines are refused.
    Operator::of(&server).await?.say(&["plugin", "rm", "probe"])?;
    server.wait_for_log("connections from other machines are rejected").await?;
    let port: u16 = url
        .rsplit(':')
        .next()
        .and_then(|rest| rest.strip_suffix("/ws"))
        .context("a port")?
        .parse()?;
    let mut local = connect((IpAddr::from([127, 0, 0, 1]), port).into(), &[]).await??;
    assert_eq!(local.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    // A machine that has only loopback addresses cannot test the refusal.
    if let Some(own) = own_address() {
        let (code, reason) = connect((own, port).into(), &[]).await??.next_close().await?;
        assert_eq!(code, Some(4102));
        ensure!(reason.contains("security.open_to_all"), "{reason}");
    }
    server.stop().await
}

/// An address of this machine that is not loopback. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// A client with these headers, or the HTTP response.
async fn connect(
    address: SocketAddr,
    headers: &[(&str, &str)],
) -> Result<Result<Client, anyhow::Error>> {
    let own = |text: &str| text.to_owned();
    let headers = headers.iter().map(|(name, value)| (own(name), own(value))).collect();
    let upgrade = Upgrade { headers, ..Upgrade::default() };
    let answer = Client::connect(address, &upgrade).await?;
    Ok(answer.map_err(|refused| anyhow::anyhow!("{} {}", refused.status, refused.body)))
}

#[tokio::test]
async fn pages_of_other_sites_are_refused_unless_listed() -> Result<()> {
    let config = "http.origins = ['https://*.example.com', 'http://localhost:*']";
    let server = Launch::with_config(config).start().await?;
    let address = server.address().await?;
    let own = format!("http://{address}");
    for (origin, is_allowed) in [
        (own.as_str(), true),
        ("https://a.example.com", true),
        ("http://localhost:3000", true),
        ("https://example.com", false),
        ("http://a.example.com", false),
        ("https://evil.org", false),
        ("null", false),
    ] {
        match (connect(address, &[("origin", origin)]).await?, is_allowed) {
            (Ok(mut client), true) => {
                assert_eq!(client.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
            }
            (Err(refused), false) => {
                let text = refused.to_string();
                ensure!(text.starts_with("403 "), "{origin}: {text}");
            }
            (outcome, _) => anyhow::bail!("{origin}: refused or let in: {:?}", outcome.err()),
        }
    }
    // The body names the origin, and the setting to change.
    let request = "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Origin: https://evil.org\r\n\r\n";
    let answer = exchange(address, request).await?;
    ensure!(answer.contains("https://evil.org") && answer.contains("http.origins"), "{answer}");
    // A program sends no Origin. The test page is served without an upgrade.
    connect(address, &[]).await??;
    let page = exchange(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    ensure!(page.starts_with("HTTP/1.1 200"), "{page}");
    server.stop().await
}

#[tokio::test]
async fn a_connection_too_many_from_one_address_is_closed_with_4103() -> Result<()> {
    let config = "limits.connections_per_address_max = 2\nlimits.uncounted_networks = []";
    let server = Launch::with_config(config).start().await?;
    let mut first = server.client().await?;
    let mut second = server.client().await?;
    let (code, reason) = server.client().await?.next_close().await?;
    assert_eq!(code, Some(4103));
    ensure!(reason.contains("limits.connections_per_address_max"), "{reason}");
    // Connections of both listeners count together.
    let said = exchange(server.resp_address().await?, "PING\r\n").await?;
    ensure!(said.starts_with("-ERR") && said.contains("connections_per_address_max"), "{said}");
    assert_eq!(second.call(json!(["QUIT"])).await?, json!(["OK", "OK"]));
    second.next_close().await?;
    let mut third = server.client().await?;
    assert_eq!(third.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    assert_eq!(first.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    server.stop().await?;

    // A network that is not counted may have more.
    let config = "limits.connections_per_address_max = 1";
    let server = Launch::with_config(config).start().await?;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(server.client().await?);
    }
    for client in &mut clients {
        assert_eq!(client.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    }
    server.stop().await
}

#[tokio::test]
async fn one_connection_too_many_is_rejected_on_both_listeners() -> Result<()> {
    let server = Launch::with_config("limits.connections_max = 1").start().await?;
    let mut only = server.client().await?;
    let (code, reason) = server.client().await?.next_close().await?;
    assert_eq!(code, Some(4101));
    ensure!(reason.contains("limits.connections_max"), "{reason}");
    let said = exchange(server.resp_address().await?, "PING\r\n").await?;
    assert_eq!(said, "-ERR max number of clients reached\r\n");
    assert_eq!(only.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    server.stop().await
}

/// A handshake occupies a slot, and loses it to the next one if it sends nothing.
#[tokio::test]
async fn a_handshake_that_waits_gives_way_to_the_next() -> Result<()> {
    let config = "http.handshakes_max = 1\nhttp.handshake_timeout_ms = 60000";
    let server = Launch::with_config(config).start().await?;
    let address = server.address().await?;
    let mut silent = TcpStream::connect(address).await?;
    let mut second = connect(address, &[]).await??;
    assert_eq!(second.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    let line = server.wait_for_log("handshake limit reached").await?;
    ensure!(line.contains("WARN") && line.contains("door=\"http\""), "{line}");
    ensure!(line.contains("http.handshakes_max") && line.contains("max=1"), "{line}");
    let mut said = String::new();
    within(PATIENCE, "the end", silent.read_to_string(&mut said)).await??;
    assert_eq!(said, "");
    // The other listener has slots of its own.
    let _silent = TcpStream::connect(address).await?;
    assert_eq!(exchange(server.resp_address().await?, "PING\r\n").await?, "+PONG\r\n");
    server.stop().await
}

#[tokio::test]
async fn commands_that_come_too_fast_are_refused_and_a_flood_is_closed() -> Result<()> {
    let config = "limits.commands_per_second_max = 20";
    let server = Launch::with_config(config).start().await?;
    let mut client = server.client().await?;
    // Twenty at once are permitted; further ones within the second are not.
    let began = Instant::now();
    let mut answers = Vec::new();
    for _ in 0..25 {
        answers.push(client.call(json!(["PING"])).await?);
    }
    let is_refused = |answer: &&Value| answer.pointer("/1/code") == Some(&json!("LIMIT"));
    ensure!(answers.iter().take(20).all(|answer| *answer == json!(["OK", "PONG"])), "{answers:?}");
    if began.elapsed() < Duration::from_millis(200) {
        let refused = answers.iter().filter(is_refused).count();
        ensure!(refused > 0, "none of 25 was refused: {answers:?}");
    }
    // A client that continues is closed.
    let burst = json!(vec![json!(["PING"]); 60]);
    client.send(burst.to_string().into()).await?;
    let (code, reason) = loop {
        match client.next().await? {
            tokio_tungstenite::tungstenite::Message::Close(Some(frame)) => {
                break (u16::from(frame.code), frame.reason.to_string());
            }
            _ => continue,
        }
    };
    assert_eq!(code, 4104);
    ensure!(reason.contains("limits.commands_per_second_max"), "{reason}");

    // Over RESP, also for commands that the listener answers itself.
    for command in ["PING\r\n", "ECHO x\r\n", "NONSENSE\r\n", "PUBLISH a b\r\n"] {
        let said = exchange(server.resp_address().await?, &command.repeat(60)).await?;
        let lines = said.matches("-LIMIT more than 20 commands per second").count();
        ensure!((20..=40).contains(&lines), "{command:?}: {lines} times in {said}");
    }
    server.stop().await
}

#[tokio::test]
async fn idle_connections_without_subscriptions_are_closed_if_configured() -> Result<()> {
    let config = "resp.idle_timeout_ms = 200\nlog.filter = 'debug'";
    let server = Launch::with_config(config).start().await?;
    let address = server.resp_address().await?;
    let mut listener = TcpStream::connect(address).await?;
    listener.write_all(b"SUBSCRIBE a\r\n").await?;
    let mut idle = TcpStream::connect(address).await?;
    idle.write_all(b"PING\r\n").await?;
    let mut said = String::new();
    within(PATIENCE, "the end of an idle connection", idle.read_to_string(&mut said)).await??;
    assert_eq!(said, "+PONG\r\n");
    server.wait_for_log("reason=\"idle\"").await?;
    // As in Redis, subscribers may be idle.
    let receivers = exchange(address, "PUBLISH a x\r\n").await?;
    assert_eq!(receivers, ":1\r\n");
    drop(listener);
    server.stop().await
}
