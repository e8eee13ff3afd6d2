//! Applications that exchange messages between their processes by Redis' Pub/Sub, two processes
//! each: `docs/redis-applications.md` lists them.
//!
//! `tests/clients/install.sh` installs the libraries, at pinned versions. What each application
//! does is a script of `tests/clients/applications/`, which is started twice: as `peer`, which
//! prints `ready` when it is subscribed, and then as `main`. A script that prints `reconnect` has
//! all its connections closed, and reads a line when all subscriptions are there again. Both must
//! end with exit code 0.

use std::collections::HashSet;
use std::io::{PipeWriter, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tokio::try_join;

use crate::client::RespClient;
use crate::support::admin::Operator;
use crate::support::process::{Pipe, Process};
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, within};
use crate::value::Value;

/// What an application does when its connections are closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reconnects {
    /// It fails, or is not tested.
    Never,
    /// Subscribers connect again at once, and other connections when they are used.
    Subscribers,
    /// Every connection is replaced at once.
    All,
}

/// One process of an application.
struct Application {
    process: Process,
    input: PipeWriter,
}

impl Application {
    fn start(role: &'static str, command: &mut Command) -> Result<Application> {
        let (reader, input) = std::io::pipe()?;
        let process = Process::start_fed(role, command, reader.into())
            .context("run host/tests/clients/install.sh")?;
        Ok(Application { process, input })
    }

    async fn end(&mut self, role: &str) -> Result<()> {
        let (status, _) = self.process.exit().await?;
        ensure!(status.success(), "{role} ended with {status}");
        Ok(())
    }
}

/// What runs scripts, and where they find libraries.
fn program(script: &str) -> Result<Command> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools");
    let extension = Path::new(script).extension().and_then(|extension| extension.to_str());
    let program: PathBuf = match extension {
        Some("py") => tools.join("applications-python/bin/python"),
        Some("js") => "node".into(),
        Some("php") => "php".into(),
        Some("rb") => "ruby".into(),
        _ => bail!("{script} has no known extension"),
    };
    let mut command = Command::new(program);
    command.env("NODE_PATH", tools.join("applications-node/node_modules"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}

/// Runs a script in two processes. Its connections are closed in between if it reconnects.
async fn run(script: &str, variant: &str, reconnects: Reconnects) -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/applications");
    let command = |role: &str| -> Result<Command> {
        let mut command = program(script)?;
        command.arg(path.join(script)).arg(address.port().to_string()).args([role, variant]);
        Ok(command)
    };
    let mut peer = Application::start("peer", &mut command("peer")?)?;
    let ready = peer.process.line_with(Pipe::Stdout, "ready").await?;
    let place = ready.trim_start_matches("ready").trim();
    let mut main = Application::start("main", command("main")?.arg(place))?;
    if reconnects != Reconnects::Never {
        main.process.line_with(Pipe::Stdout, "reconnect").await?;
        close_all(&server, address, reconnects).await?;
        for application in [&mut main, &mut peer] {
            application.input.write_all(b"reconnected\n")?;
        }
    }
    try_join!(main.end("main"), peer.end("peer"))?;
    server.stop().await
}

/// Closes all connections as an operator does, and waits until the clients have connected and
/// subscribed again.
async fn close_all(server: &Server, address: SocketAddr, reconnects: Reconnects) -> Result<()> {
    let mut observer = RespClient::connect(address).await?;
    let before = Clients::list(&mut observer).await?;
    let operator = Operator::of(server).await?;
    for id in &before.ids {
        let (status, answer) = operator.ask("DELETE", &format!("/v1/connections/{id}"), None)?;
        ensure!(status == 200, "{status}: {answer}");
    }
    within(PATIENCE, "the subscriptions", async {
        loop {
            let now = Clients::list(&mut observer).await?;
            let all_again = reconnects != Reconnects::All || now.ids.len() == before.ids.len();
            let subscribed_again = now.subscriptions == before.subscriptions;
            if now.ids.is_disjoint(&before.ids) && all_again && subscribed_again {
                return anyhow::Ok(());
            }
        }
    })
    .await?
}

/// The other connections, as CLIENT LIST shows them.
struct Clients {
    ids: HashSet<String>,
    subscriptions: usize,
}

impl Clients {
    async fn list(observer: &mut RespClient) -> Result<Clients> {
        let Value::Integer(own) = observer.call(&["CLIENT", "ID"]).await? else {
            bail!("CLIENT ID has no integer reply")
        };
        let Value::Bulk(list) = observer.call(&["CLIENT", "LIST"]).await? else {
            bail!("CLIENT LIST has no bulk reply")
        };
        let mut clients = Clients { ids: HashSet::new(), subscriptions: 0 };
        for line in String::from_utf8(list)?.lines() {
            for (name, value) in line.split(' ').filter_map(|field| field.split_once('=')) {
                match name {
                    "id" if value != own.to_string() => {
                        clients.ids.insert(value.to_owned());
                    }
                    "sub" | "psub" | "ssub" => clients.subscriptions += value.parse::<usize>()?,
                    _ => {}
                }
            }
        }
        Ok(clients)
    }
}

#[tokio::test]
async fn broadcaster() -> Result<()> {
    run("broadcaster_encode.py", "", Reconnects::Never).await
}

#[tokio::test]
async fn channels_redis() -> Result<()> {
    run("channels_redis_pubsub.py", "", Reconnects::Subscribers).await
}

#[tokio::test]
async fn python_socketio() -> Result<()> {
    run("python_socketio.py", "", Reconnects::Subscribers).await
}

#[tokio::test]
async fn socket_io_with_node_redis() -> Result<()> {
    run("socketio_redis_adapter.js", "node-redis", Reconnects::All).await
}

#[tokio::test]
async fn socket_io_with_ioredis() -> Result<()> {
    run("socketio_redis_adapter.js", "ioredis", Reconnects::All).await
}

#[tokio::test]
async fn socket_io_with_shard_channels() -> Result<()> {
    run("socketio_redis_adapter.js", "sharded", Reconnects::All).await
}

#[tokio::test]
async fn graphql_redis_subscriptions() -> Result<()> {
    run("graphql_subscriptions.js", "", Reconnects::All).await
}

#[tokio::test]
async fn nestjs_microservices() -> Result<()> {
    run("nestjs_microservice.js", "", Reconnects::All).await
}

#[tokio::test]
async fn redis_py_pipelines_in_resp2() -> Result<()> {
    run("redis_py_pipelines.py", "2", Reconnects::Never).await
}

#[tokio::test]
async fn redis_py_pipelines_in_resp3() -> Result<()> {
    run("redis_py_pipelines.py", "3", Reconnects::Never).await
}

#[tokio::test]
async fn transactions_of_node_redis() -> Result<()> {
    run("node_transactions.js", "node-redis", Reconnects::Never).await
}

#[tokio::test]
async fn transactions_of_ioredis() -> Result<()> {
    run("node_transactions.js", "ioredis", Reconnects::Never).await
}

#[tokio::test]
async fn phpredis() -> Result<()> {
    run("phpredis.php", "", Reconnects::Subscribers).await
}

#[tokio::test]
async fn predis() -> Result<()> {
    run("predis.php", "", Reconnects::Subscribers).await
}

#[tokio::test]
async fn redis_rb() -> Result<()> {
    run("redis_rb.rb", "", Reconnects::Subscribers).await
}

#[tokio::test]
async fn action_cable() -> Result<()> {
    run("action_cable.rb", "", Reconnects::Never).await
}

#[tokio::test]
async fn laravel_broadcaster_with_phpredis() -> Result<()> {
    run("laravel_broadcaster.php", "phpredis", Reconnects::Never).await
}

#[tokio::test]
async fn laravel_broadcaster_with_predis() -> Result<()> {
    run("laravel_broadcaster.php", "predis", Reconnects::Never).await
}
