//! Redis clients in a cluster: they read histories as streams, and publish by scripts.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::answers::ask;
use crate::backplane::{Backplane, Kind};
use crate::history::{RULE, client, nodes, start};
use crate::value::{Shape, Value as RespValue};

/// Redis clients read a history as a stream on any node, and wait for what other nodes publish.
async fn redis_clients_read_streams(kind: Kind) -> Result<()> {
    let backplane = start(kind).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let (mut at_a, mut at_b) = (a.client().await?, b.client().await?);
    let text = |text: &str| RespValue::Bulk(text.as_bytes().to_vec());
    let mut add = async |payload: &str| -> Result<RespValue> {
        let added = at_a.call(&["XADD", "chat.1", "*", "payload", payload]).await?;
        ensure!(matches!(added, RespValue::Bulk(_)), "{added}");
        Ok(added)
    };
    let entry = |id: &RespValue, payload: &str| {
        let fields = RespValue::Aggregate(Shape::Array, vec![text("payload"), text(payload)]);
        RespValue::Aggregate(Shape::Array, vec![id.clone(), fields])
    };
    let one = add("one").await?;
    let two = add("two").await?;
    let all = at_b.call(&["XRANGE", "chat.1", "-", "+"]).await?;
    ensure!(
        all == RespValue::Aggregate(Shape::Array, vec![entry(&one, "one"), entry(&two, "two")]),
        "{all}"
    );
    let newest = at_b.call(&["XREVRANGE", "chat.1", "+", "-", "COUNT", "1"]).await?;
    ensure!(newest == RespValue::Aggregate(Shape::Array, vec![entry(&two, "two")]), "{newest}");
    ensure!(at_b.call(&["XLEN", "chat.1"]).await? == RespValue::Integer(2));
    let info = at_b.call(&["XINFO", "STREAM", "chat.1"]).await?;
    let RespValue::Aggregate(Shape::Array, info) = info else { bail!("{info}") };
    ensure!(info.get(1) == Some(&RespValue::Integer(2)), "{info:?}");
    // It waits for what another node publishes.
    let RespValue::Bulk(last) = &two else { bail!("{two}") };
    let mut last = String::from_utf8(last.clone())?;
    for number in 0..20 {
        let payload = format!("later {number}");
        let words = ["XREAD", "BLOCK", "30000", "STREAMS", "chat.1", &last];
        let (read, added) = tokio::try_join!(at_b.call(&words), add(&payload))?;
        let entries = RespValue::Aggregate(Shape::Array, vec![entry(&added, &payload)]);
        let of_channel = RespValue::Aggregate(Shape::Array, vec![text("chat.1"), entries]);
        ensure!(read == RespValue::Aggregate(Shape::Array, vec![of_channel]), "{read}");
        let RespValue::Bulk(id) = added else { bail!("{added}") };
        last = String::from_utf8(id)?;
    }
    let nothing = at_b.call(&["XREAD", "BLOCK", "50", "STREAMS", "chat.1", "$"]).await?;
    ensure!(matches!(nothing, RespValue::NullArray | RespValue::Null), "{nothing}");
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

over_redis_and_nats!(redis_clients_read_streams);

/// What a script publishes is awaited, as anything that the backplane carries out: its reply comes
/// after it, and replies and messages stay in order.
#[tokio::test]
async fn scripts_publish_in_order_on_channels_with_history() -> Result<()> {
    const SCRIPT: &str = "for i = 2, #ARGV do\n  redis.call('publish', ARGV[i], ARGV[1])\nend\n";
    let mut backplane = Backplane::start(Kind::Redis).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let mut subscriber = client(&b).await?;
    ask(&mut subscriber, json!(["SUBSCRIBE", "chat.1", "news"])).await?;
    let mut publisher = a.client().await?;
    let mut commands = Vec::new();
    for number in 0..50 {
        let payload = format!("script {number}");
        let words = ["EVAL", SCRIPT, "0", &payload, "chat.1", "news"];
        commands.extend(crate::value::command(&words));
        commands.extend(crate::value::command(&["PUBLISH", "chat.1", &format!("{number}")]));
    }
    publisher.send(&commands).await?;
    for reply in publisher.next_many(100).await?.chunks(2) {
        ensure!(reply == [RespValue::NullBulk, RespValue::Integer(0)], "{reply:?}");
    }
    let mut of_chat = Vec::new();
    for _ in 0..150 {
        let message = subscriber.next_json().await?;
        if message[1] == "chat.1" {
            of_chat.push(message[2].as_str().context("no payload")?.to_owned());
        }
    }
    let expected: Vec<String> =
        (0..50).flat_map(|number| [format!("script {number}"), number.to_string()]).collect();
    ensure!(of_chat == expected, "{of_chat:?}");
    // In a transaction, its reply is where it belongs.
    let mut commands = Vec::new();
    for words in [
        &["MULTI"][..],
        &["XADD", "chat.1", "*", "payload", "x"],
        &["EVAL", SCRIPT, "0", "y", "chat.1"],
        &["PUBLISH", "chat.1", "z"],
        &["EXEC"],
        &["PING"],
    ] {
        commands.extend(crate::value::command(words));
    }
    publisher.send(&commands).await?;
    let replies = publisher.next_many(6).await?;
    let Some(RespValue::Aggregate(Shape::Array, of_exec)) = replies.get(4) else {
        bail!("{replies:?}")
    };
    ensure!(of_exec.get(1..) == Some(&[RespValue::NullBulk, RespValue::Integer(0)]), "{of_exec:?}");
    // What cannot be published is not answered as if it was.
    backplane.kill();
    a.until_connected(false).await?;
    let reply = publisher.call(&["EVAL", SCRIPT, "0", "y", "chat.1"]).await?;
    ensure!(
        matches!(&reply, RespValue::Error(text) if text.starts_with(b"UNAVAILABLE")),
        "{reply}"
    );
    Ok(())
}
