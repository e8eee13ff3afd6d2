//! Scenarios as text files, played through every door: JSON over a WebSocket, RESP2
//! and RESP3 over TCP, RESP3 over a WebSocket, and by clients of which each comes in
//! by another door. What the doors have in common is said once, here; how each of
//! them spells it stands in the transcripts and conversations.
//!
//! A file of `tests/scenarios/` is read line by line. Each line is done before the
//! next one is looked at; a name such as `alice` is a client, connected when it is
//! first met. Words are written as in conversations (`notation`).
//!
//! ```text
//! # a comment
//! config: limits.name_bytes_max = 8         a line for the config file
//! plugin: 10-acl acl {"rules": []}          a plugin: its name, its component, its settings
//! not: resp2                                this door is left out, because …
//!
//! alice> SUBSCRIBE news                     says a command
//! alice>& PING                              adjacent lines like this are said at once
//!
//! alice< listening 2                        must be the next reply to alice: it has two
//!                                           subscriptions (which RESP reports one by one)
//! alice< number 3                           a count
//! alice< text PONG                          the answer to a PING
//! alice< ok                                 that of AUTH and QUIT
//! alice< names a b                          in any order
//! alice< counts a 1 b 0                     in any order
//! alice< refused NOPERM acl                 an error, and the plugin that decided
//! alice< message news hello                 a message of a channel ...
//! alice< pmessage n* news hello             ... or of a pattern
//! alice<& message a x                       adjacent lines like this may come in any order
//! alice<end                                 the connection ends in good order
//! alice<nothing                             nothing has come for alice
//! ```
//!
//! `alice<nothing` asks the server a question, whose answer must be the very next
//! thing that comes. At the end of a file this is done for each client.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use guest_core::model::Random;

use crate::notation;
use crate::speaker::{Door, Event, Speaker};
use crate::support::server::{Launch, Server};
use crate::support::{components, file_stems};

/// Each file, as five tests.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];

        $(mod $name {
            use crate::speaker::Door;

            #[tokio::test]
            async fn in_json() -> anyhow::Result<()> {
                super::play(stringify!($name), &[Door::Json]).await
            }

            #[tokio::test]
            async fn in_resp2() -> anyhow::Result<()> {
                super::play(stringify!($name), &[Door::Resp2]).await
            }

            #[tokio::test]
            async fn in_resp3() -> anyhow::Result<()> {
                super::play(stringify!($name), &[Door::Resp3]).await
            }

            #[tokio::test]
            async fn in_resp_over_websocket() -> anyhow::Result<()> {
                super::play(stringify!($name), &[Door::Framed]).await
            }

            #[tokio::test]
            async fn by_all_doors_at_once() -> anyhow::Result<()> {
                let doors = [Door::Json, Door::Resp2, Door::Resp3, Door::Framed];
                super::play(stringify!($name), &doors).await
            }
        })*
    };
}

scenarios! {
    arity,
    auth_by_plugin,
    auth_without_plugin,
    globs,
    limits,
    names_are_bytes,
    ping,
    pipeline,
    plugins,
    psubscribe,
    publish,
    pubsub,
    quit,
    self_publish,
    subscribe,
    unsubscribe,
}

#[test]
fn every_file_is_played() -> Result<()> {
    assert_eq!(file_stems(&folder())?, NAMES);
    Ok(())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")
}

struct Line<'a> {
    number: usize,
    name: &'a str,
    kind: &'a str,
    rest: &'a str,
}

/// Plays a file with clients that come in by these doors, one after the other and
/// from a random one on.
async fn play(name: &str, doors: &[Door]) -> Result<()> {
    let text = std::fs::read_to_string(folder().join(name).with_extension("txt"))?;
    let plugins = components::directory()?;
    let mut launch = Launch::default();
    let mut doors = doors.to_vec();
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(config) = line.strip_prefix("config: ") {
            launch.config.push_str(config);
            launch.config.push('\n');
        } else if let Some(plugin) = line.strip_prefix("plugin: ") {
            let mut words = plugin.splitn(3, ' ');
            let (Some(name), Some(component), Some(settings)) =
                (words.next(), words.next(), words.next())
            else {
                bail!("a plugin has a name, a component and settings: {plugin}")
            };
            let (component, settings) =
                (components::built(component)?, serde_json::from_str(settings)?);
            components::install(plugins.path(), name, &component, &settings)?;
            launch.plugins = Some(plugins.path().to_owned());
        } else if let Some(door) = line.strip_prefix("not: ") {
            ensure!(door == "resp2", "only RESP2 forbids what the others do");
            doors.retain(|door| *door != Door::Resp2);
        } else {
            let start = line.find(['<', '>']).with_context(|| format!("neither: {line}"))?;
            let (name, kind) = line.split_at(start);
            let (kind, rest) = kind.split_once(' ').unwrap_or((kind, ""));
            lines.push(Line { number: at + 1, name, kind, rest });
        }
    }
    if doors.is_empty() {
        return Ok(());
    }
    let mut random = Random::from_environment();
    let first = random.index(doors.len());
    doors.rotate_left(first);
    let server = launch.start().await?;
    let mut stage = Stage { server, doors, random, speakers: BTreeMap::new() };
    let same = |one: &Line<'_>, other: &Line<'_>| {
        one.kind.ends_with('&') && one.kind == other.kind && one.name == other.name
    };
    for lines in lines.chunk_by(same) {
        let Some(line) = lines.first() else { continue };
        stage.act(line, lines).await.with_context(|| {
            let Line { number, name: client, kind, rest } = line;
            format!("{name}.txt:{number}: {client}{kind} {rest}, by {:?}", stage.doors)
        })?;
    }
    stage.clear().await.with_context(|| format!("{name}.txt: at the end"))
}

/// The server and the clients of one scenario.
struct Stage {
    server: Server,
    /// The door of the first client, of the second, and so on.
    doors: Vec<Door>,
    random: Random,
    speakers: BTreeMap<String, Speaker>,
}

impl Stage {
    async fn act(&mut self, line: &Line<'_>, lines: &[Line<'_>]) -> Result<()> {
        let speaker = self.speaker(line.name).await?;
        match line.kind {
            ">" | ">&" => {
                let commands = lines.iter().map(|line| notation::words(line.rest));
                speaker.say(commands.collect::<Result<_>>()?).await
            }
            "<" | "<&" => {
                let expected = lines.iter().map(|line| event(line.rest));
                let mut expected = expected.collect::<Result<Vec<_>>>()?;
                while !expected.is_empty() {
                    let came = speaker.next().await?;
                    let at = expected.iter().position(|event| *event == came);
                    expected.remove(at.with_context(|| format!("this came: {came}"))?);
                }
                Ok(())
            }
            "<nothing" => speaker.nothing(line.number).await,
            "<end" => {
                speaker.ends().await?;
                self.speakers.remove(line.name);
                Ok(())
            }
            kind => bail!("no such kind of line: {kind}"),
        }
    }

    async fn speaker(&mut self, name: &str) -> Result<&mut Speaker> {
        if !self.speakers.contains_key(name) {
            let place = self.speakers.len() % self.doors.len();
            let door = *self.doors.get(place).context("there is a door")?;
            let speaker = Speaker::connect(&self.server, door, self.random.number()).await?;
            self.speakers.insert(name.to_owned(), speaker);
        }
        self.speakers.get_mut(name).context("it was put there")
    }

    /// No message may be left for any client, and nothing may have gone wrong.
    async fn clear(mut self) -> Result<()> {
        for (name, speaker) in &mut self.speakers {
            speaker.nothing(0).await.with_context(|| name.clone())?;
        }
        self.speakers.clear();
        self.server.stop().await
    }
}

/// What a line says must come.
fn event(line: &str) -> Result<Event> {
    let words = notation::words(line)?;
    let (kind, words) = words.split_first().context("nothing is said")?;
    let text = |word: &Vec<u8>| String::from_utf8(word.clone());
    let number = |word: &Vec<u8>| -> Result<u64> { Ok(text(word)?.parse()?) };
    Ok(match (kind.as_slice(), words) {
        (b"listening", [held]) => Event::Listening(number(held)?),
        (b"number", [it]) => Event::Number(number(it)?),
        (b"text", [it]) => Event::Text(it.clone()),
        (b"ok", []) => Event::Ok,
        (b"names", names) => {
            let mut names = names.to_vec();
            names.sort();
            Event::Names(names)
        }
        (b"counts", counts) => {
            let mut pairs = Vec::new();
            for pair in counts.chunks(2) {
                let [name, count] = pair else { bail!("a name has a count") };
                pairs.push((name.clone(), number(count)?));
            }
            pairs.sort();
            Event::Counts(pairs)
        }
        (b"refused", [code, by @ ..]) if by.len() < 2 => {
            Event::Refused { code: text(code)?, by: by.first().map(text).transpose()? }
        }
        (b"message", [channel, payload]) => {
            let (channel, payload) = (channel.clone(), payload.clone());
            Event::Message { pattern: None, channel, payload }
        }
        (b"pmessage", [pattern, channel, payload]) => {
            let (channel, payload) = (channel.clone(), payload.clone());
            Event::Message { pattern: Some(pattern.clone()), channel, payload }
        }
        _ => bail!("no event is written so: {line}"),
    })
}
