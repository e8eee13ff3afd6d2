//! Redis' own tools: redis-cli and redis-benchmark of Debian's redis-tools.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::client::RespClient;
use crate::clients::restart;
use crate::support::process::{Pipe, Process};
use crate::support::server::Launch;
use crate::value::{Value, command, message};

/// Whose output a test waits for, which ends by itself.
fn tool(program: &str, address: SocketAddr, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]).args(words);
    command
}

/// What redis-cli says to this, with `input` to read.
async fn cli(address: SocketAddr, words: &[&str], input: Vec<u8>) -> Result<String> {
    let mut command = tool("redis-cli", address, words);
    let task = tokio::task::spawn_blocking(move || {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("run host/tests/clients/install.sh")?;
        let mut pipe = child.stdin.take().context("stdin is a pipe")?;
        std::thread::spawn(move || pipe.write_all(&input));
        let output = child.wait_with_output()?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "redis-cli ended with {}: {errors}", output.status);
        ensure!(errors.is_empty(), "redis-cli complained: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    });
    crate::support::within(crate::support::PATIENCE, "redis-cli", task).await??
}

/// redis-cli as a subscriber, and what it says in the end.
async fn listens(address: SocketAddr, words: &[&str], lines: &[&str]) -> Result<()> {
    let mut command = tool("redis-cli", address, words);
    let listener =
        Process::start("redis-cli", &mut command).context("run host/tests/clients/install.sh")?;
    // It has been acknowledged when the last name was.
    listener.line_with(Pipe::Stdout, "last name").await?;
    assert_eq!(cli(address, &["PUBLISH", "news", "two words"], Vec::new()).await?, "1\n");
    assert_eq!(cli(address, &["PUBLISH", "last name", "done"], Vec::new()).await?, "1\n");
    listener.line_with(Pipe::Stdout, "done").await?;
    assert_eq!(listener.text(Pipe::Stdout).lines().collect::<Vec<_>>(), lines);
    Ok(())
}

#[tokio::test]
async fn redis_cli() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    let say = async |words: &[&str]| cli(address, words, Vec::new()).await;

    assert_eq!(say(&["PING"]).await?, "PONG\n");
    assert_eq!(say(&["-3", "PUBLISH", "news", "x"]).await?, "0\n");
    assert_eq!(
        say(&["--no-raw", "PUBLISH", "news"]).await?,
        "(error) ERR wrong number of arguments for 'publish' command\n"
    );
    assert!(say(&["INFO", "server"]).await?.contains("redis_version:7.4.0"));
    listens(
        address,
        &["SUBSCRIBE", "news", "last name"],
        &[
            "subscribe",
            "news",
            "1",
            "subscribe",
            "last name",
            "2",
            "message",
            "news",
            "two words",
            "message",
            "last name",
            "done",
        ],
    )
    .await?;
    listens(
        address,
        &["-3", "PSUBSCRIBE", "n*", "last name"],
        &[
            "psubscribe",
            "n*",
            "1",
            "psubscribe",
            "last name",
            "2",
            "pmessage",
            "n*",
            "news",
            "two words",
            "pmessage",
            "last name",
            "last name",
            "done",
        ],
    )
    .await?;

    // A thousand channels in one command.
    let mut channels: Vec<_> = (1..1000).map(|number| format!("channel-{number}")).collect();
    channels.push("last name".to_owned());
    let mut words = vec!["SUBSCRIBE".to_owned(), "news".to_owned()];
    words.extend(channels.iter().cloned());
    let mut lines: Vec<String> = Vec::new();
    for (count, channel) in (1..).zip(words.iter().skip(1)) {
        lines.extend(["subscribe".to_owned(), channel.clone(), format!("{count}")]);
    }
    let messages = ["message", "news", "two words", "message", "last name", "done"];
    lines.extend(messages.map(str::to_owned));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    listens(address, &words, &lines.iter().map(String::as_str).collect::<Vec<_>>()).await?;

    let mut listener = RespClient::connect(address).await?;
    listener.call(&["SUBSCRIBE", "bytes"]).await?;
    let counts = say(&["--no-raw", "PUBSUB", "NUMSUB", "bytes", "nope"]).await?;
    assert_eq!(counts, "1) \"bytes\"\n2) (integer) 1\n3) \"nope\"\n4) (integer) 0\n");
    assert_eq!(say(&["PUBSUB", "CHANNELS"]).await?, "bytes\n");
    assert_eq!(say(&["PUBSUB", "NUMPAT"]).await?, "0\n");

    // The largest payload, with every byte in it.
    let largest: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    assert_eq!(cli(address, &["-x", "PUBLISH", "bytes"], largest.clone()).await?, "1\n");
    assert_eq!(listener.next().await?, message("message", &[b"bytes", &largest]));

    // Many commands from a file, also inline ones.
    let many: Vec<u8> = (0..500)
        .flat_map(|number: u32| {
            let inline = format!("PUBLISH bytes {number}-inline\r\n").into_bytes();
            [command(&["PUBLISH", "bytes", &number.to_string()]), inline].concat()
        })
        .collect();
    let said = cli(address, &["--pipe"], many).await?;
    assert!(said.contains("errors: 0, replies: 1000"), "{said}");
    for number in 0..500 {
        let (first, second) = (number.to_string(), format!("{number}-inline"));
        assert_eq!(listener.next().await?, message("message", &[b"bytes", first.as_bytes()]));
        assert_eq!(listener.next().await?, message("message", &[b"bytes", second.as_bytes()]));
    }
    listener.nothing(0).await?;

    let said = cli(address, &[], b"PUBLISH bytes 'from a file'\nNOPE\nPING\n".to_vec()).await?;
    assert_eq!(said, "1\nERR unknown command 'NOPE', with args beginning with: \n\nPONG\n");
    drop(listener);
    server.stop().await?;

    let server = restart(&address.to_string()).await?;
    assert_eq!(say(&["PUBLISH", "bytes", "x"]).await?, "0\n");
    server.stop().await
}

/// Runs redis-benchmark, while a subscriber counts.
async fn benchmark(words: &[&str]) -> Result<()> {
    const PUBLICATIONS: usize = 20_000;
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    let mut listener = RespClient::connect(address).await?;
    listener.call(&["SUBSCRIBE", "bench"]).await?;
    let count = PUBLICATIONS.to_string();
    let words = [&["-n", &count, "-q"], words, &["PUBLISH", "bench", "payload"]].concat();
    let mut process =
        Process::start("redis-benchmark", &mut tool("redis-benchmark", address, &words))
            .context("run host/tests/clients/install.sh")?;
    let expected = message("message", &[b"bench", b"payload"]);
    for _ in 0..PUBLICATIONS / 1000 {
        let came = listener.next_many(1000).await?;
        assert!(came.iter().all(|value| *value == expected));
    }
    let (status, _) = process.exit().await?;
    ensure!(status.success(), "redis-benchmark ended with {status}");
    let said = process.text(Pipe::Stdout);
    ensure!(said.contains("requests per second"), "redis-benchmark said {said}");
    let complaints = process.text(Pipe::Stderr);
    ensure!(complaints.is_empty(), "redis-benchmark complained: {complaints}");
    listener.nothing(0).await?;
    let received = listener.call(&["RESET"]).await?;
    assert_eq!(received, Value::Simple(b"RESET".to_vec()));
    drop(listener);
    server.stop().await
}

#[tokio::test]
async fn redis_benchmark() -> Result<()> {
    benchmark(&["-c", "20"]).await
}

#[tokio::test]
async fn redis_benchmark_with_pipelines() -> Result<()> {
    benchmark(&["-c", "20", "-P", "50"]).await
}

#[tokio::test]
async fn redis_benchmark_in_resp3() -> Result<()> {
    benchmark(&["-3", "-c", "5", "-P", "16"]).await
}

#[tokio::test]
async fn redis_benchmark_pings() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    let words = ["-n", "2000", "-q", "-t", "ping_inline,ping_mbulk"];
    let mut process =
        Process::start("redis-benchmark", &mut tool("redis-benchmark", address, &words))
            .context("run host/tests/clients/install.sh")?;
    let (status, _) = process.exit().await?;
    ensure!(status.success(), "redis-benchmark ended with {status}");
    for test in ["PING_INLINE: ", "PING_MBULK: "] {
        ensure!(process.text(Pipe::Stdout).contains(test), "{test} is missing");
    }
    ensure!(process.text(Pipe::Stderr).is_empty(), "redis-benchmark complained");
    server.stop().await
}
