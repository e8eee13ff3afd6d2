//! When credentials expire the connection is closed with 4002, on every listener. A client that
//! presents new credentials in time stays.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::http_service::{HttpService, answer};
use crate::support::raw::exchange;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Upgrade};
use crate::support::{PATIENCE, components, within};
use crate::tokens;

/// A server that accepts tokens, without leeway.
async fn start() -> Result<(Server, TempDir)> {
    let plugins = components::directory()?;
    let keys = json!([{"algorithm": "HS256", "secret": tokens::SECRET}]);
    let settings = json!({"keys": keys, "leeway_s": 0, "required_claims": []});
    components::install(plugins.path(), "10-jwt", &components::built("jwt-auth")?, &settings)?;
    let launch = Launch::with_config("shutdown.timeout_ms = 100\n");
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..launch };
    Ok((launch.start().await?, plugins))
}

fn token(expires: &str) -> Result<String> {
    tokens::token("HS256", None, &json!({"sub": "alice", "exp": expires}))
}

fn endless() -> Result<String> {
    tokens::token("HS256", None, &json!({"sub": "alice"}))
}

/// The second in which a token with this `exp` expires.
fn now_s() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

async fn connect(server: &Server, path: &str, subprotocol: &str) -> Result<Client> {
    let subprotocols = vec![subprotocol.to_owned()];
    let upgrade = Upgrade { path: path.to_owned(), subprotocols, ..Upgrade::default() };
    let client = Client::connect(server.address().await?, &upgrade).await?;
    client.map_err(|refused| anyhow::anyhow!("HTTP {}", refused.status))
}

const JSON: &str = "switchyard.v1.json";

fn in_ms(notice: &Value) -> Result<u64> {
    ensure!(notice.get(0) == Some(&json!("expiring")), "{notice}");
    notice.pointer("/1/in_ms").and_then(Value::as_u64).context("no in_ms")
}

#[tokio::test]
async fn a_json_client_is_notified_and_then_closed() -> Result<()> {
    let (server, _plugins) = start().await?;
    let expires = now_s()? + 3;
    let path = format!("/ws?token={}", token("now+3")?);
    let mut client = connect(&server, &path, JSON).await?;
    ensure!(in_ms(&client.next_json().await?)? <= 4_000);
    let hello = client.call(json!(["HELLO"])).await?;
    let number = |key: &str| hello.pointer(key).and_then(Value::as_u64);
    let (left, now) = (number("/1/expires_in_ms"), number("/1/now_ms").context("no now_ms")?);
    ensure!(left.is_some_and(|left| left <= 4_000), "{hello}");
    ensure!(now / 1_000 + 5 > expires && hello.pointer("/1/user") == Some(&json!("alice")));
    assert_eq!(hello.pointer("/1/features"), Some(&json!([])));
    let (code, reason) = client.next_close().await?;
    assert_eq!((code, reason.as_str()), (Some(4002), "the credentials expired"));
    ensure!(now_s()? >= expires, "it was closed too early");

    // A connection that expires later is notified later, and one that does not expire, never.
    let path = format!("/ws?token={}", token("now+600")?);
    let mut later = connect(&server, &path, JSON).await?;
    let left = later.call(json!(["HELLO"])).await?;
    let left = left.pointer("/1/expires_in_ms").and_then(Value::as_u64);
    ensure!(left.is_some_and(|left| (590_000..=600_000).contains(&left)), "{left:?}");
    let path = format!("/ws?token={}", endless()?);
    let mut endless = connect(&server, &path, JSON).await?;
    let hello = endless.call(json!(["HELLO"])).await?;
    assert_eq!(hello.pointer("/1/expires_in_ms"), Some(&Value::Null), "{hello}");
    drop((later, endless));
    server.stop().await
}

#[tokio::test]
async fn new_credentials_in_time_move_the_end() -> Result<()> {
    let (server, _plugins) = start().await?;
    let path = format!("/ws?token={}", token("now+2")?);
    let mut moved = connect(&server, &path, JSON).await?;
    let mut removed = connect(&server, &path, JSON).await?;
    let mut control = connect(&server, &path, JSON).await?;
    for (client, token) in [(&mut moved, token("now+600")?), (&mut removed, endless()?)] {
        in_ms(&client.next_json().await?)?;
        assert_eq!(client.call(json!(["AUTH", token])).await?, json!(["OK", "OK"]));
        // Refused credentials do not change the expiry.
        let answer = client.call(json!(["AUTH", self::token("now-1")?])).await?;
        ensure!(answer.pointer("/1/code") == Some(&json!("EXPIRED")), "{answer}");
    }
    in_ms(&control.next_json().await?)?;
    assert_eq!(control.next_close().await?.0, Some(4002));
    for mut client in [moved, removed] {
        assert_eq!(client.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    }
    server.stop().await
}

#[tokio::test]
async fn a_redis_client_gets_one_error_before_the_end() -> Result<()> {
    let (server, _plugins) = start().await?;
    let error = "-EXPIRED the credentials expired\r\n";
    let said = format!("AUTH {}\r\nSUBSCRIBE a\r\nPING\r\n", token("now+2")?);
    let mut stream = TcpStream::connect(server.resp_address().await?).await?;
    stream.write_all(said.as_bytes()).await?;
    let mut answer = String::new();
    within(PATIENCE, "the end", stream.read_to_string(&mut answer)).await??;
    let acknowledged = "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n";
    assert_eq!(answer, format!("+OK\r\n{acknowledged}{error}"));

    let path = format!("/ws?token={}", token("now+2")?);
    let mut framed = connect(&server, &path, "resp").await?;
    framed.send(Message::binary(b"PING\r\n".to_vec())).await?;
    for expected in ["+PONG\r\n", error] {
        match framed.next().await? {
            Message::Binary(bytes) => assert_eq!(std::str::from_utf8(&bytes)?, expected),
            other => anyhow::bail!("{other:?}"),
        }
    }
    assert_eq!(framed.next_close().await?.0, Some(4002));
    server.stop().await
}

#[tokio::test]
async fn a_client_with_an_expired_token_is_closed_with_4002() -> Result<()> {
    let (server, _plugins) = start().await?;
    let expired = token("now-1")?;
    let mut client = connect(&server, &format!("/ws?token={expired}"), JSON).await?;
    let (code, reason) = client.next_close().await?;
    ensure!(code == Some(4002) && reason.contains("the token expired"), "{code:?} {reason}");
    // AUTH with an expired token is answered, and changes nothing.
    let answer = exchange(server.resp_address().await?, &format!("AUTH {expired}\r\n")).await?;
    ensure!(answer.starts_with("-EXPIRED the token expired"), "{answer}");
    server.stop().await
}

/// A plugin that accepts credentials which expired a while ago.
#[tokio::test]
async fn what_is_accepted_too_late_ends_at_once() -> Result<()> {
    let service = HttpService::start(|request| async move {
        let question: Value = serde_json::from_str(&request.body).unwrap_or_default();
        let shown = [question.pointer("/secret"), question.pointer("/headers/cookie")];
        let is_late = shown.contains(&Some(&json!("late")));
        let expires = if is_late { json!(1_000_000_000) } else { json!(4_000_000_000_u64) };
        answer(200, json!({"user": "ann", "attributes": {"expires-at": expires}}).to_string())
    })
    .await?;
    let plugins = components::directory()?;
    let settings = json!({"url": service.url("/"), "at_connect": "always"});
    let beside = json!({"http_allow": [service.origin()], "settings": settings});
    components::configure(plugins.path(), "10-webhook", &beside)?;
    let component = components::built("webhook-auth")?;
    components::write_atomically(&components::path(plugins.path(), "10-webhook"), &component)?;
    let launch = Launch::with_config("shutdown.timeout_ms = 100\n");
    let server = Launch { plugins: Some(plugins.path().to_owned()), ..launch }.start().await?;

    let headers = vec![("cookie".to_owned(), "late".to_owned())];
    let upgrade = Upgrade { headers, ..Upgrade::default() };
    let client = Client::connect(server.address().await?, &upgrade).await?;
    let mut client = client.ok().context("the upgrade")?;
    assert_eq!(client.next_close().await?.0, Some(4002));

    // No command after it is executed.
    let mut client = server.client().await?;
    let frame = json!([[1, "AUTH", "late"], [2, "PUBLISH", "a", "x"]]);
    client.send(Message::text(frame.to_string())).await?;
    // The connection may end before the reply to AUTH.
    match client.next().await? {
        Message::Text(text) => {
            assert_eq!(text.as_str(), json!([1, "OK", "OK"]).to_string());
            assert_eq!(client.next_close().await?.0, Some(4002));
        }
        Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 4002),
        other => anyhow::bail!("{other:?}"),
    }
    let resp = server.resp_address().await?;
    let answer = exchange(resp, "AUTH late\r\nPING\r\n").await?;
    let end = answer.strip_prefix("+OK\r\n").unwrap_or(&answer);
    assert_eq!(end, "-EXPIRED the credentials expired\r\n");
    let answer = exchange(resp, "AUTH good\r\nPING\r\n").await?;
    assert_eq!(answer, "+OK\r\n+PONG\r\n");
    server.stop().await
}

/// Ten thousand expiries cost nothing until they are due: the client that expires last is
/// notified in time.
#[tokio::test]
async fn many_expire_each_at_its_own_time() -> Result<()> {
    let (server, _plugins) = start().await?;
    let early = format!("/ws?token={}", token("now+2")?);
    let late = format!("/ws?token={}", token("now+4")?);
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push((connect(&server, &early, JSON).await?, 2));
        clients.push((connect(&server, &late, JSON).await?, 4));
    }
    let began = now_s()?;
    let mut ended = Vec::new();
    for (client, after) in &mut clients {
        in_ms(&client.next_json().await?)?;
        if *after == 2 {
            assert_eq!(client.next_close().await?.0, Some(4002));
            ended.push(now_s()?);
        }
    }
    for (client, after) in &mut clients {
        if *after == 4 {
            assert_eq!(client.next_close().await?.0, Some(4002));
        }
    }
    ensure!(now_s()? > began, "they ended before their time");
    let _ = (ended, Duration::ZERO);
    server.stop().await
}

/// What a token gave ends with its identity, also if another plugin accepts the new credentials.
#[tokio::test]
async fn a_static_token_replaces_the_roles_and_the_expiry_of_a_signed_one() -> Result<()> {
    let plugins = components::directory()?;
    let keys = json!([{"algorithm": "HS256", "secret": tokens::SECRET}]);
    let settings = json!({"keys": keys, "leeway_s": 0, "required_claims": []});
    components::install(plugins.path(), "10-jwt", &components::built("jwt-auth")?, &settings)?;
    let settings = json!({
        "tokens": {"s3cret": "bob"},
        "rules": [
            {"roles": ["admin"], "subscribe": ["admin.*"]},
            {"users": ["bob"], "subscribe": ["bob.*"]},
        ],
    });
    components::install(plugins.path(), "20-acl", &components::built("acl")?, &settings)?;
    let launch = Launch::with_config("shutdown.timeout_ms = 100\nplugins.call_budget_ms = 200\n");
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..launch };
    let server = launch.start().await?;
    let mut client = connect(&server, "/ws", JSON).await?;
    let claims = json!({"sub": "alice", "roles": ["admin"], "exp": "now+60"});
    let token = tokens::token("HS256", None, &claims)?;
    ensure!(client.call(json!(["AUTH", token])).await?.get(0) == Some(&json!("OK")));
    assert_eq!(client.call(json!(["SUBSCRIBE", "admin.a"])).await?, json!(["OK", 1]));
    let hello = client.call(json!(["HELLO"])).await?;
    ensure!(hello.pointer("/1/expires_in_ms").is_some_and(Value::is_number), "{hello}");

    ensure!(client.call(json!(["AUTH", "s3cret"])).await?.get(0) == Some(&json!("OK")));
    let hello = client.call(json!(["HELLO"])).await?;
    ensure!(hello.pointer("/1/user") == Some(&json!("bob")), "{hello}");
    ensure!(hello.pointer("/1/expires_in_ms").is_none_or(Value::is_null), "{hello}");
    let refused = client.call(json!(["SUBSCRIBE", "admin.b"])).await?;
    ensure!(refused.pointer("/1/code") == Some(&json!("NOPERM")), "{refused}");
    assert_eq!(client.call(json!(["SUBSCRIBE", "bob.a"])).await?, json!(["OK", 2]));
    server.stop().await
}
