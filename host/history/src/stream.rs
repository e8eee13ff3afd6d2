//! One stream: the last publications of a channel, in their order.
//!
//! A publication has a number, which counts all publications of the stream and is implied by its
//! place; `epochs` has the position for each. What is too old or too much is gone at once, as
//! `first` says; its memory is freed in steps, because it can be a hundred thousand allocations.
//! A stream does not know the others, nor the lists that its links are in.

pub(crate) mod epochs;
pub(crate) mod list;
pub(crate) mod wheel;

use std::collections::VecDeque;

use crate::entry::Entry;
use crate::size::allocated;
use crate::stream::epochs::Earlier;
use crate::stream::list::{Link, Order};
use crate::stream::wheel::{NEVER, NO_BUCKET, Timer};
use switchyard_types::history::HistoryRule;

/// The least number of entries that there is memory for, once there is one.
const CAPACITY_MIN: usize = 4;
/// The memory for entries is reduced when less than this part of it is used.
const SPARSE: usize = 8;

pub(crate) struct Stream {
    pub name: Box<[u8]>,
    pub epoch: u64,
    /// The epochs before this one; none unless the process stopped without writing everything.
    earlier: Option<Box<Earlier>>,
    /// The number of the last publication; 0 before the first.
    last: u64,
    /// The number of the oldest publication that is not gone; `last + 1` when all are.
    first: u64,
    /// The publications up to `last`; those before `first` are yet to be freed.
    entries: VecDeque<Entry>,
    /// The memory of the entries, without that of the queue.
    entry_bytes: usize,
    /// The number of the last publication with a version; 0: there is none.
    versioned: u64,
    /// When it began, was last published to, or its last listener left, whichever is last.
    pub active_ms: u64,
    /// Of its rule, as the two after it.
    messages_max: u32,
    age_ms: u64,
    idle_ms: u64,
    pub listeners: u32,
    /// The resolver that its rule is from.
    pub generation: u32,
    by_publication: Link,
    idle: Link,
    /// Whether it is in the list of idle streams.
    pub is_listed_idle: bool,
    /// The bucket of the timer.
    pub bucket: u16,
    pub timer: Timer,
}

impl Stream {
    pub fn new(name: &[u8], epoch: u64, rule: HistoryRule, generation: u32) -> Stream {
        let mut stream = Stream {
            name: name.into(),
            epoch,
            earlier: None,
            last: 0,
            first: 1,
            entries: VecDeque::new(),
            entry_bytes: 0,
            versioned: 0,
            active_ms: 0,
            messages_max: 1,
            age_ms: 0,
            idle_ms: 0,
            listeners: 0,
            generation,
            by_publication: Link::UNLINKED,
            idle: Link::UNLINKED,
            is_listed_idle: false,
            bucket: NO_BUCKET,
            timer: Timer::UNSET,
        };
        stream.set_rule(rule);
        stream
    }

    pub fn set_rule(&mut self, rule: HistoryRule) {
        self.messages_max = u32::try_from(rule.messages.max(1)).unwrap_or(u32::MAX);
        self.age_ms = rule.age_ms;
        self.idle_ms = rule.idle_ms;
    }

    pub fn first(&self) -> u64 {
        self.first
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    /// How many messages it holds.
    pub fn len(&self) -> usize {
        (self.last + 1 - self.first) as usize
    }

    /// How many messages have memory, those that are gone included.
    pub fn allocated_len(&self) -> usize {
        self.entries.len()
    }

    #[inline]
    pub fn holds_nothing(&self) -> bool {
        self.first > self.last
    }

    /// Whether messages that are gone are yet to be freed.
    #[inline]
    pub fn has_gone(&self) -> bool {
        self.front() < self.first
    }

    /// The memory of the entries.
    pub fn entry_bytes(&self) -> usize {
        self.entry_bytes
    }

    /// The memory of the queue of entries.
    pub fn queue_bytes(&self) -> usize {
        allocated(self.entries.capacity() * size_of::<Entry>())
    }

    /// The message with this number, if it is not gone.
    #[inline]
    pub fn entry(&self, number: u64) -> Option<&Entry> {
        match number >= self.first && number <= self.last {
            true => self.entries.get((number - self.front()) as usize),
            false => None,
        }
    }

    /// The highest version of the messages that it holds. A version is accepted only above those
    /// held, so that it is the last one.
    pub fn version(&self) -> Option<u64> {
        self.entry(self.versioned).and_then(Entry::version)
    }

    /// Adds a message; the oldest is gone if there are too many then. Messages that are gone are
    /// freed before it, up to `free_max` of them.
    pub fn push(&mut self, entry: Entry, free_max: usize) {
        self.first = self.first.max((self.last + 2).saturating_sub(u64::from(self.messages_max)));
        self.free_gone(free_max);
        if self.entries.len() == self.entries.capacity() {
            let more = self.entries.len().max(CAPACITY_MIN);
            let room = (self.messages_max as usize).saturating_sub(self.entries.len());
            self.entries.reserve_exact(more.min(room.max(1)));
        }
        self.last += 1;
        if entry.version().is_some() {
            self.versioned = self.last;
        }
        self.entry_bytes += entry.bytes();
        self.entries.push_back(entry);
    }

    /// Gives a new stream its messages, of which the oldest has the number `first`. None is from the
    /// future, because the order of times is that of numbers.
    pub fn fill(&mut self, first: u64, entries: Vec<Entry>, now_ms: u64) {
        self.first = first.max(1);
        self.last = self.first - 1;
        self.entries = entries.into();
        for entry in &mut self.entries {
            if entry.unix_ms() > now_ms {
                entry.set_time(now_ms);
            }
            self.last += 1;
            if entry.version().is_some() {
                self.versioned = self.last;
            }
            self.entry_bytes += entry.bytes();
        }
    }

    /// What is older or more than the rule allows is gone from now on.
    #[inline]
    pub fn forget(&mut self, now_ms: u64) {
        let kept = u64::from(self.messages_max);
        self.first = self.first.max((self.last + 1).saturating_sub(kept));
        if self.oldest_due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            self.forget_old(now_ms);
        }
    }

    fn forget_old(&mut self, now_ms: u64) {
        let age_ms = self.age_ms;
        let is_old = |entry: &Entry| now_ms.saturating_sub(entry.unix_ms()) > age_ms;
        let front = self.front();
        self.first = self.first.max(front + self.entries.partition_point(is_old) as u64);
    }

    /// The oldest message is gone.
    pub fn forget_oldest(&mut self) {
        if self.first <= self.last {
            self.first += 1;
        }
    }

    /// Frees messages that are gone, up to `max` of them; returns how many.
    pub fn free_gone(&mut self, max: usize) -> usize {
        let gone = (self.first - self.front()) as usize;
        let freed = gone.min(max);
        for _ in 0..freed {
            if let Some(entry) = self.entries.pop_front() {
                self.entry_bytes -= entry.bytes();
            }
        }
        freed
    }

    /// Frees memory of the queue that it hardly uses.
    pub fn shrink(&mut self) {
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        } else if self.entries.capacity() > CAPACITY_MIN
            && self.entries.len() < self.entries.capacity() / SPARSE
        {
            self.entries.shrink_to(2 * self.entries.len());
        }
    }

    pub fn into_entries(self) -> VecDeque<Entry> {
        self.entries
    }

    /// When it ends, as it is now. It ends only while it holds nothing and has no listener.
    pub fn end_ms(&self) -> Option<u64> {
        let is_idle = self.holds_nothing() && self.listeners == 0;
        is_idle.then(|| self.active_ms.saturating_add(self.idle_ms))
    }

    /// When something is to be done for it: messages to free, one that becomes too old, or its end.
    pub fn due_ms(&self) -> u64 {
        match self.has_gone() {
            true => 0,
            false => self.oldest_due_ms().or_else(|| self.end_ms()).unwrap_or(NEVER),
        }
    }

    pub fn link(&self, order: Order) -> &Link {
        match order {
            Order::Publication => &self.by_publication,
            Order::Idle => &self.idle,
        }
    }

    pub fn link_mut(&mut self, order: Order) -> &mut Link {
        match order {
            Order::Publication => &mut self.by_publication,
            Order::Idle => &mut self.idle,
        }
    }

    /// The number of the oldest entry, or of the next one if there is none.
    #[inline]
    fn front(&self) -> u64 {
        self.last + 1 - self.entries.len() as u64
    }

    /// When the oldest message is too old.
    #[inline]
    fn oldest_due_ms(&self) -> Option<u64> {
        let oldest = self.entry(self.first)?;
        Some(oldest.unix_ms().saturating_add(self.age_ms).saturating_add(1))
    }
}
