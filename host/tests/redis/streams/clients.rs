//! Client libraries that other people wrote, and redis-cli: they append, look back, and tail a channel
//! through the loss of their connection.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{add, blocked, server};
use crate::client::RespClient;
use crate::clients::tools;
use crate::support::process::{Pipe, Process};
use crate::value::Value;

/// How many messages a client tails.
const MESSAGES: usize = 200;

/// Runs a script of `tests/clients/redis/` with the port. It tails `chat.tail` and prints `tails` when
/// it begins, a line for each message, and `done` at the end.
async fn run(name: &'static str, mut command: Command, script: &str, words: &[&str]) -> Result<()> {
    let server = server().await?;
    let address = server.resp_address().await?;
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/redis");
    command.arg(tests.join(script)).arg(address.port().to_string()).args(words);
    command.env("NODE_PATH", tools().join("redis-node/node_modules"));
    let install = "run host/tests/clients/install.sh";
    let mut process = Process::start(name, &mut command).context(install)?;
    process.line_with(Pipe::Stdout, "tails").await?;
    let mut publisher = RespClient::connect(address).await?;
    let mut killed = 0;
    for number in 0..MESSAGES {
        if number % 50 == 25 {
            // It waits: its connection is ended, and a message published before it is back.
            process.line_with(Pipe::Stdout, &format!("got {}.", number - 1)).await?;
            blocked(&mut publisher, 1).await?;
            let kill = ["CLIENT", "KILL", "SKIPME", "yes"];
            let Value::Integer(count) = publisher.call(&kill).await? else { continue };
            killed += count;
        }
        add(&mut publisher, "chat.tail", &number.to_string()).await?;
    }
    process.line_with(Pipe::Stdout, "done").await?;
    let (status, _) = process.exit().await?;
    ensure!(status.success(), "{name} ended with {status}");
    ensure!(killed >= 4, "{killed} connections were ended");
    let said = process.text(Pipe::Stdout);
    let got: Vec<&str> = said.lines().filter(|line| line.starts_with("got ")).collect();
    let expected: Vec<String> = (0..MESSAGES).map(|number| format!("got {number}.")).collect();
    ensure!(got == expected, "{said}");
    drop(publisher);
    server.stop().await
}

#[tokio::test]
async fn redis_py_in_resp2() -> Result<()> {
    let python = Command::new(tools().join("redis-python/bin/python"));
    run("redis-py, RESP2", python, "redis_py_streams.py", &["2"]).await
}

#[tokio::test]
async fn redis_py_in_resp3() -> Result<()> {
    let python = Command::new(tools().join("redis-python/bin/python"));
    run("redis-py, RESP3", python, "redis_py_streams.py", &["3"]).await
}

#[tokio::test]
async fn node_redis_in_resp2() -> Result<()> {
    let words = ["redis", "2"];
    run("node-redis, RESP2", Command::new("node"), "node_redis_streams.js", &words).await
}

#[tokio::test]
async fn node_redis_in_resp3() -> Result<()> {
    let words = ["redis", "3"];
    run("node-redis, RESP3", Command::new("node"), "node_redis_streams.js", &words).await
}

#[tokio::test]
async fn redis_cli() -> Result<()> {
    let server = server().await?;
    let address = server.resp_address().await?;
    let say = async |words: &[&str]| -> Result<String> {
        let port = address.port().to_string();
        let mut command = tokio::process::Command::new("redis-cli");
        command.args(["-p", &port, "--no-raw"]).args(words);
        let said = crate::support::within(crate::support::PATIENCE, "redis-cli", command.output());
        Ok(String::from_utf8(said.await??.stdout)?)
    };
    let id = say(&["XADD", "chat.1", "*", "payload", "two words"]).await?;
    ensure!(id.starts_with('"') && id.ends_with("-1\"\n"), "{id}");
    let id = id.trim();
    assert_eq!(say(&["XLEN", "chat.1"]).await?, "(integer) 1\n");
    let entry = format!("1) {id}\n   2) 1) \"payload\"\n      2) \"two words\"\n");
    assert_eq!(say(&["XRANGE", "chat.1", "-", "+"]).await?, format!("1) {entry}"));
    let said = say(&["-3", "XREAD", "COUNT", "1", "BLOCK", "0", "STREAMS", "chat.1", "0"]).await?;
    ensure!(said.contains("\"chat.1\" => ") && said.contains("two words"), "{said}");
    assert_eq!(say(&["XREAD", "BLOCK", "1", "STREAMS", "chat.1", "$"]).await?, "(nil)\n");
    ensure!(say(&["XINFO", "STREAM", "chat.1"]).await?.contains("\"entries-added\""));
    ensure!(say(&["XADD", "news", "*", "payload", "x"]).await?.contains("NOHISTORY"));
    server.stop().await
}
