//! What a room must remember of its past, so that each watcher receives what it does not know.
//!
//! The history is shared by all watchers, so that a change costs the same for any number of them,
//! and a watcher that does not read makes the room keep nothing for itself. It holds:
//!
//! - the last `EACH_MAX` changes, in order, for watchers that miss no more than these;
//! - for each connection that changed, its earlier states, as far as a watcher still knows them. A
//!   state is kept at the first change after a mark, so that ten changes within one window keep
//!   one. The difference between that and the current state is what a watcher receives.
//!
//! Without watchers it is empty. States that no mark refers to any more are removed when they are
//! more than half of all, so that the memory is bounded by the connections that changed since the
//! oldest mark, times the marks between which they did.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use switchyard_types::ids::ConnectionId;

use crate::change::{Change, Coalesced, EACH_MAX, Events, Updated};
use crate::marks::{LAST, Marks};
use crate::member::{Member, Slot};

/// About how many bytes a kept state and its table entry use.
const STATE_BYTES: usize = 112;

/// About how many bytes a member that is kept with a state uses, without its texts.
const KNOWN_BYTES: usize = 128;

/// More than this capacity is given back when the table becomes empty.
const IDLE_CAPACITY: usize = 256;

/// Below this number of states, none are searched for removal.
const STATES_MIN: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct History {
    /// How many changes there were.
    change: u64,
    /// How many of them the settled watchers know.
    flushed: u64,
    /// The newest mark that a watcher may have.
    newest_mark: u64,
    connections: FxHashMap<ConnectionId, Past>,
    /// Connections with a state that was kept since the last flush; may contain duplicates.
    window: Vec<ConnectionId>,
    recent: VecDeque<Change>,
    /// The current connection of each place that was taken over.
    places: FxHashMap<u64, ConnectionId>,
    states: usize,
    /// How many states were left after the last removal.
    swept_states: usize,
    bytes: usize,
}

/// The earlier states of one connection.
#[derive(Debug, Default)]
struct Past {
    /// Ascending by change.
    states: SmallVec<[State; 1]>,
    /// The member as it was when it left the room for the last time, or was replaced.
    left: Option<Known>,
}

/// The state of a connection before a change.
#[derive(Debug)]
struct State {
    change: u64,
    before: Option<Known>,
}

#[derive(Debug, Clone)]
struct Known {
    member: Arc<Member>,
    place: u64,
}

impl History {
    pub fn change(&self) -> u64 {
        self.change
    }

    pub fn flushed(&self) -> u64 {
        self.flushed
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many connections the difference of the window is computed for.
    pub fn window_len(&self) -> usize {
        self.window.len()
    }

    /// How many connections the difference since these marks is computed for.
    pub fn len_since(&self, marks: &Marks) -> usize {
        match marks.all() {
            Some(change) if self.change - change <= EACH_MAX as u64 => EACH_MAX,
            _ => self.connections.len(),
        }
    }

    /// Begins with the first watcher.
    pub fn start(&mut self) {
        self.flushed = self.change;
        self.newest_mark = self.change;
    }

    /// A watcher now knows the current state, of some connections at least.
    pub fn mark(&mut self) {
        self.newest_mark = self.change;
    }

    /// Counts a change. `keep` follows for each connection that it concerns.
    pub fn record(&mut self, change: Change) {
        self.change += 1;
        if self.recent.len() == EACH_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(change);
    }

    /// Keeps the state of a connection before the change that was counted last.
    pub fn keep(&mut self, connection: ConnectionId, before: Option<&Slot>, is_gone: bool) {
        let before = before.map(|slot| Known { member: slot.member.clone(), place: slot.place });
        let past = self.connections.entry(connection).or_default();
        if is_gone {
            past.left = before.clone();
        }
        let last = past.states.last().map(|state| state.change);
        if last.is_none_or(|last| last <= self.newest_mark) {
            self.bytes += state_bytes(before.as_ref());
            self.states += 1;
            past.states.push(State { change: self.change, before });
            if last.is_none_or(|last| last <= self.flushed) {
                self.window.push(connection);
            }
        }
    }

    /// A connection took over a place.
    pub fn take_over(&mut self, place: u64, connection: ConnectionId) {
        self.places.insert(place, connection);
    }

    /// A place ended.
    pub fn end_place(&mut self, place: u64) {
        if !self.places.is_empty() {
            self.places.remove(&place);
        }
    }

    /// What settled watchers do not know.
    pub fn events_of_window(&self, members: &BTreeMap<ConnectionId, Slot>) -> Option<Events> {
        let marks = Marks::new(LAST, self.flushed);
        self.each_since(self.flushed).unwrap_or_else(|| {
            let mut connections = self.window.clone();
            connections.sort_unstable();
            connections.dedup();
            let coalesced = self.difference(connections, members, &marks);
            (!coalesced.is_empty()).then_some(Events::Coalesced(coalesced))
        })
    }

    /// What a watcher with these marks does not know.
    pub fn events_since(
        &self,
        marks: &Marks,
        members: &BTreeMap<ConnectionId, Slot>,
    ) -> Option<Events> {
        if let Some(events) = marks.all().and_then(|change| self.each_since(change)) {
            return events;
        }
        let mut connections: Vec<ConnectionId> = self.connections.keys().copied().collect();
        connections.sort_unstable();
        let coalesced = self.difference(connections, members, marks);
        match coalesced.len() {
            0 => None,
            // The watcher misses more changes, or has marks of several pages. Few are left of them.
            1..=EACH_MAX if marks.all().is_none() => Some(Events::Each(coalesced.into_each())),
            _ => Some(Events::Coalesced(coalesced)),
        }
    }

    /// The changes after that one in their order; none: there are too many.
    #[expect(clippy::option_option, reason = "no events is another case than too many changes")]
    fn each_since(&self, change: u64) -> Option<Option<Events>> {
        let missed = usize::try_from(self.change - change).ok().filter(|&n| n <= EACH_MAX)?;
        let known = self.recent.len().saturating_sub(missed);
        let changes: Vec<Change> = self.recent.iter().skip(known).cloned().collect();
        Some((!changes.is_empty()).then_some(Events::Each(changes)))
    }

    /// The difference between the marks and the current state. The connections are sorted.
    fn difference(
        &self,
        connections: Vec<ConnectionId>,
        members: &BTreeMap<ConnectionId, Slot>,
        marks: &Marks,
    ) -> Coalesced {
        let mut difference = Coalesced::default();
        let mut successors = FxHashSet::default();
        for connection in connections {
            let Some(past) = self.connections.get(&connection) else { continue };
            let Some(known) = marks.known(connection) else { continue };
            let Some(state) = past.states.iter().find(|state| state.change > known) else {
                continue;
            };
            match (&state.before, members.get(&connection)) {
                (None, None) => {}
                (None, Some(now)) => difference.enter.push(now.member.clone()),
                (Some(before), Some(now)) => {
                    if before.member != now.member {
                        difference.update.push(Updated { member: now.member.clone(), was: None });
                    }
                }
                (Some(before), None) => {
                    let last = past.left.as_ref().unwrap_or(before);
                    let successor = self.places.get(&last.place);
                    match successor.and_then(|successor| members.get(successor)) {
                        Some(now) => {
                            successors.insert(now.member.connection);
                            let was = Some(connection);
                            difference.update.push(Updated { member: now.member.clone(), was });
                        }
                        None => difference.leave.push(last.member.clone()),
                    }
                }
            }
        }
        if !successors.is_empty() {
            difference.enter.retain(|member| !successors.contains(&member.connection));
            difference.update.retain(|updated| {
                updated.was.is_some() || !successors.contains(&updated.member.connection)
            });
            difference.update.sort_by_key(|updated| (updated.member.connection, updated.was));
        }
        difference
    }

    /// All settled watchers know the current state.
    pub fn flush(&mut self) {
        self.flushed = self.change;
        self.newest_mark = self.change;
        self.window.clear();
        if self.window.capacity() > IDLE_CAPACITY {
            self.window = Vec::new();
        }
    }

    /// No watcher knows anything older than the last flush.
    pub fn clear(&mut self) {
        self.recent.clear();
        self.places.clear();
        self.connections.clear();
        if self.connections.capacity() > IDLE_CAPACITY {
            self.connections = FxHashMap::default();
            self.places = FxHashMap::default();
        }
        self.window.clear();
        (self.states, self.swept_states, self.bytes) = (0, 0, 0);
    }

    /// Whether so many states were kept that `sweep` is worth its cost.
    pub fn should_sweep(&self) -> bool {
        self.states > STATES_MIN + 2 * self.swept_states
    }

    /// Removes the states that no mark refers to, right after a flush. `marks` are those of the
    /// watchers that are not settled. Costs one step for each state.
    pub fn sweep(
        &mut self,
        marks: impl Iterator<Item = u64>,
        members: &BTreeMap<ConnectionId, Slot>,
    ) {
        let mut marks: Vec<u64> = marks.chain([self.flushed]).collect();
        marks.sort_unstable();
        marks.dedup();
        let (mut states, mut bytes) = (0, 0);
        self.connections.retain(|connection, past| {
            let mut last = 0;
            past.states.retain(|state| {
                let from = std::mem::replace(&mut last, state.change);
                let mark = marks.get(marks.partition_point(|mark| *mark < from));
                mark.is_some_and(|mark| *mark < state.change)
            });
            let was_member = past.states.iter().any(|state| state.before.is_some());
            let is_needed =
                was_member || !past.states.is_empty() && members.contains_key(connection);
            if is_needed {
                states += past.states.len();
                bytes += past.states.iter().map(|s| state_bytes(s.before.as_ref())).sum::<usize>();
            }
            is_needed
        });
        (self.states, self.swept_states, self.bytes) = (states, states, bytes);
    }
}

fn state_bytes(before: Option<&Known>) -> usize {
    let Some(Known { member, .. }) = before else { return STATE_BYTES };
    let user = member.user.as_ref().map_or(0, |user| user.len());
    STATE_BYTES + KNOWN_BYTES + member.data.len() + user
}
