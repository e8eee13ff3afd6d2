//! The processor time of the bundled plugins, measured by the server, in the components that are
//! shipped. Their READMEs quote it:
//!
//! ```text
//! cargo test --release -p switchyard --test it -- plugin_costs --nocapture --test-threads 1
//! ```
//!
//! No call may fail, and the mean time must be within the server's default budget, or within the one
//! that the plugin's README recommends. The budget while this is measured is larger: on a machine
//! that runs other programs as well, a single call can take long for their sake.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::admin::Operator;
use crate::support::components;
use crate::support::server::Launch;
use crate::tokens;

/// How many calls are measured.
const CALLS: u64 = 200;

/// The server's default budget of a call, in milliseconds.
const BUDGET_MS: u64 = 10;

/// The budget while the time is measured, in milliseconds.
const MEASURED_BUDGET_MS: u64 = 2_000;

/// How many publications a burst has.
const BURST: usize = 64;

/// Calls a plugin repeatedly with the same input, and prints how long its hook took.
async fn cost(
    what: &str,
    plugin: &str,
    config: &Value,
    hook: &str,
    requests: &[Value],
) -> Result<()> {
    let directory = components::directory()?;
    let budget_ms = config.get("call_budget_ms").and_then(Value::as_u64).unwrap_or(BUDGET_MS);
    let mut config = config.clone();
    if let Some(config) = config.as_object_mut() {
        config.insert("call_budget_ms".to_owned(), MEASURED_BUDGET_MS.into());
    }
    components::configure(directory.path(), plugin, &config)?;
    let component = components::built(plugin)?;
    components::write_atomically(&components::path(directory.path(), plugin), &component)?;
    let plugins = Some(directory.path().to_owned());
    let server = Launch { plugins, ..Launch::default() }.start().await?;
    let mut client = server.client().await?;
    for _ in 0..CALLS {
        // In one frame, so that the plugin receives them in one call.
        let numbered = requests.iter().enumerate().map(|(number, command)| {
            let mut parts = command.as_array().cloned().unwrap_or_default();
            parts.insert(0, number.into());
            Value::Array(parts)
        });
        let frame = Value::Array(numbered.collect());
        client.send(tokio_tungstenite::tungstenite::Message::text(frame.to_string())).await?;
        for number in 0..requests.len() {
            let answer = client.next_json().await?;
            let start = [answer.get(0), answer.get(1)];
            ensure!(start == [Some(&json!(number)), Some(&json!("OK"))], "answered {answer}");
        }
    }
    let shown = Operator::of(&server).await?.get(&format!("/v1/plugins/{plugin}"))?;
    let hooks = shown.get("stats").and_then(Value::as_array).context("no stats")?;
    let is_meant = |stats: &&Value| stats.get("hook") == Some(&json!(hook));
    let stats = hooks.iter().find(is_meant).context("no such hook")?;
    let number = |path: &str| stats.pointer(path).and_then(Value::as_f64).context("no number");
    ensure!(number("/faults")? == 0.0, "it failed: {shown}");
    let calls = number("/time/count")?;
    ensure!(calls >= CALLS as f64, "there were {calls} calls: {shown}");
    let mean_us = number("/time/sum_us")? / calls;
    let budget_us = budget_ms as f64 * 1e3;
    ensure!(mean_us <= budget_us, "{mean_us} us a call, and the budget is {budget_ms} ms: {shown}");
    let items = number("/items")? / calls;
    let p99 = stats.pointer("/time/p99_us").and_then(Value::as_f64);
    let p99 = p99.map_or("above the largest bucket".to_owned(), |p99| format!("{p99:.0} us"));
    let memory = shown.pointer("/memory_bytes/0").and_then(Value::as_u64).unwrap_or_default();
    println!(
        "{what}: {mean_us:.1} us a call, {:.2} us an item ({items:.0} a call), 99 % within \
         {p99}, {} KiB",
        mean_us / items,
        memory >> 10,
    );
    drop(client);
    server.stop().await
}

fn burst(command: &Value) -> Vec<Value> {
    vec![command.clone(); BURST]
}

#[tokio::test]
async fn of_a_token() -> Result<()> {
    for (algorithm, key) in [
        ("HS256", json!({"algorithm": "HS256", "secret": tokens::SECRET})),
        ("EdDSA", json!({"algorithm": "EdDSA", "pem": tokens::public("ed25519")?})),
        ("RS256", json!({"algorithm": "RS256", "pem": tokens::public("rsa")?})),
        ("ES256", json!({"algorithm": "ES256", "pem": tokens::public("p256")?})),
    ] {
        let claims = json!({"sub": "alice", "exp": "now+600", "subscribe": ["news.*"]});
        let token = tokens::token(algorithm, None, &claims)?;
        let config = json!({"settings": {"keys": [key], "without_token": "allow"}});
        let requests = [json!(["AUTH", token])];
        cost(algorithm, "jwt-auth", &config, "on-authenticate", &requests).await?;
    }
    Ok(())
}

#[tokio::test]
async fn of_a_limit() -> Result<()> {
    let limit = |name: &str, per: &str| {
        let plenty = 1_000_000_000;
        json!({"name": name, "of": "publishes", "per": per, "rate": plenty})
    };
    let one = json!([limit("a", "connection")]);
    let three = json!([
        limit("a", "connection"),
        limit("b", "address"),
        {"name": "c", "of": "bytes", "per": "address", "rate": 1_000_000_000, "except_roles": ["x"]},
    ]);
    let publish = json!(["PUBLISH", "a", "x".repeat(100)]);
    for (what, limits) in [("one limit", one), ("three limits", three)] {
        let config = json!({"settings": {"limits": limits}});
        let single = std::slice::from_ref(&publish);
        cost(&format!("{what}, alone"), "rate-limit", &config, "on-access", single).await?;
        let burst = burst(&publish);
        cost(&format!("{what}, a burst"), "rate-limit", &config, "on-access", &burst).await?;
    }
    Ok(())
}

#[tokio::test]
async fn of_a_mask() -> Result<()> {
    const EXAMPLE: &str = include_str!("../../../examples/plugins/20-redact.toml");
    let example: Value = toml::from_str(EXAMPLE)?;
    let card = example.pointer("/settings/rules/0/regex").context("the example has a regex")?;
    let rule = |rule: Value| {
        let mut all = json!({"channels": ["*"], "action": "mask"});
        if let Some((all, rule)) = all.as_object_mut().zip(rule.as_object().cloned()) {
            all.extend(rule);
        }
        all
    };
    let card = rule(json!({"regex": card, "no_digit_beside": true}));
    let words = rule(json!({"regex": "(?i)internal use only"}));
    let boundary = rule(json!({"regex": r"\b\d{16}\b"}));
    let pointer = rule(json!({"pointer": "/card/number"}));
    let text = |bytes: usize| "see you at the station in half an hour. ".repeat(bytes / 40);
    let message = |bytes: usize| json!({"from": "bob", "at": 1_764_000_000, "text": text(bytes)});
    let numbers = json!(vec![1_764_000_000; 22_000]).to_string();
    let escaped = format!("[\"{}\"]", r"\u00e9".repeat(40_000));
    let accented = "\u{e9}t\u{e9} ".repeat(40_000);
    for (what, rules, payload) in [
        ("a card number, 100 bytes of JSON", json!([card]), message(80).to_string()),
        ("a card number, 240 KB of JSON", json!([card]), message(240_000).to_string()),
        ("a card number, 240 KB of text", json!([card]), text(240_000)),
        ("a card number, 240 KB of numbers", json!([card]), numbers),
        ("a card number, 240 KB of escapes", json!([card]), escaped),
        ("words, 240 KB of text", json!([words]), text(240_000)),
        (r"\b\d{16}\b, 240 KB of ASCII", json!([boundary]), text(240_000)),
        (r"\b\d{16}\b, 240 KB of other text", json!([boundary]), accented),
        ("a pointer, 240 KB of JSON", json!([pointer]), message(240_000).to_string()),
    ] {
        let settings = json!({"rules": rules, "call_ms_max": 1_000});
        let config = json!({"settings": settings, "call_budget_ms": 2_000});
        let publish = json!(["PUBLISH", "a", payload]);
        cost(what, "redact", &config, "on-publish", std::slice::from_ref(&publish)).await?;
        if payload.len() < 1_000 {
            cost("each of a burst of 64", "redact", &config, "on-publish", &burst(&publish))
                .await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn of_a_schema() -> Result<()> {
    let schema = json!({
        "type": "object",
        "required": ["id", "items"],
        "additionalProperties": false,
        "properties": {
            "id": {"type": "string", "pattern": "^[0-9]{4,10}$"},
            "mail": {"type": "string", "format": "email"},
            "items": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/item"}},
        },
        "$defs": {"item": {
            "type": "object",
            "required": ["sum"],
            "properties": {"sum": {"type": "number", "minimum": 0}, "name": {"type": "string"}},
        }},
    });
    let rules = json!([{"name": "order", "channels": ["*"], "schema": schema}]);
    let config = json!({"settings": {"rules": rules}});
    let order = |items: usize| {
        let items = vec![json!({"sum": 1.5, "name": "a thing of some kind"}); items];
        let order = json!({"id": "123456", "mail": "alice@example.com", "items": items});
        json!(["PUBLISH", "orders", order.to_string()])
    };
    for (what, items) in [("100 bytes", 1), ("60 KiB", 1_400)] {
        cost(&format!("{what}, alone"), "validate", &config, "on-publish", &[order(items)]).await?;
    }
    let burst = burst(&order(1));
    cost("100 bytes, a burst", "validate", &config, "on-publish", &burst).await
}
