//! Publishers at full speed, and readers that lose their connections at random.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use guest_core::model::Random;

use super::{entries, server};
use crate::client::RespClient;
use crate::value::{Value, command};

const CHANNELS: usize = 2;
/// Of each channel.
const PUBLISHERS: usize = 2;
const READERS: usize = 12;
const BURSTS: usize = 400;
const BURST: usize = 10;

/// Publishes numbers, by PUBLISH and XADD in turn.
async fn publish(mut client: RespClient, channel: String, publisher: usize) -> Result<()> {
    for burst in 0..BURSTS {
        let mut bytes = Vec::new();
        for number in 0..BURST {
            let payload = format!("{publisher}:{}", burst * BURST + number);
            bytes.extend(match (burst + number) % 3 {
                0 => command(&["PUBLISH", &channel, &payload]),
                _ => command(&["XADD", &channel, "*", "payload", &payload]),
            });
        }
        client.send(&bytes).await?;
        for reply in client.next_many(BURST).await? {
            ensure!(matches!(reply, Value::Integer(0) | Value::Bulk(_)), "{reply}");
        }
    }
    Ok(())
}

/// What a reader has.
struct Reader {
    channel: String,
    last: String,
    next: [usize; PUBLISHERS],
    received: usize,
    connections: usize,
}

impl Reader {
    fn take(&mut self, id: String, payload: &str) -> Result<()> {
        let offset =
            |id: &str| -> Result<u64> { Ok(id.split_once('-').context("no position")?.1.parse()?) };
        let before = if self.last == "0" { 0 } else { offset(&self.last)? };
        ensure!(offset(&id)? == before + 1, "{id} after {}", self.last);
        let (publisher, number) = payload.split_once(':').context("another payload")?;
        let next = self.next.get_mut(publisher.parse::<usize>()?).context("another publisher")?;
        ensure!(number.parse() == Ok(*next), "{payload} instead of {next}");
        *next += 1;
        self.last = id;
        self.received += 1;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_reconnect_at_random_lose_nothing() -> Result<()> {
    const ALL: usize = PUBLISHERS * BURSTS * BURST;
    // It prints its seed.
    let mut random = Random::from_environment();
    let server = Arc::new(server().await?);
    let address = server.resp_address().await?;
    let waits = Arc::new(AtomicUsize::new(0));
    let mut readers = Vec::new();
    for reader in 0..READERS {
        let mut random = Random::new(random.number());
        let (waits, server) = (waits.clone(), server.clone());
        let channel = format!("chat.{}", reader % CHANNELS);
        let mut reader =
            Reader { channel, last: "0".to_owned(), next: [0; 2], received: 0, connections: 0 };
        readers.push(tokio::spawn(async move {
            while reader.received < ALL {
                reader.connections += 1;
                let mut client = match random.index(3) {
                    0 => RespClient::connect_framed(&server, random.number()).await?,
                    _ => RespClient::connect(address).await?,
                };
                for _ in 0..random.index(40) {
                    let count = (1 + random.index(300)).to_string();
                    let block = random.pick(&["0", "1", "50"]);
                    let read = [
                        "XREAD",
                        "COUNT",
                        &count,
                        "BLOCK",
                        block,
                        "STREAMS",
                        &reader.channel,
                        &reader.last,
                    ];
                    if reader.received == ALL {
                        break;
                    }
                    client.command(&read).await?;
                    // Some leave while they wait, and some before they read the reply.
                    if random.index(20) == 0 {
                        break;
                    }
                    let came = entries(client.next().await?)?;
                    ensure!(came.len() <= count.parse()?, "{} of {count}", came.len());
                    waits.fetch_add(usize::from(came.len() < 3), Ordering::Relaxed);
                    for (id, payload) in came {
                        reader.take(id, &payload)?;
                    }
                }
            }
            anyhow::Ok(reader)
        }));
    }
    let mut publishers = Vec::new();
    for channel in 0..CHANNELS {
        for publisher in 0..PUBLISHERS {
            let client = RespClient::connect(address).await?;
            let channel = format!("chat.{channel}");
            publishers.push(tokio::spawn(publish(client, channel, publisher)));
        }
    }
    for publisher in publishers {
        publisher.await??;
    }
    for reader in readers {
        let reader = reader.await??;
        assert_eq!(reader.next, [BURSTS * BURST; 2]);
        ensure!(reader.connections > 1, "it did not reconnect");
    }
    ensure!(waits.load(Ordering::Relaxed) > 0, "none waited");
    Ok(())
}

/// A publication at the moment in which a reader begins to wait. What is published after its look and
/// before its wait must not be lost, so many channels are between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_publication_falls_between_a_look_and_a_wait() -> Result<()> {
    const ROUNDS: usize = 3_000;
    const OTHERS: usize = 200;
    let mut random = Random::from_environment();
    let server = server().await?;
    let address = server.resp_address().await?;
    let mut reader = RespClient::connect(address).await?;
    let mut publisher = RespClient::connect(address).await?;
    let mut names = vec!["chat.1".to_owned()];
    names.extend((0..OTHERS).map(|other| format!("chat.other.{other}")));
    let mut last = "0".to_owned();
    for round in 0..ROUNDS {
        let mut words: Vec<String> = ["XREAD", "BLOCK", "0", "STREAMS"].map(str::to_owned).into();
        words.extend(names.iter().cloned());
        words.push(last);
        words.extend((0..OTHERS).map(|_| "0".to_owned()));
        let read = command(&words);
        // The read begins sooner or later, as many commands before it as that takes.
        let pings = [random.index(40), random.index(40)];
        let [before, after] = pings.map(|count| command(&["PING"]).repeat(count));
        let payload = round.to_string();
        let add = command(&["XADD", "chat.1", "*", "payload", &payload]);
        let (reading, publishing) = ([before.as_slice(), &read].concat(), [after, add].concat());
        tokio::try_join!(reader.send(&reading), publisher.send(&publishing))?;
        reader.next_many(pings[0]).await?;
        let came = entries(reader.next().await?)?;
        let (id, found) = came.first().context("nothing was read")?;
        ensure!(*found == payload && came.len() == 1, "{came:?} instead of {payload}");
        last = id.clone();
        publisher.next_many(pings[1] + 1).await?;
    }
    drop((reader, publisher));
    server.stop().await
}
