//! A user of the backplane without the rights that a node needs: nothing is doubled,
//! no publication counts as sent, and the node says what is missing.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::backplane::{Backplane, Kind};
use crate::listener::{Listener, payload};
use crate::nodes::{Node, Options};
use crate::support::{PATIENCE, within};
use crate::value::Value;

const PASSWORD: &str = "c0rrect-horse";

/// A user `sw` of a Redis with these rules.
async fn user(redis: &Backplane, rules: &[&str]) -> Result<()> {
    let set = format!(">{PASSWORD}");
    let words = ["ACL", "SETUSER", "sw", "reset", "on", &set, "+@all", "~*", "&*"];
    let answer = redis.ask(&[&words, rules].concat()).await?;
    ensure!(answer.to_string().contains("OK"), "{answer}");
    Ok(())
}

async fn start(redis: &Backplane, config: &str) -> Result<Node> {
    let config =
        format!("user = \"sw\"\nwhen_away = \"refuse\"\nconnect_timeout_ms = 1000\n{config}");
    let environment = vec![("SWITCHYARD_CLUSTER_PASSWORD".to_owned(), PASSWORD.into())];
    Node::start(redis, &Options { config, environment, ..Options::default() }).await
}

fn is_unavailable(answer: &Value) -> bool {
    matches!(answer, Value::Error(text) if text.starts_with(b"UNAVAILABLE"))
}

/// Waits until the answer of `/healthz` says this.
async fn until_health_says(node: &Node, status: u16, words: &str) -> Result<()> {
    within(PATIENCE, format!("{status} {words}"), async {
        loop {
            let (now, text) = node.health().await?;
            if now == status && text.contains(words) {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    })
    .await?
}

#[tokio::test]
async fn each_right_that_redis_withholds_is_named_and_nothing_counts_as_sent() -> Result<()> {
    for (rule, right) in [
        ("-publish", "run PUBLISH"),
        ("-multi", "run MULTI"),
        ("-exec", "run EXEC"),
        ("-spublish", "run SPUBLISH"),
        ("-subscribe", "run SUBSCRIBE"),
        ("-psubscribe", "run PSUBSCRIBE"),
        ("-ssubscribe", "run SSUBSCRIBE"),
        ("-unsubscribe", "run UNSUBSCRIBE"),
        ("-info", "run INFO"),
        ("resetchannels", "use the channels of the nodes"),
    ] {
        let redis = Backplane::start(Kind::Redis).await?;
        user(&redis, &[rule]).await?;
        let node = start(&redis, "").await?;
        until_health_says(&node, 503, right).await?;
        let line = node.server.wait_for_log("its user lacks a right").await?;
        ensure!(line.contains("ERROR") && line.contains(right), "{rule}: {line}");
        let answer = node.publish("news", "x").await?;
        ensure!(is_unavailable(&answer), "{rule}: {answer}");
        // Granted, it is found by itself.
        user(&redis, &[]).await?;
        node.until_connected(true).await?;
        ensure!(node.publish("news", "x").await? == Value::Integer(0), "{rule}");
        ensure!(!node.server.log().contains(PASSWORD), "the log has the password");
        node.stop().await?;
    }
    Ok(())
}

/// What is published while rights come and go arrives once or not at all.
#[tokio::test]
async fn a_right_that_redis_withdraws_is_found_and_nothing_is_doubled() -> Result<()> {
    for (rule, right) in [("-multi", "run MULTI"), ("-publish", "run PUBLISH")] {
        let redis = Backplane::start(Kind::Redis).await?;
        user(&redis, &[]).await?;
        let (a, b) = (start(&redis, "").await?, start(&redis, "").await?);
        let mut there = Listener::start(b.client().await?, &["news"], &["n*"]).await?;
        let mut here = Listener::start(a.client().await?, &["news"], &[]).await?;
        let mut publisher = a.client().await?;
        let mut number = 0;
        let mut accepted = 0;
        let mut publish = async |count: u64| {
            for _ in 0..count {
                number += 1;
                match publisher.call(&["PUBLISH", "news", &payload("a", number)]).await? {
                    Value::Integer(1) => accepted += 1,
                    answer => ensure!(is_unavailable(&answer), "{answer}"),
                }
            }
            anyhow::Ok((number, accepted))
        };
        publish(100).await?;
        there.expect(200).await?;
        user(&redis, &[rule]).await?;
        // Each listener below sees rising numbers only: none comes twice.
        publish(1_000).await?;
        until_health_says(&a, 503, right).await?;
        let (_, before) = publish(100).await?;
        let (_, after) = publish(100).await?;
        ensure!(before == after, "{rule}: accepted without the right");
        user(&redis, &[]).await?;
        a.until_connected(true).await?;
        b.until_connected(true).await?;
        let (last, _) = publish(1).await?;
        for listener in [&mut here, &mut there] {
            listener.until("news", &payload("a", last)).await?;
        }
        there.until("n*", &payload("a", last)).await?;
        here.nothing_more().await?;
        there.nothing_more().await?;
    }
    Ok(())
}

/// With names of its own it does for channels, and says that it does not for patterns.
#[tokio::test]
async fn a_redis_user_of_a_prefix_serves_channels_and_says_what_it_may_not() -> Result<()> {
    let redis = Backplane::start(Kind::Redis).await?;
    user(&redis, &["resetchannels", "&sw:*"]).await?;
    let prefix = "prefix = \"sw:\"\n";
    let (a, b) = (start(&redis, prefix).await?, start(&redis, prefix).await?);
    let mut there = Listener::start(b.client().await?, &["news"], &[]).await?;
    a.publish("news", &payload("a", 1)).await?;
    there.expect(1).await?;
    until_health_says(&a, 200, "may listen to some patterns only").await?;
    let mut listener = b.client().await?;
    listener.call(&["PSUBSCRIBE", "n*"]).await?;
    until_health_says(&b, 200, "lets this node not listen to 1 names").await
}

/// Publications on a name that is refused are answered as the config says.
#[tokio::test]
async fn a_name_that_redis_refuses_is_refused_to_publishers() -> Result<()> {
    let redis = Backplane::start(Kind::Redis).await?;
    user(&redis, &["resetchannels", "&__switchyard:*", "&news"]).await?;
    let (a, b) = (start(&redis, "").await?, start(&redis, "").await?);
    let mut there = Listener::start(b.client().await?, &["news"], &[]).await?;
    within(PATIENCE, "a refusal", async {
        while !is_unavailable(&a.publish("secret", "x").await?) {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    })
    .await??;
    a.publish("news", &payload("a", 1)).await?;
    there.expect(1).await?;
    ensure!(a.info("backplane_unsent_refused").await?.parse::<u64>()? >= 1, "not counted");
    until_health_says(&a, 200, "refuses publications on some names").await
}

/// The config file of a NATS with a user of these permissions.
fn nats_config(permissions: &str) -> String {
    format!(
        "authorization {{ users = [{{user: sw, password: \"{PASSWORD}\", \
         permissions: {{ {permissions} }} }}, {{user: all, password: all}}] }}"
    )
}

#[tokio::test]
async fn each_right_that_nats_withholds_is_named() -> Result<()> {
    for (permissions, status, says) in [
        ("publish: {deny: \">\"}", 503, "publish on %switchyard.>"),
        ("subscribe: {deny: \">\"}", 503, "subscribe to %switchyard.>"),
        ("publish: \"%switchyard.>\"", 200, "may publish on some names only"),
        ("subscribe: [\"%switchyard.>\", \"news\"]", 200, "may listen to some names only"),
    ] {
        let home = tempfile::tempdir()?;
        let file = home.path().join("nats.conf");
        std::fs::write(&file, nats_config(permissions))?;
        let nats =
            Backplane::start_with(Kind::Nats, &["--config", &file.display().to_string()]).await?;
        let node = start(&nats, "").await?;
        until_health_says(&node, status, says).await?;
        let line = node.server.wait_for_log("the user of the backplane").await?;
        ensure!(line.contains(says), "{line}");
        if status == 503 {
            let answer = node.publish("news", "x").await?;
            ensure!(is_unavailable(&answer), "{permissions}: {answer}");
        } else if permissions.starts_with("publish") {
            within(PATIENCE, "a refusal", async {
                while !is_unavailable(&node.publish("secret", "x").await?) {
                    tokio::task::yield_now().await;
                }
                anyhow::Ok(())
            })
            .await??;
        }
        node.stop().await?;
    }
    Ok(())
}

/// A pattern that comes and goes in one round shares its wildcard with one that stays.
#[tokio::test]
async fn a_pattern_that_comes_and_goes_at_once_leaves_its_wildcard_to_others() -> Result<()> {
    let nats = Backplane::start(Kind::Nats).await?;
    let options = Options { config: "leave_delay_ms = 1\n".to_owned(), ..Options::default() };
    let node = Node::start(&nats, &options).await?;
    let mut stays = Listener::start(node.client().await?, &[], &["news.*"]).await?;
    let mut flaps = node.client().await?;
    let mut commands = Vec::new();
    for _ in 0..200 {
        for pattern in ["news.?*", "news.*x", "news.[a-z]*"] {
            for verb in ["PSUBSCRIBE", "PUNSUBSCRIBE"] {
                commands.extend(crate::value::command(&[verb, pattern]));
            }
        }
    }
    flaps.send(&commands).await?;
    flaps.next_many(1_200).await?;
    let mut publisher = nats.publisher().await?;
    let began = std::time::Instant::now();
    let mut number = 0;
    while began.elapsed() < Duration::from_millis(300) {
        number += 1;
        publisher.publish(&[("news.a", payload("x", number))]).await?;
        stays.expect(1).await?;
    }
    Ok(())
}
