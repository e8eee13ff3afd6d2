//! The slots of a listener: which peers have them, how many there may be, and which one is
//! dropped for a new peer.
//!
//! At the doors of clients a slot is a handshake, at the admin listener a connection. Each
//! address has a share of them. When all slots are in use, one of the address with the most
//! slots is dropped: the one that has waited for its peer the longest. So peers that send
//! nothing cannot block others. A slot that is not waiting for its peer is never dropped. This
//! module knows addresses and tasks, and neither sockets nor protocols.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use switchyard_config::networks::counted_as;

/// How often it is checked again whether a slot can be dropped.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The slots of one listener.
pub struct Slots {
    max: usize,
    /// The minimum time that the listener waits for a peer before its slot may be dropped.
    patience: Duration,
    epoch: Instant,
    table: Mutex<Table>,
    freed: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    /// How many of the entries count towards the maximum.
    occupied: usize,
    entries: HashMap<u64, Entry>,
    addresses: HashMap<IpAddr, Held>,
    /// The addresses by how many counted slots they have.
    by_count: BTreeSet<(usize, IpAddr)>,
}

struct Entry {
    address: IpAddr,
    progress: Arc<AtomicU64>,
    /// Whether it counts towards the maximum.
    is_counted: bool,
    task: Option<AbortHandle>,
}

/// The slots of an address.
#[derive(Default)]
struct Held {
    /// All its slots, including those that count for its share only.
    all: usize,
    /// Those that count towards the maximum, the oldest first.
    counted: BTreeSet<u64>,
}

/// One slot. Dropping it frees the slot.
pub struct Slot {
    slots: Arc<Slots>,
    id: u64,
    /// When the slot was occupied.
    began: Instant,
    /// When it may be dropped, in milliseconds since the epoch, or one of the constants below.
    progress: Arc<AtomicU64>,
}

/// The server has not waited for the peer yet.
const FRESH: u64 = u64::MAX;
/// It is not dropped: the server is busy with it.
const KEPT: u64 = u64::MAX - 1;

/// The address has used its share of slots.
#[derive(Debug, PartialEq, Eq)]
pub struct OverShare;

impl Slots {
    /// The slots of a listener, all free. A slot may be dropped for a new peer when the server has
    /// waited for its peer for `patience`.
    pub fn new(max: usize, patience: Duration) -> Arc<Slots> {
        Arc::new(Slots {
            max,
            patience,
            epoch: Instant::now(),
            table: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Takes a slot for a peer with this address; `share` none: the address has no share, and only
    /// the maximum applies. If no slot is free, another one is dropped if possible, and its address
    /// is returned.
    ///
    /// # Errors
    ///
    /// The address has used its share of slots.
    pub fn take(
        self: &Arc<Slots>,
        address: IpAddr,
        share: Option<usize>,
    ) -> Result<(Slot, Option<IpAddr>), OverShare> {
        let address = counted_as(address);
        let mut table = self.table.lock();
        let held = table.addresses.get(&address).map_or(0, |held| held.all);
        if share.is_some_and(|share| held >= share) {
            return Err(OverShare);
        }
        let dropped = match table.occupied >= self.max {
            true => table.drop_one(self.now(), None),
            false => None,
        };
        let id = table.next;
        table.next += 1;
        let progress = Arc::new(AtomicU64::new(FRESH));
        let entry = Entry { address, progress: progress.clone(), is_counted: false, task: None };
        table.entries.insert(id, entry);
        table.addresses.entry(address).or_default().all += 1;
        table.count(id);
        drop(table);
        let began = Instant::now();
        Ok((Slot { slots: self.clone(), id, began, progress }, dropped))
    }

    /// Drops the slot that has waited for its peer the longest: of this address, or if none is
    /// given, of the address with the most slots. False: no slot may be dropped.
    pub fn drop_one(&self, of: Option<IpAddr>) -> bool {
        self.table.lock().drop_one(self.now(), of.map(counted_as)).is_some()
    }

    /// The same for one that has not waited its minimum time: a flood arrives faster.
    pub fn drop_one_early(&self) -> bool {
        self.table.lock().drop_one(KEPT - 1, None).is_some()
    }

    /// How many slots this address has.
    pub fn held_by(&self, address: IpAddr) -> usize {
        self.table.lock().addresses.get(&counted_as(address)).map_or(0, |held| held.all)
    }

    /// Sets the task that is aborted when the slot is dropped.
    pub fn attach(&self, id: u64, task: AbortHandle) {
        if let Some(entry) = self.table.lock().entries.get_mut(&id) {
            entry.task = Some(task);
        }
    }

    /// Whether a slot is free, or may be dropped.
    pub fn has_room(&self) -> bool {
        let table = self.table.lock();
        table.occupied < self.max || table.find(self.now(), None).is_some()
    }

    /// Waits until a slot is free, or may be dropped.
    pub async fn room(&self) {
        while !self.has_room() {
            let _ = tokio::time::timeout(LOOK_INTERVAL, self.freed.notified()).await;
        }
    }

    /// How many used slots count towards the maximum.
    pub fn occupied(&self) -> usize {
        self.table.lock().occupied
    }

    /// The addresses with the most slots, in falling order, at most this many. An IPv6 address
    /// stands for its /64.
    pub fn largest(&self, limit: usize) -> Vec<(IpAddr, usize)> {
        let table = self.table.lock();
        let mut all: Vec<(IpAddr, usize)> =
            table.addresses.iter().map(|(address, held)| (*address, held.all)).collect();
        drop(table);
        all.sort_unstable_by_key(|(address, held)| (std::cmp::Reverse(*held), *address));
        all.truncate(limit);
        all
    }

    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_millis() as u64
    }
}

impl Table {
    /// The slot to drop: of one address, or of the one that has the most.
    fn find(&self, now: u64, of: Option<IpAddr>) -> Option<u64> {
        let oldest = |address: &IpAddr| {
            let counted = self.addresses.get(address).into_iter().flat_map(|held| &held.counted);
            let may_go = counted.filter_map(|id| {
                let entry = self.entries.get(id).filter(|entry| entry.task.is_some())?;
                let since = entry.progress.load(Ordering::Relaxed);
                (since <= now).then_some((since, *id))
            });
            may_go.min().map(|(_, id)| id)
        };
        match of {
            Some(address) => oldest(&address),
            None => self.by_count.iter().rev().find_map(|(_, address)| oldest(address)),
        }
    }

    fn drop_one(&mut self, now: u64, of: Option<IpAddr>) -> Option<IpAddr> {
        let id = self.find(now, of)?;
        let entry = self.entries.get_mut(&id)?;
        let address = entry.address;
        // The slot is free at once; its task ends a moment later.
        if let Some(task) = entry.task.take() {
            task.abort();
        }
        self.remove(id);
        Some(address)
    }

    /// Counts the slot towards the maximum.
    fn count(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if std::mem::replace(&mut entry.is_counted, true) {
            return;
        }
        let address = entry.address;
        self.occupied += 1;
        let held = self.addresses.entry(address).or_default();
        self.by_count.remove(&(held.counted.len(), address));
        held.counted.insert(id);
        self.by_count.insert((held.counted.len(), address));
    }

    /// Stops counting the slot towards the maximum. Returns whether it was counted.
    fn uncount(&mut self, id: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        if !std::mem::replace(&mut entry.is_counted, false) {
            return false;
        }
        let address = entry.address;
        self.occupied -= 1;
        if let Some(held) = self.addresses.get_mut(&address) {
            self.by_count.remove(&(held.counted.len(), address));
            held.counted.remove(&id);
            if !held.counted.is_empty() {
                self.by_count.insert((held.counted.len(), address));
            }
        }
        true
    }

    /// Counts the slot for another address.
    fn reassign(
        &mut self,
        id: u64,
        address: IpAddr,
        share: Option<usize>,
    ) -> Result<(), OverShare> {
        let Some(old) = self.entries.get(&id).map(|entry| entry.address) else { return Ok(()) };
        if old == address {
            return Ok(());
        }
        let held = self.addresses.get(&address).map_or(0, |held| held.all);
        if share.is_some_and(|share| held >= share) {
            return Err(OverShare);
        }
        let was_counted = self.uncount(id);
        self.release_share(old);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.address = address;
        }
        self.addresses.entry(address).or_default().all += 1;
        if was_counted {
            self.count(id);
        }
        Ok(())
    }

    /// One slot of this address less.
    fn release_share(&mut self, address: IpAddr) {
        if let Some(held) = self.addresses.get_mut(&address) {
            held.all -= 1;
            if held.all == 0 {
                self.addresses.remove(&address);
            }
        }
    }

    fn remove(&mut self, id: u64) {
        self.uncount(id);
        let Some(entry) = self.entries.remove(&id) else { return };
        self.release_share(entry.address);
    }
}

impl Slot {
    /// Its id for [`Slots::attach`].
    pub fn id(&self) -> u64 {
        self.id
    }

    /// When it was occupied.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Counts the slot for this address from now on: a proxy has said for which client it is.
    ///
    /// # Errors
    ///
    /// The address has used its share of slots.
    pub fn belongs_to(&self, address: IpAddr, share: Option<usize>) -> Result<(), OverShare> {
        self.slots.table.lock().reassign(self.id, counted_as(address), share)
    }

    /// Polls a future that waits for the peer: once the slot has been in use for the listener's
    /// patience, it may be dropped. Input in the meantime does not extend that, so that a peer
    /// cannot keep a slot by sending slowly.
    pub async fn waits<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        std::future::poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Pending => {
                if self.progress.load(Ordering::Relaxed) == FRESH {
                    self.idles_from(self.began, self.slots.patience);
                }
                Poll::Pending
            }
            ready => ready,
        })
        .await
    }

    /// Starts to wait for the peer; after this time the slot may be dropped.
    pub fn idles(&self, patience: Duration) {
        self.idles_from(Instant::now(), patience);
    }

    fn idles_from(&self, from: Instant, patience: Duration) {
        self.progress.store(self.slots.at(from + patience), Ordering::Relaxed);
    }

    /// The server is busy with the peer: the slot is kept.
    pub fn works(&self) {
        self.progress.store(KEPT, Ordering::Relaxed);
    }

    /// Counts the slot for the share of its address only from now on.
    pub fn counts_for_address(&self) {
        self.works();
        if self.slots.table.lock().uncount(self.id) {
            self.slots.freed.notify_one();
        }
    }

    /// Counts the slot towards the maximum again, and starts to wait for its peer. This may exceed
    /// the maximum.
    pub fn counts_again(&self) {
        self.idles(self.slots.patience);
        self.slots.table.lock().count(self.id);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.table.lock().remove(self.id);
        self.slots.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    async fn pending() -> AbortHandle {
        tokio::spawn(std::future::pending::<()>()).abort_handle()
    }

    #[tokio::test]
    async fn an_address_has_its_share() {
        let slots = Slots::new(10, Duration::ZERO);
        let held: Vec<_> = (0..2).map(|_| slots.take(address(1), Some(2))).collect();
        assert!(held.iter().all(Result::is_ok));
        assert!(slots.take(address(1), Some(2)).is_err());
        let (_other, dropped) = slots.take(address(2), Some(2)).expect("it has a share");
        assert_eq!(dropped, None);
        assert!(slots.take(address(1), None).is_ok(), "without a share there is none to pass");
        assert_eq!(slots.largest(1), [(address(1), 2)]);
        drop(held);
        assert!(slots.take(address(1), Some(2)).is_ok());
        assert_eq!(slots.largest(9), [(address(2), 1)]);
    }

    #[tokio::test]
    async fn of_the_address_that_has_most_the_one_that_waits_longest_gives_way() {
        let slots = Slots::new(3, Duration::ZERO);
        let mut held = Vec::new();
        for last in [1, 2, 2] {
            let (slot, _) = slots.take(address(last), None).expect("there is room");
            slots.attach(slot.id(), pending().await);
            held.push(slot);
        }
        assert!(!slots.has_room(), "none has been waited for");
        held[2].idles(Duration::ZERO);
        held[1].idles(Duration::from_secs(60));
        held[0].idles(Duration::ZERO);
        assert!(slots.has_room());
        let (_new, dropped) = slots.take(address(3), None).expect("one gives way");
        assert_eq!(dropped, Some(address(2)));
        assert_eq!(slots.occupied(), 3);
        // The server must still wait for the peer of its other slot, so the next one is of another
        // address.
        let (_new, dropped) = slots.take(address(3), None).expect("one gives way");
        assert_eq!(dropped, Some(address(1)));
        held[1].works();
        assert!(!slots.drop_one(Some(address(2))), "it is at work");
        // A slot that was dropped already is not freed twice.
        drop(held);
        assert_eq!(slots.occupied(), 2);
    }

    #[tokio::test]
    async fn a_slot_of_a_proxy_counts_for_its_client() {
        let slots = Slots::new(10, Duration::ZERO);
        let held: Vec<_> = (0..3)
            .filter_map(|_| slots.take(address(1), None).ok())
            .map(|(slot, _)| slot)
            .collect();
        held[0].counts_for_address();
        assert_eq!(held[0].belongs_to(address(2), Some(2)), Ok(()));
        assert_eq!(held[1].belongs_to(address(2), Some(2)), Ok(()));
        assert_eq!(held[1].belongs_to(address(2), Some(0)), Ok(()), "it has it already");
        assert_eq!(held[2].belongs_to(address(2), Some(2)), Err(OverShare));
        assert_eq!(slots.largest(9), [(address(2), 2), (address(1), 1)]);
        assert_eq!(slots.occupied(), 2);
        held[0].counts_again();
        assert_eq!(slots.occupied(), 3);
        drop(held);
        assert_eq!((slots.occupied(), slots.largest(9)), (0, Vec::new()));
    }

    #[tokio::test]
    async fn what_only_its_address_has_is_no_place_of_others() {
        let slots = Slots::new(1, Duration::ZERO);
        let (slot, _) = slots.take(address(1), Some(1)).expect("there is room");
        slot.counts_for_address();
        assert!(slots.has_room());
        assert!(slots.take(address(1), Some(1)).is_err());
        slot.counts_again();
        assert_eq!(slots.occupied(), 1);
        drop(slot);
        assert_eq!(slots.occupied(), 0);
        assert_eq!(slots.largest(1), []);
    }
}
