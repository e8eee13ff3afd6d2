//! How the server starts and stops, and how it detects dead connections.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::components;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{
    CLOSE, Client, Frame, PING, PONG, RawClient, TEXT, UPGRADE, close_of,
};

/// Checks the text of a shutdown notice: `["goaway", {…}]`.
fn check_goaway(said: &Value) -> Result<()> {
    let reason = said.pointer("/1/reason").and_then(Value::as_str);
    let within = said.pointer("/1/reconnect_within_ms").and_then(Value::as_array);
    let within: Vec<_> = within.into_iter().flatten().filter_map(Value::as_u64).collect();
    ensure!(said.pointer("/0") == Some(&json!("goaway")), "not a goaway: {said}");
    ensure!(reason.is_some_and(|reason| !reason.is_empty()), "no reason: {said}");
    ensure!(matches!(within[..], [from, to] if from <= to), "no time to come back: {said}");
    Ok(())
}

#[tokio::test]
async fn sigterm_notifies_clients_and_exits_with_0() -> Result<()> {
    let mut server = Launch::default().start().await?;
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..20 {
        clients.push(server.client().await?);
    }
    for client in clients.iter_mut().skip(10) {
        client.call(json!(["SUBSCRIBE", "a"])).await?;
    }
    server.signal("TERM")?;
    for client in &mut clients {
        check_goaway(&client.next_json().await?)?;
        let (code, reason) = client.next_close().await?;
        assert_eq!(code, Some(1001));
        assert!(reason.contains("shutting down"), "{reason}");
    }
    let (status, stdout) = server.exit().await?;
    assert_eq!(status.code(), Some(0));
    let schemes: Vec<_> = stdout.iter().map(|line| line.split("://").next()).collect();
    assert_eq!(
        schemes,
        [Some("ws"), Some("resp"), Some("http")],
        "stdout holds the addresses, nothing else"
    );
    assert!(!server.log().contains("panicked"));
    Ok(())
}

#[tokio::test]
async fn ctrl_c_is_an_orderly_end_as_well() -> Result<()> {
    let mut server = Launch::default().start().await?;
    let mut client = server.client().await?;
    server.signal("INT")?;
    check_goaway(&client.next_json().await?)?;
    assert_eq!(client.next_close().await?.0, Some(1001));
    assert_eq!(server.exit().await?.0.code(), Some(0));
    Ok(())
}

/// No connection is missed by the shutdown: one whose handshake is in progress is either refused or
/// notified and closed like the others.
#[tokio::test]
async fn a_handshake_under_way_at_the_end_is_not_forgotten() -> Result<()> {
    let mut server = Launch::default().start().await?;
    let mut slow = RawClient::dial(server.address().await?).await?;
    let (start, end) = UPGRADE.split_at(20);
    slow.send(start).await?;
    let mut other = server.client().await?;
    server.signal("TERM")?;
    check_goaway(&other.next_json().await?)?;
    other.next_close().await?;
    drop(other);
    // The server may have exited by now.
    let _ = slow.send(end).await;
    let came = slow.rest().await?;
    let came = String::from_utf8_lossy(&came);
    let is_notified = !came.starts_with("HTTP/1.1 101") || came.contains("shutting down");
    ensure!(is_notified, "it was let in and cut off without a word: {came}");
    server.exit().await?;
    Ok(())
}

/// A server with one client that keeps it from exiting: much output is queued for it, and it reads
/// nothing.
async fn stuck(shutdown_timeout_ms: u64) -> Result<(Server, RawClient)> {
    let config = format!(
        "shutdown.timeout_ms = {shutdown_timeout_ms}\nwebsocket.close_timeout_ms = 86400000"
    );
    let server = Launch::with_config(&config).start().await?;
    let mut stuck = RawClient::dial_narrow(server.address().await?).await?.upgrade().await?;
    stuck.send_text(r#"[1,"SUBSCRIBE","flood"]"#).await?;
    stuck.next_frame().await?.context("the connection ended")?;
    let mut publisher = server.client().await?;
    // Below outbox.soft_bytes, and far above what a narrow socket takes.
    for _ in 0..7 {
        let answer = publisher.call(json!(["PUBLISH", "flood", "x".repeat(1 << 20)])).await?;
        assert_eq!(answer, json!(["OK", 1]));
    }
    Ok((server, stuck))
}

#[tokio::test]
async fn a_client_that_does_not_read_cannot_hold_up_the_end() -> Result<()> {
    let (mut server, _stuck) = stuck(300).await?;
    server.signal("TERM")?;
    server.exit().await?;
    let log = server.log();
    let aborted = log.lines().find(|line| line.contains("did not close in time"));
    // The publisher may be one of them: its close may not have been noticed yet.
    assert!(aborted.is_some_and(|line| !line.contains("connections=0")), "{log}");
    assert!(!log.contains("panicked"));
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_at_once() -> Result<()> {
    let (mut server, _stuck) = stuck(86_400_000).await?;
    let mut other = server.client().await?;
    server.signal("TERM")?;
    // This message shows that the server has received the first signal.
    check_goaway(&other.next_json().await?)?;
    server.signal("TERM")?;
    server.exit().await?;
    Ok(())
}

#[tokio::test]
async fn nonsense_ends_with_64_and_says_what_is_wrong() -> Result<()> {
    let home = components::directory()?;
    let written = |name: &str, text: &str| -> Result<String> {
        let path = home.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_str().context("a temporary path is text")?.to_owned())
    };
    let unknown_key = written("unknown-key.toml", "[http]\nlisten = \"127.0.0.1:0\"\nport = 3\n")?;
    let unknown_table = written("unknown-table.toml", "# nothing\n[htpp]\n")?;
    let out_of_range = written("range.toml", "[limits]\nname_bytes_max = 0\n")?;
    let wrong_type = written("type.toml", "[limits]\nname_bytes_max = \"many\"\n")?;
    let not_toml = written("broken.toml", "[http\n")?;
    let one_port = written("port.toml", "http.listen = '127.0.0.1:8081'\n")?;
    let payload = written("payload.toml", "limits.payload_bytes_max = '2MiB'\n")?;
    let no_unit = written("unit.toml", "[websocket]\nping_interval_ms = '25x'\n")?;
    let no_ca = written("ca.toml", "http.tls.client_certificates = 'required'\n")?;
    let missing = home.path().join("missing.toml").to_string_lossy().into_owned();
    for (words, says) in [
        (&["serve", "--config", &unknown_key][..], &["port", "line 3"][..]),
        (&["serve", "--config", &unknown_table], &["htpp", "line 2"]),
        (&["serve", "--config", &out_of_range], &["limits.name_bytes_max", "from 1 to 1048576"]),
        (&["serve", "--config", &wrong_type], &["line 2"]),
        (&["serve", "--config", &not_toml], &["line 1"]),
        (&["serve", "--config", &missing], &["missing.toml"]),
        (&["serve", "--check", "--config", &out_of_range], &["limits.name_bytes_max"]),
        (&["serve", "--check", "--config", &one_port], &["admin.listen", "http.listen", ":8081"]),
        (&["serve", "--check", "--config", &payload], &["message_bytes_max", "payload_bytes_max"]),
        (&["serve", "--check", "--config", &no_unit], &["line 2", "\"25s\""]),
        (&["serve", "--check", "--config", &no_ca], &["http.tls.client_ca", "missing"]),
        (&["serve", "--no-such-flag"], &["--no-such-flag"]),
        (&["serve", "--shards", "many"], &["many", "--shards"]),
        (&["serve", "--http", "127.0.0.1:0", "--shards", "0"], &["shards", "from 1 to 32"]),
        (&["serve", "--http", "127.0.0.1:0", "--shards", "33"], &["shards", "from 1 to 32"]),
        (&["serve", "--http", "here"], &["here", "such as 127.0.0.1:8080"]),
        (&["serve", "--http"], &["--http"]),
        (&["serve", "--resp", "there"], &["there", "such as"]),
        (&["serve", "now"], &["now"]),
        (&["dance"], &["dance"]),
        (&[], &["serve"]),
    ] {
        let mut server = Server::run_with(words)?;
        let (status, stdout) = server.exit().await.with_context(|| format!("{words:?}"))?;
        let log = server.log();
        assert_eq!(status.code(), Some(64), "{words:?}: {log}");
        assert!(stdout.is_empty(), "{words:?}: {stdout:?}");
        for word in says {
            assert!(log.contains(word), "{words:?} does not say {word:?}: {log}");
        }
    }
    Ok(())
}

/// Before anything is compiled: the plugin is none, and is not reported.
#[tokio::test]
async fn a_port_in_use_is_reported_first_with_its_listener() -> Result<()> {
    let plugins = components::directory()?;
    std::fs::write(plugins.path().join("10-none.wasm"), "no component")?;
    let plugins = plugins.path().to_str().context("a temporary path is text")?;
    let occupied = TcpListener::bind("127.0.0.1:0")?;
    let used = occupied.local_addr()?.to_string();
    let free = "127.0.0.1:0".to_owned();
    for (flag, setting) in
        [("--http", "http.listen"), ("--resp", "resp.listen"), ("--admin", "admin.listen")]
    {
        let address = |of: &str| if of == flag { &*used } else { &*free };
        let mut words = vec!["serve", "--plugins", plugins];
        for of in ["--http", "--resp", "--admin"] {
            words.extend([of, address(of)]);
        }
        let mut server = Server::run_with(&words)?;
        let (status, stdout) = server.exit().await?;
        let log = server.log();
        assert_eq!(status.code(), Some(1), "{flag}: {log}");
        assert!(stdout.is_empty(), "{flag}: {stdout:?}");
        for word in [&*used, flag, setting, "in use", "another process"] {
            assert!(log.contains(word), "{flag} does not say {word:?}: {log}");
        }
        assert!(!log.contains("10-none"), "{flag}: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn questions_end_with_0() -> Result<()> {
    for (words, says) in [
        (&["--version"][..], "switchyard"),
        (&["--help"], "serve"),
        (&["serve", "--help"], "--config"),
    ] {
        let mut server = Server::run_with(words)?;
        let (status, stdout) = server.exit().await?;
        assert_eq!(status.code(), Some(0), "{words:?}");
        assert!(stdout.iter().any(|line| line.contains(says)), "{words:?}: {stdout:?}");
    }
    // A check binds no port and prints no address.
    let plugins = components::directory()?;
    components::install(plugins.path(), "10-probe", &components::built("test/probe")?, &json!({}))?;
    let path = plugins.path().to_str().context("a temporary path is text")?;
    for words in [&["serve", "--check"][..], &["serve", "--check", "--plugins", path]] {
        let mut server = Server::run_with(words)?;
        let (status, stdout) = server.exit().await?;
        let log = server.log();
        assert_eq!((status.code(), stdout), (Some(0), Vec::new()), "{log}");
        assert!(!log.contains("was added"), "{log}");
    }
    Ok(())
}

#[tokio::test]
async fn the_log_is_for_people_or_for_machines() -> Result<()> {
    let server = Launch::default().start().await?;
    let line = server.wait_for_log("ready").await?;
    assert!(!line.contains('\u{1b}'), "colours in a log that is no terminal: {line:?}");
    server.stop().await?;

    let server = Launch::with_config("log.format = \"json\"").start().await?;
    let line = server.wait_for_log("ready").await?;
    let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    assert!(event.is_object(), "{line}");
    server.stop().await
}

const PING_INTERVAL: Duration = Duration::from_millis(250);
/// Long enough for a busy machine to answer within it.
const PONG_TIMEOUT: Duration = Duration::from_millis(2_000);

#[tokio::test]
async fn a_silent_client_is_closed_with_4201() -> Result<()> {
    let config = format!(
        "websocket.ping_interval_ms = {}\nwebsocket.pong_timeout_ms = {}",
        PING_INTERVAL.as_millis(),
        PONG_TIMEOUT.as_millis()
    );
    let server = Launch::with_config(&config).start().await?;
    let began = Instant::now();
    let silent = server.raw_client().await?;
    // A pong is a sign of life, and so is any other frame.
    let polite = server.raw_client().await?;
    let busy = server.raw_client().await?;
    let until = began + 3 * (PING_INTERVAL + PONG_TIMEOUT);
    let (silent, polite, busy) = tokio::join!(
        silent_is_closed(silent, began),
        answers_pings(polite, until, |body| Frame::new(PONG, body)),
        answers_pings(busy, until, |_| Frame::new(TEXT, r#"["PING"]"#)),
    );
    silent.context("the silent one")?;
    polite.context("the one that answers pings")?;
    busy.context("the one that says something else")?;
    server.stop().await
}

async fn silent_is_closed(mut client: RawClient, began: Instant) -> Result<()> {
    let mut pings = 0;
    loop {
        let frame = client.next_frame().await?.context("the connection ended without a Close")?;
        if frame.opcode == CLOSE {
            let (code, reason) = close_of(&frame)?;
            ensure!(code == Some(4201), "closed with {code:?} ({reason})");
            ensure!(reason.contains("pong_timeout_ms"), "it says {reason}");
            ensure!(pings > 0, "it was never pinged");
            ensure!(began.elapsed() >= PONG_TIMEOUT, "it had no time to answer");
            return Ok(());
        }
        ensure!(frame.opcode == PING, "opcode {} came", frame.opcode);
        pings += 1;
    }
}

async fn answers_pings(
    mut client: RawClient,
    until: Instant,
    answer: impl Fn(Vec<u8>) -> Frame,
) -> Result<()> {
    let mut pings = 0;
    while Instant::now() < until {
        let frame = client.next_frame().await?.context("the connection ended")?;
        ensure!(frame.opcode == PING, "opcode {} came: {frame:?}", frame.opcode);
        client.send(answer(frame.payload).bytes()).await?;
        pings += 1;
    }
    ensure!(pings > 1, "there were only {pings} pings");
    client.send_text(r#"[1,"PING"]"#).await?;
    // Another ping may come first.
    loop {
        let frame = client.next_frame().await?.context("the connection ended")?;
        if frame.opcode == TEXT {
            ensure!(frame.payload == br#"[1,"OK","PONG"]"#, "it said {frame:?}");
            return Ok(());
        }
    }
}
