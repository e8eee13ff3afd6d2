//! A log that cannot be written: its reader stalls or is gone, or the disk is full.
//!
//! Lines are lost and counted, and nothing else happens: every client is served, every command of
//! the operator is executed, and the server shuts down in order.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write, pipe};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::admin::Operator;
use crate::support::components::{self, write_atomically};
use crate::support::raw::{exchange, get};
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, within};

/// A full pipe: a writer blocks until it is read.
fn full_pipe() -> Result<(PipeReader, PipeWriter)> {
    let (reader, mut writer) = pipe()?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    while writer.write(&[b'\n'; 4 << 10]).is_ok() {}
    while writer.write(b"\n").is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false)?;
    Ok((reader, writer))
}

/// Waits until /healthz answers 200 with `text`.
async fn until_healthz_says(server: &Server, text: &str) -> Result<()> {
    let address = server.address().await?;
    within(PATIENCE, format!("/healthz that says {text:?}"), async {
        loop {
            let (status, body) = get(address, "/healthz").await?;
            ensure!(status == 200, "{status} {body}");
            if body.contains(text) {
                return Ok(());
            }
        }
    })
    .await?
}

async fn lines_lost(server: &Server) -> Result<f64> {
    let operator = Operator::of(server).await?;
    let head = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n", operator.authority());
    let (_, _, metrics) = operator.exchange(&head, b"")?;
    let lost =
        metrics.lines().find_map(|line| line.strip_prefix("switchyard_log_lines_lost_total "));
    Ok(lost.context("no switchyard_log_lines_lost_total")?.parse()?)
}

/// Stops the server while a client is connected. The client must be notified.
async fn ends_in_good_order(mut server: Server) -> Result<()> {
    let mut client = server.client().await?;
    client.call(json!(["PING"])).await?;
    server.signal("TERM")?;
    let said = client.next_json().await?;
    ensure!(said.pointer("/0") == Some(&json!("goaway")), "not a goaway: {said}");
    let (code, _) = client.next_close().await?;
    ensure!(code == Some(1001), "closed with {code:?}");
    let (status, _) = server.exit().await?;
    ensure!(status.code() == Some(0), "the server ended with {status}");
    Ok(())
}

const QUICK_END: &str = "shutdown.grace_ms = 0\nshutdown.reconnect_spread_ms = 1\n\
    shutdown.close_delay_ms = 0\nshutdown.timeout_ms = 100\nlog.flush_ms = 200\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_read_delays_nothing() -> Result<()> {
    let (_reader, stderr) = full_pipe()?;
    let config = format!("{QUICK_END}log.filter = 'debug'\nlog.queue_lines_max = 50\n");
    let launch = Launch { stderr: Some(stderr.into()), ..Launch::with_config(&config) };
    let server = launch.start().await?;
    let resp = server.resp_address().await?;
    for number in 0..400 {
        let said = exchange(resp, &format!("ECHO {number}\r\n")).await?;
        ensure!(said.contains(&number.to_string()), "{said:?}");
    }
    until_healthz_says(&server, "degraded: the log is not read as fast as it is written").await?;
    ensure!(lines_lost(&server).await? > 100.0, "hardly any line was lost");
    let operator = Operator::of(&server).await?;
    let log = operator.get("/v1/log")?;
    let problem = log["problem"].as_str().context("no problem")?;
    ensure!(problem.contains("lines are lost"), "{log}");
    let (status, _) = operator.ask("PUT", "/v1/log", Some(&json!({"filter": "info"})))?;
    assert_eq!(status, 200);
    ends_in_good_order(server).await
}

/// At the default level, closed slow consumers are the most frequent log lines.
#[tokio::test(flavor = "multi_thread")]
async fn slow_consumers_are_closed_however_the_log_is() -> Result<()> {
    let (_reader, stderr) = full_pipe()?;
    let config = format!(
        "{QUICK_END}outbox.bytes_max = 65536\noutbox.soft_bytes = 65536\nlog.queue_lines_max = 2\n"
    );
    let launch = Launch { stderr: Some(stderr.into()), ..Launch::with_config(&config) };
    let server = launch.start().await?;
    let resp = server.resp_address().await?;
    const SUBSCRIBED: [u8; 34] = *b"*3\r\n$9\r\nsubscribe\r\n$5\r\nflood\r\n:1\r\n";
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(resp).await?;
        stream.write_all(b"SUBSCRIBE flood\r\n").await?;
        let mut reply = [0; SUBSCRIBED.len()];
        within(PATIENCE, "a subscription", stream.read_exact(&mut reply)).await??;
        ensure!(reply == SUBSCRIBED, "{}", reply.escape_ascii());
        slow.push(stream);
    }
    let mut publisher = server.client().await?;
    let payload = "x".repeat(60_000);
    within(PATIENCE, "all slow consumers to be closed", async {
        while publisher.call(json!(["PUBLISH", "flood", payload])).await? != json!(["OK", 0]) {}
        anyhow::Ok(())
    })
    .await??;
    until_healthz_says(&server, "the log").await?;
    // A line for each slow consumer, of which few are written.
    within(PATIENCE, "lines to be lost", async {
        while lines_lost(&server).await? < 10.0 {}
        anyhow::Ok(())
    })
    .await??;
    ends_in_good_order(server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_read_again_is_in_order_and_says_how_much_was_lost() -> Result<()> {
    let (mut reader, stderr) = full_pipe()?;
    let config = format!("{QUICK_END}log.filter = 'debug'\nlog.queue_lines_max = 10\n");
    let launch = Launch { stderr: Some(stderr.into()), ..Launch::with_config(&config) };
    let server = launch.start().await?;
    for _ in 0..20 {
        exchange(server.resp_address().await?, "PING\r\n").await?;
    }
    until_healthz_says(&server, "the log is not read").await?;
    // Reads until the server exits.
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    within(PATIENCE, "a log in order", async {
        let operator = Operator::of(&server).await?;
        while operator.get("/v1/log")?["problem"] != Value::Null {}
        anyhow::Ok(())
    })
    .await??;
    ends_in_good_order(server).await?;
    let log = reading.join().ok().context("the reader panicked")??;
    ensure!(log.contains("lines of the log were lost"), "{log}");
    ensure!(log.contains("the server is ending"), "the end is not in the log: {log}");
    Ok(())
}

/// The system sends SIGXFSZ at each line then.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_file_at_its_largest_size_ends_nothing() -> Result<()> {
    let config = format!("{QUICK_END}log.filter = 'debug'\n");
    let launch = Launch {
        stderr: Some(tempfile::tempfile()?.into()),
        // Room for the memory images that Wasmtime makes.
        ulimit: Some("-f 64"),
        ..Launch::with_config(&config)
    };
    let server = launch.start().await?;
    let resp = server.resp_address().await?;
    within(PATIENCE, "lines to be lost", async {
        for number in 0.. {
            let said = exchange(resp, &format!("ECHO {number}\r\n")).await?;
            ensure!(said.contains(&number.to_string()), "{said:?}");
            let (_, body) = get(server.address().await?, "/healthz").await?;
            if body.contains("the log") {
                break;
            }
        }
        Ok(())
    })
    .await??;
    ends_in_good_order(server).await
}

/// Where the log goes.
#[derive(Clone, Copy)]
enum Log {
    /// To a pipe without a reader.
    Gone,
    /// To a disk that is full.
    Full,
}

impl Log {
    fn stderr(self) -> Result<Stdio> {
        Ok(match self {
            Log::Gone => pipe()?.1.into(),
            Log::Full => OpenOptions::new().write(true).open("/dev/full")?.into(),
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_serves_without_its_log() -> Result<()> {
    serves_with(Log::Gone).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_serves_with_its_log_on_a_full_disk() -> Result<()> {
    serves_with(Log::Full).await
}

#[expect(clippy::indexing_slicing, reason = "what is not there fails the test")]
async fn serves_with(log: Log) -> Result<()> {
    let plugins = components::directory()?;
    let settings = json!({"settings": {"on_publish": [
        {"loop": true, "trigger": "loop"},
        {"stamp": true, "channels": ["stamped"]},
    ]}});
    let probe = components::path(plugins.path(), "10-probe");
    write_atomically(&probe, &components::built("test/probe")?)?;
    components::configure(plugins.path(), "10-probe", &settings)?;
    let config =
        format!("{QUICK_END}plugins.rebuild_backoff_ms = 10\nlimits.name_bytes_max = 10\n");
    let server = Launch {
        plugins: Some(plugins.path().to_owned()),
        stderr: Some(log.stderr()?),
        ulimit: Some("-n 80"),
        ..Launch::with_config(&config)
    }
    .start()
    .await?;
    until_healthz_says(&server, "degraded: the log cannot be written").await?;

    // More connections than the server has descriptors for.
    let resp = server.resp_address().await?;
    let mut connections = Vec::new();
    for _ in 0..120 {
        connections.push(TcpStream::connect(resp).await?);
    }
    drop(connections);
    until_answered(&server, "PING\r\n", "+PONG").await?;

    // SIGHUP, and a file that changes.
    for (is_signalled, bytes_max) in [(true, 5), (false, 7)] {
        let config = format!("{QUICK_END}limits.name_bytes_max = {bytes_max}\n");
        write_atomically(&server.home().join("switchyard.toml"), config.as_bytes())?;
        if is_signalled {
            server.signal("HUP")?;
        }
        let text = format!("over the limit of {bytes_max}");
        until_answered(&server, "SUBSCRIBE longername\r\n", &text).await?;
    }

    // A plugin that exceeds its budget.
    let stamped = "PUBLISH stamped x\r\n";
    let mut client = server.client().await?;
    client.call(json!(["SUBSCRIBE", "stamped"])).await?;
    exchange(resp, "PUBLISH any loop\r\n").await?;
    within(PATIENCE, "the plugin to be rebuilt", async {
        loop {
            exchange(resp, stamped).await?;
            let message = client.next_json().await?;
            if message[2].as_str().is_some_and(|payload| payload.starts_with("x@")) {
                return anyhow::Ok(());
            }
        }
    })
    .await??;

    // A request to the admin API, which is answered when it is done.
    let operator = Operator::of(&server).await?;
    let (status, answer) = operator.ask("DELETE", "/v1/plugins/10-probe", None)?;
    ensure!(status == 200, "{status} {answer}");
    let log = operator.get("/v1/log")?;
    let problem = log["problem"].as_str().unwrap_or_default();
    ensure!(problem.starts_with("the log cannot be written: "), "{log}");
    ensure!(lines_lost(&server).await? > 5.0, "no line was lost");
    drop(client);
    ends_in_good_order(server).await
}

/// Sends this until the reply contains `text`.
async fn until_answered(server: &Server, says: &str, text: &str) -> Result<()> {
    let resp = server.resp_address().await?;
    within(PATIENCE, format!("{text:?} in an answer"), async {
        loop {
            // Some attempts may be refused until then.
            if exchange(resp, says).await.is_ok_and(|said| said.contains(text)) {
                return;
            }
        }
    })
    .await
}

/// The binary with free ports and these arguments.
fn switchyard(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
    command.args(["serve", "--http", "127.0.0.1:0", "--resp", "127.0.0.1:0"]);
    command.args(["--admin", "127.0.0.1:0"]).args(words).env_remove("RUST_LOG");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_print_its_addresses_logs_them_and_serves() -> Result<()> {
    let (_, stdout) = pipe()?;
    let mut child = switchyard(&[]).stdout(stdout).stderr(Stdio::piped()).spawn()?;
    let log = BufReader::new(child.stderr.take().context("stderr is a pipe")?);
    let mut lines = log.lines();
    let tried = async {
        let line = loop {
            match lines.next().transpose()? {
                Some(line) if line.contains("could not be printed") => break line,
                Some(_) => {}
                None => bail!("it ended without saying so"),
            }
        };
        let url = line.split("resp://").nth(1).context("no address")?;
        let address = url.split([' ', '"']).next().context("no address")?.parse()?;
        let said = exchange(address, "PING\r\n").await?;
        ensure!(said == "+PONG\r\n", "{said:?}");
        anyhow::Ok(())
    };
    let tried = within(PATIENCE, "the addresses in the log", tried).await;
    // Both fail if it has exited already, which is fine.
    let _ = child.kill();
    let _ = child.wait();
    tried?
}

#[test]
fn a_server_that_cannot_say_why_it_ends_ends_with_the_same_code() -> Result<()> {
    let (_reader, stalled) = full_pipe()?;
    let occupied = std::net::TcpListener::bind("127.0.0.1:0")?;
    let occupied = occupied.local_addr()?.to_string();
    // Before the first log line, and after it.
    for (words, code) in [(["--shards", "0"], 64), (["--http", &occupied], 1)] {
        let stalled = stalled.try_clone()?.into();
        for stderr in [Log::Gone.stderr()?, Log::Full.stderr()?, stalled] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
            command.args(["serve", "--resp", "off", "--admin", "off"]).args(words);
            let status = command.stdin(Stdio::null()).stderr(stderr).status()?;
            ensure!(status.code() == Some(code), "{words:?}: {status}");
        }
    }
    Ok(())
}
