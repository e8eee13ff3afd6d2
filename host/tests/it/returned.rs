//! What plugins return must be within the limits of clients.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::admin::Operator;
use crate::support::components;
use crate::support::raw::exchange;
use crate::support::server::{Launch, Server};

const CONFIG: &str = "shutdown.timeout_ms = 100\nlimits.payload_bytes_max = 1024\n";

async fn with_probe(config: &Value) -> Result<(Server, tempfile::TempDir)> {
    let directory = components::directory()?;
    components::configure(directory.path(), "probe", config)?;
    let probe = components::built("test/probe")?;
    components::write_atomically(&components::path(directory.path(), "probe"), &probe)?;
    let plugins = Some(directory.path().to_owned());
    let server = Launch { plugins, ..Launch::with_config(CONFIG) }.start().await?;
    Ok((server, directory))
}

/// Refused on publish; on delivery decided by the policy, and counted as a fault.
#[tokio::test]
async fn a_payload_that_a_plugin_makes_is_no_larger_than_any() -> Result<()> {
    for (hook, policy, code) in [
        ("on_publish", "closed", "TOOLARGE"),
        ("on_publish", "open", "TOOLARGE"),
        ("on_deliver", "closed", "TOOLARGE"),
        ("on_deliver", "open", ""),
    ] {
        let config = json!({"policy": policy, "settings": {(hook): {"grow": 1024}}});
        let (server, _directory) = with_probe(&config).await?;
        let mut listener = server.client().await?;
        listener.call(json!(["SUBSCRIBE", "a"])).await?;
        let mut client = server.client().await?;
        let answer = client.call(json!(["PUBLISH", "a", "x"])).await?;
        let its_code = answer.pointer("/1/code").and_then(Value::as_str).unwrap_or_default();
        ensure!(its_code == code, "{hook}, {policy}: answered {answer}");
        if code.is_empty() {
            let came = listener.next_json().await?;
            ensure!(came == json!(["message", "a", "x"]), "{hook}, {policy}: {came} came");
        }
        ensure!(listener.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
        let shown = Operator::of(&server).await?.get("/v1/plugins/probe")?;
        ensure!(shown["state"] == "running", "{shown}");
        if hook == "on_deliver" {
            let words = shown.pointer("/failures/0/message").and_then(Value::as_str);
            ensure!(words.is_some_and(|words| words.contains("payload_bytes_max")), "{shown}");
        }
        server.stop().await?;
    }
    Ok(())
}

/// The same number over both protocols, and one that both can represent.
#[tokio::test]
async fn a_plugin_reports_no_more_receivers_than_can_be_counted() -> Result<()> {
    let absorb = json!({"settings": {"on_publish": {"absorb": i64::MAX}}});
    let (server, _directory) = with_probe(&absorb).await?;
    let answer = server.client().await?.call(json!(["PUBLISH", "a", "x"])).await?;
    ensure!(answer == json!(["OK", 9_007_199_254_740_991_u64]), "answered {answer}");
    let said = exchange(server.resp_address().await?, "PUBLISH a x\r\nQUIT\r\n").await?;
    ensure!(said.starts_with(":9007199254740991\r\n"), "{said:?}");
    server.stop().await
}

#[tokio::test]
async fn what_a_plugin_says_of_its_failure_is_cut() -> Result<()> {
    let directory = components::directory()?;
    components::install(
        directory.path(),
        "probe",
        &components::built("test/probe")?,
        &json!({"init": "long_error"}),
    )?;
    let path = directory.path().to_str().context("a path in UTF-8")?;
    let mut server = Server::run_alone(&["--plugins", path])?;
    let (status, _) = server.exit().await?;
    ensure!(status.code() == Some(1));
    let log = server.log();
    ensure!(log.contains("configured to refuse") && log.len() < 10_000, "{} bytes", log.len());
    Ok(())
}

/// A part of the contract that the server does not serve yet is a failure of the plugin that uses it,
/// and not ignored.
#[tokio::test]
async fn what_is_not_served_yet_is_a_failure() -> Result<()> {
    let settings = json!({"on_authenticate": ["allow", {"subscribe": "a"}]});
    let (server, _directory) =
        with_probe(&json!({"policy": "closed", "settings": settings})).await?;
    let mut client = server.client().await?;
    let answer = client.call(json!(["AUTH", "secret"])).await?;
    ensure!(answer.pointer("/1/code") == Some(&json!("UNAVAILABLE")), "{answer}");
    let line = server.wait_for_log("a plugin failed").await?;
    let words = "it gave the client subscriptions, which this version of the server";
    ensure!(line.contains(words), "{line}");
    server.stop().await?;
    let config = json!({"policy": "closed", "settings": {"on_connect": {"subscribe": "a"}}});
    let (server, _directory) = with_probe(&config).await?;
    let mut refused = server.client().await?;
    ensure!(refused.call(json!(["PING"])).await.is_err(), "it was admitted");
    let line = server.wait_for_log("a plugin failed").await?;
    ensure!(line.contains("hook=\"on-connect\"") && line.contains("subscriptions"), "{line}");
    server.stop().await
}
