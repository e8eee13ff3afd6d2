//! The history of channels as Redis clients read it: by the commands of a stream.

mod blocking;
mod clients;
mod differential;
mod plugins;
mod race;

use anyhow::{Context, Result, bail, ensure};

use crate::client::RespClient;
use crate::support::server::{Launch, Server};
use crate::value::{Shape, Value};

const RULE: &str = "[[channels]]\nmatch = 'chat.*'\nhistory_messages = 100000\nhistory_ms = '1h'\n";

async fn server() -> Result<Server> {
    Launch::with_config(RULE).start().await
}

/// Publishes, and returns the ID.
async fn add(client: &mut RespClient, channel: &str, payload: &str) -> Result<String> {
    text(client.call(&["XADD", channel, "*", "payload", payload]).await?)
}

fn text(value: Value) -> Result<String> {
    match value {
        Value::Bulk(bytes) => Ok(String::from_utf8(bytes)?),
        other => bail!("{other} is no text"),
    }
}

/// An entry, as XRANGE shows it.
fn entry(id: &str, payload: &str) -> Value {
    array(vec![Value::bulk(id), array(vec![Value::bulk("payload"), Value::bulk(payload)])])
}

fn array(items: Vec<Value>) -> Value {
    Value::Aggregate(Shape::Array, items)
}

/// The reply to XREAD, in RESP2.
fn read(channels: &[(&str, &[(&str, &str)])]) -> Value {
    let entries = |entries: &[(&str, &str)]| {
        array(entries.iter().map(|(id, payload)| entry(id, payload)).collect())
    };
    let channel =
        |(name, all): &(&str, &[(&str, &str)])| array(vec![Value::bulk(name), entries(all)]);
    array(channels.iter().map(channel).collect())
}

/// The IDs and payloads in an XREAD's reply about one channel, in RESP2; none: it had no entries.
fn entries(reply: Value) -> Result<Vec<(String, String)>> {
    let parts = |value: Value| match value {
        Value::Aggregate(_, items) => Ok(items),
        other => bail!("{other} is no array"),
    };
    if reply == Value::NullArray {
        return Ok(Vec::new());
    }
    let channel = parts(reply)?.pop().context("no channel")?;
    let list = parts(channel)?.pop().context("no entries")?;
    let mut found = Vec::new();
    for entry in parts(list)? {
        let [id, fields] = <[Value; 2]>::try_from(parts(entry)?).ok().context("no entry")?;
        let [name, payload] = <[Value; 2]>::try_from(parts(fields)?).ok().context("no field")?;
        ensure!(name == Value::bulk("payload"), "{name}");
        found.push((text(id)?, text(payload)?));
    }
    Ok(found)
}

/// Waits until so many clients are blocked.
async fn blocked(client: &mut RespClient, count: usize) -> Result<()> {
    let expected = format!("blocked_clients:{count}\r\n");
    crate::support::within(crate::support::PATIENCE, &expected, async {
        loop {
            if text(client.call(&["INFO", "clients"]).await?)?.contains(&expected) {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    })
    .await?
}
