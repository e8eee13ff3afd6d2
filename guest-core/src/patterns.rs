//! The patterns somebody listens to: each distinct one once, with its id and its subscribers.
//!
//! Ids are positions in a table, and the positions that are free form a stack. A snapshot holds
//! that stack too, so that a successor gives the next pattern the id that its predecessor would
//! have given it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::name::compare;
use crate::pattern_index::PatternIndex;
use crate::subscribers::Subscribers;
use crate::{ConnectionId, PatternId, glob};

#[derive(Debug, Default)]
pub(crate) struct Patterns {
    ids: BTreeMap<Arc<[u8]>, PatternId>,
    table: Vec<Option<Pattern>>,
    /// Positions of the table without a pattern; the last is assigned next.
    free: Vec<PatternId>,
    index: PatternIndex,
}

#[derive(Debug)]
pub(crate) struct Pattern {
    pub id: PatternId,
    pub bytes: Arc<[u8]>,
    /// Never empty.
    pub subscribers: Subscribers,
}

impl Patterns {
    /// Adds a subscriber, which may be one already, and answers the pattern's id.
    pub fn subscribe(&mut self, connection: ConnectionId, bytes: &[u8]) -> PatternId {
        if let Some(&id) = self.ids.get(bytes) {
            self.pattern_mut(id).subscribers.insert(connection);
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.table.push(None);
            PatternId::try_from(self.table.len() - 1)
                .expect("fewer patterns than 2^32 fit into memory")
        });
        let bytes: Arc<[u8]> = bytes.into();
        self.ids.insert(bytes.clone(), id);
        self.index.insert(&bytes, id);
        let subscribers = Subscribers::One(connection);
        self.table[id as usize] = Some(Pattern { id, bytes, subscribers });
        id
    }

    /// Takes a subscriber out, if it is one, and forgets the pattern with the last.
    pub fn unsubscribe(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let Some(&id) = self.ids.get(bytes) else {
            return;
        };
        let subscribers = &mut self.pattern_mut(id).subscribers;
        subscribers.remove(connection);
        if subscribers.is_empty() {
            self.ids.remove(bytes);
            self.table[id as usize] = None;
            self.free.push(id);
            self.index.remove(bytes, id);
        }
    }

    /// Replaces what `matched` holds by the patterns that match the channel, in the order of their
    /// bytes.
    pub fn find<'a>(&'a self, channel: &[u8], matched: &mut Vec<&'a Pattern>) {
        matched.clear();
        self.index.visit_candidates(channel, |id| {
            let pattern = self.pattern(id);
            if glob::matches(&pattern.bytes, channel) {
                matched.push(pattern);
            }
        });
        // Many patterns that match may begin alike, and eight bytes at a time are compared sooner.
        matched.sort_unstable_by(|left, right| compare(&left.bytes, &right.bytes));
    }

    /// How many distinct patterns there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The patterns in the order of their bytes.
    pub fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.ids.values().map(|&id| self.pattern(id))
    }

    /// The free ids; the last is assigned next.
    pub fn free(&self) -> &[PatternId] {
        &self.free
    }

    /// Builds what `iter` and `free` came from; none when an id is missing or there twice. The
    /// patterns' bytes rise.
    pub fn rebuild(patterns: Vec<Pattern>, free: Vec<PatternId>) -> Option<Patterns> {
        let table_len = patterns.len() + free.len();
        let mut known = vec![false; table_len];
        for id in patterns.iter().map(|pattern| pattern.id).chain(free.iter().copied()) {
            let known = known.get_mut(id as usize)?;
            if std::mem::replace(known, true) {
                return None;
            }
        }
        // In bulk, because inserting one after the other would search for each.
        let ids = patterns.iter().map(|pattern| (pattern.bytes.clone(), pattern.id)).collect();
        let mut index = PatternIndex::default();
        let mut table = Vec::new();
        table.resize_with(table_len, || None);
        for pattern in patterns {
            let id = pattern.id;
            index.insert(&pattern.bytes, id);
            table[id as usize] = Some(pattern);
        }
        Some(Patterns { ids, table, free, index })
    }

    fn pattern(&self, id: PatternId) -> &Pattern {
        self.table[id as usize].as_ref().expect("only ids in use are handed out")
    }

    fn pattern_mut(&mut self, id: PatternId) -> &mut Pattern {
        self.table[id as usize].as_mut().expect("only ids in use are handed out")
    }
}
