//! What `switchyard plugin` reports about a plugin's file, without a server.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::components;
use crate::support::server::Server;

/// Checks a plugin's file with this component, and these settings beside it.
async fn check(component: &[u8], beside: Option<&Value>) -> Result<(Option<i32>, Value)> {
    let directory = components::directory()?;
    if let Some(beside) = beside {
        components::configure(directory.path(), "10-it", beside)?;
    }
    let file = components::path(directory.path(), "10-it");
    components::write_atomically(&file, component)?;
    let file = file.to_str().context("a temporary path is text")?;
    let mut process = Server::run_with(&["plugin", "check", "--json", file])?;
    let (status, stdout) = process.exit().await?;
    let report = serde_json::from_str(&stdout.join("\n"));
    Ok((status.code(), report.with_context(|| format!("{stdout:?}: {}", process.log()))?))
}

#[tokio::test]
async fn a_plugin_is_checked_as_the_server_would() -> Result<()> {
    let probe = components::built("test/probe")?;
    let (status, report) = check(&probe, Some(&json!({"policy": "open"}))).await?;
    ensure!(status == Some(0), "{report}");
    let has = |key: &str, expected: Value| {
        ensure!(report.get(key) == Some(&expected), "{key} is not {expected}: {report}");
        Ok(())
    };
    has("accepted", json!(true))?;
    has("refused", Value::Null)?;
    has("contract", json!("switchyard:pubsub@0.2.0"))?;
    has("gains", json!([]))?;
    has("hooks", json!(["admission", "access", "messages", "deliveries", "snapshot"]))?;
    has("policy", json!("open"))?;
    has("initialised", json!(true))?;
    let names = |key: &str| report.get(key).map(Value::to_string).unwrap_or_default();
    ensure!(names("imports").contains("switchyard:pubsub/counters@0.2.0"), "{report}");
    ensure!(names("exports").contains("switchyard:pubsub/lifecycle@0.2.0"), "{report}");

    // The output names the hosts that a plugin may send requests to, granted or not.
    let asker = components::built("test/asker")?;
    let grants = json!({"http_allow": ["https://id.example.com:443", "http://[::1]:8080"]});
    for (beside, may_ask) in [
        (json!({"http_allow": []}), json!([])),
        (grants, json!(["https://id.example.com", "http://[::1]:8080"])),
    ] {
        let (_, report) = check(&asker, Some(&beside)).await?;
        let asks_with = report.get("asks_with").and_then(Value::as_str).unwrap_or_default();
        ensure!(asks_with.starts_with("wasi:http/outgoing-handler@0.2"), "{report}");
        assert_eq!(report.get("may_ask"), Some(&may_ask), "{report}");
        assert_eq!(report.get("accepted"), Some(&json!(may_ask != json!([]))), "{report}");
    }

    let (status, report) = check(&components::built("redact")?, None).await?;
    ensure!(status == Some(0), "{report}");
    ensure!(report.get("hooks") == Some(&json!(["messages"])), "{report}");

    // A plugin for an older contract is accepted, and the report says what it misses.
    let (status, report) = check(&components::built("test/redact-v0-1")?, None).await?;
    ensure!(status == Some(0), "{report}");
    ensure!(report.get("contract") == Some(&json!("switchyard:pubsub@0.1.0")), "{report}");
    let gains = report.get("gains").and_then(Value::as_array).context("a list")?;
    ensure!(gains.iter().any(|gain| gain.to_string().contains("messages: ")), "{report}");
    Ok(())
}

#[tokio::test]
async fn what_the_server_would_refuse_is_refused_with_the_reason() -> Result<()> {
    let probe = components::built("test/probe")?;
    let half: Vec<u8> = probe.iter().take(probe.len() / 2).copied().collect();
    let foreign = components::built("test/foreign")?;
    let refusing = json!({"settings": {"init": "error"}});
    for (component, beside, step, says) in [
        (b"nonsense".to_vec(), None, "compile", "not a WebAssembly file"),
        (half, None, "compile", ""),
        (components::built("test/snoop")?, Some(json!({"policy": "open"})), "init", "no socket: "),
        (foreign, None, "link", "@0.3.0"),
        (components::built("test/asker")?, None, "link", "wasi:http/outgoing-handler@"),
        (components::built("guest-core")?, None, "link", "lifecycle"),
        (probe.clone(), Some(refusing), "init", "configured to refuse"),
        (probe.clone(), Some(json!({"core_instances_max": 1})), "instantiate", "instance"),
        (probe, Some(json!({"polcy": "open"})), "config", "polcy"),
    ] {
        let (status, report) = check(&component, beside.as_ref()).await?;
        ensure!(status == Some(1), "{report}");
        let word = |key| report.pointer(key).and_then(Value::as_str).unwrap_or_default();
        assert_eq!(word("/refused/step"), step, "{report}");
        ensure!(word("/refused/problem").contains(says), "{says:?} is not said: {report}");
    }
    Ok(())
}

#[tokio::test]
async fn how_a_plugin_fails_is_declared_in_its_file() -> Result<()> {
    let directory = components::directory()?;
    let file = components::path(directory.path(), "10-it");
    let probe = components::built("test/probe")?;
    components::write_atomically(&file, &probe)?;
    let path = file.to_str().context("a temporary path is text")?;
    let declare = async |words: &[&str]| -> Result<(Option<i32>, String)> {
        let words = [&["plugin", "declare", path], words].concat();
        let mut process = Server::run_with(&words)?;
        let (status, _) = process.exit().await?;
        Ok((status.code(), process.log()))
    };
    for (on_failure, more, expected) in [
        ("open", &[][..], r#"{"on_failure":"open"}"#),
        (
            "closed",
            &["--name", "it", "--version", "1.2"],
            r#"{"name":"it","on_failure":"closed","version":"1.2"}"#,
        ),
    ] {
        let words = [&["--on-failure", on_failure], more].concat();
        ensure!(declare(&words).await?.0 == Some(0));
        let declared = std::fs::read(&file)?;
        ensure!(declared.ends_with(format!("switchyard:plugin{expected}").as_bytes()));
        ensure!(declared.starts_with(&probe), "the rest has changed");
        // It is accepted as before.
        let (status, report) = check(&declared, None).await?;
        ensure!(status == Some(0), "{report}");
    }
    for (words, code) in [
        (&["--on-failure", "shut"][..], Some(64)),
        (&[], Some(64)),
        (&["--on-failure", "open", "--name", ""], Some(64)),
    ] {
        let (status, log) = declare(words).await?;
        ensure!(status == code, "{words:?}: {status:?} {log}");
    }
    components::write_atomically(&file, b"nonsense")?;
    let (status, log) = declare(&["--on-failure", "open"]).await?;
    ensure!(status == Some(1) && log.contains("not a WebAssembly component"), "{log}");
    ensure!(std::fs::read(&file)? == b"nonsense");
    Ok(())
}
