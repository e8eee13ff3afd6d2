//! A configured middleware and its running instances.
//!
//! An instance that traps, overruns its budget or breaks the contract is dropped with its
//! store. A spare takes its place at once, and is replaced off the data path, at once the first
//! time and then after a wait that doubles. If there is no spare, the plugin's policy decides
//! for the connections that the instance serves until it is rebuilt. A plugin that fails too
//! often within a time window, for more than one client, is parked: none of its instances is
//! called or rebuilt any more, and its policy decides for all.

mod admitted;
pub(crate) mod call;
pub mod missing;
pub(crate) mod outside;
mod spares;

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, warn};

use super::PluginError;
use super::bindings::{CompiledPlugin, Fault, Hooks, HostImports, Instance};
use super::call_size::CallSize;
use super::counters::CounterSpace;
use super::declaration::{self, PolicySource, TrapPolicy};
use super::directory::PluginConfig;
use super::isolation::{Cause, Isolation, Origin, Strikes};
use super::stats::{Failure, Hook, PluginStats};
use admitted::Admitted;
use outside::BlockingPool;
use spares::{Replacement, Spares};
use switchyard_config::limits::LiveLimits;
use switchyard_hub::connections::Connections;
use switchyard_telemetry::panics;
use switchyard_types::close::clip;
use switchyard_types::command::{Refusal, UNAVAILABLE};
use switchyard_types::ids::ConnectionId;
use switchyard_wasm::{ComponentLog, Limits};

/// The connection id of items from other nodes: no connection has it.
const NO_CONNECTION: ConnectionId = 0;
/// The maximum length of a plugin's description of its failure.
const PROBLEM_BYTES_MAX: usize = 1 << 10;

/// The services that plugins run with.
#[derive(Clone)]
pub struct PluginContext {
    /// For `attributes`.
    pub connections: Arc<Connections>,
    /// The runtime for rebuilds.
    pub runtime: Handle,
    /// The wait before the second rebuild in a row.
    pub rebuild_backoff: Duration,
    /// The longest wait before a rebuild.
    pub rebuild_backoff_max: Duration,
    /// Notified when a plugin is parked.
    pub parked: Arc<Notify>,
    /// The limits that also apply to what plugins return.
    pub limits: Arc<LiveLimits>,
}

/// The state of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// All its instances are available.
    Running,
    /// The policy decides for missing instances, until they are rebuilt.
    Rebuilding {
        /// How many.
        instances: usize,
        /// Why the last one failed.
        last: Fault,
    },
    /// It failed too often: its policy decides until it is replaced.
    Parked {
        /// Why it failed last.
        last: Fault,
    },
}

/// The outcome of handing over state: the predecessor could not save it, or the successor did not
/// accept it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// The predecessor stays in use.
    Whole,
    /// State that can be handed over is; the rest starts empty.
    WhereItCan,
    /// The state is dropped, because the operator requested it.
    Fresh,
}

/// The recent failures of a plugin.
#[derive(Default)]
struct Failures {
    /// Within `strikes_window`; never more than `strikes_max`.
    strikes: Strikes,
    last: Option<Fault>,
}

/// A middleware of the chain.
pub struct Plugin {
    /// Its name in refusals: `name@version`.
    pub identity: Arc<str>,
    /// Its configuration; its place may have changed since.
    pub config: PluginConfig,
    /// The counters of its slot.
    pub stats: Arc<PluginStats>,
    /// Its current slot and file.
    place: Mutex<(String, PathBuf)>,
    /// What happens when it cannot decide.
    pub policy: TrapPolicy,
    /// Where that is set.
    pub policy_source: PolicySource,
    /// Attributes its failures to connections.
    pub(super) isolation: Isolation,
    /// The spare instances.
    pub(super) spares: Spares,
    /// The call sizes of each hook.
    call_sizes: [CallSize; Hook::ALL.len()],
    /// The connections that its slot is called for.
    admitted: Admitted,
    compiled: Arc<CompiledPlugin>,
    instances: Box<[Mutex<InstanceState>]>,
    /// Its instances for clients off the data path, if it has any.
    pool: Option<BlockingPool>,
    /// How many of them are missing.
    missing: AtomicUsize,
    is_parked: AtomicBool,
    failures: Mutex<Failures>,
    log: Arc<ComponentLog>,
    counters: Arc<CounterSpace>,
    context: PluginContext,
    own: Weak<Plugin>,
}

struct InstanceState {
    instance: Option<Box<Instance>>,
    failures_in_a_row: u32,
    failed_at: Option<Instant>,
}

/// The time that is left to hand over state, while all messages wait.
struct HandoverTime {
    began: Duration,
    budget: Duration,
}

impl HandoverTime {
    fn new(budget: Duration) -> HandoverTime {
        HandoverTime { began: switchyard_wasm::thread_cpu_time(), budget }
    }

    fn left(&self) -> Duration {
        self.budget.saturating_sub(switchyard_wasm::thread_cpu_time().saturating_sub(self.began))
    }
}

impl Plugin {
    /// Instantiates and initialises all its instances.
    ///
    /// # Errors
    ///
    /// The step that failed and why.
    pub fn new(
        config: PluginConfig,
        compiled: Arc<CompiledPlugin>,
        counters: Arc<CounterSpace>,
        stats: Arc<PluginStats>,
        context: PluginContext,
    ) -> Result<Arc<Plugin>, PluginError> {
        let hooks = compiled.hooks();
        let (policy, policy_source) = declaration::policy(config.policy, &config.declared, hooks);
        // If it only decides about new clients, nothing passes while it is rebuilt.
        let spares = match hooks.access || hooks.messages || hooks.deliveries {
            true => config.limits.spares,
            false => 0,
        };
        let pool = BlockingPool::new(&compiled, &config, &context.runtime).map_err(
            |(step, problem)| PluginError {
                plugin: config.name.clone(),
                file: config.file.clone(),
                step,
                problem,
            },
        )?;
        let mut failed = Ok(());
        let plugin = Arc::new_cyclic(|own| {
            let mut plugin = Plugin {
                identity: format!("{}@{}", config.name, config.version).into(),
                policy,
                policy_source,
                isolation: Isolation::default(),
                spares: Spares::new(spares),
                call_sizes: Hook::ALL.map(|_| CallSize::new(config.limits.call_budget)),
                admitted: Admitted::default(),
                compiled,
                instances: Box::default(),
                pool,
                missing: AtomicUsize::new(0),
                is_parked: AtomicBool::new(false),
                failures: Mutex::default(),
                log: ComponentLog::new(&config.name, config.limits.log_lines_per_second_max),
                counters,
                stats,
                place: Mutex::new((config.slot.clone(), config.file.clone())),
                config,
                context,
                own: own.clone(),
            };
            match (0..plugin.config.instances).map(|_| plugin.instantiate()).collect() {
                Ok(instances) => plugin.instances = instances,
                Err(error) => failed = Err(error),
            }
            if failed.is_ok()
                && let Some(pool) = &plugin.pool
            {
                failed = plugin.build().map(|instance| pool.put(instance));
            }
            plugin
        });
        failed.map(|()| plugin)
    }

    /// Its code.
    pub fn compiled(&self) -> &Arc<CompiledPlugin> {
        &self.compiled
    }

    /// Its hooks.
    pub fn hooks(&self) -> Hooks {
        self.compiled.hooks()
    }

    /// Its instances for calls off the data path, if it has any. When a client connects,
    /// authenticates or disconnects, these must be called instead of those of the data path.
    pub fn pool(&self) -> Option<&BlockingPool> {
        self.pool.as_ref()
    }

    /// The number of the instance that serves this connection.
    pub fn instance_of(&self, connection: ConnectionId) -> usize {
        connection as usize % self.instances.len()
    }

    /// Whether it is isolated from this connection.
    pub(super) fn is_isolated(&self, now: Instant, connection: ConnectionId) -> bool {
        self.isolation.is_isolated(now, connection, self.config.limits.strikes_window)
    }

    /// Which of these connections it is not called for.
    pub(super) fn isolated_among(
        &self,
        connections: impl Iterator<Item = ConnectionId>,
    ) -> Vec<ConnectionId> {
        self.isolation.among(Instant::now(), connections, self.config.limits.strikes_window)
    }

    /// How many connections it is not called for.
    pub fn isolated(&self) -> usize {
        self.isolation.count(Instant::now(), self.config.limits.strikes_window)
    }

    /// The call size of a hook.
    pub fn call_size(&self, hook: Hook) -> &CallSize {
        let size = self.call_sizes.get(hook as usize);
        size.expect("there is one for each hook")
    }

    /// Its place in the chain.
    pub fn slot(&self) -> String {
        self.place.lock().0.clone()
    }

    /// Sets another place; the chain is sorted afterwards.
    pub fn move_to(&self, slot: String, file: PathBuf) {
        *self.place.lock() = (slot, file);
    }

    /// Its configuration, in its current place.
    pub fn config_now(&self) -> PluginConfig {
        let (slot, file) = self.place.lock().clone();
        PluginConfig { slot, file, ..self.config.clone() }
    }

    /// The size of each instance's memories; none: it is being rebuilt, or busy for longer than a
    /// call may take.
    pub fn memory_bytes(&self) -> Vec<Option<usize>> {
        let patience = self.config.limits.call_budget;
        let of = |state: &Mutex<InstanceState>| {
            let state = state.try_lock_for(patience)?;
            state.instance.as_ref().map(|instance| instance.memory_bytes())
        };
        let pool = self.pool.as_ref().map(BlockingPool::memory_bytes).unwrap_or_default();
        let besides = pool.into_iter().chain(self.spares.memory_bytes()).map(Some);
        self.instances.iter().map(of).chain(besides).collect()
    }

    /// Its state.
    pub fn state(&self) -> State {
        let last = self.failures.lock().last.clone();
        match (last, self.missing.load(Ordering::Relaxed)) {
            (Some(last), _) if self.is_parked() => State::Parked { last },
            (Some(last), instances @ 1..) => State::Rebuilding { instances, last },
            _ => State::Running,
        }
    }

    /// Whether it failed too often and waits to be replaced.
    pub fn is_parked(&self) -> bool {
        self.is_parked.load(Ordering::Relaxed)
    }

    /// The refusal when the policy is closed.
    pub fn unavailable(&self) -> Refusal {
        Refusal {
            by: Some(self.identity.clone()),
            ..Refusal::new(
                UNAVAILABLE,
                format!("the plugin {} cannot answer now", self.config.name),
            )
        }
    }

    /// The refusal, with a reason.
    pub fn unavailable_because(&self, reason: &str) -> Refusal {
        let unavailable = self.unavailable();
        Refusal { message: format!("{}: {reason}", unavailable.message).into(), ..unavailable }
    }

    /// Marks a refusal as this plugin's.
    pub fn signed(&self, refusal: Refusal) -> Refusal {
        Refusal { by: Some(self.identity.clone()), ..refusal }
    }

    /// Records that it is in the chain from now on, in a new slot.
    pub fn enters(&self) {
        self.admitted.start(&self.context.connections);
    }

    /// Called when the plugin is in the chain and will be called from now on.
    pub fn is_in_force(&self) {
        self.refill_after(Duration::ZERO, false);
    }

    /// Whether `on-connect` of this slot was called for the connection.
    pub fn admitted(&self, connection: ConnectionId) -> bool {
        self.admitted.has(connection)
    }

    /// Hands the state of the predecessor's instances over to this one's. No call is running in
    /// either.
    ///
    /// # Errors
    ///
    /// The step that failed and why; the predecessor stays in use.
    pub fn take_over(&self, predecessor: &Plugin, handover: Handover) -> Result<(), PluginError> {
        if predecessor.hooks().admission {
            self.admitted.copy(&predecessor.admitted);
        } else {
            self.enters();
        }
        if !(self.hooks().snapshot && predecessor.hooks().snapshot) {
            return Ok(());
        }
        if handover == Handover::Fresh {
            warn!(plugin = %self.identity, "a plugin starts without its predecessor's state");
            return Ok(());
        }
        if self.instances.len() != predecessor.instances.len() {
            warn!(plugin = %self.identity, "the number of instances changed: the state is not handed over");
            return Ok(());
        }
        let time = HandoverTime::new(self.config.limits.handover_budget);
        for (number, (new, old)) in self.instances.iter().zip(&predecessor.instances).enumerate() {
            let Err(error) = self.take_over_instance(number, new, predecessor, old, &time) else {
                continue;
            };
            if handover == Handover::Whole {
                return Err(error);
            }
            warn!(plugin = %self.identity, instance = number, step = error.step,
                problem = error.problem, "a plugin's state was not handed over");
            if error.step == "restore" {
                // The failed instance must not be called any more.
                let mut new = new.lock();
                new.instance = self.spares.take();
                if new.instance.is_none() {
                    self.missing.fetch_add(1, Ordering::Relaxed);
                    self.rebuild_after(Duration::ZERO, number);
                }
            }
        }
        Ok(())
    }

    fn take_over_instance(
        &self,
        number: usize,
        new: &Mutex<InstanceState>,
        predecessor: &Plugin,
        old: &Mutex<InstanceState>,
        time: &HandoverTime,
    ) -> Result<(), PluginError> {
        let mut old = old.lock();
        let Some(instance) = &mut old.instance else { return Ok(()) };
        let state = match instance.save(time.left()) {
            Ok(state) => state.unwrap_or_default(),
            Err(fault) => {
                predecessor.failed(number, &mut old, &fault, Cause::Plugin);
                return Err(self.error(
                    "save",
                    format!(
                        "the version in place: {} (handover_budget_ms is {}); `switchyard plugin swap {} \
                         FILE --fresh` replaces it without its state",
                        fault.problem,
                        self.config.limits.handover_budget.as_millis(),
                        self.config.name
                    ),
                ));
            }
        };
        let mut new = new.lock();
        let Some(instance) = &mut new.instance else { return Ok(()) };
        match instance.restore(&state, time.left()) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(problem)) => Err(self.error("restore", problem.to_owned())),
            Err(fault) => Err(self.error("restore", fault.problem)),
        }
    }

    fn instantiate(&self) -> Result<Mutex<InstanceState>, PluginError> {
        let instance = Some(Box::new(self.build()?));
        Ok(Mutex::new(InstanceState { instance, failures_in_a_row: 0, failed_at: None }))
    }

    pub(super) fn build(&self) -> Result<Instance, PluginError> {
        let limits = Limits {
            memory_bytes_max: self.config.limits.memory_bytes_max,
            log_lines_per_second_max: self.config.limits.log_lines_per_second_max,
            call_budget: self.config.limits.call_budget,
            table_elements_max: self.config.limits.table_elements_max,
            core_instances_max: self.config.limits.core_instances_max,
            resources_max: self.config.limits.resources_max,
            returned_bytes_max: self.config.limits.returned_bytes_max,
        };
        let imports = HostImports {
            connections: self.context.connections.clone(),
            counters: self.counters.clone(),
            is_rechecking: Cell::new(false),
        };
        let init_budget = self.config.limits.init_budget;
        // Processor time: the thread may be preempted during the call.
        let began = switchyard_wasm::thread_cpu_time();
        let mut instance = self
            .compiled
            .instantiate(self.log.clone(), limits, init_budget, imports)
            .map_err(|fault| self.error(fault.hook, fault.problem))?;
        match instance.init(&self.config.settings) {
            Ok(Ok(())) => {
                self.spares.learn(switchyard_wasm::thread_cpu_time().saturating_sub(began));
                Ok(instance)
            }
            Ok(Err(words)) => {
                let words = clip(&words, PROBLEM_BYTES_MAX).replace(['\r', '\n'], " ");
                Err(self.error("init", words))
            }
            Err(fault) => Err(self.error("init", fault.problem)),
        }
    }

    fn error(&self, step: &'static str, problem: String) -> PluginError {
        PluginError {
            plugin: self.config.name.clone(),
            file: self.config.file.clone(),
            step,
            problem,
        }
    }

    /// An instance failed and was dropped. A spare replaces it if there is one.
    fn failed(&self, number: usize, state: &mut InstanceState, fault: &Fault, cause: Cause) {
        let was_there = state.instance.take().is_some();
        if was_there {
            self.missing.fetch_add(1, Ordering::Relaxed);
        }
        let now = Instant::now();
        if self.strike(now, Some(number), fault, cause) {
            return;
        }
        let wait = self.wait_before_rebuild(state, now);
        let replacement = was_there.then(|| self.replacement()).flatten();
        warn!(
            plugin = %self.identity, hook = fault.hook, problem = fault.problem, instance = number,
            policy = ?self.policy, rebuilt_in_ms = wait.as_millis() as u64,
            taken_over = replacement.is_some(), "a plugin failed and is rebuilt"
        );
        let Some((instance, source)) = replacement else {
            self.rebuild_after(wait, number);
            return;
        };
        state.instance = Some(instance);
        self.missing.fetch_sub(1, Ordering::Relaxed);
        match source {
            Replacement::Spare => {
                if !self.refill_after(wait, true) {
                    // The spares of the start are still being built.
                    self.was_rebuilt(&number.to_string());
                }
            }
            Replacement::Built => self.was_rebuilt(&number.to_string()),
        }
    }

    fn wait_before_rebuild(&self, state: &mut InstanceState, now: Instant) -> Duration {
        let long_ago = |at: Instant| now - at > 2 * self.context.rebuild_backoff_max;
        if state.failed_at.is_none_or(long_ago) {
            state.failures_in_a_row = 0;
        }
        state.failed_at = Some(now);
        let wait = match state.failures_in_a_row {
            0 => Duration::ZERO,
            n => self
                .context
                .rebuild_backoff
                .saturating_mul(1 << (n - 1).min(20))
                .min(self.context.rebuild_backoff_max),
        };
        state.failures_in_a_row += 1;
        wait
    }

    /// An instance that is called off the data path has failed and was dropped. Another
    /// one is created when it is needed.
    pub(super) fn failed_apart(&self, fault: &Fault, cause: Cause) {
        let Some(pool) = &self.pool else { return };
        if self.strike(Instant::now(), None, fault, cause) {
            pool.clear();
        } else {
            let message = match pool.is_outside() {
                true => "a plugin failed in a call with HTTP requests",
                false => "a plugin failed in a call about a client",
            };
            warn!(
                plugin = %self.identity, hook = fault.hook, problem = fault.problem,
                policy = ?self.policy, "{message}"
            );
        }
    }

    /// Counts a failure. Returns whether it exceeded the limit: then the plugin is parked.
    pub(super) fn strike(
        &self,
        now: Instant,
        number: Option<usize>,
        fault: &Fault,
        cause: Cause,
    ) -> bool {
        self.stats.failed(Failure {
            at: SystemTime::now(),
            plugin: self.identity.clone(),
            step: fault.hook,
            problem: fault.problem.clone(),
            file: None,
        });
        let limits = &self.config.limits;
        let mut failures = self.failures.lock();
        failures.last = Some(fault.clone());
        let origin = match cause {
            Cause::Batch => return self.is_parked(),
            Cause::Connection(NO_CONNECTION) | Cause::Plugin => Origin::Plugin,
            Cause::Connection(connection) => self.blame(now, connection),
        };
        if failures.strikes.add(now, origin, limits.strikes_window) < limits.strikes_max {
            return self.is_parked();
        }
        failures.strikes.clear();
        if !self.is_parked.swap(true, Ordering::Relaxed) {
            error!(
                plugin = %self.identity, hook = fault.hook, problem = fault.problem,
                instance = number, policy = ?self.policy, strikes = limits.strikes_max,
                within_ms = limits.strikes_window.as_millis() as u64, on_park = ?limits.on_park,
                "a plugin was parked: it is not rebuilt until it is replaced"
            );
            self.context.parked.notify_one();
        }
        self.spares.clear();
        true
    }

    /// Counts a failure against the connection whose item caused it, and returns its origin.
    fn blame(&self, now: Instant, connection: ConnectionId) -> Origin {
        let limits = &self.config.limits;
        let remote = self.context.connections.get(connection).map(|found| found.remote);
        let (failures_max, window) = (limits.strikes_per_connection_max, limits.strikes_window);
        if self.isolation.blame(now, connection, failures_max, window) {
            self.stats.isolated();
            warn!(
                plugin = %self.identity, connection, remote = remote.map(tracing::field::display),
                failures = failures_max, for_ms = window.as_millis() as u64, policy = ?self.policy,
                "a plugin failed repeatedly on items of one connection: it is not called for them \
                 for a while"
            );
        }
        // Clients behind a proxy on this machine have its address.
        match remote.map(|remote| remote.ip().to_canonical()) {
            Some(address) if !address.is_loopback() => Origin::of(address),
            _ => Origin::Connection(connection),
        }
    }

    pub(super) fn payload_bytes_max(&self) -> usize {
        self.context.limits.payload_bytes_max()
    }

    pub(super) fn own(&self) -> Weak<Plugin> {
        self.own.clone()
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.context.runtime
    }

    pub(super) fn backoff_max(&self) -> Duration {
        self.context.rebuild_backoff_max
    }

    /// Rebuilds an instance off the data path. Does nothing if the plugin has been replaced in
    /// the meantime.
    fn rebuild_after(&self, wait: Duration, number: usize) {
        let own = self.own.clone();
        let backoff_max = self.context.rebuild_backoff_max;
        self.context.runtime.spawn(async move {
            tokio::time::sleep(wait).await;
            // If no thread can be started, or the rebuild does not end, it is retried: nothing else
            // rebuilds a missing instance.
            while !rebuild(own.clone(), number).await {
                tokio::time::sleep(backoff_max).await;
            }
        });
    }

    /// Rebuilds an instance. A panic counts as any other failure to.
    fn rebuild(&self, number: usize) {
        if self.is_parked() {
            return;
        }
        let built = panics::contain(|| self.build())
            .unwrap_or_else(|| Err(self.error("build", panicked("build").problem)));
        let Some(state) = self.instances.get(number) else { return };
        let mut state = state.lock();
        if state.instance.is_some() {
            // How far a failed rebuild had come.
            return;
        }
        match built {
            Ok(instance) => {
                state.instance = Some(Box::new(instance));
                self.missing.fetch_sub(1, Ordering::Relaxed);
                self.was_rebuilt(&number.to_string());
            }
            Err(error) => {
                let fault = Fault { hook: error.step, problem: error.problem };
                self.failed(number, &mut state, &fault, Cause::Plugin);
            }
        }
    }
}

/// Rebuilds an instance on a blocking thread. False: it was not tried, or did not end.
async fn rebuild(plugin: Weak<Plugin>, number: usize) -> bool {
    // Tokio panics if it cannot start a thread.
    let rebuilding = panics::contain(|| {
        tokio::task::spawn_blocking(move || {
            if let Some(plugin) = plugin.upgrade() {
                plugin.rebuild(number);
            }
        })
    });
    match rebuilding {
        Some(rebuilding) => rebuilding.await.is_ok(),
        None => false,
    }
}

/// The problem to report for an instance in whose call the host panicked.
fn panicked(hook: &'static str) -> Fault {
    Fault { hook, problem: "the host panicked; see the log".to_owned() }
}

#[cfg(test)]
mod tests;
