//! Order under load, over the door for Redis clients, with several shards: pipelined bursts
//! keep their order, an acknowledgement comes before the first message, and the subscriptions
//! of a closed connection are removed.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::RespClient;
use crate::support::server::{Launch, Server};
use crate::support::{PATIENCE, within};
use crate::value::{Shape, Value, ack, command, message};

const PUBLISHERS: usize = 4;
/// How many each publisher publishes, on the channels in round-robin order.
const PUBLICATIONS: usize = 3_000;
/// How many commands it sends before it reads replies.
const PIPELINE: usize = 100;
const CHANNELS: [&str; 5] = ["order.a", "order.b", "order.c", "order.d", "order.e"];

async fn server() -> Result<(Server, SocketAddr)> {
    let server = Launch::with_config("engine.shards = 4").start().await?;
    let address = server.resp_address().await?;
    Ok((server, address))
}

/// Publishes `publisher:number`.
async fn publish(mut client: RespClient, publisher: usize) -> Result<()> {
    let numbers: Vec<_> = (0..PUBLICATIONS).collect();
    for numbers in numbers.chunks(PIPELINE) {
        let commands = numbers.iter().map(|number| {
            let channel = CHANNELS.get(number % CHANNELS.len()).copied().unwrap_or_default();
            command(&["PUBLISH", channel, &format!("{publisher}:{number}")])
        });
        client.send(&commands.collect::<Vec<_>>().concat()).await?;
        for count in client.next_many(numbers.len()).await? {
            ensure!(count == Value::Integer(SUBSCRIBERS as i64), "{count} deliveries");
        }
    }
    Ok(())
}

const SUBSCRIBERS: usize = 4;

/// What a subscriber receives: pairs of channel and payload, in order.
async fn receive(mut client: RespClient) -> Result<Vec<(Vec<u8>, String)>> {
    let mut received = Vec::new();
    for value in client.next_many(PUBLISHERS * PUBLICATIONS).await? {
        let payload = String::from_utf8(value.payload()?.to_vec())?;
        received.push((value.channel()?.to_vec(), payload));
    }
    // Nothing comes twice.
    client.nothing(0).await?;
    Ok(received)
}

#[tokio::test]
async fn bursts_keep_their_order_across_channels() -> Result<()> {
    let (server, address) = server().await?;
    let mut subscribers = JoinSet::new();
    for number in 0..SUBSCRIBERS {
        let mut client = RespClient::connect(address).await?;
        if number % 2 == 0 {
            client.command(&[&["SUBSCRIBE"], CHANNELS.as_slice()].concat()).await?;
            client.next_many(CHANNELS.len()).await?;
        } else {
            client.call(&["HELLO", "3"]).await?;
            client.call(&["PSUBSCRIBE", "order.*"]).await?;
        }
        subscribers.spawn(receive(client));
    }
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        publishers.spawn(publish(RespClient::connect(address).await?, publisher));
    }
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    let mut all_received = Vec::new();
    while let Some(received) = subscribers.join_next().await {
        all_received.push(received??);
    }
    let by_channel = |received: &[(Vec<u8>, String)]| {
        let mut orders: BTreeMap<Vec<u8>, Vec<String>> = BTreeMap::new();
        for (channel, payload) in received {
            orders.entry(channel.clone()).or_default().push(payload.clone());
        }
        orders
    };
    let first = by_channel(all_received.first().context("there are subscribers")?);
    for received in &all_received {
        assert!(by_channel(received) == first, "two subscribers saw two orders");
        for publisher in 0..PUBLISHERS {
            let prefix = format!("{publisher}:");
            let numbers = received.iter().filter_map(|(_, payload)| payload.strip_prefix(&prefix));
            let numbers: Vec<usize> = numbers.map(str::parse).collect::<Result<_, _>>()?;
            assert!(numbers.into_iter().eq(0..PUBLICATIONS), "the order of publisher {publisher}");
        }
    }
    server.stop().await
}

/// Publishes until it is stopped.
async fn flood(
    mut client: RespClient,
    publisher: usize,
    mut stop: watch::Receiver<bool>,
) -> Result<u64> {
    let mut number = 0;
    while !*stop.borrow_and_update() {
        let commands = (0..50).flat_map(|_| {
            number += 1;
            let text = format!("{publisher}:{number}");
            [command(&["PUBLISH", "flood", &text]), command(&["SPUBLISH", "flood", &text])].concat()
        });
        let commands: Vec<u8> = commands.collect();
        client.send(&commands).await?;
        client.next_many(100).await?;
    }
    Ok(number)
}

/// Comes and goes while others publish without end: what it receives lies between its
/// acknowledgements, and of each publisher it is one piece.
async fn come_and_go(address: SocketAddr, version: &str) -> Result<usize> {
    const ROUNDS: usize = 60;
    let mut client = RespClient::connect(address).await?;
    client.call(&["HELLO", version]).await?;
    let shape = if version == "3" { Shape::Push } else { Shape::Array };
    let is_ack = |value: &Value, kind, name, count| {
        let Value::Aggregate(_, items) = ack(kind, name, count) else { return false };
        *value == Value::Aggregate(shape, items)
    };
    let mut received_in_all = 0;
    for round in 0..ROUNDS {
        let (subscribe, unsubscribe, name, kind) = match round % 3 {
            0 => ("subscribe", "unsubscribe", "flood", "message"),
            1 => ("psubscribe", "punsubscribe", "fl*", "pmessage"),
            _ => ("ssubscribe", "sunsubscribe", "flood", "smessage"),
        };
        client.command(&[subscribe, name]).await?;
        let first = client.next().await?;
        ensure!(is_ack(&first, subscribe, name, 1), "before its acknowledgement came {first}");
        let mut last_of: BTreeMap<String, u64> = BTreeMap::new();
        let mut received = 0;
        loop {
            // Some unsubscribe at once, others after they have received some messages.
            if received == 20 * (round % 4) {
                client.command(&[unsubscribe, name]).await?;
            }
            let value = client.next().await?;
            if is_ack(&value, unsubscribe, name, 0) {
                break;
            }
            let Value::Aggregate(seen, items) = &value else { anyhow::bail!("{value} came") };
            ensure!(*seen == shape && items.first() == Some(&Value::bulk(kind)), "{value} came");
            let text = std::str::from_utf8(value.payload()?)?;
            let (publisher, number) = text.split_once(':').context("a payload has a number")?;
            let number: u64 = number.parse()?;
            if let Some(last) = last_of.insert(publisher.to_owned(), number) {
                ensure!(number == last + 1, "after {last} of {publisher} came {number}");
            }
            received += 1;
        }
        // Nothing comes behind the last acknowledgement.
        client.nothing(round as u64).await?;
        received_in_all += received;
    }
    Ok(received_in_all)
}

#[tokio::test]
async fn an_acknowledgement_comes_before_the_flood() -> Result<()> {
    let (server, address) = server().await?;
    let (stop, stopped) = watch::channel(false);
    let mut publishers = JoinSet::new();
    for publisher in 0..3 {
        let client = RespClient::connect(address).await?;
        publishers.spawn(flood(client, publisher, stopped.clone()));
    }
    let mut subscribers = JoinSet::new();
    for version in ["2", "3", "2", "3"] {
        subscribers.spawn(come_and_go(address, version));
    }
    while let Some(received) = subscribers.join_next().await {
        ensure!(received?? > 1_000, "there was hardly a flood");
    }
    stop.send_replace(true);
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    server.stop().await
}

/// Checks that no subscription of a closed connection is left.
async fn no_subscription_is_left(address: SocketAddr) -> Result<()> {
    let mut observer = RespClient::connect(address).await?;
    let nothing = Value::Aggregate(Shape::Array, Vec::new());
    observer.until(&["PUBSUB", "CHANNELS"], &nothing).await?;
    observer.until(&["PUBSUB", "SHARDCHANNELS"], &nothing).await?;
    observer.until(&["PUBSUB", "NUMPAT"], &Value::Integer(0)).await?;
    ensure!(observer.call(&["PUBLISH", "news", "x"]).await? == Value::Integer(0));
    ensure!(observer.call(&["SPUBLISH", "news", "x"]).await? == Value::Integer(0));
    Ok(())
}

#[tokio::test]
async fn a_reset_ends_all_subscriptions() -> Result<()> {
    let (server, address) = server().await?;
    let mut gone = RespClient::connect(address).await?;
    let mut stays = RespClient::connect(address).await?;
    for client in [&mut gone, &mut stays] {
        let names = ["SUBSCRIBE", "news", "a", "b"].map(str::to_owned);
        client.command(&names).await?;
        client.next_many(3).await?;
        client.call(&["PSUBSCRIBE", "n*"]).await?;
        client.call(&["SSUBSCRIBE", "news"]).await?;
    }
    let mut observer = RespClient::connect(address).await?;
    ensure!(observer.call(&["PUBLISH", "news", "1"]).await? == Value::Integer(4));
    gone.reset()?;
    let one = Value::Aggregate(Shape::Array, vec![Value::bulk("news"), Value::Integer(1)]);
    observer.until(&["PUBSUB", "NUMSUB", "news"], &one).await?;
    observer.until(&["PUBSUB", "SHARDNUMSUB", "news"], &one).await?;
    ensure!(observer.call(&["PUBLISH", "news", "2"]).await? == Value::Integer(2));
    for payload in [b"1", b"2"] {
        ensure!(stays.next().await? == message("message", &[b"news", payload]));
        ensure!(stays.next().await? == message("pmessage", &[b"n*", b"news", payload]));
    }
    stays.reset()?;
    no_subscription_is_left(address).await?;
    drop(observer);
    server.stop().await
}

/// A client that vanishes while it subscribes, or while messages are on their way to it,
/// leaves nothing behind.
#[tokio::test]
async fn a_client_that_vanishes_while_it_subscribes_is_removed() -> Result<()> {
    let (server, address) = server().await?;
    let (stop, stopped) = watch::channel(false);
    let mut publishers = JoinSet::new();
    publishers.spawn(flood(RespClient::connect(address).await?, 0, stopped));
    let names: Vec<String> = (0..1_000).map(|number| format!("name-{number}")).collect();
    let verb = |verb: &str| [&[verb.to_owned()], names.as_slice()].concat();
    let commands = [
        command(&["SUBSCRIBE", "flood", "news"]),
        command(&["PSUBSCRIBE", "fl*", "n*"]),
        command(&verb("SUBSCRIBE")),
        command(&verb("PSUBSCRIBE")),
        command(&verb("SSUBSCRIBE")),
    ]
    .concat();
    for round in 0..40 {
        let mut client = RespClient::connect(address).await?;
        // Cut anywhere, also within a command.
        client.send(commands.get(..commands.len() * (round + 1) / 40).unwrap_or_default()).await?;
        if round % 2 == 0 {
            client.next().await?;
        }
        client.reset()?;
    }
    stop.send_replace(true);
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    no_subscription_is_left(address).await?;
    server.stop().await
}

/// A subscriber that does not read is closed when its outbox exceeds the limit. Neither
/// publishers nor other subscribers are affected.
#[tokio::test]
async fn only_the_slow_subscriber_is_closed() -> Result<()> {
    const COUNTED: &[u8] = b"\r\nclient_output_buffer_limit_disconnections:1\r\n";
    let server = Launch::with_config("outbox.bytes_max = 1048576\noutbox.soft_bytes = 1048576");
    let server = server.start().await?;
    let address = server.resp_address().await?;
    let mut slow = RespClient::connect_narrow(address).await?;
    slow.call(&["SUBSCRIBE", "news"]).await?;
    let mut quick = RespClient::connect(address).await?;
    quick.call(&["SUBSCRIBE", "news"]).await?;
    let mut publisher = RespClient::connect(address).await?;
    let payload = "x".repeat(100_000);
    let mut published = 0;
    loop {
        let count = publisher.call(&["PUBLISH", "news", &payload]).await?;
        published += 1;
        ensure!(quick.next().await?.payload()? == payload.as_bytes());
        match count {
            Value::Integer(1) => break,
            Value::Integer(2) => {}
            other => anyhow::bail!("{other} came"),
        }
        ensure!(published < 1_000, "100 MB wait for one that does not read");
    }
    // It is counted when it is closed, which takes its time.
    within(PATIENCE, "it to be counted", async {
        loop {
            let Value::Bulk(info) = publisher.call(&["INFO", "stats"]).await? else {
                anyhow::bail!("INFO is a bulk string")
            };
            if info.windows(COUNTED.len()).any(|line| line == COUNTED) {
                return Ok(());
            }
        }
    })
    .await??;
    quick.nothing(0).await?;
    drop((slow, quick, publisher));
    server.stop().await
}

/// The connections are accepted in this order, by workers of several threads.
#[tokio::test]
async fn ids_rise_in_the_order_in_which_connections_are_accepted() -> Result<()> {
    const CONNECTIONS: usize = 500;
    let (server, address) = server().await?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(RespClient::connect(address).await?);
    }
    let mut last = 0;
    for client in &mut clients {
        let id = client.call(&["CLIENT", "ID"]).await?;
        let Value::Integer(id) = id else { bail!("{id} is no id") };
        ensure!(id > last, "{id} after {last}");
        last = id;
    }
    drop(clients);
    server.stop().await
}
