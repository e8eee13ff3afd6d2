//! redis-rs: its blocking Pub/Sub and its async one, in RESP2 and RESP3, and the
//! connection manager, which subscribes again after a restart.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use redis::aio::ConnectionManagerConfig;
use redis::{AsyncCommands, Client, Commands, Connection, Msg, PubSub, PushKind};
use tokio::sync::mpsc;

use crate::clients::restart;
use crate::support::server::Launch;
use crate::support::{PATIENCE, within};

fn client(address: SocketAddr, protocol: &str) -> Result<Client> {
    Ok(Client::open(format!("redis://{address}/?protocol={protocol}"))?)
}

fn connection(address: SocketAddr, protocol: &str) -> Result<Connection> {
    let connection = client(address, protocol)?.get_connection()?;
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// The next message must be this.
fn expect(
    pubsub: &mut PubSub<'_>,
    pattern: Option<&str>,
    channel: &[u8],
    payload: &[u8],
) -> Result<()> {
    is_message(&pubsub.get_message()?, pattern, channel, payload)
}

fn is_message(came: &Msg, pattern: Option<&str>, channel: &[u8], payload: &[u8]) -> Result<()> {
    ensure!(came.get_channel::<Vec<u8>>()? == channel, "{came:.200?} came");
    ensure!(came.get_payload_bytes() == payload, "{came:.200?} came");
    ensure!(came.get_pattern::<Option<String>>()?.as_deref() == pattern, "{came:.200?} came");
    Ok(())
}

fn blocking(address: SocketAddr, protocol: &str) -> Result<()> {
    let mut publisher = connection(address, protocol)?;
    let mut connection = connection(address, protocol)?;
    let mut pubsub = connection.as_pubsub();
    let ask = |words: &[&str]| redis::cmd("PUBSUB").arg(words).to_owned();
    // In RESP3 it does not wait for acknowledgements; then the server is queried.
    let listens_to =
        |publisher: &mut Connection, mut names: Vec<&str>, patterns: i64| -> Result<()> {
            let deadline = Instant::now() + PATIENCE;
            names.sort_unstable();
            loop {
                let mut channels: Vec<String> = ask(&["CHANNELS"]).query(publisher)?;
                channels.sort_unstable();
                if channels == names && ask(&["NUMPAT"]).query::<i64>(publisher)? == patterns {
                    return Ok(());
                }
                ensure!(Instant::now() < deadline, "it listens to {channels:?}");
            }
        };
    pubsub.subscribe("news")?;
    pubsub.subscribe(&["sport", "weather"])?;
    pubsub.psubscribe("n*")?;
    listens_to(&mut publisher, vec!["news", "sport", "weather"], 1)?;
    ensure!(publisher.publish::<_, _, i64>("news", "Grüße")? == 2);
    expect(&mut pubsub, None, b"news", "Grüße".as_bytes())?;
    expect(&mut pubsub, Some("n*"), b"news", "Grüße".as_bytes())?;
    let counts: Vec<(String, i64)> = ask(&["NUMSUB", "news", "nope"]).query(&mut publisher)?;
    ensure!(counts == [("news".to_owned(), 1), ("nope".to_owned(), 0)]);

    pubsub.unsubscribe("news")?;
    listens_to(&mut publisher, vec!["sport", "weather"], 1)?;
    ensure!(publisher.publish::<_, _, i64>("news", "x")? == 1);
    expect(&mut pubsub, Some("n*"), b"news", b"x")?;
    pubsub.punsubscribe("n*")?;
    listens_to(&mut publisher, vec!["sport", "weather"], 0)?;
    ensure!(publisher.publish::<_, _, i64>("news", "x")? == 0);

    // All bytes, in a name as well, and the largest payload.
    let all: Vec<u8> = (0..=255).collect();
    pubsub.unsubscribe(&["sport", "weather"])?;
    pubsub.subscribe(&all)?;
    let is_known = |publisher: &mut Connection, name: &[u8]| -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while publisher.publish::<_, _, i64>(name, "knock")? == 0 {
            ensure!(Instant::now() < deadline, "there is no subscriber");
        }
        Ok(())
    };
    is_known(&mut publisher, &all)?;
    expect(&mut pubsub, None, &all, b"knock")?;
    ensure!(publisher.publish::<_, _, i64>(&all, &all)? == 1);
    expect(&mut pubsub, None, &all, &all)?;
    let largest = all.repeat(4096);
    ensure!(publisher.publish::<_, _, i64>(&all, &largest)? == 1);
    expect(&mut pubsub, None, &all, &largest)?;
    let refused = publisher.publish::<_, _, i64>(&all, [&largest[..], b"x"].concat());
    ensure!(refused.is_err_and(|problem| problem.code() == Some("TOOLARGE")));

    let names: Vec<String> = (0..1000).map(|number| format!("channel-{number}")).collect();
    pubsub.subscribe(&names)?;
    is_known(&mut publisher, b"channel-999")?;
    expect(&mut pubsub, None, b"channel-999", b"knock")?;
    let mut pipeline = redis::pipe();
    names.iter().for_each(|name| {
        pipeline.publish(name, name);
    });
    ensure!(pipeline.query::<Vec<i64>>(&mut publisher)? == [1; 1000]);
    for name in &names {
        expect(&mut pubsub, None, name.as_bytes(), name.as_bytes())?;
    }
    // This leaves everything, and reads the acknowledgements of it.
    drop(pubsub);
    ensure!(connection.publish::<_, _, i64>("channel-0", "x")? == 0);
    ensure!(ask(&["CHANNELS"]).query::<Vec<String>>(&mut connection)?.is_empty());
    Ok(())
}

async fn in_a_thread(protocol: &'static str) -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    tokio::task::spawn_blocking(move || blocking(address, protocol)).await??;
    server.stop().await
}

#[tokio::test]
async fn blocking_in_resp2() -> Result<()> {
    in_a_thread("resp2").await
}

#[tokio::test]
async fn blocking_in_resp3() -> Result<()> {
    in_a_thread("resp3").await
}

#[tokio::test]
async fn asynchronous() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    let mut publisher = client(address, "resp2")?.get_multiplexed_async_connection().await?;
    let mut pubsub = client(address, "resp2")?.get_async_pubsub().await?;
    pubsub.subscribe("news").await?;
    pubsub.psubscribe("n*").await?;
    let numbers: Vec<String> = (0..500).map(|number: u32| number.to_string()).collect();
    let mut pipeline = redis::pipe();
    numbers.iter().for_each(|number| {
        pipeline.publish("news", number);
    });
    ensure!(pipeline.query_async::<Vec<i64>>(&mut publisher).await? == [2; 500]);
    let mut messages = pubsub.on_message();
    for number in &numbers {
        for pattern in [None, Some("n*")] {
            let came = within(PATIENCE, "a message", messages.next()).await?;
            let came = came.context("the connection ended")?;
            is_message(&came, pattern, b"news", number.as_bytes())?;
        }
    }
    drop(messages);
    pubsub.unsubscribe("news").await?;
    pubsub.punsubscribe("n*").await?;
    ensure!(publisher.publish::<_, _, i64>("news", "x").await? == 0);
    drop((pubsub, publisher));
    server.stop().await
}

#[tokio::test]
async fn a_connection_manager_comes_back() -> Result<()> {
    let server = Launch::default().start().await?;
    let address = server.resp_address().await?;
    let (sender, mut pushes) = mpsc::unbounded_channel();
    let config = ConnectionManagerConfig::new()
        .set_push_sender(sender)
        .set_automatic_resubscription()
        .set_response_timeout(None)
        .set_connection_timeout(None);
    let client = client(address, "resp3")?;
    let mut manager = client.get_connection_manager_with_config(config).await?;
    manager.subscribe("news").await?;
    manager.psubscribe("n*").await?;
    let mut next = async |kind: PushKind| loop {
        let push = within(PATIENCE, format_args!("a {kind:?}"), pushes.recv()).await?;
        let push = push.context("nothing is pushed any more")?;
        // It says that it was cut off as often as it notices.
        if push.kind == PushKind::Disconnection && kind != PushKind::Disconnection {
            continue;
        }
        ensure!(push.kind == kind, "{push:?} came");
        return Ok(());
    };
    next(PushKind::Subscribe).await?;
    next(PushKind::PSubscribe).await?;
    // In RESP3 one connection does it all.
    ensure!(manager.publish::<_, _, i64>("news", "self").await? == 2);
    next(PushKind::Message).await?;
    next(PushKind::PMessage).await?;

    server.stop().await?;
    next(PushKind::Disconnection).await?;
    let server = restart(&address.to_string()).await?;
    // It reconnects when it is used. Commands sent before that may fail.
    within(PATIENCE, "the manager to come back", async {
        while redis::cmd("PING").query_async::<String>(&mut manager).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await?;
    next(PushKind::Subscribe).await?;
    next(PushKind::PSubscribe).await?;
    ensure!(manager.publish::<_, _, i64>("news", "again").await? == 2);
    next(PushKind::Message).await?;
    next(PushKind::PMessage).await?;
    drop(manager);
    server.stop().await
}
