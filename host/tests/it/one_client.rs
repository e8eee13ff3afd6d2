//! What one client sends affects that client only: a payload that makes a plugin fail is
//! refused, messages of other clients still pass through the plugin, and the plugin stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::admin::Operator;
use crate::support::components;
use crate::support::server::{Launch, Server};
use crate::support::websocket::Client;

/// Shutdown does not wait long for clients that the test no longer reads from.
const CONFIG: &str = "shutdown.timeout_ms = 100\n";
const PARKED: &str = "a plugin was parked";
const ISOLATED: &str = "a plugin failed repeatedly on items of one connection";

/// How many clients publish at once, besides the one that makes the plugin fail.
const OTHERS: usize = 8;
/// How many messages each of them publishes at least.
const ROUNDS: usize = 50;

async fn with_plugin(component: &[u8], config: &Value) -> Result<(Server, TempDir)> {
    let directory = components::directory()?;
    components::configure(directory.path(), "probe", config)?;
    components::write_atomically(&components::path(directory.path(), "probe"), component)?;
    let plugins = Some(directory.path().to_owned());
    let server = Launch { plugins, ..Launch::with_config(CONFIG) }.start().await?;
    Ok((server, directory))
}

async fn with_probe(config: &Value) -> Result<(Server, TempDir)> {
    with_plugin(&components::built("test/probe")?, config).await
}

fn code(answer: &Value) -> &str {
    answer.pointer("/1/code").and_then(Value::as_str).unwrap_or_default()
}

/// Each of the others publishes and waits for the reply until `is_over`: all messages are accepted,
/// and changed by the plugin.
async fn others_are_served(
    server: &Server,
    is_over: &Arc<AtomicBool>,
) -> Result<JoinSet<Result<()>>> {
    let mut others = JoinSet::new();
    for number in 0..OTHERS {
        let mut client = server.client().await?;
        let channel = format!("room-{number}");
        ensure!(client.call(json!(["SUBSCRIBE", channel])).await? == json!(["OK", 1]));
        let is_over = is_over.clone();
        others.spawn(async move {
            let mut round = 0;
            while round < ROUNDS || !is_over.load(Ordering::Relaxed) {
                let answer = client.call(json!(["PUBLISH", channel, "good"])).await?;
                ensure!(answer == json!(["OK", 1]), "round {round} is answered {answer}");
                let came = client.next_json().await?;
                let expected = json!(["message", channel, "good@00000000"]);
                ensure!(came == expected, "round {round}: {came} came, not {expected}");
                round += 1;
            }
            Ok(())
        });
    }
    Ok(others)
}

/// Every kind of failure, in every hook.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_client_sends_costs_no_other() -> Result<()> {
    for (hook, stamped_in) in
        [("on_access", "on_publish"), ("on_publish", "on_deliver"), ("on_deliver", "on_publish")]
    {
        for fault in ["panic", "loop", "wrong_count"] {
            let mut settings = json!({(stamped_in): "stamp"});
            if let Some(settings) = settings.as_object_mut() {
                settings.insert(hook.to_owned(), json!({(fault): true, "trigger": "poison"}));
            }
            let config = json!({"policy": "closed", "settings": settings});
            let (server, _directory) = with_probe(&config).await?;
            let is_over = Arc::new(AtomicBool::new(false));
            let mut listener = server.client().await?;
            if hook == "on_deliver" {
                let listens = listener.call(json!(["SUBSCRIBE", "poison"])).await?;
                ensure!(listens == json!(["OK", 1]), "answered {listens}");
            }
            let mut others = others_are_served(&server, &is_over).await?;
            let mut culprit = server.client().await?;
            for _ in 0..30 {
                let answer = culprit.call(json!(["PUBLISH", "poison", "poison"])).await?;
                ensure!(code(&answer) == "UNAVAILABLE", "{hook}, {fault}: answered {answer}");
            }
            is_over.store(true, Ordering::Relaxed);
            while let Some(served) = others.join_next().await {
                served?.with_context(|| format!("{hook}, {fault}"))?;
            }
            let log = server.log();
            ensure!(log.matches(ISOLATED).count() == 1, "{hook}, {fault}: {log}");
            ensure!(!log.contains(PARKED), "{hook}, {fault}: {log}");
            let shown = Operator::of(&server).await?.get("/v1/plugins/probe")?;
            ensure!(shown["isolated_connections"] == 1, "{shown}");
            ensure!(shown["state"] != "parked", "{shown}");
            server.stop().await?;
        }
    }
    Ok(())
}

/// In one frame, so that the plugin receives them in one call.
async fn call_all(client: &mut Client, commands: &[Value]) -> Result<Vec<Value>> {
    let numbered = commands.iter().enumerate().map(|(number, command)| {
        let mut parts = command.as_array().cloned().unwrap_or_default();
        parts.insert(0, number.into());
        Value::Array(parts)
    });
    let frame = Value::Array(numbered.collect()).to_string();
    client.send(tokio_tungstenite::tungstenite::Message::text(frame)).await?;
    let mut answers = Vec::new();
    while answers.len() < commands.len() {
        answers.push(client.next_json().await?);
    }
    Ok(answers)
}

/// In a burst only the item that fails by itself gets the policy, whether it is closed or open.
#[tokio::test]
async fn only_the_item_that_fails_gets_the_policy() -> Result<()> {
    for (policy, failing) in [("closed", "UNAVAILABLE"), ("open", "")] {
        let settings = json!({"on_publish": [{"panic": true, "trigger": "poison"}, "stamp"]});
        let (server, _directory) =
            with_probe(&json!({"policy": policy, "settings": settings})).await?;
        let mut listener = server.client().await?;
        listener.call(json!(["SUBSCRIBE", "a"])).await?;
        let mut client = server.client().await?;
        let payloads = ["one", "two", "poison", "three"];
        let commands: Vec<Value> =
            payloads.iter().map(|payload| json!(["PUBLISH", "a", payload])).collect();
        for (payload, answer) in payloads.iter().zip(call_all(&mut client, &commands).await?) {
            let code = answer.pointer("/2/code").and_then(Value::as_str).unwrap_or_default();
            let expected = if *payload == "poison" { failing } else { "" };
            ensure!(code == expected, "{policy}: {payload} is answered {answer}");
        }
        let arrives: &[&str] = match policy {
            "closed" => &["one@00000000", "two@00000000", "three@00000000"],
            _ => &["one@00000000", "two@00000000", "poison", "three@00000000"],
        };
        for expected in arrives {
            let came = listener.next_json().await?;
            ensure!(came == json!(["message", "a", expected]), "{policy}: {came} came");
        }
        server.stop().await?;
    }
    Ok(())
}

/// Only many clients together can get a plugin parked; then what it guards stays refused.
#[tokio::test]
async fn what_many_clients_send_parks_a_plugin_and_nothing_passes_it() -> Result<()> {
    let component = components::declaring(
        components::built("redact")?,
        r#"{"name": "redact", "on_failure": "closed"}"#,
    );
    // It starts with less memory than this, and cannot receive a payload as large.
    let memory_bytes_max = 4 << 20;
    let config = json!({"memory_bytes_max": memory_bytes_max, "strikes_max": 4, "settings": {
        "rules": [{"channels": ["*"], "regex": "secret", "action": "mask"}],
        "payload_bytes_max": 2 * memory_bytes_max,
        "call_ms_max": 10_000,
    }});
    let directory = components::directory()?;
    components::configure(directory.path(), "redact", &config)?;
    components::write_atomically(&components::path(directory.path(), "redact"), &component)?;
    let limits = "limits.payload_bytes_max = 8388608\nwebsocket.message_bytes_max = 10000000\n";
    let plugins = Some(directory.path().to_owned());
    let config = format!("{CONFIG}{limits}");
    let server = Launch { plugins, ..Launch::with_config(&config) }.start().await?;
    let shown = Operator::of(&server).await?.get("/v1/plugins/redact")?;
    ensure!(shown["policy"] == "closed" && shown["policy_source"] == "component", "{shown}");

    let mut listener = server.client().await?;
    listener.call(json!(["SUBSCRIBE", "a"])).await?;
    let mut honest = server.client().await?;
    let poison = format!("secret{}", "x".repeat(memory_bytes_max));
    for client in 1..=5 {
        let is_parked = client > 4;
        let mut culprit = server.client().await?;
        for _ in 0..5 {
            let answer = culprit.call(json!(["PUBLISH", "a", poison])).await?;
            ensure!(code(&answer) == "UNAVAILABLE", "answered {answer}");
        }
        let answer = honest.call(json!(["PUBLISH", "a", "a secret"])).await?;
        match client < 4 {
            true => {
                ensure!(answer == json!(["OK", 1]), "after {client}: answered {answer}");
                let came = listener.next_json().await?;
                ensure!(came == json!(["message", "a", "a ***"]), "{came} came");
            }
            false => ensure!(code(&answer) == "UNAVAILABLE", "{is_parked}: answered {answer}"),
        }
    }
    ensure!(server.log().matches(PARKED).count() == 1);
    // No other message arrived.
    ensure!(listener.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
    server.stop().await
}

/// A payload that would exceed the budget at the best pace so far is refused with a message,
/// without a call.
#[tokio::test]
async fn what_is_too_large_for_the_budget_is_refused_untried() -> Result<()> {
    let component =
        components::declaring(components::built("redact")?, r#"{"on_failure": "closed"}"#);
    // A pattern that is slow on every byte.
    let config = json!({"call_budget_ms": 2, "settings": {
        "rules": [{"channels": ["*"], "regex": "(?i)(a|b|ab)*c{1,9}[0-9]{8}x", "action": "mask"}],
        "payload_bytes_max": 64 << 20,
        "call_ms_max": 10_000,
    }});
    let directory = components::directory()?;
    components::configure(directory.path(), "redact", &config)?;
    components::write_atomically(&components::path(directory.path(), "redact"), &component)?;
    let limits = "limits.payload_bytes_max = 67108864\nwebsocket.message_bytes_max = 70000000\n";
    let plugins = Some(directory.path().to_owned());
    let config = format!("{CONFIG}{limits}");
    let server = Launch { plugins, ..Launch::with_config(&config) }.start().await?;
    let mut client = server.client().await?;
    for _ in 0..5 {
        client.call(json!(["PUBLISH", "a", "ab".repeat(20 << 10)])).await?;
    }
    let before = Operator::of(&server).await?.get("/v1/plugins/redact")?;
    let answer = client.call(json!(["PUBLISH", "a", "ab".repeat(16 << 20)])).await?;
    let words = answer.pointer("/1/message").and_then(Value::as_str).unwrap_or_default();
    ensure!(code(&answer) == "TOOLARGE" && words.contains("the plugin redact"), "{answer}");
    let after = Operator::of(&server).await?.get("/v1/plugins/redact")?;
    ensure!(before["failures"] == after["failures"], "it was tried: {after}");
    server.stop().await
}
