//! Plugins and the engine are swapped again and again while messages flow.
//!
//! No client is disconnected, no message is lost, duplicated or reordered, and each message is
//! processed by one version of the plugin: by the new one, as soon as its swap has been logged.
//! The waiting times of messages are printed.
//!
//! `SWITCHYARD_SWAP_SECONDS` says how long each load lasts (20).

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::support::components;
use crate::support::server::{Launch, Server};
use crate::support::websocket::{Client, Upgrade};
use crate::tokens;

/// Shutdown does not wait long for clients that the test no longer reads from.
const CONFIG: &str = "shutdown.timeout_ms = 100";

const CONNECTIONS: usize = 50;
const MESSAGES_PER_SECOND: usize = 2_000;
/// How many connections receive each publication: the publisher, the two before it, and a third by
/// a pattern.
const LISTENERS: u64 = 4;

const PLUGIN_PACE: Duration = Duration::from_millis(200);
const PLUGIN_AIM: Duration = Duration::from_millis(5);
const ENGINE_PACE: Duration = Duration::from_millis(500);
const ENGINE_AIM: Duration = Duration::from_millis(50);
/// The upper bound of a pause, however busy the machine is.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The plugins of the chain, one after the other.
const CHAIN_PACE: Duration = Duration::from_millis(100);
/// How often each plugin of the chain is swapped.
const CHAIN_SWAPS: u32 = 8;
/// How many unanswered messages one connection may have at full speed.
const UNANSWERED_MAX: usize = 16;
/// The suffix of the last message, after its number.
const END: &str = "end";
/// How many messages one user may publish during the test.
const NOISY_MESSAGES: usize = 20;

const SHARDS: usize = 2;
/// Further channels that the engine holds, besides those on which messages flow.
const HELD_BY_EACH: usize = 2_000;

/// How many builds of the probe are used in rotation. The server keeps that many compiled.
const BUILDS: u32 = 8;

/// One load after the other: each needs the machine for itself.
static ALONE: Mutex<()> = Mutex::const_new(());

fn duration() -> Result<Duration> {
    let seconds = match std::env::var("SWITCHYARD_SWAP_SECONDS") {
        Ok(seconds) => seconds.parse().context("SWITCHYARD_SWAP_SECONDS is a whole number")?,
        Err(_) => 20,
    };
    Ok(Duration::from_secs(seconds))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_is_swapped_and_every_message_meets_one_version() -> Result<()> {
    let load = plugin_load(&json!({"on_publish": "stamp"})).await?;
    for talker in &load.talkers {
        let stamps = talker.own().iter().map(|tail| tail.strip_prefix('@').unwrap_or(tail));
        talker.check_stamps(stamps)?;
    }
    load.server.stop().await
}

/// Both hooks of a message run in the same version, and the numbers, which the versions hand over,
/// continue through all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_is_swapped_and_its_numbers_go_on() -> Result<()> {
    let both = json!(["stamp", "number"]);
    let load = plugin_load(&json!({"on_publish": both, "on_deliver": both})).await?;
    let mut numbers = BTreeSet::new();
    for talker in &load.talkers {
        let mut stamps = Vec::new();
        for tail in talker.own() {
            let treated: Vec<_> = tail.split('@').filter_map(|by| by.split_once('#')).collect();
            let [(on_publish, first), (on_deliver, second)] = treated[..] else {
                bail!("it was not treated once by each hook: {tail}")
            };
            ensure!(on_publish == on_deliver, "two versions treated one message: {tail}");
            stamps.push(on_publish);
            for number in [first, second] {
                ensure!(numbers.insert(number.parse::<usize>()?), "{number} came twice");
            }
        }
        talker.check_stamps(stamps)?;
    }
    let expected = 2 * CONNECTIONS * load.messages_of_each;
    assert_eq!(numbers.len(), expected);
    assert_eq!((numbers.first(), numbers.last()), (Some(&1), Some(&expected)), "there are gaps");
    load.server.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_is_swapped_with_100_000_subscriptions() -> Result<()> {
    let _alone = ALONE.lock().await;
    let home = components::directory()?;
    let file = home.path().join("engine.wasm");
    let engine = components::built("guest-core")?;
    components::write_atomically(&file, &engine)?;
    let config = format!(
        "{CONFIG}\nlimits.subscriptions_max = 100000\nengine.shards = {SHARDS}
        engine.file = {file:?}"
    );
    let server = Launch::with_config(&config).start().await?;
    server.wait_for_log("changes of files are watched").await?;
    let mut talkers = talkers(&server, Rhythm::paced()?, "", |_| Ok("/ws".to_owned())).await?;
    for talker in &mut talkers {
        talker.hold_many().await?;
    }
    let visits = visit(server.client().await?);
    let swaps = Arc::new(Swaps::default());
    let swapping = swap(&server, &swaps, ENGINE_PACE, "the engine was swapped", |generation| {
        components::write_atomically(&file, &components::rehashed(engine.clone(), generation))
    });
    let mut talkers = tokio::select! {
        talked = talk(talkers, &swaps) => talked?,
        failed = swapping => match failed? {},
        failed = visits => match failed.context("the visitor")? {},
    };
    check_agreement(&talkers)?;
    let log = server.log();
    Pauses::of(&log, "the engine was swapped")?.check("engine", ENGINE_AIM, ENGINE_PACE)?;

    check_held(&mut server.client().await?).await?;
    for talker in &mut talkers {
        talker.still_holds_many().await?;
    }
    server.stop().await
}

/// The bundled plugins, in a chain, while each is replaced again and again: authenticated
/// connections stay authenticated, every message is masked as the rules demand, and no limit
/// is reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_is_swapped_and_what_it_knows_is_kept() -> Result<()> {
    let _alone = ALONE.lock().await;
    let chain = [
        (
            "05-jwt-auth",
            json!({
                "keys": [{"algorithm": "HS256", "secret": tokens::SECRET}],
                "without_token": "refuse",
            }),
        ),
        (
            "10-acl",
            json!({"rules": [
                // A connection that lost its user could no longer publish on its own channel.
                {"users": ["@authenticated"], "subscribe": ["live.*"], "publish": ["live.{sub}.m"]},
                {"roles": ["guest"], "subscribe": ["hall"], "publish": ["hall"]},
            ]}),
        ),
        (
            "15-rate-limit",
            json!({"limits": [
                {"name": "all", "of": "publishes", "per": "user", "rate": 1_000_000},
                {"name": "noisy", "of": "publishes", "per": "user", "users": ["noisy"],
                 "rate": NOISY_MESSAGES, "every_ms": 86_400_000},
            ]}),
        ),
        (
            "20-redact",
            json!({"rules": [{"channels": ["live.*"], "regex": "secret", "action": "mask"}]}),
        ),
    ];
    let directory = components::directory()?;
    let mut builds = Vec::new();
    for (name, settings) in &chain {
        let component = components::built(name.get(3..).context("a number and a name")?)?;
        let two = [0, 1].map(|salt| components::rehashed(component.clone(), salt));
        components::install(directory.path(), name, &two[1], settings)?;
        builds.push((components::path(directory.path(), name), two));
    }
    let plugins = Some(directory.path().to_owned());
    let server = Launch { plugins, ..Launch::with_config(CONFIG) }.start().await?;
    server.wait_for_log("changes of files are watched").await?;

    let path = |claims: Value| -> Result<String> {
        Ok(format!("/ws?token={}", tokens::token("HS256", None, &claims)?))
    };
    let path_of = |number: usize| path(json!({"sub": number.to_string(), "exp": "now+600"}));
    let rhythm = Rhythm::Fast { swaps: CHAIN_SWAPS * chain.len() as u32 };
    let talkers = talkers(&server, rhythm, "secret", path_of).await?;
    let passed = AtomicU32::new(0);
    let refused = AtomicU32::new(0);
    let guest = |name: &str| path(json!({"sub": name, "roles": ["guest"], "exp": "now+600"}));
    let noise = make_noise(connect(&server, guest("noisy")?).await?, &passed, &refused);
    let arrivals = arrive(&server, guest("arrival")?);
    let swaps = Arc::new(Swaps::default());
    let swapping = swap(&server, &swaps, CHAIN_PACE, "a plugin was swapped", |generation| {
        let iteration = generation as usize - 1;
        let (file, builds) = builds.get(iteration % chain.len()).context("one of the chain")?;
        let build = builds.get(iteration / chain.len() % 2).context("one of two")?;
        components::write_atomically(file, build)
    });
    let talkers = tokio::select! {
        talked = talk(talkers, &swaps) => talked?,
        failed = swapping => match failed? {},
        failed = noise => match failed.context("the noisy one")? {},
        failed = arrivals => match failed.context("an arriving client")? {},
    };
    check_agreement(&talkers)?;
    for talker in &talkers {
        let (end, masked) = talker.own().split_last().context("it said nothing")?;
        ensure!(end == END && masked.iter().all(|tail| tail == "***"), "something passed unmasked");
    }
    let (passed, refused) = (passed.into_inner(), refused.into_inner());
    println!("of the noisy one {passed} messages passed and {refused} were refused");
    ensure!(passed as usize == NOISY_MESSAGES && refused > 0, "{passed} of its messages passed");
    let log = server.log();
    for (name, _) in &chain {
        let name = name.get(3..).unwrap_or_default();
        let of_it = |line: &&str| line.contains(&format!("plugin={name}@"));
        let swaps = log.lines().filter(|line| line.contains("a plugin was swapped")).filter(of_it);
        let swaps: Vec<_> = swaps.collect();
        ensure!(swaps.len() >= CHAIN_SWAPS as usize, "{name}: {} swaps", swaps.len());
        Pauses::of(&swaps.join("\n"), "a plugin was swapped")?.print(name, PLUGIN_AIM)?;
    }
    server.stop().await
}

/// A finished load, with all received messages.
struct Load {
    server: Server,
    talkers: Vec<Talker>,
    messages_of_each: usize,
    _directory: tempfile::TempDir,
}

/// Messages flow through a probe plugin while it is swapped. Checks everything that does not
/// depend on its settings.
async fn plugin_load(settings: &Value) -> Result<Load> {
    let _alone = ALONE.lock().await;
    let directory = components::directory()?;
    let builds = (0..BUILDS)
        .map(|stamp| components::stamped(components::built("test/probe")?, stamp))
        .collect::<Result<Vec<_>>>()?;
    let build = |generation: u32| builds.get((generation % BUILDS) as usize).context("a build");
    components::install(directory.path(), "probe", build(0)?, settings)?;
    let plugins = Some(directory.path().to_owned());
    let server = Launch { plugins, ..Launch::with_config(CONFIG) }.start().await?;
    server.wait_for_log("changes of files are watched").await?;

    let talkers = talkers(&server, Rhythm::paced()?, "", |_| Ok("/ws".to_owned())).await?;
    let swaps = Arc::new(Swaps::default());
    let file = components::path(directory.path(), "probe");
    let swapping = swap(&server, &swaps, PLUGIN_PACE, "a plugin was swapped", |generation| {
        components::write_atomically(&file, build(generation)?)
    });
    let talkers = tokio::select! {
        talked = talk(talkers, &swaps) => talked?,
        failed = swapping => match failed? {},
    };
    let messages_of_each = check_agreement(&talkers)?;
    let pauses = Pauses::of(&server.log(), "a plugin was swapped")?;
    pauses.check("plugin", PLUGIN_AIM, PLUGIN_PACE)?;
    Ok(Load { server, talkers, messages_of_each, _directory: directory })
}

/// The progress of the swaps. A message that is sent while `done` is N is processed by generation N
/// or a later one; a message that is answered while `begun` is N, by generation N or an earlier
/// one.
#[derive(Default)]
struct Swaps {
    begun: AtomicU32,
    done: AtomicU32,
}

/// Swaps at this pace, or as fast as the server permits, until it is dropped.
async fn swap(
    server: &Server,
    swaps: &Swaps,
    pace: Duration,
    logged: &str,
    replace: impl Fn(u32) -> Result<()>,
) -> Result<Infallible> {
    let mut ticks = tokio::time::interval(pace);
    ticks.tick().await;
    for generation in 1.. {
        ticks.tick().await;
        swaps.begun.store(generation, Ordering::SeqCst);
        replace(generation)?;
        server.wait_for_logs(logged, generation as usize).await?;
        swaps.done.store(generation, Ordering::SeqCst);
    }
    bail!("there are no more numbers")
}

/// A connection that publishes and listens.
struct Talker {
    number: usize,
    client: Client,
    rhythm: Rhythm,
    /// The suffix of each message, after its number.
    says: &'static str,
    /// Whether it has published its last message.
    has_ended: bool,
    published: Vec<Published>,
    answered: usize,
    /// The longest time that it waited for an answer.
    wait: Duration,
    /// For each channel, the suffix of each received message.
    received: BTreeMap<String, Vec<String>>,
}

/// How fast a talker publishes, and when it ends.
#[derive(Clone, Copy)]
enum Rhythm {
    /// This many messages, at the common pace.
    Paced { messages: usize },
    /// As fast as replies arrive, until this many swaps are done; the last message marks the end.
    Fast { swaps: u32 },
}

impl Rhythm {
    fn paced() -> Result<Rhythm> {
        let seconds = duration()?.as_secs() as usize;
        Ok(Rhythm::Paced { messages: MESSAGES_PER_SECOND * seconds / CONNECTIONS })
    }

    fn ticks(self) -> Duration {
        match self {
            Rhythm::Paced { .. } => {
                Duration::from_secs(1) * CONNECTIONS as u32 / MESSAGES_PER_SECOND as u32
            }
            Rhythm::Fast { .. } => Duration::from_millis(1),
        }
    }
}

/// A message in flight: the first and the last generation that may have processed it. The last one
/// is known when the message has been answered.
struct Published {
    at: Instant,
    first: u32,
    last: Option<u32>,
}

fn channel(number: usize) -> String {
    format!("live.{}.m", number % CONNECTIONS)
}

fn pattern(number: usize) -> String {
    format!("live.{}.*", number % CONNECTIONS)
}

fn held(number: usize, index: usize) -> String {
    format!("held.{number}.{index}")
}

async fn talkers(
    server: &Server,
    rhythm: Rhythm,
    says: &'static str,
    path_of: impl Fn(usize) -> Result<String>,
) -> Result<Vec<Talker>> {
    let mut talkers = Vec::new();
    for number in 0..CONNECTIONS {
        let mut client = connect(server, path_of(number)?).await?;
        for channel in (number..number + 3).map(channel) {
            client.call(json!(["SUBSCRIBE", channel])).await?;
        }
        let answer = client.call(json!(["PSUBSCRIBE", pattern(number + 3)])).await?;
        ensure!(answer == json!(["OK", 4]), "answered {answer}");
        let received = (number..number + 4).map(|number| (channel(number), Vec::new())).collect();
        let (published, answered, wait) = (Vec::new(), 0, Duration::ZERO);
        let has_ended = false;
        talkers.push(Talker {
            number,
            client,
            rhythm,
            says,
            has_ended,
            published,
            answered,
            wait,
            received,
        });
    }
    Ok(talkers)
}

async fn connect(server: &Server, path: String) -> Result<Client> {
    let upgrade = Upgrade { path, ..Upgrade::default() };
    let refused = |refused| anyhow!("the upgrade was refused: {refused:?}");
    Client::connect(server.address().await?, &upgrade).await?.map_err(refused)
}

/// Publishes all the time, and counts the accepted messages.
async fn make_noise(
    mut client: Client,
    passed: &AtomicU32,
    refused: &AtomicU32,
) -> Result<Infallible> {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    loop {
        ticks.tick().await;
        let answer = client.call(json!(["PUBLISH", "hall", "x"])).await?;
        let is_limited = answer.pointer("/1/code") == Some(&json!("LIMIT"));
        ensure!(is_limited || answer.get(0) == Some(&json!("OK")), "answered {answer}");
        if is_limited { refused } else { passed }.fetch_add(1, Ordering::SeqCst);
    }
}

/// Connects, subscribes and disconnects, again and again.
async fn arrive(server: &Server, path: String) -> Result<Infallible> {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    loop {
        ticks.tick().await;
        let mut client = connect(server, path.clone()).await?;
        let answer = client.call(json!(["PSUBSCRIBE", "hal[l]"])).await?;
        ensure!(answer == json!(["OK", 1]), "answered {answer}");
    }
}

/// Makes all of them publish and receive until each has received everything.
async fn talk(talkers: Vec<Talker>, swaps: &Arc<Swaps>) -> Result<Vec<Talker>> {
    let began = Instant::now();
    let mut talking = JoinSet::new();
    for talker in talkers {
        let number = talker.number;
        let (talk, swaps) = (talker.talk(swaps.clone()), swaps.clone());
        talking.spawn(async move {
            let begun = || swaps.begun.load(Ordering::SeqCst);
            talk.await.with_context(|| format!("connection {number}, in swap {}", begun()))
        });
    }
    let mut talkers = Vec::new();
    while let Some(talked) = talking.join_next().await {
        talkers.push(talked??);
    }
    talkers.sort_by_key(|talker: &Talker| talker.number);
    let messages: usize = talkers.iter().map(|talker| talker.published.len()).sum();
    let per_second = messages as f64 / began.elapsed().as_secs_f64();
    let wait = talkers.iter().map(|talker| talker.wait).max().unwrap_or_default();
    println!(
        "{messages} messages, each to {LISTENERS} of {CONNECTIONS} connections, \
         {per_second:.0} a second; the longest wait for an answer {wait:?}"
    );
    Ok(talkers)
}

impl Talker {
    async fn talk(mut self, swaps: Arc<Swaps>) -> Result<Talker> {
        let mut ticks = tokio::time::interval(self.rhythm.ticks());
        while !self.is_done() {
            let may_go_on = match self.rhythm {
                Rhythm::Paced { .. } => true,
                Rhythm::Fast { .. } => self.published.len() - self.answered < UNANSWERED_MAX,
            };
            tokio::select! {
                _ = ticks.tick(), if !self.has_ended && may_go_on => {
                    self.publish(&swaps).await?;
                }
                said = self.client.next_json() => self.take(&said?, &swaps)?,
            }
        }
        // It is still connected, and nothing arrived after the last message.
        ensure!(self.client.call(json!(["PING"])).await? == json!(["OK", "PONG"]));
        Ok(self)
    }

    fn is_done(&self) -> bool {
        let is_complete = |tails: &Vec<String>| match self.rhythm {
            Rhythm::Paced { messages } => tails.len() == messages,
            Rhythm::Fast { .. } => tails.last().is_some_and(|tail| tail == END),
        };
        self.has_ended
            && self.answered == self.published.len()
            && self.received.values().all(is_complete)
    }

    async fn publish(&mut self, swaps: &Swaps) -> Result<()> {
        let message = self.published.len();
        let first = swaps.done.load(Ordering::SeqCst);
        self.published.push(Published { at: Instant::now(), first, last: None });
        let tail = match self.rhythm {
            Rhythm::Fast { swaps: all } if first >= all => END,
            _ => self.says,
        };
        self.has_ended = match self.rhythm {
            Rhythm::Paced { messages } => message + 1 == messages,
            Rhythm::Fast { .. } => tail == END,
        };
        let payload = format!("{message}{tail}");
        let command = json!([message, "PUBLISH", channel(self.number), payload]);
        self.client.send(Message::text(command.to_string())).await
    }

    fn take(&mut self, said: &Value, swaps: &Swaps) -> Result<()> {
        let words = said.as_array().into_iter().flatten().map(Value::as_str);
        match words.collect::<Option<Vec<_>>>().as_deref() {
            Some(["message", channel, payload]) => self.receive(channel, payload),
            Some(["pmessage", by, channel, payload]) if *by == pattern(self.number + 3) => {
                self.receive(channel, payload)
            }
            _ => self.take_answer(said, swaps),
        }
        .with_context(|| said.to_string())
    }

    fn take_answer(&mut self, said: &Value, swaps: &Swaps) -> Result<()> {
        // One more if there is a visitor.
        let right =
            [LISTENERS, LISTENERS + 1].map(|receivers| json!([self.answered, "OK", receivers]));
        ensure!(right.contains(said), "expected the answer {}", right[0]);
        let published = self.published.get_mut(self.answered).context("an unexpected answer")?;
        published.last = Some(swaps.begun.load(Ordering::SeqCst));
        self.wait = self.wait.max(published.at.elapsed());
        self.answered += 1;
        Ok(())
    }

    fn receive(&mut self, channel: &str, payload: &str) -> Result<()> {
        let (number, tail) = numbered(payload)?;
        let is_own = channel == self::channel(self.number);
        let tails = self.received.get_mut(channel).context("it does not listen to this")?;
        ensure!(number == tails.len(), "expected number {}", tails.len());
        ensure!(!is_own || number < self.answered, "its copy came before the answer");
        tails.push(tail.to_owned());
        Ok(())
    }

    /// The suffixes of its own messages.
    fn own(&self) -> &[String] {
        self.received.get(&channel(self.number)).map_or(&[], Vec::as_slice)
    }

    /// Checks that each of its messages was stamped by a build that may have been active, and never
    /// by an earlier one than the message before.
    fn check_stamps<'a>(&self, stamps: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut generation = 0;
        for (message, (stamp, published)) in stamps.into_iter().zip(&self.published).enumerate() {
            let build: u32 = stamp.parse().with_context(|| format!("not one stamp: {stamp}"))?;
            let last = published.last.context("it was answered")?;
            let possible = generation.max(published.first)..=last;
            generation = possible.clone().find(|at| at % BUILDS == build).with_context(|| {
                format!(
                    "message {message} was stamped by build {build}, not by one of {possible:?}"
                )
            })?;
        }
        Ok(())
    }

    async fn hold_many(&mut self) -> Result<()> {
        let mut command = vec![json!("SUBSCRIBE")];
        command.extend((0..HELD_BY_EACH).map(|index| json!(held(self.number, index))));
        let answer = self.client.call(Value::Array(command)).await?;
        ensure!(answer == json!(["OK", HELD_BY_EACH + 4]), "answered {answer}");
        Ok(())
    }

    /// Publishes on some of the channels that it holds, and receives the messages.
    async fn still_holds_many(&mut self) -> Result<()> {
        for index in (0..HELD_BY_EACH).step_by(HELD_BY_EACH / 10) {
            let channel = held(self.number, index);
            let answer = self.client.call(json!(["PUBLISH", channel, "x"])).await?;
            ensure!(answer == json!(["OK", 1]), "{channel} reaches {answer}");
            let received = self.client.next_json().await?;
            ensure!(received == json!(["message", channel, "x"]), "{channel} brings {received}");
        }
        Ok(())
    }
}

/// A payload's number, and the suffix after it.
fn numbered(payload: &str) -> Result<(usize, &str)> {
    let digits = payload.find(|c: char| !c.is_ascii_digit()).unwrap_or(payload.len());
    let (number, tail) = payload.split_at(digits);
    Ok((number.parse().context("it has no number")?, tail))
}

/// Subscribes to one channel after the other, listens, and unsubscribes: between the two replies
/// messages arrive without a gap, and outside them none.
async fn visit(mut client: Client) -> Result<Infallible> {
    for visit in 0.. {
        let channel = channel(visit);
        let answer = client.call(json!(["SUBSCRIBE", channel])).await?;
        ensure!(answer == json!(["OK", 1]), "SUBSCRIBE was answered {answer}");
        let mut next = None;
        let mut left = false;
        for received in 0.. {
            let said = client.next_json().await?;
            if said == json!([visit, "OK", 0]) {
                break;
            }
            let payload = said.get(2).and_then(Value::as_str);
            ensure!(said.get(1) == Some(&json!(channel)), "not on {channel}: {said}");
            let (number, _) = numbered(payload.context("no payload")?)?;
            ensure!(next.is_none_or(|next| next == number), "{next:?} is missing before {said}");
            next = Some(number + 1);
            if received >= 2 && !left {
                left = true;
                let leave = json!([visit, "UNSUBSCRIBE", channel]);
                client.send(Message::text(leave.to_string())).await?;
            }
        }
    }
    bail!("there are no more numbers")
}

/// Checks that all received the same messages on each channel, and returns how many.
fn check_agreement(talkers: &[Talker]) -> Result<usize> {
    let own: BTreeMap<_, _> =
        talkers.iter().map(|talker| (channel(talker.number), talker.own())).collect();
    for talker in talkers {
        for (channel, tails) in &talker.received {
            let differs =
                || format!("connection {} received other messages on {channel}", talker.number);
            ensure!(own.get(channel) == Some(&tails.as_slice()), differs());
        }
    }
    Ok(own.values().map(|tails| tails.len()).max().unwrap_or(0))
}

/// Checks that the engine knows all held subscriptions, and nothing else.
async fn check_held(client: &mut Client) -> Result<()> {
    let answer = client.call(json!(["PUBSUB", "CHANNELS", "held.*"])).await?;
    let names = answer.get(1).and_then(Value::as_array).context("no list")?;
    let names: BTreeSet<_> = names.iter().filter_map(Value::as_str).collect();
    let expected =
        (0..CONNECTIONS).flat_map(|number| (0..HELD_BY_EACH).map(move |index| held(number, index)));
    let missing: Vec<_> = expected.filter(|name| !names.contains(name.as_str())).collect();
    ensure!(missing.is_empty(), "{} are missing, such as {:?}", missing.len(), missing.first());
    ensure!(names.len() == CONNECTIONS * HELD_BY_EACH, "there are {}", names.len());
    let patterns = client.call(json!(["PUBSUB", "NUMPAT"])).await?;
    ensure!(patterns == json!(["OK", CONNECTIONS]), "patterns: {patterns}");
    Ok(())
}

/// How long each swap in a log delayed messages, the shortest first.
struct Pauses(Vec<Duration>);

impl Pauses {
    fn of(log: &str, logged: &str) -> Result<Pauses> {
        let pause = |line: &str| -> Result<Duration> {
            let text = line.split("pause_us=").nth(1).context("no pause_us in the line")?;
            let micros = text.split_whitespace().next().unwrap_or_default().parse()?;
            Ok(Duration::from_micros(micros))
        };
        let mut pauses = log
            .lines()
            .filter(|line| line.contains(logged))
            .map(pause)
            .collect::<Result<Vec<_>>>()?;
        pauses.sort();
        Ok(Pauses(pauses))
    }

    fn check(&self, what: &str, aim: Duration, pace: Duration) -> Result<()> {
        // A tenth of the nominal pace: the machine may be busy.
        let swaps_min = duration()?.div_duration_f64(pace) / 10.0;
        ensure!(self.0.len() as f64 >= swaps_min, "there were only {} swaps", self.0.len());
        self.print(what, aim)
    }

    fn print(&self, what: &str, aim: Duration) -> Result<()> {
        println!("{what}: {self} (aim: {aim:?})");
        ensure!(self.0.last() < Some(&PAUSE_MAX), "a pause was too long: {self}");
        Ok(())
    }
}

impl fmt::Display for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (median, longest) = (self.0.get(self.0.len() / 2), self.0.last());
        let (median, longest) =
            (median.copied().unwrap_or_default(), longest.copied().unwrap_or_default());
        write!(f, "{} swaps, pauses: median {median:?}, longest {longest:?}", self.0.len())
    }
}
