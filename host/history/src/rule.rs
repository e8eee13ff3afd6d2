//! How much a channel retains, how much all of them retain, and what a reload changes.
//!
//! A resolver gives the rule of a channel. After a reload, streams are checked against the new
//! resolver one by one, so that a million of them cause no pause. Until all are checked, the
//! resolvers since the last complete check are kept in their order, each with the time from which
//! it held: a stream then ends and loses messages as if each resolver had been applied at its time.

use std::collections::VecDeque;
use std::sync::Arc;

use switchyard_types::history::HistoryRule;

/// How much all channels retain, and how much one answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The memory of all streams.
    pub bytes_max: usize,
    /// The number of streams, at least 1.
    pub channels_max: usize,
    /// How many messages a RESUME or a page of HISTORY has at most.
    pub resume_messages_max: usize,
    /// How many bytes of payloads and tags a RESUME or a page of HISTORY has at most.
    pub resume_bytes_max: usize,
}

/// Gives the rule of a channel; none: the channel has no history.
pub type Resolver = Arc<dyn Fn(&[u8]) -> Option<HistoryRule> + Send + Sync>;

/// The resolver that holds, and those before it that some streams are not checked against yet.
pub(crate) struct Rules {
    /// Never empty; the last one holds.
    generations: VecDeque<Generation>,
}

#[derive(Clone)]
pub(crate) struct Generation {
    pub number: u32,
    pub resolver: Resolver,
    /// When it began to hold.
    pub since_ms: u64,
}

impl Rules {
    pub fn new(resolver: Resolver) -> Rules {
        Rules { generations: [Generation { number: 0, resolver, since_ms: 0 }].into() }
    }

    pub fn push(&mut self, resolver: Resolver, since_ms: u64) {
        let number = self.current().wrapping_add(1);
        self.generations.push_back(Generation { number, resolver, since_ms });
    }

    /// The number of the resolver that holds.
    #[inline]
    pub fn current(&self) -> u32 {
        self.generations.back().map_or(0, |generation| generation.number)
    }

    /// The rule of a channel now.
    pub fn resolve(&self, channel: &[u8]) -> Option<HistoryRule> {
        (self.generations.back()?.resolver)(channel)
    }

    /// The resolver after the one with this number.
    pub fn after(&self, number: u32) -> Option<Generation> {
        let next = number.wrapping_add(1);
        self.generations.iter().find(|generation| generation.number == next).cloned()
    }

    /// Drops all resolvers but the last: no stream needs them any more.
    pub fn forget_earlier(&mut self) {
        self.generations.drain(..self.generations.len().saturating_sub(1));
    }
}
