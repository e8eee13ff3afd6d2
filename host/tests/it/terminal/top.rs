//! `switchyard top`, against a stand-in for the admin API.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{in_a_terminal, outcome, switchyard};
use crate::support::process::Process;
use crate::support::server::Launch;

const TOKEN: &str = "0123456789abcdef";

/// Answers GETs, with counters that grow with each request. Returns its URL.
async fn admin_api() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let looks = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, looks.clone()));
        }
    });
    Ok(url)
}

async fn answer(mut stream: TcpStream, looks: Arc<AtomicU64>) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8(request)?;
    let path = request.split(' ').nth(1).unwrap_or_default();
    let is_known = request.to_lowercase().contains(&format!("authorization: bearer {TOKEN}"));
    let (status, body) = match path {
        _ if !is_known => ("401 Unauthorized", json!({ "code": "unauthorised", "message": "no" })),
        "/v1/stats" => ("200 OK", stats(looks.fetch_add(1, Ordering::Relaxed))),
        "/v1/plugins" => ("200 OK", json!({ "plugins": [plugin()] })),
        "/v1/connections?limit=1000" => ("200 OK", connections()),
        "/v1/memory?limit=1" => ("200 OK", memory()),
        _ => ("404 Not Found", Value::Null),
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close", body.len());
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

fn stats(looks: u64) -> Value {
    json!({
        "version": "9.9.9", "uptime_ms": 3_000 + looks, "connections": 3,
        "connections_total": 3, "connections_rejected": 0, "outbox_overflows": 1234,
        "commands": 1_000_000_000 * looks, "bytes_read": 0, "bytes_written": 4096 * looks,
        "channels": 77, "patterns": null, "engine": "guest-core@0123456789abcdef",
        "swap_pauses": { "count": 1, "sum_us": 1500.0, "p50_us": 1500.0, "p99_us": 1500.0 },
        "swaps": [{
            "at_ms": 0, "by": "local", "deed": "swapped", "slot": "20-redact", "from": "a@1",
            "to": "b@2", "pause_us": 42,
        }],
    })
}

fn plugin() -> Value {
    json!({
        "slot": "10-acl", "name": "acl", "version": "acl@00", "state": "running", "rebuilds": 0,
        "memory_bytes": [1_048_576, null],
        "stats": [{
            "hook": "on-access", "calls": 5, "items": 5, "faults": 6,
            "verdicts": [{ "verdict": "reject", "count": 5 }],
            "time": { "count": 5, "sum_us": 10.0, "p50_us": 2.0, "p99_us": 4.0 },
        }],
    })
}

fn memory() -> Value {
    json!({
        "resident_bytes": 3 << 20, "bytes_max": 1 << 30, "source": "memory.bytes_max",
        "budgets": [{ "budget": "outboxes", "used_bytes": 900 << 10, "limit_bytes": 1 << 20 }],
        "closed": [{ "setting": "limits.outbox_bytes_total_max", "closed": 7 }],
        "connections": [{
            "connection": 12, "address": "192.0.2.1:5", "outbox_bytes": 512, "input_bytes": 512,
            "stalled_ms": null,
        }],
        "addresses": [],
    })
}

fn connections() -> Value {
    let of = |door: &str| json!({ "id": 1, "door": door });
    let doors = [of("websocket"), of("resp"), of("websocket")];
    json!({ "count": 3, "connections": doors, "next_after": null })
}

fn top(url: &str, more: &[&str]) -> std::process::Command {
    let mut command = switchyard(&["top", "--interval", "0.1", "--admin", url]);
    command.args(more).env("SWITCHYARD_ADMIN_TOKEN", TOKEN);
    command
}

#[tokio::test]
async fn programs_read_what_was_said_and_how_fast_it_grows() -> Result<()> {
    let url = admin_api().await?;
    let process = Process::start("top", &mut top(&url, &["--count", "2"]))?;
    let (lines, _) = outcome(process, 0).await?;
    let looks: Vec<Value> =
        lines.iter().map(|line| Ok(serde_json::from_str(line)?)).collect::<Result<_>>()?;
    assert_eq!(looks.len(), 2);
    // Rates cannot be computed from a single reading.
    assert_eq!(looks[0]["per_second"], Value::Null);
    assert!(looks[1]["per_second"]["commands"].as_f64() > Some(0.0), "{lines:?}");
    assert_eq!(looks[1]["per_second"]["publications"], Value::Null);
    assert_eq!(looks[1]["stats"]["channels"], 77);
    assert_eq!(looks[1]["plugins"][0]["slot"], "10-acl");
    assert_eq!(looks[1]["memory"]["bytes_max"], 1 << 30);
    Ok(())
}

/// The screen's content before the terminal is restored.
fn shown(lines: &[String]) -> String {
    let sent = lines.join("\n");
    let (shown, _) = sent.rsplit_once("\u{1b}[?1049l").unwrap_or((&sent, ""));
    let mut terminal = vt100::Parser::new(24, 80, 0);
    terminal.process(shown.as_bytes());
    terminal.screen().contents()
}

#[tokio::test]
async fn a_person_sees_it_all_on_a_small_screen() -> Result<()> {
    let url = admin_api().await?;
    let mut run = in_a_terminal(&top(&url, &["--count", "3"]))?;
    let (lines, _) = outcome(Process::start("top", &mut run)?, 0).await?;
    let screen = shown(&lines);
    for expected in [
        "switchyard 9.9.9",
        "connections 3 (resp 1, websocket 2)",
        "too slow 1,234",
        "channels 77  patterns -",
        "memory 3.0 MiB of 1.0 GiB  outboxes 88 %",
        "closed for memory 7  #12 192.0.2.1:5 holds 1.0 KiB",
        "pauses p50 1.5 ms",
        "guest-core@01234567",
        "10-acl",
        "1.0 MiB",
        "swapped 20-redact  a@1 to b@2  paused 42 µs",
    ] {
        assert!(screen.contains(expected), "{expected}:\n{screen}");
    }
    // A thousand million commands more in each reading.
    let rates = screen.lines().nth(3).unwrap_or_default();
    assert!(rates.split_whitespace().next().is_some_and(|rate| rate.len() >= 9), "{screen}");
    Ok(())
}

/// The responses of a real server are understood.
#[tokio::test]
async fn it_shows_a_server() -> Result<()> {
    let server = Launch::default().start().await?;
    let mut client = server.client().await?;
    client.call(json!(["SUBSCRIBE", "a", "b"])).await?;
    let mut run = switchyard(&["top", "--interval", "0.1", "--count", "2", "--admin"]);
    run.arg(server.admin_url().await?).env_remove("SWITCHYARD_ADMIN_TOKEN");
    let mut screen = in_a_terminal(&run)?;
    let (lines, _) = outcome(Process::start("top", &mut run)?, 0).await?;
    let look: Value = serde_json::from_str(lines.last().context("there are two looks")?)?;
    assert_eq!(look["stats"]["connections"], 1);
    assert_eq!(look["stats"]["channels"], 2);
    assert_eq!(look["plugins"], json!([]));
    let (lines, _) = outcome(Process::start("top", &mut screen)?, 0).await?;
    let shown = shown(&lines);
    for expected in [env!("CARGO_PKG_VERSION"), "connections 1 (websocket/json 1)", "channels 2"] {
        assert!(shown.contains(expected), "{expected}:\n{shown}");
    }
    drop(client);
    server.stop().await
}

#[tokio::test]
async fn a_missing_token_is_reported_with_its_variable() -> Result<()> {
    let url = admin_api().await?;
    let process = Process::start("top", top(&url, &[]).env_remove("SWITCHYARD_ADMIN_TOKEN"))?;
    let (lines, said) = outcome(process, 1).await?;
    assert!(lines.is_empty() && said.contains("SWITCHYARD_ADMIN_TOKEN"), "{said}");
    Ok(())
}
