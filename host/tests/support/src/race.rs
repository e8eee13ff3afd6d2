//! Clients of a race: they disconnect at random, resume, and check that they receive each message
//! once and in order. Publishers number their messages from 0.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::answers::ask;
use crate::server::Server;
use crate::websocket::Client;
use crate::{PATIENCE, within};

/// How large a race is. `SWITCHYARD_RACE_CLIENTS` and `SWITCHYARD_RACE_SECONDS` change it.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// How many clients disconnect and resume.
    pub clients: usize,
    /// How many channels there are, each with one publisher.
    pub channels: usize,
    /// How long it takes at least.
    pub time: Duration,
}

impl Size {
    /// This size, unless the environment says otherwise.
    pub fn from_environment(self) -> Result<Size> {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>());
        let clients = number("SWITCHYARD_RACE_CLIENTS").transpose()?;
        let seconds = number("SWITCHYARD_RACE_SECONDS").transpose()?;
        Ok(Size {
            clients: clients.map_or(Ok(self.clients), usize::try_from)?,
            time: seconds.map_or(self.time, Duration::from_secs),
            ..self
        })
    }
}

/// The server of a node, by its number.
pub trait Servers: Send + Sync + 'static {
    /// How many there are.
    fn count(&self) -> usize;
    /// One of them.
    fn server(&self, number: usize) -> &Server;
}

impl Servers for Server {
    fn count(&self) -> usize {
        1
    }

    fn server(&self, _: usize) -> &Server {
        self
    }
}

/// A race that is going on.
pub struct Race<S> {
    servers: Arc<S>,
    /// The beginning of the channels' names.
    channels: String,
    seed: u64,
    is_over: Arc<AtomicBool>,
    publishers: Vec<JoinHandle<Result<u64>>>,
    racers: Vec<JoinHandle<Result<Racer>>>,
}

impl<S: Servers> Race<S> {
    /// Starts the publishers and the clients. `channels` is the beginning of the channels' names. The
    /// seed is printed.
    pub async fn start(servers: &Arc<S>, channels: &str, size: Size) -> Result<Race<S>> {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let is_over = Arc::new(AtomicBool::new(false));
        let mut publishers = Vec::new();
        for number in 0..size.channels {
            let client = servers.server(number % servers.count()).client().await?;
            let channel = format!("{channels}{number}");
            publishers.push(tokio::spawn(publish(client, channel, is_over.clone())));
        }
        let racers = (0..size.clients).map(|number| {
            let channel = format!("{channels}{}", number % size.channels);
            let racer = Racer { channel, seed, position: None, last: None, recovered: 0 };
            let random = Rng::with_seed(seed ^ number as u64);
            tokio::spawn(racer.run(servers.clone(), random, size.time))
        });
        let racers = racers.collect();
        Ok(Race {
            servers: servers.clone(),
            channels: channels.to_owned(),
            seed,
            is_over,
            publishers,
            racers,
        })
    }

    /// Waits for all, and checks that each client can recover everything that was published. Returns
    /// how often clients recovered, and how many messages were published.
    pub async fn end(self) -> Result<(u64, u64)> {
        let Race { servers, channels, seed, is_over, publishers, racers } = self;
        let mut ended = Vec::new();
        for racer in racers {
            ended.push(racer.await??);
        }
        is_over.store(true, Ordering::Relaxed);
        let mut published = 0;
        for (number, publisher) in publishers.into_iter().enumerate() {
            let count = publisher.await??;
            published += count;
            let channel = format!("{channels}{number}");
            for racer in ended.iter_mut().filter(|racer| racer.channel == channel) {
                racer.finish(servers.server(0)).await?;
                let last = racer.last.map(|last| last + 1);
                ensure!(last == Some(count), "{last:?} of {count}, seed {seed}");
            }
        }
        Ok((ended.iter().map(|racer| racer.recovered).sum(), published))
    }
}

/// Publishes until the race is over. The key makes it safe to try again.
async fn publish(mut client: Client, channel: String, is_over: Arc<AtomicBool>) -> Result<u64> {
    let mut number = 0_u64;
    while !is_over.load(Ordering::Relaxed) {
        let payload = number.to_string();
        let publication = json!(["PUBLISH", channel, payload, {"key": payload}]);
        let publishing = within(PATIENCE, "a publication", async {
            while client.call(publication.clone()).await?.get(0) != Some(&json!("OK")) {
                tokio::task::yield_now().await;
            }
            anyhow::Ok(())
        });
        publishing.await??;
        number += 1;
    }
    Ok(number)
}

/// What one client has received of its channel.
struct Racer {
    channel: String,
    seed: u64,
    position: Option<String>,
    last: Option<u64>,
    recovered: u64,
}

impl Racer {
    async fn run(
        mut self,
        servers: Arc<impl Servers>,
        mut random: Rng,
        time: Duration,
    ) -> Result<Racer> {
        let began = Instant::now();
        // A slow machine takes longer to come back twice.
        while began.elapsed() < time || self.recovered < 2 {
            let number = random.usize(..servers.count());
            let mut client = servers.server(number).client().await?;
            let Some(missed) = self.resume(&mut client).await? else { continue };
            // Some disconnect before they have received all that they missed.
            let count = match random.u8(..4) {
                0 => random.u64(..=missed),
                _ => missed + random.u64(..200),
            };
            for _ in 0..count {
                self.take(&client.next_json().await?)?;
            }
        }
        Ok(self)
    }

    /// Returns how many messages follow; none: the backplane is away.
    async fn resume(&mut self, client: &mut Client) -> Result<Option<u64>> {
        let answer = client.call(json!(["RESUME", self.channel, self.position])).await?;
        if answer.get(0) != Some(&json!("OK")) {
            ensure!(answer.pointer("/1/code") == Some(&json!("UNAVAILABLE")), "{answer}");
            return Ok(None);
        }
        let answer = answer.get(1).cloned().unwrap_or_default();
        let was_known = self.position.is_some();
        let is_recovered = answer.get("recovered") == Some(&json!(was_known));
        ensure!(is_recovered, "{answer}, seed {}", self.seed);
        self.recovered += u64::from(was_known);
        if !was_known {
            self.position = answer.get("position").and_then(Value::as_str).map(str::to_owned);
        }
        answer.get("missed").and_then(Value::as_u64).context("no number").map(Some)
    }

    /// Checks a message: each number follows the one before.
    fn take(&mut self, message: &Value) -> Result<()> {
        let payload = message.get(2).and_then(Value::as_str);
        let number: u64 = payload.with_context(|| message.to_string())?.parse()?;
        if let Some(last) = self.last {
            ensure!(number == last + 1, "{number} after {last}, seed {}", self.seed);
        }
        self.last = Some(number);
        let position = message.pointer("/3/position").and_then(Value::as_str);
        self.position = Some(position.context("no position")?.to_owned());
        Ok(())
    }

    /// Receives everything that is left.
    async fn finish(&mut self, server: &Server) -> Result<()> {
        let mut client = server.client().await?;
        let answer = ask(&mut client, json!(["RESUME", self.channel, self.position])).await?;
        ensure!(answer.get("recovered") == Some(&json!(true)), "{answer}, seed {}", self.seed);
        for _ in 0..answer.get("missed").and_then(Value::as_u64).context("no number")? {
            self.take(&client.next_json().await?)?;
        }
        Ok(())
    }
}
