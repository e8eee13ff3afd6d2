//! One random sequence of calls, applied to `Rooms` and to the model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fastrand::Rng;
use switchyard_presence::{Events, GATHER_MS, Group, Limits, Member, Refused, Rooms};

use super::client::{Client, shown};
use super::room::{Room, Shown};

const CHANNELS: [&str; 3] = ["a", "b", "c"];

pub struct Run {
    rng: Rng,
    rooms: Rooms,
    limits: Limits,
    now_ms: u64,
    model: BTreeMap<&'static str, Room>,
    clients: BTreeMap<(&'static str, u64), Client>,
    alive: Vec<u64>,
    used: BTreeSet<u64>,
    members_max: usize,
    page_max: usize,
    /// Channels whose rooms are being ended.
    ending: BTreeSet<&'static str>,
    is_traced: bool,
}

impl Run {
    pub fn new(seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let mut one_of = |values: &[usize]| values[rng.usize(..values.len())];
        let limits = Limits {
            members_max: one_of(&[5, 40, 1_000]),
            data_bytes_max: 100,
            grace_ms: one_of(&[0, 0, 50, 150, 1_000]) as u64,
            memberships_max: one_of(&[1, 2, 3]),
            watches_max: one_of(&[1, 2, 3]),
            watchers_max: one_of(&[5, 1_000]),
        };
        let (members_max, page_max) = (one_of(&[4, 30, 100]), one_of(&[1, 3, 10, 100]));
        Run {
            rooms: Rooms::new(limits),
            limits,
            now_ms: 0,
            model: CHANNELS.iter().map(|channel| (*channel, Room::default())).collect(),
            clients: BTreeMap::new(),
            alive: Vec::new(),
            used: BTreeSet::new(),
            members_max,
            page_max,
            ending: BTreeSet::new(),
            is_traced: std::env::var_os("SWITCHYARD_PRESENCE_SEED").is_some(),
            rng,
        }
    }

    pub fn steps(mut self) {
        // Some are long, so that states of the history are removed while watchers need others.
        let steps_max = if self.rng.u32(..50) == 0 { 3_000 } else { 250 };
        for _ in 0..self.rng.usize(10..steps_max) {
            self.step();
            self.check_counts();
        }
        self.settle();
        self.end_all();
    }

    fn step(&mut self) {
        match self.rng.u32(..100) {
            0..40 => self.enter(),
            40..52 => self.leave(),
            52..58 => self.end_connection(),
            58..66 => self.watch(),
            66..78 => self.next_page(),
            78..80 => self.unwatch(),
            80..92 => self.pass_time(),
            92..96 => self.presence(),
            96..97 => self.change_limits(),
            97..98 => self.lose_presence(),
            _ => self.settle(),
        }
    }

    fn channel(&mut self) -> &'static str {
        // Most happens in one room, so that its windows have more than 16 changes.
        CHANNELS[if self.rng.u32(..10) < 8 { 0 } else { self.rng.usize(1..3) }]
    }

    fn connection(&mut self) -> u64 {
        if self.alive.len() < 3 || self.rng.u32(..8) == 0 {
            let new = loop {
                let id = self.rng.u64(1..100_000);
                if self.used.insert(id) {
                    break id;
                }
            };
            self.alive.push(new);
        }
        self.alive[self.rng.usize(..self.alive.len())]
    }

    fn enter(&mut self) {
        let (channel, connection) = (self.channel(), self.connection());
        let user = [None, Some("ann"), Some("bob"), Some("cy")][self.rng.usize(..4)];
        let shown: Shown = (user.map(str::to_owned), self.rng.u32(..3).to_string());
        let member =
            Member { connection, user: user.map(Arc::from), data: Arc::from(shown.1.as_str()) };
        let expected = self.expect_enter(channel, connection, &shown);
        let entered = self.rooms.enter(channel.as_bytes(), member, self.members_max, self.now_ms);
        self.trace(|| format!("{connection} enters {channel} as {shown:?}: {entered:?}"));
        assert_eq!(entered, expected);
    }

    fn expect_enter(
        &mut self,
        channel: &'static str,
        connection: u64,
        shown: &Shown,
    ) -> Result<usize, Refused> {
        let total: usize = self.model.values().map(|room| room.members.len()).sum();
        let rooms = self.model.values().filter(|room| room.members.contains_key(&connection));
        let memberships = rooms.count();
        if self.ending.contains(channel) {
            return Err(Refused::Ending);
        }
        let room = self.model.get_mut(channel).unwrap();
        if !room.members.contains_key(&connection) {
            if memberships >= self.limits.memberships_max {
                return Err(Refused::Memberships);
            }
            if room.oldest_in_grace(&shown.0).is_none() {
                if room.members.len() >= self.members_max {
                    return Err(Refused::RoomMembers);
                }
                if total >= self.limits.members_max {
                    return Err(Refused::Members);
                }
            }
        }
        room.enter(connection, shown.clone());
        Ok(room.members.len())
    }

    fn leave(&mut self) {
        let (channel, connection) = (self.channel(), self.connection());
        self.trace(|| format!("{connection} leaves {channel}"));
        let room = self.model.get_mut(channel).unwrap();
        room.leave(connection);
        let count = room.members.len();
        assert_eq!(self.rooms.leave(channel.as_bytes(), connection, self.now_ms), count);
    }

    fn end_connection(&mut self) {
        let connection = self.connection();
        self.trace(|| format!("{connection} ends"));
        self.alive.retain(|alive| *alive != connection);
        self.clients.retain(|(_, watcher), _| *watcher != connection);
        for (channel, room) in &mut self.model {
            if self.limits.grace_ms == 0 || self.ending.contains(channel) {
                room.leave(connection);
            } else if room.members.contains_key(&connection) {
                room.in_grace.push((self.now_ms + self.limits.grace_ms, connection));
            }
        }
        self.rooms.connection_ended(connection, self.now_ms);
    }

    fn watch(&mut self) {
        let (channel, connection) = (self.channel(), self.connection());
        let watches = self.clients.keys().filter(|(_, watcher)| *watcher == connection).count();
        let is_new = !self.clients.contains_key(&(channel, connection));
        let limit = self.rng.usize(1..=self.page_max);
        let snapshot = self.rooms.watch(channel.as_bytes(), connection, limit);
        self.trace(|| format!("{connection} watches {channel}: {snapshot:?}"));
        if self.ending.contains(channel) {
            assert_eq!(snapshot, Err(Refused::Ending));
        } else if is_new && watches >= self.limits.watches_max {
            assert_eq!(snapshot, Err(Refused::Watches));
        } else if is_new && self.clients.len() >= self.limits.watchers_max {
            assert_eq!(snapshot, Err(Refused::Watchers));
        } else {
            let snapshot = snapshot.unwrap();
            let room = &self.model[channel];
            assert_eq!(snapshot.count.members, room.members.len());
            assert_eq!(snapshot.count.users, room.users());
            assert_eq!(snapshot.page.members.len(), room.members.len().min(limit));
            let mut client = Client::default();
            client.take_page(&snapshot.page, room);
            self.clients.insert((channel, connection), client);
        }
    }

    fn next_page(&mut self) {
        let incomplete = self.clients.iter().filter(|(_, client)| !client.is_complete);
        let incomplete: Vec<_> = incomplete.map(|(key, _)| *key).collect();
        let Some((channel, connection)) = self.rng.choice(incomplete) else { return };
        self.fetch(channel, connection);
    }

    fn fetch(&mut self, channel: &'static str, connection: u64) {
        let page = self.rooms.next_page(channel.as_bytes(), connection, self.now_ms);
        self.trace(|| format!("{connection} continues {channel}: {page:?}"));
        assert_eq!(page.is_none(), self.ending.contains(channel));
        let client = self.clients.get_mut(&(channel, connection)).unwrap();
        if let Some(page) = page {
            client.take_page(&page, &self.model[channel]);
        }
    }

    fn unwatch(&mut self) {
        let (channel, connection) = (self.channel(), self.connection());
        self.trace(|| format!("{connection} unwatches {channel}"));
        let did_watch = self.clients.remove(&(channel, connection)).is_some();
        assert_eq!(self.rooms.unwatch(channel.as_bytes(), connection), did_watch);
    }

    fn pass_time(&mut self) {
        self.now_ms += self.rng.u64(..80);
        self.expire();
        let work_max = *self.rng.choice(&[1, 2, 5, 50, 10_000]).unwrap();
        let groups = self.rooms.flush(self.now_ms, work_max).groups;
        self.deliver(&groups, work_max < 10_000);
    }

    fn expire(&mut self) {
        // At once, for the model ends all whose time has come.
        let next = self.rooms.expire(self.now_ms, 10_000);
        let mut ends = Vec::new();
        for room in self.model.values() {
            ends.extend(room.in_grace.iter().map(|(ends_ms, _)| *ends_ms));
        }
        ends.retain(|ends_ms| *ends_ms > self.now_ms);
        assert_eq!(next, ends.into_iter().min());
        for room in self.model.values_mut() {
            let mut over = room.in_grace.clone();
            over.retain(|(ends_ms, _)| *ends_ms <= self.now_ms);
            over.sort_by_key(|(ends_ms, _)| *ends_ms);
            for (_, connection) in over {
                room.leave(connection);
            }
        }
    }

    fn presence(&mut self) {
        let channel = self.channel();
        let (after, limit) = (self.rng.bool().then(|| self.rng.u64(..100_000)), self.page_max);
        let snapshot = self.rooms.presence(channel.as_bytes(), after, limit, false);
        let members = self.model[channel].members.iter();
        let mut expected = members.filter(|(id, _)| after.is_none_or(|after| **id > after));
        for member in &snapshot.page.members {
            assert_eq!(expected.next(), Some((&member.connection, &shown(member))));
        }
        let has_more = expected.next().is_some();
        assert_eq!(snapshot.page.has_more, has_more);
        assert_eq!(snapshot.page.next().is_some(), has_more);
        assert!(!has_more || snapshot.page.members.len() == limit);
    }

    fn change_limits(&mut self) {
        self.limits.grace_ms = *self.rng.choice(&[0, 50, 500]).unwrap();
        self.limits.members_max = *self.rng.choice(&[5, 40, 1_000]).unwrap();
        self.rooms.set_limits(self.limits);
    }

    fn lose_presence(&mut self) {
        let lost = self.channel();
        self.trace(|| format!("{lost} loses presence"));
        let mut after: Option<Arc<[u8]>> = None;
        loop {
            let work_max = self.rng.usize(1..4);
            let has_presence = |channel: &[u8]| channel != lost.as_bytes();
            after = self.rooms.end_rooms(after.as_deref(), has_presence, work_max);
            if after.is_none() {
                break;
            }
        }
        if self.rooms.totals().rooms > 0 && !self.is_empty(lost) {
            self.ending.insert(lost);
        }
    }

    fn is_empty(&self, channel: &str) -> bool {
        let has_watchers = self.clients.keys().any(|(watched, _)| *watched == channel);
        self.model[channel].members.is_empty() && !has_watchers
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            eprintln!("{:6} {}", self.now_ms, what());
        }
    }

    /// Applies what a flush returned to the clients.
    fn deliver(&mut self, groups: &[Group], is_partial: bool) {
        self.trace(|| format!("flush: {groups:?}"));
        // The model does not know in which order an ending room loses its members.
        let ending = std::mem::take(&mut self.ending);
        for channel in &ending {
            let left = self.rooms.presence(channel.as_bytes(), None, 1_000, false).page.members;
            let room = self.model.get_mut(channel).unwrap();
            let gone: Vec<u64> = room.members.keys().copied().collect();
            for id in gone {
                if !left.iter().any(|member| member.connection == id) {
                    room.leave(id);
                }
            }
            let is_listed =
                self.rooms.list(None, 10).iter().any(|entry| *entry.channel == *channel.as_bytes());
            if is_listed {
                self.ending.insert(channel);
            }
        }
        let mut flushed = BTreeSet::new();
        for group in groups {
            let channel = CHANNELS.into_iter().find(|name| name.as_bytes() == &*group.channel);
            let channel = channel.unwrap();
            let room = &self.model[channel];
            let watchers: BTreeSet<u64> = group.watchers.iter().copied().collect();
            assert!(!watchers.is_empty() && watchers.len() == group.watchers.len());
            for watcher in watchers {
                let key = (channel, watcher);
                let client = self.clients.get_mut(&key).expect("only watchers receive events");
                if group.events == Events::Unwatched {
                    assert_eq!(client.known, BTreeMap::new(), "each leave comes first");
                    self.clients.remove(&key);
                    continue;
                }
                if ending.contains(channel) {
                    client.forget_changes();
                }
                client.take_events(&group.events, room, ending.contains(channel));
                flushed.insert(key);
            }
        }
        if !is_partial && self.rooms.next_flush().is_none() {
            for ((channel, watcher), client) in &mut self.clients {
                if !flushed.contains(&(*channel, *watcher)) {
                    client.take_nothing(&self.model[channel]);
                }
                if client.is_complete {
                    assert_eq!(client.known, self.model[channel].members);
                }
            }
        } else if !groups.is_empty() || is_partial {
            self.forget_cancelled(&flushed);
        }
    }

    /// A room may have been flushed without an event for some, which the model cannot see.
    fn forget_cancelled(&mut self, flushed: &BTreeSet<(&'static str, u64)>) {
        for (key, client) in &mut self.clients {
            if !flushed.contains(key) {
                client.forget_if_many(&self.model[key.0]);
            }
        }
    }

    /// Flushes everything. Then each client knows the room.
    fn settle(&mut self) {
        self.expire();
        for _ in 0..3 {
            self.now_ms += GATHER_MS;
            while self.rooms.next_flush().is_some_and(|next| next <= self.now_ms) {
                let groups = self.rooms.flush(self.now_ms, 10_000).groups;
                self.deliver(&groups, false);
            }
        }
        for ((channel, _), client) in &self.clients {
            if client.is_complete {
                assert_eq!(client.known, self.model[channel].members, "in {channel}");
            }
        }
    }

    fn check_counts(&mut self) {
        // A room that is being ended is gone with its last member and watcher.
        let mut ending = std::mem::take(&mut self.ending);
        ending.retain(|channel| !self.is_empty(channel));
        self.ending = ending;
        let totals = self.rooms.totals();
        let members: usize = self.model.values().map(|room| room.members.len()).sum();
        assert_eq!(totals.members, members);
        assert_eq!(totals.watchers, self.clients.len());
        let rooms = CHANNELS.into_iter().filter(|channel| !self.is_empty(channel));
        assert!(rooms.clone().all(|channel| {
            let snapshot = self.rooms.presence(channel.as_bytes(), None, 1, true);
            let room = &self.model[channel];
            (snapshot.count.members, snapshot.count.users) == (room.members.len(), room.users())
        }));
        let names: Vec<&[u8]> = rooms.map(str::as_bytes).collect();
        let listed = self.rooms.list(None, 10);
        assert_eq!(listed.iter().map(|entry| &*entry.channel).collect::<Vec<_>>(), names);
    }

    /// When all connections have ended, nothing is left.
    fn end_all(&mut self) {
        for connection in std::mem::take(&mut self.alive) {
            self.rooms.connection_ended(connection, self.now_ms);
        }
        self.rooms.expire(u64::MAX, usize::MAX);
        self.rooms.flush(u64::MAX - GATHER_MS, usize::MAX);
        assert_eq!(self.rooms.totals(), Default::default());
        assert_eq!((self.rooms.next_flush(), self.rooms.next_expiry()), (None, None));
    }
}
