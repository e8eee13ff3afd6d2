//! Publications on channels with history, and with keys, in JetStream.
//!
//! A publication is stored, and the server republishes it to all nodes and plain subscribers. A key
//! is the message id, which JetStream stores once within its window; the answer is remembered in a
//! record of its own. A version is compared with the versions that the history holds, and the message
//! is stored only if the channel has no newer one by then.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::publish::PublishAck;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::failed;
use super::fetch::{BATCH_MAX, Start, now_ms, oldest_ms, unix_ms};
use super::streams::{APPEND, Class, Known, Needs, Streams, epoch_of};
use crate::append::{Append, Ruled};
use crate::{LinkError, records};
use switchyard_types::command::Published;
use switchyard_types::history::{HistoryRule, SharedRule};
use switchyard_types::keyed_hash::KeyedMap;
use switchyard_types::position::Position;

/// The headers of stored messages.
pub(super) const TAGS: &str = "Switchyard-Tags";
const VERSION: &str = "Switchyard-Version";
const DELIVERIES: &str = "Switchyard-Deliveries";
/// How often a publication with a version is tried while others publish on its channel.
const ATTEMPTS: usize = 64;
/// How many channels' newest versions are remembered.
const VERSIONS_MAX: usize = 10_000;

/// The histories and keys in one NATS.
#[derive(Clone)]
pub struct NatsStore {
    pub(super) streams: Streams,
    node: Arc<str>,
    pub(super) key_time: Duration,
    /// The largest message of the server.
    bytes_max: usize,
    /// How many messages are requested at once: the client drops more than may wait.
    pub(super) batch_max: usize,
    /// When the anchors of channels are looked at again.
    pub(super) due: Arc<Mutex<KeyedMap<Arc<[u8]>, std::time::Instant>>>,
    /// Until when channels have ended, by the subjects of their messages; see `end_older`.
    pub(super) ended: Arc<tokio::sync::Mutex<KeyedMap<String, u64>>>,
    /// The newest version of channels.
    versions: Arc<Mutex<HashMap<(u64, String), Versions>>>,
}

/// What is known of the versions of a channel.
#[derive(Debug, Clone, Copy, Default)]
struct Versions {
    /// All messages up to this sequence were looked at.
    up_to: u64,
    /// The newest message with a version: its sequence, its time and the version.
    newest: Option<(u64, u64, u64)>,
}

/// A channel and its stream.
pub(super) struct Place {
    pub known: Arc<Known>,
    pub subject: String,
    pub anchors: String,
    pub rule: HistoryRule,
}

impl Place {
    pub fn position(&self, offset: u64) -> Position {
        Position { epoch: self.known.epoch, offset }
    }
}

/// A publication that was sent.
enum Sent {
    Settled(Result<Published, LinkError>),
    Waiting { known: Arc<Known>, hash: Option<String>, ack: PublishAckFuture },
}

impl NatsStore {
    pub(super) fn new(
        streams: Streams,
        node: &str,
        key_time: Duration,
        bytes_max: usize,
        pending_max: usize,
    ) -> NatsStore {
        NatsStore {
            streams,
            node: node.into(),
            key_time,
            bytes_max,
            batch_max: (pending_max / 2).clamp(1, BATCH_MAX),
            due: Arc::default(),
            ended: Arc::default(),
            versions: Arc::default(),
        }
    }

    /// Checks that there is JetStream, and creates the streams of these rules.
    pub(super) async fn prepare(&self, rules: &[HistoryRule]) -> Result<(), LinkError> {
        self.streams.probe().await?;
        for rule in rules {
            self.streams.get(Class::of(*rule), Needs::of(*rule, self.key_time)).await?;
        }
        Ok(())
    }

    /// The channel's stream.
    pub(super) async fn place(&self, (channel, shared): Ruled<'_>) -> Result<Place, LinkError> {
        let SharedRule { rule, since_us } = shared;
        let class = Class::of(rule);
        let known = self.streams.get(class, Needs::of(rule, self.key_time)).await?;
        let subject = self.streams.subject(class, channel);
        let anchors = self.streams.anchors(class, channel);
        let place = Place { known, subject, anchors, rule };
        if since_us > 0 {
            self.end_older(&place, since_us).await?;
        }
        Ok(place)
    }

    /// See `Backplane::append`.
    pub async fn append(&self, appends: &[Append]) -> Vec<Result<Published, LinkError>> {
        let mut sent = Vec::with_capacity(appends.len());
        for append in appends {
            sent.push(
                self.send(append).await.unwrap_or_else(|problem| Sent::Settled(Err(problem))),
            );
        }
        let mut published = Vec::with_capacity(appends.len());
        for (append, sent) in appends.iter().zip(sent) {
            published.push(self.settle(append, sent).await);
        }
        published
    }

    async fn send(&self, append: &Append) -> Result<Sent, LinkError> {
        let Append { publication, rule, key_time, .. } = append;
        let options = publication.options.as_deref();
        let key = options.and_then(|options| options.key.as_deref());
        let hash = key.map(|key| hash(&publication.channel, key));
        let message = self.message(append, hash.as_deref())?;
        let Some(rule) = rule else {
            let known = self.streams.get(Class::Keys, Needs::of_keys(*key_time)).await?;
            let subject = self.streams.subject(Class::Keys, &publication.channel);
            return Ok(Sent::Waiting { known, hash, ack: self.publish(subject, message).await? });
        };
        let place = self.place((&publication.channel, *rule)).await?;
        match options.and_then(|options| options.version) {
            Some(version) => {
                let published = self.append_version(&place, append, hash.as_deref(), version);
                Ok(Sent::Settled(published.await))
            }
            None => {
                let ack = self.publish(place.subject, message).await?;
                Ok(Sent::Waiting { known: place.known, hash, ack })
            }
        }
    }

    async fn settle(&self, append: &Append, sent: Sent) -> Result<Published, LinkError> {
        let (known, hash, ack) = match sent {
            Sent::Settled(published) => return published,
            Sent::Waiting { known, hash, ack } => (known, hash, ack),
        };
        let ack = ack.await.inspect_err(|error| self.look_again(&known, error)).map_err(failed)?;
        self.acknowledged(append, &known, hash.as_deref(), &ack).await
    }

    /// The answer to a publication that is stored.
    async fn acknowledged(
        &self,
        append: &Append,
        known: &Known,
        hash: Option<&str>,
        ack: &PublishAck,
    ) -> Result<Published, LinkError> {
        if ack.stream != known.name {
            // The stream was replaced.
            self.streams.forget(known);
        }
        let epoch = epoch_of(&ack.stream).ok_or_else(|| failed("a stream without an epoch"))?;
        let position = append.rule.map(|_| Position { epoch, offset: ack.sequence });
        let mut published = Published { deliveries: append.deliveries, position, is_stale: false };
        let Some(hash) = hash else { return Ok(published) };
        if ack.duplicate {
            if let Some(first) = self.answer(hash, append.key_time).await? {
                return Ok(first);
            }
            // The first publisher has not remembered its answer yet, or has ended.
            let deliveries = self
                .get(&ack.stream, ack.sequence)
                .await?
                .and_then(|message| message.headers.get(DELIVERIES)?.as_str().parse().ok());
            published.deliveries = deliveries.unwrap_or(published.deliveries);
        }
        self.remember_hash(hash, &published, append.key_time).await?;
        Ok(published)
    }

    async fn append_version(
        &self,
        place: &Place,
        append: &Append,
        hash: Option<&str>,
        version: u64,
    ) -> Result<Published, LinkError> {
        for _ in 0..ATTEMPTS {
            let newest = self.last(&place.known, &place.subject).await?;
            let held = self.newest_version(place, newest.as_ref()).await?;
            let is_stale = held.is_some_and(|held| held >= version);
            let last = match (&newest, is_stale, hash) {
                (_, true, None) => return Ok(stale()),
                // The key comes first: JetStream recognizes it before it compares this, which is
                // never equal.
                (_, true, Some(_)) => u64::MAX >> 1,
                (Some(newest), false, _) => newest.sequence,
                (None, false, _) => 0,
            };
            let message = self.message(append, hash)?.expected_last_subject_sequence(last);
            let ack = self.publish(place.subject.clone(), message).await?;
            match ack.await {
                Ok(ack) => {
                    return self.acknowledged(append, &place.known, hash, &ack).await;
                }
                Err(error) if error.kind() != PublishErrorKind::WrongLastSequence => {
                    self.look_again(&place.known, &error);
                    return Err(failed(error));
                }
                Err(_) if is_stale => {
                    if let Some(hash) = hash {
                        self.remember_hash(hash, &stale(), append.key_time).await?;
                    }
                    return Ok(stale());
                }
                // Another publication came first.
                Err(_) => {}
            }
        }
        Err(failed("too many others publish on this channel: versions cannot be compared"))
    }

    /// The highest version that the history holds.
    async fn newest_version(
        &self,
        place: &Place,
        newest: Option<&StreamMessage>,
    ) -> Result<Option<u64>, LinkError> {
        let Some(newest) = newest else { return Ok(None) };
        let key = (place.known.epoch, place.subject.clone());
        let mut versions = match version_of(&newest.headers) {
            Some(version) => Versions {
                up_to: newest.sequence,
                newest: Some((newest.sequence, unix_ms(newest), version)),
            },
            None => self.versions.lock().get(&key).copied().unwrap_or_default(),
        };
        if versions.up_to < newest.sequence {
            let start = Start::Sequence(versions.up_to + 1);
            let consumer = self.consumer(place, start, true).await?;
            let up_to = newest.sequence;
            self.drain(place, consumer, up_to, |message, sequence, unix_ms| {
                let headers = message.headers.as_ref();
                if let Some(version) = headers.and_then(version_of) {
                    versions.newest = Some((sequence, unix_ms, version));
                }
                true
            })
            .await?;
            versions.up_to = up_to;
        }
        {
            let mut known = self.versions.lock();
            if known.len() >= VERSIONS_MAX {
                known.clear();
            }
            known.insert(key, versions);
        }
        let Some((sequence, unix_ms, version)) = versions.newest else { return Ok(None) };
        let is_held = sequence == newest.sequence
            || self.get(&place.known.name, sequence).await?.is_some()
                && self.count(place, sequence).await? <= place.rule.messages as u64;
        let is_young = unix_ms > oldest_ms(place);
        Ok((is_held && is_young).then_some(version))
    }

    fn message(&self, append: &Append, hash: Option<&str>) -> Result<PublishMessage, LinkError> {
        /// Continues over all connections of this process.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let Append { publication, deliveries, .. } = append;
        let options = publication.options.as_deref();
        let mut headers = HeaderMap::new();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        headers.insert(APPEND, format!("{}-{number}", self.node).as_str());
        headers.insert(DELIVERIES, deliveries.to_string().as_str());
        if let Some(version) = options.and_then(|options| options.version) {
            headers.insert(VERSION, version.to_string().as_str());
        }
        if let Some(tags) = options.and_then(|options| options.tags.as_deref()) {
            // Between the texts of a JSON object, white space means nothing; within, it is escaped.
            headers.insert(TAGS, String::from_utf8_lossy(tags).replace(['\r', '\n'], " ").as_str());
        }
        let bytes: usize = headers
            .iter()
            .map(|(name, values)| {
                let values = values.iter().map(|value| value.as_str().len() + 4);
                values.map(|value| value + AsRef::<[u8]>::as_ref(name).len()).sum::<usize>()
            })
            .sum();
        let bytes = bytes + publication.payload.len() + MORE_HEADER_BYTES;
        if bytes > self.bytes_max {
            let bytes_max = self.bytes_max;
            return Err(LinkError::TooLarge(format!(
                "the message has {bytes} bytes with its headers; NATS takes {bytes_max}"
            )));
        }
        let payload = Bytes::copy_from_slice(&publication.payload);
        let message = PublishMessage::build().payload(payload).headers(headers);
        Ok(match hash {
            Some(hash) => message.message_id(hash),
            None => message,
        })
    }

    pub(super) async fn publish(
        &self,
        subject: String,
        message: PublishMessage,
    ) -> Result<PublishAckFuture, LinkError> {
        if subject.len() > super::SUBJECT_BYTES_MAX {
            let problem = "the name is too long for a subject of NATS".to_owned();
            return Err(LinkError::TooLarge(problem));
        }
        self.streams.context.send_publish(subject, message).await.map_err(failed)
    }

    /// The stream may have been deleted.
    fn look_again(&self, known: &Known, error: &PublishError) {
        if error.kind() == PublishErrorKind::StreamNotFound {
            self.streams.forget(known);
        }
    }

    /// See `Backplane::known`.
    pub async fn known(&self, keys: &[(&[u8], &str)]) -> Vec<Result<Option<Published>, LinkError>> {
        let mut known = Vec::with_capacity(keys.len());
        for (channel, key) in keys {
            known.push(self.answer(&hash(channel, key), self.key_time).await);
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
        self.remember_hash(&hash(channel, key), answer, time).await
    }

    async fn answer(&self, hash: &str, time: Duration) -> Result<Option<Published>, LinkError> {
        let known = self.streams.get(Class::Keys, Needs::of_keys(time)).await?;
        let record = self.last(&known, &self.streams.answer(hash)).await?;
        let read =
            |record: StreamMessage| records::read(std::str::from_utf8(&record.payload).ok()?);
        Ok(record.and_then(read))
    }

    /// Remembers an answer, unless there is one.
    async fn remember_hash(
        &self,
        hash: &str,
        answer: &Published,
        time: Duration,
    ) -> Result<(), LinkError> {
        let known = self.streams.get(Class::Keys, Needs::of_keys(time)).await?;
        let record = PublishMessage::build().payload(records::write(answer).into());
        let record = record.expected_last_subject_sequence(0);
        match self.publish(self.streams.answer(hash), record).await?.await {
            Err(error) if error.kind() != PublishErrorKind::WrongLastSequence => {
                self.look_again(&known, &error);
                Err(failed(error))
            }
            _ => Ok(()),
        }
    }

    /// See `Backplane::purge`. The rule that the messages were stored by may be another one by now.
    pub async fn purge(&self, channel: &[u8]) -> Result<u64, LinkError> {
        let mut purged = 0;
        for class in Class::histories() {
            let Some(known) = self.streams.existing(class).await? else { continue };
            let subject = self.streams.subject(class, channel);
            if self.last(&known, &subject).await?.is_none() {
                continue;
            }
            let anchors = self.streams.anchors(class, channel);
            purged += self.end_channel(&known, subject, anchors, now_ms() * 1_000).await?;
        }
        Ok(purged)
    }
}

/// What the client crate adds to the headers of a message.
const MORE_HEADER_BYTES: usize = 160;

fn stale() -> Published {
    Published { deliveries: 0, position: None, is_stale: true }
}

/// Stands for a key of a channel in a subject and in a message id.
fn hash(channel: &[u8], key: &str) -> String {
    let mut digest = Sha256::new();
    digest.update((channel.len() as u64).to_le_bytes());
    digest.update(channel);
    digest.update(key);
    BASE64_URL_SAFE_NO_PAD.encode(digest.finalize())
}

fn version_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(VERSION)?.as_str().parse().ok()
}
