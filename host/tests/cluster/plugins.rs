//! Plugins see a message where it enters and where it leaves, once each.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::backplane::{Backplane, Kind};
use crate::interest::until_channels;
use crate::nodes::{Node, Options};
use crate::support::components;
use crate::value::{Value, ack, message};

async fn once_each(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let probe = components::built("test/probe")?;
    // A publication is numbered where it enters; where it leaves, it is numbered again, or
    // stamped. A stamp on the second node would mean that it entered there, too.
    let (first, second) = (components::directory()?, components::directory()?);
    let settings = json!({"on_publish": "number", "on_deliver": "stamp"});
    components::install(first.path(), "probe", &probe, &settings)?;
    let settings = json!({"on_publish": "stamp", "on_deliver": "number"});
    components::install(second.path(), "probe", &probe, &settings)?;
    let with = |directory: &tempfile::TempDir| Options {
        plugins: Some(directory.path().to_owned()),
        ..Options::default()
    };
    let entering = Node::start(&backplane, &with(&first)).await?;
    let leaving = Node::start(&backplane, &with(&second)).await?;
    let mut here = entering.client().await?;
    here.call(&["SUBSCRIBE", "news"]).await?;
    let mut there = leaving.client().await?;
    for words in [["SUBSCRIBE", "news"], ["PSUBSCRIBE", "n*"], ["PSUBSCRIBE", "*"]] {
        there.call(&words).await?;
    }
    let mut publisher = entering.client().await?;
    for number in 1..=20 {
        ensure!(publisher.call(&["PUBLISH", "news", "x"]).await? == Value::Integer(1));
        let expected = message("message", &[b"news", format!("x#{number}@00000000").as_bytes()]);
        let came = here.next().await?;
        ensure!(came == expected, "{came}");
        for _ in 0..3 {
            let came = there.next().await?;
            let expected = format!("x#{number}#{number}");
            ensure!(came.payload()? == expected.as_bytes(), "{came}");
        }
    }
    here.nothing(1).await?;
    there.nothing(1).await
}

#[tokio::test]
async fn plugins_see_a_message_once_on_each_side_of_redis() -> Result<()> {
    once_each(Kind::Redis).await
}

#[tokio::test]
async fn plugins_see_a_message_once_on_each_side_of_nats() -> Result<()> {
    once_each(Kind::Nats).await
}

/// What a plugin refuses where it enters goes nowhere.
#[tokio::test]
async fn what_is_refused_is_not_published_elsewhere() -> Result<()> {
    let backplane = Backplane::start(Kind::Redis).await?;
    let directory = components::directory()?;
    let refuse = json!({"code": "REJECTED", "message": "it is bad"});
    let settings = json!({"on_publish": {"trigger": "bad", "refuse": refuse}});
    let probe = components::built("test/probe")?;
    components::install(directory.path(), "probe", &probe, &settings)?;
    let plugins = Some(directory.path().to_owned());
    let strict = Node::start(&backplane, &Options { plugins, ..Options::default() }).await?;
    let open = Node::start(&backplane, &Options::default()).await?;
    let mut listener = open.client().await?;
    listener.call(&["SUBSCRIBE", "news"]).await?;
    let refused = strict.publish("news", "bad").await?;
    ensure!(matches!(refused, Value::Error(_)), "{refused}");
    strict.publish("news", "good").await?;
    ensure!(listener.next().await? == message("message", &[b"news", b"good"]));
    listener.nothing(1).await
}

/// What the new rules refuse ends here and on the backplane. A SUBSCRIBE that waited for the
/// backplane while the rules changed is held to the new ones.
#[tokio::test]
async fn new_rules_hold_for_what_is_listened_to_on_the_backplane() -> Result<()> {
    let redis = Backplane::start(Kind::Redis).await?;
    let plugins = components::directory()?;
    let listen_to = |patterns: &[&str]| json!({"rules": [{"users": ["*"], "subscribe": patterns}]});
    let acl = components::built("acl")?;
    components::install(plugins.path(), "10-acl", &acl, &listen_to(&["*"]))?;
    let options = Options {
        config: "leave_delay_ms = 50\njoin_timeout_ms = 60000\nanswer_timeout_ms = 60000\n"
            .to_owned(),
        plugins: Some(plugins.path().to_owned()),
        ..Options::default()
    };
    let node = Node::start(&redis, &options).await?;
    node.server.wait_for_log("changes of files are watched").await?;
    let mut client = node.client().await?;
    ensure!(client.call(&["SUBSCRIBE", "a"]).await? == ack("subscribe", "a", 1));
    ensure!(client.call(&["SUBSCRIBE", "b"]).await? == ack("subscribe", "b", 2));
    redis.stand_still().await?;
    let mut waiting = node.client().await?;
    waiting.command(&["SUBSCRIBE", "b2"]).await?;
    let mut allowed = node.client().await?;
    allowed.command(&["SUBSCRIBE", "a2"]).await?;
    let settings = json!({"settings": listen_to(&["a*"])});
    components::configure(plugins.path(), "10-acl", &settings)?;
    ensure!(client.next().await? == ack("unsubscribe", "b", 1));
    node.server.wait_for_log("existing subscriptions were checked again").await?;
    redis.go_on()?;
    let refused = waiting.next().await?;
    ensure!(matches!(refused, Value::Error(_)), "{refused}");
    ensure!(allowed.next().await? == ack("subscribe", "a2", 1));
    until_channels(&redis, &["a", "a2"]).await
}
