//! Conversations with Redis clients as text files. Each is held with Switchyard
//! over TCP, with Switchyard over a WebSocket, and with a real Redis, and must go
//! the same way with all three, in RESP2 and in RESP3.
//!
//! A file of `conversations/` is read line by line. Each line is done before the
//! next one is looked at; a name such as `alice` is a client, connected when it
//! is first met. How commands and replies are written stands in `notation`.
//!
//! ```text
//! # a comment
//! resp: 2                        held in this version only, and read as written: what
//!                                is a push in one version is not one in the other
//! doors: tcp websocket           not held with Redis (`redis`), because …
//! config: limits.name_bytes_max = 8        a line for Switchyard's config file
//!
//! alice> SUBSCRIBE news          sends a command
//! alice>& PING                   adjacent lines like this are sent in one piece
//! alice>raw "*1\r\n$4\r\nPI"     sends these bytes
//! alice>end                      sends nothing more, and listens on
//! alice>reset                    closes with a TCP reset
//!
//! alice< >[subscribe news :1]    must be the next thing that alice is sent
//! alice<& [message a x]          adjacent lines like this may come in any order
//! alice<end                      the connection must end
//! alice<end 1000                 with this code of its Close, over a WebSocket
//! alice<nothing                  nothing has come for alice
//! ```
//!
//! A line that starts with a space goes on with the one before it.
//!
//! `alice<nothing` asks the server a question, whose answer must be the very next
//! thing that comes: so nothing is waited for. At the end of a file this is
//! done for each client that is still connected.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use guest_core::model::Random;

use crate::client::RespClient;
use crate::differences;
use crate::notation::{self, Pattern, Reading};
use crate::redis_server::RedisServer;
use crate::support::file_stems;
use crate::support::server::{Engine, Launch, Server};
use crate::value::{self, Value};

/// The server and the door that a conversation is played on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Switchyard over TCP, with the component engine.
    Tcp,
    /// Switchyard in the frames of a WebSocket, with the native engine.
    Websocket,
    /// A real Redis.
    Redis,
}

/// Each file, as three tests.
macro_rules! conversations {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(mod $name {
            #[tokio::test]
            async fn over_tcp() -> anyhow::Result<()> {
                super::hold(stringify!($name), super::Door::Tcp).await
            }

            #[tokio::test]
            async fn over_websocket() -> anyhow::Result<()> {
                super::hold(stringify!($name), super::Door::Websocket).await
            }

            #[tokio::test]
            async fn with_redis() -> anyhow::Result<()> {
                super::hold(stringify!($name), super::Door::Redis).await
            }
        })*
    };
}

conversations! {
    arity,
    auth,
    client,
    client_kill,
    client_no_touch,
    client_reply,
    client_reply_off_and_the_end,
    client_reply_while_subscribed,
    client_setinfo,
    command_keys,
    connecting,
    empty_requests,
    eval,
    eval_refused,
    globs,
    half_close,
    hello,
    hello_without_effect,
    inline,
    keyless,
    limits,
    limits_of_requests,
    multi,
    multi_client,
    multi_limits,
    multi_ssubscribe,
    multi_subscribe,
    multi_subscribe_once,
    names_are_bytes,
    protocol_errors,
    psubscribe,
    publish,
    pubsub,
    quit,
    reset,
    resp3_while_subscribed,
    self_publish,
    server,
    shard_channels,
    streams,
    streams_newest,
    streams_publish,
    streams_read,
    streams_read_in_resp3,
    subscribe,
    subscribed_mode,
    tracking,
    unknown_commands,
    unsubscribe,
}

#[test]
fn every_file_is_held() -> Result<()> {
    assert_eq!(file_stems(&folder())?, NAMES);
    Ok(())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/redis/conversations")
}

async fn hold(name: &str, door: Door) -> Result<()> {
    let text = std::fs::read_to_string(folder().join(name).with_extension("txt"))?;
    let script = Script::read(&text).with_context(|| format!("{name}.txt"))?;
    if !script.doors.contains(&door) {
        return Ok(());
    }
    for version in &script.versions {
        let stage = Stage::set(&script, door, *version).await?;
        if let Some(why) = stage.is_too_old_for(name) {
            println!("{name}.txt is not held with this Redis: {why}");
            return Ok(());
        }
        stage.play(&script.lines).await.with_context(|| format!("{name}.txt in RESP{version}"))?;
    }
    Ok(())
}

/// A file, read.
struct Script {
    versions: Vec<u8>,
    doors: Vec<Door>,
    config: String,
    lines: Vec<Line>,
}

struct Line {
    number: usize,
    name: String,
    kind: String,
    rest: String,
}

impl Script {
    fn read(text: &str) -> Result<Script> {
        let mut script = Script {
            versions: vec![2, 3],
            doors: vec![Door::Tcp, Door::Websocket, Door::Redis],
            config: String::new(),
            lines: Vec::new(),
        };
        for (at, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.starts_with(' ') {
                let last = script.lines.last_mut().context("nothing to go on with")?;
                last.rest.push_str(line);
            } else if let Some(version) = line.strip_prefix("resp: ") {
                script.versions = vec![version.parse()?];
            } else if let Some(config) = line.strip_prefix("config: ") {
                script.config.push_str(config);
                script.config.push('\n');
            } else if let Some(doors) = line.strip_prefix("doors: ") {
                let door = |name| match name {
                    "tcp" => Ok(Door::Tcp),
                    "websocket" => Ok(Door::Websocket),
                    "redis" => Ok(Door::Redis),
                    _ => bail!("no such door: {name}"),
                };
                script.doors = doors.split(' ').map(door).collect::<Result<_>>()?;
            } else {
                let start = line.find(['<', '>']).with_context(|| format!("neither: {line}"))?;
                let (name, kind) = line.split_at(start);
                let (kind, rest) = kind.split_once(' ').unwrap_or((kind, ""));
                let [name, kind, rest] = [name, kind, rest].map(str::to_owned);
                script.lines.push(Line { number: at + 1, name, kind, rest });
            }
        }
        Ok(script)
    }
}

enum Partner {
    Switchyard(Server),
    Redis(RedisServer),
}

/// The server and the clients of one conversation.
struct Stage {
    partner: Partner,
    address: SocketAddr,
    door: Door,
    version: u8,
    reading: Reading,
    actors: BTreeMap<String, Actor>,
    cuts: Random,
}

struct Actor {
    client: RespClient,
    /// Messages that an older Redis sent before a reply.
    early: VecDeque<Value>,
}

impl Stage {
    async fn set(script: &Script, door: Door, version: u8) -> Result<Stage> {
        let engine = match door {
            Door::Websocket => Engine::Native,
            _ => Engine::Component,
        };
        let (partner, address) = match door {
            Door::Redis => {
                let redis = RedisServer::start().await?;
                let address = redis.address;
                (Partner::Redis(redis), address)
            }
            Door::Tcp | Door::Websocket => {
                let config = script.config.clone();
                let server = Launch { engine, config, ..Launch::default() }.start().await?;
                let address = server.resp_address().await?;
                (Partner::Switchyard(server), address)
            }
        };
        let reading = match script.versions.as_slice() {
            [_, _] if version == 2 => Reading::InResp2,
            _ => Reading::AsWritten,
        };
        let (actors, cuts) = (BTreeMap::new(), Random::from_environment());
        Ok(Stage { partner, address, door, version, reading, actors, cuts })
    }

    /// Why this cannot be held with the Redis at hand.
    fn is_too_old_for(&self, conversation: &str) -> Option<&'static str> {
        let Partner::Redis(redis) = &self.partner else { return None };
        let needs = differences::NEED.iter().find(|(name, ..)| *name == conversation);
        needs.filter(|(_, version, _)| redis.version < *version).map(|(_, _, why)| *why)
    }

    async fn play(mut self, lines: &[Line]) -> Result<()> {
        let same = |one: &&Line, other: &&Line| {
            one.kind.ends_with('&') && one.kind == other.kind && one.name == other.name
        };
        let lines: Vec<&Line> = lines.iter().collect();
        for lines in lines.chunk_by(|one, other| same(one, other)) {
            let Some(first) = lines.first() else { continue };
            let place = || format!("{}: {}{} {}", first.number, first.name, first.kind, first.rest);
            self.act(first, lines).await.with_context(place)?;
        }
        let names: Vec<_> = self.actors.keys().cloned().collect();
        for name in names {
            self.nothing(&name, 0).await.with_context(|| format!("at the end, {name}"))?;
        }
        self.actors.clear();
        match self.partner {
            Partner::Switchyard(server) => server.stop().await,
            Partner::Redis(_) => Ok(()),
        }
    }

    async fn act(&mut self, line: &Line, lines: &[&Line]) -> Result<()> {
        match line.kind.as_str() {
            "<nothing" => return self.nothing(&line.name, line.number).await,
            "<" | "<&" => {
                let patterns = lines.iter().map(|line| Pattern::parse(&line.rest));
                return self.expect(&line.name, patterns.collect::<Result<_>>()?).await;
            }
            _ => {}
        }
        let door = self.door;
        let client = &mut self.actor(&line.name).await?.client;
        match line.kind.as_str() {
            ">" | ">&" => {
                let mut bytes = Vec::new();
                for line in lines {
                    bytes.extend(value::command(&notation::words(&line.rest)?));
                }
                client.send(&bytes).await
            }
            ">raw" => client.send(&notation::words(&line.rest)?.concat()).await,
            ">end" => client.end_sending().await,
            ">reset" => self.actors.remove(&line.name).context("it is there")?.client.reset(),
            "<end" => {
                let code = client.ends().await?;
                self.actors.remove(&line.name);
                let expected =
                    Some(&line.rest).filter(|text| door == Door::Websocket && !text.is_empty());
                match expected {
                    Some(expected) => {
                        ensure!(
                            code == Some(expected.parse()?),
                            "the code of the Close is {code:?}"
                        );
                        Ok(())
                    }
                    None => Ok(()),
                }
            }
            kind => bail!("no such kind of line: {kind}"),
        }
    }

    async fn actor(&mut self, name: &str) -> Result<&mut Actor> {
        if !self.actors.contains_key(name) {
            let seed = self.cuts.number();
            let mut client = match (&self.partner, self.door) {
                (Partner::Switchyard(server), Door::Websocket) => {
                    RespClient::connect_framed(server, seed).await?
                }
                _ => RespClient::connect(self.address).await?,
            };
            if self.version == 3 {
                let answer = client.call(&["HELLO", "3"]).await?;
                ensure!(matches!(answer, Value::Aggregate(value::Shape::Map, _)), "{answer}");
            }
            self.actors.insert(name.to_owned(), Actor { client, early: VecDeque::new() });
        }
        self.actors.get_mut(name).context("it was put there")
    }

    /// Reads as many replies, each of which must match another pattern.
    async fn expect(&mut self, name: &str, mut patterns: Vec<Pattern>) -> Result<()> {
        let reading = self.reading;
        while !patterns.is_empty() {
            let is_push = patterns.iter().any(Pattern::is_push);
            let came = self.next(name, is_push).await?;
            let Some(at) = patterns.iter().position(|pattern| pattern.matches(&came, reading))
            else {
                bail!("this came: {came}")
            };
            patterns.remove(at);
        }
        Ok(())
    }

    /// The next reply, as the Redis that Switchyard says it is would have sent it.
    async fn next(&mut self, name: &str, is_push: bool) -> Result<Value> {
        let version = match &self.partner {
            Partner::Switchyard(_) => None,
            Partner::Redis(redis) => Some(redis.version),
        };
        let actor = self.actor(name).await?;
        if let (true, Some(message)) = (is_push, actor.early.pop_front()) {
            return Ok(message);
        }
        loop {
            let value = actor.client.next().await?;
            let Some(version) = version else { return Ok(value) };
            if !is_push && differences::message_precedes_reply(version, &value) {
                actor.early.push_back(value);
            } else {
                return Ok(differences::modernise(version, value));
            }
        }
    }

    async fn nothing(&mut self, name: &str, question: usize) -> Result<()> {
        let actor = self.actor(name).await?;
        ensure!(actor.early.is_empty(), "this came: {:?}", actor.early);
        actor.client.nothing(question as u64).await
    }
}
