//! The engine as a component: the world `guest-core` on top of one [`Registry`].
//!
//! A crate of its own, so that plugins can use the library without exporting an engine, and without
//! building it twice.
//!
//! Nothing is decided here. Lists are moved between the generated types and the library's, not
//! copied; what generated code there is stays in this file.

#![cfg(target_family = "wasm")]

use std::cell::RefCell;

use bindings::exports::switchyard::pubsub::{engine, listing, snapshot};
use guest_heap as _;

use guest_core::{ConnectionId, FanOuts, Group, Names, PatternId, Registry, RestoreError};

#[expect(
    unsafe_code,
    reason = "generated code passes lists across the component boundary by pointer"
)]
mod bindings {
    use super::Component;

    wit_bindgen::generate!({ path: "../../wit/0.1.0", world: "guest-core" });
    export!(Component);
}

struct Component;

thread_local! {
    /// An instance has one thread, and each call ends before the next begins.
    static REGISTRY: RefCell<Registry> = RefCell::default();
}

impl engine::Guest for Component {
    fn subscribe(connection: ConnectionId, channels: engine::Names) {
        REGISTRY.with_borrow_mut(|registry| registry.subscribe(connection, &channels.into()));
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
        let mut fan_outs = FanOuts::default();
        REGISTRY.with_borrow(|registry| registry.route(&channels.into(), &mut fan_outs));
        fan_outs.into()
    }

    fn channels(matching: Option<Vec<u8>>) -> engine::Names {
        REGISTRY.with_borrow(|registry| registry.channels(matching.as_deref())).into()
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

impl listing::Guest for Component {
    fn channels_from(
        matching: Option<Vec<u8>>,
        from: Option<Vec<u8>>,
        visits_max: u32,
    ) -> listing::Page {
        let page = REGISTRY.with_borrow(|registry| {
            registry.channels_from(matching.as_deref(), from.as_deref(), visits_max)
        });
        listing::Page { names: page.names.into(), next: page.next }
    }
}

impl snapshot::Guest for Component {
    fn save() -> Vec<u8> {
        REGISTRY.with_borrow(Registry::save)
    }

    fn restore(state: Vec<u8>) -> Result<(), snapshot::RestoreError> {
        REGISTRY.set(Registry::restore(&state)?);
        Ok(())
    }
}

impl From<engine::Names> for Names {
    fn from(engine::Names { bytes, ends }: engine::Names) -> Names {
        Names { bytes, ends }
    }
}

impl From<Names> for engine::Names {
    fn from(Names { bytes, ends }: Names) -> engine::Names {
        engine::Names { bytes, ends }
    }
}

impl From<FanOuts> for engine::FanOuts {
    fn from(FanOuts { connections, groups }: FanOuts) -> engine::FanOuts {
        // The two groups have one layout, so this is done in place.
        engine::FanOuts {
            connections,
            groups: groups.into_iter().map(engine::Group::from).collect(),
        }
    }
}

impl From<Group> for engine::Group {
    fn from(Group { publication, pattern, end }: Group) -> engine::Group {
        engine::Group { publication, pattern, end }
    }
}

impl From<RestoreError> for snapshot::RestoreError {
    fn from(refusal: RestoreError) -> snapshot::RestoreError {
        match refusal {
            RestoreError::Unsupported => snapshot::RestoreError::Unsupported,
            RestoreError::Corrupt => snapshot::RestoreError::Corrupt,
        }
    }
}
