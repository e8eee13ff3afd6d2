//! Rooms whose members are on several nodes.
//!
//! Each node has the members of its own connections, and repeats those of the others in the rooms
//! that it takes part in: where it has members or watchers. So PRESENCE and WATCH are answered from
//! memory, and a change is one message to the nodes that take part.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::Presence;
use crate::clock::unix_us;
use switchyard_presence::{Ask, OwnChange, RemoteMember, RemotePage, Replicas, Rooms, Update};
use switchyard_types::ids::ConnectionId;

/// How long a node may say nothing before its members leave.
const LEASE_MS: u64 = 7_000;
/// How long a room stays in memory that this node has no member and no watcher of.
const UNUSED_MS: u64 = 10_000;
/// How many members one answer to another node has.
const PAGE_MEMBERS: usize = 256;

/// How many bytes of data it has, or one member: less than NATS accepts by default.
const PAGE_BYTES: usize = 256 << 10;

/// Sends what members of this node do to the other nodes. The backplane is one.
pub trait RoomPublisher: Send + Sync {
    /// Sends a change with the previous stamp and its own, in the order of the calls.
    fn publish(&self, channel: &[u8], previous: u64, stamp: u64, change: &OwnChange);
}

/// The state that is shared with other nodes.
pub(super) struct Cluster {
    /// Locked after the rooms.
    replicas: Mutex<Replicas>,
    publisher: Arc<dyn RoomPublisher>,
    /// There is a room to ask other nodes about.
    ask_wanted: Notify,
    /// How often members of other nodes became known.
    known: watch::Sender<u64>,
}

impl Presence {
    /// Shares the rooms with other nodes.
    pub(crate) fn share(&mut self, publisher: Arc<dyn RoomPublisher>) {
        self.rooms.get_mut().record_changes();
        self.cluster = Some(Cluster {
            replicas: Mutex::new(Replicas::new(unix_us())),
            publisher,
            ask_wanted: Notify::new(),
            known: watch::Sender::new(0),
        });
    }

    /// Sends what members of this node did.
    pub(super) fn tell_others(&self, rooms: &mut Rooms) {
        let Some(cluster) = &self.cluster else { return };
        let changes = rooms.take_changes();
        if changes.is_empty() {
            return;
        }
        let mut replicas = cluster.replicas.lock();
        for (channel, change) in changes {
            if let OwnChange::Enter(_, Some(was)) = &change {
                replicas.taken_over(&channel, *was);
            }
            let (previous, stamp) = replicas.stamp(&channel);
            cluster.publisher.publish(&channel, previous, stamp, &change);
        }
    }

    /// Whether the members of a channel are known that are on other nodes. It is used now.
    pub fn is_known(&self, channel: &[u8]) -> bool {
        let Some(cluster) = &self.cluster else { return true };
        let mut replicas = cluster.replicas.lock();
        replicas.touch(channel, self.now_ms());
        replicas.is_known(channel)
    }

    /// Whether this node takes part in the room of a channel.
    pub fn takes_part(&self, channel: &[u8]) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| cluster.replicas.lock().contains(channel))
    }

    /// Begins to take part in the room of a channel. The node is subscribed to what others say about
    /// it while `hold` exists.
    pub fn take_part(&self, channel: &[u8], hold: Box<dyn Any + Send + Sync>) {
        if let Some(cluster) = &self.cluster {
            cluster.replicas.lock().begin(channel, hold, self.now_ms());
            cluster.ask_wanted.notify_one();
        }
    }

    /// Waits until the members of a channel are known, or the time is over.
    pub async fn known(&self, channel: &[u8], limit: Duration) {
        let Some(cluster) = &self.cluster else { return };
        let mut known = cluster.known.subscribe();
        let waiting = async {
            while !self.is_known(channel) {
                if known.changed().await.is_err() {
                    return;
                }
            }
        };
        let _known_or_late = tokio::time::timeout(limit, waiting).await;
    }

    /// Records that a message came from another node.
    pub fn record_contact(&self, node: &str, incarnation: Option<u64>) {
        if let Some(cluster) = &self.cluster {
            cluster.replicas.lock().record_contact(node, incarnation, self.now_ms());
            cluster.ask_wanted.notify_one();
        }
    }

    /// How many other nodes are alive.
    pub fn other_nodes(&self) -> usize {
        self.cluster.as_ref().map_or(0, |cluster| cluster.replicas.lock().alive())
    }

    /// The connection to the other nodes was lost and is back.
    pub fn relinked(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.replicas.lock().relinked(self.now_ms());
            cluster.ask_wanted.notify_one();
        }
    }

    /// This process did not run for a while.
    pub fn slept(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.replicas.lock().slept(self.now_ms());
        }
    }

    /// Ends the members of nodes that are gone, and what is not used. Returns whether there is more
    /// to do.
    pub fn sweep(&self) -> bool {
        let Some(cluster) = &self.cluster else { return false };
        let mut rooms = self.rooms.lock();
        let mut replicas = cluster.replicas.lock();
        let now_ms = self.now_ms();
        let has_more = replicas.expire(&mut rooms, now_ms.saturating_sub(LEASE_MS), now_ms);
        replicas.end_unused(&mut rooms, now_ms.saturating_sub(UNUSED_MS), now_ms);
        drop((replicas, rooms));
        self.changed.notify_one();
        has_more
    }

    /// A room to ask a node about. Waits until there is one.
    pub async fn next_ask(&self) -> Ask {
        let Some(cluster) = &self.cluster else { return std::future::pending().await };
        loop {
            if let Some(ask) = cluster.replicas.lock().next_ask() {
                return ask;
            }
            cluster.ask_wanted.notified().await;
        }
    }

    /// A node did not answer: it is asked again.
    pub fn unanswered(&self, ask: &Ask) {
        if let Some(cluster) = &self.cluster {
            cluster.replicas.lock().unanswered(ask);
            cluster.ask_wanted.notify_one();
        }
    }

    /// A node answered with a part of its members of a channel.
    pub fn answered(&self, ask: &Ask, page: RemotePage, is_first: bool) {
        let Some(cluster) = &self.cluster else { return };
        let mut rooms = self.rooms.lock();
        let mut replicas = cluster.replicas.lock();
        let now_ms = self.now_ms();
        if replicas.answered(&mut rooms, ask, page, is_first, now_ms) {
            cluster.known.send_modify(|known| *known += 1);
        }
        drop((replicas, rooms));
        self.changed.notify_one();
    }

    /// Another node said what one of its members did.
    pub fn receive(&self, channel: &[u8], node: &str, update: Update) {
        let Some(cluster) = &self.cluster else { return };
        let mut rooms = self.rooms.lock();
        cluster.replicas.lock().receive(&mut rooms, channel, node, update, self.now_ms());
        drop(rooms);
        cluster.ask_wanted.notify_one();
        self.changed.notify_one();
    }

    /// The members of this node after one of them, for another node.
    pub fn own_members(&self, channel: &[u8], after: Option<ConnectionId>) -> RemotePage {
        let Some(cluster) = &self.cluster else { return RemotePage::default() };
        let rooms = self.rooms.lock();
        let mut page = cluster.replicas.lock().page(&rooms, channel, after, PAGE_MEMBERS);
        drop(rooms);
        let mut bytes = 0;
        let fits = |it: &&RemoteMember| {
            bytes += it.member.data.len();
            bytes <= PAGE_BYTES
        };
        let count = page.members.iter().take_while(fits).count().max(1);
        if count < page.members.len() {
            page.members.truncate(count);
            page.next = page.members.last().map(|it| it.member.connection);
        }
        page
    }
}
