//! Conversations as text files, played on the real server: once with the
//! component engine, once with the native one. (`node_host` plays most of them
//! on another host.)
//!
//! A file of `tests/transcripts/` is read line by line. Each line is done before
//! the next one is looked at; a name such as `alice` is a client, connected when
//! it is first met.
//!
//! ```text
//! # a comment
//! config: limits.name_bytes_max = 8         a line for the config file; before all else
//! plugin: 10-acl acl {"rules": []}          a plugin: its name, its component, its settings
//!
//! connect bob /ws?token=x subprotocols=a,b  where a client's first use would not say enough;
//!                                           also header=Name:value
//! connect bob /ws subprotocols=a,b -> b     the sub-protocol that must be chosen, or `none`
//! connect bob /nope -> http 404 some words  the refusal that must come, and words of its body
//! connect bob /ws "header=Name: value"      quotes around a word with spaces
//!
//! swap 10-acl {"rules": []}                 puts another build of a plugin in its place, with
//!                                           these settings, and waits until it is there
//!
//! alice> [1,"PING"]                         sends the rest of the line as text
//! alice>binary 00ff                         sends a binary frame, in hex or as a JSON string
//! alice>ping 00ff                           sends a WebSocket ping, likewise
//! alice>close 1000 bye                      sends a Close; without a code it has no body
//!
//! alice< [1,"OK","PONG"]                    must be the next thing that alice receives
//! alice<& ["message","a","1"]               adjacent lines like this may come in any order
//! alice<binary "+PONG\r\n"                  these bytes must come next, in binary frames that
//!                                           may begin and end anywhere
//! alice<pong 00ff                           a WebSocket pong must come next
//! alice<close 4009 bad frames               a Close with this code and words, then the end;
//!                                           the code `none` stands for a Close without a body
//! alice<nothing                             nothing has come for alice
//! ```
//!
//! `alice<nothing` asks the server a question, whose answer must be the very next
//! thing that comes: so nothing is waited for. It holds for what happened before:
//! a publication is known to have happened when its reply was read. At the end of
//! a file it is asked for everyone who is still connected, and the server must
//! end in good order.
//!
//! `<<HS256 {"sub":"alice","exp":"now+60"}>>` is a token wherever it stands
//! (`tokens` says what else can be put in).
//!
//! What is expected is JSON, compared by structure, with these besides: `*` is
//! any value, `*string`, `*number` and `*digits` (a string of digits) any such,
//! `~"words"` a string that contains the words, `...` at the end of an array or
//! object any further members, and `@[1, 2]` an array in any order.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::server::{Engine, Launch, Server};
use crate::support::websocket::{Client, Upgrade, describe};
use crate::support::{components, file_stems};
use crate::tokens;

/// Hands the names of all files to a macro: those that any host of the engine
/// plays, and those about what only the server has.
macro_rules! transcripts {
    ($take:ident) => {
        $take! {
            anywhere: [
                auth_without_plugin,
                bad_frames,
                bad_frames_in_a_row,
                base64,
                batches,
                close_codes,
                globs,
                globs_of_listeners,
                hello,
                ids,
                limits_of_names,
                limits_of_payloads,
                limits_of_subscriptions,
                message_too_long,
                names_are_bytes,
                ping,
                psubscribe,
                publish,
                pubsub,
                quit,
                self_publish,
                subscribe,
                unsubscribe,
                verbs,
                whole_or_not_at_all,
            ],
            server_only: [
                plugin_acl,
                plugin_jwt_auth,
                plugin_jwt_auth_claims,
                plugin_jwt_auth_jwks,
                plugin_jwt_auth_keys,
                plugin_rate_limit,
                plugin_rate_limit_swap,
                plugin_redact,
                plugin_validate,
                resp_over_websocket,
                subprotocols,
            ],
        }
    };
}
pub(crate) use transcripts;

/// Each file, as two tests.
macro_rules! play_all {
    (anywhere: [$($name:ident),* $(,)?], server_only: [$($more:ident),* $(,)?],) => {
        const NAMES: &[&str] = &[$(stringify!($name),)* $(stringify!($more)),*];

        play_all! { $($name)* $($more)* }
    };
    ($($name:ident)*) => {
        $(mod $name {
            #[tokio::test]
            async fn with_the_component_engine() -> anyhow::Result<()> {
                super::play(stringify!($name), super::Engine::Component).await
            }

            #[tokio::test]
            async fn with_the_native_engine() -> anyhow::Result<()> {
                super::play(stringify!($name), super::Engine::Native).await
            }
        })*
    };
}

transcripts!(play_all);

#[test]
fn every_file_is_played() -> Result<()> {
    let mut names = NAMES.to_vec();
    names.sort_unstable();
    assert_eq!(file_stems(&folder())?, names);
    Ok(())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts")
}

/// Plays one file of `tests/transcripts/`.
pub async fn play(name: &str, engine: Engine) -> Result<()> {
    let file = folder().join(name).with_extension("txt");
    play_text(&format!("{name}.txt"), &std::fs::read_to_string(&file)?, engine, &[]).await
}

/// Plays a conversation with these plugins, each by its name and its TOML file;
/// the component is what follows the number in the name.
pub async fn play_text(
    place: &str,
    text: &str,
    engine: Engine,
    plugins: &[(&str, &str)],
) -> Result<()> {
    let numbered = text.lines().enumerate().map(|(at, text)| (at + 1, text));
    let meant = numbered.filter(|(_, text)| !text.is_empty() && !text.starts_with('#'));
    let filled = meant.map(|(number, text)| {
        let filled = tokens::fill(text).with_context(|| format!("{place}:{number}"));
        filled.map(|text| (number, text))
    });
    let filled = filled.collect::<Result<Vec<_>>>()?;
    let mut lines = filled.iter().map(|(number, text)| Line { number: *number, text }).peekable();
    let mut stage = Stage::set(&mut lines, engine, plugins).await?;
    while let Some(line) = lines.next() {
        let place = format!("{place}:{}: {}", line.number, line.text);
        stage.act(line, &mut lines).await.context(place)?;
    }
    stage.clear().await.with_context(|| format!("{place}: at the end"))
}

#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    number: usize,
    text: &'a str,
}

/// A client, and what it was sent in binary frames and has not been asked about.
struct Actor {
    client: Client,
    unread: Vec<u8>,
}

/// The server and the clients of one conversation.
struct Stage {
    server: Server,
    clients: BTreeMap<String, Actor>,
    /// Makes the questions of `alice<nothing` differ from what a file says.
    questions: u64,
    plugins: tempfile::TempDir,
    /// How often a plugin was swapped.
    swaps: usize,
}

impl Stage {
    /// Starts a server as the first lines say.
    async fn set<'a>(
        lines: &mut Peekable<impl Iterator<Item = Line<'a>>>,
        engine: Engine,
        configured: &[(&str, &str)],
    ) -> Result<Stage> {
        let plugins = components::directory()?;
        let mut launch = Launch { engine, ..Launch::default() };
        for (name, toml) in configured {
            let (_, component) = name.split_once('-').context("a name such as 10-acl")?;
            let file = |kind: &str| plugins.path().join(name).with_extension(kind);
            components::write_atomically(&file("toml"), toml.as_bytes())?;
            components::write_atomically(&file("wasm"), &components::built(component)?)?;
            launch.plugins = Some(plugins.path().to_owned());
        }
        while let Some((what, rest)) = lines
            .peek()
            .and_then(|line| line.text.split_once(": "))
            .filter(|(what, _)| matches!(*what, "config" | "plugin"))
        {
            if what == "config" {
                launch.config.push_str(rest);
                launch.config.push('\n');
            } else {
                let mut words = rest.splitn(3, ' ');
                let (Some(name), Some(component)) = (words.next(), words.next()) else {
                    bail!("a plugin has a name and a component: {rest}")
                };
                let settings = serde_json::from_str(words.next().unwrap_or("{}"))?;
                let component = components::built(component)?;
                components::install(plugins.path(), name, &component, &settings)?;
                launch.plugins = Some(plugins.path().to_owned());
            }
            lines.next();
        }
        let server = launch.start().await?;
        Ok(Stage { server, clients: BTreeMap::new(), questions: 0, plugins, swaps: 0 })
    }

    async fn act<'a>(
        &mut self,
        line: Line<'a>,
        lines: &mut Peekable<impl Iterator<Item = Line<'a>>>,
    ) -> Result<()> {
        if let Some(words) = line.text.strip_prefix("connect ") {
            return self.connect(words).await;
        }
        if let Some(words) = line.text.strip_prefix("swap ") {
            return self.swap(words).await;
        }
        let at = line.text.find(['<', '>']).context("neither `<` nor `>`")?;
        let (name, rest) = line.text.split_at(at);
        let (kind, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        if kind == "<nothing" {
            return self.nothing(name).await;
        }
        let Actor { client, unread } = self.actor(name).await?;
        if kind.starts_with('<') && kind != "<binary" {
            ensure!(unread.is_empty(), "{} was left", unread.escape_ascii());
        }
        match kind {
            ">" => client.send(Message::text(rest)).await,
            ">binary" => client.send(Message::binary(bytes(rest)?)).await,
            ">ping" => client.send(Message::Ping(bytes(rest)?.into())).await,
            ">close" => client.send(Message::Close(close_frame(rest)?)).await,
            "<" => expect_one_of(client, &mut vec![Pattern::parse(rest)?]).await,
            "<&" => {
                let mut patterns = vec![Pattern::parse(rest)?];
                let start = format!("{name}<& ");
                while let Some(next) = lines.peek().and_then(|l| l.text.strip_prefix(&start)) {
                    patterns.push(Pattern::parse(next)?);
                    lines.next();
                }
                while !patterns.is_empty() {
                    expect_one_of(client, &mut patterns).await?;
                }
                Ok(())
            }
            "<binary" => expect_bytes(client, unread, &bytes(rest)?).await,
            "<pong" => match client.next().await? {
                Message::Pong(body) if body == bytes(rest)? => Ok(()),
                came => bail!("what came is {}", describe(&came)),
            },
            "<close" => {
                let (code, words) = rest.split_once(' ').unwrap_or((rest, ""));
                let (came, reason) = client.next_close().await?;
                self.clients.remove(name);
                let came = came.map_or("none".to_owned(), |code| code.to_string());
                ensure!(
                    came == code && reason.contains(words),
                    "the Close that came is {came} {reason}"
                );
                Ok(())
            }
            _ => bail!("no such kind of line: {kind}"),
        }
    }

    async fn actor(&mut self, name: &str) -> Result<&mut Actor> {
        if !self.clients.contains_key(name) {
            let actor = Actor { client: self.server.client().await?, unread: Vec::new() };
            self.clients.insert(name.to_owned(), actor);
        }
        self.clients.get_mut(name).context("it was put there")
    }

    async fn connect(&mut self, line: &str) -> Result<()> {
        let (line, outcome) = line.split_once(" -> ").unwrap_or((line, ""));
        // What stands between quotes is one word.
        let parts = line.split('"').enumerate();
        let words = parts.flat_map(|(at, part)| match at % 2 {
            0 => part.split(' ').collect(),
            _ => vec![part],
        });
        let mut words = words.filter(|word| !word.is_empty());
        let name = words.next().context("a client has a name")?;
        let path = words.next().context("the path is missing")?.to_owned();
        let mut upgrade = Upgrade { path, ..Upgrade::default() };
        for word in words {
            match word.split_once('=') {
                Some(("subprotocols", list)) => {
                    upgrade.subprotocols = list.split(',').map(str::to_owned).collect();
                }
                Some(("header", header)) => {
                    let (name, value) = header.split_once(':').context("a header has a value")?;
                    upgrade.headers.push((name.to_owned(), value.trim().to_owned()));
                }
                _ => bail!("no such word: {word}"),
            }
        }
        ensure!(!self.clients.contains_key(name), "{name} is connected already");
        let answer = Client::connect(self.server.address().await?, &upgrade).await?;
        match (answer, outcome.strip_prefix("http ")) {
            (Ok(client), None) => {
                let chosen = client.subprotocol.as_deref().unwrap_or("none");
                ensure!(outcome.is_empty() || outcome == chosen, "it chose {chosen}");
                self.clients.insert(name.to_owned(), Actor { client, unread: Vec::new() });
                Ok(())
            }
            (Err(refused), Some(expected)) => {
                let (status, body) = expected.split_once(' ').unwrap_or((expected, ""));
                ensure!(
                    refused.status.to_string() == status && refused.body.contains(body),
                    "it was refused with HTTP {} {}",
                    refused.status,
                    refused.body
                );
                Ok(())
            }
            (Ok(_), Some(_)) => bail!("it was accepted"),
            (Err(refused), None) => bail!("it was refused with HTTP {}", refused.status),
        }
    }

    async fn swap(&mut self, words: &str) -> Result<()> {
        let (name, settings) = words.split_once(' ').context("a plugin and its settings")?;
        self.server.wait_for_log("changes of files are watched").await?;
        self.swaps += 1;
        let in_place = std::fs::read(components::path(self.plugins.path(), name))?;
        let successor = components::rehashed(in_place, self.swaps as u32);
        let settings = serde_json::from_str(settings)?;
        components::install(self.plugins.path(), name, &successor, &settings)?;
        self.server.wait_for_logs("a plugin was swapped", self.swaps).await?;
        Ok(())
    }

    /// Fails if anything has come for this client.
    async fn nothing(&mut self, name: &str) -> Result<()> {
        self.questions += 1;
        let question = 9_000_000_000_000_000 + self.questions;
        let Actor { client, unread } = self.actor(name).await?;
        if client.subprotocol.as_deref() == Some("resp") {
            let question = format!("${}\r\n{question}\r\n", question.to_string().len());
            client.send(Message::binary(format!("*2\r\n$4\r\nPING\r\n{question}"))).await?;
            // RESP2 has two answers: one for who listens, and one for who does not.
            let listening = format!("*2\r\n$4\r\npong\r\n{question}");
            let answer = match next_bytes(client, unread, 1).await? {
                b"*" => listening,
                _ => question,
            };
            return expect_bytes(client, unread, answer.as_bytes()).await;
        }
        client.send(Message::text(format!("[{question},\"PING\"]"))).await?;
        let answer = Message::text(format!("[{question},\"OK\",\"PONG\"]"));
        match client.next().await? {
            came if came == answer => Ok(()),
            came => bail!("for {name} came {}", describe(&came)),
        }
    }

    /// Nothing may be left for anyone, and nothing may have gone wrong.
    async fn clear(mut self) -> Result<()> {
        let names: Vec<_> = self.clients.keys().cloned().collect();
        for name in names {
            self.nothing(&name).await?;
        }
        // So that the server need not wait for their answers to its Close.
        self.clients.clear();
        self.server.stop().await
    }
}

/// Reads the next message, which must be JSON that one of these matches, and
/// removes that one.
async fn expect_one_of(client: &mut Client, patterns: &mut Vec<Pattern>) -> Result<()> {
    let came = client.next_json().await?;
    let Some(at) = patterns.iter().position(|pattern| pattern.matches(&came)) else {
        bail!("what came is {came}")
    };
    patterns.remove(at);
    Ok(())
}

/// The next bytes must be these.
async fn expect_bytes(client: &mut Client, unread: &mut Vec<u8>, expected: &[u8]) -> Result<()> {
    let came = next_bytes(client, unread, expected.len()).await?;
    ensure!(came == expected, "what came is {}", unread.escape_ascii());
    unread.drain(..expected.len());
    Ok(())
}

/// The next so many bytes of what comes in binary frames; they stay unread.
async fn next_bytes<'a>(
    client: &mut Client,
    unread: &'a mut Vec<u8>,
    length: usize,
) -> Result<&'a [u8]> {
    while unread.len() < length {
        match client.next().await? {
            Message::Binary(bytes) => unread.extend(bytes),
            came => bail!("after {} came {}", unread.escape_ascii(), describe(&came)),
        }
    }
    Ok(unread.get(..length).unwrap_or_default())
}

/// Bytes in hex, or the UTF-8 of a JSON string.
fn bytes(text: &str) -> Result<Vec<u8>> {
    if text.starts_with('"') {
        return Ok(serde_json::from_str::<String>(text)?.into_bytes());
    }
    ensure!(text.len().is_multiple_of(2) && text.is_ascii(), "not hex: {text}");
    let digits = (0..text.len()).step_by(2).filter_map(|at| text.get(at..at + 2));
    digits.map(|pair| Ok(u8::from_str_radix(pair, 16)?)).collect()
}

fn close_frame(text: &str) -> Result<Option<CloseFrame>> {
    if text.is_empty() {
        return Ok(None);
    }
    let (code, reason) = text.split_once(' ').unwrap_or((text, ""));
    Ok(Some(CloseFrame { code: code.parse::<u16>()?.into(), reason: reason.into() }))
}

/// JSON with holes.
#[derive(Debug, PartialEq)]
enum Pattern {
    Anything,
    AnyString,
    AnyNumber,
    AnyDigits,
    Containing(String),
    Exactly(Value),
    Array { items: Vec<Pattern>, may_go_on: bool },
    AnyOrder(Vec<Pattern>),
    Object { members: Vec<(String, Pattern)>, may_go_on: bool },
}

impl Pattern {
    fn parse(text: &str) -> Result<Pattern> {
        let mut rest = text;
        let pattern = Pattern::parse_start(&mut rest)?;
        ensure!(rest.trim().is_empty(), "more than one value: {rest}");
        Ok(pattern)
    }

    /// Parses what `rest` starts with, and leaves what follows it.
    fn parse_start(rest: &mut &str) -> Result<Pattern> {
        for (word, pattern) in [
            ("*string", Pattern::AnyString),
            ("*number", Pattern::AnyNumber),
            ("*digits", Pattern::AnyDigits),
            ("*", Pattern::Anything),
        ] {
            if skip(rest, word) {
                return Ok(pattern);
            }
        }
        if skip(rest, "~") {
            return Ok(Pattern::Containing(json_start(rest)?));
        }
        if skip(rest, "@[") {
            let (items, may_go_on) = parse_members(rest, "]", Pattern::parse_start)?;
            ensure!(!may_go_on, "an array in any order has an end");
            return Ok(Pattern::AnyOrder(items));
        }
        if skip(rest, "[") {
            let (items, may_go_on) = parse_members(rest, "]", Pattern::parse_start)?;
            return Ok(Pattern::Array { items, may_go_on });
        }
        if skip(rest, "{") {
            let (members, may_go_on) = parse_members(rest, "}", |rest| {
                let key = json_start(rest)?;
                ensure!(skip(rest, ":"), "a colon is missing before {rest}");
                Ok((key, Pattern::parse_start(rest)?))
            })?;
            return Ok(Pattern::Object { members, may_go_on });
        }
        Ok(Pattern::Exactly(json_start(rest)?))
    }

    fn matches(&self, value: &Value) -> bool {
        match (self, value) {
            (Pattern::Anything, _) => true,
            (Pattern::AnyString, value) => value.is_string(),
            (Pattern::AnyNumber, value) => value.is_number(),
            (Pattern::AnyDigits, Value::String(text)) => {
                !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
            }
            (Pattern::Containing(words), Value::String(text)) => text.contains(words),
            (Pattern::Exactly(expected), value) => expected == value,
            (Pattern::Array { items, may_go_on }, Value::Array(values)) => {
                (items.len() == values.len() || *may_go_on && items.len() < values.len())
                    && items.iter().zip(values).all(|(item, value)| item.matches(value))
            }
            (Pattern::AnyOrder(items), Value::Array(values)) => {
                let mut left: Vec<_> = values.iter().collect();
                items.iter().all(|item| {
                    let at = left.iter().position(|value| item.matches(value));
                    at.map(|at| left.remove(at)).is_some()
                }) && left.is_empty()
            }
            (Pattern::Object { members, may_go_on }, Value::Object(values)) => {
                (members.len() == values.len() || *may_go_on && members.len() < values.len())
                    && members.iter().all(|(key, member)| {
                        values.get(key).is_some_and(|value| member.matches(value))
                    })
            }
            _ => false,
        }
    }
}

/// Parses what stands between brackets, whose first has been read, and whether
/// `...` ends it.
fn parse_members<T>(
    rest: &mut &str,
    end: &str,
    parse: impl Fn(&mut &str) -> Result<T>,
) -> Result<(Vec<T>, bool)> {
    let mut members = Vec::new();
    while !skip(rest, end) {
        if !members.is_empty() {
            ensure!(skip(rest, ","), "a comma is missing before {rest}");
        }
        if skip(rest, "...") {
            ensure!(skip(rest, end), "`...` stands at the end");
            return Ok((members, true));
        }
        members.push(parse(rest)?);
    }
    Ok((members, false))
}

fn skip(rest: &mut &str, word: &str) -> bool {
    match rest.trim_start().strip_prefix(word) {
        Some(after) => {
            *rest = after;
            true
        }
        None => false,
    }
}

fn json_start<T: serde::de::DeserializeOwned>(rest: &mut &str) -> Result<T> {
    let mut values = serde_json::Deserializer::from_str(rest).into_iter();
    let value = values.next().with_context(|| format!("a value is missing: {rest}"))??;
    *rest = rest.get(values.byte_offset()..).unwrap_or_default();
    Ok(value)
}

#[test]
fn patterns_match_what_they_say() -> Result<()> {
    let check = |pattern, value, expected| -> Result<()> {
        let matches = Pattern::parse(pattern)?.matches(&serde_json::from_str(value)?);
        assert_eq!(matches, expected, "{pattern} and {value}");
        Ok(())
    };
    check(r#"[1, "OK", *]"#, r#"[1,"OK",{"a":[2]}]"#, true)?;
    check(r#"[1,"OK"]"#, r#"[1,"OK",2]"#, false)?;
    check(r#"[1,...]"#, r#"[1,"OK",2]"#, true)?;
    check(r#"[1,2,...]"#, r#"[1]"#, false)?;
    check(r#"{"b":~"ell","a":*number}"#, r#"{"a":1,"b":"hello"}"#, true)?;
    check(r#"{"a":1}"#, r#"{"a":1,"b":2}"#, false)?;
    check(r#"{"a":1,...}"#, r#"{"a":1,"b":2}"#, true)?;
    check(r#"[*digits,*string]"#, r#"["007",""]"#, true)?;
    check(r#"*digits"#, r#""7a""#, false)?;
    check(r#"@["a","b"]"#, r#"["b","a"]"#, true)?;
    check(r#"@["a","b"]"#, r#"["b","a","a"]"#, false)?;
    check("1", "1.0", false)?;
    for wrong in ["[1", "[1 2]", "[..., 1]", "1 2", ""] {
        assert!(Pattern::parse(wrong).is_err(), "{wrong}");
    }
    Ok(())
}
