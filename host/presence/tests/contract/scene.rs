//! One room and the time, with short texts for what is returned.

use std::sync::Arc;

use switchyard_presence::{
    Change, Events, GATHER_MS, Group, Limits, Member, Page, Refused, Rooms, Snapshot,
};

pub const ROOM: &[u8] = b"room.1";

pub const LIMITS: Limits = Limits {
    members_max: 100_000,
    data_bytes_max: 1_024,
    grace_ms: 0,
    memberships_max: 100,
    watches_max: 100,
    watchers_max: 1_000,
};

pub struct Scene {
    pub rooms: Rooms,
    pub now_ms: u64,
    pub members_max: usize,
}

impl Scene {
    pub fn new() -> Scene {
        Scene::with(LIMITS)
    }

    pub fn with(limits: Limits) -> Scene {
        Scene { rooms: Rooms::new(limits), now_ms: 0, members_max: 10_000 }
    }

    /// A text like `7:ann=1`; without a user `7=1`.
    pub fn try_enter_in(&mut self, channel: &[u8], member: &str) -> Result<usize, Refused> {
        let (origin, data) = member.split_once('=').unwrap();
        let (connection, user) = match origin.split_once(':') {
            Some((connection, user)) => (connection, Some(Arc::from(user))),
            None => (origin, None),
        };
        let connection = connection.parse().unwrap();
        let member = Member { connection, user, data: Arc::from(data) };
        self.rooms.enter(channel, member, self.members_max, self.now_ms)
    }

    pub fn try_enter(&mut self, member: &str) -> Result<usize, Refused> {
        self.try_enter_in(ROOM, member)
    }

    pub fn enter(&mut self, member: &str) -> usize {
        self.try_enter(member).unwrap()
    }

    pub fn enter_all(&mut self, members: &[&str]) {
        for member in members {
            self.enter(member);
        }
    }

    pub fn leave(&mut self, connection: u64) -> usize {
        self.rooms.leave(ROOM, connection, self.now_ms)
    }

    pub fn end(&mut self, connection: u64) {
        self.rooms.connection_ended(connection, self.now_ms);
    }

    pub fn watch(&mut self, connection: u64, limit: usize) -> String {
        snapshot(&self.rooms.watch(ROOM, connection, limit).unwrap())
    }

    pub fn next_page(&mut self, connection: u64) -> Option<String> {
        self.rooms.next_page(ROOM, connection, self.now_ms).as_ref().map(page)
    }

    pub fn presence(&self, after: Option<u64>, limit: usize) -> String {
        snapshot(&self.rooms.presence(ROOM, after, limit, false))
    }

    /// Lets the time of a window pass, and returns what the watchers receive.
    pub fn flush(&mut self) -> Vec<String> {
        self.flush_after(GATHER_MS)
    }

    pub fn flush_after(&mut self, ms: u64) -> Vec<String> {
        self.now_ms += ms;
        self.rooms.expire(self.now_ms, usize::MAX);
        groups(&self.rooms.flush(self.now_ms, usize::MAX).groups)
    }
}

pub fn member(member: &Member) -> String {
    let user = member.user.as_ref().map(|user| format!(":{user}")).unwrap_or_default();
    format!("{}{user}={}", member.connection, member.data)
}

fn members(members: &[Arc<Member>]) -> String {
    members.iter().map(|shown| member(shown)).collect::<Vec<_>>().join(" ")
}

pub fn page(page: &Page) -> String {
    format!("[{}]{}", members(&page.members), if page.has_more { " more" } else { "" })
}

pub fn snapshot(snapshot: &Snapshot) -> String {
    let count = snapshot.count;
    format!("{} members, {} users: {}", count.members, count.users, page(&snapshot.page))
}

fn was(was: Option<u64>) -> String {
    was.map(|was| format!(" was {was}")).unwrap_or_default()
}

fn change(change: &Change) -> String {
    let kind = format!("{:?}", change.kind).to_lowercase();
    format!("{kind} {}{}", member(&change.member), was(change.was))
}

pub fn groups(groups: &[Group]) -> Vec<String> {
    groups
        .iter()
        .map(|group| {
            let events = match &group.events {
                Events::Each(changes) => changes.iter().map(change).collect::<Vec<_>>().join(", "),
                Events::Coalesced(all) => {
                    let update = all.update.iter();
                    let update = update.map(|one| member(&one.member) + &was(one.was));
                    format!(
                        "presence enter [{}] update [{}] leave [{}]",
                        members(&all.enter),
                        update.collect::<Vec<_>>().join(" "),
                        members(&all.leave)
                    )
                }
                Events::Unwatched => "unwatched".to_owned(),
            };
            format!("{:?}: {events}", group.watchers)
        })
        .collect()
}
