//! PUBSUB CHANNELS, a part at a time.
//!
//! There may be a million channels, so a list of them is made of pages: each is one call of a
//! shard's engine that visits a bounded number of channels, and other tasks run between two of
//! them. The shards are read in parallel, in the order of the names, so that all names before the
//! page that is furthest behind are final. A channel that appears or disappears in the meantime may
//! be in the list or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use guest_core::{Names, glob};

use super::connections::holdings::STEPS_AT_ONCE_MAX;
use super::stats::EngineCall;
use super::{Hub, Unavailable};
use crate::engine::Page;
use switchyard_types::command::{LIMIT, Refusal, Space};

/// How many channels one page visits at most.
const VISITS_MAX: u64 = 4_096;

/// The cost of visiting a channel besides matching it, in steps.
const VISIT_STEPS: u64 = 100;

/// The memory of a name besides its bytes.
const NAME_BYTES: usize = 8;

/// How many lists of the largest size may be made at once.
const LISTS_AT_ONCE: usize = 2;

/// A list of channels in progress.
pub struct Listing {
    space: Space,
    matching: Option<Vec<u8>>,
    visits_max: u32,
    shards: Vec<OfShard>,
    found: Names,
    room: Room,
}

/// The channels that have been read from one shard.
#[derive(Default)]
struct OfShard {
    page: Names,
    /// How many names of the page are in the list.
    listed: usize,
    next: Next,
}

/// Where a shard's next page begins.
#[derive(Default, PartialEq, Eq)]
enum Next {
    #[default]
    Start,
    At(Vec<u8>),
    End,
}

/// The memory of a list, counted together with all other lists in progress.
struct Room {
    all: Arc<AtomicUsize>,
    bytes: usize,
    bytes_max: usize,
}

impl Room {
    /// Counts more bytes.
    ///
    /// # Errors
    ///
    /// The list, or all together, would be too large.
    fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.bytes += bytes;
        let all = self.all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.bytes > self.bytes_max {
            return Err(Refusal::new(
                LIMIT,
                format!(
                    "the list takes more than {} bytes; ask for fewer channels with a pattern",
                    self.bytes_max
                ),
            ));
        }
        if all > LISTS_AT_ONCE.saturating_mul(self.bytes_max) {
            return Err(Refusal::new(LIMIT, "too many lists are made at once; try again later"));
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Listing {
    /// A list of all channels of a space, or of those that match.
    pub fn new(hub: &Hub, space: Space, matching: Option<Vec<u8>>) -> Listing {
        let limits = hub.holdings.limits();
        let steps = matching
            .as_deref()
            .map_or(0, |pattern| glob::steps_max(pattern, limits.name_bytes_max));
        let visits = (STEPS_AT_ONCE_MAX / (steps + VISIT_STEPS)).clamp(1, VISITS_MAX);
        let mut shards = Vec::new();
        shards.resize_with(hub.spread, OfShard::default);
        Listing {
            space,
            matching,
            visits_max: visits as u32,
            shards,
            found: Names::new(),
            room: Room {
                all: hub.listing_bytes.clone(),
                bytes: 0,
                bytes_max: limits.listing_bytes_max,
            },
        }
    }

    /// Reads one more page. True: the list is complete.
    ///
    /// # Errors
    ///
    /// The engine is not available, or the list becomes too large.
    pub fn advance(&mut self, hub: &Hub) -> Result<bool, Refusal> {
        let behind = self.shards.iter().enumerate().filter(|(_, shard)| shard.next != Next::End);
        let behind =
            behind.min_by(|(_, left), (_, right)| left.next.from().cmp(&right.next.from()));
        let Some((number, _)) = behind else { return Ok(true) };
        let (Some(of_shard), Some(shard)) =
            (self.shards.get_mut(number), hub.shards_of(self.space).nth(number))
        else {
            return Ok(true);
        };
        let (matching, from, visits_max) =
            (self.matching.as_deref(), of_shard.next.from(), self.visits_max);
        let Page { names, next } = shard
            .lock()
            .call(hub, EngineCall::Channels, |engine| {
                engine.channels_from(matching, from, visits_max)
            })
            .map_err(|Unavailable| Unavailable)?;
        self.room.take(names.bytes.len() + NAME_BYTES * names.len())?;
        of_shard.next = next.map_or(Next::End, Next::At);
        of_shard.keep_rest(names);
        self.take_final();
        Ok(self.is_complete())
    }

    /// Whether all pages have been read.
    pub fn is_complete(&self) -> bool {
        self.shards.iter().all(|shard| shard.next == Next::End)
    }

    /// The list, in the order of the names' bytes.
    pub fn into_names(self) -> Names {
        self.found
    }

    /// The part of the list since the last call, in the order of the names' bytes. It still counts
    /// as held, until this is dropped or it is released.
    pub fn take_names(&mut self) -> Names {
        std::mem::take(&mut self.found)
    }

    /// How much a name counts.
    pub fn bytes_of(name: &[u8]) -> usize {
        name.len() + NAME_BYTES
    }

    /// No longer counts so many bytes of names that were taken.
    pub fn release(&mut self, bytes: usize) {
        self.room.bytes = self.room.bytes.saturating_sub(bytes);
        self.room.all.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Adds to the list all names that come before every later page.
    fn take_final(&mut self) {
        let open = self.shards.iter().map(|shard| &shard.next).filter(|next| **next != Next::End);
        let boundary = open.min_by(|left, right| left.from().cmp(&right.from()));
        let is_final = |name: &[u8]| match boundary {
            None => true,
            Some(Next::At(boundary)) => name < boundary.as_slice(),
            Some(_) => false,
        };
        let mut names: Vec<&[u8]> = Vec::new();
        let mut counts = Vec::with_capacity(self.shards.len());
        for shard in &self.shards {
            let before = names.len();
            let rest = (shard.listed..shard.page.len()).map_while(|place| shard.page.get(place));
            names.extend(rest.take_while(|name| is_final(name)));
            counts.push(names.len() - before);
        }
        names.sort_unstable();
        names.iter().for_each(|name| self.found.push(name));
        for (shard, count) in self.shards.iter_mut().zip(counts) {
            shard.listed += count;
        }
    }
}

impl OfShard {
    /// Adds a page after the names that are not in the list yet.
    fn keep_rest(&mut self, page: Names) {
        if self.listed >= self.page.len() {
            (self.page, self.listed) = (page, 0);
            return;
        }
        page.iter().for_each(|name| self.page.push(name));
    }
}

impl Next {
    /// The name to begin at; none: the beginning, which is before all names.
    fn from(&self) -> Option<&[u8]> {
        match self {
            Next::Start | Next::End => None,
            Next::At(name) => Some(name),
        }
    }
}
