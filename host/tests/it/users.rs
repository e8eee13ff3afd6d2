//! The users of connections: an operator finds them, and closes the connections of one.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::support::admin::Operator;
use crate::support::components;
use crate::support::resp::Resp;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Upgrade};
use crate::support::{PATIENCE, within};

/// A server with users ann, bob and a user with a name that a terminal would interpret.
async fn house() -> Result<(Server, TempDir)> {
    let plugins = components::directory()?;
    let settings = json!({
        "tokens": {"s3cret-a": "ann", "s3cret-b": "bob", "s3cret-c": "\u{1b}[31mred"},
        "rules": [{"users": ["*"], "subscribe": ["*"], "publish": ["*"]}],
    });
    components::install(plugins.path(), "10-acl", &components::built("acl")?, &settings)?;
    let notes = json!({"on_connect": [
        "allow",
        {"note": {"key": "tenant", "value": "acme"}},
        {"note": {"key": "Session-Token", "value": "hush"}},
    ]});
    components::install(plugins.path(), "20-probe", &components::built("test/probe")?, &notes)?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::default() };
    Ok((launch.start().await?, plugins))
}

async fn client(server: &Server, token: &str) -> Result<Client> {
    let path = format!("/ws?token={token}");
    let upgrade = Upgrade { path, ..Upgrade::default() };
    let connected = Client::connect(server.address().await?, &upgrade).await?;
    connected.map_err(|refused| anyhow::anyhow!("{} {}", refused.status, refused.body))
}

fn users(view: &Value) -> Vec<&str> {
    let connections = view["connections"].as_array();
    connections.into_iter().flatten().filter_map(|one| one["user"].as_str()).collect()
}

#[tokio::test]
async fn connections_are_found_by_user_address_and_client_name() -> Result<()> {
    let (server, _plugins) = house().await?;
    let operator = Operator::of(&server).await?;
    let mut first = client(&server, "s3cret-a").await?;
    let mut second = client(&server, "s3cret-b").await?;
    let mut third = client(&server, "s3cret-c").await?;
    for client in [&mut first, &mut second, &mut third] {
        ensure!(client.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
    }
    let mut redis = Resp::connect(server.resp_address().await?).await?;
    assert_eq!(redis.call(&["AUTH", "s3cret-a"]).await?, "+OK");
    assert_eq!(redis.call(&["CLIENT", "SETNAME", "worker-7"]).await?, "+OK");

    let all = operator.get("/v1/connections")?;
    assert_eq!(all["count"], 4);
    for (query, count) in [
        ("user=ann", 2),
        ("user=an", 0),
        ("user=bob", 1),
        ("user=", 0),
        ("name=worker-7", 1),
        ("name=worker", 0),
        ("address=127.0.0.1", 4),
        ("address=127.0.0.0/8", 4),
        ("address=192.0.2.0%2F24", 0),
        ("user=ann&name=worker-7", 1),
        ("user=bob&name=worker-7", 0),
        ("search=ANN", 2),
        ("search=WORKER", 1),
        ("user=ann&search=websocket", 1),
    ] {
        let found = operator.get(&format!("/v1/connections?{query}"))?;
        assert_eq!(found["connections"].as_array().map(Vec::len), Some(count), "{query}: {found}");
    }
    // A page of them, and the next.
    let page = operator.get("/v1/connections?user=ann&limit=1")?;
    let next = page["next_after"].as_u64().unwrap_or_default();
    let rest = operator.get(&format!("/v1/connections?user=ann&limit=1&after={next}"))?;
    assert_eq!(rest["connections"][0]["name"], "worker-7");
    assert_eq!(rest["next_after"], Value::Null);
    for (query, says) in
        [("address=localhost", "an IP address such as"), ("user=a&limit=0", "limit")]
    {
        let (status, answer) = operator.ask("GET", &format!("/v1/connections?{query}"), None)?;
        ensure!(status == 400 && answer.to_string().contains(says), "{status} {answer}");
    }

    // The details of one. A value under a key that names a secret is not shown.
    let id =
        operator.get("/v1/connections?user=ann&search=websocket")?["connections"][0]["id"].clone();
    let one = operator.get(&format!("/v1/connections/{id}"))?;
    assert_eq!(one["user"], "ann");
    assert_eq!(one["name"], Value::Null);
    assert_eq!(one["attributes"]["tenant"], "acme");
    assert_eq!(one["attributes"]["Session-Token"], "(not shown)");
    ensure!(!one.to_string().contains("hush"), "{one}");

    let shown = operator.say(&["connections", "--user", "ann"])?;
    ensure!(shown.contains("worker-7") && !shown.contains("bob"), "{shown}");
    let shown = operator.say(&["connections"])?;
    ensure!(shown.contains("\\u{1b}[31mred") && !shown.contains('\u{1b}'), "{shown}");
    let shown = operator.say(&["connections", &id.to_string()])?;
    ensure!(shown.contains("tenant = acme") && !shown.contains("hush"), "{shown}");
    // A client that resets itself has no name.
    assert_eq!(redis.call(&["RESET"]).await?, "+RESET");
    assert_eq!(operator.get("/v1/connections?name=worker-7")?["connections"], json!([]));
    server.stop().await
}

#[tokio::test]
async fn all_connections_of_a_user_are_closed() -> Result<()> {
    let (server, _plugins) = house().await?;
    let operator = Operator::of(&server).await?;
    let mut anns = Vec::new();
    for _ in 0..5 {
        let mut ann = client(&server, "s3cret-a").await?;
        ensure!(ann.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
        anns.push(ann);
    }
    let mut bob = client(&server, "s3cret-b").await?;
    ensure!(bob.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
    // Without a condition, none is closed.
    for query in ["", "?limit=5", "?user=ann&limit=1001", "?search=ann", "?users=ann"] {
        let (status, answer) = operator.ask("DELETE", &format!("/v1/connections{query}"), None)?;
        assert_eq!(status, 400, "{query}: {answer}");
    }
    let done = operator.run(&["disconnect"])?;
    ensure!(done.code == Some(64), "{done:?}");
    assert_eq!(users(&operator.get("/v1/connections")?).len(), 6);

    // At most as many as the limit says; those that close already are not counted again.
    let (_, answer) = operator.ask("DELETE", "/v1/connections?user=ann&limit=2", None)?;
    assert_eq!(answer, json!({"closed": 2, "has_more": true}));
    let said = operator.say(&["disconnect", "--user", "ann"])?;
    assert_eq!(said, "3 connections were closed\n");
    for mut ann in anns {
        assert_eq!(ann.next_json().await?[0], "goaway");
        assert_eq!(ann.next_close().await?.0, Some(4105));
    }
    assert_eq!(bob.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    assert_eq!(users(&operator.get("/v1/connections")?), ["bob"]);
    let logged = server.wait_for_log("connections were closed by an operator").await?;
    ensure!(logged.contains("by=local") && logged.contains("ann"), "{logged}");

    let done = operator.json(&["disconnect", "--user", "no-such-user"])?;
    assert_eq!(done, json!({"closed": 0, "has_more": false}));
    let id = operator.get("/v1/connections?user=bob")?["connections"][0]["id"].to_string();
    operator.say(&["disconnect", &id])?;
    assert_eq!(bob.next_json().await?[0], "goaway");
    assert_eq!(bob.next_close().await?.0, Some(4105));
    server.stop().await
}

/// Browsers open connections in advance, and some health checks only connect.
#[tokio::test]
async fn a_connection_that_sends_nothing_is_not_counted_as_refused() -> Result<()> {
    let config = "http.handshake_timeout_ms = 300";
    let server = Launch::with_config(config).start().await?;
    let operator = Operator::of(&server).await?;
    let address = server.address().await?;
    drop(TcpStream::connect(address).await?);
    // One that is closed by the server, after the time of a handshake.
    let silent = TcpStream::connect(address).await?;
    within(PATIENCE, "a close", silent.readable()).await??;
    let counted = |page: &str, start: &str| {
        let line = page.lines().find(|line| line.starts_with(start));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    loop {
        let (_, _, page) = operator.exchange(
            &format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority()),
            b"",
        )?;
        let unused = counted(&page, "switchyard_connections_unused_total{door=\"http\"}");
        if unused == 2 {
            break;
        }
        ensure!(unused < 2, "{unused} are counted");
        tokio::task::yield_now().await;
    }
    let stats = operator.get("/v1/stats")?;
    assert_eq!(stats["connections_rejected"], 0, "{stats}");
    server.stop().await
}
