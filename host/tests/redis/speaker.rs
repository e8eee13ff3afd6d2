//! A client of any door, with replies decoded into events that all doors share.
//!
//! It knows its commands without a reply, so that it can interpret the next reply. What only
//! one door sends, such as the counts of single acknowledgements, is checked here and not
//! passed on.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};
use tokio_tungstenite::tungstenite::Message;

use crate::client::RespClient;
use crate::support::server::Server;
use crate::support::websocket::Client;
use crate::value::{self, Shape, Value};

/// By which door a client comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// JSON over a WebSocket.
    Json,
    /// RESP2 over TCP.
    Resp2,
    /// RESP3 over TCP.
    Resp3,
    /// RESP3 in the binary frames of a WebSocket.
    Framed,
}

/// A decoded reply or message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// It now listens to so many names.
    Listening(u64),
    /// A number.
    Number(u64),
    /// The answer to a PING.
    Text(Vec<u8>),
    /// Done.
    Ok,
    /// Names, in no order.
    Names(Vec<Vec<u8>>),
    /// Names and numbers, in no order.
    Counts(Vec<(Vec<u8>, u64)>),
    /// An error, by its code in JSON, and the plugin that decided.
    Refused { code: String, by: Option<String> },
    /// A message.
    Message { pattern: Option<Vec<u8>>, channel: Vec<u8>, payload: Vec<u8> },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<Vec<u8>> = match self {
            Event::Listening(held) => return write!(f, "listening {held}"),
            Event::Number(number) => return write!(f, "number {number}"),
            Event::Ok => return f.write_str("ok"),
            Event::Text(text) => vec![b"text".to_vec(), text.clone()],
            Event::Names(names) => [vec![b"names".to_vec()], names.clone()].concat(),
            Event::Counts(counts) => {
                let counts = counts.iter();
                let words =
                    counts.flat_map(|(name, count)| [name.clone(), count.to_string().into()]);
                [b"counts".to_vec()].into_iter().chain(words).collect()
            }
            Event::Refused { code, by } => {
                let by = by.iter().cloned();
                return f.write_str(
                    &["refused".to_owned(), code.clone()]
                        .into_iter()
                        .chain(by)
                        .collect::<Vec<_>>()
                        .join(" "),
                );
            }
            Event::Message { pattern, channel, payload } => {
                let kind = if pattern.is_some() { "pmessage" } else { "message" };
                let names = pattern.iter().chain([channel, payload]).cloned();
                [kind.into()].into_iter().chain(names).collect()
            }
        };
        let words: Vec<_> = words.iter().map(|word| Value::bulk(word).to_string()).collect();
        f.write_str(&words.join(" "))
    }
}

/// A client, and what it is owed.
pub struct Speaker {
    wire: Wire,
    unanswered: VecDeque<Vec<Vec<u8>>>,
    last_id: u64,
    channels: BTreeSet<Vec<u8>>,
    patterns: BTreeSet<Vec<u8>>,
}

enum Wire {
    Json(Box<Client>),
    Resp(RespClient),
}

impl Speaker {
    /// A client that comes in by this door. The seed decides how what it says is
    /// cut into frames, where it is.
    pub async fn connect(server: &Server, door: Door, seed: u64) -> Result<Speaker> {
        let mut wire = match door {
            Door::Json => Wire::Json(Box::new(server.client().await?)),
            Door::Resp2 | Door::Resp3 => {
                Wire::Resp(RespClient::connect(server.resp_address().await?).await?)
            }
            Door::Framed => Wire::Resp(RespClient::connect_framed(server, seed).await?),
        };
        if let (Wire::Resp(client), Door::Resp3 | Door::Framed) = (&mut wire, door) {
            let greeting = client.call(&["HELLO", "3"]).await?;
            ensure!(matches!(greeting, Value::Aggregate(Shape::Map, _)), "{greeting}");
        }
        let (channels, patterns) = Default::default();
        Ok(Speaker { wire, unanswered: VecDeque::new(), last_id: 0, channels, patterns })
    }

    /// Says these commands at once: in one frame, or in one piece.
    pub async fn say(&mut self, commands: Vec<Vec<Vec<u8>>>) -> Result<()> {
        match &mut self.wire {
            Wire::Json(client) => {
                let mut written: Vec<Json> = Vec::new();
                for (id, words) in (self.last_id + 1..).zip(&commands) {
                    written.push(
                        [Json::from(id)]
                            .into_iter()
                            .chain(words.iter().map(written_as_json))
                            .collect(),
                    );
                }
                self.last_id += commands.len() as u64;
                let frame = match written.as_slice() {
                    [command] => command.clone(),
                    _ => Json::Array(written),
                };
                client.send(Message::text(frame.to_string())).await?;
            }
            Wire::Resp(client) => {
                let bytes: Vec<u8> =
                    commands.iter().flat_map(|words| value::command(words)).collect();
                client.send(&bytes).await?;
            }
        }
        self.unanswered.extend(commands);
        Ok(())
    }

    /// Reads the next event.
    pub async fn next(&mut self) -> Result<Event> {
        match &mut self.wire {
            Wire::Json(client) => {
                let came = client.next_json().await?;
                let answers = self.last_id + 1 - self.unanswered.len() as u64;
                if came.get(0) != Some(&Json::from(answers)) {
                    return json_message(&came).with_context(|| format!("{came} came"));
                }
                let words = self.unanswered.pop_front().context("no command is unanswered")?;
                json_answer(&words, &came).with_context(|| format!("{came} came"))
            }
            Wire::Resp(client) => {
                let came = client.next().await?;
                if let Some(message) = resp_message(&came) {
                    return Ok(message);
                }
                let words = self.unanswered.pop_front().with_context(|| format!("{came} came"))?;
                if verb(&words).ends_with("SUBSCRIBE") && !matches!(came, Value::Error(_)) {
                    return self.acknowledged(&words, came).await;
                }
                resp_answer(&words, &came).with_context(|| format!("{came} came"))
            }
        }
    }

    /// All acknowledgements of a command, of which this is the first: one for each
    /// name, in order, each with what it holds after it.
    async fn acknowledged(&mut self, words: &[Vec<u8>], first: Value) -> Result<Event> {
        let verb = verb(words);
        let is_pattern = verb.starts_with('P');
        let leaves = verb.contains("UN");
        let names = words.get(1..).unwrap_or_default();
        let held = if is_pattern { &self.patterns } else { &self.channels };
        let all = names.is_empty();
        let expected = match all {
            true => held.len().max(1),
            false => names.len(),
        };
        let mut came = first;
        let mut count = 0;
        for place in 0..expected {
            if place > 0 {
                let Wire::Resp(client) = &mut self.wire else { bail!("JSON has none") };
                came = client.next().await?;
            }
            let Value::Aggregate(_, items) = &came else { bail!("{came} came") };
            let [Value::Bulk(kind), name, Value::Integer(now)] = items.as_slice() else {
                bail!("{came} came")
            };
            ensure!(kind == verb.to_ascii_lowercase().as_bytes(), "{came} came");
            let held = if is_pattern { &mut self.patterns } else { &mut self.channels };
            match name {
                Value::Bulk(name) => {
                    ensure!(all || names.get(place) == Some(name), "{came} came out of its order");
                    let was_held = match leaves {
                        true => held.remove(name),
                        false => !held.insert(name.clone()),
                    };
                    ensure!(!all || was_held, "{came} came");
                }
                Value::Null | Value::NullBulk => ensure!(all && held.is_empty(), "{came} came"),
                _ => bail!("{came} came"),
            }
            count = (self.channels.len() + self.patterns.len()) as i64;
            ensure!(*now == count, "{came} came, and it listens to {count}");
        }
        Ok(Event::Listening(count as u64))
    }

    /// Fails if anything has come that was not looked at.
    pub async fn nothing(&mut self, question: usize) -> Result<()> {
        ensure!(self.unanswered.is_empty(), "an answer to {:?} was not looked at", self.unanswered);
        let text = format!("nothing, at {question}").into_bytes();
        self.say(vec![vec![b"PING".to_vec(), text.clone()]]).await?;
        let came = self.next().await?;
        ensure!(came == Event::Text(text), "this came: {came}");
        Ok(())
    }

    /// The connection must end in good order, with nothing before that.
    pub async fn ends(&mut self) -> Result<()> {
        let code = match &mut self.wire {
            Wire::Json(client) => client.next_close().await?.0,
            Wire::Resp(client) => client.ends().await?,
        };
        ensure!(matches!(code, None | Some(1000)), "the code of the Close is {code:?}");
        Ok(())
    }
}

fn verb(words: &[Vec<u8>]) -> String {
    let verb = words.first().map(|verb| verb.to_ascii_uppercase()).unwrap_or_default();
    String::from_utf8_lossy(&verb).into_owned()
}

/// A string where the bytes are UTF-8, and base64 where they are not.
fn written_as_json(bytes: &Vec<u8>) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": BASE64.encode(bytes) }),
    }
}

fn bytes_of_json(json: &Json) -> Result<Vec<u8>> {
    match (json, json.get("base64")) {
        (Json::String(text), _) => Ok(text.clone().into_bytes()),
        (_, Some(Json::String(base64))) => Ok(BASE64.decode(base64)?),
        _ => bail!("{json} is no bytes"),
    }
}

fn json_message(came: &Json) -> Result<Event> {
    let items = came.as_array().context("it is no array")?;
    let (kind, names) = items.split_first().context("it is empty")?;
    let mut bytes = names.iter().map(bytes_of_json).collect::<Result<VecDeque<_>>>()?;
    let pattern = match (kind.as_str(), bytes.len()) {
        (Some("message"), 2) => None,
        (Some("pmessage"), 3) => bytes.pop_front(),
        _ => bail!("it is no message"),
    };
    let [channel, payload] = <[_; 2]>::try_from(Vec::from(bytes)).expect("they were counted");
    Ok(Event::Message { pattern, channel, payload })
}

fn json_answer(words: &[Vec<u8>], came: &Json) -> Result<Event> {
    let value = came.get(2).context("it is too short")?;
    if came.get(1) == Some(&"ERR".into()) {
        let code = value.get("code").and_then(Json::as_str).context("there is no code")?;
        let by = value.get("by").and_then(Json::as_str);
        let by = by.map(|by| by.split_once('@').map_or(by, |(name, _)| name).to_owned());
        return Ok(Event::Refused { code: code.to_owned(), by });
    }
    ensure!(came.get(1) == Some(&"OK".into()), "neither OK nor ERR");
    let verb = verb(words);
    Ok(match value {
        Json::Number(number) => {
            let number = number.as_u64().context("it is no number")?;
            if verb.ends_with("SUBSCRIBE") {
                Event::Listening(number)
            } else {
                Event::Number(number)
            }
        }
        Json::Array(names) => {
            let mut names = names.iter().map(bytes_of_json).collect::<Result<Vec<_>>>()?;
            names.sort();
            Event::Names(names)
        }
        Json::Object(_) if verb == "PING" => Event::Text(bytes_of_json(value)?),
        Json::Object(counts) => {
            let mut all = Vec::new();
            for (name, count) in counts {
                // A name that is not UTF-8 is the text of what it would be elsewhere.
                let name = match name.starts_with("{\"base64\"") {
                    true => bytes_of_json(&serde_json::from_str(name)?)?,
                    false => name.clone().into_bytes(),
                };
                all.push((name, count.as_u64().context("it is no number")?));
            }
            all.sort();
            Event::Counts(all)
        }
        Json::String(text) if verb == "PING" => Event::Text(text.clone().into_bytes()),
        Json::String(text) if text == "OK" => Event::Ok,
        _ => bail!("it answers nothing"),
    })
}

fn resp_message(came: &Value) -> Option<Event> {
    let Value::Aggregate(Shape::Array | Shape::Push, items) = came else { return None };
    let bytes: Option<Vec<_>> = items
        .iter()
        .map(|item| match item {
            Value::Bulk(bytes) => Some(bytes.clone()),
            _ => None,
        })
        .collect();
    match bytes?.as_slice() {
        [kind, channel, payload] if kind == b"message" => {
            let (channel, payload) = (channel.clone(), payload.clone());
            Some(Event::Message { pattern: None, channel, payload })
        }
        [kind, pattern, channel, payload] if kind == b"pmessage" => {
            let (channel, payload) = (channel.clone(), payload.clone());
            Some(Event::Message { pattern: Some(pattern.clone()), channel, payload })
        }
        _ => None,
    }
}

fn resp_answer(words: &[Vec<u8>], came: &Value) -> Result<Event> {
    Ok(match came {
        Value::Error(text) => refusal(std::str::from_utf8(text)?),
        Value::Integer(number) => Event::Number(u64::try_from(*number)?),
        Value::Bulk(text) => Event::Text(text.clone()),
        Value::Simple(text) if verb(words) == "PING" => Event::Text(text.clone()),
        Value::Simple(text) if text == b"OK" => Event::Ok,
        Value::Aggregate(Shape::Array, items) => match (verb(words).as_str(), items.as_slice()) {
            // A listener is answered like this in RESP2, with nothing for PONG.
            ("PING", [Value::Bulk(pong), Value::Bulk(text)]) if pong == b"pong" => {
                Event::Text(if words.len() == 1 { b"PONG".to_vec() } else { text.clone() })
            }
            _ if items.iter().all(|item| matches!(item, Value::Bulk(_))) && !is_numsub(words) => {
                let mut names: Vec<_> = items.iter().map(bytes_of).collect::<Result<_>>()?;
                names.sort();
                Event::Names(names)
            }
            _ => {
                let mut counts = Vec::new();
                for pair in items.chunks(2) {
                    let [name, Value::Integer(count)] = pair else { bail!("it is no count") };
                    counts.push((bytes_of(name)?, u64::try_from(*count)?));
                }
                counts.sort();
                Event::Counts(counts)
            }
        },
        _ => bail!("it answers nothing"),
    })
}

fn is_numsub(words: &[Vec<u8>]) -> bool {
    words.get(1).is_some_and(|word| word.eq_ignore_ascii_case(b"NUMSUB"))
}

fn bytes_of(value: &Value) -> Result<Vec<u8>> {
    match value {
        Value::Bulk(bytes) => Ok(bytes.clone()),
        _ => bail!("{value} is no bytes"),
    }
}

/// What Redis' words for it mean.
fn refusal(text: &str) -> Event {
    const REDIS: &[(&str, &str)] = &[
        ("ERR wrong number of arguments", "ARITY"),
        ("ERR unknown subcommand or wrong number of arguments", "ARITY"),
        ("ERR syntax error", "ARITY"),
        ("ERR unknown command", "UNKNOWN"),
        ("ERR unknown subcommand", "UNKNOWN"),
        ("ERR AUTH <password> called without any password configured", "NOAUTH"),
        ("WRONGPASS ", "NOAUTH"),
    ];
    let code = match REDIS.iter().find(|(start, _)| text.starts_with(start)) {
        Some((_, code)) => code,
        None => text.split(' ').next().unwrap_or_default(),
    };
    let by = text.strip_suffix(']').and_then(|text| text.rsplit_once(" ["));
    let by = by.and_then(|(_, by)| by.split_once('@')).map(|(name, _)| name.to_owned());
    Event::Refused { code: code.to_owned(), by }
}
