//! One engine, and what keeps it alive.
//!
//! An engine that fails is dropped and rebuilt from the ground state, and the call is made
//! once more; its caller sees a pause. An engine that fails too often in a short time is not
//! called for a while, and calls that need it return `Unavailable`.
//!
//! An engine that is being replaced stays in use while the standby engine receives the ground
//! state, a slice at a time. Changes that occur during this time go to both.

use std::collections::VecDeque;
use std::ops::{Bound, Range};
use std::sync::Arc;
use std::time::Duration;

use guest_core::{FanOuts, Names};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::connections::Connection;
use super::connections::holdings;
use super::stats::{EngineCall, ShardStats};
use super::{Hub, Unavailable};
use crate::engine::{Engine, EngineFactory, EngineFault, Outcome};
use switchyard_config::EngineConfig;
use switchyard_telemetry::panics;
use switchyard_types::batch::Batch;
use switchyard_types::command::Kind;
use switchyard_types::ids::ConnectionId;

/// How long a shard is locked while a part of the ground state is replayed to a standby.
const SLICE_TIME: Duration = Duration::from_millis(1);

/// How many names of one connection are replayed at once: a few tenths of a millisecond.
const SLICE_NAMES_MAX: usize = 1_000;

/// How many bytes of names an engine receives in one call. They are copied into its memory, in
/// addition to what it keeps.
const SLICE_BYTES_MAX: usize = 256 << 10;

/// One of the shards of a name space.
pub struct Shard {
    number: usize,
    code: Arc<dyn EngineFactory>,
    engine: Option<Box<dyn Engine>>,
    /// The pattern that each of the engine's pattern ids stands for.
    patterns: Vec<Box<[u8]>>,
    /// The standby engine, or why it cannot take over.
    standby: Option<Outcome<Successor>>,
    /// When it failed last.
    faults: VecDeque<Instant>,
    given_up_until: Option<Instant>,
    config: EngineConfig,
    /// The counters.
    pub stats: Arc<ShardStats>,
    /// Kept for reuse, like those below.
    names: Names,
    /// The index of each publication's channel name.
    names_of: Vec<usize>,
    fan_outs: FanOuts,
}

/// An engine, and the patterns by its ids.
struct Successor {
    engine: Box<dyn Engine>,
    patterns: Vec<Box<[u8]>>,
}

/// How much of the ground state a standby engine has received.
pub struct ReplayCursor {
    /// The connections that existed when it began to receive every change.
    connections: std::vec::IntoIter<ConnectionId>,
    at: Option<Place>,
}

/// The position in the ground state: the connection, the kind of names, and the last name.
type Place = (ConnectionId, Kind, Option<Box<[u8]>>);

impl ReplayCursor {
    /// At the start. The standby engine receives every change already.
    pub fn nothing(hub: &Hub) -> ReplayCursor {
        let connections: Vec<ConnectionId> = hub.connections.read().keys().copied().collect();
        ReplayCursor { connections: connections.into_iter(), at: None }
    }
}

/// Which groups of the last `route` belong to one publication.
#[derive(Debug, Clone)]
pub struct FanOutRange {
    groups: Range<usize>,
    first_connection: usize,
}

impl Shard {
    /// A shard with a new engine.
    pub fn new(
        number: usize,
        config: &EngineConfig,
        code: Arc<dyn EngineFactory>,
        stats: Arc<ShardStats>,
    ) -> Result<Shard, String> {
        Ok(Shard {
            number,
            engine: Some(code.instantiate()?),
            code,
            patterns: Vec::new(),
            standby: None,
            faults: VecDeque::new(),
            given_up_until: None,
            config: config.clone(),
            stats,
            names: Names::new(),
            names_of: Vec::new(),
            fan_outs: FanOuts::default(),
        })
    }

    /// Calls the engine. After a trap it is rebuilt and called once more. After an overrun it is
    /// not, because all other callers wait, nor after a panic of the host.
    pub fn call<T>(
        &mut self,
        hub: &Hub,
        call: EngineCall,
        mut question: impl FnMut(&mut dyn Engine) -> Outcome<T>,
    ) -> Result<T, Unavailable> {
        for _ in 0..2 {
            let engine = self.ready(hub)?;
            let started = Instant::now();
            let answer = panics::contain(|| question(engine));
            self.stats.called(call, started.elapsed());
            match answer {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(fault)) => {
                    self.failed(hub, &fault);
                    if fault.is_overrun {
                        break;
                    }
                }
                None => {
                    self.failed(hub, &panicked(call.name()));
                    break;
                }
            }
        }
        Err(Unavailable)
    }

    /// Subscribes a connection to names of a kind.
    pub fn subscribe(
        &mut self,
        hub: &Hub,
        connection: ConnectionId,
        kind: Kind,
        names: &Names,
    ) -> Result<(), Unavailable> {
        let call = match kind {
            Kind::Pattern => EngineCall::Psubscribe,
            Kind::Channel | Kind::Shard => EngineCall::Subscribe,
        };
        // A retry calls a new engine, which needs all names again.
        let ids = self.call(hub, call, |engine| {
            let mut ids = Vec::new();
            in_slices(names, |names| {
                match kind {
                    Kind::Pattern => ids.extend(engine.psubscribe(connection, names)?),
                    Kind::Channel | Kind::Shard => engine.subscribe(connection, names)?,
                }
                Ok(())
            })?;
            Ok(ids)
        })?;
        learn(&mut self.patterns, names, &ids);
        self.apply_to_standby(|Successor { engine, patterns }| {
            subscribe(&mut **engine, patterns, connection, kind, names)
        });
        Ok(())
    }

    /// Ends subscriptions. An engine that is not available will be rebuilt without them, because
    /// the ground state no longer has them.
    pub fn unsubscribe(&mut self, hub: &Hub, connection: ConnectionId, kind: Kind, names: &Names) {
        let call = match kind {
            Kind::Pattern => EngineCall::Punsubscribe,
            Kind::Channel | Kind::Shard => EngineCall::Unsubscribe,
        };
        let leave = |engine: &mut dyn Engine| {
            in_slices(names, |names| match kind {
                Kind::Pattern => engine.punsubscribe(connection, names),
                Kind::Channel | Kind::Shard => engine.unsubscribe(connection, names),
            })
        };
        let _rebuilt_without_them = self.call(hub, call, leave);
        self.apply_to_standby(|standby| leave(&mut *standby.engine));
    }

    /// Finds the receivers of a publication on each of these channels. Returns a range for each, to
    /// be read with `groups` before the next call.
    pub fn route<'a>(
        &mut self,
        hub: &Hub,
        channels: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Batch<FanOutRange>, Unavailable> {
        let mut names = std::mem::take(&mut self.names);
        let mut fan_outs = std::mem::take(&mut self.fan_outs);
        names.clear();
        // Channels in a row that are the same are one name.
        let mut names_of = std::mem::take(&mut self.names_of);
        names_of.clear();
        let mut last = None;
        for channel in channels {
            if last.replace(channel) != Some(channel) {
                names.push(channel);
            }
            names_of.push(names.len() - 1);
        }
        let routed =
            self.call(hub, EngineCall::Route, |engine| engine.route(&names, &mut fan_outs));
        let ranges = routed.map(|()| {
            let ranges = ranges(names.len(), &fan_outs);
            match names_of.len() == ranges.len() {
                true => ranges,
                false => names_of.iter().filter_map(|name| ranges.get(*name).cloned()).collect(),
            }
        });
        self.names = names;
        self.names_of = names_of;
        self.fan_outs = fan_outs;
        ranges
    }

    /// The groups of one publication: the pattern (none: the channel itself) and its receivers.
    pub fn groups(
        &self,
        range: &FanOutRange,
    ) -> impl Iterator<Item = (Option<&[u8]>, &[ConnectionId])> {
        let mut start = range.first_connection;
        let groups = self.fan_outs.groups.get(range.groups.clone()).unwrap_or_default();
        groups.iter().filter_map(move |group| {
            let ids = self.fan_outs.connections.get(start..group.end as usize)?;
            start = group.end as usize;
            let pattern = match group.pattern {
                None => None,
                Some(id) => Some(&**self.patterns.get(id as usize)?),
            };
            Some((pattern, ids))
        })
    }

    /// Ensures that there is an engine, unless it is too soon to retry.
    pub fn retry_failed_shards(&mut self, hub: &Hub) -> Result<(), Unavailable> {
        self.ready(hub).map(|_| ())
    }

    /// Sets the standby engine. From now on it receives every change.
    pub fn prepare(&mut self, engine: Box<dyn Engine>) {
        self.standby = Some(Ok(Successor { engine, patterns: Vec::new() }));
    }

    /// Replays a slice of the ground state to the standby. True: it has all of it.
    ///
    /// # Errors
    ///
    /// The standby failed.
    pub fn replay_slice(&mut self, hub: &Hub, cursor: &mut ReplayCursor) -> Outcome<bool> {
        let started = Instant::now();
        let number = self.number;
        let Some(Ok(Successor { engine, patterns })) = &mut self.standby else {
            return self.successor_fault().map_or(Ok(true), Err);
        };
        while started.elapsed() < SLICE_TIME {
            let (id, kind, after) = match cursor.at.take() {
                Some(at) => at,
                None => match cursor.connections.next() {
                    Some(id) => (id, first_kind(hub, number), None),
                    None => return Ok(true),
                },
            };
            // The connection has closed since and has no subscriptions.
            let Some(connection) = hub.connections.get(id) else { continue };
            let after = after.as_deref();
            let names_max = SLICE_NAMES_MAX;
            let last = replay_names(
                &mut **engine,
                patterns,
                hub,
                number,
                &connection,
                kind,
                after,
                names_max,
            )?;
            cursor.at = match last {
                Some(last) => Some((id, kind, Some(last))),
                None => next_kind(kind).map(|kind| (id, kind, None)),
            };
        }
        Ok(false)
    }

    /// The size of the memories of its engine and of its standby.
    pub fn memory_bytes(&self) -> usize {
        let standby = self.standby.iter().flatten().map(|standby| &standby.engine);
        self.engine.iter().chain(standby).map(|engine| engine.memory_bytes()).sum()
    }

    /// Why the standby cannot take over, if there is one that cannot.
    pub fn successor_fault(&self) -> Option<EngineFault> {
        self.standby.as_ref()?.as_ref().err().cloned()
    }

    /// Removes the standby engine, if there is one. Returns it, so that the caller drops it
    /// after it has released the lock.
    pub fn abandon(&mut self) -> Option<Box<dyn Engine>> {
        self.standby.take()?.ok().map(|standby| standby.engine)
    }

    /// Replaces the engine by the standby, if that has not failed. Returns the old engine, so that
    /// the caller drops it after it has released the lock.
    pub fn take_over(&mut self, code: &Arc<dyn EngineFactory>) -> Option<Box<dyn Engine>> {
        let Successor { engine, patterns } = self.standby.take()?.ok()?;
        self.patterns = patterns;
        self.code = code.clone();
        self.faults.clear();
        self.given_up_until = None;
        self.stats.is_up();
        self.engine.replace(engine)
    }

    /// Applies a change to the standby too, if there is one.
    fn apply_to_standby(&mut self, change: impl FnOnce(&mut Successor) -> Outcome<()>) {
        if let Some(Ok(standby)) = &mut self.standby {
            let changed = panics::contain(|| change(standby));
            if let Err(fault) = changed.unwrap_or_else(|| Err(panicked("standby"))) {
                self.standby = Some(Err(fault));
            }
        }
    }

    /// The engine; if there is none, it is rebuilt unless it is too soon.
    fn ready(&mut self, hub: &Hub) -> Result<&mut dyn Engine, Unavailable> {
        if self.engine.is_none() {
            if self.given_up_until.is_some_and(|until| Instant::now() < until) {
                return Err(Unavailable);
            }
            self.given_up_until = None;
            self.rebuild(hub)?;
        }
        match &mut self.engine {
            Some(engine) => Ok(&mut **engine),
            None => Err(Unavailable),
        }
    }

    fn rebuild(&mut self, hub: &Hub) -> Result<(), Unavailable> {
        let started = Instant::now();
        let built = panics::contain(|| {
            self.code
                .instantiate()
                .map_err(|problem| EngineFault { call: "instantiate", problem, is_overrun: false })
                .and_then(|mut engine| {
                    let patterns = fill(&mut *engine, hub, self.number)?;
                    Ok((engine, patterns))
                })
        });
        match built.unwrap_or_else(|| Err(panicked("rebuild"))) {
            Ok((engine, patterns)) => {
                self.engine = Some(engine);
                self.patterns = patterns;
                let pause = started.elapsed();
                self.stats.rebuilt(pause);
                let pause_us = pause.as_micros() as u64;
                info!(shard = self.number, pause_us, "the engine was rebuilt");
                Ok(())
            }
            Err(fault) => {
                self.failed(hub, &fault);
                Err(Unavailable)
            }
        }
    }

    fn failed(&mut self, hub: &Hub, fault: &EngineFault) {
        self.engine = None;
        self.stats.failed(fault);
        let now = Instant::now();
        // The publication is the reason for the overrun: the engine is not given up for it,
        // because otherwise one name could block all others.
        if fault.is_overrun && fault.call == EngineCall::Route.name() {
            warn!(shard = self.number, %fault, "the engine took too long and is rebuilt");
            return;
        }
        self.faults.push_back(now);
        while self.faults.front().is_some_and(|at| now - *at > self.config.rebuild_window) {
            self.faults.pop_front();
        }
        if self.faults.len() > self.config.rebuilds_max {
            self.given_up_until = Some(now + self.config.retry_time);
            // If it has too little memory, this connection uses most of it.
            let most = holdings::most(&hub.connections);
            error!(shard = self.number, %fault, failures = self.faults.len(),
                most_connection = most.as_ref().map(|most| most.id),
                most_name_bytes = most.as_ref().map(|most| most.holds.bytes()),
                "the engine failed too often; commands that need it are answered UNAVAILABLE");
        } else {
            warn!(shard = self.number, %fault, "the engine failed and is rebuilt");
        }
    }
}

/// The problem to report for an engine in whose call the host panicked: its state may include half
/// of a change.
fn panicked(call: &'static str) -> EngineFault {
    EngineFault { call, problem: "the host panicked; see the log".to_owned(), is_overrun: false }
}

/// Replays the ground state to a new engine. Returns the patterns by id. The shard's lock is held.
fn fill(engine: &mut dyn Engine, hub: &Hub, number: usize) -> Outcome<Vec<Box<[u8]>>> {
    let mut by_id = Vec::new();
    // The table is not held while the engine is called: accepting or removing a connection
    // locks it to write, and every publication would wait behind that. Nothing is missed: a
    // connection that comes later needs this shard's lock to subscribe, and one that ends
    // needs it to unsubscribe, before or after the engine is called.
    let connections: Vec<Arc<Connection>> = hub.connections.read().values().cloned().collect();
    for connection in &connections {
        let mut kind = Some(first_kind(hub, number));
        while let Some(cursor) = kind {
            let mut after = None;
            loop {
                let names_max = SLICE_NAMES_MAX;
                let last = replay_names(
                    engine,
                    &mut by_id,
                    hub,
                    number,
                    connection,
                    cursor,
                    after.as_deref(),
                    names_max,
                )?;
                match last {
                    Some(last) => after = Some(last),
                    None => break,
                }
            }
            kind = next_kind(cursor);
        }
    }
    Ok(by_id)
}

/// Replays the names of one kind that a connection is subscribed to, those in its shard, to an
/// engine: at most this many, and only those `after` this one. Returns the last one if there may be
/// more. The shard's lock is held.
#[allow(clippy::too_many_arguments, reason = "where it is, and how far")]
fn replay_names(
    engine: &mut dyn Engine,
    by_id: &mut Vec<Box<[u8]>>,
    hub: &Hub,
    number: usize,
    connection: &Connection,
    kind: Kind,
    after: Option<&[u8]>,
    names_max: usize,
) -> Outcome<Option<Box<[u8]>>> {
    let subscriptions = connection.subscriptions();
    let held = subscriptions.of(kind);
    let first = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut names = Names::new();
    let mut seen = 0;
    let mut last = None;
    for name in held.range::<[u8], _>((first, Bound::Unbounded)).take(names_max) {
        seen += 1;
        last = Some(name);
        if kind == Kind::Pattern || hub.place(name) == number % hub.spread {
            names.push(name);
        }
    }
    if !names.is_empty() {
        subscribe(engine, by_id, connection.id, kind, &names)?;
    }
    Ok(last.filter(|_| seen == names_max).cloned())
}

/// Subscribes a connection, and stores the ids of its patterns.
fn subscribe(
    engine: &mut dyn Engine,
    by_id: &mut Vec<Box<[u8]>>,
    connection: ConnectionId,
    kind: Kind,
    names: &Names,
) -> Outcome<()> {
    in_slices(names, |names| {
        if kind != Kind::Pattern {
            return engine.subscribe(connection, names);
        }
        let ids = engine.psubscribe(connection, names)?;
        learn(by_id, names, &ids);
        Ok(())
    })
}

/// Calls the engine for this many names at a time, so that their copies use little of its memory.
fn in_slices(names: &Names, mut call: impl FnMut(&Names) -> Outcome<()>) -> Outcome<()> {
    if names.len() <= SLICE_NAMES_MAX && names.bytes.len() <= SLICE_BYTES_MAX {
        return call(names);
    }
    let mut slice = Names::new();
    for name in names.iter() {
        let is_full = slice.bytes.len() + name.len() > SLICE_BYTES_MAX;
        if !slice.is_empty() && (is_full || slice.len() == SLICE_NAMES_MAX) {
            call(&slice)?;
            slice.clear();
        }
        slice.push(name);
    }
    if slice.is_empty() { Ok(()) } else { call(&slice) }
}

/// The kinds of names of a shard: the first one.
fn first_kind(hub: &Hub, number: usize) -> Kind {
    if number >= hub.spread { Kind::Shard } else { Kind::Channel }
}

/// The second one, if there is one.
fn next_kind(kind: Kind) -> Option<Kind> {
    (kind == Kind::Channel).then_some(Kind::Pattern)
}

fn learn(by_id: &mut Vec<Box<[u8]>>, patterns: &Names, ids: &[u32]) {
    for (pattern, id) in patterns.iter().zip(ids) {
        let index = *id as usize;
        if by_id.len() <= index {
            by_id.resize_with(index + 1, Box::default);
        }
        if let Some(slot) = by_id.get_mut(index)
            && &**slot != pattern
        {
            *slot = pattern.into();
        }
    }
}

/// Splits the groups, which are in the order of the publications, into one range for each
/// publication.
fn ranges(publications: usize, fan_outs: &FanOuts) -> Batch<FanOutRange> {
    let mut group = 0;
    let mut first_connection = 0;
    (0..publications)
        .map(|publication| {
            let start = (group, first_connection);
            while let Some(next) = fan_outs.groups.get(group)
                && next.publication as usize == publication
            {
                first_connection = next.end as usize;
                group += 1;
            }
            FanOutRange { groups: start.0..group, first_connection: start.1 }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, Result};

    use super::*;
    use crate::connections::Connections;
    use crate::encoding::Encoding;
    use crate::native::Native;
    use switchyard_config::Config;
    use switchyard_types::command::Space;

    #[tokio::test]
    async fn an_engine_in_which_the_host_panics_is_rebuilt_from_the_ground_state() -> Result<()> {
        let config = Config::default();
        let connections = Connections::new(9, config.outbox, 0);
        let hub = Hub::new(Arc::new(Native), &config.engine, config.limits.names, connections);
        let hub = hub.map_err(anyhow::Error::msg)?;
        let added = hub.connections().add(Encoding::RESP2, ([127, 0, 0, 1], 1).into());
        let connection = added.ok().context("there is room")?;
        let names = [b"news".as_slice().into()];
        hub.subscribe(&connection, Kind::Channel, &names, |_, _| {}).ok().context("it is there")?;
        for shard in &hub.shards {
            let failed: Result<(), _> =
                shard.lock().call(&hub, EngineCall::Route, |_| panic!("a defect"));
            assert!(failed.is_err());
        }
        let counts = hub.subscriber_counts(Space::Channels, &names);
        assert_eq!(counts.ok().context("it is there")?, [1]);
        Ok(())
    }
}
