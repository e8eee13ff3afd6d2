//! Client libraries that other people wrote: redis-py, node-redis and ioredis, the
//! latter two also in an older version.
//!
//! `tests/clients/install.sh` gets them, at pinned versions, into `.tools/` of the
//! repository, and what they do stands in `tests/clients/redis/`. Without them the
//! test fails and says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::client::RespClient;
use crate::support::process::{Pipe, Process};
use crate::support::server::{Launch, Server};
use crate::value::Value;

/// Runs a script of `tests/clients/redis/`, which wants the server to be restarted
/// in the middle.
async fn run(name: &'static str, program: PathBuf, script: &str, words: &[&str]) -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/redis");
    let mut command = Command::new(program);
    command.arg(tests.join(script)).arg(address.port().to_string()).args(words);
    command.env("NODE_PATH", tools().join("redis-node/node_modules"));
    let install = "run host/tests/clients/install.sh";
    let mut process = Process::start(name, &mut command).context(install)?;
    for part in ["subscriptions", "payloads", "restart"] {
        process.line_with(Pipe::Stdout, part).await?;
    }
    server.stop().await?;
    let server = restart(&address.to_string()).await?;
    process.line_with(Pipe::Stdout, "back").await?;
    let mut publisher = RespClient::connect(address).await?;
    let count = publisher.call(&["PUBLISH", "restarted", "hello again"]).await?;
    ensure!(count == Value::Integer(2), "it listens to {count} instead of two");
    let (status, _) = process.exit().await?;
    ensure!(status.success(), "{name} ended with {status}");
    drop(publisher);
    server.stop().await
}

/// A server whose door for Redis clients is where that of another was.
pub async fn restart(address: &str) -> Result<Server> {
    let server =
        Server::run_with(&["serve", "--http", "127.0.0.1:0", "--resp", address, "--admin", "off"])?;
    server.resp_address().await?;
    Ok(server)
}

/// Where `install.sh` puts them.
pub fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools")
}

async fn python(name: &'static str, protocol: &str) -> Result<()> {
    run(name, tools().join("redis-python/bin/python"), "redis_py.py", &[protocol]).await
}

async fn node(name: &'static str, script: &str, words: &[&str]) -> Result<()> {
    run(name, "node".into(), script, words).await
}

#[tokio::test]
async fn redis_py_in_resp2() -> Result<()> {
    python("redis-py, RESP2", "2").await
}

#[tokio::test]
async fn redis_py_in_resp3() -> Result<()> {
    python("redis-py, RESP3", "3").await
}

#[tokio::test]
async fn node_redis_in_resp2() -> Result<()> {
    node("node-redis, RESP2", "node_redis.js", &["redis", "2"]).await
}

#[tokio::test]
async fn node_redis_in_resp3() -> Result<()> {
    node("node-redis, RESP3", "node_redis.js", &["redis", "3"]).await
}

#[tokio::test]
async fn node_redis_4() -> Result<()> {
    node("node-redis 4", "node_redis.js", &["redis-4", "2"]).await
}

#[tokio::test]
async fn ioredis() -> Result<()> {
    node("ioredis", "ioredis.js", &["ioredis"]).await
}

#[tokio::test]
async fn ioredis_5() -> Result<()> {
    node("ioredis 5", "ioredis.js", &["ioredis-5"]).await
}
