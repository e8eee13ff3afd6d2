//! The streams for operators: totals, and pages of streams.
//!
//! A page follows the order of the hash tables, and of the names within one table. So a page costs
//! what it returns and at most one table more, and a name that has ended is still a place to go on
//! from. The order is the same while the process lives; it is not that of the names.

use crate::names::{TABLES, table_of};
use crate::streams::bounds::Evictions;
use crate::streams::{STREAM_BYTES, Streams, stream_bytes};
use switchyard_types::position::Position;

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The channel.
    pub channel: Box<[u8]>,
    /// How many messages it holds.
    pub messages: usize,
    /// What it counts in `Limits::bytes_max`.
    pub bytes: usize,
    /// How many connections are subscribed to the name.
    pub listeners: u32,
    /// The position of the last publication.
    pub position: Position,
}

/// A page of streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The streams, in the order of the hash tables.
    pub streams: Vec<Listed>,
    /// What to give as `after` for the next page; none: this is the last.
    pub next: Option<Box<[u8]>>,
}

/// What there is of all streams. Messages that are too old count until they are freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// How many streams there are.
    pub streams: usize,
    /// How many messages they hold.
    pub messages: usize,
    /// The memory of everything, free slots and what is yet to be freed included.
    pub bytes: usize,
    /// What counts in `Limits::bytes_max`.
    pub counted_bytes: usize,
    /// What ended because of a bound.
    pub evictions: Evictions,
}

impl Streams {
    /// How much memory all streams take.
    pub fn bytes(&self) -> usize {
        let in_slots = self.slots.len() * STREAM_BYTES + self.messages * size_of::<crate::Entry>();
        self.counted_bytes - in_slots
            + self.queue_bytes
            + self.slots.bytes()
            + self.names.bytes()
            + self.wheel.bytes()
            + self.pending_free.bytes()
    }

    /// What there is of all streams.
    pub fn totals(&self) -> Totals {
        Totals {
            streams: self.slots.len(),
            messages: self.messages,
            bytes: self.bytes(),
            counted_bytes: self.counted_bytes,
            evictions: self.evictions(),
        }
    }

    /// Up to `limit` streams (at least 1), after the one with this name if one is given.
    pub fn list(&mut self, after: Option<&[u8]>, limit: usize, now_us: u64) -> Page {
        self.advance(now_us);
        let limit = limit.max(1);
        let mut streams = Vec::new();
        let begin = after.map_or(0, |after| table_of(self.hash_of(after)));
        for table in begin..TABLES {
            let mut slots: Vec<u32> = self.names.table_at(table).collect();
            if slots.is_empty() {
                continue;
            }
            slots.retain(|&slot| self.refresh(slot));
            slots.sort_unstable_by_key(|&slot| &self.slots.at(slot).name);
            let after = after.filter(|_| table == begin);
            for slot in slots {
                let stream = self.slots.at(slot);
                if after.is_some_and(|after| *stream.name <= *after) {
                    continue;
                }
                if streams.len() == limit {
                    let last = streams.last();
                    let next = last.map(|stream: &Listed| stream.channel.clone());
                    return Page { streams, next };
                }
                streams.push(Listed {
                    channel: stream.name.clone(),
                    messages: stream.len(),
                    bytes: stream_bytes(&stream.name)
                        + stream.entry_bytes()
                        + stream.allocated_len() * size_of::<crate::Entry>(),
                    listeners: stream.listeners,
                    position: stream.position(),
                });
            }
        }
        Page { streams, next: None }
    }
}
