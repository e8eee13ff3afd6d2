//! What this node has delivered of streams that the backplane keeps.
//!
//! Publications on such channels arrive from the backplane with their positions, also those of this
//! node. A tail knows the last one that was delivered here, so that duplicates are dropped and a
//! hole is noticed. What follows a hole is dropped, because the backplane keeps it: the messages
//! are then read from there ("catching up") until nothing is missing.
//!
//! A RESUME reads from the backplane first and subscribes afterwards. What is delivered between the
//! two is recorded here for it; what it has read and what arrives later is withheld from that one
//! connection.
//!
//! The caller holds the lock of the channel's shard for everything that concerns deliveries.

#[cfg(test)]
mod model;

use std::collections::VecDeque;
use std::sync::Arc;

use switchyard_history::{Entry, Message};
use switchyard_types::batch::Batch;
use switchyard_types::history::StreamPlace;
use switchyard_types::ids::ConnectionId;
use switchyard_types::keyed_hash::KeyedMap;
use switchyard_types::position::Position;

/// How many channels are remembered that only patterns of this node match.
const PATTERN_ONLY_MAX: usize = 10_000;

/// The tails of all channels.
pub(super) struct Tails {
    by_channel: KeyedMap<Arc<[u8]>, Tail>,
    /// Channels that only patterns match, the oldest first.
    pattern_only: VecDeque<Arc<[u8]>>,
    /// Channels with a hole.
    holes: VecDeque<Arc<[u8]>>,
    /// How often the connection to the backplane was lost. A tail with another number may have
    /// missed messages.
    link: u64,
    /// How much is recorded for one channel at most.
    recorded: Bounds,
}

/// How much is recorded while connections resume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub messages: usize,
    pub bytes: usize,
}

#[derive(Default)]
struct Tail {
    /// The last publication that was delivered here.
    delivered: Option<Position>,
    /// Everything after this position arrives, or is noticed as missing. Not before `delivered`.
    base: Option<Position>,
    link: u64,
    /// Since when it has been among the holes.
    in_holes_since: Option<u64>,
    /// Whether the node subscribes to the channel by its name.
    is_named: bool,
    /// Messages are being read from the backplane.
    catching_up: bool,
    /// The last publication that was dropped because of that.
    dropped: Option<Position>,
    /// How many connections are resuming.
    resuming: usize,
    /// What was delivered while connections were resuming, ...
    recent: VecDeque<Message>,
    recent_bytes: usize,
    /// ... which is everything after this position.
    recent_after: Option<Position>,
    /// Connections that have everything up to a position.
    withheld: Vec<(ConnectionId, Position)>,
}

/// What happens to a publication that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is delivered to all but these subscribers of the channel's name.
    Delivered { except: Batch<ConnectionId> },
    /// It is not delivered: it was before, or it follows a hole.
    Dropped,
}

/// What was read for a RESUME does not meet what this node has delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoMeeting {
    /// The stream has another epoch by now.
    Epoch,
    /// Not everything in between is recorded.
    Many,
}

/// What a connection receives that resumes.
#[derive(Debug)]
pub(super) struct Meeting {
    /// Everything after this position will arrive, and nothing before it.
    pub position: Position,
    /// What was delivered between what was read and this position.
    pub between: Result<Vec<Message>, NoMeeting>,
}

impl Tails {
    pub fn new(recorded: Bounds) -> Tails {
        Tails {
            by_channel: KeyedMap::default(),
            pattern_only: VecDeque::new(),
            holes: VecDeque::new(),
            link: 0,
            recorded,
        }
    }

    pub fn set_bounds(&mut self, recorded: Bounds) {
        self.recorded = recorded;
    }

    /// Whether it is known from which position on everything arrives.
    pub fn is_known(&self, channel: &[u8]) -> bool {
        self.by_channel.get(channel).is_some_and(|tail| tail.is_named && tail.base.is_some())
    }

    /// This node subscribes to the channel by its name since before the stream was at `head`.
    pub fn know(&mut self, channel: &[u8], head: Position) {
        let link = self.link;
        let tail = self.tail(channel);
        tail.is_named = true;
        if tail.base.is_none() {
            tail.base = Some(head);
            tail.link = link;
        }
    }

    /// This node is no longer subscribed to the channel by its name.
    pub fn forget(&mut self, channel: &[u8]) {
        if self.by_channel.get(channel).is_some_and(|tail| tail.resuming == 0) {
            self.by_channel.remove(channel);
        }
    }

    /// Removes the tails of channels without history.
    pub fn retain(&mut self, has_history: impl Fn(&[u8]) -> bool) {
        self.by_channel.retain(|channel, tail| tail.resuming > 0 || has_history(channel));
    }

    /// A publication arrived from the backplane, or was read there while catching up.
    pub fn arrive(
        &mut self,
        channel: &[u8],
        place: &StreamPlace,
        entry: impl FnOnce() -> Entry,
    ) -> Arrival {
        let (link, bounds) = (self.link, self.recorded);
        let at = place.position;
        let tail = self.tail(channel);
        if tail.delivered.is_some_and(|delivered| at <= delivered) {
            return Arrival::Dropped;
        }
        if !place.is_read {
            if tail.catching_up {
                tail.dropped = tail.dropped.max(Some(at));
                return Arrival::Dropped;
            }
            let follows = tail.base.is_none_or(|base| match at.epoch == base.epoch {
                true => place.previous <= base.offset,
                // A new stream. Whether the old one had more is only known if nothing was missed.
                false => at.epoch > base.epoch && place.previous == 0 && tail.link == link,
            });
            if !follows {
                if tail.base.is_some_and(|base| at.epoch < base.epoch) {
                    return Arrival::Dropped;
                }
                tail.catching_up = true;
                tail.in_holes_since = Some(link);
                tail.dropped = Some(at);
                self.holes.push_back(channel.into());
                return Arrival::Dropped;
            }
            tail.link = link;
        }
        let before = Position { offset: place.previous, ..at };
        let is_next = tail.delivered.is_some_and(|delivered| delivered >= before);
        tail.delivered = Some(at);
        tail.base = tail.base.max(Some(at));
        if tail.resuming > 0 {
            if !is_next {
                // What came before was not delivered here.
                tail.forget_recent(Some(before));
            }
            tail.record(Message { position: at, entry: entry() }, bounds);
        }
        let is_withheld = |(_, up_to): &&(ConnectionId, Position)| at <= *up_to;
        let except = tail.withheld.iter().filter(is_withheld).map(|(id, _)| *id).collect();
        tail.withheld.retain(|(_, up_to)| at < *up_to);
        Arrival::Delivered { except }
    }

    /// A connection is resuming: what is delivered is recorded until `end_resume`. Returns the number
    /// of the connection to the backplane, for `meet`.
    pub fn begin_resume(&mut self, channel: &[u8]) -> u64 {
        let tail = self.tail(channel);
        tail.is_named = true;
        tail.resuming += 1;
        if tail.resuming == 1 {
            tail.recent_after = tail.delivered;
        }
        self.link
    }

    /// A connection is no longer resuming.
    pub fn end_resume(&mut self, channel: &[u8]) {
        let Some(tail) = self.by_channel.get_mut(channel) else { return };
        tail.resuming = tail.resuming.saturating_sub(1);
        if tail.resuming == 0 {
            tail.recent = VecDeque::new();
            tail.recent_bytes = 0;
        }
    }

    /// A connection that is resuming since `begun` has everything up to `head`, and is subscribed from
    /// now on.
    pub fn meet(
        &mut self,
        channel: &[u8],
        (connection, begun): (ConnectionId, u64),
        head: Position,
        is_alive: impl Fn(ConnectionId) -> bool,
    ) -> Meeting {
        let link = self.link;
        let tail = self.tail(channel);
        if tail.base.is_none() {
            tail.base = Some(head);
            tail.link = begun;
            if begun != link {
                // Messages after `head` may be missing already.
                tail.catching_up = true;
                tail.in_holes_since = Some(link);
                self.holes.push_back(channel.into());
            }
        }
        let tail = self.tail(channel);
        if let Some(delivered) = tail.delivered.filter(|delivered| *delivered >= head) {
            let between = if delivered.epoch != head.epoch {
                Err(NoMeeting::Epoch)
            } else if tail.recent_after.is_some_and(|after| after > head) {
                Err(NoMeeting::Many)
            } else {
                let later = tail.recent.iter().filter(|message| message.position > head);
                Ok(later.cloned().collect())
            };
            return Meeting { position: delivered, between };
        }
        // Another connection may have read later, and nothing has arrived since.
        let meeting = match tail.base.filter(|base| *base > head) {
            Some(base) if base.epoch > head.epoch => {
                Meeting { position: base, between: Err(NoMeeting::Epoch) }
            }
            Some(base) if tail.catching_up => {
                Meeting { position: base, between: Err(NoMeeting::Many) }
            }
            _ => {
                tail.base = tail.base.min(Some(head));
                Meeting { position: head, between: Ok(Vec::new()) }
            }
        };
        // Connections that ended before the next message leave their entries here.
        if tail.withheld.len() >= 64 && tail.withheld.len().is_power_of_two() {
            tail.withheld.retain(|(id, _)| is_alive(*id));
        }
        tail.withheld.retain(|(id, _)| *id != connection);
        tail.withheld.push((connection, meeting.position));
        meeting
    }

    /// The last publication that was delivered here.
    pub fn delivered(&self, channel: &[u8]) -> Option<Position> {
        self.by_channel.get(channel)?.delivered
    }

    /// The connection to the backplane was lost: messages may be missing everywhere. What was being
    /// read is not: `doubt` begins again.
    pub fn lose_link(&mut self) {
        self.link += 1;
        self.holes.clear();
    }

    /// Begins to catch up on channels that may have missed messages. Returns whether there were any.
    pub fn doubt(&mut self, channels_max: usize) -> bool {
        let link = self.link;
        let doubtful: Vec<Arc<[u8]>> = self
            .by_channel
            .iter()
            .filter(|(_, tail)| {
                tail.link != link && tail.in_holes_since != Some(link) && tail.base.is_some()
            })
            .take(channels_max)
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in &doubtful {
            if let Some(tail) = self.by_channel.get_mut(channel) {
                tail.catching_up = true;
                tail.in_holes_since = Some(link);
            }
        }
        let is_some = !doubtful.is_empty();
        self.holes.extend(doubtful);
        is_some
    }

    /// Channels to catch up on, each with the position after which messages are missing.
    pub fn take_holes(&mut self, channels_max: usize) -> Vec<(Arc<[u8]>, Position)> {
        let count = self.holes.len().min(channels_max);
        let tails = &self.by_channel;
        let hole = |channel: Arc<[u8]>| {
            let base = tails.get(&channel).filter(|tail| tail.catching_up)?.base?;
            Some((channel, base))
        };
        self.holes.drain(..count).filter_map(hole).collect()
    }

    /// The channels were not caught up on: the backplane did not answer. They are tried again.
    pub fn not_caught_up(&mut self, channel: &[u8]) {
        self.holes.push_back(channel.into());
    }

    /// Everything up to `head` was read and delivered. Returns whether that is all that was missing;
    /// otherwise there is more to read.
    pub fn caught_up(&mut self, channel: &[u8], head: Position) -> bool {
        let link = self.link;
        let Some(tail) = self.by_channel.get_mut(channel) else { return true };
        tail.base = tail.base.max(Some(head));
        if tail.dropped.is_some_and(|dropped| dropped > head) {
            return false;
        }
        tail.catching_up = false;
        tail.dropped = None;
        tail.link = link;
        true
    }

    /// What was missing cannot be read. The stream is at `head`; nothing before it will be delivered.
    pub fn give_up(&mut self, channel: &[u8], head: Position) {
        let link = self.link;
        let Some(tail) = self.by_channel.get_mut(channel) else { return };
        // What was dropped after that is lost to the subscribers, too.
        let head = tail.dropped.max(Some(head));
        tail.catching_up = false;
        tail.dropped = None;
        tail.link = link;
        tail.delivered = head;
        tail.base = head;
        tail.forget_recent(head);
    }

    /// The channels that the node subscribes to by their names.
    pub fn channels(&self) -> Vec<Arc<[u8]>> {
        let named = self.by_channel.iter().filter(|(_, tail)| tail.is_named);
        named.map(|(channel, _)| channel.clone()).collect()
    }

    fn tail(&mut self, channel: &[u8]) -> &mut Tail {
        if !self.by_channel.contains_key(channel) {
            let channel: Arc<[u8]> = channel.into();
            self.pattern_only.push_back(channel.clone());
            if self.pattern_only.len() > PATTERN_ONLY_MAX {
                self.forget_pattern_only();
            }
            self.by_channel.insert(channel, Tail { link: self.link, ..Tail::default() });
        }
        self.by_channel.get_mut(channel).expect("it was inserted just now")
    }

    fn forget_pattern_only(&mut self) {
        let Some(channel) = self.pattern_only.pop_front() else { return };
        if let Some(tail) = self.by_channel.get(&channel)
            && !tail.is_named
            && tail.resuming == 0
        {
            self.by_channel.remove(&channel);
        }
    }
}

impl Tail {
    /// Nothing is recorded but what comes after this position.
    fn forget_recent(&mut self, after: Option<Position>) {
        self.recent.clear();
        self.recent_bytes = 0;
        self.recent_after = after;
    }

    fn record(&mut self, message: Message, bounds: Bounds) {
        self.recent_bytes += message.entry.payload().len();
        self.recent.push_back(message);
        while self.recent.len() > bounds.messages || self.recent_bytes > bounds.bytes {
            let Some(Message { position, entry }) = self.recent.pop_front() else { break };
            self.recent_bytes -= entry.payload().len();
            self.recent_after = Some(position);
        }
    }
}
