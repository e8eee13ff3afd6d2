//! File descriptors: the limit is raised as far as the system permits, and running out of them is
//! survived.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::admin::Operator;
use crate::support::components::write_atomically;
use crate::support::raw::{exchange, get};
use crate::support::server::{Launch, Server, with_quick_end};
use crate::support::{PATIENCE, within};

/// So many connections that send nothing.
pub async fn idle(server: &Server, count: usize) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(TcpStream::connect(server.resp_address().await?).await?);
    }
    Ok(connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_is_raised_to_the_hard_one() -> Result<()> {
    let server = Launch { ulimit: Some("-Sn 64"), ..Launch::default() }.start().await?;
    server.wait_for_log("the soft limit of file descriptors was raised").await?;
    for mut connection in idle(&server, 100).await? {
        connection.write_all(b"PING\r\n").await?;
        let mut answer = [0; 7];
        within(PATIENCE, "an answer", connection.read_exact(&mut answer)).await??;
        assert_eq!(&answer, b"+PONG\r\n");
    }
    server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_while_there_are_no_descriptors() -> Result<()> {
    let config = "shutdown.timeout_ms = 100";
    let server = Launch { ulimit: Some("-n 80"), ..Launch::with_config(config) }.start().await?;
    let line = server.wait_for_log("does not fit the limit of file descriptors").await?;
    ensure!(line.contains("connections_max=10000") && line.contains("needed="), "{line}");
    let held = idle(&server, 120).await?;
    server.wait_for_log("connections could not be accepted").await?;

    let address = server.address().await?;
    for path in ["/healthz", "/readyz"] {
        let (status, body) = within(PATIENCE, path, get(address, path)).await??;
        ensure!(status == 200, "{path}: {status} {body}");
    }
    let upgrade = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let said = within(PATIENCE, "a refusal", exchange(address, upgrade)).await??;
    ensure!(said.starts_with("HTTP/1.1 503 ") && said.contains("file descriptors"), "{said}");
    let said = within(PATIENCE, "a refusal", exchange(server.resp_address().await?, "")).await??;
    ensure!(said.starts_with("-ERR max number of clients reached"), "{said:?}");
    let operator = Operator::of(&server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (status, _, metrics) = operator.exchange(&head, b"")?;
    ensure!(status == 200, "{status}");
    for gauge in ["process_resident_memory_bytes", "process_open_fds"] {
        ensure!(metrics.contains(&format!("\n{gauge} ")), "no {gauge}: {metrics}");
    }
    for door in ["http", "resp", "admin"] {
        let series = format!("switchyard_accept_failures_total{{door=\"{door}\"}} ");
        let count = metrics.lines().find_map(|line| line.strip_prefix(&series));
        ensure!(count.is_some_and(|count| count != "0"), "{door}: {count:?}");
    }

    drop(held);
    within(PATIENCE, "room for one more", async {
        let resp = server.resp_address().await?;
        while exchange(resp, "PING\r\n").await.unwrap_or_default() != "+PONG\r\n" {}
        anyhow::Ok(())
    })
    .await??;
    // Once for each listener, however many attempts there were.
    let said = server.log().matches("connections could not be accepted").count();
    ensure!(said <= 6, "said {said} times");
    server.stop().await
}

/// A file that changes while it cannot be opened is read as soon as it can be.
#[tokio::test(flavor = "multi_thread")]
async fn settings_that_change_while_there_are_no_descriptors_are_read_later() -> Result<()> {
    let config = "shutdown.timeout_ms = 100\n";
    let server = Launch { ulimit: Some("-n 80"), ..Launch::with_config(config) }.start().await?;
    server.wait_for_log("changes of files are watched").await?;
    let held = idle(&server, 120).await?;
    server.wait_for_log("connections could not be accepted").await?;
    // The reserve of a listener is free for moments, and the file may be read with it.
    let mut read = 0;
    while !server.log().contains("could not be read; reading it again") {
        let changed = format!("{config}limits.names_per_command_max = {}\n", read + 7);
        let changed = with_quick_end(&changed);
        write_atomically(&server.home().join("switchyard.toml"), changed.as_bytes())?;
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        within(PATIENCE, "the file to be read, or not", async {
            while !server.log().contains("could not be read") {
                let changes = server.log().matches("settings were changed").count();
                if changes > read {
                    read = changes;
                    return;
                }
                looks.tick().await;
            }
        })
        .await?;
    }
    let line = server.wait_for_log("could not be read; reading it again").await?;
    ensure!(line.contains("WARN") && line.contains("the config file"), "{line}");
    drop(held);
    let lines = server.wait_for_logs("settings were changed", read + 1).await?;
    ensure!(lines.iter().all(|line| line.contains("limits.names_per_command_max")), "{lines:?}");
    server.stop().await
}
