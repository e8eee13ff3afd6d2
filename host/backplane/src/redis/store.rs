//! Histories and keys in Redis or Valkey.
//!
//! The history of a channel is a Redis stream, whose entries have the positions as their IDs, and a
//! hash with the epoch, the last offset and the run id of the server. The stream expires when its
//! newest entry is too old, the hash when the channel has been idle for long enough. Scripts
//! change both in one step. A server with another run id was started again or took over, and may
//! have lost publications: the stream then has a new epoch. In a Redis Cluster all keys of a channel
//! are in one slot.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster_async::ClusterConnection;
use redis::{
    Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, Script, ServerErrorKind, Value, cmd,
};

use super::{Position, RESERVED, positions};
use crate::append::{Append, Ruled};
use crate::{LinkError, records};
use switchyard_history::{Entry, Limits, Look, Message, Page, Reason, Resume, Resumed};
use switchyard_types::command::Published;
use switchyard_types::history::{HistoryRule, SharedRule};

static APPEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("append.lua")));
static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read.lua")));

/// The histories and keys in one Redis.
#[derive(Clone)]
pub struct RedisStore {
    connection: Connection,
    prefix: Arc<[u8]>,
    /// The run id of the server; none: there are several, and the scripts ask the one that they
    /// run on.
    run_id: Arc<str>,
}

#[derive(Clone)]
enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// The part of a stream that is read.
struct Range<'a> {
    lowest: &'a [u8],
    highest: &'a [u8],
    is_reverse: bool,
    messages_max: usize,
    bytes_max: usize,
}

/// What was read.
struct Part {
    head: Position,
    has_more: bool,
    messages: Vec<Message>,
}

impl RedisStore {
    /// A store over the connection to a single server with this run id.
    pub fn single(connection: MultiplexedConnection, prefix: &[u8], run_id: String) -> RedisStore {
        let connection = Connection::Single(connection);
        RedisStore { connection, prefix: prefix.into(), run_id: run_id.into() }
    }

    /// A store over the connection to a Redis Cluster.
    pub fn cluster(connection: ClusterConnection, prefix: &[u8]) -> RedisStore {
        let connection = Connection::Cluster(connection);
        RedisStore { connection, prefix: prefix.into(), run_id: "".into() }
    }

    /// Checks that the user may do what histories need.
    pub async fn probe(&self) -> Result<(), LinkError> {
        let rule = HistoryRule { messages: 1, age_ms: 1_000, idle_ms: 1_000 };
        let rule = SharedRule { rule, since_us: 0 };
        self.heads(&[(b"__switchyard:probe", rule)]).await.map(drop)
    }

    /// See `Backplane::append`.
    pub async fn append(&self, appends: &[Append]) -> Vec<Result<Published, LinkError>> {
        let invocations: Vec<_> = appends.iter().map(|append| self.invocation(append)).collect();
        let answers = self.invoke(&APPEND, &invocations).await;
        answers.into_iter().map(|answer| published(answer?)).collect()
    }

    fn invocation(&self, append: &Append) -> Invocation {
        let Append { publication, rule, deliveries, key_time } = append;
        let options = publication.options.as_deref();
        let key = options.and_then(|options| options.key.as_deref());
        let [stream, meta] = self.keys(&publication.channel);
        let record =
            key.map_or_else(|| stream.clone(), |key| self.record(&publication.channel, key));
        let channel = [&*self.prefix, &publication.channel].concat();
        let tags = options.and_then(|options| options.tags.as_deref()).unwrap_or_default();
        let version = options.and_then(|options| options.version);
        let number = |number: Option<u64>| number.map(|number| number.to_string().into_bytes());
        let since_us = rule.map_or(0, |shared| shared.since_us);
        let rule = rule.map(|shared| shared.rule);
        let arguments = [
            Some(channel),
            Some(positions(&self.prefix, &publication.channel)),
            Some(publication.payload.to_vec()),
            Some(tags.to_vec()),
            number(version),
            Some(self.run_id.as_bytes().to_vec()),
            number(rule.map(|rule| rule.messages as u64)),
            number(rule.map(|rule| rule.age_ms)),
            number(rule.map(|rule| rule.idle_ms)),
            Some(fingerprint(&publication.payload).into_bytes()),
            number(key.map(|_| key_time.as_millis() as u64)),
            number(Some(*deliveries)),
            number(Some(since_us)),
        ];
        Invocation {
            keys: vec![stream, meta, record],
            arguments: arguments.into_iter().map(Option::unwrap_or_default).collect(),
        }
    }

    /// See `Backplane::known`.
    pub async fn known(&self, keys: &[(&[u8], &str)]) -> Vec<Result<Option<Published>, LinkError>> {
        let mut known = Vec::with_capacity(keys.len());
        for (channel, key) in keys {
            let mut command = cmd("GET");
            command.arg(self.record(channel, key));
            let record: Result<Option<String>, LinkError> = self.query(&command).await;
            let read = |text: String| records::read(&text).ok_or_else(unexpected);
            known.push(record.and_then(|record| record.map(read).transpose()));
        }
        known
    }

    /// See `Backplane::remember`.
    pub async fn remember(
        &self,
        (channel, key): (&[u8], &str),
        answer: &Published,
        time: Duration,
    ) -> Result<(), LinkError> {
        let mut command = cmd("SET");
        command.arg(self.record(channel, key)).arg(records::write(answer));
        command.arg("NX").arg("PX").arg(time.as_millis() as u64);
        self.query::<Value>(&command).await.map(drop)
    }

    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, LinkError> {
        Ok(match &self.connection {
            Connection::Single(connection) => command.query_async(&mut connection.clone()).await?,
            Connection::Cluster(connection) => command.query_async(&mut connection.clone()).await?,
        })
    }

    /// See `Backplane::resume`.
    pub async fn resume(
        &self,
        channel: Ruled<'_>,
        request: &Resume,
        limits: Limits,
    ) -> Result<Resumed, LinkError> {
        let Limits { resume_messages_max: messages_max, resume_bytes_max: bytes_max, .. } = limits;
        let mut reason = None;
        if let Some(from) = request.position {
            let lowest = above(from);
            let range = Range {
                lowest: lowest.as_bytes(),
                highest: b"+",
                is_reverse: false,
                messages_max,
                bytes_max,
            };
            let Part { head, has_more, messages } = self.read(channel, &range).await?;
            let bytes: usize = messages.iter().map(|message| message.entry.answer_bytes()).sum();
            let first = messages.first().map_or(head.offset + 1, |first| first.position.offset);
            reason = if from.epoch != head.epoch || from.offset > head.offset {
                Some(Reason::Epoch)
            } else if first != from.offset + 1 {
                Some(Reason::Trimmed)
            } else if has_more || bytes > bytes_max {
                Some(Reason::Many)
            } else if messages.len() as u64 != head.offset - from.offset {
                Some(Reason::Trimmed)
            } else {
                return Ok(Resumed { position: head, recovered: true, reason: None, messages });
            };
            if request.last.is_none() && request.since_ms.is_none() {
                let messages = Vec::new();
                return Ok(Resumed { position: head, recovered: false, reason, messages });
            }
        }
        let rewinds = request.last.is_some() || request.since_ms.is_some();
        let messages_max = match rewinds {
            true => request.last.unwrap_or(messages_max).min(messages_max),
            false => 0,
        };
        let range =
            Range { lowest: b"-", highest: b"+", is_reverse: true, messages_max, bytes_max };
        let Part { head, mut messages, .. } = self.read(channel, &range).await?;
        let since_ms = request.since_ms.unwrap_or(0);
        let mut bytes = 0;
        let sent = messages.iter().take_while(|message| {
            bytes += message.entry.answer_bytes();
            message.entry.unix_ms() >= since_ms && bytes <= bytes_max
        });
        messages.truncate(sent.count());
        messages.reverse();
        Ok(Resumed { position: head, recovered: false, reason, messages })
    }

    /// See `Backplane::look`.
    pub async fn look(
        &self,
        channel: Ruled<'_>,
        look: &Look,
        limits: Limits,
    ) -> Result<Page, LinkError> {
        let lowest = look.after.map_or("-".to_owned(), above);
        let highest = match (look.before, look.until) {
            (Some(before), Some(until)) if until < before => until.to_string(),
            // Nothing is there, and Redis takes nothing that is below it.
            (Some(Position { epoch: 0, offset: 0 }), _) => "0-0".to_owned(),
            (Some(before), _) => format!("({before}"),
            (None, Some(until)) => until.to_string(),
            (None, None) => "+".to_owned(),
        };
        let range = Range {
            lowest: lowest.as_bytes(),
            highest: highest.as_bytes(),
            is_reverse: look.reverse,
            messages_max: look.limit.min(limits.resume_messages_max),
            bytes_max: limits.resume_bytes_max,
        };
        let part = self.read(channel, &range).await?;
        let gap = match look.after {
            Some(after) => self.has_gap(channel, after, look, &range, &part).await?,
            None => false,
        };
        let Part { head, has_more, messages } = part;
        let next = messages.last().filter(|_| has_more).map(|message| message.position);
        Ok(Page { position: head, messages, next, gap })
    }

    /// Whether something after this position is gone.
    async fn has_gap(
        &self,
        channel: Ruled<'_>,
        after: Position,
        look: &Look,
        range: &Range<'_>,
        part: &Part,
    ) -> Result<bool, LinkError> {
        let Part { head, has_more, messages } = part;
        if after.epoch != head.epoch || after.offset > head.offset {
            return Ok(true);
        }
        if after.offset == head.offset {
            return Ok(false);
        }
        // Another program may have removed messages.
        let is_hole = |pair: &[Message]| match pair {
            [one, other] => one.position.offset.abs_diff(other.position.offset) != 1,
            _ => false,
        };
        let newest = match range.is_reverse {
            true => messages.first(),
            false => messages.last().filter(|_| !has_more),
        };
        let is_newest_gone = look.before.is_none()
            && look.until.is_none()
            && newest.is_some_and(|newest| newest.position != *head);
        if is_newest_gone || messages.windows(2).any(is_hole) {
            return Ok(true);
        }
        let is_next =
            |message: &Message| message.position == Position { offset: after.offset + 1, ..after };
        if messages.first().filter(|_| !range.is_reverse).is_some_and(is_next) {
            return Ok(false);
        }
        let first = Range { is_reverse: false, messages_max: 1, highest: b"+", ..*range };
        let Part { messages, .. } = self.read(channel, &first).await?;
        Ok(!messages.first().is_some_and(is_next))
    }

    /// See `Store::heads`.
    pub async fn heads(&self, channels: &[Ruled<'_>]) -> Result<Vec<Option<Position>>, LinkError> {
        let range =
            Range { lowest: b"-", highest: b"+", is_reverse: false, messages_max: 0, bytes_max: 0 };
        let invocations: Vec<_> =
            channels.iter().map(|channel| self.reading(*channel, &range)).collect();
        let answers = self.invoke(&READ, &invocations).await;
        let head = |answer: Result<Value, LinkError>| match answer {
            Ok(answer) => Ok(Some(part(answer)?.head)),
            // The others are not affected.
            Err(LinkError::Refused(_)) => Ok(None),
            Err(problem) => Err(problem),
        };
        answers.into_iter().map(head).collect()
    }

    /// See `Store::keep`.
    pub async fn keep(&self, channels: &[Ruled<'_>]) -> Result<(), LinkError> {
        let mut pipeline = Pipeline::with_capacity(channels.len());
        for (channel, rule) in channels {
            let [_, meta] = self.keys(channel);
            pipeline.cmd("PEXPIRE").arg(meta).arg(rule.rule.idle_ms);
        }
        let _: Value = match &self.connection {
            Connection::Single(connection) => pipeline.query_async(&mut connection.clone()).await?,
            Connection::Cluster(connection) => {
                pipeline.query_async(&mut connection.clone()).await?
            }
        };
        Ok(())
    }

    /// See `Backplane::purge`.
    pub async fn purge(&self, channel: &[u8]) -> Result<u64, LinkError> {
        let keys = self.keys(channel);
        let [stream, _] = &keys;
        let mut length = cmd("XLEN");
        length.arg(stream);
        let mut deletion = cmd("DEL");
        deletion.arg(&keys[..]);
        let messages = self.query(&length).await?;
        self.query::<Value>(&deletion).await?;
        Ok(messages)
    }

    async fn read(&self, channel: Ruled<'_>, range: &Range<'_>) -> Result<Part, LinkError> {
        let invocation = self.reading(channel, range);
        let answers = self.invoke(&READ, std::slice::from_ref(&invocation)).await;
        part(answers.into_iter().next().unwrap_or_else(|| Err(unexpected()))?)
    }

    fn reading(&self, (channel, shared): Ruled<'_>, range: &Range<'_>) -> Invocation {
        let SharedRule { rule, since_us } = shared;
        let number = |number: usize| number.to_string().into_bytes();
        Invocation {
            keys: self.keys(channel).into(),
            arguments: vec![
                self.run_id.as_bytes().to_vec(),
                rule.age_ms.to_string().into_bytes(),
                rule.idle_ms.to_string().into_bytes(),
                range.lowest.to_vec(),
                range.highest.to_vec(),
                if range.is_reverse { b"1".to_vec() } else { Vec::new() },
                number(range.messages_max),
                number(range.bytes_max),
                number(rule.messages),
                since_us.to_string().into_bytes(),
            ],
        }
    }

    /// The keys of the stream of a channel and of its metadata. Their hash tag is the channel.
    fn keys(&self, channel: &[u8]) -> [Vec<u8>; 2] {
        let mut tagged = [&*self.prefix, RESERVED, b"history:{"].concat();
        for byte in channel {
            match byte {
                b'}' => tagged.extend_from_slice(b"%7D"),
                b'%' => tagged.extend_from_slice(b"%25"),
                _ => tagged.push(*byte),
            }
        }
        tagged.push(b'}');
        let meta = [&tagged, &b":meta"[..]].concat();
        [tagged, meta]
    }

    /// The key of the record of the answer to a publication with a key.
    fn record(&self, channel: &[u8], key: &str) -> Vec<u8> {
        let [stream, _] = self.keys(channel);
        [&stream, &b":key:"[..], key.as_bytes()].concat()
    }

    /// Runs a script several times, in order. A server that does not know it gets it.
    async fn invoke(
        &self,
        script: &Script,
        invocations: &[Invocation],
    ) -> Vec<Result<Value, LinkError>> {
        let mut answers = Vec::with_capacity(invocations.len());
        match &self.connection {
            Connection::Single(connection) => {
                let mut connection = connection.clone();
                let mut has_loaded = false;
                while let Some(rest) =
                    invocations.get(answers.len()..).filter(|rest| !rest.is_empty())
                {
                    let mut pipeline = Pipeline::with_capacity(rest.len());
                    pipeline.ignore_errors();
                    for Invocation { keys, arguments } in rest {
                        pipeline.cmd("EVALSHA").arg(script.get_hash()).arg(keys.len());
                        pipeline.arg(keys).arg(arguments);
                    }
                    let results: Result<Vec<Result<Value, RedisError>>, RedisError> =
                        pipeline.query_async(&mut connection).await;
                    let results = match results {
                        Ok(results) => results,
                        Err(error) => {
                            let problem = LinkError::from(error);
                            answers.extend(rest.iter().map(|_| Err(problem.clone())));
                            break;
                        }
                    };
                    for result in results {
                        match result {
                            Err(error) if is_unknown(&error) && !has_loaded => break,
                            result => answers.push(result.map_err(of_key)),
                        }
                    }
                    if answers.len() < invocations.len() {
                        if std::mem::replace(&mut has_loaded, true) {
                            answers.resize_with(invocations.len(), || Err(unexpected()));
                        } else if let Err(error) = script.load_async(&mut connection).await {
                            let problem = LinkError::from(error);
                            answers.resize_with(invocations.len(), || Err(problem.clone()));
                        }
                    }
                }
            }
            Connection::Cluster(connection) => {
                for Invocation { keys, arguments } in invocations {
                    let mut invocation = script.prepare_invoke();
                    for key in keys {
                        invocation.key(key);
                    }
                    for argument in arguments {
                        invocation.arg(argument);
                    }
                    let answer = invocation.invoke_async(&mut connection.clone()).await;
                    answers.push(answer.map_err(of_key));
                }
            }
        }
        answers
    }
}

/// The lowest ID above a position, as XRANGE takes it. Nothing has the highest one.
fn above(position: Position) -> String {
    const HIGHEST: Position = Position { epoch: u64::MAX, offset: u64::MAX };
    if position == HIGHEST { position.to_string() } else { format!("({position}") }
}

/// The arguments of one run of a script.
struct Invocation {
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

/// An error that may be of one key only: another program has changed it.
fn of_key(error: RedisError) -> LinkError {
    match error.code() {
        Some("WRONGTYPE" | "ERR") => LinkError::Refused(error.to_string()),
        _ if error.to_string().contains("WRONGTYPE") => LinkError::Refused(error.to_string()),
        _ => error.into(),
    }
}

fn is_unknown(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Distinguishes the message that belongs to a position from others on the same channel.
pub fn fingerprint(payload: &[u8]) -> String {
    format!("{}-{:08x}", payload.len(), crc32fast::hash(payload))
}

/// The answer of `append.lua`.
fn published(answer: Value) -> Result<Published, LinkError> {
    let text: String = redis::from_redis_value(answer).map_err(|_| unexpected())?;
    records::read(&text).ok_or_else(unexpected)
}

/// The answer of `read.lua`.
fn part(answer: Value) -> Result<Part, LinkError> {
    type Answer = (Vec<u8>, String, Vec<(Vec<u8>, u64, Vec<u8>, Vec<u8>)>);
    let (head, more, entries): Answer =
        redis::from_redis_value(answer).map_err(|_| unexpected())?;
    let position = |text: &[u8]| Position::parse(text).ok_or_else(unexpected);
    let message = |(id, unix_ms, payload, tags): (Vec<u8>, u64, Vec<u8>, Vec<u8>)| {
        let tags = (!tags.is_empty()).then_some(&*tags);
        let entry = Entry::restored(&payload, None, tags, unix_ms);
        Ok(Message { position: position(&id)?, entry })
    };
    Ok(Part {
        head: position(&head)?,
        has_more: more == "1",
        messages: entries.into_iter().map(message).collect::<Result<_, LinkError>>()?,
    })
}

fn unexpected() -> LinkError {
    LinkError::Failed("a script had an unexpected answer".to_owned())
}
