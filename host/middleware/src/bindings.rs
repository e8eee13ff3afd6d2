//! Middleware as components. One of the two places that contain generated types, which they do not
//! expose.
//!
//! The exports of a component determine its hooks; a hook that it does not export costs nothing. A
//! component uses one version of the contract; `v0_1` and `v0_2` have the generated types of each,
//! and translate them. What both have alike is in `exports` and `host_imports`.

mod exports;
mod extras;
mod host_imports;
mod v0_1;
mod v0_2;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::Store;
use wasmtime::component::{Component, InstancePre};

use super::counters::CounterSpace;
use super::items::{Action, DeliverVerdict, Item, PublishVerdict};
use exports::{Exports, Linked};
use switchyard_hub::connections::Connections;
use switchyard_hub::filter::Delivery;
use switchyard_types::batch::Batch;
use switchyard_types::close::clip;
use switchyard_types::command::{Credentials, Publication, REJECTED, Refusal};
use switchyard_types::ids::ConnectionId;
use switchyard_wasm::outside::{self, HttpPermit};
use switchyard_wasm::{CONTRACT, ComponentLog, Interfaces, Limits, StoreState, WASI_EMPTY, Wasm};

/// The host imports of a plugin.
pub struct HostImports {
    /// For `attributes`.
    pub connections: Arc<Connections>,
    /// For `counters`.
    pub counters: Arc<CounterSpace>,
    /// Whether existing subscriptions are being checked. This must cost clients nothing, so
    /// `counters` does not count.
    pub is_rechecking: Cell<bool>,
}

/// The interfaces of the contract that plugins may import.
const LENT: &[&str] = &["attributes", "counters", "log"];
/// The interfaces of the contract that this version of the server does not call or offer.
const NOT_SERVED: &[&str] = &["calls", "entries", "publisher", "subscriptions", "timer"];

/// A plugin's code, compiled and linked.
pub struct CompiledPlugin {
    wasm: Wasm,
    instance_pre: InstancePre<StoreState>,
    outside: Option<String>,
    linked: Box<dyn Linked>,
}

/// Which hooks a plugin has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "one for each interface of the contract")]
pub struct Hooks {
    pub admission: bool,
    pub access: bool,
    pub messages: bool,
    pub deliveries: bool,
    pub snapshot: bool,
}

/// A running plugin, in a store of its own.
pub struct Instance {
    store: Store<StoreState>,
    exports: Box<dyn Exports>,
    call_budget: Duration,
    init_budget: Duration,
}

/// A call into a plugin failed; the instance must be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which hook.
    pub hook: &'static str,
    /// What happened, as text.
    pub problem: String,
}

/// A client that wants to connect, as plugins see it.
#[derive(Debug, Clone)]
pub struct Client {
    /// The peer as `address:port`.
    pub remote: String,
    /// The path and query of the upgrade; empty over RESP.
    pub path: String,
    /// The headers of the upgrade, names in lower case; empty over RESP.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its protocol.
    pub door: Door,
}

impl Client {
    fn header_slices(&self) -> Vec<(&str, &[u8])> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect()
    }
}

/// The protocol of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// WebSocket, whatever its sub-protocol.
    WebSocket,
    /// Redis' protocol over TCP.
    Resp,
}

impl CompiledPlugin {
    /// Compiles and links a component, while `is_wanted`. What it imports and exports is checked
    /// before, because compiling takes long. The error names the step and the problem.
    pub fn new(
        wasm: &Wasm,
        bytes: &Arc<[u8]>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<CompiledPlugin, (&'static str, String)> {
        let interfaces = Interfaces::of(bytes).map_err(|problem| ("compile", problem))?;
        check_interfaces(&interfaces).map_err(|problem| ("link", problem))?;
        let compiled = wasm.compile_aside(bytes, is_wanted);
        let component = compiled.map_err(|problem| ("compile", problem))?;
        CompiledPlugin::link(wasm, &component)
    }

    /// Links a compiled component. Errors as those of `new`.
    pub fn link(
        wasm: &Wasm,
        component: &Component,
    ) -> Result<CompiledPlugin, (&'static str, String)> {
        CompiledPlugin::link_checked(wasm, component).map_err(|problem| ("link", problem))
    }

    fn link_checked(wasm: &Wasm, component: &Component) -> Result<CompiledPlugin, String> {
        let interfaces = wasm.interfaces(component);
        let version = check_interfaces(&interfaces)?;
        let outside = outside_import(&interfaces.imports);
        let describe = |error| switchyard_wasm::describe(&error);
        let mut linker = wasm.linker().map_err(describe)?;
        let is_first = version == Some(v0_1::VERSION);
        let lend = if is_first { v0_1::add_to_linker } else { v0_2::add_to_linker };
        lend(&mut linker).map_err(describe)?;
        if outside.is_some() {
            outside::add_to_linker(&mut linker).map_err(describe)?;
        }
        let pre = linker.instantiate_pre(component).map_err(describe)?;
        let link = if is_first { v0_1::link } else { v0_2::link };
        let linked = link(&pre, &interfaces.exports)?;
        Ok(CompiledPlugin { wasm: wasm.clone(), instance_pre: pre, outside, linked })
    }

    /// The interfaces that it imports for HTTP; none: it imports none.
    pub fn outside(&self) -> Option<&str> {
        self.outside.as_deref()
    }

    /// Its hooks.
    pub fn hooks(&self) -> Hooks {
        self.linked.hooks()
    }

    /// The refusal of an action that the version of the contract that it was built for cannot
    /// express; none: the plugin decides.
    pub fn refusal_of_unknown(&self, action: &Action<'_>) -> Option<Refusal> {
        self.linked.refusal_of_unknown(action)
    }

    /// A new instance, not initialised yet.
    pub fn instantiate(
        &self,
        log: Arc<ComponentLog>,
        limits: Limits,
        init_budget: Duration,
        lent: HostImports,
    ) -> Result<Instance, Fault> {
        let mut store = self.wasm.store(log, limits, Box::new(lent));
        switchyard_wasm::arm(&mut store, init_budget);
        let loaded = self
            .instance_pre
            .instantiate(&mut store)
            .and_then(|instance| self.linked.load(&mut store, &instance))
            .map_err(fault("instantiate"));
        let exports = explained(&store, loaded)?;
        Ok(Instance { exports, call_budget: limits.call_budget, init_budget, store })
    }
}

impl Instance {
    /// Permits or forbids HTTP requests in the calls that follow. While they are permitted, calls
    /// block their thread.
    pub fn set_http_permit(&mut self, leave: Option<HttpPermit>) {
        self.store.data_mut().set_http_permit(leave);
    }

    /// The size of its memories.
    pub fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    /// The processor time of a call.
    pub fn budget(&self) -> Duration {
        self.call_budget
    }

    /// `lifecycle.init`. The inner error refuses the plugin.
    pub fn init(&mut self, settings: &str) -> Result<Result<(), String>, Fault> {
        switchyard_wasm::arm(&mut self.store, self.init_budget);
        let answer = self.exports.init(&mut self.store, settings);
        explained(&self.store, answer)
    }

    /// `snapshot.save`; none: the plugin does not export it.
    pub fn save(&mut self, budget: Duration) -> Result<Option<Vec<u8>>, Fault> {
        switchyard_wasm::arm(&mut self.store, budget);
        let answer = self.exports.save(&mut self.store);
        explained(&self.store, answer)
    }

    /// `snapshot.restore`. The inner error says why the state was not restored.
    pub fn restore(
        &mut self,
        state: &[u8],
        budget: Duration,
    ) -> Result<Result<(), &'static str>, Fault> {
        switchyard_wasm::arm(&mut self.store, budget);
        let answer = self.exports.restore(&mut self.store, state);
        explained(&self.store, answer)
    }

    /// `admission.on-connect`.
    pub fn on_connect(
        &mut self,
        connection: ConnectionId,
        client: &Client,
    ) -> Result<Result<(), Refusal>, Fault> {
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let answer = self.exports.on_connect(&mut self.store, connection, client);
        explained(&self.store, answer)
    }

    /// `admission.on-authenticate`.
    pub fn on_authenticate(
        &mut self,
        connection: ConnectionId,
        credentials: &Credentials,
    ) -> Result<Result<bool, Refusal>, Fault> {
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let answer = self.exports.on_authenticate(&mut self.store, connection, credentials);
        explained(&self.store, answer)
    }

    /// `admission.on-disconnect`.
    pub fn on_disconnect(&mut self, connection: ConnectionId) -> Result<(), Fault> {
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let answer = self.exports.on_disconnect(&mut self.store, connection);
        explained(&self.store, answer)
    }

    /// `access.on-access`: one answer for each request; none: allowed.
    pub fn on_access(
        &mut self,
        items: &[Item<Action<'_>>],
    ) -> Result<Batch<Option<Refusal>>, Fault> {
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let answer = self.exports.on_access(&mut self.store, items, false);
        explained(&self.store, answer)
    }

    /// The same for subscriptions that already exist, and for what clients look at. During the
    /// call `counters.take` reports success without taking tokens, and `counters.add` does not
    /// add.
    pub fn recheck(&mut self, items: &[Item<Action<'_>>]) -> Result<Batch<Option<Refusal>>, Fault> {
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        self.store.data().lent::<HostImports>().is_rechecking.set(true);
        let answers = self.exports.on_access(&mut self.store, items, true);
        self.store.data().lent::<HostImports>().is_rechecking.set(false);
        explained(&self.store, answers)
    }

    /// `messages.on-publish`: one verdict for each submission.
    pub fn on_publish(
        &mut self,
        items: &[Item<&Publication<'_>>],
    ) -> Result<Batch<PublishVerdict>, Fault> {
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let answer = self.exports.on_publish(&mut self.store, items);
        explained(&self.store, answer)
    }

    /// `deliveries.on-deliver`: one verdict for each delivery.
    pub fn on_deliver(
        &mut self,
        items: &[Item<Delivery<'_>>],
    ) -> Result<Batch<DeliverVerdict>, Fault> {
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let answer = self.exports.on_deliver(&mut self.store, items);
        explained(&self.store, answer)
    }
}

/// Whether the server serves all interfaces of the contract that a component has.
///
/// # Errors
///
/// Names one that it does not: the plugin may rely on being called, or on what it calls.
/// Checks the names of imports and exports. Returns the version of the contract that they belong to.
fn check_interfaces(interfaces: &Interfaces) -> Result<Option<&'static str>, String> {
    check_served(&interfaces.imports, &interfaces.exports)?;
    let also = [outside::INTERFACES, WASI_EMPTY].concat();
    let version = switchyard_wasm::check_imports(interfaces, LENT, &also)?;
    let lifecycle = format!("{CONTRACT}/lifecycle@");
    match interfaces.exports.iter().any(|name| name.starts_with(&lifecycle)) {
        true => Ok(version),
        false => Err(format!("does not export {CONTRACT}/lifecycle, which every plugin must")),
    }
}

fn check_served(imported: &[String], exported: &[String]) -> Result<(), String> {
    let is_not_served = |name: &&String| {
        let interface = name.strip_prefix(CONTRACT).and_then(|rest| rest.strip_prefix('/'));
        let interface = interface.and_then(|rest| rest.split('@').next());
        interface.is_some_and(|interface| NOT_SERVED.contains(&interface))
    };
    if let Some(name) = exported.iter().find(is_not_served) {
        return Err(format!("exports {name}, which this version of the server does not call yet"));
    }
    if let Some(name) = imported.iter().find(is_not_served) {
        return Err(format!("imports {name}, which this version of the server does not offer yet"));
    }
    Ok(())
}

/// Those imports of a component that are for HTTP.
fn outside_import(imports: &[String]) -> Option<String> {
    let mut wanted = outside::INTERFACES.iter();
    wanted.find_map(|wanted| imports.iter().find(|name| name.starts_with(wanted))).cloned()
}

/// A name as plugins see it. Names that are not UTF-8 are refused before a plugin that sees
/// names is called.
fn text(name: &[u8]) -> &str {
    std::str::from_utf8(name).unwrap_or("\u{fffd}")
}

fn fault(hook: &'static str) -> impl FnOnce(wasmtime::Error) -> Fault {
    move |error| Fault {
        hook,
        problem: clip(&switchyard_wasm::describe(&error), PROBLEM_BYTES_MAX).to_owned(),
    }
}

/// Adds to a fault what the instance wrote to standard error about it.
fn explained<T>(store: &Store<StoreState>, answer: Result<T, Fault>) -> Result<T, Fault> {
    if answer.is_ok() {
        store.data().succeeded();
    }
    answer.map_err(|Fault { hook, problem }| {
        let problem = store.data().explain(&problem);
        Fault { hook, problem: clip(&problem, PROBLEM_BYTES_MAX).to_owned() }
    })
}

/// The maximum length of a failure's description.
const PROBLEM_BYTES_MAX: usize = 1 << 10;

/// A plugin's refusal, fit to be sent: `wit/types.wit` has the rules.
fn refusal(code: String, message: &str) -> Refusal {
    const CODE_BYTES_MAX: usize = 32;
    const MESSAGE_BYTES_MAX: usize = 512;
    let is_word = |code: &str| {
        !code.is_empty()
            && code.len() <= CODE_BYTES_MAX
            && code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    let code = if is_word(&code) { code.into() } else { REJECTED.into() };
    let message = clip(message, MESSAGE_BYTES_MAX).replace(['\r', '\n'], " ");
    Refusal { code, message: message.into(), by: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_served_is_named() {
        let names = |name: &str| vec!["switchyard:pubsub/log@0.2.0".to_owned(), name.to_owned()];
        assert_eq!(
            check_served(&names("wasi:io/poll@0.2.6"), &names("wasi:cli/run@0.2.6")),
            Ok(())
        );
        for interface in NOT_SERVED {
            let name = format!("{CONTRACT}/{interface}@0.2.0");
            let imported = check_served(&names(&name), &[]).err().unwrap_or_default();
            assert!(imported.contains(&name) && imported.starts_with("imports"), "{imported}");
            let exported = check_served(&[], &names(&name)).err().unwrap_or_default();
            assert!(exported.contains(&name) && exported.starts_with("exports"), "{exported}");
        }
    }
}
