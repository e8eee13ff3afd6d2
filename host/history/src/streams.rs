//! All streams, and what changes one of them: publications, listeners, the end.
//!
//! Every call brings a stream up to date before it looks at it: with the rules that hold, and with
//! the time. So it does not matter when `expire` and `apply_rules` are called; they free memory.
//! Time never goes backwards here: a call with an earlier time sees the latest.

pub(crate) mod bounds;

use std::collections::VecDeque;
use std::hash::BuildHasher;

use crate::entry::Entry;
use crate::journal::Journal;
use crate::names::Names;
use crate::rule::{Limits, Resolver, Rules};
use crate::size::allocated;
use crate::slots::Slots;
use crate::stream::Stream;
use crate::stream::list::{List, NONE, Order};
use crate::stream::wheel::Wheel;
use crate::streams::bounds::{Evictions, PendingFree};
use switchyard_types::history::HistoryRule;
use switchyard_types::keyed_hash::KeyedHash;
use switchyard_types::position::Position;

/// What a stream counts besides its name and its messages: its slot, and its part of a hash table.
pub const STREAM_BYTES: usize = size_of::<Option<Stream>>() + 16;

/// How many messages that are gone one call frees; `expire` frees the rest.
pub(crate) const FREED_AT_ONCE_MAX: usize = 128;

/// The work in a call that finds the bounds reached.
pub(crate) const WORK_WHEN_FULL: usize = 1_024;

/// The streams of all channels.
pub struct Streams {
    pub(crate) limits: Limits,
    pub(crate) rules: Rules,
    pub(crate) slots: Slots<Stream>,
    pub(crate) names: Names,
    pub(crate) by_publication: List,
    pub(crate) idle: List,
    pub(crate) wheel: Wheel,
    pub(crate) pending_free: PendingFree,
    pub(crate) evictions: Evictions,
    /// What all streams count: see `stream_bytes` and `message_bytes`.
    pub(crate) counted_bytes: usize,
    /// The memory of all queues of entries.
    pub(crate) queue_bytes: usize,
    /// How many messages have memory.
    pub(crate) messages: usize,
    pub(crate) now_us: u64,
    /// The next slot to check against the rules that hold.
    pub(crate) unchecked: Option<u32>,
    /// None: nothing is written to disk.
    pub(crate) journal: Option<Box<Journal>>,
    pub(crate) last_epoch: u64,
    hash: KeyedHash,
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is retained at this position.
    Kept(Position),
    /// A message with an equal or higher version is retained; this one is not.
    Stale,
    /// The channel has no history.
    NoHistory,
}

/// What a stream with this name counts in `Limits::bytes_max`, besides its messages.
pub fn stream_bytes(name: &[u8]) -> usize {
    STREAM_BYTES + allocated(name.len())
}

/// What a message counts in `Limits::bytes_max`.
pub fn message_bytes(entry: &Entry) -> usize {
    entry.bytes() + size_of::<Entry>()
}

impl Streams {
    /// No streams.
    pub fn new(limits: Limits, resolver: Resolver) -> Streams {
        Streams {
            limits,
            rules: Rules::new(resolver),
            slots: Slots::new(),
            names: Names::new(),
            by_publication: List::new(Order::Publication),
            idle: List::new(Order::Idle),
            wheel: Wheel::new(),
            pending_free: PendingFree::default(),
            evictions: Evictions::default(),
            counted_bytes: 0,
            queue_bytes: 0,
            messages: 0,
            now_us: 0,
            unchecked: None,
            journal: None,
            last_epoch: 0,
            hash: KeyedHash::default(),
        }
    }

    /// Retains a publication, after those that the channel has. A stream that does not exist begins,
    /// with as many listeners as `listeners` says.
    pub fn publish(
        &mut self,
        channel: &[u8],
        entry: Entry,
        listeners: impl FnOnce() -> u32,
        now_us: u64,
    ) -> Published {
        self.advance(now_us);
        self.expire_if_full(stream_bytes(channel) + message_bytes(&entry));
        let Some(slot) = self.find_or_begin(channel, listeners) else {
            return Published::NoHistory;
        };
        if self.is_sealed() {
            return Published::NoHistory;
        }
        let now_ms = self.now_ms();
        let stream = self.slots.at_mut(slot);
        if let Some(version) = entry.version()
            && stream.version().is_some_and(|held| held >= version)
        {
            return Published::Stale;
        }
        let mut entry = entry;
        entry.set_time(now_ms);
        let was_empty = stream.holds_nothing();
        stream.active_ms = now_ms;
        self.change(slot, |stream| stream.push(entry, FREED_AT_ONCE_MAX));
        if was_empty {
            self.settle(slot);
        }
        self.by_publication.move_back(&mut self.slots, slot);
        let position = self.slots.at(slot).position();
        self.enforce(slot);
        Published::Kept(position)
    }

    /// Records that this many more connections (fewer: less than 0) are subscribed to the name of a
    /// channel. Without effect on a channel that has no stream.
    pub fn listening(&mut self, channel: &[u8], change: i32, now_us: u64) {
        self.advance(now_us);
        let Some(slot) = self.find(channel) else { return };
        let now_ms = self.now_ms();
        let stream = self.slots.at_mut(slot);
        let had_listeners = stream.listeners > 0;
        stream.listeners = stream.listeners.saturating_add_signed(change);
        if had_listeners && stream.listeners == 0 {
            stream.active_ms = now_ms;
        }
        if had_listeners != (stream.listeners > 0) {
            self.record(slot);
        }
        self.settle(slot);
    }

    /// Ends the stream of a channel, and returns how many messages it held. None: there is none.
    pub fn purge(&mut self, channel: &[u8], now_us: u64) -> Option<usize> {
        self.advance(now_us);
        let slot = self.find(channel)?;
        let messages = self.slots.at(slot).len();
        self.end(slot);
        Some(messages)
    }

    /// The position of the last publication of a channel and the highest version that is retained. A
    /// stream that does not exist begins. None: the channel has no history.
    pub fn head(
        &mut self,
        channel: &[u8],
        listeners: impl FnOnce() -> u32,
        now_us: u64,
    ) -> Option<(Position, Option<u64>)> {
        self.advance(now_us);
        let slot = self.find_or_begin(channel, listeners)?;
        let stream = self.slots.at(slot);
        Some((stream.position(), stream.version()))
    }

    /// The rule of a channel now; none: it has no history.
    pub fn rule(&self, channel: &[u8]) -> Option<HistoryRule> {
        self.rules.resolve(channel)
    }

    /// Time never goes backwards.
    pub(crate) fn advance(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
    }

    #[inline]
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    /// The stream of a channel, up to date.
    pub(crate) fn find(&mut self, channel: &[u8]) -> Option<u32> {
        self.find_hashed(channel, self.hash_of(channel))
    }

    /// The stream of a channel, up to date; it begins if there is none. None: no history.
    pub(crate) fn find_or_begin(
        &mut self,
        channel: &[u8],
        listeners: impl FnOnce() -> u32,
    ) -> Option<u32> {
        let hash = self.hash_of(channel);
        if let Some(slot) = self.find_hashed(channel, hash) {
            return Some(slot);
        }
        let rule = self.rules.resolve(channel).filter(|_| !self.is_sealed())?;
        self.last_epoch = self.now_us.max(self.last_epoch + 1);
        let mut stream = Stream::new(channel, self.last_epoch, rule, self.rules.current());
        stream.active_ms = self.now_ms();
        stream.listeners = listeners();
        let slot = self.slots.insert(stream);
        self.names.insert(hash, slot);
        self.counted_bytes += stream_bytes(channel);
        self.by_publication.push_back(&mut self.slots, slot);
        self.record(slot);
        self.settle(slot);
        Some(slot)
    }

    #[inline]
    pub(crate) fn find_hashed(&mut self, channel: &[u8], hash: u64) -> Option<u32> {
        let slot = self.names.find(hash, |slot| *self.slots.at(slot).name == *channel)?;
        self.refresh(slot).then_some(slot)
    }

    pub(crate) fn hash_of(&self, channel: &[u8]) -> u64 {
        self.hash.hash_one(channel)
    }

    /// Brings a stream up to date. False: it has ended.
    #[inline]
    pub(crate) fn refresh(&mut self, slot: u32) -> bool {
        let now_ms = self.now_ms();
        if self.slots.at(slot).generation != self.rules.current() && !self.apply_to(slot) {
            return false;
        }
        let stream = self.slots.at_mut(slot);
        stream.forget(now_ms);
        if stream.end_ms().is_some_and(|end_ms| end_ms <= now_ms) {
            self.end(slot);
            return false;
        }
        if stream.has_gone() {
            self.change(slot, |stream| {
                stream.free_gone(FREED_AT_ONCE_MAX);
                stream.shrink();
            });
            self.settle(slot);
        }
        true
    }

    /// Changes the messages of a stream, and what is counted.
    #[inline]
    pub(crate) fn change<T>(&mut self, slot: u32, change: impl FnOnce(&mut Stream) -> T) -> T {
        let stream = self.slots.at_mut(slot);
        let (bytes, queue_bytes) = (stream.entry_bytes(), stream.queue_bytes());
        let messages = stream.allocated_len();
        let changed = change(stream);
        let pointers = size_of::<Entry>();
        self.counted_bytes += stream.entry_bytes() + stream.allocated_len() * pointers;
        self.counted_bytes -= bytes + messages * pointers;
        self.queue_bytes = self.queue_bytes + stream.queue_bytes() - queue_bytes;
        self.messages = self.messages + stream.allocated_len() - messages;
        self.record(slot);
        changed
    }

    /// Records that a stream is to be written to disk.
    #[inline]
    pub(crate) fn record(&mut self, slot: u32) {
        if let Some(journal) = &mut self.journal {
            journal.changed(slot);
        }
    }

    /// Puts a stream into the lists where it belongs after a change.
    pub(crate) fn settle(&mut self, slot: u32) {
        let stream = self.slots.at_mut(slot);
        let is_idle = stream.holds_nothing() && stream.listeners == 0;
        let was_idle = std::mem::replace(&mut stream.is_listed_idle, is_idle);
        let (due_ms, set_ms) = (stream.due_ms(), stream.timer.due_ms);
        match (was_idle, is_idle) {
            (false, true) => self.idle.push_back(&mut self.slots, slot),
            (true, false) => self.idle.remove(&mut self.slots, slot),
            _ => {}
        }
        // One that is due later than is set is set again when that time comes.
        if due_ms < set_ms {
            self.wheel.set(&mut self.slots, slot, due_ms);
        }
    }

    /// Ends a stream.
    pub(crate) fn end(&mut self, slot: u32) {
        self.by_publication.remove(&mut self.slots, slot);
        if self.slots.at(slot).is_listed_idle {
            self.idle.remove(&mut self.slots, slot);
        }
        self.wheel.cancel(&mut self.slots, slot);
        let hash = self.hash_of(&self.slots.at(slot).name);
        self.names.remove(hash, slot);
        let Some(stream) = self.slots.remove(slot) else { return };
        if let Some(journal) = &mut self.journal {
            journal.ended(slot, stream.id());
        }
        let messages = stream.allocated_len();
        let entry_bytes = stream.entry_bytes();
        self.counted_bytes -= stream_bytes(&stream.name);
        self.counted_bytes -= entry_bytes + messages * size_of::<Entry>();
        self.queue_bytes -= stream.queue_bytes();
        self.messages -= messages;
        let queue_bytes = stream.queue_bytes();
        let entries: VecDeque<Entry> = stream.into_entries();
        self.pending_free.add(entries, entry_bytes + queue_bytes);
    }

    /// Records that an idle stream was looked at.
    pub(crate) fn used(&mut self, slot: u32) {
        debug_assert_ne!(slot, NONE);
        if self.slots.at(slot).is_listed_idle {
            self.idle.move_back(&mut self.slots, slot);
        }
    }
}
