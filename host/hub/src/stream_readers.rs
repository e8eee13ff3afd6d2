//! The connections that wait for a publication on channels with history, as XREAD BLOCK does.
//!
//! A reader looks, begins to wait, and looks again before it sleeps. A publication is appended to
//! its channel's history before the readers of the channel are woken. So either the second look finds
//! it, or the wake-up comes after the reader began to wait. A woken reader looks at the channels that
//! woke it, and may go on waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::connections::Connection;
use switchyard_types::ids::ConnectionId;
use switchyard_types::keyed_hash::KeyedMap;

/// All readers that wait.
#[derive(Default)]
pub struct StreamReaders {
    /// How many there are. Read for each publication with a position.
    count: AtomicUsize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    channels: KeyedMap<Arc<[u8]>, ReadersOfChannel>,
    connections: FxHashMap<ConnectionId, Arc<Reader>>,
    /// The number of the last reader.
    last: u64,
}

/// The readers of a channel, in the order in which they began to wait, by the number of the reader and
/// the place of the channel among those of the reader.
type ReadersOfChannel = BTreeMap<(u64, usize), Arc<Reader>>;

struct Reader {
    connection: Arc<Connection>,
    state: AtomicU8,
    /// The places of the channels that woke it since it looked last.
    places: Mutex<Places>,
}

/// Places of channels: few, or all.
#[derive(Default)]
struct Places {
    few: Vec<usize>,
    are_all: bool,
}

/// How many channels are remembered that woke a reader. After more it looks at all of its channels.
const PLACES_MAX: usize = 16;

impl Places {
    fn add(&mut self, place: usize) {
        match self.few.len() < PLACES_MAX {
            _ if self.are_all || self.few.contains(&place) => {}
            true => self.few.push(place),
            false => self.are_all = true,
        }
    }
}

const SLEEPING: u8 = 0;
const WOKEN: u8 = 1;
const TIMED_OUT: u8 = 2;
const FAILED: u8 = 3;

/// Why a reader no longer sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Something was published.
    Published,
    /// Another client ended the wait as if its time was over (CLIENT UNBLOCK … TIMEOUT).
    TimedOut,
    /// Another client ended the wait with an error (CLIENT UNBLOCK … ERROR).
    Failed,
}

/// A reader that waits, until this is dropped.
pub struct StreamWait {
    readers: Arc<StreamReaders>,
    reader: Arc<Reader>,
    number: u64,
    channels: Vec<Arc<[u8]>>,
}

impl StreamReaders {
    /// A connection waits from now on for publications on these channels. Its task is woken through
    /// its outbox.
    pub fn wait<'a>(
        self: &Arc<StreamReaders>,
        connection: &Arc<Connection>,
        channels: impl Iterator<Item = &'a [u8]>,
    ) -> StreamWait {
        let reader = Arc::new(Reader {
            connection: connection.clone(),
            state: AtomicU8::new(SLEEPING),
            places: Mutex::default(),
        });
        let mut table = self.table.lock();
        table.last += 1;
        let number = table.last;
        let channels = channels
            .enumerate()
            .map(|(place, channel)| {
                let known = table.channels.get_key_value(channel).map(|(name, _)| name.clone());
                let name = known.unwrap_or_else(|| channel.into());
                table
                    .channels
                    .entry(name.clone())
                    .or_default()
                    .insert((number, place), reader.clone());
                name
            })
            .collect();
        table.connections.insert(connection.id, reader.clone());
        self.count.fetch_add(1, Ordering::Relaxed);
        connection.set_blocked(true);
        StreamWait { readers: self.clone(), reader, number, channels }
    }

    /// How many connections wait.
    #[inline]
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Wakes the readers of channels to which something was appended. It must have been appended
    /// before this call. Costs next to nothing while no connection waits.
    #[inline]
    pub fn wake<'a>(&self, channels: impl Iterator<Item = &'a [u8]>) {
        if self.count() > 0 {
            self.wake_some(channels);
        }
    }

    fn wake_some<'a>(&self, channels: impl Iterator<Item = &'a [u8]>) {
        let table = self.table.lock();
        for channel in channels {
            let Some(readers) = table.channels.get(channel) else { continue };
            for ((_, place), reader) in readers {
                // Before the state: a reader that changes it back takes the places after that.
                reader.places.lock().add(*place);
                reader.wake(SLEEPING, WOKEN);
            }
        }
    }

    /// Ends the wait of a connection. False: it does not wait.
    pub fn unblock(&self, connection: ConnectionId, how: Woken) -> bool {
        let table = self.table.lock();
        let Some(reader) = table.connections.get(&connection) else { return false };
        let state = match how {
            Woken::Published => WOKEN,
            Woken::TimedOut => TIMED_OUT,
            Woken::Failed => FAILED,
        };
        reader.wake(SLEEPING, state) || reader.wake(WOKEN, state)
    }
}

impl Reader {
    /// Wakes the connection's task if the state is `from`, which it is no longer.
    fn wake(&self, from: u8, to: u8) -> bool {
        let order = Ordering::AcqRel;
        let is_changed = self.state.compare_exchange(from, to, order, Ordering::Acquire).is_ok();
        if is_changed {
            self.connection.outbox.wake();
        }
        is_changed
    }
}

impl StreamWait {
    /// Why it does not sleep; none: it does.
    pub fn woken(&self) -> Option<Woken> {
        match self.reader.state.load(Ordering::Acquire) {
            WOKEN => Some(Woken::Published),
            TIMED_OUT => Some(Woken::TimedOut),
            FAILED => Some(Woken::Failed),
            _ => None,
        }
    }

    /// It sleeps again, if it was woken by a publication. Returns the places of the channels that woke
    /// it, at which the reader must look; none: all.
    pub fn sleep(&self) -> Option<Vec<usize>> {
        let order = Ordering::AcqRel;
        let _ = self.reader.state.compare_exchange(WOKEN, SLEEPING, order, Ordering::Acquire);
        let Places { mut few, are_all } = std::mem::take(&mut *self.reader.places.lock());
        few.sort_unstable();
        (!are_all).then_some(few)
    }
}

impl Drop for StreamWait {
    fn drop(&mut self) {
        let mut table = self.readers.table.lock();
        for (place, channel) in self.channels.iter().enumerate() {
            let Some(readers) = table.channels.get_mut(channel) else { continue };
            readers.remove(&(self.number, place));
            if readers.is_empty() {
                table.channels.remove(channel);
            }
        }
        table.connections.remove(&self.reader.connection.id);
        self.readers.count.fetch_sub(1, Ordering::Relaxed);
        self.reader.connection.set_blocked(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::Connections;
    use crate::encoding::Encoding;
    use switchyard_config::Config;

    fn names<'a>(names: &'a [&'a str]) -> impl Iterator<Item = &'a [u8]> {
        names.iter().map(|name| name.as_bytes())
    }

    #[test]
    fn readers_wait_for_their_channels_until_they_are_dropped() {
        let connections = Connections::new(2, Config::default().outbox, 1024);
        let connect = || connections.add(Encoding::RESP2, ([127, 0, 0, 1], 1).into()).unwrap();
        let [one, other] = [connect(), connect()];
        let readers = Arc::new(StreamReaders::default());
        let first = readers.wait(&one, names(&["a", "b", "a"]));
        let second = readers.wait(&other, names(&["b"]));
        assert_eq!((readers.count(), one.is_blocked(), first.woken()), (2, true, None));
        readers.wake(names(&["c"]));
        assert_eq!((first.woken(), second.woken()), (None, None));
        readers.wake(names(&["a"]));
        assert_eq!((first.woken(), second.woken()), (Some(Woken::Published), None));
        // It named the channel twice.
        assert_eq!(first.sleep(), Some(vec![0, 2]));
        assert_eq!(first.woken(), None);
        readers.wake(names(&["c", "b"]));
        readers.wake(names(&["b"]));
        assert_eq!(first.woken(), Some(Woken::Published));
        assert_eq!(first.sleep(), Some(vec![1]));
        assert_eq!(first.sleep(), Some(vec![]));
        readers.wake(names(&["b"]));
        assert_eq!(second.woken(), Some(Woken::Published));

        // What another client says holds, whatever is published.
        assert!(readers.unblock(one.id, Woken::Failed));
        first.sleep();
        readers.wake(names(&["a"]));
        assert_eq!(first.woken(), Some(Woken::Failed));
        assert!(!readers.unblock(one.id, Woken::TimedOut));
        assert!(!readers.unblock(u64::MAX, Woken::TimedOut));

        drop(first);
        assert_eq!((readers.count(), one.is_blocked(), other.is_blocked()), (1, false, true));
        assert!(!readers.unblock(one.id, Woken::TimedOut));
        drop(second);
        assert_eq!(readers.count(), 0);
        assert!(readers.table.lock().channels.is_empty());
    }

    #[test]
    fn a_reader_that_many_channels_woke_looks_at_all() {
        let connections = Connections::new(1, Config::default().outbox, 1024);
        let connection = connections.add(Encoding::RESP2, ([127, 0, 0, 1], 1).into()).unwrap();
        let readers = Arc::new(StreamReaders::default());
        let all: Vec<String> = (0..=PLACES_MAX).map(|number| number.to_string()).collect();
        let all = || all.iter().map(|name| name.as_bytes());
        let wait = readers.wait(&connection, all());
        readers.wake(all().take(PLACES_MAX));
        readers.wake(all().take(PLACES_MAX));
        assert_eq!(wait.sleep(), Some((0..PLACES_MAX).collect()));
        readers.wake(all());
        assert_eq!(wait.sleep(), None);
        assert_eq!(wait.sleep(), Some(vec![]));
    }
}
