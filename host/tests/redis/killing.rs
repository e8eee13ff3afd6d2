//! CLIENT KILL of other connections: as in Redis where anyone may do anything, and otherwise refused.

use anyhow::{Result, bail, ensure};
use serde_json::json;

use crate::client::RespClient;
use crate::support::components;
use crate::support::server::{Launch, Server};
use crate::value::Value;

async fn id(client: &mut RespClient) -> Result<String> {
    match client.call(&["CLIENT", "ID"]).await? {
        Value::Integer(id) => Ok(id.to_string()),
        other => bail!("{other} is no id"),
    }
}

async fn is_refused(killer: &mut RespClient, server: &Server) -> Result<()> {
    let mut other = RespClient::connect(server.resp_address().await?).await?;
    let id = id(&mut other).await?;
    let refused = Value::Error(
        b"NOPERM User default has no permissions to run the 'client|kill' command".to_vec(),
    );
    for words in [["CLIENT", "KILL", "ID", &id], ["CLIENT", "KILL", "TYPE", "normal"]] {
        let reply = killer.call(&words).await?;
        ensure!(reply == refused, "{reply}");
    }
    let refused = Value::Error(
        b"NOPERM User default has no permissions to run the 'client|unblock' command".to_vec(),
    );
    let reply = killer.call(&["CLIENT", "UNBLOCK", &id]).await?;
    ensure!(reply == refused, "{reply}");
    other.nothing(0).await
}

#[tokio::test]
async fn where_no_plugin_decides_all_connections_can_be_closed_over_tcp() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    let mut killer = RespClient::connect(address).await?;
    let mut victim = RespClient::connect(address).await?;
    let mut subscriber = RespClient::connect(address).await?;
    subscriber.call(&["SUBSCRIBE", "news"]).await?;
    let victims_id = id(&mut victim).await?;
    let reply = killer.call(&["CLIENT", "KILL", "ID", &victims_id]).await?;
    ensure!(reply == Value::Integer(1), "{reply}");
    victim.ends().await?;
    let reply = killer.call(&["CLIENT", "KILL", "TYPE", "pubsub", "USER", "default"]).await?;
    ensure!(reply == Value::Integer(1), "{reply}");
    subscriber.ends().await?;
    let mut browser = RespClient::connect_framed(&server, 1).await?;
    is_refused(&mut browser, &server).await?;
    drop((killer, victim, subscriber, browser));
    server.stop().await
}

#[tokio::test]
async fn where_a_plugin_decides_only_ones_own_can_be_closed() -> Result<()> {
    let plugins = components::directory()?;
    let rules = json!({"rules": [{"users": ["*"], "subscribe": ["*"], "publish": ["*"]}]});
    components::install(plugins.path(), "10-acl", &components::built("acl")?, &rules)?;
    let launch = Launch { plugins: Some(plugins.path().to_owned()), ..Launch::default() };
    let server = launch.start().await?;
    let mut killer = RespClient::connect(server.resp_address().await?).await?;
    is_refused(&mut killer, &server).await?;
    let own = id(&mut killer).await?;
    let reply = killer.call(&["CLIENT", "KILL", "ID", &own, "SKIPME", "no"]).await?;
    ensure!(reply == Value::Integer(1), "{reply}");
    killer.ends().await?;
    drop(killer);
    server.stop().await
}
