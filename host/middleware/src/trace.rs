//! Traces single messages: the decision of each plugin about them.
//!
//! Without a subscriber, which is the usual case, tracing costs one relaxed load a burst. Each
//! subscriber has a bounded queue; events that do not fit are dropped and counted, so that no
//! publisher waits for a subscriber. Events never contain payloads, only their lengths.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use guest_core::glob;
use parking_lot::RwLock;
use tokio::sync::mpsc;

use super::stats::{Hook, Verdict};
use switchyard_types::command::Refusal;
use switchyard_types::ids::ConnectionId;

/// A plugin's decision about one item.
#[derive(Debug, Clone)]
pub struct TraceEvent {
    /// The time of the decision.
    pub at: SystemTime,
    /// The connection that the item belongs to.
    pub connection: ConnectionId,
    /// The action: `publish`, `subscribe`, `psubscribe`, `deliver` or `authenticate`.
    pub action: &'static str,
    /// The channel or pattern, as the plugin saw it; none: it is not about one.
    pub channel: Option<Box<[u8]>>,
    /// The channel that the plugin changed it to.
    pub channel_after: Option<Box<[u8]>>,
    /// The plugin, as in refusals.
    pub plugin: Arc<str>,
    /// The hook.
    pub hook: Hook,
    /// The decision.
    pub verdict: Verdict,
    /// The code and message of the refusal.
    pub refusal: Option<(String, String)>,
    /// How long the call took.
    pub took: Duration,
    /// How many items the call had.
    pub items: usize,
    /// The length of the payload before and after.
    pub bytes: Option<(usize, usize)>,
    /// The number of recipients before and after.
    pub recipients: Option<(usize, usize)>,
}

/// The filter of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The commands and publications of this connection.
    Connection(ConnectionId),
    /// Items on channels that match.
    Channel(String),
}

impl Wanted {
    fn matches(&self, connection: ConnectionId, channels: [Option<&[u8]>; 2]) -> bool {
        match self {
            Wanted::Connection(wanted) => connection == *wanted,
            Wanted::Channel(pattern) => channels
                .into_iter()
                .flatten()
                .any(|channel| glob::matches(pattern.as_bytes(), channel)),
        }
    }
}

/// The trace subscriptions.
pub struct Tracer {
    /// The number of subscribers. Read first, so that tracing costs nothing without any.
    subscription: AtomicUsize,
    filters: RwLock<Vec<Arc<TraceFilter>>>,
    filters_max: usize,
    queue_max: usize,
}

struct TraceFilter {
    wanted: Wanted,
    queue: mpsc::Sender<TraceEvent>,
    dropped: Arc<AtomicU64>,
}

impl Tracer {
    /// A tracer with this many subscriptions at most, each with a queue of this length.
    pub fn new(filters_max: usize, queue_max: usize) -> Tracer {
        Tracer {
            subscription: AtomicUsize::new(0),
            filters: RwLock::default(),
            filters_max,
            queue_max,
        }
    }

    /// Whether there are subscriptions.
    pub fn is_used(&self) -> bool {
        self.subscription.load(Ordering::Relaxed) > 0
    }

    /// The number of subscriptions.
    pub fn count(&self) -> usize {
        self.subscription.load(Ordering::Relaxed)
    }

    /// Adds a subscription. None: there are as many as there may be.
    pub fn look(self: &Arc<Tracer>, wanted: Wanted) -> Option<TraceSubscription> {
        let mut filters = self.filters.write();
        if filters.len() >= self.filters_max {
            return None;
        }
        let (queue, events) = mpsc::channel(self.queue_max);
        let dropped = Arc::<AtomicU64>::default();
        let filter = Arc::new(TraceFilter { wanted, queue, dropped: dropped.clone() });
        filters.push(filter.clone());
        self.subscription.store(filters.len(), Ordering::Relaxed);
        Some(TraceSubscription { events, dropped, filter, tracer: self.clone() })
    }

    /// Whether the filter of any trace matches an item of this connection with this channel
    /// and the channel that replaced it.
    pub fn is_wanted(&self, connection: ConnectionId, channels: [Option<&[u8]>; 2]) -> bool {
        let filters = self.filters.read();
        filters.iter().any(|filter| filter.wanted.matches(connection, channels))
    }

    /// Sends an event to the subscriptions that want it. Never waits for them.
    pub fn show(&self, event: &TraceEvent) {
        let channels = [event.channel.as_deref(), event.channel_after.as_deref()];
        for filter in self.filters.read().iter() {
            if filter.wanted.matches(event.connection, channels)
                && filter.queue.try_send(event.clone()).is_err()
            {
                filter.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Reports a call to the traces.
pub(super) struct Call<'a> {
    pub plugin: &'a Arc<str>,
    pub hook: Hook,
    pub took: Duration,
    pub items: usize,
}

/// One item of a call, and the decision about it.
#[derive(Default)]
pub(super) struct Seen<'a> {
    pub action: &'static str,
    pub channel: Option<&'a [u8]>,
    pub channel_after: Option<&'a [u8]>,
    pub verdict: Verdict,
    pub refusal: Option<&'a Refusal>,
    pub bytes: Option<(usize, usize)>,
    pub recipients: Option<(usize, usize)>,
}

impl Call<'_> {
    /// Sends the item to the traces whose filter matches. The caller checks `is_wanted`, because this
    /// copies the item.
    pub fn show(&self, tracer: &Tracer, connection: ConnectionId, seen: Seen<'_>) {
        tracer.show(&TraceEvent {
            at: SystemTime::now(),
            connection,
            action: seen.action,
            channel: seen.channel.map(Box::from),
            channel_after: seen.channel_after.map(Box::from),
            plugin: self.plugin.clone(),
            hook: self.hook,
            verdict: seen.verdict,
            refusal: seen
                .refusal
                .map(|refusal| (refusal.code.to_string(), refusal.message.to_string())),
            took: self.took,
            items: self.items,
            bytes: seen.bytes,
            recipients: seen.recipients,
        });
    }
}

/// A trace subscription, until it is dropped.
pub struct TraceSubscription {
    events: mpsc::Receiver<TraceEvent>,
    dropped: Arc<AtomicU64>,
    filter: Arc<TraceFilter>,
    tracer: Arc<Tracer>,
}

impl TraceSubscription {
    /// The next event.
    pub async fn next(&mut self) -> Option<TraceEvent> {
        self.events.recv().await
    }

    /// How many were dropped since the last call.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

impl Drop for TraceSubscription {
    fn drop(&mut self) {
        let mut filters = self.tracer.filters.write();
        filters.retain(|filter| !Arc::ptr_eq(filter, &self.filter));
        self.tracer.subscription.store(filters.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(connection: ConnectionId, channel: &str, channel_after: Option<&str>) -> TraceEvent {
        TraceEvent {
            at: SystemTime::UNIX_EPOCH,
            connection,
            action: "publish",
            channel: Some(channel.as_bytes().into()),
            channel_after: channel_after.map(|channel| channel.as_bytes().into()),
            plugin: "p@1".into(),
            hook: Hook::OnPublish,
            verdict: Verdict::Pass,
            refusal: None,
            took: Duration::ZERO,
            items: 1,
            bytes: Some((1, 1)),
            recipients: None,
        }
    }

    #[tokio::test]
    async fn each_sees_what_it_wants_and_no_more_than_fits() {
        let tracer = Arc::new(Tracer::new(2, 2));
        assert!(!tracer.is_used());
        let mut one = tracer.look(Wanted::Connection(1)).expect("there is room");
        let mut news = tracer.look(Wanted::Channel("news.*".to_owned())).expect("there is room");
        assert!(tracer.look(Wanted::Connection(2)).is_none());
        tracer.show(&event(1, "sport", None));
        tracer.show(&event(2, "news.a", None));
        tracer.show(&event(2, "b", Some("news.b")));
        tracer.show(&event(2, "news.c", None));
        assert_eq!(one.next().await.expect("it was shown").channel.as_deref(), Some(&b"sport"[..]));
        assert_eq!(one.take_dropped(), 0);
        assert_eq!(news.next().await.expect("it was shown").connection, 2);
        assert_eq!(news.take_dropped(), 1);
        assert_eq!(news.take_dropped(), 0);
        let is_wanted = |connection, channels: [&str; 2]| {
            tracer.is_wanted(connection, channels.map(|channel| Some(channel.as_bytes())))
        };
        assert!(is_wanted(1, ["a", "b"]) && is_wanted(2, ["a", "news.b"]));
        assert!(!is_wanted(2, ["a", "b"]) && !tracer.is_wanted(2, [None, None]));
        drop(one);
        assert!(tracer.is_used());
        drop(news);
        assert!(!tracer.is_used());
    }
}
