//! The engine as a component. One of the two files that contain generated types, which they do not
//! expose.

use std::sync::Arc;

use guest_core::{ConnectionId, FanOuts, Group, Names, Page, PatternId};
use wasmtime::Store;

use bindings::exports::switchyard::pubsub::engine as wit;
use bindings::exports::switchyard::pubsub::{listing, snapshot};
use switchyard_config::EngineConfig;
use switchyard_hub::engine::{Engine, EngineFault, Outcome};
use switchyard_wasm::{CONTRACT, ComponentLog, Interfaces, Limits, StoreState, Wasm};

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
        bytes: &Arc<[u8]>,
        config: &EngineConfig,
    ) -> Result<CompiledEngine, (&'static str, String)> {
        let interfaces = Interfaces::of(bytes).map_err(|problem| ("compile", problem))?;
        check_interfaces(&interfaces).map_err(|problem| ("link", problem))?;
        let compiled = wasm.compile_aside(bytes, &|| true);
        let component = compiled.map_err(|problem| ("compile", problem))?;
        let linker = wasm.linker().map_err(|error| ("link", switchyard_wasm::describe(&error)))?;
        let instance_pre = linker
            .instantiate_pre(&component)
            .map_err(|error| ("link", switchyard_wasm::describe(&error)))?;
        let engine = wit::GuestIndices::new(&instance_pre).map_err(|_| ("link", no_engine()))?;
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
        let loaded = load().map_err(|error| switchyard_wasm::describe(&error));
        let (engine, listing, snapshot) =
            loaded.map_err(|problem| store.data().explain(&problem))?;
        Ok(ComponentEngine { store, engine, listing, snapshot, limits: self.limits })
    }

    /// The first digits of the hash of the component's bytes.
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// Checks the names of what it imports and exports, before it is compiled, which takes long.
fn check_interfaces(interfaces: &Interfaces) -> Result<(), String> {
    switchyard_wasm::check_imports(interfaces, &[], &[])?;
    let exported = format!("{CONTRACT}/engine@");
    match interfaces.exports.iter().any(|name| name.starts_with(&exported)) {
        true => Ok(()),
        false => Err(no_engine()),
    }
}

fn no_engine() -> String {
    format!("does not export {CONTRACT}/engine@0.1.0")
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
    /// Calls the engine. A fault says what the instance wrote to standard error about it.
    fn call<T>(
        &mut self,
        name: &'static str,
        question: impl FnOnce(&mut Store<StoreState>, &wit::Guest) -> wasmtime::Result<T>,
    ) -> Outcome<T> {
        switchyard_wasm::arm(&mut self.store, self.limits.call_budget);
        let answer = question(&mut self.store, &self.engine);
        if answer.is_ok() {
            self.store.data().succeeded();
        }
        answer.map_err(|error| fault(&self.store, name, &error))
    }
}

fn borrow(names: &Names) -> wit::NamesParam<'_> {
    wit::NamesParam { bytes: &names.bytes, ends: &names.ends }
}

/// The fault of a call, with what the instance in this store wrote to standard error about it.
fn fault(store: &Store<StoreState>, call: &'static str, error: &wasmtime::Error) -> EngineFault {
    EngineFault {
        call,
        problem: store.data().explain(&switchyard_wasm::describe(error)),
        is_overrun: error.downcast_ref::<switchyard_wasm::BudgetOverrun>().is_some(),
    }
}

impl Engine for ComponentEngine {
    fn subscribe(&mut self, connection: ConnectionId, channels: &Names) -> Outcome<()> {
        self.call("subscribe", |store, engine| {
            engine.call_subscribe(store, connection, borrow(channels))
        })
    }

    fn unsubscribe(&mut self, connection: ConnectionId, channels: &Names) -> Outcome<()> {
        self.call("unsubscribe", |store, engine| {
            engine.call_unsubscribe(store, connection, borrow(channels))
        })
    }

    fn psubscribe(
        &mut self,
        connection: ConnectionId,
        patterns: &Names,
    ) -> Outcome<Vec<PatternId>> {
        self.call("psubscribe", |store, engine| {
            engine.call_psubscribe(store, connection, borrow(patterns))
        })
    }

    fn punsubscribe(&mut self, connection: ConnectionId, patterns: &Names) -> Outcome<()> {
        self.call("punsubscribe", |store, engine| {
            engine.call_punsubscribe(store, connection, borrow(patterns))
        })
    }

    fn route(&mut self, channels: &Names, fan_outs: &mut FanOuts) -> Outcome<()> {
        let routed =
            self.call("route", |store, engine| engine.call_route(store, borrow(channels)))?;
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
        let names = self.call("channels", |store, engine| engine.call_channels(store, matching))?;
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
            .map_err(|error| fault(&self.store, "channels", &error))?;
        let names = Names { bytes: page.names.bytes, ends: page.names.ends };
        Ok(Page { names, next: page.next })
    }

    fn subscriber_counts(&mut self, channels: &Names) -> Outcome<Vec<u64>> {
        self.call("subscriber-counts", |store, engine| {
            engine.call_subscriber_counts(store, borrow(channels))
        })
    }

    fn channel_count(&mut self) -> Outcome<u64> {
        self.call("channel-count", |store, engine| engine.call_channel_count(store))
    }

    fn pattern_count(&mut self) -> Outcome<u64> {
        self.call("pattern-count", |store, engine| engine.call_pattern_count(store))
    }

    fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    fn save(&mut self) -> Outcome<Option<Vec<u8>>> {
        switchyard_wasm::arm(&mut self.store, HANDOVER_BUDGETS * self.limits.call_budget);
        let Some(snapshot) = &self.snapshot else { return Ok(None) };
        let saved = snapshot.call_save(&mut self.store);
        saved.map(Some).map_err(|error| fault(&self.store, "save", &error))
    }

    fn restore(&mut self, state: &[u8]) -> Outcome<bool> {
        switchyard_wasm::arm(&mut self.store, HANDOVER_BUDGETS * self.limits.call_budget);
        let Some(snapshot) = &self.snapshot else { return Ok(false) };
        let restored = snapshot.call_restore(&mut self.store, state);
        let restored = restored.map_err(|error| fault(&self.store, "restore", &error))?;
        Ok(restored.is_ok())
    }
}
