//! A client that fails to authenticate repeatedly is rejected, and delays no other client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

use crate::support::admin::Operator;
use crate::support::components;
use crate::support::raw::exchange;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Upgrade};
use crate::tokens;

async fn start(config: &str, keys: Value) -> Result<(Server, TempDir)> {
    let plugins = components::directory()?;
    let settings = json!({"keys": keys, "without_token": "allow"});
    components::install(plugins.path(), "10-jwt", &components::built("jwt-auth")?, &settings)?;
    // A virtual machine that is preempted counts that as processor time, and budgets are not
    // tested here.
    let budget = "plugins.call_budget_ms = 200";
    let launch = Launch::with_config(&format!("shutdown.timeout_ms = 100\n{budget}\n{config}"));
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..launch };
    Ok((launch.start().await?, plugins))
}

fn hs256() -> Value {
    json!([{"algorithm": "HS256", "secret": tokens::SECRET}])
}

fn good(algorithm: &str) -> Result<String> {
    tokens::token(algorithm, None, &json!({"sub": "alice", "exp": "now+600"}))
}

/// A token whose claims were changed after it was signed.
fn wrong(algorithm: &str) -> Result<String> {
    let token = good(algorithm)?;
    let other = tokens::token(algorithm, None, &json!({"sub": "admin", "exp": "now+600"}))?;
    let part = |token: &str, number: usize| token.split('.').nth(number).map(str::to_owned);
    let parts = [part(&token, 0), part(&other, 1), part(&token, 2)];
    parts.into_iter().collect::<Option<Vec<_>>>().map(|parts| parts.join(".")).context("a token")
}

fn code(answer: &Value) -> Option<&str> {
    answer.pointer("/1/code").and_then(Value::as_str)
}

#[tokio::test]
async fn a_connection_may_fail_so_often() -> Result<()> {
    let (server, _plugins) = start("limits.auth_attempts_per_minute_max = 5\n", hs256()).await?;
    let (good, wrong) = (good("HS256")?, wrong("HS256")?);
    let mut client = server.client().await?;
    // Successful attempts do not count.
    for _ in 0..20 {
        assert_eq!(client.call(json!(["AUTH", good])).await?, json!(["OK", "OK"]));
    }
    for _ in 0..5 {
        assert_eq!(code(&client.call(json!(["AUTH", wrong])).await?), Some("NOAUTH"));
    }
    assert_eq!(code(&client.call(json!(["AUTH", good])).await?), Some("LIMIT"));
    let (closed, reason) = client.next_close().await?;
    ensure!(closed == Some(4104), "{closed:?}");
    ensure!(reason.contains("limits.auth_attempts_per_minute_max"), "{reason}");

    // The same over RESP; the commands after it are not executed.
    let auth = format!("AUTH {wrong}\r\n").repeat(6);
    let answer = exchange(server.resp_address().await?, &format!("{auth}PING\r\n")).await?;
    let lines: Vec<_> = answer.lines().collect();
    assert_eq!(lines.len(), 6, "{answer}");
    ensure!(lines.iter().take(5).all(|line| line.starts_with("-NOAUTH ")), "{answer}");
    ensure!(lines.last().is_some_and(|line| line.starts_with("-LIMIT ")), "{answer}");

    // Trusted proxies are not counted as addresses, so another client may continue.
    let mut client = server.client().await?;
    assert_eq!(client.call(json!(["AUTH", good])).await?, json!(["OK", "OK"]));
    let operator = Operator::of(&server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (_, _, page) = operator.exchange(&head, &[])?;
    for line in ["switchyard_auth_failures_total 10", "switchyard_auth_refused_total 2"] {
        ensure!(page.contains(line), "{line} is not in {page}");
    }
    drop(client);
    server.stop().await
}

#[tokio::test]
async fn an_address_may_fail_so_often() -> Result<()> {
    let config = "[limits]\nauth_attempts_per_minute_max = 5\nuncounted_networks = []\n";
    let (server, _plugins) = start(config, hs256()).await?;
    let (good, wrong) = (good("HS256")?, wrong("HS256")?);
    let mut there = server.client().await?;
    // By a command, and by the URL.
    let mut client = server.client().await?;
    for _ in 0..3 {
        assert_eq!(code(&client.call(json!(["AUTH", wrong])).await?), Some("NOAUTH"));
    }
    let path = format!("/ws?token={wrong}");
    let upgrade = Upgrade { path, ..Upgrade::default() };
    for _ in 0..2 {
        let client = Client::connect(server.address().await?, &upgrade).await?;
        let closed = client.ok().context("the upgrade")?.next_close().await?;
        assert_eq!(closed.0, Some(4001));
    }
    // From here on no plugin is called for clients of that address, on any listener.
    assert_eq!(code(&client.call(json!(["AUTH", good])).await?), Some("LIMIT"));
    assert_eq!(client.next_close().await?.0, Some(4104));
    assert_eq!(server.client().await?.next_close().await?.0, Some(4104));
    let answer = exchange(server.resp_address().await?, "PING\r\n").await?;
    ensure!(answer.starts_with("-LIMIT "), "{answer}");
    // Existing connections stay.
    assert_eq!(there.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    drop(there);
    server.stop().await
}

const FLOODERS: usize = 20;
/// How long each client waits between two tokens, for 450 a second in all.
const PAUSE: Duration = Duration::from_millis(44);
const PUBLICATIONS: usize = 400;

/// Verifying a token takes longer than hundreds of publications, and one plugin does both.
#[tokio::test]
async fn wrong_tokens_do_not_hold_up_what_is_published() -> Result<()> {
    let keys = json!([{"algorithm": "ES256", "pem": tokens::public("p256")?}]);
    let config = "limits.auth_attempts_per_minute_max = 1000000\n";
    let (server, _plugins) = start(config, keys).await?;
    let address = server.address().await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let refused = Arc::new(AtomicU64::new(0));
    let flooders: Vec<_> = (0..FLOODERS)
        .map(|_| {
            let (is_over, refused, wrong) = (is_over.clone(), refused.clone(), wrong("ES256"));
            tokio::spawn(async move {
                let wrong = wrong?;
                let client = Client::connect(address, &Upgrade::default()).await?;
                let mut client = client.ok().context("the upgrade")?;
                let mut ticks = tokio::time::interval(PAUSE);
                while !is_over.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let answer = client.call(json!(["AUTH", wrong])).await?;
                    ensure!(code(&answer) == Some("NOAUTH"), "{answer}");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        })
        .collect();
    let mut client = server.client().await?;
    while refused.load(Ordering::Relaxed) < FLOODERS as u64 {
        client.call(json!(["PING"])).await?;
    }
    let mut took = Vec::new();
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    for number in 0..PUBLICATIONS {
        ticks.tick().await;
        let sent = Instant::now();
        let publish = json!([number, "PUBLISH", "news", "x"]);
        client.send(Message::text(publish.to_string())).await?;
        assert_eq!(client.next_json().await?, json!([number, "OK", 0]));
        took.push(sent.elapsed());
    }
    let elapsed = began.elapsed();
    is_over.store(true, Ordering::Relaxed);
    for flooder in flooders {
        flooder.await??;
    }
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
    let refused = refused.load(Ordering::Relaxed);
    println!("{refused} tokens refused in {elapsed:?}; p50 {:?}, p99 {:?}", at(50), at(99));
    // When all share one instance, half of the publications wait for several verifications.
    ensure!(at(50) < Duration::from_millis(10), "{:?}", at(50));
    ensure!(at(90) < Duration::from_millis(60), "{:?}", at(90));
    drop(client);
    server.stop().await
}
