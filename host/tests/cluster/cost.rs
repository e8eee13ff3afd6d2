//! What a backplane costs: times, processor and memory, printed. What is asserted
//! is only that everything arrives; how fast is the machine's business. For the
//! numbers of docs/scaling.md:
//!
//!     cargo test --release --package switchyard --test cluster -- --nocapture --test-threads 1 cost

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::backplane::{Backplane, Kind};
use crate::client::RespClient;
use crate::nodes::{Node, Options};
use crate::support::{PATIENCE, within};

/// Single messages whose time is measured.
const SINGLES: usize = 1_000;
/// Messages in a row whose rate is measured.
const FLOOD: usize = 20_000;
/// Messages in a row whose processor time is measured: its clock is coarse.
const LONG_FLOOD: usize = 200_000;
/// Connections that listen while it is.
const LISTENERS: usize = 20;
/// Names that are listened to for their memory.
const NAMES: usize = 20_000;

/// The processor time that a process has used.
fn processor(pid: u32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').context("a name stands in parentheses")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks =
        |place: usize| -> Result<u64> { Ok(fields.get(place).context("too few fields")?.parse()?) };
    // User and system, in hundredths of a second.
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}

/// The memory of a process, in bytes.
fn memory(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

async fn subscriber(node: &Node, channel: &str) -> Result<RespClient> {
    let mut client = node.client().await?;
    client.call(&["SUBSCRIBE", channel]).await?;
    Ok(client)
}

// Each measurement has a channel of its own: what one node published is still on its way to the
// others when its own listeners have it, and a listener that another node gets in time
// receives it.

/// The median and the 99th percentile of the time from PUBLISH to its message.
async fn latency(from: &Node, to: &Node, channel: &str) -> Result<(Duration, Duration)> {
    let mut listener = subscriber(to, channel).await?;
    let mut publisher = from.client().await?;
    let mut times = Vec::with_capacity(SINGLES);
    for number in 0..SINGLES {
        let began = Instant::now();
        publisher.command(&["PUBLISH", channel, &number.to_string()]).await?;
        let came = listener.next().await?;
        times.push(began.elapsed());
        ensure!(came.payload()? == number.to_string().as_bytes(), "{came}");
        publisher.next().await?;
    }
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    Ok((at(50), at(99)))
}

/// Deliveries a second when so many listen, spread over these nodes, and one
/// publishes on the first.
async fn rate(nodes: &[&Node], channel: &str) -> Result<f64> {
    let mut listening = Vec::new();
    for place in 0..LISTENERS {
        let node = nodes.get(place % nodes.len()).context("there is a node")?;
        let mut client = subscriber(node, channel).await?;
        listening.push(tokio::spawn(async move {
            let patience = PATIENCE * 3;
            within(patience, "the flood", client.next_many(FLOOD)).await??;
            client.nothing(1).await
        }));
    }
    let first = nodes.first().context("there is a node")?;
    let began = Instant::now();
    flood(first, channel, FLOOD).await?;
    for listening in listening {
        listening.await??;
    }
    Ok((FLOOD * LISTENERS) as f64 / began.elapsed().as_secs_f64())
}

async fn flood(node: &Node, channel: &str, messages: usize) -> Result<()> {
    let mut publisher = node.client().await?;
    let payload = "x".repeat(100);
    for _ in 0..messages / 100 {
        let mut bytes = Vec::new();
        for _ in 0..100 {
            bytes.extend(crate::value::command(&["PUBLISH", channel, &payload]));
        }
        publisher.send(&bytes).await?;
        publisher.next_many(100).await?;
    }
    Ok(())
}

async fn cost(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let options = Options {
        config: "[limits]\nsubscriptions_max = 20000\n".to_owned(),
        ..Options::default()
    };
    let (a, b) =
        tokio::try_join!(Node::start(&backplane, &options), Node::start(&backplane, &options),)?;
    let local = latency(&a, &a, "near").await?;
    let through = latency(&a, &b, "far").await?;
    println!(
        "{kind:?}: from PUBLISH to the message, median and 99th percentile: {local:?} on one node, \
         {through:?} on another"
    );
    let (one, two) = (rate(&[&a], "one").await?, rate(&[&a, &b], "two").await?);
    println!(
        "{kind:?}: deliveries/s to {LISTENERS} listeners: {one:.0} on one node, {two:.0} on two"
    );

    // What one message takes of each process: one listener, on the other node.
    let mut listener = subscriber(&b, "long").await?;
    let pids = [a.server.id(), backplane.pid()?, b.server.id()];
    let before = pids.map(processor);
    let listening = listener.next_many(LONG_FLOOD);
    let began = Instant::now();
    let (published, came) =
        tokio::join!(flood(&a, "long", LONG_FLOOD), within(PATIENCE * 3, "the flood", listening));
    published?;
    came??;
    let elapsed = began.elapsed().as_secs_f64();
    let [publishing, between, receiving] = took(pids, before, LONG_FLOOD)?;
    println!(
        "{kind:?}: messages/s from node to node: {:.0}; µs of processor a message: publishing \
         node {publishing:.2}, backplane {between:.2}, receiving node {receiving:.2}",
        LONG_FLOOD as f64 / elapsed
    );

    // What one name takes of each.
    let pids = [backplane.pid()?, b.server.id()];
    let before = pids.map(memory);
    let processor_before = pids.map(processor);
    let mut client = b.client().await?;
    let began = Instant::now();
    subscribe_to_names(&mut client).await?;
    let elapsed = began.elapsed();
    let [between, listening] = took(pids, processor_before, NAMES)?;
    let mut bytes = pids
        .map(memory)
        .into_iter()
        .zip(before)
        .map(|(after, before)| anyhow::Ok(after?.saturating_sub(before?) / NAMES as u64));
    let mut bytes = || bytes.next().context("there are two");
    println!(
        "{kind:?}: a name takes {} bytes of the backplane and {} of the node, and {between:.1} and \
         {listening:.1} µs of processor; {NAMES} names were acknowledged in {elapsed:?}",
        bytes()??,
        bytes()??
    );
    Ok(())
}

async fn subscribe_to_names(client: &mut RespClient) -> Result<()> {
    for first in (0..NAMES).step_by(10_000) {
        let names: Vec<String> = (first..first + 10_000).map(|n| format!("name.{n}")).collect();
        let words: Vec<&str> =
            ["SUBSCRIBE"].into_iter().chain(names.iter().map(String::as_str)).collect();
        client.command(&words).await?;
        client.next_many(10_000).await?;
    }
    Ok(())
}

/// What each process took of a processor for each of so many, in microseconds.
fn took<const N: usize>(
    pids: [u32; N],
    before: [Result<Duration>; N],
    count: usize,
) -> Result<[f64; N]> {
    let mut all = [0.0; N];
    for ((slot, pid), before) in all.iter_mut().zip(pids).zip(before) {
        *slot = (processor(pid)? - before?).as_micros() as f64 / count as f64;
    }
    Ok(all)
}

/// For comparison: what a name takes of a node without a backplane, and its rate.
#[tokio::test]
async fn cost_without_a_backplane() -> Result<()> {
    let node = Node::alone(&Options {
        config: "[limits]\nsubscriptions_max = 20000\n".to_owned(),
        ..Options::default()
    })
    .await?;
    println!("alone: from PUBLISH to the message: {:?}", latency(&node, &node, "near").await?);
    println!("alone: deliveries/s to {LISTENERS} listeners: {:.0}", rate(&[&node], "one").await?);
    let before = memory(node.server.id())?;
    let mut client = node.client().await?;
    subscribe_to_names(&mut client).await?;
    let bytes = (memory(node.server.id())? - before) / NAMES as u64;
    println!("alone: a name takes {bytes} bytes of the node");
    Ok(())
}

#[tokio::test]
async fn cost_of_redis() -> Result<()> {
    cost(Kind::Redis).await
}

#[tokio::test]
async fn cost_of_nats() -> Result<()> {
    cost(Kind::Nats).await
}
