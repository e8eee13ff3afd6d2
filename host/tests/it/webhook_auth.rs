//! The plugin `webhook-auth`, before `acl`, with a service that knows two users.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::admin::Done;
use crate::support::http_service::{Answer, HttpService, ReceivedRequest, answer};
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Close, Upgrade};
use crate::support::{PATIENCE, components, within};

/// The service: the user for a cookie, a secret or a path.
fn judge(request: &ReceivedRequest) -> Answer {
    let question: Value = serde_json::from_str(&request.body).unwrap_or_default();
    let word = |key| question.pointer(key).and_then(Value::as_str).unwrap_or_default();
    let shown = match word("/event") {
        "connect" => word("/headers/cookie"),
        _ => word("/secret"),
    };
    let ann = json!({"user": "ann", "roles": ["writer"], "attributes": {"tenant": "acme"}});
    match shown {
        "ann" => answer(200, ann.to_string()),
        "bob" => answer(200, json!({"user": "bob"}).to_string()),
        "" => answer(200, "{}"),
        "expired" => answer(401, json!({"message": "log in again"}).to_string()),
        "mallory" => answer(403, ""),
        _ => answer(500, "a stack trace"),
    }
}

async fn service() -> Result<HttpService> {
    HttpService::start(|request| async move { judge(&request) }).await
}

/// The plugin, and `acl`, which permits users everything in their tenant's channels.
fn directory_with(service: &HttpService, settings: Value) -> Result<TempDir> {
    let directory = components::directory()?;
    let mut all = json!({
        "url": service.url("/switchyard?v=1"),
        "headers": {"authorization": "Bearer our own"},
    });
    if let (Some(all), Value::Object(settings)) = (all.as_object_mut(), settings) {
        all.extend(settings);
    }
    let beside = json!({"http_allow": [service.origin()], "settings": all});
    components::configure(directory.path(), "05-webhook-auth", &beside)?;
    let plugin = components::built("webhook-auth")?;
    components::write_atomically(&components::path(directory.path(), "05-webhook-auth"), &plugin)?;
    let rules = json!({
        "attributes": ["tenant"],
        "rules": [
            {"roles": ["writer"], "publish": ["{tenant}.*"], "subscribe": ["{tenant}.*"]},
            {"users": ["bob"], "subscribe": ["bob"]},
        ],
    });
    components::install(directory.path(), "10-acl", &components::built("acl")?, &rules)?;
    Ok(directory)
}

async fn start(directory: &TempDir) -> Result<Server> {
    let plugins = Some(directory.path().to_owned());
    Launch { plugins, ..Launch::with_config("shutdown.timeout_ms = 100\n") }.start().await
}

async fn connect(server: &Server, cookie: &str) -> Result<Client> {
    let headers = vec![
        ("cookie".to_owned(), cookie.to_owned()),
        ("x-private".to_owned(), "not for the service".to_owned()),
    ];
    let upgrade = Upgrade { path: "/ws?a=b".to_owned(), headers, ..Upgrade::default() };
    let client = Client::connect(server.address().await?, &upgrade).await?;
    client.map_err(|refused| anyhow::anyhow!("HTTP {}", refused.status))
}

async fn close_of(server: &Server, cookie: &str) -> Result<Close> {
    connect(server, cookie).await?.next_close().await
}

fn has_code(answer: &Value, code: &str) -> Result<()> {
    ensure!(answer.pointer("/1/code") == Some(&json!(code)), "{answer} is not {code}");
    Ok(())
}

#[tokio::test]
async fn a_client_is_the_user_that_the_service_names() -> Result<()> {
    let service = service().await?;
    let directory = directory_with(&service, json!({}))?;
    let server = start(&directory).await?;
    let mut ann = connect(&server, "ann").await?;
    assert_eq!(ann.call(json!(["SUBSCRIBE", "acme.a"])).await?, json!(["OK", 1]));
    has_code(&ann.call(json!(["SUBSCRIBE", "other.a"])).await?, "NOPERM")?;

    let request = service.requests().first().cloned().context("the service received a request")?;
    assert_eq!(request.path, "/switchyard?v=1");
    let header = |name| request.headers.get(name).and_then(|value| value.to_str().ok());
    assert_eq!(header("authorization"), Some("Bearer our own"));
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("host"), Some(service.address.to_string().as_str()));
    let question: Value = serde_json::from_str(&request.body)?;
    let word = |key| question.pointer(key).and_then(Value::as_str).unwrap_or_default();
    assert_eq!(
        (word("/event"), word("/protocol"), word("/path")),
        ("connect", "websocket", "/ws?a=b")
    );
    ensure!(word("/address").starts_with("127.0.0.1:"), "{question}");
    assert_eq!(question.get("headers"), Some(&json!({"cookie": "ann"})), "{question}");
    ensure!(question.get("connection").is_some_and(Value::is_u64), "{question}");

    // A connection without a user may only authenticate.
    let mut client = connect(&server, "").await?;
    has_code(&client.call(json!(["SUBSCRIBE", "acme.a"])).await?, "NOAUTH")?;
    assert_eq!(client.call(json!(["AUTH", "name", "ann"])).await?, json!(["OK", "OK"]));
    assert_eq!(client.call(json!(["PUBLISH", "acme.a", "x"])).await?, json!(["OK", 1]));
    // Another user has no rights of the previous one, not even after a failure.
    assert_eq!(client.call(json!(["AUTH", "bob"])).await?, json!(["OK", "OK"]));
    for (secret, code) in [("expired", "NOAUTH"), ("mallory", "NOPERM"), ("?", "UNAVAILABLE")] {
        has_code(&client.call(json!(["AUTH", secret])).await?, code)?;
        has_code(&client.call(json!(["PUBLISH", "acme.a", "x"])).await?, "NOPERM")?;
        assert_eq!(client.call(json!(["SUBSCRIBE", "bob"])).await?, json!(["OK", 1]));
    }
    server.stop().await
}

#[tokio::test]
async fn a_refused_client_receives_the_reason() -> Result<()> {
    let service = service().await?;
    let directory = directory_with(&service, json!({}))?;
    let server = start(&directory).await?;
    for (cookie, code, says) in [
        ("expired", 4001, "log in again"),
        ("mallory", 4003, "you are not wanted"),
        ("?", 4102, "it answered 500"),
    ] {
        let (closed, reason) = close_of(&server, cookie).await?;
        ensure!(closed == Some(code), "{cookie}: {closed:?} {reason}");
        ensure!(reason.contains("webhook-auth@") && reason.contains(says), "{reason}");
    }
    server.stop().await
}

#[tokio::test]
async fn an_unreachable_service_admits_no_client() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    drop(listener);
    let service = service().await?;
    let settings = json!({"url": format!("http://{address}/")});
    let directory = directory_with(&service, settings.clone())?;
    let server = start(&directory).await?;
    // Not granted at first.
    let (closed, reason) = close_of(&server, "ann").await?;
    ensure!(closed == Some(4102) && reason.contains("not in http_allow"), "{reason}");
    let beside = json!({"http_allow": [format!("http://{address}")], "settings": settings});
    components::configure(directory.path(), "05-webhook-auth", &beside)?;
    server.wait_for_log("a plugin was swapped").await?;
    let (closed, reason) = close_of(&server, "ann").await?;
    ensure!(closed == Some(4102) && reason.contains("refused the connection"), "{reason}");
    server.stop().await
}

#[tokio::test]
async fn good_answers_are_remembered_for_the_same_question() -> Result<()> {
    let service = service().await?;
    let settings = json!({"cache_s": 3_600, "at_connect": "never"});
    let directory = directory_with(&service, settings)?;
    let server = start(&directory).await?;
    let mut client = server.client().await?;
    assert!(service.requests().is_empty(), "the service received a request at connect");
    for (secret, requests) in [("ann", 1), ("ann", 1), ("bob", 2), ("ann", 2)] {
        assert_eq!(client.call(json!(["AUTH", secret])).await?, json!(["OK", "OK"]));
        assert_eq!(service.requests().len(), requests, "{secret}");
    }
    let mut other = server.client().await?;
    assert_eq!(other.call(json!(["AUTH", "ann"])).await?, json!(["OK", "OK"]));
    assert_eq!(service.requests().len(), 2);
    // A cached answer is applied like any other.
    assert_eq!(other.call(json!(["PUBLISH", "acme.a", "x"])).await?, json!(["OK", 0]));
    // Refusals are not cached.
    for requests in [3, 4] {
        has_code(&client.call(json!(["AUTH", "mallory"])).await?, "NOPERM")?;
        assert_eq!(service.requests().len(), requests);
    }
    server.stop().await
}

#[tokio::test]
async fn redis_clients_authenticate() -> Result<()> {
    let service = service().await?;
    let directory = directory_with(&service, json!({}))?;
    let server = start(&directory).await?;
    let mut client = TcpStream::connect(server.resp_address().await?).await?;
    let mut converse = async |says: &str, begins: &str| -> Result<()> {
        client.write_all(says.as_bytes()).await?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(within(PATIENCE, "a line", client.read_u8()).await??);
        }
        ensure!(line.starts_with(begins.as_bytes()), "{} came", line.escape_ascii());
        Ok(())
    };
    converse("PUBLISH acme.a x\r\n", "-NOAUTH ").await?;
    converse("AUTH mallory\r\n", "-").await?;
    converse("AUTH ann ann\r\n", "+OK\r\n").await?;
    converse("PUBLISH acme.a x\r\n", ":0\r\n").await?;
    let questions: Vec<Value> = service
        .requests()
        .iter()
        .map(|request| serde_json::from_str(&request.body))
        .collect::<Result<_, _>>()?;
    let users: Vec<&Value> = questions.iter().filter_map(|question| question.get("user")).collect();
    assert_eq!(users, [&Value::Null, &json!("ann")]);
    ensure!(questions.iter().all(|question| question.get("protocol") == Some(&json!("resp"))));
    server.stop().await
}

#[tokio::test]
async fn a_conversation_without_a_server_calls_the_service_too() -> Result<()> {
    const CONVERSATION: &str = r#"
alice> [1,"SUBSCRIBE","acme.a"]
alice< [1,"ERR",{"code":"NOAUTH",...}]
alice> [2,"AUTH","mallory"]
alice< [2,"ERR",{"code":"NOPERM",...}]
alice> [3,"AUTH","ann"]
alice< [3,"OK","OK"]
alice> [4,"SUBSCRIBE","acme.a"]
alice< [4,"OK",1]
alice> [5,"SUBSCRIBE","other.a"]
alice< [5,"ERR",{"code":"NOPERM","by":~"acl@",...}]
"#;
    let service = service().await?;
    let directory = directory_with(&service, json!({"at_connect": "never"}))?;
    std::fs::write(directory.path().join("talk.txt"), CONVERSATION)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
    command
        .args(["plugin", "test", "05-webhook-auth.wasm", "talk.txt", "--with", "10-acl.wasm"])
        .current_dir(directory.path());
    let done = Done::of(tokio::task::spawn_blocking(move || command.output()).await??)?;
    ensure!(done.code == Some(0), "{done:?}");
    assert_eq!(service.requests().len(), 2);
    Ok(())
}
