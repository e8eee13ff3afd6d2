//! The console as a person uses it: a real server, and a real Chromium that clicks,
//! types and drops files (`browser.js`).
//!
//! `tests/clients/install.sh` gets what drives the browser, at a pinned version, and
//! Debian's Chromium. Without them the tests fail and say so.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use switchyard_test_support::admin::Operator;
use switchyard_test_support::components;
use switchyard_test_support::resp::Resp;
use switchyard_test_support::server::{Launch, Server};
use switchyard_test_support::websocket::{Client, Upgrade};
use tempfile::TempDir;

/// A server with one plugin, which stamps what is published.
async fn house(config: &str) -> Result<(Server, TempDir)> {
    let plugins = components::directory()?;
    let settings = json!({"on_publish": "stamp"});
    components::install(plugins.path(), "10-probe", &probe(1)?, &settings)?;
    let directory = Some(plugins.path().to_owned());
    let config = format!("shutdown.timeout_ms = 100\n{config}");
    let server = Launch { plugins: directory, ..Launch::with_config(&config) }.start().await?;
    server.wait_for_log("changes of files are watched").await?;
    Ok((server, plugins))
}

fn probe(stamp: u32) -> Result<Vec<u8>> {
    components::stamped(components::built("test/probe")?, stamp)
}

/// Has the browser do something with the console of a server.
async fn drive(server: &Server, scenario: &str, words: &[&str]) -> Result<()> {
    drive_at(&server.admin_url().await?, scenario, words).await
}

/// The same at another page.
async fn drive_at(url: &str, scenario: &str, words: &[&str]) -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("node");
    command
        .arg(here.join("tests/console/browser.js"))
        .args([scenario, url])
        .args(words)
        .env("NODE_PATH", here.join("../.tools/browser/node_modules"));
    // It ends by itself, whatever comes.
    let output = tokio::task::spawn_blocking(move || command.output()).await?;
    let output = output.context("run host/tests/clients/install.sh")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the browser ended with {}: {said}", output.status);
    Ok(())
}

const TOKEN: &str = "s3cret-of-ann";

/// A server where ann has a token.
async fn guarded(is_required: bool) -> Result<(Server, TempDir)> {
    let plugins = components::directory()?;
    let settings = json!({
        "require_token": is_required,
        "tokens": {TOKEN: "ann"},
        "rules": [{"users": ["*"], "subscribe": ["*"], "publish": ["*"]}],
    });
    components::install(plugins.path(), "10-acl", &components::built("acl")?, &settings)?;
    let directory = Some(plugins.path().to_owned());
    let config = "shutdown.timeout_ms = 100";
    let server = Launch { plugins: directory, ..Launch::with_config(config) }.start().await?;
    Ok((server, plugins))
}

/// A file that is no plugin of the server.
fn file(home: &TempDir, name: &str, bytes: &[u8]) -> Result<String> {
    let path = home.path().join(name);
    std::fs::write(&path, bytes)?;
    Ok(path.to_str().context("a temporary path is text")?.to_owned())
}

#[tokio::test]
async fn what_the_server_does_is_seen() -> Result<()> {
    let (server, _plugins) = house("").await?;
    let mut first = server.client().await?;
    ensure!(first.call(json!(["PSUBSCRIBE", "watched.*"])).await? == json!(["OK", 1]));
    let mut second = server.client().await?;
    ensure!(second.call(json!(["SUBSCRIBE", "busy"])).await? == json!(["OK", 1]));
    let operator = Operator::of(&server).await?;
    for (search, count) in [("2", 1), ("websocket", 2), ("127.0.0.1:", 2), ("resp2", 0)] {
        let path = format!("/v1/connections?search={search}");
        let found = operator.get(&path)?["connections"].as_array().map(Vec::len);
        assert_eq!(found, Some(count), "{search}");
    }
    drive(&server, "overview", &[]).await?;
    assert_eq!(first.next_json().await?[0], "goaway");
    assert_eq!(first.next_close().await?.0, Some(4105), "the page closed it");
    assert_eq!(second.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    server.stop().await
}

#[tokio::test]
async fn the_users_of_connections_are_found_and_closed() -> Result<()> {
    let (server, _plugins) = guarded(false).await?;
    let mut bob = server.client().await?;
    ensure!(bob.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
    let upgrade = Upgrade { path: format!("/ws?token={TOKEN}"), ..Upgrade::default() };
    let ann = Client::connect(server.address().await?, &upgrade).await?;
    let mut ann = ann.map_err(|refused| anyhow::anyhow!("{}", refused.status))?;
    ensure!(ann.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
    let mut redis = Resp::connect(server.resp_address().await?).await?;
    assert_eq!(redis.call(&["AUTH", TOKEN]).await?, "+OK");
    assert_eq!(redis.call(&["CLIENT", "SETNAME", "worker-7"]).await?, "+OK");
    drive(&server, "users", &[]).await?;
    assert_eq!(ann.next_json().await?[0], "goaway");
    assert_eq!(ann.next_close().await?.0, Some(4105));
    assert_eq!(bob.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
    server.stop().await
}

#[tokio::test]
async fn the_page_of_the_websocket_says_what_happens() -> Result<()> {
    let (server, _plugins) = guarded(true).await?;
    let url = format!("http://{}/", server.address().await?);
    drive_at(&url, "try_page", &[TOKEN]).await?;
    server.stop().await
}

#[tokio::test]
async fn views_do_not_mislead() -> Result<()> {
    let (server, _plugins) = house("").await?;
    let mut client = server.client().await?;
    ensure!(client.call(json!(["SUBSCRIBE", "a"])).await? == json!(["OK", 1]));
    drive(&server, "details", &[]).await?;
    server.stop().await
}

#[tokio::test]
async fn a_hidden_page_sends_no_requests() -> Result<()> {
    let (server, _plugins) = house("").await?;
    drive(&server, "hidden", &[]).await?;
    server.stop().await
}

#[tokio::test]
async fn a_person_subscribes_and_publishes() -> Result<()> {
    let server = Launch::with_config("shutdown.timeout_ms = 100").start().await?;
    drive(&server, "client", &[]).await?;
    server.stop().await
}

#[tokio::test]
async fn plugins_and_engine_are_swapped_moved_and_rolled_back() -> Result<()> {
    let (server, plugins) = house("").await?;
    let files = components::directory()?;
    let second = file(&files, "second.wasm", &probe(2)?)?;
    let garbage = file(&files, "garbage.wasm", b"nonsense")?;
    let engine = components::rehashed(components::built("guest-core")?, 7);
    let engine = file(&files, "engine.wasm", &engine)?;
    drive(&server, "plugins", &[&second, &garbage, &engine]).await?;
    // What the page said is what came of it.
    let operator = Operator::of(&server).await?;
    let chain = operator.get("/v1/plugins")?;
    let slots = chain["plugins"].as_array().context("a list")?.len();
    ensure!(slots == 1 && chain["plugins"][0]["slot"] == "10-probe", "{chain}");
    let kept = std::fs::read(plugins.path().join("10-probe.wasm"))?;
    ensure!(kept == probe(1)?, "the first version is back, on disk, too");
    let swaps = operator.get("/v1/stats")?["swaps"].clone();
    let kinds = swaps.as_array().context("a list")?.iter().map(|swap| swap["deed"].clone());
    let expected = [
        "added",
        "swapped",
        "rolled-back",
        "added",
        "moved",
        "removed",
        "engine-swapped",
        "engine-rolled-back",
    ];
    assert_eq!(kinds.collect::<Vec<Value>>(), expected);
    server.stop().await
}

#[tokio::test]
async fn a_trace_is_followed() -> Result<()> {
    let (server, _plugins) = house("").await?;
    drive(&server, "trace", &[]).await?;
    server.stop().await
}

#[tokio::test]
async fn a_token_is_requested_and_kept_in_the_tab() -> Result<()> {
    let token = "0123456789abcdef0123";
    let launch = Launch {
        files: vec![("tokens".to_owned(), format!("ops:{token}\n"))],
        ..Launch::with_config("shutdown.timeout_ms = 100\nadmin.tokens_file = 'tokens'\n")
    };
    let server = launch.start().await?;
    drive(&server, "token", &[token]).await?;
    server.stop().await
}

#[tokio::test]
async fn it_fits_a_telephone_and_every_control_has_a_name() -> Result<()> {
    let (server, _plugins) = house("").await?;
    drive(&server, "shapes", &[]).await?;
    server.stop().await
}

#[tokio::test]
async fn the_page_keeps_others_out() -> Result<()> {
    let server = Launch::default().start().await?;
    let operator = Operator::of(&server).await?;
    let host = format!("Host: {}\r\n", operator.authority());
    for path in ["/", "/console/console.js", "/console/console.css"] {
        let (status, head, body) =
            operator.exchange(&format!("GET {path} HTTP/1.1\r\n{host}"), b"")?;
        let head = head.to_ascii_lowercase();
        assert_eq!(status, 200, "{path}");
        ensure!(!body.is_empty(), "{path} is empty");
        for line in [
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
        ] {
            ensure!(head.contains(line), "{path} says no {line}: {head}");
        }
        let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: "));
        let policy = policy.context("a policy")?;
        for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            ensure!(policy.contains(rule), "{path} does not say {rule}: {policy}");
        }
        ensure!(!policy.contains("unsafe"), "{policy}");
    }
    // A link from another site opens the page, but other sites' pages cannot read the API.
    let linked = format!("{host}Sec-Fetch-Site: cross-site\r\n");
    assert_eq!(operator.exchange(&format!("GET / HTTP/1.1\r\n{linked}"), b"")?.0, 200);
    assert_eq!(operator.exchange(&format!("GET /v1/stats HTTP/1.1\r\n{linked}"), b"")?.0, 403);
    server.stop().await
}

#[tokio::test]
async fn the_consoles_page_may_open_a_websocket_and_no_other_port_s() -> Result<()> {
    let server = Launch::default().start().await?;
    let door = server.address().await?;
    let operator = Operator::of(&server).await?;
    let console = format!("http://{}", operator.authority());
    let (_, port) = console.rsplit_once(':').context("a port")?;
    let said = operator.get("/v1/server")?;
    assert_eq!(said["websocket"], server.url().await?);
    let other = format!("http://127.0.0.1:{}", door.port().wrapping_add(1).max(1));
    for (origin, is_allowed) in [
        (console.as_str(), true),
        (&format!("https://127.0.0.1:{port}"), false),
        // Its name is not the one in the request for the WebSocket.
        (&format!("http://localhost:{port}"), false),
        (&format!("http://evil.example:{port}"), false),
        (&other, other == console),
    ] {
        let headers = vec![("Origin".to_owned(), origin.to_owned())];
        let answer = Client::connect(door, &Upgrade { headers, ..Upgrade::default() }).await?;
        match answer {
            Ok(mut client) => {
                assert_eq!(client.call(json!(["PING"])).await?, json!(["OK", "PONG"]));
                ensure!(is_allowed, "{origin} was let in");
            }
            Err(refused) => ensure!(!is_allowed && refused.status == 403, "{origin} was refused"),
        }
    }
    server.stop().await
}

#[tokio::test]
async fn the_channels_that_the_most_listen_to_come_first() -> Result<()> {
    let server = Launch::with_config("shutdown.timeout_ms = 100").start().await?;
    let operator = Operator::of(&server).await?;
    let empty = operator.get("/v1/pubsub/top")?;
    ensure!(empty["channels"] == json!([]) && empty["count"] == 0, "{empty}");
    let mut clients = Vec::new();
    for names in [json!(["a", "b", "c"]), json!(["b", "c"]), json!(["c", {"base64": "/wA="}])] {
        let mut client = server.client().await?;
        let names = names.as_array().context("a list")?.clone();
        client.call([vec![json!("SUBSCRIBE")], names].concat().into()).await?;
        // Patterns are no channels.
        client.call(json!(["PSUBSCRIBE", "*"])).await?;
        clients.push(client);
    }
    let first = json!([
        {"channel": "c", "subscribers": 3},
        {"channel": "b", "subscribers": 2},
    ]);
    // The count from before is good for a second.
    let counted = loop {
        let answer = operator.get("/v1/pubsub/top?limit=2")?;
        if answer["counted_ms"] != empty["counted_ms"] {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(counted["channels"], first);
    ensure!(counted["count"] == 4 && counted["is_whole"] == true, "{counted}");
    let all = operator.get("/v1/pubsub/top")?;
    assert_eq!(all["channels"].as_array().context("a list")?.len(), 4);
    assert_eq!(all["channels"][3]["channel"], json!({"base64": "/wA="}));
    for limit in ["0", "101", "x"] {
        assert_eq!(operator.ask("GET", &format!("/v1/pubsub/top?limit={limit}"), None)?.0, 400);
    }
    server.stop().await
}
