//! The rooms that this node shares with others, and how far it knows the members of each node.
//!
//! Each node says what its members do, on a channel of the room. An update has a stamp, which rises,
//! and the stamp of the node's update before it in that room. A node that begins to take part in a
//! room listens to the channel first, and then asks every other node for its members; updates that
//! arrive in the meantime are recorded and applied afterwards. A gap between stamps, or a node that
//! lost its connection, is asked for again. The members of a node that says nothing for too long
//! leave.
//!
//! Like `Rooms`, this is pure: the caller sends and receives, and passes the time.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use switchyard_types::ids::ConnectionId;
use switchyard_types::keyed_hash::KeyedMap;

use crate::member::Member;
use crate::rooms::Rooms;

/// How many updates of one node are recorded for a room while it is being asked. With more, it is
/// asked again.
const RECORDED_MAX: usize = 10_000;

/// What a member on another node did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteChange {
    /// It entered, or replaced its data. The connection is the one whose place it took over.
    Enter(Member, Option<ConnectionId>),
    /// It left.
    Leave(ConnectionId),
    /// Its connection ended, and it stays for the grace time.
    Grace(ConnectionId),
}

/// An update of another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// The stamp of the node's update before it in this room; 0: the node had no members.
    pub previous: u64,
    /// Its own stamp.
    pub stamp: u64,
    /// What happened.
    pub change: RemoteChange,
}

/// A member on another node, in the answer of that node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteMember {
    /// The member.
    pub member: Member,
    /// Whether its connection has ended.
    pub is_in_grace: bool,
}

/// A part of the members on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemotePage {
    /// The stamp of the node's last update in this room; 0: it has had no members.
    pub stamp: u64,
    /// The stamp of the node's last update in any room: what has a lower one is contained.
    pub as_of: u64,
    /// The members, by rising connection.
    pub members: Vec<RemoteMember>,
    /// Where the next part begins; none: this is the last one.
    pub next: Option<ConnectionId>,
}

/// A room that a node is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The channel of the room.
    pub channel: Arc<[u8]>,
    /// The name of the node.
    pub node: Box<str>,
    /// Distinguishes it from others for the same room and node.
    pub number: u64,
}

/// The number of a node here.
type NodeId = u32;

/// The shared rooms.
pub struct Replicas {
    rooms: KeyedMap<Arc<[u8]>, Replica>,
    /// Their names, those that `end_unused` looked at last behind the others.
    rotation: VecDeque<Arc<[u8]>>,
    nodes: Vec<Node>,
    by_name: FxHashMap<Box<str>, NodeId>,
    /// The stamp of the last update of this node.
    stamp: u64,
    /// Which nodes are to be asked for the members of which rooms.
    asks: VecDeque<(Arc<[u8]>, NodeId)>,
    asked: u64,
    /// The nodes whose members leave.
    leaving: VecDeque<(NodeId, Vec<Arc<[u8]>>)>,
}

struct Node {
    name: Box<str>,
    /// Rises when the node may have missed updates or failed to send them; none: not known yet.
    incarnation: Option<u64>,
    heard_ms: u64,
    is_alive: bool,
}

struct Replica {
    /// The stamp of the last update of this node in this room.
    own: u64,
    of: Vec<(NodeId, OfNode)>,
    /// Keeps the node subscribed to the channel of the room.
    _hold: Box<dyn Any + Send + Sync>,
    used_ms: u64,
}

#[derive(Default)]
struct OfNode {
    members: BTreeSet<ConnectionId>,
    /// The stamp of the last update that was applied.
    stamp: u64,
    /// Updates up to this stamp are contained in what is known.
    as_of: u64,
    asking: Option<Asking>,
}

#[derive(Default)]
struct Asking {
    /// The number under which the node was asked; none: it was not asked yet.
    number: Option<u64>,
    /// The stamps of the first part of the answer.
    stamp: u64,
    as_of: u64,
    answered: BTreeMap<ConnectionId, RemoteMember>,
    recorded: Vec<Update>,
}

impl Replicas {
    /// No rooms. Stamps begin above `stamp`.
    pub fn new(stamp: u64) -> Replicas {
        Replicas {
            rooms: KeyedMap::default(),
            rotation: VecDeque::new(),
            nodes: Vec::new(),
            by_name: FxHashMap::default(),
            stamp,
            asks: VecDeque::new(),
            asked: 0,
            leaving: VecDeque::new(),
        }
    }

    /// Whether this node takes part in a room.
    pub fn contains(&self, channel: &[u8]) -> bool {
        self.rooms.contains_key(channel)
    }

    /// Whether the members of a room on all nodes are known.
    pub fn is_known(&self, channel: &[u8]) -> bool {
        let is_known = |replica: &Replica| replica.of.iter().all(|(_, of)| of.asking.is_none());
        self.rooms.get(channel).is_some_and(is_known)
    }

    /// Begins to take part in a room, whose channel this node is subscribed to while `hold` exists.
    pub fn begin(&mut self, channel: &[u8], hold: Box<dyn Any + Send + Sync>, now_ms: u64) {
        if self.rooms.contains_key(channel) {
            return;
        }
        let channel: Arc<[u8]> = channel.into();
        let mut of = Vec::new();
        for (node, _) in (0..).zip(&self.nodes).filter(|(_, node)| node.is_alive) {
            let asking = Some(Asking::default());
            of.push((node, OfNode { asking, ..OfNode::default() }));
            self.asks.push_back((channel.clone(), node));
        }
        self.rotation.push_back(channel.clone());
        self.rooms.insert(channel, Replica { own: 0, of, _hold: hold, used_ms: now_ms });
    }

    /// Ends the part of this node in rooms without its members and watchers that were not used
    /// since a time. Looks at some of them; the next call at others.
    pub fn end_unused(&mut self, rooms: &mut Rooms, used_before_ms: u64, now_ms: u64) {
        const ROOMS_MAX: usize = 200;
        for _ in 0..self.rotation.len().min(ROOMS_MAX) {
            let Some(channel) = self.rotation.pop_front() else { return };
            let Some(replica) = self.rooms.get(&channel) else { continue };
            let remote: usize = replica.of.iter().map(|(_, of)| of.members.len()).sum();
            let is_needed = rooms.is_watched(&channel) || rooms.count(&channel) > remote;
            if is_needed || replica.used_ms >= used_before_ms {
                self.rotation.push_back(channel);
                continue;
            }
            let ended = self.rooms.remove(&channel);
            for (_, of) in ended.into_iter().flat_map(|replica| replica.of) {
                for connection in of.members {
                    rooms.leave_remote(&channel, connection, now_ms);
                }
            }
        }
    }

    /// A room is used now.
    pub fn touch(&mut self, channel: &[u8], now_ms: u64) {
        if let Some(replica) = self.rooms.get_mut(channel) {
            replica.used_ms = now_ms;
        }
    }

    /// A member of this node did something: the previous stamp and the stamp of the update.
    pub fn stamp(&mut self, channel: &[u8]) -> (u64, u64) {
        self.stamp += 1;
        let stamp = self.stamp;
        match self.rooms.get_mut(channel) {
            Some(replica) => (std::mem::replace(&mut replica.own, stamp), stamp),
            None => (0, stamp),
        }
    }

    /// A member of this node took the place of one that may be on another node.
    pub fn taken_over(&mut self, channel: &[u8], was: ConnectionId) {
        let Some(replica) = self.rooms.get_mut(channel) else { return };
        for (_, of) in &mut replica.of {
            of.members.remove(&was);
        }
    }

    /// The members of this node after one of them, for another node.
    pub fn page(
        &self,
        rooms: &Rooms,
        channel: &[u8],
        after: Option<ConnectionId>,
        limit: usize,
    ) -> RemotePage {
        let as_of = self.stamp;
        let Some(replica) = self.rooms.get(channel) else {
            return RemotePage { as_of, ..RemotePage::default() };
        };
        let (page, in_grace) = rooms.members_after(channel, after, limit);
        let is_remote = |connection: ConnectionId| {
            replica.of.iter().any(|(_, of)| of.members.contains(&connection))
        };
        let next = page.next();
        let members = page
            .members
            .into_iter()
            .zip(in_grace)
            .filter(|(member, _)| !is_remote(member.connection))
            .map(|(member, is_in_grace)| RemoteMember { member: (*member).clone(), is_in_grace })
            .collect();
        RemotePage { stamp: replica.own, as_of, members, next }
    }

    /// Records that a message came from a node. `incarnation`: none, if the message does not name it.
    pub fn record_contact(&mut self, name: &str, incarnation: Option<u64>, now_ms: u64) {
        let node = self.node(name);
        let Some(known) = self.nodes.get_mut(node as usize) else { return };
        known.heard_ms = known.heard_ms.max(now_ms);
        let is_new = !std::mem::replace(&mut known.is_alive, true);
        let is_other = incarnation.is_some()
            && known.incarnation.is_some()
            && incarnation != known.incarnation;
        known.incarnation = incarnation.or(known.incarnation);
        if is_new || is_other {
            self.leaving.retain(|(leaving, _)| *leaving != node);
            self.ask_again(node);
        }
    }

    fn node(&mut self, name: &str) -> NodeId {
        if let Some(node) = self.by_name.get(name) {
            return *node;
        }
        let node = self.nodes.len() as NodeId;
        let (is_alive, heard_ms) = (false, 0);
        self.nodes.push(Node { name: name.into(), incarnation: None, heard_ms, is_alive });
        self.by_name.insert(name.into(), node);
        node
    }

    /// Asks a node for its members of all rooms.
    fn ask_again(&mut self, node: NodeId) {
        for (channel, replica) in &mut self.rooms {
            replica.of_node(node).asking = Some(Asking::default());
            self.asks.push_back((channel.clone(), node));
        }
    }

    /// The connection between this node and the others was lost and is back: updates may be missing.
    pub fn relinked(&mut self, now_ms: u64) {
        self.asks.clear();
        for node in 0..self.nodes.len() as NodeId {
            let Some(known) = self.nodes.get_mut(node as usize) else { continue };
            if known.is_alive {
                known.heard_ms = now_ms;
                self.ask_again(node);
            }
        }
    }

    /// This node did not run for a while: it cannot know how long others have said nothing.
    pub fn slept(&mut self, now_ms: u64) {
        for node in &mut self.nodes {
            node.heard_ms = now_ms;
        }
    }

    /// Nodes that said nothing since a time are gone: their members leave, some at a time. Returns
    /// whether there is more to do.
    pub fn expire(&mut self, rooms: &mut Rooms, heard_before_ms: u64, now_ms: u64) -> bool {
        const MEMBERS_MAX: usize = 500;
        for (node, known) in (0..).zip(&mut self.nodes) {
            if known.is_alive && known.heard_ms < heard_before_ms {
                known.is_alive = false;
                known.incarnation = None;
                self.leaving.push_back((node, self.rooms.keys().cloned().collect()));
            }
        }
        let mut left = 0;
        while let Some((node, channels)) = self.leaving.front_mut() {
            let Some(channel) = channels.last() else {
                self.leaving.pop_front();
                continue;
            };
            if let Some(replica) = self.rooms.get_mut(channel) {
                let of = replica.of_node(*node);
                of.asking = None;
                (of.stamp, of.as_of) = (0, 0);
                while let Some(connection) = of.members.pop_first() {
                    rooms.leave_remote(channel, connection, now_ms);
                    left += 1;
                    if left >= MEMBERS_MAX {
                        return true;
                    }
                }
            }
            channels.pop();
        }
        false
    }

    /// How many other nodes are alive.
    pub fn alive(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_alive).count()
    }

    /// The next room to ask a node for its members of; none: nothing is to be asked.
    pub fn next_ask(&mut self) -> Option<Ask> {
        while let Some((channel, node)) = self.asks.pop_front() {
            let Some(known) = self.nodes.get(node as usize).filter(|known| known.is_alive) else {
                continue;
            };
            let name = known.name.clone();
            let Some(replica) = self.rooms.get_mut(&channel) else { continue };
            if let Some(asking) = &mut replica.of_node(node).asking
                && asking.number.is_none()
            {
                self.asked += 1;
                asking.number = Some(self.asked);
                return Some(Ask { channel, node: name, number: self.asked });
            }
        }
        None
    }

    /// A node did not answer: it is asked again.
    pub fn unanswered(&mut self, ask: &Ask) {
        let node = self.node(&ask.node);
        let Some(replica) = self.rooms.get_mut(&ask.channel) else { return };
        if let Some(asking) = &mut replica.of_node(node).asking
            && asking.number == Some(ask.number)
        {
            asking.number = None;
            self.asks.push_back((ask.channel.clone(), node));
        }
    }

    /// A node answered with a part of its members. `is_first`: the first part. Returns whether no
    /// more is to be asked for.
    pub fn answered(
        &mut self,
        rooms: &mut Rooms,
        ask: &Ask,
        page: RemotePage,
        is_first: bool,
        now_ms: u64,
    ) -> bool {
        let (channel, name) = (&*ask.channel, &*ask.node);
        let node = self.node(name);
        let Some(replica) = self.rooms.get_mut(channel) else { return true };
        let of = replica.of_node(node);
        let Some(asking) = of.asking.as_mut().filter(|asking| asking.number == Some(ask.number))
        else {
            // It was asked again since.
            return true;
        };
        if is_first {
            (asking.stamp, asking.as_of) = (page.stamp, page.as_of);
            asking.answered.clear();
        }
        let answered = page.members.into_iter().map(|it| (it.member.connection, it));
        asking.answered.extend(answered);
        if page.next.is_some() {
            return false;
        }
        let Asking { stamp, as_of, mut answered, recorded, .. } =
            of.asking.take().unwrap_or_default();
        (of.stamp, of.as_of) = (stamp, as_of);
        for connection in std::mem::take(&mut of.members) {
            if !answered.contains_key(&connection) {
                rooms.leave_remote(channel, connection, now_ms);
            }
        }
        while let Some((connection, RemoteMember { member, is_in_grace })) = answered.pop_first() {
            of.members.insert(connection);
            rooms.enter_remote(channel, member, None, now_ms);
            if is_in_grace {
                rooms.grace_remote(channel, connection);
            }
        }
        for update in recorded {
            self.receive(rooms, channel, name, update, now_ms);
        }
        true
    }

    /// An update of another node arrived.
    pub fn receive(
        &mut self,
        rooms: &mut Rooms,
        channel: &[u8],
        name: &str,
        update: Update,
        now_ms: u64,
    ) {
        // It is alive.
        self.record_contact(name, None, now_ms);
        let node = self.node(name);
        let Some((channel, _)) = self.rooms.get_key_value(channel) else { return };
        let channel = channel.clone();
        let Some(replica) = self.rooms.get_mut(&channel) else { return };
        let of = replica.of_node(node);
        if let Some(asking) = &mut of.asking {
            if asking.recorded.len() >= RECORDED_MAX {
                *asking = Asking::default();
                self.asks.push_back((channel, node));
                return;
            }
            asking.recorded.push(update);
            return;
        }
        if update.stamp <= of.as_of.max(of.stamp) {
            return;
        }
        if update.previous != of.stamp && update.previous != 0 {
            of.asking = Some(Asking { recorded: vec![update], ..Asking::default() });
            self.asks.push_back((channel, node));
            return;
        }
        if update.previous == 0 {
            // The node had no members, whatever is known of it.
            for connection in std::mem::take(&mut of.members) {
                rooms.leave_remote(&channel, connection, now_ms);
            }
        }
        of.stamp = update.stamp;
        match update.change {
            RemoteChange::Enter(member, was) => {
                of.members.insert(member.connection);
                if let Some(was) = was {
                    for (_, of) in &mut replica.of {
                        of.members.remove(&was);
                    }
                }
                rooms.enter_remote(&channel, member, was, now_ms);
            }
            RemoteChange::Leave(connection) => {
                if of.members.remove(&connection) {
                    rooms.leave_remote(&channel, connection, now_ms);
                }
            }
            RemoteChange::Grace(connection) => {
                if of.members.contains(&connection) {
                    rooms.grace_remote(&channel, connection);
                }
            }
        }
    }
}

impl Replica {
    fn of_node(&mut self, node: NodeId) -> &mut OfNode {
        let place = match self.of.iter().position(|(of, _)| *of == node) {
            Some(place) => place,
            None => {
                self.of.push((node, OfNode::default()));
                self.of.len() - 1
            }
        };
        let (_, of) = self.of.get_mut(place).expect("it was found or added just now");
        of
    }
}
