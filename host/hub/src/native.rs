//! The engine without a sandbox.

use guest_core::{ConnectionId, FanOuts, Names, Page, PatternId, Registry};

use crate::engine::{Engine, EngineFactory, Outcome};

/// The code of the library.
#[derive(Debug, Clone, Copy)]
pub struct Native;

impl EngineFactory for Native {
    fn instantiate(&self) -> Result<Box<dyn Engine>, String> {
        Ok(Box::<NativeEngine>::default())
    }

    fn version(&self) -> &str {
        "native"
    }
}

/// The library, called directly.
#[derive(Default)]
pub struct NativeEngine {
    registry: Registry,
}

impl Engine for NativeEngine {
    fn subscribe(&mut self, connection: ConnectionId, channels: &Names) -> Outcome<()> {
        self.registry.subscribe(connection, channels);
        Ok(())
    }

    fn unsubscribe(&mut self, connection: ConnectionId, channels: &Names) -> Outcome<()> {
        self.registry.unsubscribe(connection, channels);
        Ok(())
    }

    fn psubscribe(
        &mut self,
        connection: ConnectionId,
        patterns: &Names,
    ) -> Outcome<Vec<PatternId>> {
        Ok(self.registry.psubscribe(connection, patterns))
    }

    fn punsubscribe(&mut self, connection: ConnectionId, patterns: &Names) -> Outcome<()> {
        self.registry.punsubscribe(connection, patterns);
        Ok(())
    }

    fn route(&mut self, channels: &Names, fan_outs: &mut FanOuts) -> Outcome<()> {
        self.registry.route(channels, fan_outs);
        Ok(())
    }

    fn channels(&mut self, matching: Option<&[u8]>) -> Outcome<Names> {
        Ok(self.registry.channels(matching))
    }

    fn channels_from(
        &mut self,
        matching: Option<&[u8]>,
        from: Option<&[u8]>,
        visits_max: u32,
    ) -> Outcome<Page> {
        Ok(self.registry.channels_from(matching, from, visits_max))
    }

    fn subscriber_counts(&mut self, channels: &Names) -> Outcome<Vec<u64>> {
        Ok(self.registry.subscriber_counts(channels))
    }

    fn channel_count(&mut self) -> Outcome<u64> {
        Ok(self.registry.channel_count())
    }

    fn pattern_count(&mut self) -> Outcome<u64> {
        Ok(self.registry.pattern_count())
    }

    fn save(&mut self) -> Outcome<Option<Vec<u8>>> {
        Ok(Some(self.registry.save()))
    }

    fn restore(&mut self, state: &[u8]) -> Outcome<bool> {
        match Registry::restore(state) {
            Ok(registry) => {
                self.registry = registry;
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }
}
