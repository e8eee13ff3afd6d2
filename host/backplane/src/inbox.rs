//! Messages from the backplane that are to be delivered on this node, in order.
//!
//! The link's tasks fill it. One task empties it in batches, because a batch shares locks and
//! engine calls. A task that would exceed the limit delivers what is queued first: this puts
//! back-pressure on the backplane and bounds the memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use super::BackplaneStats;
use super::rooms::receive_of_room;
use switchyard_config::limits::LiveLimits;
use switchyard_history::Message;
use switchyard_hub::Hub;
use switchyard_middleware::Middleware;
use switchyard_telemetry::log::Throttle;
use switchyard_telemetry::panics;
use switchyard_telemetry::stats::count;
use switchyard_telemetry::supervise::Ended;
use switchyard_types::close::clip;
use switchyard_types::command::{Publication, Space};
use switchyard_types::history::{PublishOptions, StreamPlace};
use switchyard_types::ids::ConnectionId;

/// The publisher of messages from other nodes: no connection of this node.
const NO_CONNECTION: ConnectionId = 0;

/// How many messages one batch delivers.
const BATCH_MAX: usize = 128;

/// How much of a channel's name the log shows, in bytes.
const CHANNEL_SHOWN_MAX: usize = 256;

/// A message from another node.
#[derive(Debug)]
pub struct Incoming {
    pub space: Space,
    pub channel: Bytes,
    pub payload: Bytes,
    /// Where the backplane put it in the stream of its channel; none: it is not retained.
    pub place: Option<StreamPlace>,
    /// Its tags: a JSON object of texts.
    pub tags: Option<Box<[u8]>>,
}

/// The queue.
pub struct Inbox {
    queue: Mutex<Waiting>,
    /// Held while a batch is delivered: one at a time, for the order.
    delivering: Mutex<()>,
    filled: Notify,
    /// Set before the first message arrives.
    receivers: Mutex<Option<(Arc<Hub>, Arc<Middleware>)>>,
    bytes_max: usize,
    limits: Arc<LiveLimits>,
    stats: Arc<BackplaneStats>,
    /// For log lines about messages over a limit.
    throttle: Mutex<Throttle>,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Incoming>,
    bytes: usize,
}

impl Inbox {
    pub fn new(
        bytes_max: usize,
        limits: Arc<LiveLimits>,
        stats: Arc<BackplaneStats>,
    ) -> Arc<Inbox> {
        Arc::new(Inbox {
            queue: Mutex::default(),
            delivering: Mutex::default(),
            filled: Notify::new(),
            receivers: Mutex::default(),
            bytes_max,
            limits,
            stats,
            throttle: Mutex::default(),
        })
    }

    /// Sets the hub and the middleware that receive the publications.
    pub fn deliver_to(&self, hub: &Arc<Hub>, middleware: &Arc<Middleware>) {
        *self.receivers.lock() = Some((hub.clone(), middleware.clone()));
    }

    /// Queues a message. Over the limit, the caller delivers what is queued first.
    pub fn push(&self, message: Incoming) {
        let is_oversized = message.payload.len() > self.limits.payload_bytes_max()
            || message.channel.len() > self.limits.name_bytes_max();
        // A retained message would be read again from the backplane, because it is missing here.
        if is_oversized && message.place.is_none() {
            count(&self.stats.oversized);
            self.warn_of_oversized(&message);
            return;
        }
        count(&self.stats.received);
        let mut is_full = {
            let mut queue = self.queue.lock();
            queue.bytes += bytes(&message);
            queue.messages.push_back(message);
            queue.bytes > self.bytes_max
        };
        self.filled.notify_one();
        while is_full {
            let Some((hub, middleware)) = self.receivers.lock().clone() else { return };
            self.deliver_some(&hub, &middleware);
            is_full = self.queue.lock().bytes > self.bytes_max;
        }
    }

    fn warn_of_oversized(&self, message: &Incoming) {
        if self.throttle.lock().is_due() {
            warn!(
                channel = %clip(&String::from_utf8_lossy(&message.channel), CHANNEL_SHOWN_MAX),
                payload_bytes = message.payload.len(),
                "a message from the backplane is over limits.payload_bytes_max or \
                 limits.name_bytes_max and was dropped; more are counted as oversized"
            );
        }
    }

    /// Delivers queued messages, forever.
    pub async fn deliver(self: Arc<Inbox>, hub: Arc<Hub>, middleware: Arc<Middleware>) -> Ended {
        loop {
            while self.deliver_some(&hub, &middleware) {
                // Let the connection tasks of this thread run.
                tokio::task::yield_now().await;
            }
            self.filled.notified().await;
        }
    }

    /// Delivers the first messages of the queue. Returns false if it was empty.
    fn deliver_some(&self, hub: &Hub, middleware: &Middleware) -> bool {
        let _in_order = self.delivering.lock();
        let batch: Vec<Incoming> = {
            let mut queue = self.queue.lock();
            let mut work = hub.holdings().work();
            let is_little = |message: &&Incoming| work.take(&message.channel);
            let length = queue.messages.iter().take(BATCH_MAX).take_while(is_little).count();
            let batch: Vec<Incoming> = queue.messages.drain(..length).collect();
            queue.bytes -= batch.iter().map(bytes).sum::<usize>();
            batch
        };
        if batch.is_empty() {
            return false;
        }
        // What is lost by a panic is this batch, and not the link or the task that delivers it.
        if panics::contain(|| self.deliver_batch(&batch, hub, middleware)).is_none() {
            self.stats.undelivered.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
        true
    }

    /// Delivers messages that were read from the history of a channel, because they had not arrived.
    pub fn deliver_read(
        &self,
        channel: &[u8],
        messages: &[Message],
        hub: &Hub,
        middleware: &Middleware,
    ) {
        let mut previous = 0;
        let batch: Vec<Incoming> = messages
            .iter()
            .map(|Message { position, entry }| {
                let place = StreamPlace {
                    position: *position,
                    previous: std::mem::replace(&mut previous, position.offset),
                    unix_ms: entry.unix_ms(),
                    is_read: true,
                };
                Incoming {
                    space: Space::Channels,
                    channel: Bytes::copy_from_slice(channel),
                    payload: Bytes::copy_from_slice(entry.payload()),
                    place: Some(place),
                    tags: entry.tags().map(Box::from),
                }
            })
            .collect();
        for batch in batch.chunks(BATCH_MAX) {
            let _in_order = self.delivering.lock();
            if panics::contain(|| self.deliver_batch(batch, hub, middleware)).is_none() {
                self.stats.undelivered.fetch_add(batch.len() as u64, Ordering::Relaxed);
            }
        }
    }

    fn deliver_batch(&self, batch: &[Incoming], hub: &Hub, middleware: &Middleware) {
        let chain = middleware.chain();
        let publications: Vec<(ConnectionId, Publication<'_>)> = batch
            .iter()
            .filter(|message| !receive_of_room(hub, &message.channel, &message.payload))
            .filter(|message| {
                // Plugins take names as text.
                let fits = !chain.sees_names() || std::str::from_utf8(&message.channel).is_ok();
                if !fits {
                    count(&self.stats.undelivered);
                }
                fits
            })
            .map(|Incoming { space, channel, payload, place, tags }| {
                let (channel, payload) = (channel.as_ref().into(), payload.as_ref().into());
                let options = place.map(|place| {
                    let tags = tags.clone();
                    Box::new(PublishOptions { place: Some(place), tags, ..Default::default() })
                });
                let publication = Publication { space: *space, channel, payload, options };
                (NO_CONNECTION, publication)
            })
            .collect();
        for outcome in hub.publish(&*chain, &publications) {
            if outcome.deliveries.is_err() {
                count(&self.stats.undelivered);
            }
        }
    }
}

fn bytes(message: &Incoming) -> usize {
    let tags = message.tags.as_ref().map_or(0, |tags| tags.len());
    message.channel.len() + message.payload.len() + tags + size_of::<Incoming>()
}
