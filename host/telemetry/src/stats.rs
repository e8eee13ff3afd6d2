//! The counters of the running server.
//!
//! Counters of messages and reads exist in several sets, and threads are spread over them, so that
//! they do not contend for the same cache lines. Counters of connections exist once. All are
//! relaxed atomics that are read one by one, so a reading is not a consistent snapshot. This module
//! does not format them.

use std::array;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use parking_lot::RwLock;

use switchyard_types::close::CloseReason;
use switchyard_types::command::{Ending, Verb};

/// Counters since the server started.
pub struct Stats {
    /// When it started.
    pub started: Instant,
    /// The same, by wall-clock time.
    pub started_at: SystemTime,
    /// Connections closed because their outbox was full.
    pub outbox_overflows: AtomicU64,
    /// How many bytes were queued in those outboxes.
    pub outbox_overflow_bytes: AtomicU64,
    /// Connections that failed, or ended without a close handshake.
    pub lost: AtomicU64,
    /// How often a connection to the admin API could not be accepted.
    pub admin_not_accepted: AtomicU64,
    doors: RwLock<Vec<Arc<DoorStats>>>,
    closed: [AtomicU64; CloseReason::LABELS.len()],
    lanes: Box<[Lane]>,
}

/// The counters of one thread, and of others that got the same number.
#[repr(align(128))]
struct Lane {
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    commands: [[AtomicU64; Ending::ALL.len()]; Verb::ALL.len()],
}

/// The counters of a door: of a protocol with its listener.
pub struct DoorStats {
    name: &'static str,
    accepted: AtomicU64,
    handshake_waits: AtomicU64,
    not_accepted: AtomicU64,
    unused: AtomicU64,
    refused: [AtomicU64; Refused::ALL.len()],
}

impl DoorStats {
    fn new(name: &'static str) -> DoorStats {
        DoorStats {
            name,
            accepted: AtomicU64::new(0),
            handshake_waits: AtomicU64::new(0),
            not_accepted: AtomicU64::new(0),
            unused: AtomicU64::new(0),
            refused: [const { AtomicU64::new(0) }; Refused::ALL.len()],
        }
    }

    /// The name of the door.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Counts an admitted connection.
    pub fn record_accepted(&self) {
        count(&self.accepted);
    }

    /// Counts a connection that could not be accepted.
    pub fn record_not_accepted(&self) {
        count(&self.not_accepted);
    }

    /// Counts a connection whose client sent nothing.
    pub fn record_unused(&self) {
        count(&self.unused);
    }

    /// Counts that the handshake limit was reached and accepting is paused.
    pub fn record_handshake_wait(&self) {
        count(&self.handshake_waits);
    }

    /// Counts a rejected connection.
    pub fn record_refused(&self, why: Refused) {
        if let Some(counter) = self.refused.get(why as usize) {
            count(counter);
        }
    }

    /// Connections that were admitted.
    pub fn accepted(&self) -> u64 {
        load(&self.accepted)
    }

    /// Connections that could not be accepted.
    pub fn not_accepted(&self) -> u64 {
        load(&self.not_accepted)
    }

    /// Connections whose client sent nothing before it closed them, or within the time of a
    /// handshake.
    pub fn unused(&self) -> u64 {
        load(&self.unused)
    }

    /// How often accepting was paused because the handshake limit was reached.
    pub fn handshake_waits(&self) -> u64 {
        load(&self.handshake_waits)
    }

    /// Connections that were rejected, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (Refused, u64)> {
        Refused::ALL.into_iter().zip(self.refused.iter().map(load))
    }
}

/// Why a connection was rejected during its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names say what they are")]
pub enum Refused {
    OverCapacity,
    OverAddressCapacity,
    Draining,
    Unauthorised,
    /// The client's credentials expired.
    Expired,
    Forbidden,
    /// Too many attempts to authenticate failed.
    AuthFlood,
    /// A plugin's rate limit.
    Limited,
    Unavailable,
    /// A page of another origin.
    Origin,
    /// The request took too long.
    HandshakeTimeout,
    /// The TLS handshake failed.
    Tls,
    TlsTimeout,
    /// There was no PROXY protocol header, or its sender is not trusted.
    ProxyProtocol,
    /// Its address was at its share of pending handshakes.
    HandshakeShare,
    /// Its handshake was dropped for a new one.
    HandshakeDropped,
}

impl Refused {
    /// All, in the order in which they are counted.
    pub const ALL: [Refused; 16] = [
        Refused::OverCapacity,
        Refused::OverAddressCapacity,
        Refused::Draining,
        Refused::Unauthorised,
        Refused::Expired,
        Refused::Forbidden,
        Refused::AuthFlood,
        Refused::Limited,
        Refused::Unavailable,
        Refused::Origin,
        Refused::HandshakeTimeout,
        Refused::Tls,
        Refused::TlsTimeout,
        Refused::ProxyProtocol,
        Refused::HandshakeShare,
        Refused::HandshakeDropped,
    ];

    /// A stable label for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Refused::OverCapacity => "over_capacity",
            Refused::OverAddressCapacity => "over_address_capacity",
            Refused::Draining => "draining",
            Refused::Unauthorised => "unauthorised",
            Refused::Expired => "expired",
            Refused::Forbidden => "forbidden",
            Refused::AuthFlood => "auth_flood",
            Refused::Limited => "limited",
            Refused::Unavailable => "unavailable",
            Refused::Origin => "origin",
            Refused::HandshakeTimeout => "handshake_timeout",
            Refused::Tls => "tls",
            Refused::TlsTimeout => "tls_timeout",
            Refused::ProxyProtocol => "proxy_protocol",
            Refused::HandshakeShare => "handshake_share",
            Refused::HandshakeDropped => "handshake_dropped",
        }
    }
}

impl From<&CloseReason> for Refused {
    /// For the reasons for which a connection is rejected.
    fn from(reason: &CloseReason) -> Refused {
        match reason {
            CloseReason::OverCapacity => Refused::OverCapacity,
            CloseReason::OverAddressCapacity => Refused::OverAddressCapacity,
            CloseReason::Draining => Refused::Draining,
            CloseReason::Unauthorised(_) => Refused::Unauthorised,
            CloseReason::Expired(_) => Refused::Expired,
            CloseReason::AuthFlood => Refused::AuthFlood,
            CloseReason::Limited(_) => Refused::Limited,
            CloseReason::Unavailable(_) => Refused::Unavailable,
            _ => Refused::Forbidden,
        }
    }
}

/// More threads than this share lanes.
const LANES_MAX: usize = 64;

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The number of this thread for its lane.
    static NUMBER: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed));
}

impl Default for Stats {
    fn default() -> Stats {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let lanes = threads.next_power_of_two().min(LANES_MAX);
        Stats {
            started: Instant::now(),
            started_at: SystemTime::now(),
            outbox_overflows: AtomicU64::new(0),
            outbox_overflow_bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            admin_not_accepted: AtomicU64::new(0),
            doors: RwLock::default(),
            closed: [const { AtomicU64::new(0) }; CloseReason::LABELS.len()],
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
        }
    }
}

impl Default for Lane {
    fn default() -> Lane {
        Lane {
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            commands: array::from_fn(|_| array::from_fn(|_| AtomicU64::new(0))),
        }
    }
}

impl Stats {
    /// Adds a door.
    pub fn add_door(&self, name: &'static str) -> Arc<DoorStats> {
        let door = Arc::new(DoorStats::new(name));
        self.doors.write().push(door.clone());
        door
    }

    /// Counts a closed connection.
    pub fn closed(&self, reason: &CloseReason) {
        if let Some(counter) = self.closed.get(reason.place()) {
            count(counter);
        }
        if let CloseReason::SlowConsumer { outbox_bytes } = reason {
            count(&self.outbox_overflows);
            self.outbox_overflow_bytes.fetch_add(*outbox_bytes as u64, Ordering::Relaxed);
        }
    }

    /// Counts commands of this verb with this ending.
    pub fn record_command(&self, verb: Verb, ending: Ending, commands: u64) {
        let counter = |lane: &Lane| -> Option<u64> {
            let counter = lane.commands.get(verb as usize)?.get(ending as usize)?;
            Some(counter.fetch_add(commands, Ordering::Relaxed))
        };
        self.lane().and_then(counter);
    }

    /// Counts bytes received from a client.
    pub fn read(&self, bytes: usize) {
        if let Some(lane) = self.lane() {
            lane.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Counts bytes sent to a client.
    pub fn wrote(&self, bytes: usize) {
        if let Some(lane) = self.lane() {
            lane.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Commands executed, bytes read and bytes written.
    pub fn totals(&self) -> [u64; 3] {
        let bytes = |of: fn(&Lane) -> &AtomicU64| self.lanes.iter().map(of).map(load).sum();
        [
            self.commands().map(|(_, _, count)| count).sum(),
            bytes(|lane| &lane.bytes_read),
            bytes(|lane| &lane.bytes_written),
        ]
    }

    /// How many commands of each verb ended in each way.
    pub fn commands(&self) -> impl Iterator<Item = (Verb, Ending, u64)> {
        let of = |verb: Verb, ending: Ending| {
            let of_lane = |lane: &Lane| {
                let counter = lane.commands.get(verb as usize)?.get(ending as usize);
                counter.map(load)
            };
            self.lanes.iter().filter_map(of_lane).sum()
        };
        Verb::ALL.into_iter().flat_map(move |verb| {
            Ending::ALL.into_iter().map(move |ending| (verb, ending, of(verb, ending)))
        })
    }

    /// Connections that were admitted, at all doors.
    pub fn accepted_in_all(&self) -> u64 {
        self.doors.read().iter().map(|door| door.accepted()).sum()
    }

    /// Connections that were rejected, at all doors.
    pub fn refused_in_all(&self) -> u64 {
        let doors = self.doors.read();
        doors.iter().flat_map(|door| door.refused()).map(|(_, count)| count).sum()
    }

    /// Connections that were closed, by the label of the reason.
    pub fn closed_by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CloseReason::LABELS.into_iter().zip(self.closed.iter().map(load))
    }

    fn lane(&self) -> Option<&Lane> {
        // There is a power of two of them.
        self.lanes.get(thread_number() & (self.lanes.len() - 1))
    }
}

/// The lane number of this thread. Numbers are assigned round-robin.
pub fn thread_number() -> usize {
    NUMBER.get()
}

/// Increments a counter.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The value of a counter.
pub fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_count_is_one_sum() {
        let stats = Stats::default();
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    stats.record_command(Verb::Publish, Ending::Ok, 3);
                    stats.record_command(Verb::Ping, Ending::Limit, 1);
                    stats.read(10);
                    stats.wrote(100);
                });
            }
        });
        assert_eq!(stats.totals(), [20, 50, 500]);
        let counted: Vec<_> = stats.commands().filter(|(_, _, count)| *count > 0).collect();
        assert_eq!(counted, [(Verb::Publish, Ending::Ok, 15), (Verb::Ping, Ending::Limit, 5)]);
    }

    #[test]
    fn every_count_is_under_its_own_name() {
        let stats = Stats::default();
        let (door, _other) = (stats.add_door("one"), stats.add_door("two"));
        for why in Refused::ALL {
            door.record_refused(why);
        }
        assert!(door.refused().all(|(_, count)| count == 1));
        assert_eq!(
            (stats.refused_in_all(), stats.accepted_in_all()),
            (Refused::ALL.len() as u64, 0)
        );
        stats.closed(&CloseReason::SlowConsumer { outbox_bytes: 7 });
        let closed: Vec<_> = stats.closed_by_reason().filter(|(_, count)| *count > 0).collect();
        assert_eq!(closed, [("slow_consumer", 1)]);
        assert_eq!(load(&stats.outbox_overflow_bytes), 7);
    }
}
