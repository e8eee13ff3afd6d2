//! A message that tests a shard: it takes the path of all messages, and only a hidden connection
//! receives it.
//!
//! The shard is locked from the subscription to its end, so that no client can subscribe to the
//! channel or find it listed. The backplane is not notified.

use std::task::{Context, Waker};
use std::time::Instant;

use guest_core::Names;
use parking_lot::Mutex;

use super::connections::Connection;
use super::encoding::{Encoding, Message, Push};
use super::shard::Shard;
use super::{Hub, Unavailable};
use switchyard_net::chunks::{Chunks, Written};
use switchyard_net::outbox::QueueState;
use switchyard_types::command::{Kind, Space};

/// The payload of a probe.
const PAYLOAD: &[u8] = b"probe";

/// Why a probe failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeFault {
    /// The shard was locked for too long.
    Busy,
    /// The engine is not available.
    Unavailable,
    /// The message was not delivered.
    Lost,
}

impl ProbeFault {
    /// As text.
    pub fn words(self) -> &'static str {
        match self {
            ProbeFault::Busy => "the engine is busy for too long",
            ProbeFault::Unavailable => "the engine is not available",
            ProbeFault::Lost => "the engine does not deliver what is published",
        }
    }
}

impl From<Unavailable> for ProbeFault {
    fn from(_: Unavailable) -> ProbeFault {
        ProbeFault::Unavailable
    }
}

impl Hub {
    /// Tests each shard, by number. The deadline for all shard locks together is `until`. Blocks:
    /// do not call it on a thread that serves connections.
    pub fn probe(&self, until: Instant) -> Vec<Result<(), ProbeFault>> {
        let probe = self.connections.unseen(Encoding::JSON);
        let of = |(number, shard): (usize, &Mutex<Shard>)| {
            let space = match number < self.spread {
                true => Space::Channels,
                false => Space::ShardChannels,
            };
            let channel = self.channel_of(number);
            // The engine may have failed and been rebuilt between the two steps.
            match self.probe_shard(shard, until, &probe, space, &channel) {
                Err(ProbeFault::Lost) => self.probe_shard(shard, until, &probe, space, &channel),
                done => done,
            }
        };
        self.shards.iter().enumerate().map(of).collect()
    }

    fn probe_shard(
        &self,
        shard: &Mutex<Shard>,
        until: Instant,
        probe: &Connection,
        space: Space,
        channel: &[u8],
    ) -> Result<(), ProbeFault> {
        let kind = match space {
            Space::Channels => Kind::Channel,
            Space::ShardChannels => Kind::Shard,
        };
        let names: Names = [channel].into_iter().collect();
        let mut shard = shard.try_lock_until(until).ok_or(ProbeFault::Busy)?;
        shard.subscribe(self, probe.id, kind, &names)?;
        let routed = shard.route(self, std::iter::once(channel));
        let mut push = Push::new(Message::new(space, None, channel, PAYLOAD));
        let expected = push.encoded(probe.encoding());
        for range in routed.iter().flatten() {
            let own = |(pattern, ids): &(Option<&[u8]>, &[u64])| {
                pattern.is_none() && ids.contains(&probe.id)
            };
            if shard.groups(range).any(|group| own(&group)) {
                probe.outbox.push(expected.clone());
            }
        }
        shard.unsubscribe(self, probe.id, kind, &names);
        drop(shard);
        routed?;
        let mut chunks = Chunks::default();
        let context = Context::from_waker(Waker::noop());
        let outcome = probe.outbox.take(Written::default(), &mut chunks, &context);
        let written = Written { bytes: expected.len(), chunks: 1 };
        probe.outbox.take(written, &mut Chunks::default(), &context);
        match chunks.iter().eq([&expected]) && matches!(outcome, QueueState::Open { .. }) {
            true => Ok(()),
            false => Err(ProbeFault::Lost),
        }
    }

    /// A channel that belongs to this shard, and to no client.
    fn channel_of(&self, number: usize) -> Vec<u8> {
        (0_u32..)
            .map(|salt| format!("__switchyard:probe:{salt}").into_bytes())
            .find(|name| self.place(name) == number % self.spread)
            .expect("a hash spreads names over all shards")
    }
}
