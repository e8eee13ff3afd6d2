//! Nodes that share rooms, with a network that delays, and loses connections.
//!
//! Each run is a random sequence from a seed, which is printed when it fails. In the end all nodes
//! that take part in a room know the same members: those that the connections of all nodes have
//! entered. `SWITCHYARD_PRESENCE_SEED` repeats one sequence, `SWITCHYARD_PRESENCE_RUNS` changes how
//! many.

#![expect(clippy::indexing_slicing, reason = "what is not there fails the test")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fastrand::Rng;
use switchyard_presence::{
    Ask, Limits, Member, OwnChange, RemoteChange, RemotePage, Replicas, Rooms, Update,
};

const ROOMS: [&[u8]; 2] = [b"a", b"b"];
const NAMES: [&str; 3] = ["one", "two", "three"];
const RUNS: u64 = 2_000;

struct Node {
    rooms: Rooms,
    replicas: Replicas,
    incarnation: u64,
    /// What it will receive, in order for each sender.
    inbox: [VecDeque<Message>; 3],
    /// Whether its connection to the others is lost.
    is_cut: bool,
    /// The connections of its own members, by room.
    own: BTreeSet<(usize, u64)>,
    next: u64,
}

#[derive(Clone)]
enum Message {
    Update(&'static [u8], Update),
    Alive(u64),
    Ask(Ask, Option<u64>),
    /// Whether it is the first part.
    Answer(Ask, RemotePage, bool),
}

struct Run {
    rng: Rng,
    nodes: Vec<Node>,
    now_ms: u64,
    data: u64,
}

impl Run {
    fn new(seed: u64) -> Run {
        let limits = Limits {
            members_max: 1_000,
            data_bytes_max: 100,
            grace_ms: 0,
            memberships_max: 10,
            watches_max: 10,
            watchers_max: 10,
        };
        let node = |number: u64| {
            let mut rooms = Rooms::new(limits);
            rooms.record_changes();
            Node {
                rooms,
                replicas: Replicas::new(1_000),
                incarnation: 0,
                inbox: Default::default(),
                is_cut: false,
                own: BTreeSet::new(),
                next: (number + 1) << 32,
            }
        };
        let nodes = (0..3).map(node).collect();
        Run { rng: Rng::with_seed(seed), nodes, now_ms: 10_000, data: 0 }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if !self.nodes[from].is_cut && !self.nodes[to].is_cut {
            self.nodes[to].inbox[from].push_back(message);
        }
    }

    fn send_to_all(&mut self, from: usize, message: &Message) {
        for to in (0..3).filter(|to| *to != from) {
            self.send(from, to, message.clone());
        }
    }

    /// Sends what the members of a node did.
    fn tell(&mut self, node: usize) {
        for (channel, change) in self.nodes[node].rooms.take_changes() {
            let room = ROOMS.into_iter().find(|room| **room == *channel).expect("it is known");
            if let OwnChange::Enter(_, Some(was)) = &change {
                self.nodes[node].replicas.taken_over(room, *was);
            }
            let (previous, stamp) = self.nodes[node].replicas.stamp(room);
            let change = match change {
                OwnChange::Enter(member, was) => RemoteChange::Enter(member, was),
                OwnChange::Leave(connection) => RemoteChange::Leave(connection),
                OwnChange::Grace(connection) => RemoteChange::Grace(connection),
            };
            if self.nodes[node].is_cut {
                self.nodes[node].incarnation += 1;
            }
            self.send_to_all(node, &Message::Update(room, Update { previous, stamp, change }));
        }
    }

    fn take_part(&mut self, node: usize, room: usize) {
        let now_ms = self.now_ms;
        self.nodes[node].replicas.begin(ROOMS[room], Box::new(()), now_ms);
        self.ask(node);
    }

    fn ask(&mut self, node: usize) {
        while let Some(ask) = self.nodes[node].replicas.next_ask() {
            let to = NAMES.iter().position(|name| **name == *ask.node).expect("it is known");
            if self.nodes[node].is_cut || self.nodes[to].is_cut {
                self.nodes[node].replicas.unanswered(&ask);
                return;
            }
            self.send(node, to, Message::Ask(ask, None));
        }
    }

    fn step(&mut self) {
        self.now_ms += self.rng.u64(..20);
        let node = self.rng.usize(..3);
        let room = self.rng.usize(..2);
        match self.rng.u32(..100) {
            0..12 if self.nodes[node].replicas.is_known(ROOMS[room]) => {
                self.data += 1;
                let connection = self.nodes[node].next;
                self.nodes[node].next += 1;
                self.enter(node, room, connection);
            }
            12..18 => {
                let own = self.nodes[node].own.iter().find(|(of, _)| *of == room).copied();
                if let Some((_, connection)) = own {
                    self.data += 1;
                    self.enter(node, room, connection);
                }
            }
            18..26 => {
                let own = self.nodes[node].own.iter().find(|(of, _)| *of == room).copied();
                if let Some((_, connection)) = own {
                    self.nodes[node].own.remove(&(room, connection));
                    let now_ms = self.now_ms;
                    self.nodes[node].rooms.leave(ROOMS[room], connection, now_ms);
                    self.tell(node);
                }
            }
            26..32 => self.take_part(node, room),
            32..34 => self.cut(node),
            34..40 => self.link(node),
            40..44 => {
                let alive = Message::Alive(self.nodes[node].incarnation);
                self.send_to_all(node, &alive);
            }
            44..46 => {
                let before = self.now_ms.saturating_sub(200);
                let Node { rooms, replicas, .. } = &mut self.nodes[node];
                replicas.end_unused(rooms, before, self.now_ms);
            }
            _ => {
                let from = self.rng.usize(..3);
                self.receive(node, from);
            }
        }
    }

    fn enter(&mut self, node: usize, room: usize, connection: u64) {
        let member = Member { connection, user: None, data: self.data.to_string().into() };
        let now_ms = self.now_ms;
        let entered = self.nodes[node].rooms.enter(ROOMS[room], member, 1_000, now_ms);
        entered.expect("there is room");
        self.nodes[node].own.insert((room, connection));
        self.tell(node);
    }

    fn cut(&mut self, node: usize) {
        self.nodes[node].is_cut = true;
        for from in 0..3 {
            self.nodes[node].inbox[from].clear();
            self.nodes[from].inbox[node].clear();
        }
    }

    fn link(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].is_cut, false) {
            return;
        }
        self.nodes[node].incarnation += 1;
        let now_ms = self.now_ms;
        self.nodes[node].replicas.relinked(now_ms);
        let alive = Message::Alive(self.nodes[node].incarnation);
        self.send_to_all(node, &alive);
        self.ask(node);
    }

    fn receive(&mut self, node: usize, from: usize) {
        let Some(message) = self.nodes[node].inbox[from].pop_front() else { return };
        let now_ms = self.now_ms;
        let Node { rooms, replicas, .. } = &mut self.nodes[node];
        match message {
            Message::Update(room, update) => {
                replicas.receive(rooms, room, NAMES[from], update, now_ms);
            }
            Message::Alive(incarnation) => {
                replicas.record_contact(NAMES[from], Some(incarnation), now_ms);
            }
            Message::Ask(ask, after) => {
                let page = replicas.page(rooms, &ask.channel, after, 2);
                self.send(node, from, Message::Answer(ask, page, after.is_none()));
                return;
            }
            Message::Answer(ask, page, is_first) => {
                let next = page.next;
                let is_all = replicas.answered(rooms, &ask, page, is_first, now_ms);
                if !is_all && next.is_some() {
                    self.send(node, from, Message::Ask(ask, next));
                }
            }
        }
        self.ask(node);
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        for node in 0..3 {
            self.link(node);
        }
        for _ in 0..20 {
            for node in 0..3 {
                let alive = Message::Alive(self.nodes[node].incarnation);
                self.send_to_all(node, &alive);
                self.ask(node);
            }
            for _ in 0..2_000 {
                for node in 0..3 {
                    for from in 0..3 {
                        self.receive(node, from);
                    }
                }
                if self.nodes.iter().all(|node| node.inbox.iter().all(VecDeque::is_empty)) {
                    break;
                }
            }
        }
    }

    fn check(&self, seed: u64) {
        for (number, room) in ROOMS.into_iter().enumerate() {
            let mut expected = BTreeMap::new();
            for node in &self.nodes {
                for member in node.rooms.presence(room, None, 10_000, false).page.members {
                    if node.own.contains(&(number, member.connection)) {
                        expected.insert(member.connection, member.data.clone());
                    }
                }
            }
            for (place, node) in self.nodes.iter().enumerate() {
                if !node.replicas.contains(room) {
                    continue;
                }
                assert!(node.replicas.is_known(room), "node {place} waits, seed {seed}");
                let known: BTreeMap<_, _> = node
                    .rooms
                    .presence(room, None, 10_000, false)
                    .page
                    .members
                    .into_iter()
                    .map(|member| (member.connection, member.data.clone()))
                    .collect();
                assert_eq!(known, expected, "node {place}, room {number}, seed {seed}");
            }
        }
    }
}

#[test]
fn all_nodes_know_the_same_members_in_the_end() {
    let number = |name: &str| -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().expect("a number"))
    };
    let runs = number("SWITCHYARD_PRESENCE_RUNS").unwrap_or(RUNS);
    let seeds: Vec<u64> = match number("SWITCHYARD_PRESENCE_SEED") {
        Some(seed) => vec![seed],
        None => (0..runs).map(|_| fastrand::u64(..)).collect(),
    };
    for seed in seeds {
        let mut run = Run::new(seed);
        // They know each other.
        for node in 0..3 {
            for other in (0..3).filter(|other| *other != node) {
                run.nodes[node].replicas.record_contact(NAMES[other], Some(0), 10_000);
            }
        }
        for _ in 0..400 {
            run.step();
        }
        run.settle();
        run.check(seed);
    }
}
