//! The engine as a component. One of the two files that contain generated types, which they do not
//! expose.

use guest_core::{ConnectionId, FanOuts, Group, Names, Page, PatternId};
use wasmtime::Store;

use super::fault;
use bindings::exports::switchyard::pubsub::engine as wit;
use bindings::exports::switchyard::pubsub::{listing, snapshot};
use switchyard_config::EngineConfig;
use switchyard_hub::engine::{Engine, Outcome};
use switchyard_wasm::{ComponentLog, Limits, StoreState, Wasm};

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/0.1.0",
        world: "guest-core",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

/// An engine component, compiled and linked.
pub struct CompiledEngine {
    wasm: Wasm,
    instance_pre: wasmtime::component::InstancePre<StoreState>,
    engine: wit::GuestIndices,
    listing: Option<listing::GuestIndices>,
    snapshot: Option<snapshot::GuestIndices>,
    limits: Limits,
    version: String,
}

impl CompiledEngine {
    /// Compiles and links a component. The error names the step and the problem.
    pub fn new(
        wasm: &Wasm,
        bytes: &[u8],
        config: &EngineConfig,
    ) -> Result<CompiledEngine, (&'static str, String)> {
        let component = wasm.compile(bytes).map_err(|problem| ("compile", problem))?;
        wasm.check_imports(&component, &[], &[]).map_err(|problem| ("link", problem))?;
        let linker = wasm.linker().map_err(|error| ("link", switchyard_wasm::describe(&error)))?;
        let instance_pre = linker
            .instantiate_pre(&component)
            .map_err(|error| ("link", switchyard_wasm::describe(&error)))?;
        let engine = wit::GuestIndices::new(&instance_pre).map_err(|_| {
            ("link", format!("does not export {}/engine@0.1.0", switchyard_wasm::CONTRACT))
        })?;
        Ok(CompiledEngine {
            wasm: wasm.clone(),
            engine,
            listing: listing::GuestIndices::new(&instance_pre).ok(),
            snapshot: snapshot::GuestIndices::new(&instance_pre).ok(),
            instance_pre,
            limits: Limits {
                memory_bytes_max: config.memory_bytes_max,
                table_elements_max: TABLE_ELEMENTS_MAX,
                core_instances_max: CORE_INSTANCES_MAX,
                resources_max: RESOURCES_MAX,
                returned_bytes_max: RETURNED_BYTES_MAX,
                log_lines_per_second_max: ENGINE_LOG_LINES_PER_SECOND_MAX,
                call_budget: config.call_budget,
            },
            version: switchyard_wasm::version_of(bytes),
        })
    }

    /// A new instance in a store of its own.
    pub fn instantiate(&self) -> Result<ComponentEngine, String> {
        let log = ComponentLog::new("engine", self.limits.log_lines_per_second_max);
        let mut store = self.wasm.store(log, self.limits, Box::new(()));
        switchyard_wasm::arm(&mut store, self.limits.call_budget);
        let mut load = || {
            let instance = self.instance_pre.instantiate(&mut store)?;
            let engine = self.engine.load(&mut store, &instance)?;
            let listing = match &self.listing {
                Some(indices) => Some(indices.load(&mut store, &instance)?),
                None => None,
            };
            let snapshot = match &self.snapshot {
                Some(indices) => Some(indices.load(&mut store, &instance)?),
                None => None,
            };
            Ok((engine, listing, snapshot))
        };
        let (engine, listing, snapshot) =
            load().map_err(|error| switchyard_wasm::describe(&error))?;
        Ok(ComponentEngine { store, engine, listing, snapshot, limits: self.limits })
    }

    /// The first digits of the hash of the component's bytes.
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// `guest-core` only logs when it panics.
const ENGINE_LOG_LINES_PER_SECOND_MAX: u32 = 100;
/// It is a single module without resources, and its table only holds functions.
const TABLE_ELEMENTS_MAX: usize = 100_000;
const CORE_INSTANCES_MAX: usize = 128;
const RESOURCES_MAX: usize = 1_000;
/// Enough for the snapshot of the largest engine.
const RETURNED_BYTES_MAX: usize = 1 << 30;

/// The factor of a call's budget for a call that hands over the whole state.
const HANDOVER_BUDGETS: u32 = 20;

/// A running engine component.
pub struct ComponentEngine {
    store: Store<StoreState>,
    engine: wit::Guest,
    listing: Option<listing::Guest>,
    snapshot: Option<snapshot::Guest>,
    limits: Limits,
}

impl ComponentEngine {
    fn call(&mut self) -> (&mut Store<StoreState>, &wit::Guest) {
        switchyard_wasm::arm(&mut self.store, self.limits.call_budget);
        (&mut self.store, &self.engine)
    }
}

fn borrow(names: &Names) -> wit::NamesParam<'_> {
    wit::NamesParam { bytes: &names.bytes, ends: &names.ends }
}

impl Engine for ComponentEngine {
    fn subscribe(&mut self, connection: ConnectionId, channels: &Names) -> Outcome<()> {
        let (store, engine) = self.call();
        engine.call_subscribe(store, connection, borrow(channels)).map_err(fault("subscribe"))
    }

    fn unsubscribe(&mut self, connection: ConnectionId, channels: &Names) -> Outcome<()> {
        let (store, engine) = self.call();
        engine.call_unsubscribe(store, connection, borrow(channels)).map_err(fault("unsubscribe"))
    }

    fn psubscribe(
        &mut self,
        connection: ConnectionId,
        patterns: &Names,
    ) -> Outcome<Vec<PatternId>> {
        let (store, engine) = self.call();
        engine.call_psubscribe(store, connection, borrow(patterns)).map_err(fault("psubscribe"))
    }

    fn punsubscribe(&mut self, connection: ConnectionId, patterns: &Names) -> Outcome<()> {
        let (store, engine) = self.call();
        engine.call_punsubscribe(store, connection, borrow(patterns)).map_err(fault("punsubscribe"))
    }

    fn route(&mut self, channels: &Names, fan_outs: &mut FanOuts) -> Outcome<()> {
        let (store, engine) = self.call();
        let routed = engine.call_route(store, borrow(channels)).map_err(fault("route"))?;
        fan_outs.connections = routed.connections;
        fan_outs.groups.clear();
        fan_outs.groups.extend(routed.groups.iter().map(|group| Group {
            publication: group.publication,
            pattern: group.pattern,
            end: group.end,
        }));
        Ok(())
    }

    fn channels(&mut self, matching: Option<&[u8]>) -> Outcome<Names> {
        let (store, engine) = self.call();
        let names = engine.call_channels(store, matching).map_err(fault("channels"))?;
        Ok(Names { bytes: names.bytes, ends: names.ends })
    }

    fn channels_from(
        &mut self,
        matching: Option<&[u8]>,
        from: Option<&[u8]>,
        visits_max: u32,
    ) -> Outcome<Page> {
        switchyard_wasm::arm(&mut self.store, self.limits.call_budget);
        let Some(listing) = &self.listing else {
            return Ok(Page { names: self.channels(matching)?, next: None });
        };
        let page = listing
            .call_channels_from(&mut self.store, matching, from, visits_max)
            .map_err(fault("channels"))?;
        let names = Names { bytes: page.names.bytes, ends: page.names.ends };
        Ok(Page { names, next: page.next })
    }

    fn subscriber_counts(&mut self, channels: &Names) -> Outcome<Vec<u64>> {
        let (store, engine) = self.call();
        engine.call_subscriber_counts(store, borrow(channels)).map_err(fault("subscriber-counts"))
    }

    fn channel_count(&mut self) -> Outcome<u64> {
        let (store, engine) = self.call();
        engine.call_channel_count(store).map_err(fault("channel-count"))
    }

    fn pattern_count(&mut self) -> Outcome<u64> {
        let (store, engine) = self.call();
        engine.call_pattern_count(store).map_err(fault("pattern-count"))
    }

    fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    fn save(&mut self) -> Outcome<Option<Vec<u8>>> {
        switchyard_wasm::arm(&mut self.store, HANDOVER_BUDGETS * self.limits.call_budget);
        let Some(snapshot) = &self.snapshot else { return Ok(None) };
        snapshot.call_save(&mut self.store).map(Some).map_err(fault("save"))
    }

    fn restore(&mut self, state: &[u8]) -> Outcome<bool> {
        switchyard_wasm::arm(&mut self.store, HANDOVER_BUDGETS * self.limits.call_budget);
        let Some(snapshot) = &self.snapshot else { return Ok(false) };
        let restored = snapshot.call_restore(&mut self.store, state).map_err(fault("restore"))?;
        Ok(restored.is_ok())
    }
}
