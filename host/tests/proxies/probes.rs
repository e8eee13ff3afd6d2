//! `/livez`, `/readyz` and `/healthz` at both HTTP listeners.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::backplane::{Backplane, Kind};
use crate::support::admin::Operator;
use crate::support::components;
use crate::support::raw;
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, within};

/// The status and text of a probe; the admin listener must answer with the same status.
async fn probe(server: &Server, path: &str) -> Result<(u16, String)> {
    let (status, text) = raw::get(server.address().await?, path).await?;
    let (admin, said) = Operator::of(server).await?.ask("GET", path, None)?;
    ensure!(
        status == admin,
        "{path}: {status} {text} at the door, {admin} {said} at the admin API"
    );
    Ok((status, text))
}

/// Checks all three.
async fn check(server: &Server, ready: (u16, &str), healthy: (u16, &str)) -> Result<()> {
    for (path, (status, text)) in
        [("/livez", (200, "ok")), ("/readyz", ready), ("/healthz", healthy)]
    {
        let answer = probe(server, path).await?;
        ensure!(answer == (status, format!("{text}\n")), "{path}: {answer:?}");
    }
    Ok(())
}

/// Waits until `/healthz` begins with these words.
async fn until_health(server: &Server, words: &str) -> Result<()> {
    within(PATIENCE, format!("{words:?} of /healthz"), async {
        while !raw::get(server.address().await?, "/healthz").await?.1.starts_with(words) {}
        anyhow::Ok(())
    })
    .await?
}

fn clustered(backplane: &Backplane, config: &str) -> Launch {
    let url = backplane.url();
    Launch::with_config(&format!("health.reuse_ms = 1\ncluster.url = '{url}'\n{config}"))
}

#[tokio::test]
async fn a_server_that_works_says_so() -> Result<()> {
    let server = Launch::default().start().await?;
    check(&server, (200, "ok"), (200, "ok")).await?;
    server.stop().await
}

#[tokio::test]
async fn a_backplane_that_is_disconnected_degrades_a_node_that_accepts() -> Result<()> {
    let mut backplane = Backplane::start(Kind::Redis).await?;
    let server = clustered(&backplane, "").start().await?;
    check(&server, (200, "ok"), (200, "ok")).await?;
    backplane.kill();
    until_health(&server, "degraded").await?;
    let text = "degraded: the backplane is disconnected";
    check(&server, (200, text), (200, text)).await?;
    backplane.come_back().await?;
    until_health(&server, "ok").await?;
    server.stop().await
}

#[tokio::test]
async fn a_backplane_that_is_disconnected_makes_a_node_unhealthy_that_refuses() -> Result<()> {
    let mut backplane = Backplane::start(Kind::Redis).await?;
    let server = clustered(&backplane, "cluster.when_away = 'refuse'").start().await?;
    backplane.kill();
    until_health(&server, "unhealthy").await?;
    let problem = "the backplane is disconnected, and publications are refused";
    let (ready, healthy) = (format!("degraded: {problem}"), format!("unhealthy: {problem}"));
    check(&server, (200, &ready), (503, &healthy)).await?;
    server.stop().await
}

#[tokio::test]
async fn a_node_that_needs_its_backplane_is_not_ready_without_it() -> Result<()> {
    let mut backplane = Backplane::start(Kind::Redis).await?;
    let server = clustered(&backplane, "health.ready_needs_backplane = true").start().await?;
    check(&server, (200, "ok"), (200, "ok")).await?;
    backplane.kill();
    until_health(&server, "degraded").await?;
    let problem = "the backplane is disconnected";
    let (ready, healthy) = (format!("unhealthy: {problem}"), format!("degraded: {problem}"));
    check(&server, (503, &ready), (200, &healthy)).await?;
    server.stop().await
}

#[tokio::test]
async fn a_guard_that_is_absent_makes_a_server_unready() -> Result<()> {
    let plugins = components::directory()?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::default() };
    let server = launch.start().await?;
    check(&server, (200, "ok"), (200, "ok")).await?;
    let settings = plugins.path().join("20-redact.toml");
    components::write_atomically(&settings, b"policy = 'closed'\n")?;
    until_health(&server, "unhealthy").await?;
    for path in ["/readyz", "/healthz"] {
        let (status, text) = probe(&server, path).await?;
        ensure!(status == 503 && text.contains("20-redact.toml"), "{path}: {status} {text}");
    }
    assert_eq!(probe(&server, "/livez").await?.0, 200);
    std::fs::remove_file(&settings)?;
    until_health(&server, "ok").await?;
    server.stop().await
}

#[tokio::test]
async fn the_admin_listener_says_part_by_part() -> Result<()> {
    let server = Launch::default().start().await?;
    let operator = Operator::of(&server).await?;
    let (status, said) = operator.ask("GET", "/livez", None)?;
    assert_eq!((status, said), (200, json!({"status": "ok"})));
    let (_, said) = operator.ask("GET", "/readyz", None)?;
    assert_eq!((&said["ready"], &said["draining"]), (&json!(true), &json!(false)));
    let guards = said.get("guards").and_then(Value::as_array).context("a list")?;
    ensure!(guards.is_empty(), "{said}");
    server.stop().await
}
