//! What the nodes of a cluster keep together in the backplane: the histories of channels, and the
//! keys of publications.
//!
//! A publication on a channel with history, or with a key, is sent to the backplane first and
//! delivered when it comes back, also on this node. So all nodes have one order of it. All calls
//! here end within `cluster.answer_timeout_ms`.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use super::append::{Append, Ruled};
use super::nats::NatsStore;
use super::redis::RedisStore;
use super::{Backplane, LinkError, within};
use switchyard_history::{Limits, Look, Page, Resume, Resumed};
use switchyard_types::command::{Published, Refusal, TOOLARGE, UNAVAILABLE};
use switchyard_types::position::Position;

/// The part of a connection to the backplane that keeps histories and keys.
#[derive(Clone)]
pub(crate) enum Store {
    Redis(RedisStore),
    Nats(Arc<NatsStore>),
}

impl Store {
    async fn append(&self, appends: &[Append]) -> Vec<Result<Published, LinkError>> {
        match self {
            Store::Redis(store) => store.append(appends).await,
            Store::Nats(store) => store.append(appends).await,
        }
    }

    async fn resume(
        &self,
        channel: Ruled<'_>,
        request: &Resume,
        limits: Limits,
    ) -> Result<Resumed, LinkError> {
        match self {
            Store::Redis(store) => store.resume(channel, request, limits).await,
            Store::Nats(store) => store.resume(channel, request, limits).await,
        }
    }

    pub async fn look(
        &self,
        channel: Ruled<'_>,
        look: &Look,
        limits: Limits,
    ) -> Result<Page, LinkError> {
        match self {
            Store::Redis(store) => store.look(channel, look, limits).await,
            Store::Nats(store) => store.look(channel, look, limits).await,
        }
    }

    /// The positions of the last publications on channels; none: the backplane refused to say.
    pub async fn heads(&self, channels: &[Ruled<'_>]) -> Result<Vec<Option<Position>>, LinkError> {
        match self {
            Store::Redis(store) => store.heads(channels).await,
            Store::Nats(store) => {
                let heads = store.heads(channels).await?;
                Ok(heads.into_iter().map(Some).collect())
            }
        }
    }

    /// Keeps streams from ending: they have listeners.
    pub async fn keep(&self, channels: &[Ruled<'_>]) -> Result<(), LinkError> {
        match self {
            Store::Redis(store) => store.keep(channels).await,
            Store::Nats(store) => store.keep(channels).await,
        }
    }

    async fn known(&self, keys: &[(&[u8], &str)]) -> Vec<Result<Option<Published>, LinkError>> {
        match self {
            Store::Redis(store) => store.known(keys).await,
            Store::Nats(store) => store.known(keys).await,
        }
    }

    async fn remember(
        &self,
        key: (&[u8], &str),
        answer: &Published,
        time: Duration,
    ) -> Result<(), LinkError> {
        match self {
            Store::Redis(store) => store.remember(key, answer, time).await,
            Store::Nats(store) => store.remember(key, answer, time).await,
        }
    }

    async fn purge(&self, channel: &[u8]) -> Result<u64, LinkError> {
        match self {
            Store::Redis(store) => store.purge(channel).await,
            Store::Nats(store) => store.purge(channel).await,
        }
    }
}

impl Backplane {
    /// Has the backplane publish, in order; one result for each. What failed may have been
    /// published nevertheless, unless the backplane refused it.
    pub async fn append(&self, appends: &[Append]) -> Vec<Result<Published, Refusal>> {
        let refuse_all = || appends.iter().map(|_| Err(unavailable())).collect();
        let Some(store) = self.store() else { return refuse_all() };
        // What this node published before goes first.
        let limit = self.config.answer_time;
        let appending = async {
            self.outgoing.empty().await;
            Ok(store.append(appends).await)
        };
        match within(limit, appending).await {
            Ok(results) => results.into_iter().map(|result| result.map_err(refused)).collect(),
            Err(_) => refuse_all(),
        }
    }

    /// The answers to publications with these keys on these channels; none: there was none.
    pub async fn known(&self, keys: &[(&[u8], &str)]) -> Vec<Result<Option<Published>, Refusal>> {
        let refuse_all = || keys.iter().map(|_| Err(unavailable())).collect();
        let Some(store) = self.store() else { return refuse_all() };
        let looking = async { Ok(store.known(keys).await) };
        match within(self.config.answer_time, looking).await {
            Ok(known) => known.into_iter().map(|known| known.map_err(refused)).collect(),
            Err(_) => refuse_all(),
        }
    }

    /// Remembers the answer to a publication with a key, unless there is one.
    pub async fn remember(&self, key: (&[u8], &str), answer: &Published, time: Duration) {
        let Some(store) = self.store() else { return };
        let remembering = store.remember(key, answer, time);
        if let Err(problem) = within(self.config.answer_time, remembering).await {
            debug!(%problem, "the answer to a publication with a key was not remembered");
        }
    }

    /// What a RESUME finds.
    ///
    /// # Errors
    ///
    /// The backplane is not available.
    pub async fn resume(
        &self,
        channel: Ruled<'_>,
        request: &Resume,
        limits: Limits,
    ) -> Result<Resumed, Refusal> {
        let store = self.store().ok_or_else(unavailable)?;
        let resuming = store.resume(channel, request, limits);
        within(self.config.answer_time, resuming).await.map_err(refused)
    }

    /// What a HISTORY finds.
    ///
    /// # Errors
    ///
    /// The backplane is not available.
    pub async fn look(
        &self,
        channel: Ruled<'_>,
        look: &Look,
        limits: Limits,
    ) -> Result<Page, Refusal> {
        let store = self.store().ok_or_else(unavailable)?;
        within(self.config.answer_time, store.look(channel, look, limits)).await.map_err(refused)
    }

    /// Ends the stream of a channel. Returns how many messages it held.
    ///
    /// # Errors
    ///
    /// The backplane is not available.
    pub async fn purge(&self, channel: &[u8]) -> Result<u64, Refusal> {
        let store = self.store().ok_or_else(unavailable)?;
        within(self.config.answer_time, store.purge(channel)).await.map_err(refused)
    }

    pub(crate) fn store(&self) -> Option<Store> {
        self.store.read().clone()
    }
}

fn unavailable() -> Refusal {
    let message = "the backplane, which keeps histories and keys, is disconnected; try again";
    Refusal::new(UNAVAILABLE, message)
}

fn refused(problem: LinkError) -> Refusal {
    if let LinkError::TooLarge(problem) = problem {
        return Refusal::new(TOOLARGE, problem);
    }
    let message = format!("the backplane, which keeps histories and keys, failed: {problem}");
    Refusal::new(UNAVAILABLE, message)
}
