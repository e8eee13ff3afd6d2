//! The engine is replaced by replacing its file, while the server runs; a refused file leaves
//! everything unchanged.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::swap::{CONFIG, Echo, probe};
use crate::support::components;
use crate::support::server::{Launch, Server};

const ENGINE_SWAPPED: &str = "the engine was swapped";
const ENGINE_KEPT: &str = "the engine was not swapped";

/// A server whose engine is loaded from a file, the directory of the file, and a listening
/// connection.
async fn engine_from_file() -> Result<(Server, TempDir, Echo)> {
    let home = components::directory()?;
    let file = home.path().join("engine.wasm");
    components::write_atomically(&file, &components::built("guest-core")?)?;
    let server = Launch::with_config(&format!("{CONFIG}\nengine.file = {file:?}")).start().await?;
    server.wait_for_log("changes of files are watched").await?;
    let echo = Echo::on(&server).await?;
    Ok((server, home, echo))
}

/// The versions in a log line about a swap of the engine.
fn versions(line: &str) -> Option<(&str, &str)> {
    let word = |key| line.split(key).nth(1)?.split('"').next();
    Some((word("from=\"")?, word("to=\"")?))
}

#[tokio::test]
async fn the_engine_is_swapped_when_its_file_is() -> Result<()> {
    let (server, home, mut echo) = engine_from_file().await?;
    let file = home.path().join("engine.wasm");
    let engine = components::built("guest-core")?;
    for swaps in 1..=3 {
        components::write_atomically(&file, &components::rehashed(engine.clone(), swaps))?;
        let lines = server.wait_for_logs(ENGINE_SWAPPED, swaps as usize).await?;
        let line = lines.last().context("there are some")?;
        let (from, to) = versions(line).with_context(|| format!("no versions: {line}"))?;
        ensure!(from != to && line.contains("pause_us="), "{line}");
        echo.is("x").await?;
    }
    // The same engine is not swapped, whether its file is written again or a reload is requested.
    for requests in 1..=2 {
        server.signal("HUP")?;
        server.wait_for_logs("plugins and engine are reloaded", requests).await?;
        components::write_atomically(&file, &components::rehashed(engine.clone(), 3))?;
        echo.is("x").await?;
    }
    components::write_atomically(&file, &components::rehashed(engine, 4))?;
    let lines = server.wait_for_logs(ENGINE_SWAPPED, 4).await?;
    let same = lines.iter().filter_map(|line| versions(line)).filter(|(from, to)| from == to);
    ensure!(same.count() == 0 && lines.len() == 4, "{lines:?}");
    echo.is("x").await?;
    server.stop().await
}

/// The new engine receives the ground state before it is used: one that fails then is refused.
#[tokio::test]
async fn an_engine_that_fails_during_replay_is_not_installed() -> Result<()> {
    let (server, home, mut echo) = engine_from_file().await?;
    let file = home.path().join("engine.wasm");
    let mut other = server.client().await?;
    ensure!(other.call(json!(["SUBSCRIBE", "b", "trap-listener", "c"])).await? == json!(["OK", 3]));
    let bad = components::built("test/bad-engine")?;
    components::write_atomically(&file, &bad)?;
    let line = server.wait_for_log(ENGINE_KEPT).await?;
    ensure!(line.contains("subscribe"), "the call is not named: {line}");
    for channel in ["b", "trap-listener", "c"] {
        ensure!(other.call(json!(["PUBLISH", channel, "x"])).await? == json!(["OK", 2]));
        ensure!(other.next_json().await? == json!(["message", channel, "x"]));
        ensure!(echo.0.next_json().await? == json!(["pmessage", "*", channel, "x"]));
    }
    // The subscription that makes it fail is gone, so it is accepted.
    ensure!(other.call(json!(["UNSUBSCRIBE", "trap-listener"])).await? == json!(["OK", 2]));
    components::write_atomically(&file, &components::rehashed(bad, 1))?;
    server.wait_for_log(ENGINE_SWAPPED).await?;
    let counts = other.call(json!(["PUBSUB", "NUMSUB", "b", "trap-listener", "c"])).await?;
    ensure!(counts == json!(["OK", {"b": 1, "trap-listener": 0, "c": 1}]), "listeners: {counts}");
    echo.is("x").await?;
    server.stop().await
}

#[tokio::test]
async fn an_engine_that_is_refused_leaves_the_one_in_place() -> Result<()> {
    let (server, home, mut echo) = engine_from_file().await?;
    let file = home.path().join("engine.wasm");
    let good = components::built("guest-core")?;
    let half = good.iter().take(good.len() / 2).copied().collect();
    let cases: [(Vec<u8>, &str, &str); 6] = [
        (Vec::new(), "compile", "not a WebAssembly file"),
        (b"\0asm\x01\0\0\0".to_vec(), "compile", "core module"),
        (half, "compile", ""),
        (probe(0)?, "link", "not granted"),
        (components::built("test/foreign")?, "link", "@0.3.0"),
        (components::built("test/snoop")?, "link", "not granted"),
    ];
    for (number, (bytes, step, words)) in cases.iter().enumerate() {
        components::write_atomically(&file, bytes)?;
        let lines = server.wait_for_logs(ENGINE_KEPT, number + 1).await?;
        let line = lines.last().context("there are some")?;
        for word in ["engine.wasm", step, words] {
            ensure!(line.contains(word), "{word:?} is not said: {line}");
        }
        echo.is("x").await?;
    }
    std::fs::remove_file(&file)?;
    server.wait_for_logs(ENGINE_KEPT, cases.len() + 1).await?;
    echo.is("x").await?;
    ensure!(!server.log().contains(ENGINE_SWAPPED), "one of them was accepted");

    components::write_atomically(&file, &components::rehashed(good, 1))?;
    server.wait_for_log(ENGINE_SWAPPED).await?;
    echo.is("x").await?;
    server.stop().await
}

#[tokio::test]
async fn at_startup_a_refused_engine_ends_the_server_with_1() -> Result<()> {
    let home = components::directory()?;
    for (name, bytes, says) in [
        ("missing.wasm", None, &["read", "missing.wasm"][..]),
        ("text.wasm", Some(b"nonsense".to_vec()), &["compile", "text.wasm", "not a WebAssembly"]),
        ("plugin.wasm", Some(probe(0)?), &["link", "plugin.wasm"]),
    ] {
        let file = home.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&file, bytes)?;
        }
        let path = file.to_str().context("a temporary path is text")?;
        let mut server = Server::run_alone(&["--engine", path])?;
        let (status, stdout) = server.exit().await?;
        let log = server.log();
        assert_eq!((status.code(), stdout.len()), (Some(1), 0), "{name}: {log}");
        for word in says {
            ensure!(log.contains(word), "{name}: {word:?} is not said: {log}");
        }
    }
    Ok(())
}

/// A reload replaces only what changed.
#[tokio::test]
async fn the_embedded_engine_stays_when_a_reload_is_requested() -> Result<()> {
    let mut server = Launch::with_config(CONFIG).start().await?;
    let file = server.home().join("switchyard.toml");
    for number in 1..=3 {
        let config = format!("{CONFIG}\nlimits.name_bytes_max = {}\n", 100 + number);
        components::write_atomically(&file, config.as_bytes())?;
        server.signal("HUP")?;
        server.wait_for_logs("settings were changed", number).await?;
    }
    server.signal("TERM")?;
    server.exit().await?;
    let log = server.log();
    ensure!(!log.contains(ENGINE_SWAPPED), "{log}");
    Ok(())
}
