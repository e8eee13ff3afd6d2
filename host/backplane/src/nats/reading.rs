//! What RESUME and HISTORY are answered from JetStream.

use std::collections::VecDeque;

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use super::anchors::Head;
use super::fetch::{SKIPPED_MAX, Start, oldest_ms, unix_ms};
use super::store::{NatsStore, Place, TAGS};
use crate::LinkError;
use crate::append::Ruled;
use switchyard_history::{Entry, Limits, Look, Message, Page, Reason, Resume, Resumed};
use switchyard_types::position::Position;

/// How many channels are looked at at once.
pub(super) const CONCURRENT_MAX: usize = 32;

/// A part of a channel's messages.
struct Part {
    messages: Vec<Message>,
    has_more: bool,
    /// Messages before them are not kept by the rule any more.
    is_trimmed: bool,
    /// The message that they come after was there.
    is_anchored: bool,
}

impl Part {
    const NOTHING: Part =
        Part { messages: Vec::new(), has_more: false, is_trimmed: false, is_anchored: false };
}

/// How much is read.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// The last sequence.
    up_to: u64,
    messages: usize,
    bytes: usize,
}

impl NatsStore {
    /// See `Backplane::resume`.
    pub async fn resume(
        &self,
        channel: Ruled<'_>,
        request: &Resume,
        limits: Limits,
    ) -> Result<Resumed, LinkError> {
        let place = self.place(channel).await?;
        let head = self.head(&place).await?;
        let position = place.position(head.offset);
        let Limits { resume_messages_max, resume_bytes_max, .. } = limits;
        let mut reason = None;
        if let Some(from) = request.position {
            let bounds = Bounds {
                up_to: head.last(),
                messages: resume_messages_max,
                bytes: resume_bytes_max,
            };
            let (part, missing) = match from.epoch == position.epoch {
                true => self.after(&place, &head, from.offset, bounds).await?,
                false => (Part::NOTHING, Some(Reason::Epoch)),
            };
            let bytes: usize = part.messages.iter().map(|it| it.entry.answer_bytes()).sum();
            let is_much = part.has_more || bytes > resume_bytes_max;
            reason = missing.or(is_much.then_some(Reason::Many));
            if reason.is_none() {
                let messages = part.messages;
                return Ok(Resumed { position, recovered: true, reason, messages });
            }
        }
        let messages = match (request.last, request.since_ms) {
            (None, None) => Vec::new(),
            (Some(1), None) => {
                // The newest is there already.
                let newest = head.newest.iter().map(|newest| message(&place, newest));
                newest.filter(|newest| !is_old(&place, newest)).collect()
            }
            (last, since_ms) => {
                let bounds = Bounds {
                    up_to: head.last(),
                    messages: last.unwrap_or(usize::MAX).min(resume_messages_max),
                    bytes: resume_bytes_max,
                };
                let mut messages = self.newest_first(&place, &head, bounds).await?.messages;
                let mut bytes = 0;
                let sent = messages.iter().take_while(|message| {
                    bytes += message.entry.answer_bytes();
                    message.entry.unix_ms() >= since_ms.unwrap_or(0) && bytes <= resume_bytes_max
                });
                messages.truncate(sent.count());
                messages.reverse();
                messages
            }
        };
        Ok(Resumed { position, recovered: false, reason, messages })
    }

    /// See `Backplane::look`.
    pub async fn look(
        &self,
        channel: Ruled<'_>,
        look: &Look,
        limits: Limits,
    ) -> Result<Page, LinkError> {
        let place = self.place(channel).await?;
        let head = self.head(&place).await?;
        let position = place.position(head.offset);
        let epoch = position.epoch;
        // The last sequence at or before a position.
        let offset = |at: Position, offset: u64| match at.epoch.cmp(&epoch) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => offset,
            std::cmp::Ordering::Greater => u64::MAX,
        };
        let before = look.before.map(|at| offset(at, at.offset.saturating_sub(1)));
        let until = look.until.map(|at| offset(at, at.offset));
        let up_to = [before, until].into_iter().flatten().fold(head.last(), u64::min);
        let bounds = Bounds {
            up_to,
            messages: look.limit.min(limits.resume_messages_max),
            bytes: limits.resume_bytes_max,
        };
        let after = look.after.map(|at| (offset(at, at.offset), at.epoch == epoch));
        let mut missing = None;
        let mut part = match (after, look.reverse) {
            (Some((after, true)), false) => {
                let part;
                (part, missing) = self.after(&place, &head, after, bounds).await?;
                part
            }
            (Some((u64::MAX, false)), _) => Part::NOTHING,
            (_, false) => self.read(&place, &head, Start::Age, None, bounds).await?,
            (_, true) => self.newest_first(&place, &head, bounds).await?,
        };
        if let Some((after, is_of_stream)) = after {
            if !is_of_stream {
                missing = Some(Reason::Epoch);
            } else if look.reverse {
                let bounds = Bounds { up_to: head.last(), messages: 1, ..bounds };
                missing = self.after(&place, &head, after, bounds).await?.1;
            }
            let count = part.messages.len();
            part.messages.retain(|message| message.position.offset > after || !is_of_stream);
            part.has_more &= part.messages.len() == count;
        }
        let Part { messages, has_more, .. } = part;
        let next = messages.last().filter(|_| has_more).map(|message| message.position);
        Ok(Page { position, messages, next, gap: missing.is_some() })
    }

    /// See `Store::heads`.
    pub async fn heads(&self, channels: &[Ruled<'_>]) -> Result<Vec<Position>, LinkError> {
        let heads: Vec<_> =
            channels.iter().map(|channel| self.position(*channel).boxed()).collect();
        stream::iter(heads).buffered(CONCURRENT_MAX).try_collect().await
    }

    async fn position(&self, channel: Ruled<'_>) -> Result<Position, LinkError> {
        let place = self.place(channel).await?;
        Ok(place.position(self.head(&place).await?.offset))
    }

    /// The messages after a sequence, and why some of them are missing.
    async fn after(
        &self,
        place: &Place,
        head: &Head,
        after: u64,
        bounds: Bounds,
    ) -> Result<(Part, Option<Reason>), LinkError> {
        if after > head.offset && after > self.streams.last_sequence(&place.known).await? {
            return Ok((Part::NOTHING, Some(Reason::Epoch)));
        }
        if head.newest.is_some() && after >= head.last() {
            return Ok((Part::NOTHING, None));
        }
        let start = Start::Sequence(after.max(1));
        let mut part = self.read(place, head, start, Some(after), bounds).await?;
        let count = part.messages.len();
        part.messages.retain(|message| !is_old(place, message));
        let is_trimmed = part.is_trimmed || part.messages.len() < count;
        let missing = match (is_trimmed, part.is_anchored) {
            (true, true) => Some(Reason::Trimmed),
            (false, true) => None,
            (true, false) => Some(self.missing(place, after).await?.unwrap_or(Reason::Trimmed)),
            (false, false) => self.missing(place, after).await?,
        };
        Ok((part, missing))
    }

    /// Reads forwards what the rule keeps. With `after`, it begins at that sequence, and the message
    /// there is left out; otherwise what is too old is.
    async fn read(
        &self,
        place: &Place,
        head: &Head,
        start: Start,
        after: Option<u64>,
        bounds: Bounds,
    ) -> Result<Part, LinkError> {
        if head.newest.is_none() {
            return Ok(Part::NOTHING);
        }
        let kept = place.rule.messages as u64;
        let mut consumer = self.consumer(place, start, false).await?;
        let total = consumer.cached_info().num_pending;
        let mut skipped = total.saturating_sub(kept);
        let mut part = Part { is_trimmed: skipped > 0, ..Part::NOTHING };
        if skipped > SKIPPED_MAX {
            let first = match start {
                Start::Sequence(first) => first,
                Start::Age => 1,
            };
            self.end(place, &consumer).await?;
            (consumer, skipped) = self.search(place, first, head.last(), total, kept).await?;
        }
        let mut bytes = 0;
        self.drain(place, consumer, bounds.up_to, |message, sequence, unix_ms| {
            if after == Some(sequence) {
                part.is_anchored = true;
                // It was counted, too.
                part.is_trimmed = skipped > 1;
                skipped = skipped.saturating_sub(1);
                return true;
            }
            if skipped > 0 {
                skipped -= 1;
                return true;
            }
            if sequence > bounds.up_to {
                return false;
            }
            let message = entry(place, message, sequence, unix_ms);
            if after.is_none() && is_old(place, &message) {
                return true;
            }
            bytes += message.entry.answer_bytes();
            let is_full = part.messages.len() >= bounds.messages
                || bytes > bounds.bytes && !part.messages.is_empty();
            if is_full {
                part.has_more = true;
                return false;
            }
            part.messages.push(message);
            true
        })
        .await?;
        Ok(part)
    }

    /// Reads backwards, the newest first.
    async fn newest_first(
        &self,
        place: &Place,
        head: &Head,
        bounds: Bounds,
    ) -> Result<Part, LinkError> {
        let Bounds { up_to, messages: wanted, bytes: bytes_max } = bounds;
        if head.newest.is_none() || up_to == 0 || wanted == 0 {
            return Ok(Part::NOTHING);
        }
        let mut consumer = self.consumer(place, Start::Age, false).await?;
        let total = consumer.cached_info().num_pending;
        let above = if up_to < head.last() { self.count(place, up_to + 1).await? } else { 0 };
        let kept = (place.rule.messages as u64).min(total).saturating_sub(above);
        // One more, to know whether there is more.
        let read = kept.min(wanted as u64 + 1);
        if read == 0 {
            self.end(place, &consumer).await?;
            return Ok(Part::NOTHING);
        }
        let mut skipped = total.saturating_sub(above + read);
        if skipped > SKIPPED_MAX {
            self.end(place, &consumer).await?;
            (consumer, skipped) = self.search(place, 1, head.last(), total, above + read).await?;
        }
        let (mut found, mut bytes) = (VecDeque::new(), 0);
        let mut part = Part::NOTHING;
        self.drain(place, consumer, up_to, |message, sequence, unix_ms| {
            if skipped > 0 {
                skipped -= 1;
                return true;
            }
            if sequence > up_to {
                return false;
            }
            let message = entry(place, message, sequence, unix_ms);
            if is_old(place, &message) {
                return true;
            }
            bytes += message.entry.answer_bytes();
            found.push_back(message);
            while found.len() > wanted || bytes > bytes_max && found.len() > 1 {
                let dropped = found.pop_front().map_or(0, |it: Message| it.entry.answer_bytes());
                bytes -= dropped;
                part.has_more = true;
            }
            true
        })
        .await?;
        part.messages = found.into_iter().rev().collect();
        Ok(part)
    }
}

fn message(place: &Place, stored: &StreamMessage) -> Message {
    retained(place, &stored.payload, Some(&stored.headers), stored.sequence, unix_ms(stored))
}

fn entry(place: &Place, read: &async_nats::Message, sequence: u64, unix_ms: u64) -> Message {
    retained(place, &read.payload, read.headers.as_ref(), sequence, unix_ms)
}

fn retained(
    place: &Place,
    payload: &[u8],
    headers: Option<&HeaderMap>,
    sequence: u64,
    unix_ms: u64,
) -> Message {
    let tags = headers.and_then(|headers| headers.get(TAGS)).map(|tags| tags.as_str().as_bytes());
    let entry = Entry::restored(payload, None, tags, unix_ms);
    Message { position: place.position(sequence), entry }
}

fn is_old(place: &Place, message: &Message) -> bool {
    message.entry.unix_ms() <= oldest_ms(place)
}
