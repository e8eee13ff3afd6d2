//! How messages of a channel are read from a stream.
//!
//! All requests go to the leader of the stream, never to a replica that may be behind. A consumer may
//! be on such a replica; it is read until it has delivered the last message that the leader has.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::client::Request;
use async_nats::datetime::from_nanos;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, pull};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{RawMessageError, RawMessageErrorKind, Stream};
use futures_util::StreamExt;

use super::failed;
use super::store::{NatsStore, Place};
use super::streams::Known;
use crate::LinkError;

/// How many messages are requested at once at most.
pub(super) const BATCH_MAX: usize = 64;
/// How many messages are read and not used at most, before their end is searched for.
pub(super) const SKIPPED_MAX: u64 = 512;
/// How often the search divides the sequences.
const SEARCH_MAX: usize = 96;
/// How long a consumer is kept that nothing reads from.
const CONSUMER_TIME: Duration = Duration::from_secs(10);
/// How long a request for messages waits when fewer are there than were counted.
const BATCH_TIME: Duration = Duration::from_millis(500);

/// Where reading begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    Sequence(u64),
    /// At what is not too old.
    Age,
}

impl NatsStore {
    /// A consumer that begins at most `SKIPPED_MAX` messages before the last `wanted` ones of the
    /// channel, and how many messages before them it delivers.
    pub(super) async fn search(
        &self,
        place: &Place,
        first: u64,
        last: u64,
        total: u64,
        wanted: u64,
    ) -> Result<(Consumer<pull::Config>, u64), LinkError> {
        // Too many messages are from `low` on, too few from `high` on.
        let (mut low, mut high, mut at_low) = (first, last + 1, total);
        for step in 0..SEARCH_MAX {
            let span = high - low;
            let middle = match step % 2 {
                // As if the messages were evenly distributed.
                0 => {
                    let part = u128::from(wanted + SKIPPED_MAX / 2) * u128::from(span);
                    high.saturating_sub((part / u128::from(at_low.max(1))) as u64)
                }
                _ => low + span / 2,
            };
            let middle = middle.clamp(low + 1, high.max(low + 2) - 1);
            let start = Start::Sequence(middle);
            let consumer = self.consumer(place, start, false).await?;
            let count = consumer.cached_info().num_pending;
            if count >= wanted && count - wanted <= SKIPPED_MAX {
                return Ok((consumer, count - wanted));
            }
            self.end(place, &consumer).await?;
            if count < wanted {
                high = middle;
            } else {
                (low, at_low) = (middle, count);
            }
        }
        Err(failed("the messages of a channel could not be counted"))
    }

    /// How many messages the channel has from a sequence on.
    pub(super) async fn count(&self, place: &Place, from: u64) -> Result<u64, LinkError> {
        let start = Start::Sequence(from);
        let consumer = self.consumer(place, start, true).await?;
        self.end(place, &consumer).await?;
        Ok(consumer.cached_info().num_pending)
    }

    /// Reads until `take` returns false, or the message at `up_to` or a later one was read.
    pub(super) async fn drain(
        &self,
        place: &Place,
        consumer: Consumer<pull::Config>,
        up_to: u64,
        take: impl FnMut(&async_nats::Message, u64, u64) -> bool,
    ) -> Result<(), LinkError> {
        let policy = consumer.cached_info().config.deliver_policy;
        let is_by_age = matches!(policy, DeliverPolicy::ByStartTime { .. });
        let drained = self.drain_some(place, &consumer, up_to, is_by_age, take).await;
        self.end(place, &consumer).await?;
        drained
    }

    /// Deletes a consumer without waiting for it.
    pub(super) async fn end(
        &self,
        place: &Place,
        consumer: &Consumer<pull::Config>,
    ) -> Result<(), LinkError> {
        let subject =
            format!("CONSUMER.DELETE.{}.{}", place.known.name, consumer.cached_info().name);
        self.streams.context.send_request(subject, Request::new()).await.map_err(failed)
    }

    async fn drain_some(
        &self,
        place: &Place,
        consumer: &Consumer<pull::Config>,
        up_to: u64,
        is_by_age: bool,
        mut take: impl FnMut(&async_nats::Message, u64, u64) -> bool,
    ) -> Result<(), LinkError> {
        let mut pending = consumer.cached_info().num_pending;
        let mut number = 0;
        loop {
            if pending == 0 {
                // What was to be read may have expired or be too old by now. Otherwise the consumer
                // is on a replica that does not have it yet.
                let last = self.last(&place.known, &place.subject).await?;
                let is_there = |last: StreamMessage| {
                    last.sequence >= up_to && (!is_by_age || unix_ms(&last) > oldest_ms(place))
                };
                if !last.is_some_and(is_there) {
                    return Ok(());
                }
            }
            let count = (pending.max(1) as usize).min(self.batch_max);
            let batch = consumer.batch().max_messages(count).expires(BATCH_TIME);
            let mut batch = batch.messages().await.map_err(failed)?;
            pending = 0;
            while let Some(message) = batch.next().await {
                let message = message.map_err(failed)?;
                let info = message.info().map_err(failed)?;
                let (sequence, nanos) =
                    (info.stream_sequence, info.published.unix_timestamp_nanos());
                pending = info.pending;
                number += 1;
                if info.consumer_sequence != number {
                    return Err(failed("a message was dropped while a history was read"));
                }
                let unix_ms = (nanos / 1_000_000) as u64;
                if !take(&message.message, sequence, unix_ms) || sequence >= up_to {
                    return Ok(());
                }
            }
        }
    }

    pub(super) async fn consumer(
        &self,
        place: &Place,
        start: Start,
        headers_only: bool,
    ) -> Result<Consumer<pull::Config>, LinkError> {
        let deliver_policy = match start {
            Start::Sequence(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
            Start::Age => DeliverPolicy::ByStartTime {
                start_time: from_nanos(i128::from(oldest_ms(place)) * 1_000_000).map_err(failed)?,
            },
        };
        let stream = self.stream(&place.known.name).await?;
        let config = pull::Config {
            deliver_policy,
            ack_policy: AckPolicy::None,
            filter_subject: place.subject.clone(),
            inactive_threshold: CONSUMER_TIME,
            memory_storage: true,
            num_replicas: 1,
            headers_only,
            ..pull::Config::default()
        };
        stream.create_consumer(config).await.map_err(failed)
    }

    /// The last message on a subject.
    pub(super) async fn last(
        &self,
        known: &Known,
        subject: &str,
    ) -> Result<Option<StreamMessage>, LinkError> {
        let message =
            self.stream(&known.name).await?.get_last_raw_message_by_subject(subject).await;
        self.found(known, message)
    }

    /// The first message on a subject.
    pub(super) async fn first(
        &self,
        known: &Known,
        subject: &str,
    ) -> Result<Option<StreamMessage>, LinkError> {
        let stream = self.stream(&known.name).await?;
        self.found(known, stream.get_first_raw_message_by_subject(subject, 1).await)
    }

    /// The message at a sequence.
    pub(super) async fn get(
        &self,
        stream: &str,
        sequence: u64,
    ) -> Result<Option<StreamMessage>, LinkError> {
        if sequence == 0 {
            return Ok(None);
        }
        let message = self.stream(stream).await?.get_raw_message(sequence).await;
        match message {
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            message => message.map(Some).map_err(failed),
        }
    }

    fn found(
        &self,
        known: &Known,
        message: Result<StreamMessage, RawMessageError>,
    ) -> Result<Option<StreamMessage>, LinkError> {
        match message {
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => {
                if let RawMessageErrorKind::JetStream(_) = error.kind() {
                    // The stream may have been deleted.
                    self.streams.forget(known);
                }
                Err(failed(error))
            }
            Ok(message) => Ok(Some(message)),
        }
    }

    async fn stream(&self, name: &str) -> Result<Stream<()>, LinkError> {
        self.streams.context.get_stream_no_info(name).await.map_err(failed)
    }
}

pub(super) fn unix_ms(stored: &StreamMessage) -> u64 {
    (stored.time.unix_timestamp_nanos() / 1_000_000) as u64
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// What is older than this is not sent.
pub(super) fn oldest_ms(place: &Place) -> u64 {
    now_ms().saturating_sub(place.rule.age_ms)
}
