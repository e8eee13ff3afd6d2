//! Reads from the backplane what this node missed of channels with history, and delivers it before
//! anything newer. What is gone cannot be delivered: the subscribers are closed, so that they come
//! back and ask for it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tracing::{debug, info, warn};

use super::interest::Name;
use super::{Backplane, LinkError, On, channels, within};
use switchyard_history::{Look, Page};
use switchyard_hub::Hub;
use switchyard_telemetry::stats::count;
use switchyard_types::history::SharedRule;
use switchyard_types::position::Position;

/// How many channels are read at once.
const CONCURRENT_MAX: usize = 32;
/// How many channels are taken from the list at once.
const CHANNELS_MAX: usize = 1_024;
/// How often streams with listeners are kept from ending, at most and at least. Between them, three
/// times in the shortest idle time.
const KEEP_MIN: Duration = Duration::from_secs(1);
const KEEP_MAX: Duration = Duration::from_secs(60);

impl Backplane {
    /// Catches up on channels with holes until the link fails.
    pub(super) async fn catch_up(&self, on: On<'_>) -> LinkError {
        loop {
            let holes = on.hub.history().holes(CHANNELS_MAX).await;
            let mut catching_up = stream::iter(holes)
                .map(|(channel, after)| self.catch_up_on(on, channel, after))
                .buffer_unordered(CONCURRENT_MAX);
            let mut failure = None;
            while let Some(outcome) = catching_up.next().await {
                if let Err((channel, problem)) = outcome {
                    on.hub.history().not_caught_up(&channel);
                    failure = Some(problem);
                }
            }
            if let Some(problem) = failure {
                return problem;
            }
        }
    }

    /// Reads and delivers what is after a position.
    async fn catch_up_on(
        &self,
        on: On<'_>,
        channel: Arc<[u8]>,
        mut after: Position,
    ) -> Result<(), (Arc<[u8]>, LinkError)> {
        let history = on.hub.history();
        loop {
            let Some(rule) = history.shared_rule(&channel) else {
                history.forget(std::iter::once(&*channel));
                return Ok(());
            };
            let Some(store) = self.store() else {
                let problem = LinkError::Failed("the backplane is disconnected".to_owned());
                return Err((channel, problem));
            };
            let limits = history.limits();
            let look = Look { after: Some(after), limit: usize::MAX, ..Look::default() };
            let reading = store.look((&channel, rule), &look, limits);
            let page = within(self.config.answer_time, reading).await;
            let Page { position, messages, next, gap } = match page {
                Ok(page) => page,
                // Another program has changed its key. Other channels are not affected.
                Err(LinkError::Refused(problem)) => {
                    count(&self.stats.lost_streams);
                    let closed = on.hub.close_listeners(&channel, after, false);
                    warn!(
                        problem,
                        closed,
                        "the history of a channel cannot be read: its subscribers are closed"
                    );
                    return Ok(());
                }
                Err(problem) => return Err((channel, problem)),
            };
            if gap {
                count(&self.stats.lost_streams);
                let closed = on.hub.close_listeners(&channel, position, false);
                info!(
                    closed,
                    "messages of a channel were missed and are gone: its subscribers are closed"
                );
                return Ok(());
            }
            self.stats
                .caught_up
                .fetch_add(messages.len() as u64, std::sync::atomic::Ordering::Relaxed);
            self.inbox.deliver_read(&channel, &messages, on.hub, on.middleware);
            if let Some(last) = messages.last() {
                after = last.position;
            }
            if next.is_none() && on.hub.caught_up(&channel, position) {
                return Ok(());
            }
            // Other tasks of the link go on, and so does the delivery.
            tokio::task::yield_now().await;
        }
    }

    /// Notes at which positions the streams of these channels are, which this node has just
    /// subscribed to. `is_restored`: the link is new, and subscribers that are there already may have
    /// missed messages.
    pub(super) async fn look_at_heads(
        &self,
        hub: &Hub,
        names: &[Name],
        is_restored: bool,
    ) -> Result<(), LinkError> {
        let history = hub.history();
        let unknown = history.unknown(channels(names));
        let ruled: Vec<(&[u8], SharedRule)> = unknown
            .iter()
            .filter_map(|channel| Some((channel.as_slice(), history.shared_rule(channel)?)))
            .collect();
        let Some(store) = self.store().filter(|_| !ruled.is_empty()) else { return Ok(()) };
        let heads = within(self.config.answer_time, store.heads(&ruled)).await?;
        for ((channel, _), head) in ruled.into_iter().zip(heads) {
            let Some(head) = head else { continue };
            history.know(channel, head);
            if is_restored {
                let closed = hub.close_listeners(channel, head, true);
                debug!(closed, "subscribers were closed: they may have missed messages");
            }
        }
        Ok(())
    }

    /// Keeps the streams from ending that this node has subscribers of, until the link fails.
    pub(super) async fn keep_streams(&self, hub: &Hub) -> LinkError {
        loop {
            let history = hub.history();
            let followed = history.followed();
            let ruled: Vec<(&[u8], SharedRule)> = followed
                .iter()
                .filter_map(|channel| Some((&**channel, history.shared_rule(channel)?)))
                .collect();
            if let Some(store) = self.store() {
                for ruled in ruled.chunks(CHANNELS_MAX) {
                    let keeping = store.keep(ruled);
                    if let Err(problem) = within(self.config.answer_time, keeping).await {
                        return problem;
                    }
                }
            }
            let wait = Duration::from_millis(history.idle_ms_min() / 3).clamp(KEEP_MIN, KEEP_MAX);
            tokio::time::sleep(wait).await;
        }
    }

    /// The rules of channels have changed: all names are subscribed to again, with positions where
    /// there are some.
    pub fn rules_changed(&self) {
        self.interest.again();
    }
}
