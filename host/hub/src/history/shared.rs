//! Histories that the backplane keeps, for all nodes.
//!
//! This node keeps no streams then. It asks the backplane for what RESUME and HISTORY answer, and
//! knows for each channel what it has delivered of the stream (`tails`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::tails::{Arrival, Bounds, Meeting, NoMeeting};
use super::{History, Missed, resumed, within};
use crate::Hub;
use crate::connections::Connection;
use crate::filter::DeliveryFilter;
use switchyard_config::ChannelRules;
use switchyard_history::{Entry, Limits, Look, Page, Reason, Resume, Resumed as Found};
use switchyard_types::batch::Batch;
use switchyard_types::close::CloseReason;
use switchyard_types::command::{Bytestring, Kind, Publication, Refusal, Space};
use switchyard_types::history::{HistoryOptions, HistoryPage, ResumeOptions, Resumed};
use switchyard_types::history::{HistoryRule, SharedRule};
use switchyard_types::ids::ConnectionId;
use switchyard_types::position::Position;

impl History {
    /// The backplane keeps the histories.
    pub(crate) fn share(&mut self) {
        self.is_shared = true;
    }

    /// Whether the backplane keeps the histories.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// The limits and the rules have changed. Nothing is known of channels with another rule: their
    /// streams may be others.
    pub(super) fn set_recorded(&self, limits: Limits, old: &ChannelRules) {
        let mut tails = self.tails.lock();
        tails.set_bounds(bounds(limits));
        let rules = self.rules.read();
        tails.retain(|channel| {
            let rule = super::rule(&rules, channel);
            rule.is_some() && rule == super::rule(old, channel)
        });
    }

    /// What happens to publications that the backplane put into streams. The shards of their
    /// channels are locked.
    pub(crate) fn arrivals(
        &self,
        publications: &[(ConnectionId, Publication<'_>)],
    ) -> Batch<Option<Arrival>> {
        let has_place = |(_, publication): &(ConnectionId, Publication<'_>)| {
            publication.options.as_ref().is_some_and(|options| options.place.is_some())
        };
        if !(self.is_shared && self.is_on() && publications.iter().any(has_place)) {
            return Batch::new();
        }
        let mut tails = self.tails.lock();
        let arrivals = publications
            .iter()
            .map(|(_, publication)| {
                let options = publication.options.as_ref()?;
                let place = options.place.as_ref()?;
                let entry = || {
                    let tags = options.tags.as_deref();
                    let (payload, unix_ms) = (&publication.payload, place.unix_ms);
                    Entry::restored(payload, options.version, tags, unix_ms)
                };
                Some(tails.arrive(&publication.channel, place, entry))
            })
            .collect();
        drop(tails);
        self.hole_noticed.notify_one();
        arrivals
    }

    /// The rule of a channel for the backplane; none: it has no history.
    pub fn shared_rule(&self, channel: &[u8]) -> Option<SharedRule> {
        let rule = self.rule(channel)?;
        Some(SharedRule { rule, since_us: self.past_rules.read().since_us(channel) })
    }

    /// How long the answer to a publication with a key is remembered.
    pub fn key_time(&self) -> Duration {
        Duration::from_millis(self.key_ms.load(Ordering::Relaxed))
    }

    /// The shortest time after which a stream without listeners may end, in milliseconds.
    pub fn idle_ms_min(&self) -> u64 {
        let rules = self.rules.read();
        let idle = rules.rules().iter().filter_map(|rule| Some(rule.history?.idle_ms));
        idle.min().unwrap_or(u64::MAX)
    }

    /// The rules of all histories.
    pub fn history_rules(&self) -> Vec<HistoryRule> {
        self.rules.read().rules().iter().filter_map(|rule| rule.history).collect()
    }

    /// The channels of these whose streams must be looked at before this node can say from where on
    /// it receives everything.
    pub fn unknown<'a>(&self, channels: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
        if !(self.is_shared && self.is_on()) {
            return Vec::new();
        }
        let tails = self.tails.lock();
        channels
            .filter(|channel| self.rule(channel).is_some() && !tails.is_known(channel))
            .map(<[u8]>::to_vec)
            .collect()
    }

    /// This node is subscribed to the channel by its name since before its stream was at `head`.
    pub fn know(&self, channel: &[u8], head: Position) {
        self.tails.lock().know(channel, head);
    }

    /// This node is no longer subscribed to these channels by their names.
    pub fn forget<'a>(&self, channels: impl Iterator<Item = &'a [u8]>) {
        if self.is_shared && self.is_on() {
            let mut tails = self.tails.lock();
            channels.for_each(|channel| tails.forget(channel));
        }
    }

    /// The connection to the backplane was lost.
    pub fn lose_link(&self) {
        self.tails.lock().lose_link();
    }

    /// Begins to catch up on all channels that may have missed messages while the connection to the
    /// backplane was lost.
    pub fn doubt_all(&self) {
        while self.tails.lock().doubt(super::WORK_MAX) {
            self.hole_noticed.notify_one();
        }
    }

    /// Channels to catch up on, each with the position after which messages are missing. Waits until
    /// there are some.
    pub async fn holes(&self, channels_max: usize) -> Vec<(Arc<[u8]>, Position)> {
        loop {
            let holes = self.tails.lock().take_holes(channels_max);
            if !holes.is_empty() {
                return holes;
            }
            self.hole_noticed.notified().await;
        }
    }

    /// The backplane did not answer: the channel is tried again.
    pub fn not_caught_up(&self, channel: &[u8]) {
        self.tails.lock().not_caught_up(channel);
        self.hole_noticed.notify_one();
    }

    /// The channels that this node subscribes to by their names.
    pub fn followed(&self) -> Vec<Arc<[u8]>> {
        self.tails.lock().channels()
    }
}

/// How much is recorded of a channel for connections that resume.
pub(super) fn bounds(limits: Limits) -> Bounds {
    Bounds { messages: limits.resume_messages_max, bytes: limits.resume_bytes_max }
}

/// A connection that resumes: what is delivered in the meantime is recorded while this exists.
pub struct Resuming {
    hub: Arc<Hub>,
    channel: Vec<u8>,
    /// Over which connection to the backplane.
    begun: u64,
}

impl Drop for Resuming {
    fn drop(&mut self) {
        self.hub.history.tails.lock().end_resume(&self.channel);
    }
}

impl Hub {
    /// What a RESUME asks the backplane for.
    ///
    /// # Errors
    ///
    /// An option is not within the limits.
    pub fn resume_request(&self, options: ResumeOptions) -> Result<Resume, Refusal> {
        let last = within("last", options.last, self.history.limits())?;
        let ResumeOptions { position, since_ms, .. } = options;
        Ok(Resume { position, last, since_ms, is_listening: false })
    }

    /// A connection is about to resume on a channel.
    pub fn begin_resume(self: &Arc<Hub>, channel: &[u8]) -> Resuming {
        let begun = self.history.tails.lock().begin_resume(channel);
        Resuming { hub: self.clone(), channel: channel.to_vec(), begun }
    }

    /// As `resume`, with what was found in the backplane while `resuming` existed.
    ///
    /// # Errors
    ///
    /// The channel has no history, the engine is not available, or there is no room for the name;
    /// then nothing has changed.
    pub fn finish_resume(
        &self,
        filter: &dyn DeliveryFilter,
        connection: &Connection,
        resuming: &Resuming,
        request: &Resume,
        found: Found,
        acknowledge: impl FnOnce(Resumed, &Missed),
    ) -> Result<(), Refusal> {
        let channel: Bytestring<'_> = resuming.channel.as_slice().into();
        self.history.check(&channel)?;
        self.subscribe_with(
            connection,
            Kind::Channel,
            std::slice::from_ref(&channel),
            |_| {
                let subscriptions = connection.subscriptions();
                let is_listening = subscriptions.of(Kind::Channel).contains(&*channel);
                drop(subscriptions);
                let found = self.meet(
                    (connection.id, resuming.begun),
                    &channel,
                    request,
                    found,
                    is_listening,
                );
                Ok(resumed(found, filter, &channel, connection))
            },
            |_, listening, resumed| {
                if let Some((reply, missed)) = resumed {
                    self.history.count_resume(&reply);
                    acknowledge(Resumed { listening, ..reply }, &missed);
                }
            },
        )
    }

    /// Joins what was read for a RESUME with what this node has delivered since.
    fn meet(
        &self,
        connection: (ConnectionId, u64),
        channel: &[u8],
        request: &Resume,
        mut found: Found,
        is_listening: bool,
    ) -> Found {
        let mut tails = self.history.tails.lock();
        if is_listening {
            let position = found.position.max(tails.delivered(channel).unwrap_or_default());
            let reason = Some(Reason::Listening);
            return Found { position, recovered: false, reason, messages: Vec::new() };
        }
        let is_alive = |id| self.connections.get(id).is_some();
        let rewinds = request.last.is_some() || request.since_ms.is_some();
        let Meeting { position, between } =
            tails.meet(channel, connection, found.position, is_alive);
        self.history.hole_noticed.notify_one();
        match between {
            Ok(later) => {
                if found.recovered || rewinds {
                    found.messages.extend(later);
                }
                if let (false, Some(last)) = (found.recovered, request.last) {
                    let first = found.messages.len().saturating_sub(last);
                    found.messages.drain(..first);
                }
                found.position = position;
                found
            }
            Err(problem) => {
                let reason = request.position.map(|_| match problem {
                    NoMeeting::Epoch => Reason::Epoch,
                    NoMeeting::Many => Reason::Many,
                });
                Found { position, recovered: false, reason, messages: Vec::new() }
            }
        }
    }

    /// What a HISTORY asks the backplane for.
    ///
    /// # Errors
    ///
    /// An option is not within the limits.
    pub fn look_request(&self, options: HistoryOptions) -> Result<Look, Refusal> {
        let limits = self.history.limits();
        let limit = within("limit", options.limit, limits)?;
        let HistoryOptions { after, before, until, is_reverse, .. } = options;
        let page_max = super::PAGE_MESSAGES.min(limits.resume_messages_max as u64) as usize;
        Ok(Look { after, before, until, limit: limit.unwrap_or(page_max), reverse: is_reverse })
    }

    /// Answers a HISTORY with a page, as the filter lets the connection see it.
    pub fn answer_page<T>(
        &self,
        filter: &dyn DeliveryFilter,
        connection: &Connection,
        channel: &[u8],
        page: Page,
        has_times: bool,
        answer: impl FnOnce(&HistoryPage<'_>) -> T,
    ) -> T {
        let missed = Missed::new(page.messages, filter, channel, connection);
        let messages: Vec<_> = missed.messages().collect();
        answer(&HistoryPage {
            position: page.position,
            messages: &messages,
            next: page.next,
            has_gap: page.gap,
            has_times,
        })
    }

    /// How many deliveries a publication on this channel has on this node now.
    ///
    /// # Errors
    ///
    /// The engine is not available.
    pub fn receivers(&self, space: Space, channel: &[u8]) -> Result<u64, Refusal> {
        let mut shard = self.shard(space, channel).lock();
        let ranges = shard.route(self, std::iter::once(channel))?;
        let groups = ranges.first().into_iter().flat_map(|range| shard.groups(range));
        Ok(groups.map(|(_, ids)| ids.len() as u64).sum())
    }

    /// Everything of a channel up to `head` was read from the backplane and delivered. Returns
    /// whether that is all that was missing; otherwise there is more to read.
    pub fn caught_up(&self, channel: &[u8], head: Position) -> bool {
        let _shard = self.shard(Space::Channels, channel).lock();
        self.history.tails.lock().caught_up(channel, head)
    }

    /// Some of what the subscribers of a channel missed is gone: closes them, so that they reconnect
    /// and find out. `only_named`: not those of patterns. Returns how many there are.
    pub fn close_listeners(&self, channel: &[u8], head: Position, only_named: bool) -> usize {
        let mut shard = self.shard(Space::Channels, channel).lock();
        self.history.tails.lock().give_up(channel, head);
        let Ok(ranges) = shard.route(self, std::iter::once(channel)) else { return 0 };
        let mut closed: Vec<ConnectionId> = Vec::new();
        for (pattern, ids) in ranges.first().into_iter().flat_map(|range| shard.groups(range)) {
            if pattern.is_none() || !only_named {
                closed.extend(ids);
            }
        }
        closed.sort_unstable();
        closed.dedup();
        for id in &closed {
            if let Some(connection) = self.connections.get(*id) {
                connection.outbox.close(CloseReason::MissedMessages);
            }
        }
        closed.len()
    }
}
