//! The names that this node subscribes to on the backplane: every name that a connection subscribes
//! to, once.
//!
//! Each name has a count of its listeners. The first listener causes a subscription in the next
//! round. When the last one leaves, the name is unsubscribed after a delay, so that a client that
//! reconnects at once causes no traffic. This module knows names and round numbers, not connections
//! or backplanes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use switchyard_hub::observer::SubscriptionObserver;
use switchyard_types::command::Kind;

/// How many bytes names without listeners may use before they are removed without a delay.
const LEAVING_BYTES_MAX: usize = 4 << 20;

/// What a name uses besides its bytes: its entry, and its places in queues.
const ENTRY_BYTES: usize = 128;

/// One subscribed name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// What it names.
    pub kind: Kind,
    /// Its bytes.
    pub bytes: Arc<[u8]>,
}

/// The subscriptions to add and to remove at the backplane in one round.
#[derive(Debug, Default)]
pub struct Round {
    /// Its number.
    pub number: u64,
    /// The names to subscribe to.
    pub joins: Vec<Name>,
    /// The names to unsubscribe from.
    pub leaves: Vec<Name>,
}

/// The names, and the number of listeners of each.
pub struct Interest {
    table: Mutex<Table>,
    changed: Notify,
    progress: watch::Sender<Progress>,
    leave_delay: Duration,
}

/// How far the backplane has applied the rounds.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// All rounds up to this one are done.
    settled: u64,
    is_connected: bool,
}

#[derive(Default)]
struct Table {
    /// By kind. Clients choose the names, so the hash has a key of this process.
    entries: [Entries; 3],
    /// What joins in the next round.
    joining: Vec<Name>,
    /// The names that may be unsubscribed, and when, in the order of the times. Empty while the
    /// backplane is disconnected.
    leaving: VecDeque<(Instant, Name)>,
    /// How many bytes the names without listeners use.
    leaving_bytes: usize,
    /// The number of the next round.
    round: u64,
    is_connected: bool,
}

type Entries = HashMap<Arc<[u8]>, Entry>;

struct Entry {
    listeners: usize,
    /// The round that requests it; none: the backplane is disconnected.
    round: Option<u64>,
    /// Whether a round with it was returned on this connection to the backplane.
    is_requested: bool,
    /// When its last listener left.
    left: Option<Instant>,
    /// Whether it is in `leaving`.
    is_leaving: bool,
}

/// Keeps names subscribed while a connection is about to subscribe to them.
pub struct Hold {
    interest: Arc<Interest>,
    kind: Kind,
    names: Vec<Arc<[u8]>>,
    round: Option<u64>,
}

impl Interest {
    /// No names.
    pub fn new(leave_delay: Duration) -> Arc<Interest> {
        Arc::new(Interest {
            table: Mutex::default(),
            changed: Notify::new(),
            progress: watch::Sender::new(Progress::default()),
            leave_delay,
        })
    }

    /// Keeps names subscribed until the hold is dropped.
    pub fn hold<'a>(
        self: &Arc<Interest>,
        kind: Kind,
        names: impl Iterator<Item = &'a [u8]>,
    ) -> Hold {
        let mut table = self.table.lock();
        let mut round = None;
        let mut is_new = false;
        let names = names
            .map(|name| {
                let (name, requested_in, is_first) = table.join(kind, name);
                round = round.max(requested_in);
                is_new |= is_first;
                name
            })
            .collect();
        drop(table);
        if is_new {
            self.changed.notify_one();
        }
        let settled = self.progress.borrow().settled;
        let round = round.filter(|round| *round > settled);
        Hold { interest: self.clone(), kind, names, round }
    }

    /// The backplane is connected and has no subscriptions: the next round subscribes to all
    /// names. Returns its number.
    pub fn connected(&self) -> u64 {
        let round = self.table.lock().connected();
        self.progress.send_modify(|progress| progress.is_connected = true);
        self.changed.notify_one();
        round
    }

    /// The next round subscribes to all names again.
    pub fn again(&self) {
        self.table.lock().again();
        self.changed.notify_one();
    }

    /// The backplane is disconnected: all waits for it end.
    pub fn disconnected(&self) {
        self.table.lock().disconnected();
        self.progress.send_modify(|progress| progress.is_connected = false);
    }

    /// The next round of changes for the backplane; waits until there is one.
    pub async fn next_round(&self) -> Round {
        loop {
            let due = {
                let mut table = self.table.lock();
                let round = table.take_round(Instant::now(), self.leave_delay);
                if !round.joins.is_empty() || !round.leaves.is_empty() {
                    return round;
                }
                self.settled(round.number);
                table.leaving.front().map(|(due, _)| *due)
            };
            match due {
                None => self.changed.notified().await,
                Some(due) => {
                    let _ = tokio::time::timeout_at(due.into(), self.changed.notified()).await;
                }
            }
        }
    }

    /// The backplane has applied all changes of this round.
    pub fn settled(&self, round: u64) {
        self.progress.send_if_modified(|progress| {
            let is_news = round > progress.settled;
            progress.settled = progress.settled.max(round);
            is_news
        });
    }

    /// Waits until this round is done.
    pub async fn wait_for(&self, round: u64) {
        let mut progress = self.progress.subscribe();
        let _ = progress.wait_for(|progress| progress.settled >= round).await;
    }

    /// How many names there are.
    pub fn count(&self) -> usize {
        self.table.lock().entries.iter().map(Entries::len).sum()
    }
}

impl SubscriptionObserver for Interest {
    /// Adds a listener of this name.
    fn join(&self, kind: Kind, name: &[u8]) {
        self.table.lock().join(kind, name);
        self.changed.notify_one();
    }

    /// Removes a listener of this name.
    fn leave(&self, kind: Kind, name: &[u8]) {
        let is_last = self.table.lock().leave(kind, name, Instant::now(), self.leave_delay);
        if is_last {
            self.changed.notify_one();
        }
    }

    /// How many bytes the names use that have no listener and are not unsubscribed yet.
    fn leaving_bytes(&self) -> usize {
        self.table.lock().leaving_bytes
    }
}

const KINDS: [Kind; 3] = [Kind::Channel, Kind::Pattern, Kind::Shard];

impl Table {
    fn entries(&mut self, kind: Kind) -> &mut Entries {
        let [channels, patterns, shard_channels] = &mut self.entries;
        match kind {
            Kind::Channel => channels,
            Kind::Pattern => patterns,
            Kind::Shard => shard_channels,
        }
    }

    fn connected(&mut self) -> u64 {
        self.is_connected = true;
        self.round += 1;
        self.joining.clear();
        for (kind, entries) in KINDS.into_iter().zip(&mut self.entries) {
            for (name, entry) in entries {
                entry.round = Some(self.round);
                entry.is_requested = false;
                self.joining.push(Name { kind, bytes: name.clone() });
            }
        }
        self.round
    }

    fn again(&mut self) {
        if self.is_connected {
            let names = KINDS.into_iter().zip(&self.entries).flat_map(|(kind, entries)| {
                entries.keys().map(move |name| Name { kind, bytes: name.clone() })
            });
            self.joining = names.collect();
        }
    }

    fn disconnected(&mut self) {
        self.is_connected = false;
        self.joining.clear();
        // Nothing is subscribed any more, so nothing has to be unsubscribed later.
        self.leaving.clear();
        self.leaving_bytes = 0;
        for entries in &mut self.entries {
            entries.retain(|_, entry| entry.listeners > 0);
            for entry in entries.values_mut() {
                entry.round = None;
                entry.is_requested = false;
                entry.is_leaving = false;
            }
        }
    }

    /// Returns the name, the round that requests it, and whether it is new.
    fn join(&mut self, kind: Kind, name: &[u8]) -> (Arc<[u8]>, Option<u64>, bool) {
        if let Some((name, _)) = self.entries(kind).get_key_value(name) {
            let name = name.clone();
            let entry = self.entries(kind).get_mut(&name).expect("it was found just now");
            entry.listeners += 1;
            let round = entry.round;
            if entry.left.take().is_some() {
                self.leaving_bytes -= bytes(&name);
            }
            return (name, round, false);
        }
        let name: Arc<[u8]> = name.into();
        let round = self.is_connected.then_some(self.round + 1);
        if round.is_some() {
            self.joining.push(Name { kind, bytes: name.clone() });
        }
        let entry =
            Entry { listeners: 1, round, is_requested: false, left: None, is_leaving: false };
        self.entries(kind).insert(name.clone(), entry);
        (name, round, true)
    }

    /// Removes one listener. Returns whether it was the last one.
    fn leave(&mut self, kind: Kind, name: &[u8], now: Instant, delay: Duration) -> bool {
        let Some((name, _)) = self.entries(kind).get_key_value(name) else { return false };
        let name = name.clone();
        let Some(entry) = self.entries(kind).get_mut(&name) else { return false };
        entry.listeners = entry.listeners.saturating_sub(1);
        if entry.listeners > 0 {
            return false;
        }
        if !self.is_connected {
            self.entries(kind).remove(&name);
            return false;
        }
        let Some(entry) = self.entries(kind).get_mut(&name) else { return false };
        entry.left = Some(now);
        if !std::mem::replace(&mut entry.is_leaving, true) {
            self.leaving.push_back((now + delay, Name { kind, bytes: name.clone() }));
        }
        self.leaving_bytes += bytes(&name);
        true
    }

    fn take_round(&mut self, now: Instant, delay: Duration) -> Round {
        self.round += 1;
        let mut round = Round { number: self.round, ..Round::default() };
        loop {
            let is_full = self.leaving_bytes > LEAVING_BYTES_MAX;
            if !self.leaving.front().is_some_and(|(due, _)| is_full || *due <= now) {
                break;
            }
            let Some((_, name)) = self.leaving.pop_front() else { break };
            let Some(entry) = self.entries(name.kind).get_mut(&name.bytes) else { continue };
            entry.is_leaving = false;
            // None: there is a listener again.
            let Some(left) = entry.left else { continue };
            if !is_full && left + delay > now {
                // A listener came back, and left again.
                entry.is_leaving = true;
                self.leaving.push_back((left + delay, name));
                continue;
            }
            // A name that joined and left since the last round was never requested:
            // it is neither among the joins nor among the leaves.
            let was_requested = entry.is_requested;
            self.leaving_bytes -= bytes(&name.bytes);
            self.entries(name.kind).remove(&name.bytes);
            if was_requested {
                round.leaves.push(name);
            }
        }
        if self.is_connected {
            for name in std::mem::take(&mut self.joining) {
                let Some(entry) = self.entries(name.kind).get_mut(&name.bytes) else { continue };
                entry.is_requested = true;
                round.joins.push(name);
            }
        }
        round
    }
}

fn bytes(name: &[u8]) -> usize {
    name.len() + ENTRY_BYTES
}

impl Hold {
    /// Waits until the backplane has subscribed to all names, is disconnected, or the time is over.
    /// Returns whether no message can be missed.
    pub async fn settled(&self, limit: Duration) -> bool {
        let Some(round) = self.round else { return true };
        let mut progress = self.interest.progress.subscribe();
        let done =
            progress.wait_for(|progress| progress.settled >= round || !progress.is_connected);
        tokio::time::timeout(limit, done)
            .await
            .is_ok_and(|progress| progress.is_ok_and(|progress| progress.settled >= round))
    }

    /// Whether there is nothing to wait for.
    pub fn is_settled(&self) -> bool {
        self.round.is_none()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for name in &self.names {
            self.interest.leave(self.kind, name);
        }
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_secs(1);

    fn take(table: &mut Table, now: Instant) -> (Vec<String>, Vec<String>) {
        let text = |names: Vec<Name>| {
            names.iter().map(|name| String::from_utf8_lossy(&name.bytes).into_owned()).collect()
        };
        let round = table.take_round(now, DELAY);
        (text(round.joins), text(round.leaves))
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_first_joins_and_the_last_leaves_after_a_while() {
        let mut table = Table { is_connected: true, ..Table::default() };
        let start = Instant::now();
        for name in [b"a", b"a", b"b"] {
            table.join(Kind::Channel, name);
        }
        assert_eq!(take(&mut table, start), (words(&["a", "b"]), words(&[])));
        assert!(!table.leave(Kind::Channel, b"a", start, DELAY));
        assert!(table.leave(Kind::Channel, b"a", start, DELAY));
        assert_eq!(take(&mut table, start), (words(&[]), words(&[])));
        // Flapping: it causes no change at the backplane, and the delay starts again.
        table.join(Kind::Channel, b"a");
        table.leave(Kind::Channel, b"a", start + DELAY / 2, DELAY);
        assert_eq!(take(&mut table, start + DELAY), (words(&[]), words(&[])));
        assert_eq!(take(&mut table, start + DELAY * 3 / 2), (words(&[]), words(&["a"])));
        assert!(!table.leave(Kind::Channel, b"a", start, DELAY), "it is forgotten");
    }

    #[test]
    fn a_name_that_rejoins_within_the_delay_causes_no_change() {
        let mut table = Table { is_connected: true, ..Table::default() };
        let start = Instant::now();
        table.join(Kind::Pattern, b"a*");
        take(&mut table, start);
        table.leave(Kind::Pattern, b"a*", start, DELAY);
        table.join(Kind::Pattern, b"a*");
        assert_eq!(take(&mut table, start + DELAY * 2), (words(&[]), words(&[])));
        // A channel of the same name is another name.
        table.join(Kind::Channel, b"a*");
        assert_eq!(take(&mut table, start), (words(&["a*"]), words(&[])));
    }

    #[test]
    fn a_name_that_joins_and_leaves_within_one_round_is_never_requested() {
        let mut table = Table { is_connected: true, ..Table::default() };
        let start = Instant::now();
        table.join(Kind::Pattern, b"a*");
        table.leave(Kind::Pattern, b"a*", start, DELAY);
        table.join(Kind::Pattern, b"b*");
        assert_eq!(take(&mut table, start + DELAY), (words(&["b*"]), words(&[])));
        table.leave(Kind::Pattern, b"b*", start, DELAY);
        assert_eq!(take(&mut table, start + DELAY), (words(&[]), words(&["b*"])));
    }

    /// Names of 16 bytes that begin with the seed of `rustc_hash` all have the same hash there. The
    /// test compares the time for them with that for as many random names.
    #[test]
    fn names_chosen_to_collide_cost_what_others_cost() {
        const NAMES: u64 = 20_000;
        let time = |prefix: [u8; 8]| {
            let mut table = Table { is_connected: true, ..Table::default() };
            let names: Vec<[u8; 16]> = (0..NAMES)
                .map(|number| {
                    let mut name = [0; 16];
                    let scattered = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    name[..8].copy_from_slice(&prefix);
                    name[8..].copy_from_slice(&scattered.to_le_bytes());
                    name
                })
                .collect();
            let began = Instant::now();
            for name in &names {
                table.join(Kind::Channel, name);
            }
            let round = table.take_round(began, DELAY);
            assert_eq!(round.joins.len(), names.len());
            for name in &names {
                table.leave(Kind::Channel, name, began, DELAY);
            }
            assert_eq!(table.take_round(began + DELAY, DELAY).leaves.len(), names.len());
            began.elapsed()
        };
        // The best of a few, because other programs use the machine too.
        let best = |prefix| (0..5).map(|_| time(prefix)).min().unwrap_or_default();
        let control = best(0x1122_3344_5566_7788_u64.to_le_bytes());
        let colliding = best(0x243f_6a88_85a3_08d3_u64.to_le_bytes());
        assert!(colliding < control * 5, "{colliding:?}, and {control:?} without collisions");
    }

    #[tokio::test]
    async fn a_hold_waits_for_the_round_of_its_name() {
        let interest = Interest::new(DELAY);
        assert!(interest.hold(Kind::Channel, [&b"a"[..]].into_iter()).is_settled(), "disconnected");
        interest.connected();
        let hold = interest.hold(Kind::Channel, [&b"b"[..]].into_iter());
        assert!(!hold.is_settled());
        let round = interest.next_round().await;
        assert_eq!(round.joins.len(), 1, "a name without listeners is not restored");
        interest.settled(round.number);
        assert!(hold.settled(DELAY).await);
        let again = interest.hold(Kind::Channel, [&b"b"[..]].into_iter());
        assert!(again.is_settled());
        let other = interest.hold(Kind::Channel, [&b"c"[..]].into_iter());
        interest.disconnected();
        assert!(!other.settled(DELAY).await, "no wait for a disconnected backplane");
    }
}
