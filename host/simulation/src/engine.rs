//! An engine whose calls fail at random, before or after they had their effect.

use std::sync::Arc;

use guest_core::{ConnectionId, FanOuts, Names, PatternId};

use crate::chance::Chance;
use switchyard_hub::engine::{Engine, EngineFactory, EngineFault, Outcome, Page};

/// Makes engines that fail in one of `fails_one_in` calls; never: zero.
pub struct Unreliable {
    /// Makes the engines that do the work.
    pub engines: Arc<dyn EngineFactory>,
    /// What decides.
    pub chance: Chance,
    /// How often they fail.
    pub fails_one_in: usize,
}

impl EngineFactory for Unreliable {
    fn instantiate(&self) -> Result<Box<dyn Engine>, String> {
        let engine = self.engines.instantiate()?;
        let (chance, fails_one_in) = (self.chance.clone(), self.fails_one_in);
        Ok(Box::new(UnreliableEngine { engine, chance, fails_one_in }))
    }

    fn version(&self) -> &str {
        self.engines.version()
    }
}

struct UnreliableEngine {
    engine: Box<dyn Engine>,
    chance: Chance,
    fails_one_in: usize,
}

impl UnreliableEngine {
    fn call<T>(
        &mut self,
        name: &'static str,
        call: impl FnOnce(&mut dyn Engine) -> Outcome<T>,
    ) -> Outcome<T> {
        let fails = self.chance.one_in(self.fails_one_in);
        let fault = || EngineFault {
            call: name,
            problem: "a simulated trap".to_owned(),
            is_overrun: false,
        };
        if fails && self.chance.one_in(2) {
            return Err(fault());
        }
        let answer = call(&mut *self.engine)?;
        if fails { Err(fault()) } else { Ok(answer) }
    }
}

impl Engine for UnreliableEngine {
    fn subscribe(&mut self, connection: ConnectionId, channels: &Names) -> Outcome<()> {
        self.call("subscribe", |engine| engine.subscribe(connection, channels))
    }

    fn unsubscribe(&mut self, connection: ConnectionId, channels: &Names) -> Outcome<()> {
        self.call("unsubscribe", |engine| engine.unsubscribe(connection, channels))
    }

    fn psubscribe(
        &mut self,
        connection: ConnectionId,
        patterns: &Names,
    ) -> Outcome<Vec<PatternId>> {
        self.call("psubscribe", |engine| engine.psubscribe(connection, patterns))
    }

    fn punsubscribe(&mut self, connection: ConnectionId, patterns: &Names) -> Outcome<()> {
        self.call("punsubscribe", |engine| engine.punsubscribe(connection, patterns))
    }

    fn route(&mut self, channels: &Names, fan_outs: &mut FanOuts) -> Outcome<()> {
        self.call("route", |engine| engine.route(channels, fan_outs))
    }

    fn channels(&mut self, matching: Option<&[u8]>) -> Outcome<Names> {
        self.engine.channels(matching)
    }

    fn channels_from(
        &mut self,
        matching: Option<&[u8]>,
        from: Option<&[u8]>,
        visits_max: u32,
    ) -> Outcome<Page> {
        self.engine.channels_from(matching, from, visits_max)
    }

    fn subscriber_counts(&mut self, channels: &Names) -> Outcome<Vec<u64>> {
        self.engine.subscriber_counts(channels)
    }

    fn channel_count(&mut self) -> Outcome<u64> {
        self.engine.channel_count()
    }

    fn pattern_count(&mut self) -> Outcome<u64> {
        self.engine.pattern_count()
    }

    fn save(&mut self) -> Outcome<Option<Vec<u8>>> {
        self.engine.save()
    }

    fn restore(&mut self, state: &[u8]) -> Outcome<bool> {
        self.engine.restore(state)
    }
}
