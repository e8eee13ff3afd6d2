//! Which of the copies of a message is delivered, where several of this node's names match it.
//!
//! The copies of the oldest subscription are, because it has missed nothing that the others received.
//! A copy that arrives early on another subscription is held until the oldest subscription receives
//! it. When that subscription ends, the next one delivers what is outstanding.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bytes::Bytes;
use guest_core::ConnectionId;

use switchyard_types::command::Space;
use switchyard_types::history::StreamPlace;

/// How long a further copy may arrive after the first.
const COPY_TIME: Duration = Duration::from_secs(10);
/// How many messages with outstanding copies are remembered, and how many bytes of early copies.
/// Above that, the oldest are dropped.
const COPIES_MAX: usize = 100_000;
const HELD_BYTES_MAX: usize = 64 << 20;

/// What distinguishes messages on the same channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// The number from the publishing node.
    Numbered(String),
    /// The stream and the sequence of a stored message.
    Stored(String, u64),
    /// The hash and length of its payload. Equal messages need not be distinguished.
    Alike(u64, usize),
}

/// A channel and its space.
pub(super) type Place = (Space, Vec<u8>);

/// What is delivered of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub payload: Bytes,
    /// Where it is stored; none: it is not.
    pub place: Option<StreamPlace>,
    pub tags: Option<Box<[u8]>>,
}

impl Content {
    fn bytes(&self) -> usize {
        self.payload.len() + self.tags.as_ref().map_or(0, |tags| tags.len())
    }
}

/// Messages with outstanding copies.
#[derive(Default)]
pub(super) struct Copies {
    /// Clients choose the names, so the hash has a key of this process.
    by_place: HashMap<Place, VecDeque<Known>>,
    /// In the order in which the first copies arrived.
    order: VecDeque<(Instant, Place)>,
    held_bytes: usize,
    hashing: RandomState,
}

/// A message of which a copy arrived.
struct Known {
    identity: Identity,
    at: Instant,
    /// The subscriptions that have received it.
    by: Vec<ConnectionId>,
    /// Its content, while it waits for the copy of the oldest subscription.
    held: Option<Content>,
}

impl Copies {
    /// Whether copies of messages are outstanding there.
    pub fn has(&self, place: &Place) -> bool {
        self.by_place.contains_key(place)
    }

    /// Where copies of messages are outstanding.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.by_place.keys()
    }

    /// What identifies a message by its payload.
    pub fn identity(&self, payload: &Bytes) -> Identity {
        Identity::Alike(self.hashing.hash_one(payload), payload.len())
    }

    /// Records a copy; returns the content if it is to be delivered now. `all` are the
    /// subscriptions that receive a copy each, in rising order, so that the first is the oldest.
    pub fn take(
        &mut self,
        place: &Place,
        identity: Identity,
        by: ConnectionId,
        all: &[ConnectionId],
        content: Content,
    ) -> Option<Content> {
        let leads = all.first() == Some(&by);
        let now = Instant::now();
        if let Some(known) = self.by_place.get_mut(place)
            && let Some(index) =
                known.iter().position(|it| it.identity == identity && !it.by.contains(&by))
            && let Some(it) = known.get_mut(index)
        {
            it.by.push(by);
            let held = it.held.take_if(|_| leads);
            self.held_bytes -= held.as_ref().map_or(0, Content::bytes);
            if it.held.is_none() && all.iter().all(|one| it.by.contains(one)) {
                known.remove(index);
            }
            if known.is_empty() {
                self.by_place.remove(place);
            }
            return held;
        }
        if leads && all.len() == 1 {
            return Some(content);
        }
        let held = (!leads).then(|| content.clone());
        self.held_bytes += held.as_ref().map_or(0, Content::bytes);
        let it = Known { identity, at: now, by: vec![by], held };
        self.by_place.entry(place.clone()).or_default().push_back(it);
        self.order.push_back((now, place.clone()));
        leads.then_some(content)
    }

    /// Called when another subscription becomes the oldest of this place: returns the held messages
    /// that it has received, in order.
    pub fn hand_over(&mut self, place: &Place, all: &[ConnectionId]) -> Vec<Content> {
        let mut owed = Vec::new();
        let Some(known) = self.by_place.get_mut(place) else { return owed };
        known.retain_mut(|it| {
            if all.first().is_none_or(|oldest| it.by.contains(oldest)) {
                let held = it.held.take();
                self.held_bytes -= held.as_ref().map_or(0, Content::bytes);
                if !all.is_empty() {
                    owed.extend(held);
                }
            }
            it.held.is_some() || !all.iter().all(|one| it.by.contains(one))
        });
        if known.is_empty() {
            self.by_place.remove(place);
        }
        owed
    }

    /// Drops entries that are too old or too many; returns the held contents among them.
    pub fn forget(&mut self, now: Instant) -> Vec<(Place, Content)> {
        let mut held = Vec::new();
        while let Some((at, _)) = self.order.front()
            && (now.duration_since(*at) > COPY_TIME
                || self.order.len() > COPIES_MAX
                || self.held_bytes > HELD_BYTES_MAX)
        {
            let Some((at, place)) = self.order.pop_front() else { break };
            let Some(known) = self.by_place.get_mut(&place) else { continue };
            while let Some(it) = known.pop_front_if(|it| it.at <= at) {
                self.held_bytes -= it.held.as_ref().map_or(0, Content::bytes);
                held.extend(it.held.map(|content| (place.clone(), content)));
            }
            if known.is_empty() {
                self.by_place.remove(&place);
            }
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each step: the number of a payload, the subscription that receives it, all subscriptions
    /// that receive a copy, and whether it is delivered.
    fn check(copies: &mut Copies, steps: &[(u8, ConnectionId, &[ConnectionId], bool)]) {
        for (number, by, all, expected) in steps {
            let content = content(*number);
            let identity = Identity::Alike(u64::from(*number), 1);
            let delivered = copies.take(&place(), identity, *by, all, content.clone());
            assert_eq!(delivered, expected.then_some(content), "{number} by {by}");
        }
    }

    fn content(number: u8) -> Content {
        Content { payload: Bytes::from(vec![number]), place: None, tags: None }
    }

    fn place() -> Place {
        (Space::Channels, b"c".to_vec())
    }

    #[test]
    fn the_copy_of_the_oldest_counts() {
        let mut copies = Copies::default();
        let both = &[10, 20][..];
        check(
            &mut copies,
            &[
                (1, 10, both, true),
                (1, 20, both, false),
                // An early copy waits, so that it does not overtake earlier messages.
                (3, 20, both, false),
                (2, 10, both, true),
                (3, 10, both, true),
                (2, 20, both, false),
                // Equal payloads are as many messages as arrived.
                (4, 10, both, true),
                (4, 10, both, true),
                (4, 20, both, false),
                (4, 20, both, false),
            ],
        );
        assert!(copies.by_place.is_empty());
        assert_eq!(copies.held_bytes, 0);
    }

    #[test]
    fn the_next_has_what_the_oldest_owed() {
        let mut copies = Copies::default();
        let both = &[10, 20][..];
        check(&mut copies, &[(1, 10, both, true), (2, 20, both, false), (3, 20, both, false)]);
        assert_eq!(copies.hand_over(&place(), &[20]), [content(2), content(3)]);
        // The first was delivered already; its other copy may arrive at any time.
        check(&mut copies, &[(1, 20, &[20], false), (4, 20, &[20], true)]);
        assert!(copies.by_place.is_empty());
        assert_eq!(copies.held_bytes, 0);
    }

    #[test]
    fn copies_that_never_come_are_forgotten() {
        let mut copies = Copies::default();
        let both = &[10, 20][..];
        check(&mut copies, &[(1, 10, both, true), (2, 20, both, false)]);
        let later = Instant::now() + COPY_TIME + Duration::from_secs(1);
        assert_eq!(copies.forget(later), [(place(), content(2))]);
        assert!(copies.by_place.is_empty() && copies.order.is_empty());
        check(&mut copies, &[(1, 20, &[20], true)]);
    }
}
