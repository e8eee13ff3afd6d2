//! The members of channels, and the connections that watch them.
//!
//! Rooms belong to the host: replacing or rebuilding engines and plugins does not change them. What
//! a connection is sent about a room is queued while the rooms are locked, so that it is in order:
//! a reply before the events that follow from it, and a page of members before the events for them.

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connections::attributes::USER;
use super::connections::{Connection, Connections};
use switchyard_config::{ChannelRules, PresenceConfig};
use switchyard_presence::{
    Change, ChangeKind, Coalesced, Events, Group, Limits, Member, Page, Refused, Rooms, Snapshot,
    Totals,
};
use switchyard_protocol::json;
use switchyard_telemetry::supervise::Ended;
use switchyard_types::command::{LIMIT, NOPRESENCE, Refusal, TOOLARGE};
use switchyard_types::ids::ConnectionId;
use switchyard_types::presence::{MemberView, PAGE_MEMBERS_MAX, PresenceOptions, PresencePage};

use cluster::Cluster;
pub use cluster::RoomPublisher;

/// How much is done while the rooms are locked.
const WORK_MAX: usize = 500;
/// How long nothing is looked at, at most.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The rooms of all channels with presence.
pub struct Presence {
    /// Whether any channel may have presence now.
    has_rule: AtomicBool,
    /// Whether any channel has, or had, presence. Read when a connection ends.
    is_on: AtomicBool,
    rules: RwLock<ChannelRules>,
    rooms: Mutex<Rooms>,
    /// Something will be due earlier than before.
    changed: Notify,
    began: Instant,
    /// The other nodes; none: there are none.
    cluster: Option<Cluster>,
}

impl Presence {
    /// No channel has presence.
    pub(super) fn new() -> Presence {
        let limits = Limits {
            members_max: 0,
            data_bytes_max: 0,
            grace_ms: 0,
            memberships_max: 0,
            watches_max: 0,
            watchers_max: 0,
        };
        Presence {
            has_rule: AtomicBool::new(false),
            is_on: AtomicBool::new(false),
            rules: RwLock::default(),
            rooms: Mutex::new(Rooms::new(limits)),
            changed: Notify::new(),
            began: Instant::now(),
            cluster: None,
        }
    }

    /// Sets limits and rules; `each_max`: how many rooms one connection may be a member of, and how
    /// many it may watch. The members of channels that lost presence leave.
    pub fn set(&self, config: &PresenceConfig, rules: &ChannelRules, each_max: usize) {
        let mut rooms = self.rooms.lock();
        rooms.set_limits(Limits {
            members_max: config.members_max,
            data_bytes_max: config.data_bytes_max,
            grace_ms: config.grace.as_millis() as u64,
            memberships_max: each_max,
            watches_max: each_max,
            watchers_max: config.watchers_max,
        });
        let was_on = self.is_on.load(Ordering::Relaxed);
        let has_rule = rules.rules().iter().any(|rule| rule.presence.is_some());
        let is_new = std::mem::replace(&mut *self.rules.write(), rules.clone()) != *rules;
        self.has_rule.store(has_rule, Ordering::Relaxed);
        self.is_on.store(has_rule || was_on, Ordering::Relaxed);
        drop(rooms);
        if is_new && was_on {
            let has_presence = |channel: &[u8]| members_max(rules, channel).is_some();
            let mut after: Option<Arc<[u8]>> = None;
            loop {
                let mut rooms = self.rooms.lock();
                after = rooms.end_rooms(after.as_deref(), has_presence, WORK_MAX);
                if after.is_none() {
                    break;
                }
            }
        }
        self.changed.notify_one();
    }

    /// Whether any channel may have presence now.
    pub fn has_rule(&self) -> bool {
        self.has_rule.load(Ordering::Relaxed)
    }

    /// Whether any channel has, or had, presence.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// How many members a channel may have.
    ///
    /// # Errors
    ///
    /// It has no presence.
    pub fn members_max(&self, channel: &[u8]) -> Result<usize, Refusal> {
        let max = if self.is_on() { members_max(&self.rules.read(), channel) } else { None };
        max.ok_or_else(no_presence)
    }

    /// Whether the data of a member is within the limit.
    ///
    /// # Errors
    ///
    /// It is too large.
    pub fn check_data(&self, data: &str) -> Result<(), Refusal> {
        let max = self.rooms.lock().limits().data_bytes_max;
        if data.len() <= max {
            return Ok(());
        }
        let bytes = data.len();
        Err(Refusal::new(TOOLARGE, format!("data of {bytes} bytes is over the limit of {max}")))
    }

    /// Makes a connection a member of a channel, or replaces its data. `answer` gets the number of
    /// members, and queues the reply.
    ///
    /// # Errors
    ///
    /// The channel has no presence, or a limit is reached.
    pub fn enter(
        &self,
        connection: &Connection,
        channel: &[u8],
        data: &str,
        answer: impl FnOnce(u64),
    ) -> Result<(), Refusal> {
        let max = self.members_max(channel)?;
        let user = connection.attribute(USER).filter(|user| !user.is_empty()).map(Arc::from);
        let member = Member { connection: connection.id, user, data: data.into() };
        let mut rooms = self.rooms.lock();
        let count = rooms
            .enter(channel, member, max, self.now_ms())
            .map_err(|refused| refusal(refused, max, rooms.limits()))?;
        answer(count as u64);
        self.tell_others(&mut rooms);
        drop(rooms);
        self.changed.notify_one();
        Ok(())
    }

    /// Ends a membership; without effect on a connection that is no member. `answer` gets the number
    /// of members, and queues the reply.
    ///
    /// # Errors
    ///
    /// The channel has no presence.
    pub fn leave(
        &self,
        connection: &Connection,
        channel: &[u8],
        answer: impl FnOnce(u64),
    ) -> Result<(), Refusal> {
        self.members_max(channel)?;
        let mut rooms = self.rooms.lock();
        answer(rooms.leave(channel, connection.id, self.now_ms()) as u64);
        self.tell_others(&mut rooms);
        drop(rooms);
        self.changed.notify_one();
        Ok(())
    }

    /// Ends the watches of a connection, and its memberships after the grace period.
    pub fn connection_ended(&self, connection: ConnectionId) {
        if self.is_on() {
            let mut rooms = self.rooms.lock();
            rooms.connection_ended(connection, self.now_ms());
            self.tell_others(&mut rooms);
            drop(rooms);
            self.changed.notify_one();
        }
    }

    /// The members of a channel.
    ///
    /// # Errors
    ///
    /// The channel has no presence.
    pub fn look(
        &self,
        channel: &[u8],
        options: PresenceOptions,
        answer: impl FnOnce(&PresencePage<'_>),
    ) -> Result<(), Refusal> {
        self.members_max(channel)?;
        let limit = page_size(options);
        let snapshot = self.rooms.lock().presence(channel, options.after, limit, options.is_count);
        let next = snapshot.page.next();
        with_views(&snapshot, |members| {
            answer(&PresencePage {
                count: snapshot.count.members,
                users: snapshot.count.users,
                members: (!options.is_count).then_some(members),
                next: next.filter(|_| !options.is_count),
            });
        });
        Ok(())
    }

    /// Lets a connection watch a channel. `answer` gets the first members, and queues the reply.
    /// Returns whether there are more, which `next_members` returns.
    ///
    /// # Errors
    ///
    /// The channel has no presence, or a limit is reached.
    pub fn watch(
        &self,
        connection: &Connection,
        channel: &[u8],
        options: PresenceOptions,
        answer: impl FnOnce(&PresencePage<'_>),
    ) -> Result<bool, Refusal> {
        let max = self.members_max(channel)?;
        let mut rooms = self.rooms.lock();
        let snapshot = rooms
            .watch(channel, connection.id, page_size(options))
            .map_err(|refused| refusal(refused, max, rooms.limits()))?;
        with_views(&snapshot, |members| {
            let (count, users) = (snapshot.count.members, snapshot.count.users);
            answer(&PresencePage { count, users, members: Some(members), next: None });
        });
        Ok(snapshot.page.has_more)
    }

    /// Queues the next members of a channel that a connection watches. Returns whether there are
    /// more.
    pub fn next_members(
        &self,
        connection: &Connection,
        channel: &[u8],
        queue: impl FnOnce(Vec<u8>),
    ) -> bool {
        let mut rooms = self.rooms.lock();
        let page = rooms.next_page(channel, connection.id, self.now_ms());
        let Some(Page { members, has_more }) = page else { return false };
        let views: Vec<_> = members.iter().map(|member| view(member, None)).collect();
        let mut frame = Vec::new();
        json::write_more_members(channel, &views, has_more, &mut frame);
        queue(frame);
        drop(rooms);
        self.changed.notify_one();
        has_more
    }

    /// Ends a watch. `answer` queues the reply.
    pub fn unwatch(&self, connection: &Connection, channel: &[u8], answer: impl FnOnce()) {
        let mut rooms = self.rooms.lock();
        rooms.unwatch(channel, connection.id);
        answer();
    }

    /// Up to `limit` rooms after the one with this name, by name.
    pub fn list(&self, after: Option<&[u8]>, limit: usize) -> Vec<switchyard_presence::RoomEntry> {
        self.rooms.lock().list(after, limit)
    }

    /// The numbers of rooms, members and watchers.
    pub fn totals(&self) -> Totals {
        self.rooms.lock().totals()
    }

    /// Sends events when they are due, and ends memberships after their grace period, forever.
    pub async fn keep(presence: Arc<super::Hub>) -> Ended {
        let (hub, presence) = (&presence, presence.presence());
        loop {
            let due = {
                let mut rooms = presence.rooms.lock();
                let now_ms = presence.now_ms();
                rooms.expire(now_ms, WORK_MAX);
                presence.tell_others(&mut rooms);
                let flushed = rooms.flush(now_ms, WORK_MAX);
                for group in &flushed.groups {
                    send(group, hub.connections());
                }
                let due = [flushed.next_ms, rooms.next_flush(), rooms.next_expiry()];
                due.into_iter().flatten().min()
            };
            let wait = match due {
                Some(due_ms) => Duration::from_millis(due_ms.saturating_sub(presence.now_ms())),
                None => WAIT_MAX,
            };
            match wait.is_zero() {
                true => tokio::task::yield_now().await,
                false => {
                    let changed = presence.changed.notified();
                    let _whichever_is_first =
                        tokio::time::timeout(wait.min(WAIT_MAX), changed).await;
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

fn members_max(rules: &ChannelRules, channel: &[u8]) -> Option<usize> {
    let (_, rule) = rules.find(channel)?;
    rule.presence.map(|presence| presence.members_max)
}

fn page_size(options: PresenceOptions) -> usize {
    options.limit.unwrap_or(PAGE_MEMBERS_MAX) as usize
}

/// Queues events for the watchers that all receive the same.
fn send(group: &Group, connections: &Connections) {
    let Group { channel, watchers, events } = group;
    let mut frames = Vec::new();
    match events {
        Events::Each(changes) => {
            for Change { kind, member, was } in changes {
                let event = match kind {
                    ChangeKind::Enter => "enter",
                    ChangeKind::Update => "update",
                    ChangeKind::Leave => "leave",
                };
                json::write_member_event(event, channel, &view(member, *was), &mut frames);
            }
        }
        Events::Coalesced(Coalesced { enter, update, leave }) => {
            let enter: Vec<_> = enter.iter().map(|member| view(member, None)).collect();
            let update: Vec<_> =
                update.iter().map(|updated| view(&updated.member, updated.was)).collect();
            let leave: Vec<_> = leave.iter().map(|member| view(member, None)).collect();
            json::write_presence_event(channel, [&enter, &update, &leave], &mut frames);
        }
        Events::Unwatched => json::write_unwatched(channel, &mut frames),
    }
    let frames = Bytes::from(frames);
    for watcher in watchers {
        if let Some(connection) = connections.get(*watcher) {
            connection.outbox.push(frames.clone());
        }
    }
}

fn with_views(snapshot: &Snapshot, then: impl FnOnce(&[MemberView<'_>])) {
    let views: Vec<_> = snapshot.page.members.iter().map(|member| view(member, None)).collect();
    then(&views);
}

fn view(member: &Member, was: Option<ConnectionId>) -> MemberView<'_> {
    let Member { connection, user, data } = member;
    MemberView { connection: *connection, user: user.as_deref(), data, was }
}

fn no_presence() -> Refusal {
    Refusal::new(NOPRESENCE, "the channel has no presence: no rule of the server gives it one")
}

fn refusal(refused: Refused, members_max: usize, limits: Limits) -> Refusal {
    let message = match refused {
        Refused::Ending => return no_presence(),
        Refused::RoomMembers => format!("the channel has {members_max} members, its limit"),
        Refused::Members => format!("all channels have {} members, the limit", limits.members_max),
        Refused::Memberships => {
            format!("the connection is a member of {} channels, its limit", limits.memberships_max)
        }
        Refused::Watches => {
            format!("the connection watches {} channels, its limit", limits.watches_max)
        }
        Refused::Watchers => {
            format!("all connections have {} watches, the limit", limits.watchers_max)
        }
    };
    Refusal::new(LIMIT, message)
}
