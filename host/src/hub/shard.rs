//! One engine, and what keeps it alive.
//!
//! An engine that fails is dropped, rebuilt from the ground state, and asked
//! once more; its caller sees a pause. One that fails too often in a short time
//! is left alone for a while, and whoever needs it is told `Unavailable`.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use guest_core::{FanOuts, Names};
use tracing::{error, info, warn};

use super::connections::ConnectionId;
use super::{Hub, Unavailable, place};
use crate::config::EngineConfig;
use crate::engine::{Engine, EngineCode, EngineFault, Outcome};

/// A shard of the channels of one name space.
pub struct Shard {
    number: usize,
    code: EngineCode,
    engine: Option<Box<dyn Engine>>,
    /// The pattern that each of the engine's pattern ids stands for.
    patterns: Vec<Box<[u8]>>,
    /// When it failed last.
    faults: VecDeque<Instant>,
    given_up_until: Option<Instant>,
    config: EngineConfig,
    /// Kept to be used again.
    names: Names,
    fan_outs: FanOuts,
}

/// Which groups of the last `route` belong to one publication.
#[derive(Debug, Clone)]
pub struct FanOutRange {
    groups: Range<usize>,
    first_connection: usize,
}

impl Shard {
    /// A shard with a fresh engine.
    pub fn new(number: usize, config: &EngineConfig, code: EngineCode) -> Result<Shard, String> {
        Ok(Shard {
            number,
            engine: Some(code.instantiate()?),
            code,
            patterns: Vec::new(),
            faults: VecDeque::new(),
            given_up_until: None,
            config: config.clone(),
            names: Names::new(),
            fan_outs: FanOuts::default(),
        })
    }

    /// Asks the engine. One that traps is rebuilt and asked once more; one that
    /// takes too long is not, because everybody else waits.
    pub fn ask<T>(
        &mut self,
        hub: &Hub,
        mut question: impl FnMut(&mut dyn Engine) -> Outcome<T>,
    ) -> Result<T, Unavailable> {
        for _ in 0..2 {
            match question(self.ready(hub)?) {
                Ok(answer) => return Ok(answer),
                Err(fault) => {
                    self.failed(&fault);
                    if fault.is_overrun {
                        break;
                    }
                }
            }
        }
        Err(Unavailable)
    }

    /// Subscribes to patterns, and learns the ids that stand for them.
    pub fn psubscribe(
        &mut self,
        hub: &Hub,
        connection: ConnectionId,
        patterns: &Names,
    ) -> Result<(), Unavailable> {
        let ids = self.ask(hub, |engine| engine.psubscribe(connection, patterns))?;
        learn(&mut self.patterns, patterns, &ids);
        Ok(())
    }

    /// Finds the receivers of a publication on each of these channels, and
    /// answers a range for each, to be looked at with `groups` until the next
    /// call.
    pub fn route<'a>(
        &mut self,
        hub: &Hub,
        channels: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Vec<FanOutRange>, Unavailable> {
        let mut names = std::mem::take(&mut self.names);
        let mut fan_outs = std::mem::take(&mut self.fan_outs);
        names.clear();
        channels.for_each(|channel| names.push(channel));
        let routed = self.ask(hub, |engine| engine.route(&names, &mut fan_outs));
        let ranges = routed.map(|()| ranges(names.len(), &fan_outs));
        self.names = names;
        self.fan_outs = fan_outs;
        ranges
    }

    /// The groups of one publication: the pattern, none for the channel itself,
    /// and who receives it for that.
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

    /// Forgets the engine; the next one is built from the ground state.
    pub fn discard(&mut self) {
        self.engine = None;
    }

    /// Sees that there is an engine, if it is not too soon to try.
    pub fn tend(&mut self, hub: &Hub) -> Result<(), Unavailable> {
        self.ready(hub).map(|_| ())
    }

    /// Puts a new engine in the place of the old, with what the old one knew.
    /// True: it read the old one's snapshot. On an error the old one stays.
    pub fn replace(
        &mut self,
        hub: &Hub,
        code: &EngineCode,
        mut new: Box<dyn Engine>,
    ) -> Result<bool, String> {
        let state = match self.engine.as_mut().map(|old| old.save()) {
            Some(Ok(state)) => state,
            Some(Err(fault)) => {
                self.failed(&fault);
                None
            }
            None => None,
        };
        let restored = match state {
            None => false,
            Some(state) => match new.restore(&state) {
                Ok(true) => true,
                Ok(false) => {
                    new = code.instantiate()?;
                    false
                }
                Err(fault) => {
                    warn!(shard = self.number, %fault, "the new engine failed to restore a snapshot");
                    new = code.instantiate()?;
                    false
                }
            },
        };
        if !restored {
            self.patterns = fill(&mut *new, hub, self.number).map_err(|fault| fault.to_string())?;
        }
        self.engine = Some(new);
        self.code = code.clone();
        self.faults.clear();
        self.given_up_until = None;
        Ok(restored)
    }

    /// Goes back to another engine after a swap that failed elsewhere.
    pub fn revert(&mut self, code: &EngineCode) {
        self.code = code.clone();
        self.engine = None;
    }

    /// The engine, rebuilt if there is none and it is not too soon.
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
        let built = self
            .code
            .instantiate()
            .map_err(|problem| EngineFault { call: "instantiate", problem, is_overrun: false })
            .and_then(|mut engine| {
                let patterns = fill(&mut *engine, hub, self.number)?;
                Ok((engine, patterns))
            });
        match built {
            Ok((engine, patterns)) => {
                self.engine = Some(engine);
                self.patterns = patterns;
                let pause_us = started.elapsed().as_micros() as u64;
                info!(shard = self.number, pause_us, "the engine was rebuilt");
                Ok(())
            }
            Err(fault) => {
                self.failed(&fault);
                Err(Unavailable)
            }
        }
    }

    fn failed(&mut self, fault: &EngineFault) {
        self.engine = None;
        let now = Instant::now();
        self.faults.push_back(now);
        while self.faults.front().is_some_and(|at| now - *at > self.config.rebuild_window) {
            self.faults.pop_front();
        }
        if self.faults.len() > self.config.rebuilds_max {
            self.given_up_until = Some(now + self.config.retry_time);
            error!(shard = self.number, %fault, failures = self.faults.len(),
                "the engine failed too often; commands that need it are answered UNAVAILABLE");
        } else {
            warn!(shard = self.number, %fault, "the engine failed and is rebuilt");
        }
    }
}

/// Tells a fresh engine all that the ground state says it should know; answers
/// the patterns by id. The shard's lock is held.
fn fill(engine: &mut dyn Engine, hub: &Hub, number: usize) -> Outcome<Vec<Box<[u8]>>> {
    let mut by_id = Vec::new();
    let of_shard_channels = number >= hub.spread;
    let own_number = number % hub.spread;
    for connection in hub.connections.read().values() {
        let subscriptions = connection.subscriptions();
        let channels = match of_shard_channels {
            true => &subscriptions.shard_channels,
            false => &subscriptions.channels,
        };
        let own = channels.iter().filter(|name| place(name, hub.spread) == own_number);
        let own: Names = own.collect();
        if !own.is_empty() {
            engine.subscribe(connection.id, &own)?;
        }
        if !of_shard_channels && !subscriptions.patterns.is_empty() {
            let patterns: Names = subscriptions.patterns.iter().collect();
            let ids = engine.psubscribe(connection.id, &patterns)?;
            learn(&mut by_id, &patterns, &ids);
        }
    }
    Ok(by_id)
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

/// Cuts the groups, which stand in the order of the publications, into one range
/// for each publication.
fn ranges(publications: usize, fan_outs: &FanOuts) -> Vec<FanOutRange> {
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
