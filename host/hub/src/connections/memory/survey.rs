//! The exact memory of all outboxes, and which connections are closed to free it.
//!
//! A buffer that is queued for many connections is counted once. Each connection also has its share
//! of it. The connections to close are chosen by the bytes that the wait for them costs, times how
//! long they have read little or nothing. So a small outbox that is not being read is closed before
//! a large one that is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::connections::Connection;
use switchyard_net::chunks::Buffer;
use switchyard_net::outbox::Shedding;
use switchyard_types::close::CloseReason;
use switchyard_types::keyed_hash::KeyedMap;

/// The entry of a chunk in its queue, and the header of its buffer.
const PLACE_BYTES: usize = 32;

/// The outbox of one connection.
struct Holder {
    connection: Arc<Connection>,
    address: Option<IpAddr>,
    /// The queued bytes, as the limits of its outbox count them.
    bytes: usize,
    chunks: usize,
    stalled: Option<Duration>,
    /// Whether it is closing already, with only a partly written chunk left.
    is_shed: bool,
}

/// The share of a bound that partly written messages may keep, of connections that are closed for
/// it, so that their clients can receive the reason.
const BEGUN_PART: usize = 8;

/// A buffer, and the number of its chunks.
struct Shared {
    bytes: usize,
    chunks: usize,
}

/// The memory of all outboxes at about one moment.
pub struct Survey {
    holders: Vec<Holder>,
    /// By the address of their ends. The server chooses these, not a client.
    buffers: FxHashMap<usize, Shared>,
    bytes: usize,
    by_address: KeyedMap<IpAddr, usize>,
}

/// How many connections were closed, and how much that freed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Connections.
    pub connections: usize,
    /// Bytes.
    pub bytes: usize,
    /// The address of the connection that was closed first.
    pub first: Option<SocketAddr>,
}

impl Closed {
    /// Adds these.
    pub fn add(&mut self, more: Closed) {
        self.connections += more.connections;
        self.bytes += more.bytes;
        self.first = self.first.or(more.first);
    }
}

/// A connection and its outbox.
pub struct Waiting<'a> {
    /// Which.
    pub connection: &'a Connection,
    /// The queued bytes, as the limits of its outbox count them.
    pub bytes: usize,
    /// For how long it has read little or nothing; none: little is queued.
    pub stalled: Option<Duration>,
}

impl Survey {
    /// Visits each connection once, with the address by which it is counted; none: it is not
    /// counted.
    pub fn of(connections: impl Iterator<Item = (Arc<Connection>, Option<IpAddr>)>) -> Survey {
        let mut holders: Vec<Holder> = connections
            .filter(|(connection, _)| connection.outbox.bytes() > 0)
            .map(|(connection, address)| Holder {
                connection,
                address,
                bytes: 0,
                chunks: 0,
                stalled: None,
                is_shed: false,
            })
            .collect();
        // The connections of one address are adjacent: the set of its buffers is complete at the
        // last one.
        holders.sort_unstable_by_key(|holder| holder.address);
        let mut buffers: FxHashMap<usize, Shared> = FxHashMap::default();
        let mut bytes = 0;
        let mut by_address: KeyedMap<IpAddr, usize> = KeyedMap::default();
        let mut known: FxHashSet<usize> = FxHashSet::default();
        let mut held: Vec<Buffer> = Vec::new();
        for same in holders.chunk_by_mut(|one, next| one.address == next.address) {
            let address = same.first().and_then(|holder| holder.address);
            let mut of_address = 0;
            known.clear();
            for holder in same {
                let holding = holder.connection.outbox.holding(&mut held);
                for buffer in &held {
                    let shared = buffers.entry(buffer.end).or_insert_with(|| {
                        bytes += buffer.bytes;
                        Shared { bytes: buffer.bytes, chunks: 0 }
                    });
                    shared.chunks += 1;
                    if address.is_some() && known.insert(buffer.end) {
                        of_address += buffer.bytes;
                    }
                }
                holder.bytes = holding.bytes;
                holder.chunks = held.len();
                holder.stalled = holding.stalled;
                holder.is_shed = holding.is_shed();
                bytes += held.len() * PLACE_BYTES;
                of_address += held.len() * PLACE_BYTES;
            }
            if let Some(address) = address {
                by_address.insert(address, of_address);
            }
        }
        Survey { holders, buffers, bytes, by_address }
    }

    /// The total.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The totals of the addresses that are counted.
    pub fn by_address(&self) -> impl Iterator<Item = (IpAddr, usize)> {
        self.by_address.iter().map(|(address, bytes)| (*address, *bytes))
    }

    /// All connections with a non-empty outbox.
    pub fn waiting(&self) -> impl Iterator<Item = Waiting<'_>> {
        self.holders.iter().map(|holder| Waiting {
            connection: &holder.connection,
            bytes: holder.bytes,
            stalled: holder.stalled,
        })
    }

    /// Only the connections of this address, as if there were no others.
    pub fn of_address(&self, address: IpAddr) -> Survey {
        let same = self.holders.iter().filter(|holder| holder.address == Some(address));
        Survey::of(same.map(|holder| (holder.connection.clone(), holder.address)))
    }

    /// Closes connections until the total is below this, or there is none left to close.
    pub fn relieve(&mut self, target: usize, reason: &CloseReason) -> Closed {
        let mut closed = Closed::default();
        if self.bytes <= target {
            return closed;
        }
        let mut buffers = Vec::new();
        let mut scored: Vec<(u128, usize)> = self
            .holders
            .iter()
            .enumerate()
            .filter_map(|(place, holder)| Some((self.score(holder, &mut buffers)?, place)))
            .collect();
        scored.sort_unstable_by(|a, b| b.cmp(a));
        let before = self.bytes;
        // Partly written chunks of connections that are already closed are dropped last.
        let shed = self.holders.iter().filter(|holder| holder.is_shed);
        let mut begun: usize = shed.map(|holder| holder.bytes).sum();
        for (_, place) in &scored {
            let Some(holder) = self.holders.get(*place).filter(|holder| !holder.is_shed) else {
                continue;
            };
            let first = Some(holder.connection.remote);
            let Shedding { was_open, kept_bytes } = self.close(*place, reason, &mut buffers);
            let connections = usize::from(was_open);
            closed.add(Closed { connections, bytes: 0, first: first.filter(|_| was_open) });
            if self.bytes <= target {
                break;
            }
            begun += kept_bytes;
            if begun > target / BEGUN_PART {
                begun -= kept_bytes;
                self.close(*place, reason, &mut buffers);
            }
        }
        for (_, place) in &scored {
            if self.bytes <= target {
                break;
            }
            self.close(*place, reason, &mut buffers);
        }
        closed.bytes = before - self.bytes;
        closed
    }

    /// The bytes that the wait for it costs, times how long it has read little or nothing. None: so
    /// little is queued that closing it would free nothing of use.
    fn score(&self, holder: &Holder, buffers: &mut Vec<Buffer>) -> Option<u128> {
        let stalled = holder.stalled?;
        holder.connection.outbox.holding(buffers);
        let share_of = |buffer: &Buffer| {
            let shared = self.buffers.get(&buffer.end);
            shared.map_or(buffer.bytes, |shared| shared.bytes / shared.chunks.max(1))
        };
        let share: usize = buffers.iter().map(share_of).sum();
        Some((share + holder.chunks * PLACE_BYTES) as u128 * stalled.as_millis().max(1))
    }

    fn close(&mut self, place: usize, reason: &CloseReason, dropped: &mut Vec<Buffer>) -> Shedding {
        let Some(holder) = self.holders.get_mut(place) else {
            return Shedding { was_open: false, kept_bytes: 0 };
        };
        let shedding = holder.connection.outbox.shed(reason, dropped);
        let mut given_back = dropped.len().min(holder.chunks) * PLACE_BYTES;
        for buffer in dropped.iter() {
            if let Some(shared) = self.buffers.get_mut(&buffer.end) {
                shared.chunks = shared.chunks.saturating_sub(1);
                if shared.chunks == 0 {
                    given_back += shared.bytes;
                    self.buffers.remove(&buffer.end);
                }
            }
        }
        holder.chunks = holder.chunks.saturating_sub(dropped.len());
        self.bytes = self.bytes.saturating_sub(given_back);
        shedding
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};
    use std::time::Instant;

    use bytes::Bytes;

    use super::*;
    use crate::connections::Connections;
    use crate::encoding::Encoding;
    use switchyard_config::OutboxLimits;
    use switchyard_config::memory::{Written as Settings, check};
    use switchyard_net::chunks::{Chunks, Written};
    use switchyard_net::outbox::QueueState;
    use switchyard_types::bound::Bound;

    const KIB: usize = 1 << 10;
    const REASON: CloseReason = CloseReason::OverMemory(Bound::Outboxes);

    /// This many connections, whose outboxes are accounted for in small steps.
    fn connections(count: usize) -> (Arc<Connections>, Vec<Arc<Connection>>) {
        let limits = OutboxLimits {
            bytes_max: 1 << 30,
            soft_bytes: 1 << 30,
            soft_time: Duration::from_secs(60),
        };
        let connections = Connections::new(count, limits, 0);
        let settings = Settings {
            bytes_max: Some(64 << 20),
            input_timeout_ms: 1_000,
            engine_instances: 2,
            ..Settings::default()
        };
        connections.memory().set_limits(&check(settings).expect("it fits"), 100_000);
        let all = (0..count).map(|place| {
            let address = ([127, 0, 0, place as u8 + 1], 1).into();
            connections.add(Encoding::RESP2, address).expect("there is room")
        });
        let all = all.collect();
        (connections, all)
    }

    fn survey(connections: &Connections) -> Survey {
        Survey::of(connections.all().into_iter().map(|connection| {
            let address = connection.remote.ip();
            (connection, Some(address))
        }))
    }

    fn chunk(kib: usize) -> Bytes {
        vec![b'x'; kib * KIB].into()
    }

    /// As its task does when it waits for its socket, after writing this much.
    fn take(connection: &Connection, written: Written, hand: &mut Chunks) -> QueueState {
        connection.outbox.take(written, hand, &Context::from_waker(Waker::noop()))
    }

    fn is_closed(connection: &Connection) -> bool {
        connection.outbox.is_closing()
    }

    #[test]
    fn what_waits_for_many_is_counted_once_wherever_it_is() {
        let (connections, all) = connections(3);
        let (first, second) = (chunk(100), chunk(200));
        for connection in &all {
            connection.outbox.push(first.clone());
            connection.outbox.push(second.clone());
        }
        let check = |places: usize| {
            let survey = survey(&connections);
            assert_eq!(survey.bytes(), 300 * KIB + places * PLACE_BYTES);
            assert!(survey.by_address().all(|(_, bytes)| bytes >= 300 * KIB));
        };
        check(6);
        // A writer holds some of it, and has written a part of that.
        let mut hand = Chunks::default();
        take(&all[0], Written::default(), &mut hand);
        check(6);
        let written = hand.write(|_| std::task::Poll::Ready(Ok(10 * KIB)));
        let std::task::Poll::Ready(Ok(written)) = written else { panic!("it was written") };
        take(&all[0], written, &mut hand);
        check(6);
        // It is freed when the last holder drops it.
        drop((first, second, hand));
        all[0].outbox.discard();
        check(4);
        all[1].outbox.discard();
        all[2].outbox.discard();
        assert_eq!(survey(&connections).bytes(), 0);
        assert_eq!(connections.memory().outboxes.held(), 0);
    }

    /// Waits until this connection has read nothing for a while.
    fn stall(connection: &Connection) {
        let began = Instant::now();
        while connection.outbox.holding(&mut Vec::new()).stalled < Some(Duration::from_millis(500))
        {
            assert!(began.elapsed() < Duration::from_secs(60), "it makes progress");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_large_outbox_that_is_read_from_is_closed_after_a_small_one_that_is_not() {
        let (connections, all) = connections(3);
        let [stalled, reading, idle] = all.as_slice() else { panic!("there are three") };
        for connection in [stalled, reading] {
            connection.outbox.push(chunk(64));
        }
        stall(stalled);
        (0..3).for_each(|_| reading.outbox.push(chunk(64)));
        let mut hand = Chunks::default();
        take(reading, Written::default(), &mut hand);
        let written = hand.write(|_| std::task::Poll::Ready(Ok(64 * KIB)));
        let std::task::Poll::Ready(Ok(written)) = written else { panic!("it was written") };
        take(reading, written, &mut hand);
        let mut survey = survey(&connections);
        let closed = survey.relieve(survey.bytes() - KIB, &REASON);
        assert_eq!((closed.connections, closed.first), (1, Some(stalled.remote)));
        assert_eq!([stalled, reading, idle].map(|one| is_closed(one)), [true, false, false]);
    }

    #[test]
    fn sharing_a_buffer_with_others_costs_a_share_of_it() {
        let (connections, all) = connections(5);
        let shared = chunk(128);
        let [alone, others @ ..] = all.as_slice() else { panic!("there are five") };
        others.iter().for_each(|other| other.outbox.push(shared.clone()));
        alone.outbox.push(chunk(64));
        stall(alone);
        let mut survey = survey(&connections);
        survey.relieve(150 * KIB, &REASON);
        assert!(is_closed(alone) && !others.iter().any(|other| is_closed(other)));
        // Closing all but one of them would free nothing.
        survey.relieve(10 * KIB, &REASON);
        assert!(others.iter().all(|other| is_closed(other)));
        assert!(survey.bytes() < KIB);
    }

    #[test]
    fn what_is_begun_is_dropped_last() {
        let (connections, all) = connections(1);
        let connection = &all[0];
        (0..3).for_each(|_| connection.outbox.push(chunk(100)));
        let mut hand = Chunks::default();
        take(connection, Written::default(), &mut hand);
        let written = hand.write(|_| std::task::Poll::Ready(Ok(KIB)));
        let std::task::Poll::Ready(Ok(written)) = written else { panic!("it was written") };
        take(connection, written, &mut hand);
        let mut some = survey(&connections);
        assert_eq!(some.relieve(150 * KIB, &REASON).connections, 1);
        assert_eq!(take(connection, Written::default(), &mut hand), QueueState::Closing(REASON));
        assert_eq!((some.bytes() / KIB, survey(&connections).bytes() / KIB), (100, 100));
        // It is closed already; now it is aborted.
        let mut some = survey(&connections);
        assert_eq!(some.relieve(0, &REASON).connections, 0);
        assert_eq!(survey(&connections).bytes(), 0);
        let context = Context::from_waker(Waker::noop());
        let last = connection.outbox.take_last(Written::default(), &mut hand, &context);
        assert_eq!(last, switchyard_net::outbox::Last::Drop);
        assert_eq!(connections.memory().outboxes.held(), 0);
    }

    #[test]
    fn a_connection_that_leaves_is_known_until_it_has_left() {
        let (connections, all) = connections(1);
        all[0].outbox.push(chunk(100));
        all[0].outbox.close(CloseReason::Quit);
        connections.remove(all[0].id);
        assert_eq!(connections.count(), 0);
        assert_eq!(survey(&connections).bytes() / KIB, 100);
        connections.left(&all[0]);
        assert_eq!(survey(&connections).bytes(), 0);
        assert_eq!(connections.memory().outboxes.held(), 0);
    }
}
