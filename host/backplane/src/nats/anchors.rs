//! Anchors of channels: small messages beside those of a channel, which are not republished.
//!
//! A stream has many channels, so the sequences of one channel have gaps, and what is missing is
//! decided otherwise. Messages expire in the order of their sequences, and a channel loses its oldest
//! ones first. So if a message of the channel is still there at or before a position, everything
//! after that position is. An anchor stands in for a message where the channel has none. It also says
//! that the channel had no message from one sequence to another, which is still true when the last
//! message before it has expired. Channels with listeners get a new anchor in time, so that a position
//! outlives the idle time of the rule. A purge leaves an anchor that invalidates the positions before
//! it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use super::failed;
use super::fetch::{now_ms, unix_ms};
use super::reading::CONCURRENT_MAX;
use super::store::{NatsStore, Place};
use super::streams::Known;
use crate::LinkError;
use crate::append::Ruled;
use switchyard_history::Reason;

/// The first word of an anchor that a purge leaves. The time in microseconds follows before which
/// everything has ended.
const PURGED: &str = "purged ";
/// How many channels' anchors are known to be recent, and how many channels are known to have ended.
const CHANNELS_MAX: usize = 200_000;

/// The last message of a channel, and where the channel is.
pub(super) struct Head {
    pub offset: u64,
    pub newest: Option<StreamMessage>,
}

impl Head {
    /// The sequence of the last message; 0: there is none.
    pub fn last(&self) -> u64 {
        self.newest.as_ref().map_or(0, |newest| newest.sequence)
    }
}

/// What an anchor says: there is no message after `from` up to `to`; positions before `purged` are
/// not valid, and nothing is left from before `since_us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Claim {
    from: u64,
    to: u64,
    purged: u64,
    since_us: u64,
}

impl Claim {
    fn read(anchor: &StreamMessage) -> Claim {
        let at = anchor.sequence;
        let text = std::str::from_utf8(&anchor.payload).unwrap_or_default();
        let of_purge = text.strip_prefix(PURGED);
        let numbers = of_purge.unwrap_or(text).split(' ').map_while(|number| number.parse().ok());
        match (of_purge, &numbers.collect::<Vec<u64>>()[..]) {
            (Some(_), &[since_us]) => Claim { from: at, to: at, purged: at, since_us },
            (None, &[from, to, purged, since_us]) => Claim { from, to, purged, since_us },
            _ => Claim { from: at, to: at, purged: 0, since_us: 0 },
        }
    }

    fn write(self) -> String {
        let Claim { from, to, purged, since_us } = self;
        format!("{from} {to} {purged} {since_us}")
    }
}

impl NatsStore {
    /// See `Store::keep`.
    pub async fn keep(&self, channels: &[Ruled<'_>]) -> Result<(), LinkError> {
        let now = Instant::now();
        let is_due = |channel: &[u8]| self.due.lock().get(channel).is_none_or(|due| *due <= now);
        let due = channels.iter().filter(|(channel, _)| is_due(channel));
        let kept: Vec<_> = due.map(|channel| self.keep_one(*channel, now).boxed()).collect();
        stream::iter(kept).buffer_unordered(CONCURRENT_MAX).try_collect().await
    }

    async fn keep_one(&self, channel: Ruled<'_>, now: Instant) -> Result<(), LinkError> {
        let place = self.place(channel).await?;
        let newest = self.last(&place.known, &place.subject).await?;
        let recent = newest.as_ref().map(age).filter(|age| *age < anchor_time(&place));
        let age = match recent {
            Some(age) => age,
            None => age(&self.anchor(&place).await?),
        };
        let due = now + anchor_time(&place).saturating_sub(age);
        let mut dues = self.due.lock();
        if dues.len() >= CHANNELS_MAX {
            dues.clear();
        }
        dues.insert(Arc::from(channel.0), due);
        Ok(())
    }

    /// What the channel's last message is. A channel without any gets an anchor.
    pub(super) async fn head(&self, place: &Place) -> Result<Head, LinkError> {
        if let Some(newest) = self.last(&place.known, &place.subject).await? {
            return Ok(Head { offset: newest.sequence, newest: Some(newest) });
        }
        let anchor = self.anchor(place).await?.sequence;
        // Messages before the anchor are there by now.
        let newest = self.last(&place.known, &place.subject).await?;
        Ok(Head { offset: newest.as_ref().map_or(anchor, |newest| newest.sequence), newest })
    }

    /// A recent anchor of the channel.
    async fn anchor(&self, place: &Place) -> Result<StreamMessage, LinkError> {
        let last = self.last(&place.known, &place.anchors).await?;
        let claim = match &last {
            Some(anchor) if age(anchor) < anchor_time(place) => return Ok(anchor.clone()),
            // In this order: what is stored after the anchor has a higher sequence.
            Some(anchor) => {
                let old = Claim::read(anchor);
                let newest = self.last(&place.known, &place.subject).await?;
                match newest.map(|newest| newest.sequence) {
                    Some(from) => Claim { from, to: from.max(anchor.sequence), ..old },
                    None if self.get(&place.known.name, old.to).await?.is_some() => {
                        Claim { to: anchor.sequence, ..old }
                    }
                    None => Claim { from: anchor.sequence, to: anchor.sequence, ..old },
                }
            }
            None => match self.last(&place.known, &place.subject).await? {
                Some(newest) => {
                    Claim { from: newest.sequence, to: newest.sequence, ..Claim::default() }
                }
                None => Claim::default(),
            },
        };
        let anchor = PublishMessage::build().payload(claim.write().into());
        let sequence = match self.publish(place.anchors.clone(), anchor).await?.await {
            Ok(ack) if ack.stream == place.known.name => ack.sequence,
            Ok(_) => {
                self.streams.forget(&place.known);
                return Err(failed("the JetStream stream was replaced"));
            }
            Err(error) => return Err(failed(error)),
        };
        let anchor = self.get(&place.known.name, sequence).await?;
        anchor.ok_or_else(|| failed("an anchor of a channel is gone"))
    }

    /// Ends what a channel had before a time, in microseconds since 1970, unless a node has done that.
    pub(super) async fn end_older(&self, place: &Place, since_us: u64) -> Result<(), LinkError> {
        if place.known.epoch >= since_us {
            return Ok(());
        }
        // Held until the end: a publication that waits for it is not purged by this node.
        let mut ended = self.ended.lock().await;
        if ended.get(&place.subject).is_some_and(|until| *until >= since_us) {
            return Ok(());
        }
        let last = self.last(&place.known, &place.anchors).await?;
        if last.is_none_or(|anchor| Claim::read(&anchor).since_us < since_us) {
            let (subject, anchors) = (place.subject.clone(), place.anchors.clone());
            self.end_channel(&place.known, subject, anchors, since_us).await?;
        }
        if ended.len() >= CHANNELS_MAX {
            ended.clear();
        }
        ended.insert(place.subject.clone(), since_us);
        Ok(())
    }

    /// Removes all messages of a channel; positions before are unknown from now on. Returns how many
    /// messages there were.
    pub(super) async fn end_channel(
        &self,
        known: &Known,
        subject: String,
        anchors: String,
        since_us: u64,
    ) -> Result<u64, LinkError> {
        let anchor = PublishMessage::build().payload(format!("{PURGED}{since_us}").into());
        let ack = self.publish(anchors, anchor).await?.await.map_err(failed)?;
        let stream = self.streams.context.get_stream_no_info(&known.name).await.map_err(failed)?;
        let purging = stream.purge().filter(subject).sequence(ack.sequence);
        Ok(purging.await.map_err(failed)?.purged)
    }

    /// Why messages after a sequence may be missing, at which the channel has no message; none: they
    /// are all there.
    pub(super) async fn missing(
        &self,
        place: &Place,
        after: u64,
    ) -> Result<Option<Reason>, LinkError> {
        let is_before = |message: Option<StreamMessage>| {
            message.is_some_and(|message| message.sequence <= after)
        };
        if is_before(self.first(&place.known, &place.subject).await?) {
            return Ok(None);
        }
        let Some(anchor) = self.last(&place.known, &place.anchors).await? else {
            return Ok(Some(Reason::Trimmed));
        };
        let claim = Claim::read(&anchor);
        if after < claim.purged {
            return Ok(Some(Reason::Epoch));
        }
        if is_before(self.first(&place.known, &place.anchors).await?) {
            return Ok(None);
        }
        let is_claimed = (claim.from..=claim.to).contains(&after) && after > 0;
        let is_there = is_claimed && self.get(&place.known.name, claim.to).await?.is_some();
        Ok((!is_there).then_some(Reason::Trimmed))
    }
}

/// How old a message is, as far as the clocks of this node and the server agree.
fn age(stored: &StreamMessage) -> Duration {
    Duration::from_millis(now_ms().saturating_sub(unix_ms(stored)))
}

/// How old the last anchor or message of a channel with listeners is at most.
fn anchor_time(place: &Place) -> Duration {
    Duration::from_millis(place.rule.idle_ms / 3)
}

#[cfg(test)]
mod tests {
    use async_nats::HeaderMap;
    use async_nats::datetime::from_nanos;

    use super::*;

    fn anchor(payload: &str) -> StreamMessage {
        StreamMessage {
            subject: "a".into(),
            sequence: 7,
            headers: HeaderMap::new(),
            payload: payload.to_owned().into(),
            time: from_nanos(0).expect("1970"),
        }
    }

    #[test]
    fn a_claim_is_read_as_it_was_written() {
        let claim = Claim { from: 3, to: 5, purged: 2, since_us: 9 };
        assert_eq!(Claim::read(&anchor(&claim.write())), claim);
        let purged = Claim { from: 7, to: 7, purged: 7, since_us: 9 };
        assert_eq!(Claim::read(&anchor("purged 9")), purged);
        // What is not understood claims nothing but itself.
        let itself = Claim { from: 7, to: 7, purged: 0, since_us: 0 };
        for other in ["", "1 2", "x 2 3 4", "purged x"] {
            assert_eq!(Claim::read(&anchor(other)), itself, "{other}");
        }
    }
}
