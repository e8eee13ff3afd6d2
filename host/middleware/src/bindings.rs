//! Middleware as components. One of the two files that contain generated types, which they do not
//! expose.
//!
//! The exports of a component determine its hooks; a hook that it does not export costs nothing.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use smallvec::smallvec;
use tracing::Level;
use wasmtime::Store;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};

use super::counters::{Count, CounterSpace, Taking, Withdrawal};
use super::items::{Action, DeliverVerdict, Item, PublishVerdict};
use generated::exports::switchyard::pubsub as exports;
use generated::switchyard::pubsub as imports;
use switchyard_hub::connections::Connections;
use switchyard_hub::filter::Delivery;
use switchyard_types::batch::Batch;
use switchyard_types::close::clip;
use switchyard_types::command::{Credentials, Publication, REJECTED, Refusal};
use switchyard_types::ids::ConnectionId;
use switchyard_wasm::outside::{self, HttpPermit};
use switchyard_wasm::{ComponentLog, Limits, StoreState, Wasm};

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod generated {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "middleware",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

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

/// A plugin's code, compiled and linked.
pub struct CompiledPlugin {
    wasm: Wasm,
    instance_pre: InstancePre<StoreState>,
    outside: Option<String>,
    lifecycle: exports::lifecycle::GuestIndices,
    admission: Option<exports::admission::GuestIndices>,
    access: Option<exports::access::GuestIndices>,
    messages: Option<exports::messages::GuestIndices>,
    deliveries: Option<exports::deliveries::GuestIndices>,
    snapshot: Option<exports::snapshot::GuestIndices>,
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
    lifecycle: exports::lifecycle::Guest,
    admission: Option<exports::admission::Guest>,
    access: Option<exports::access::Guest>,
    messages: Option<exports::messages::Guest>,
    deliveries: Option<exports::deliveries::Guest>,
    snapshot: Option<exports::snapshot::Guest>,
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

/// The protocol of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// WebSocket, whatever its sub-protocol.
    WebSocket,
    /// Redis' protocol over TCP.
    Resp,
}

impl CompiledPlugin {
    /// Compiles and links a component. The error names the step and the problem.
    pub fn new(wasm: &Wasm, bytes: &[u8]) -> Result<CompiledPlugin, (&'static str, String)> {
        let component = wasm.compile(bytes).map_err(|problem| ("compile", problem))?;
        CompiledPlugin::link(wasm, &component)
    }

    /// Links a compiled component. Errors as those of `new`.
    pub fn link(
        wasm: &Wasm,
        component: &Component,
    ) -> Result<CompiledPlugin, (&'static str, String)> {
        let link = |problem| ("link", problem);
        wasm.check_imports(component, LENT, outside::INTERFACES).map_err(link)?;
        let outside = outside_import(&wasm.interfaces(component).0);
        let mut linker = wasm.linker().map_err(|error| link(switchyard_wasm::describe(&error)))?;
        add_lent(&mut linker).map_err(|error| link(switchyard_wasm::describe(&error)))?;
        if outside.is_some() {
            outside::add_to_linker(&mut linker)
                .map_err(|error| link(switchyard_wasm::describe(&error)))?;
        }
        let pre = linker
            .instantiate_pre(component)
            .map_err(|error| link(switchyard_wasm::describe(&error)))?;
        let lifecycle = exports::lifecycle::GuestIndices::new(&pre).map_err(|_| {
            link(format!(
                "does not export {}/lifecycle, which every plugin must",
                switchyard_wasm::CONTRACT
            ))
        })?;
        // An interface that is exported with another type than the contract's must not be treated
        // as absent.
        let exported: Vec<String> = component
            .component_type()
            .exports(wasm.engine())
            .map(|(name, _)| name.to_owned())
            .collect();
        let is_exported = |interface: &str| {
            exported.iter().any(|name| {
                name.starts_with(&format!("{}/{interface}@", switchyard_wasm::CONTRACT))
            })
        };
        macro_rules! optional {
            ($interface:ident) => {
                match exports::$interface::GuestIndices::new(&pre) {
                    Ok(indices) => Some(indices),
                    Err(_) if !is_exported(stringify!($interface)) => None,
                    Err(error) => {
                        return Err(link(format!(
                            "exports {}/{} unlike the contract: {}",
                            switchyard_wasm::CONTRACT,
                            stringify!($interface),
                            switchyard_wasm::describe(&error)
                        )));
                    }
                }
            };
        }
        Ok(CompiledPlugin {
            wasm: wasm.clone(),
            lifecycle,
            admission: optional!(admission),
            access: optional!(access),
            messages: optional!(messages),
            deliveries: optional!(deliveries),
            snapshot: optional!(snapshot),
            instance_pre: pre,
            outside,
        })
    }

    /// The interfaces that it imports for HTTP; none: it imports none.
    pub fn outside(&self) -> Option<&str> {
        self.outside.as_deref()
    }

    /// Its hooks.
    pub fn hooks(&self) -> Hooks {
        Hooks {
            admission: self.admission.is_some(),
            access: self.access.is_some(),
            messages: self.messages.is_some(),
            deliveries: self.deliveries.is_some(),
            snapshot: self.snapshot.is_some(),
        }
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
        let instance = self.instance_pre.instantiate(&mut store).map_err(fault("instantiate"))?;
        macro_rules! load {
            ($indices:expr) => {
                match &$indices {
                    Some(indices) => {
                        Some(indices.load(&mut store, &instance).map_err(fault("instantiate"))?)
                    }
                    None => None,
                }
            };
        }
        Ok(Instance {
            lifecycle: self.lifecycle.load(&mut store, &instance).map_err(fault("instantiate"))?,
            admission: load!(self.admission),
            access: load!(self.access),
            messages: load!(self.messages),
            deliveries: load!(self.deliveries),
            snapshot: load!(self.snapshot),
            call_budget: limits.call_budget,
            init_budget,
            store,
        })
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

    /// `lifecycle.init`. The inner error refuses the plugin.
    pub fn init(&mut self, settings: &str) -> Result<Result<(), String>, Fault> {
        switchyard_wasm::arm(&mut self.store, self.init_budget);
        self.lifecycle.call_init(&mut self.store, settings).map_err(fault("init"))
    }

    /// `snapshot.save`; none: the plugin does not export it.
    pub fn save(&mut self, budget: Duration) -> Result<Option<Vec<u8>>, Fault> {
        switchyard_wasm::arm(&mut self.store, budget);
        let Some(snapshot) = &self.snapshot else { return Ok(None) };
        snapshot.call_save(&mut self.store).map(Some).map_err(fault("save"))
    }

    /// `snapshot.restore`. The inner error says why the state was not restored.
    pub fn restore(
        &mut self,
        state: &[u8],
        budget: Duration,
    ) -> Result<Result<(), &'static str>, Fault> {
        use exports::snapshot::RestoreError;
        switchyard_wasm::arm(&mut self.store, budget);
        let Some(snapshot) = &self.snapshot else { return Ok(Ok(())) };
        let restored = snapshot.call_restore(&mut self.store, state).map_err(fault("restore"))?;
        Ok(restored.map_err(|error| match error {
            RestoreError::Unsupported => "it does not read the version of its predecessor's state",
            RestoreError::Corrupt => "it takes its predecessor's state for corrupt",
        }))
    }

    /// `admission.on-connect`.
    pub fn on_connect(
        &mut self,
        connection: ConnectionId,
        client: &Client,
    ) -> Result<Result<(), Refusal>, Fault> {
        use exports::admission as wit;
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let Some(admission) = &self.admission else { return Ok(Ok(())) };
        let headers: Vec<(&str, &[u8])> =
            client.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let client = wit::Client {
            protocol: match client.door {
                Door::WebSocket => wit::Protocol::Websocket,
                Door::Resp => wit::Protocol::Resp,
            },
            remote: &client.remote,
            path: &client.path,
            headers: &headers,
        };
        let answer = admission
            .call_on_connect(&mut self.store, connection, client)
            .map_err(fault("on-connect"))?;
        Ok(answer.map_err(refusal))
    }

    /// `admission.on-authenticate`.
    pub fn on_authenticate(
        &mut self,
        connection: ConnectionId,
        credentials: &Credentials,
    ) -> Result<Result<bool, Refusal>, Fault> {
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let Some(admission) = &self.admission else { return Ok(Ok(false)) };
        let credentials = exports::admission::Credentials {
            user: credentials.user.as_deref(),
            secret: &credentials.secret,
        };
        let answer = admission
            .call_on_authenticate(&mut self.store, connection, credentials)
            .map_err(fault("on-authenticate"))?;
        Ok(answer.map_err(refusal))
    }

    /// `admission.on-disconnect`.
    pub fn on_disconnect(&mut self, connection: ConnectionId) -> Result<(), Fault> {
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let Some(admission) = &self.admission else { return Ok(()) };
        admission.call_on_disconnect(&mut self.store, connection).map_err(fault("on-disconnect"))
    }

    /// `access.on-access`: one answer for each request.
    pub fn on_access(
        &mut self,
        items: &[Item<Action<'_>>],
    ) -> Result<Batch<Option<Refusal>>, Fault> {
        use exports::access as wit;
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let Some(access) = &self.access else { return Ok(smallvec![None; items.len()]) };
        let action = |action| match action {
            Action::Subscribe(channel) => wit::Action::Subscribe(channel),
            Action::Psubscribe(pattern) => wit::Action::Psubscribe(pattern),
            Action::Publish { channel, payload_bytes } => {
                let payload_bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
                wit::Action::Publish(wit::PublishIntent { channel, payload_bytes })
            }
        };
        let requests: Batch<wit::Request<'_>> = items
            .iter()
            .map(|item| wit::Request { connection: item.connection, action: action(item.about) })
            .collect();
        let answers =
            access.call_on_access(&mut self.store, &requests).map_err(fault("on-access"))?;
        expect_count("on-access", answers.len(), requests.len())?;
        Ok(answers.into_iter().map(|answer| answer.map(refusal)).collect())
    }

    /// The same for subscriptions that already exist. During the call `counters.take` reports
    /// success without taking tokens, and `counters.add` does not add.
    pub fn recheck(&mut self, items: &[Item<Action<'_>>]) -> Result<Batch<Option<Refusal>>, Fault> {
        self.store.data().lent::<HostImports>().is_rechecking.set(true);
        let answers = self.on_access(items);
        self.store.data().lent::<HostImports>().is_rechecking.set(false);
        answers
    }

    /// `messages.on-publish`: one verdict for each submission.
    pub fn on_publish(
        &mut self,
        items: &[Item<&Publication<'_>>],
    ) -> Result<Batch<PublishVerdict>, Fault> {
        use exports::messages as wit;
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let Some(messages) = &self.messages else { return Ok(Batch::new()) };
        let submissions: Batch<wit::Submission<'_>> = items
            .iter()
            .map(|Item { connection, about: publication, .. }| wit::Submission {
                connection: *connection,
                publication: imports::types::PublicationParam {
                    channel: text(&publication.channel),
                    payload: &publication.payload,
                },
            })
            .collect();
        let verdicts =
            messages.call_on_publish(&mut self.store, &submissions).map_err(fault("on-publish"))?;
        expect_count("on-publish", verdicts.len(), submissions.len())?;
        let own = |verdict| match verdict {
            wit::PublishVerdict::Continue => PublishVerdict::Continue,
            wit::PublishVerdict::Replace(new) => {
                PublishVerdict::Replace { channel: new.channel, payload: new.payload }
            }
            wit::PublishVerdict::Reject(why) => PublishVerdict::Reject(refusal(why)),
            wit::PublishVerdict::Absorb(receivers) => PublishVerdict::Absorb(receivers),
        };
        Ok(verdicts.into_iter().map(own).collect())
    }

    /// `deliveries.on-deliver`: one verdict for each delivery.
    pub fn on_deliver(
        &mut self,
        items: &[Item<Delivery<'_>>],
    ) -> Result<Batch<DeliverVerdict>, Fault> {
        use exports::deliveries as wit;
        switchyard_wasm::arm(&mut self.store, self.call_budget);
        let Some(hook) = &self.deliveries else { return Ok(Batch::new()) };
        let deliveries: Vec<wit::Delivery<'_>> = items
            .iter()
            .map(|Item { about: delivery, .. }| wit::Delivery {
                publication: imports::types::PublicationParam {
                    channel: text(delivery.channel),
                    payload: &delivery.payload,
                },
                recipients: &delivery.recipients,
            })
            .collect();
        let verdicts =
            hook.call_on_deliver(&mut self.store, &deliveries).map_err(fault("on-deliver"))?;
        expect_count("on-deliver", verdicts.len(), deliveries.len())?;
        let own = |verdict| match verdict {
            wit::DeliverVerdict::Continue => DeliverVerdict::Continue,
            wit::DeliverVerdict::Replace(payload) => DeliverVerdict::Replace(payload),
            wit::DeliverVerdict::Narrow(recipients) => DeliverVerdict::Narrow(recipients),
        };
        Ok(verdicts.into_iter().map(own).collect())
    }
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

/// The maximum length of a failure's description.
const PROBLEM_BYTES_MAX: usize = 1 << 10;

fn expect_count(hook: &'static str, answers: usize, questions: usize) -> Result<(), Fault> {
    if answers == questions {
        return Ok(());
    }
    Err(Fault { hook, problem: format!("it gave {answers} answers to {questions} questions") })
}

/// A plugin's refusal, fit to be sent: `wit/types.wit` has the rules.
fn refusal(refusal: imports::types::Refusal) -> Refusal {
    const CODE_BYTES_MAX: usize = 32;
    const MESSAGE_BYTES_MAX: usize = 512;
    let is_word = |code: &str| {
        !code.is_empty()
            && code.len() <= CODE_BYTES_MAX
            && code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    let code = if is_word(&refusal.code) { refusal.code.into() } else { REJECTED.into() };
    let message = clip(&refusal.message, MESSAGE_BYTES_MAX).replace(['\r', '\n'], " ");
    Refusal { code, message: message.into(), by: None }
}

fn add_lent(linker: &mut Linker<StoreState>) -> Result<(), wasmtime::Error> {
    imports::types::add_to_linker::<StoreState, HasSelf<StoreState>>(linker, |state| state)?;
    imports::log::add_to_linker::<StoreState, HasSelf<StoreState>>(linker, |state| state)?;
    imports::attributes::add_to_linker::<StoreState, HasSelf<StoreState>>(linker, |state| state)?;
    imports::counters::add_to_linker::<StoreState, HasSelf<StoreState>>(linker, |state| state)?;
    Ok(())
}

impl imports::types::Host for StoreState {}

impl imports::log::Host for StoreState {
    fn log(&mut self, level: imports::log::Level, message: String) {
        use imports::log::Level as Wit;
        let level = match level {
            Wit::Trace => Level::TRACE,
            Wit::Debug => Level::DEBUG,
            Wit::Info => Level::INFO,
            Wit::Warn => Level::WARN,
            Wit::Error => Level::ERROR,
        };
        self.log.line(level, &message);
    }
}

impl imports::attributes::Host for StoreState {
    fn get(&mut self, connection: ConnectionId, key: String) -> Option<String> {
        self.lent::<HostImports>().connections.get(connection)?.attribute(&key)
    }

    fn set(
        &mut self,
        connection: ConnectionId,
        key: String,
        value: Option<String>,
    ) -> Result<(), imports::attributes::AttributesError> {
        match self.lent::<HostImports>().connections.get(connection) {
            Some(connection) if !connection.set_attribute(&key, value) => {
                Err(imports::attributes::AttributesError::Full)
            }
            _ => Ok(()),
        }
    }
}

impl imports::counters::Host for StoreState {
    fn add(
        &mut self,
        key: String,
        delta: i64,
        ttl_ms: u64,
    ) -> Result<imports::counters::Count, imports::counters::CountersError> {
        let ttl = Duration::from_millis(ttl_ms);
        let lent = self.lent::<HostImports>();
        if lent.is_rechecking.get() {
            let unchanged = lent.counters.get(&key).unwrap_or(Count { value: 0, ttl });
            return Ok(wit_count(unchanged));
        }
        let count = lent.counters.add(key, delta, ttl);
        count.map(wit_count).ok_or(imports::counters::CountersError::Full)
    }

    fn get(&mut self, key: String) -> Option<imports::counters::Count> {
        self.lent::<HostImports>().counters.get(&key).map(wit_count)
    }

    fn take(
        &mut self,
        withdrawals: Vec<imports::counters::Withdrawal>,
    ) -> Result<imports::counters::Taking, imports::counters::CountersError> {
        use imports::counters as wit;
        let lent = self.lent::<HostImports>();
        if lent.is_rechecking.get() {
            return Ok(wit::Taking::Taken);
        }
        let own = |wit::Withdrawal { bucket, tokens }| Withdrawal {
            key: bucket.key,
            capacity: bucket.capacity,
            refill: bucket.refill,
            refill_time: Duration::from_millis(bucket.refill_ms),
            tokens,
        };
        let withdrawals = withdrawals.into_iter().map(own).collect();
        match lent.counters.take(withdrawals) {
            Some(Taking::Granted) => Ok(wit::Taking::Taken),
            Some(Taking::Short { position, retry }) => Ok(wit::Taking::Short(wit::Shortage {
                position: position as u32,
                // Never too early: a fraction of a millisecond is rounded up.
                retry_ms: retry.map(|retry| retry.as_nanos().div_ceil(1_000_000) as u64),
            })),
            None => Err(wit::CountersError::Full),
        }
    }
}

fn wit_count(count: Count) -> imports::counters::Count {
    imports::counters::Count { value: count.value, ttl_ms: count.ttl.as_millis() as u64 }
}
