//! Several servers as one.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::backplane::Backplane;
use crate::client::RespClient;
use crate::support::raw::get;
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, within};
use crate::value::Value;

/// One of them.
pub struct Node {
    pub server: Server,
    pub http: SocketAddr,
    pub resp: SocketAddr,
}

/// How a node is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Further lines of the table `[cluster]`, and further tables.
    pub config: String,
    pub plugins: Option<PathBuf>,
    pub environment: Vec<(String, OsString)>,
}

impl Node {
    /// A node with its backplane.
    pub async fn start(backplane: &Backplane, options: &Options) -> Result<Node> {
        Node::start_with_url(&backplane.url(), options).await
    }

    pub async fn start_with_url(url: &str, options: &Options) -> Result<Node> {
        let config = format!("[cluster]\nurl = \"{url}\"\n{}", options.config);
        Node::launch(config, options).await
    }

    /// A node without a backplane.
    pub async fn alone(options: &Options) -> Result<Node> {
        Node::launch(options.config.clone(), options).await
    }

    async fn launch(config: String, options: &Options) -> Result<Node> {
        let launch = Launch {
            plugins: options.plugins.clone(),
            environment: options.environment.clone(),
            ..Launch::with_config(&config)
        };
        let server = launch.start().await?;
        let (http, resp) = (server.address().await?, server.resp_address().await?);
        Ok(Node { server, http, resp })
    }

    /// Three of them.
    pub async fn three(backplane: &Backplane) -> Result<[Node; 3]> {
        let options = Options::default();
        let (a, b, c) = tokio::try_join!(
            Node::start(backplane, &options),
            Node::start(backplane, &options),
            Node::start(backplane, &options),
        )?;
        Ok([a, b, c])
    }

    pub async fn client(&self) -> Result<RespClient> {
        RespClient::connect(self.resp).await
    }

    /// The answer of `/healthz`: status and text.
    pub async fn health(&self) -> Result<(u16, String)> {
        get(self.http, "/healthz").await
    }

    /// Whether it is connected to the backplane and has all its subscriptions there, as `/healthz`
    /// says.
    pub async fn is_connected(&self) -> Result<bool> {
        let (status, text) = self.health().await?;
        let is_away = ["disconnected", "being sent"].iter().any(|words| text.contains(words));
        Ok(status == 200 && !is_away)
    }

    /// Waits until it is, or is not.
    pub async fn until_connected(&self, expected: bool) -> Result<()> {
        within(PATIENCE, format!("connected to the backplane: {expected}"), async {
            while self.is_connected().await? != expected {
                tokio::task::yield_now().await;
            }
            anyhow::Ok(())
        })
        .await?
    }

    /// A field of `INFO cluster`.
    pub async fn info(&self, field: &str) -> Result<String> {
        let answer = self.client().await?.call(&["INFO", "cluster"]).await?;
        let Value::Bulk(text) = answer else { anyhow::bail!("{answer}") };
        let text = String::from_utf8_lossy(&text).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.map(str::to_owned).with_context(|| format!("no {field} in {text}"))
    }

    /// Publishes as a client of its own; the reply.
    pub async fn publish(&self, channel: &str, payload: &str) -> Result<Value> {
        self.client().await?.call(&["PUBLISH", channel, payload]).await
    }

    /// Ends it in good order, and checks that it does.
    pub async fn stop(self) -> Result<()> {
        self.server.stop().await
    }
}
