//! What happens when all streams together are too many or take too much memory.
//!
//! Streams end, whole: first those that hold nothing and have no listener, the least recently used
//! first, then the least recently published to. A stream that exceeds the bound alone loses its
//! oldest messages. The stream that the call is for never ends. What one call ends is limited, and
//! so is what it frees: a stream that ended can hold a hundred thousand messages.

use std::collections::VecDeque;

use crate::entry::Entry;
use crate::rule::Limits;
use crate::size::allocated;
use crate::stream::list::NONE;
use crate::streams::{FREED_AT_ONCE_MAX, Streams, WORK_WHEN_FULL};

/// How many streams or messages one call ends.
const ENDED_AT_ONCE_MAX: usize = 1_024;

/// How many messages of streams that ended one call frees.
const FREED_OF_ENDED: usize = 8;
/// ... and while the streams take as much memory as they may.
const FREED_OF_ENDED_WHEN_FULL: usize = 256;

/// How many messages are freed with their stream.
const FREED_WITH_STREAM: usize = 8;

/// What ended because of a bound, since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evictions {
    /// Streams that held nothing and had no listener.
    pub idle_streams: u64,
    /// Other streams.
    pub streams: u64,
    /// The messages of those.
    pub stream_messages: u64,
    /// The oldest messages of streams that exceeded the bound alone.
    pub oldest_messages: u64,
}

impl Streams {
    /// Sets the bounds. Those that are lower are enforced by `expire`, in steps.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The current bounds.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What ended because of a bound.
    pub fn evictions(&self) -> Evictions {
        self.evictions
    }

    /// Removes what is over, if the bounds could be exceeded by this many more bytes. What is over
    /// then does not cause the end of what is not.
    pub(crate) fn expire_if_full(&mut self, more_bytes: usize) {
        if self.slots.len() >= self.limits.channels_max
            || self.counted_bytes + more_bytes > self.limits.bytes_max
        {
            self.run_due(WORK_WHEN_FULL);
        }
    }

    /// Enforces the bounds in a call for the stream `current`.
    pub(crate) fn enforce(&mut self, current: u32) {
        self.end_some(current, ENDED_AT_ONCE_MAX);
        if !self.pending_free.is_empty() {
            let freed = match self.bytes() > self.limits.bytes_max {
                true => FREED_OF_ENDED_WHEN_FULL,
                false => FREED_OF_ENDED,
            };
            self.pending_free.free(freed);
        }
    }

    /// Ends what exceeds the bounds, up to `max` streams or messages. Returns how many ended.
    pub(crate) fn end_some(&mut self, current: u32, max: usize) -> usize {
        let mut ended = 0;
        while ended < max && self.is_over_bounds() && self.evict(current) {
            ended += 1;
        }
        ended
    }

    #[inline]
    pub(crate) fn is_over_bounds(&self) -> bool {
        self.counted_bytes > self.limits.bytes_max
            || self.slots.len() > self.limits.channels_max.max(1)
    }

    /// Ends one stream, or one message of the last stream. False: nothing is left.
    fn evict(&mut self, current: u32) -> bool {
        if let Some(slot) = self.idle.first_but(&self.slots, current) {
            self.evictions.idle_streams += 1;
            self.end(slot);
            return true;
        }
        // Of two or more streams one ends; `current` is the last that would.
        if let Some(slot) = self.by_publication.first_but(&self.slots, current)
            && (current != NONE || self.slots.len() > 1)
        {
            self.evictions.streams += 1;
            self.evictions.stream_messages += self.slots.at(slot).len() as u64;
            self.end(slot);
            return true;
        }
        let Some(slot) = self.by_publication.first_but(&self.slots, NONE) else { return false };
        if self.slots.at(slot).holds_nothing() && !self.slots.at(slot).has_gone() {
            return false;
        }
        let is_message = !self.slots.at(slot).has_gone();
        self.evictions.oldest_messages += u64::from(is_message);
        self.change(slot, |stream| {
            if is_message {
                stream.forget_oldest();
            }
            stream.free_gone(FREED_AT_ONCE_MAX);
            stream.shrink();
        });
        self.settle(slot);
        true
    }
}

/// The messages of streams that ended, yet to be freed.
#[derive(Default)]
pub(crate) struct PendingFree {
    queues: VecDeque<VecDeque<Entry>>,
    /// The memory of the queues that are not empty; an upper bound for the first.
    bytes: usize,
}

impl PendingFree {
    pub fn add(&mut self, entries: VecDeque<Entry>, bytes: usize) {
        if entries.len() > FREED_WITH_STREAM {
            self.queues.push_back(entries);
            self.bytes += bytes;
        }
    }

    /// Frees messages, up to `max` of them; returns how many.
    pub fn free(&mut self, max: usize) -> usize {
        let mut freed = 0;
        while let Some(queue) = self.queues.front_mut() {
            while freed < max
                && let Some(entry) = queue.pop_front()
            {
                self.bytes -= entry.bytes();
                freed += 1;
            }
            if !queue.is_empty() {
                break;
            }
            self.bytes -= allocated(queue.capacity() * size_of::<Entry>());
            self.queues.pop_front();
        }
        if self.queues.is_empty() && self.queues.capacity() > 0 {
            self.queues = VecDeque::new();
        }
        freed
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes + allocated(self.queues.capacity() * size_of::<VecDeque<Entry>>())
    }
}

impl Limits {
    /// The bounds of the defaults in the config file.
    pub const DEFAULT: Limits = Limits {
        bytes_max: 256 << 20,
        channels_max: 100_000,
        resume_messages_max: 1_000,
        resume_bytes_max: 4 << 20,
    };
}
