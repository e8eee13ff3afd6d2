//! The histories of channels, and the answers to publications with a key.
//!
//! A publication is appended while the shard of its channel is locked, after everything that could
//! refuse it and before the first outbox, so that positions rise in the order of delivery. Streams
//! and keys belong to the host: replacing or rebuilding engines and plugins does not change them.

mod past_rules;
mod shared;
mod tails;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};

use past_rules::PastRules;
pub use shared::Resuming;
pub(crate) use tails::Arrival;
use tails::Tails;

use super::clock::unix_us;
use super::connections::Connection;
use super::filter::{Delivery, DeliveryFilter, Extras};
use super::{Hub, Unavailable};
use crate::stats::EngineCall;
use guest_core::Names;
use switchyard_config::{ChannelRules, HistoryConfig};
use switchyard_history::{
    Claims, KeyLimits, Keys, Limits, Message, Reason, Resolver, Resume, Resumed as Found, Streams,
    Totals,
};
use switchyard_history_store::Store;
use switchyard_telemetry::supervise::Ended;
use switchyard_types::command::{BADVALUE, Bytestring, Kind, NOHISTORY, Published, Refusal, Space};
use switchyard_types::history::{
    HistoryOptions, HistoryPage, HistoryRule, ResumeOptions, Resumed, RetainedMessage,
};

/// How many messages a page of HISTORY has unless the client says otherwise.
const PAGE_MESSAGES: u64 = 100;
/// How many streams or keys are looked at while their lock is held.
const WORK_MAX: usize = 200;
/// How often what is over is removed.
const INTERVAL: Duration = Duration::from_millis(100);

/// What may become of a RESUME: recovered, without a position, or the reasons.
const OUTCOMES: [&str; 6] = ["recovered", "first", "epoch", "trimmed", "many", "listening"];

/// The histories of all channels.
pub struct History {
    /// Whether any channel may have one. Read for each publication.
    is_on: AtomicBool,
    rules: RwLock<ChannelRules>,
    past_rules: RwLock<PastRules>,
    pub(super) streams: Mutex<Streams>,
    pub(super) keys: Mutex<Keys<Published>>,
    /// None: histories are in memory only.
    pub(super) store: OnceLock<Store>,
    /// RESUMEs by outcome, in the order of `OUTCOMES`.
    resumes: [AtomicU64; OUTCOMES.len()],
    /// How long the answer to a publication with a key is remembered.
    key_ms: AtomicU64,
    /// A key was answered or released.
    settled: Condvar,
    /// Whether the backplane keeps the histories, and this node nothing but `tails`.
    is_shared: bool,
    tails: Mutex<Tails>,
    /// A channel has to be caught up on.
    hole_noticed: Notify,
    /// A permit for each connection that may read at the same time.
    readers: Arc<Semaphore>,
}

impl History {
    /// No channel has a history.
    pub(super) fn new() -> History {
        const KEYS: KeyLimits = KeyLimits { idempotency_ms: 300_000, keys_max: 100_000 };
        let rules = ChannelRules::default();
        History {
            is_on: AtomicBool::new(false),
            streams: Mutex::new(Streams::new(Limits::DEFAULT, resolver(&rules))),
            rules: RwLock::new(rules),
            past_rules: RwLock::default(),
            keys: Mutex::new(Keys::new(KEYS)),
            store: OnceLock::new(),
            resumes: [const { AtomicU64::new(0) }; OUTCOMES.len()],
            key_ms: AtomicU64::new(KEYS.idempotency_ms),
            settled: Condvar::new(),
            is_shared: false,
            tails: Mutex::new(Tails::new(shared::bounds(Limits::DEFAULT))),
            hole_noticed: Notify::new(),
            readers: Arc::new(Semaphore::new(available_parallelism().map_or(1, usize::from))),
        }
    }

    /// Sets limits and rules. They hold at once for every access; memory is given back in steps,
    /// until this returns.
    pub fn set(&self, config: &HistoryConfig, rules: &ChannelRules) {
        let limits = Limits {
            bytes_max: config.bytes_max,
            channels_max: config.channels_max,
            resume_messages_max: config.resume_messages_max,
            resume_bytes_max: config.resume_bytes_max,
        };
        let old = self.rules.read().clone();
        {
            let mut streams = self.streams.lock();
            streams.set_limits(limits);
            let mut held = self.rules.write();
            if self.is_shared {
                self.past_rules.write().replace(&held, rules, unix_us());
            }
            if *held != *rules {
                streams.set_rules(resolver(rules), unix_us());
                *held = rules.clone();
            }
            let has_history = rules.rules().iter().any(|rule| rule.history.is_some());
            self.is_on.store(has_history, Ordering::Relaxed);
        }
        let idempotency_ms = config.idempotency_time.as_millis() as u64;
        self.key_ms.store(idempotency_ms, Ordering::Relaxed);
        self.keys
            .lock()
            .set_limits(KeyLimits { idempotency_ms, keys_max: config.idempotency_keys_max });
        self.set_recorded(limits, &old);
        while !self.streams.lock().apply_rules(unix_us(), WORK_MAX).is_done {
            std::thread::yield_now();
        }
    }

    /// A permit for each connection that may read histories at the same time.
    pub fn readers(&self) -> &Arc<Semaphore> {
        &self.readers
    }

    /// Whether any channel may have a history.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// The rule of a channel; none: it has no history.
    pub fn rule(&self, channel: &[u8]) -> Option<HistoryRule> {
        match self.is_on() {
            true => rule(&self.rules.read(), channel),
            false => None,
        }
    }

    /// Whether a channel has a history.
    ///
    /// # Errors
    ///
    /// It has none.
    pub fn check(&self, channel: &[u8]) -> Result<(), Refusal> {
        self.rule(channel).map(|_| ()).ok_or_else(no_history)
    }

    /// The limits of RESUME and HISTORY.
    pub fn limits(&self) -> Limits {
        self.streams.lock().limits()
    }

    /// Notes that a connection is subscribed to this channel, or no longer. The shard of the channel
    /// is locked.
    pub(super) fn listening(&self, kind: Kind, channel: &[u8], change: i32) {
        if kind == Kind::Channel && self.is_on() && !self.is_shared {
            self.streams.lock().listening(channel, change, unix_us());
        }
    }

    /// The totals of all histories.
    pub fn totals(&self) -> Totals {
        self.streams.lock().totals()
    }

    /// Up to `limit` streams of this node, after the one with this name.
    pub fn list(&self, after: Option<&[u8]>, limit: usize) -> switchyard_history::ListedPage {
        self.streams.lock().list(after, limit, unix_us())
    }

    /// Ends the stream of a channel on this node. Returns how many messages it held.
    pub fn purge(&self, channel: &[u8]) -> u64 {
        self.streams.lock().purge(channel, unix_us()).unwrap_or(0) as u64
    }

    /// RESUMEs by outcome.
    pub fn resumes(&self) -> [(&'static str, u64); OUTCOMES.len()] {
        std::array::from_fn(|index| {
            let count = self.resumes.get(index).map_or(0, |count| count.load(Ordering::Relaxed));
            (OUTCOMES.get(index).copied().unwrap_or_default(), count)
        })
    }

    /// How many keys are remembered, and how many were forgotten early.
    pub fn keys(&self) -> (usize, u64) {
        let keys = self.keys.lock();
        (keys.len(), keys.forgotten())
    }

    fn count_resume(&self, resumed: &Resumed) {
        let outcome = match resumed.reason {
            Some(reason) => reason,
            None if resumed.is_recovered => "recovered",
            None => "first",
        };
        let index = OUTCOMES.iter().position(|known| *known == outcome);
        if let Some(count) = index.and_then(|index| self.resumes.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Claims the keys of publications, each with its channel. Blocks while one of them is being
    /// published by another thread: for as long as that takes. One claim for each, in order.
    pub fn claim(&self, keys: &[(&[u8], &[u8])]) -> Vec<switchyard_history::Claim<Published>> {
        let mut held = self.keys.lock();
        loop {
            match held.claim(keys, unix_us()) {
                Claims::Claimed(claims) => return claims,
                Claims::Pending => self.settled.wait(&mut held),
            }
        }
    }

    /// Records the answer to a publication whose key was claimed; none: it was refused, and is not
    /// remembered.
    pub fn settle(&self, channel: &[u8], key: &[u8], answer: Option<Published>) {
        let mut keys = self.keys.lock();
        match answer {
            Some(answer) => keys.finish(channel, key, answer, unix_us()),
            None => keys.release(channel, key),
        }
        self.settled.notify_all();
    }

    /// Removes what is over, in steps, forever.
    pub async fn keep(hub: Arc<Hub>) -> Ended {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let history = &hub.history;
            while history.streams.lock().expire(unix_us(), WORK_MAX).work >= WORK_MAX {
                tokio::task::yield_now().await;
            }
            while history.keys.lock().expire(unix_us(), WORK_MAX).work >= WORK_MAX {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// What RESUME returned besides its reply.
pub struct Missed {
    messages: Vec<Message>,
    /// What the filter made of each of them; none: it is not sent.
    payloads: Vec<Option<Option<Vec<u8>>>>,
}

impl Missed {
    pub(super) fn new(
        messages: Vec<Message>,
        filter: &dyn DeliveryFilter,
        channel: &[u8],
        connection: &Connection,
    ) -> Missed {
        let payloads = match filter.has_deliveries() && !messages.is_empty() {
            false => messages.iter().map(|_| Some(None)).collect(),
            true => {
                let deliveries = messages
                    .iter()
                    .map(|Message { position, entry }| {
                        let (version, tags) = (entry.version(), entry.tags());
                        let has_extras = version.is_some() || tags.is_some();
                        let delivery = Delivery {
                            channel,
                            payload: entry.payload().into(),
                            position: Some(*position),
                            extras: has_extras.then_some(Extras { key: None, version, tags }),
                            recipients: vec![connection.id],
                        };
                        (entry.publisher(), delivery)
                    })
                    .collect();
                let edits = filter.deliver(deliveries).into_iter();
                edits
                    .map(|edit| {
                        let edit = edit.ok()?;
                        let is_sent = edit.recipients.is_none_or(|only| !only.is_empty());
                        is_sent.then_some(edit.payload)
                    })
                    .collect()
            }
        };
        Missed { messages, payloads }
    }

    /// The messages that the connection receives, in order.
    pub fn messages(&self) -> impl Iterator<Item = RetainedMessage<'_>> {
        self.messages.iter().zip(&self.payloads).filter_map(|(message, payload)| {
            let Message { position, entry } = message;
            let payload = match payload.as_ref()? {
                Some(payload) => payload.as_slice(),
                None => entry.payload(),
            };
            Some(RetainedMessage {
                position: *position,
                unix_ms: entry.unix_ms(),
                payload: payload.into(),
                tags: entry.tags(),
            })
        })
    }
}

/// The reply to a RESUME, without the count of subscriptions, and the messages that go with it.
fn resumed(
    found: Found,
    filter: &dyn DeliveryFilter,
    channel: &[u8],
    connection: &Connection,
) -> (Resumed, Missed) {
    let messages = Missed::new(found.messages, filter, channel, connection);
    let reply = Resumed {
        listening: 0,
        position: found.position,
        is_recovered: found.recovered,
        missed: messages.messages().count(),
        reason: found.reason.map(Reason::name),
    };
    (reply, messages)
}

impl Hub {
    /// The histories of channels.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Subscribes a connection to a channel, and gives `acknowledge` the reply and the messages that
    /// it missed, as the filter lets it see them. Every message after them arrives after that.
    ///
    /// # Errors
    ///
    /// The channel has no history, an option is not within the limits, the engine is not available,
    /// or there is no room for the name; then nothing has changed.
    pub fn resume(
        &self,
        filter: &dyn DeliveryFilter,
        connection: &Connection,
        channel: &Bytestring<'_>,
        options: ResumeOptions,
        acknowledge: impl FnOnce(Resumed, &Missed),
    ) -> Result<(), Refusal> {
        let request = self.resume_request(options)?;
        self.history.check(channel)?;
        let names = std::slice::from_ref(channel);
        self.subscribe_with(
            connection,
            Kind::Channel,
            names,
            |shard| {
                let subscriptions = connection.subscriptions();
                let is_listening = subscriptions.of(Kind::Channel).contains(&**channel);
                drop(subscriptions);
                let resume = Resume { is_listening, ..request };
                let listeners = self.listeners(shard, channel)?;
                let found =
                    self.history.streams.lock().resume(channel, &resume, || listeners, unix_us());
                // The rules may have changed.
                let found = found.ok_or_else(no_history)?;
                Ok(resumed(found, filter, channel, connection))
            },
            |_, listening, resumed| {
                if let Some((reply, missed)) = resumed {
                    self.history.count_resume(&reply);
                    acknowledge(Resumed { listening, ..reply }, &missed);
                }
            },
        )
    }

    /// What a channel retains, as the filter lets the connection see it.
    ///
    /// # Errors
    ///
    /// The channel has no history, an option is not within the limits, or the engine is not
    /// available.
    pub fn look_back<T>(
        &self,
        filter: &dyn DeliveryFilter,
        connection: &Connection,
        channel: &[u8],
        options: HistoryOptions,
        answer: impl FnOnce(&HistoryPage<'_>) -> T,
    ) -> Result<T, Refusal> {
        let look = self.look_request(options)?;
        self.history.check(channel)?;
        let mut shard = self.shard(Space::Channels, channel).lock();
        let listeners = self.listeners(&mut shard, channel)?;
        let page = self.history.streams.lock().history(channel, &look, || listeners, unix_us());
        drop(shard);
        let page = page.ok_or_else(no_history)?;
        Ok(self.answer_page(filter, connection, channel, page, options.has_times, answer))
    }

    /// How many connections are subscribed to a channel by its name.
    fn listeners(
        &self,
        shard: &mut super::shard::Shard,
        channel: &[u8],
    ) -> Result<u32, Unavailable> {
        let mut names = Names::new();
        names.push(channel);
        let counts = shard
            .call(self, EngineCall::SubscriberCounts, |engine| engine.subscriber_counts(&names))?;
        let count = counts.first().copied().unwrap_or(0);
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }
}

fn rule(rules: &ChannelRules, channel: &[u8]) -> Option<HistoryRule> {
    rules.find(channel)?.1.history
}

fn resolver(rules: &ChannelRules) -> Resolver {
    let rules = rules.clone();
    Arc::new(move |channel| rule(&rules, channel))
}

/// A number of messages, which may not be above the limit.
fn within(name: &str, number: Option<u64>, limits: Limits) -> Result<Option<usize>, Refusal> {
    let max = limits.resume_messages_max;
    match number {
        None => Ok(None),
        Some(number) => match usize::try_from(number).ok().filter(|number| *number <= max) {
            Some(number) => Ok(Some(number)),
            None => {
                let message = format!("{name} is an integer from 1 to {max}");
                Err(Refusal::new(BADVALUE, message))
            }
        },
    }
}

/// The refusal for a channel without history.
pub fn no_history() -> Refusal {
    Refusal::new(NOHISTORY, "the channel has no history: no rule of the server gives it one")
}
