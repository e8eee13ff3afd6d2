//! For tests: the engine, except that `route` traps on a channel whose name
//! contains `trap-engine` and never returns from one with `stall-engine`, and
//! `subscribe` traps on one with `trap-listener`.

use std::cell::RefCell;

use bindings::exports::switchyard::pubsub::{engine, listing, snapshot};
use guest_core::{ConnectionId, FanOuts, Names, PatternId, Registry};

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../wit/0.1.0", world: "guest-core" });

    #[cfg(target_family = "wasm")]
    export!(BadEngine with_types_in self);
    #[cfg(target_family = "wasm")]
    use super::BadEngine;
}

const TRAPS: &[u8] = b"trap-engine";
const STALLS: &[u8] = b"stall-engine";
const TRAPS_LISTENERS: &[u8] = b"trap-listener";

thread_local! {
    static REGISTRY: RefCell<Registry> = RefCell::default();
}

struct BadEngine;

impl engine::Guest for BadEngine {
    fn subscribe(connection: ConnectionId, channels: engine::Names) {
        let channels = Names::from(channels);
        for channel in channels.iter() {
            assert!(!contains(channel, TRAPS_LISTENERS), "the engine was requested to trap");
        }
        REGISTRY.with_borrow_mut(|registry| registry.subscribe(connection, &channels));
    }

    fn unsubscribe(connection: ConnectionId, channels: engine::Names) {
        REGISTRY.with_borrow_mut(|registry| registry.unsubscribe(connection, &channels.into()));
    }

    fn psubscribe(connection: ConnectionId, patterns: engine::Names) -> Vec<PatternId> {
        REGISTRY.with_borrow_mut(|registry| registry.psubscribe(connection, &patterns.into()))
    }

    fn punsubscribe(connection: ConnectionId, patterns: engine::Names) {
        REGISTRY.with_borrow_mut(|registry| registry.punsubscribe(connection, &patterns.into()));
    }

    fn route(channels: engine::Names) -> engine::FanOuts {
        let channels = Names::from(channels);
        for channel in channels.iter() {
            assert!(!contains(channel, TRAPS), "the engine was requested to trap");
            while contains(std::hint::black_box(channel), STALLS) {}
        }
        let mut fan_outs = FanOuts::default();
        REGISTRY.with_borrow(|registry| registry.route(&channels, &mut fan_outs));
        let groups = fan_outs.groups.into_iter().map(|group| engine::Group {
            publication: group.publication,
            pattern: group.pattern,
            end: group.end,
        });
        engine::FanOuts { connections: fan_outs.connections, groups: groups.collect() }
    }

    fn channels(matching: Option<Vec<u8>>) -> engine::Names {
        let channels = |registry: &Registry| registry.channels(matching.as_deref());
        let Names { bytes, ends } = REGISTRY.with_borrow(channels);
        engine::Names { bytes, ends }
    }

    fn subscriber_counts(channels: engine::Names) -> Vec<u64> {
        REGISTRY.with_borrow(|registry| registry.subscriber_counts(&channels.into()))
    }

    fn channel_count() -> u64 {
        REGISTRY.with_borrow(Registry::channel_count)
    }

    fn pattern_count() -> u64 {
        REGISTRY.with_borrow(Registry::pattern_count)
    }
}

impl listing::Guest for BadEngine {
    fn channels_from(
        matching: Option<Vec<u8>>,
        from: Option<Vec<u8>>,
        visits_max: u32,
    ) -> listing::Page {
        let guest_core::Page { names: Names { bytes, ends }, next } =
            REGISTRY.with_borrow(|registry| {
                registry.channels_from(matching.as_deref(), from.as_deref(), visits_max)
            });
        listing::Page { names: engine::Names { bytes, ends }, next }
    }
}

impl snapshot::Guest for BadEngine {
    fn save() -> Vec<u8> {
        REGISTRY.with_borrow(Registry::save)
    }

    fn restore(state: Vec<u8>) -> Result<(), snapshot::RestoreError> {
        let registry = Registry::restore(&state).map_err(|error| match error {
            guest_core::RestoreError::Unsupported => snapshot::RestoreError::Unsupported,
            guest_core::RestoreError::Corrupt => snapshot::RestoreError::Corrupt,
        });
        REGISTRY.set(registry?);
        Ok(())
    }
}

impl From<engine::Names> for Names {
    fn from(engine::Names { bytes, ends }: engine::Names) -> Self {
        Self { bytes, ends }
    }
}

fn contains(name: &[u8], part: &[u8]) -> bool {
    name.windows(part.len()).any(|window| window == part)
}
