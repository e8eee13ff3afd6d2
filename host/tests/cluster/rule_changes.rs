//! Reloads that change which channels have a history.

#![expect(clippy::indexing_slicing, reason = "what is not there fails the test")]

use anyhow::{Result, ensure};
use serde_json::json;

use crate::answers::ask;
use crate::backplane::Kind;
use crate::history::{RULE, client, expect_message, nodes, publish, start};
use crate::support::components::write_atomically;
use crate::support::server::with_quick_end;
use crate::support::{PATIENCE, within};

/// A rule that changes to another size, and back, while clients are there.
async fn a_rule_that_changes(kind: Kind) -> Result<()> {
    let backplane = start(kind).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let (mut publisher, mut subscriber) = (client(&a).await?, client(&b).await?);
    ask(&mut subscriber, json!(["SUBSCRIBE", "chat.1"])).await?;
    for (changes, messages) in [(0, 100), (1, 3), (2, 100)] {
        if changes > 0 {
            for node in [&a, &b] {
                let rule = RULE.replace("= 100", &format!("= {messages}"));
                let url = backplane.url();
                let config = format!("[cluster]\nurl = \"{url}\"\n{rule}");
                let file = node.server.home().join("switchyard.toml");
                write_atomically(&file, with_quick_end(&config).as_bytes())?;
                node.server.wait_for_logs("settings were changed", changes).await?;
            }
        }
        // The subscriptions are renewed a moment later: messages meanwhile may have no position.
        let payload = format!("size {messages}, {changes}");
        let (_, position) = within(PATIENCE, "a message with its position", async {
            loop {
                let position = publish(&mut publisher, "chat.1", &payload).await?;
                let message = subscriber.next_json().await?;
                if message.pointer("/3/position") == Some(&json!(position)) {
                    return anyhow::Ok((message, position));
                }
            }
        })
        .await??;
        let mut other = client(&a).await?;
        let answer = ask(&mut other, json!(["RESUME", "chat.1", position])).await?;
        ensure!(answer["recovered"] == true && answer["missed"] == 0, "{answer}");
        let next = publish(&mut publisher, "chat.1", "next").await?;
        expect_message(&mut other, "next", &next).await?;
        expect_message(&mut subscriber, "next", &next).await?;
    }
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

/// A channel loses its history on the nodes, is published to, and has one again.
async fn a_rule_that_goes_and_comes_back(kind: Kind) -> Result<()> {
    let backplane = start(kind).await?;
    let [a, b] = nodes(&backplane, RULE).await?;
    let mut publisher = client(&a).await?;
    let before = publish(&mut publisher, "chat.1", "before").await?;
    for (changes, rule) in [(1, ""), (2, RULE)] {
        for node in [&a, &b] {
            let config = format!("[cluster]\nurl = \"{}\"\n{rule}", backplane.url());
            let file = node.server.home().join("switchyard.toml");
            write_atomically(&file, with_quick_end(&config).as_bytes())?;
            node.server.wait_for_logs("settings were changed", changes).await?;
        }
        if rule.is_empty() {
            ask(&mut publisher, json!(["PUBLISH", "chat.1", "in between"])).await?;
        }
    }
    for node in [&a, &b] {
        let mut subscriber = client(node).await?;
        let answer = ask(&mut subscriber, json!(["RESUME", "chat.1", before])).await?;
        ensure!(answer["recovered"] == false && answer["reason"] == "epoch", "{answer}");
        let page = ask(&mut subscriber, json!(["HISTORY", "chat.1"])).await?;
        ensure!(page["messages"] == json!([]), "{page}");
    }
    let mut subscriber = client(&b).await?;
    let answer = ask(&mut subscriber, json!(["RESUME", "chat.1"])).await?;
    let after = publish(&mut publisher, "chat.1", "after").await?;
    expect_message(&mut subscriber, "after", &after).await?;
    for node in [&a, &b] {
        let mut subscriber = client(node).await?;
        let resume = json!(["RESUME", "chat.1", answer["position"]]);
        let answer = ask(&mut subscriber, resume).await?;
        ensure!(answer["recovered"] == true && answer["missed"] == 1, "{answer}");
    }
    for node in [a, b] {
        node.stop().await?;
    }
    Ok(())
}

over_redis_and_nats!(a_rule_that_goes_and_comes_back);

over_redis_and_nats!(a_rule_that_changes);
