//! Asking all nodes at once, by the admin API of one.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value as Json, json};

use crate::backplane::{Backplane, Kind};
use crate::client::RespClient;
use crate::nodes::{Node, Options};
use crate::support::admin::Operator;
use crate::value::Value;

async fn query_all_nodes(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let [a, b, c] = Node::three(&backplane).await?;
    let mut clients = Vec::new();
    for (node, names) in [(&a, ["x", "y"]), (&b, ["y", "z"]), (&c, ["other", "y"])] {
        let mut client = node.client().await?;
        for name in names {
            client.call(&["SUBSCRIBE", name]).await?;
        }
        client.call(&["PSUBSCRIBE", "p*"]).await?;
        clients.push(client);
    }
    let operator = Operator::of(&b.server).await?;
    let all = json!({"answered": 3, "unavailable": 0});
    let one = json!({"answered": 1, "unavailable": 0});

    let path = "/v1/pubsub/channels?matching=%5Bxyz%5D";
    let expected = json!({"channels": ["y", "z"], "is_cut": false, "nodes": one});
    assert_eq!(operator.get(path)?, expected);
    let expected = json!({"channels": ["x", "y", "z"], "is_cut": false, "nodes": all});
    assert_eq!(operator.get(&format!("{path}&all=true"))?, expected);

    let counts = operator.get("/v1/pubsub/numsub?channel=x&channel=y&all=true")?;
    let sums =
        [json!({"channel": "x", "subscribers": 1}), json!({"channel": "y", "subscribers": 3})];
    assert_eq!(counts, json!({"counts": sums, "nodes": all}));
    let patterns = operator.get("/v1/pubsub/numpat?all=true")?;
    assert_eq!(patterns, json!({"patterns": 3, "nodes": all}));

    // The same by the command line.
    assert_eq!(operator.say(&["pubsub", "channels", "[xyz]"])?, "y\nz\n");
    assert_eq!(operator.say(&["pubsub", "channels", "--all"])?, "other\nx\ny\nz\n(3 nodes)\n");
    let counts = operator.say(&["pubsub", "numsub", "y", "none", "--all"])?;
    ensure!(counts.contains("y        3") && counts.contains("none     0"), "{counts}");
    assert_eq!(operator.say(&["pubsub", "numpat", "--all"])?, "3\n(3 nodes)\n");
    Ok(())
}

#[tokio::test]
async fn all_nodes_are_queried_over_redis() -> Result<()> {
    query_all_nodes(Kind::Redis).await
}

#[tokio::test]
async fn all_nodes_are_queried_over_nats() -> Result<()> {
    query_all_nodes(Kind::Nats).await
}

/// The number with which the ids of new connections begin.
async fn node_number(node: &Node) -> Result<u64> {
    let Value::Integer(id) = node.client().await?.call(&["CLIENT", "ID"]).await? else {
        bail!("no id")
    };
    Ok(u64::try_from(id)? >> 32)
}

#[tokio::test]
async fn a_node_takes_another_number_if_another_node_has_the_same() -> Result<()> {
    let redis = Backplane::start(Kind::Redis).await?;
    // This test is the other node.
    let mut other = RespClient::connect(redis.address).await?;
    other.call(&["SUBSCRIBE", "__switchyard:all"]).await?;
    let node = Node::start(&redis, &Options::default()).await?;
    let mut numbers = Vec::new();
    while numbers.len() < 2 {
        let said: Json = serde_json::from_slice(other.next().await?.payload()?)?;
        let Some(number) = said.pointer("/asks/node-number").and_then(Json::as_u64) else {
            continue;
        };
        let taken = numbers.first().copied().unwrap_or(number);
        let (from, question) = (said["node"].as_str().context("a name")?, &said["number"]);
        let answer = json!({
            "node": "other", "number": question, "answers": {"node-number": taken},
        });
        let channel = format!("__switchyard:node:{from}");
        redis.ask(&["PUBLISH", &channel, &answer.to_string()]).await?;
        numbers.push(number);
    }
    let [first, second] = numbers[..] else { bail!("{numbers:?}") };
    ensure!(first < second && second < 1 << 20, "{numbers:?}");
    assert_eq!(node_number(&node).await?, second);
    node.server.wait_for_log("another node has the same number").await?;

    let third = Node::start(&redis, &Options::default()).await?;
    assert_ne!(node_number(&third).await?, second);
    node.stop().await?;
    third.stop().await
}

/// Alone, a node is all of them; names may be any bytes.
#[tokio::test]
async fn a_node_that_is_alone_answers_for_all() -> Result<()> {
    let node = Node::alone(&Options::default()).await?;
    let mut client = node.client().await?;
    client.call(&[&b"SUBSCRIBE"[..], b"\xff &"]).await?;
    let operator = Operator::of(&node.server).await?;
    let name = json!({"base64": "/yAm"});
    let nodes = json!({"answered": 1, "unavailable": 0});
    let channels = operator.get("/v1/pubsub/channels?all=true&matching=%ff*")?;
    assert_eq!(channels, json!({"channels": [name], "is_cut": false, "nodes": nodes}));
    let counts = operator.get("/v1/pubsub/numsub?channel=%FF+%26")?;
    assert_eq!(counts["counts"], json!([{"channel": name, "subscribers": 1}]));
    for (path, says) in [
        ("numsub", "channel must be given"),
        ("numpat?all=yes", "all must be true or false"),
        ("numpat?shard=true", "\"shard\" is none of all"),
        ("channels?match=x", "\"match\" is none of all, matching, shard"),
    ] {
        let (status, answer) = operator.ask("GET", &format!("/v1/pubsub/{path}"), None)?;
        let message = answer["message"].as_str().unwrap_or_default();
        ensure!(status == 400 && message.contains(says), "{path}: {status} {answer}");
    }
    Ok(())
}
