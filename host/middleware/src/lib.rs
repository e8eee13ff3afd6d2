//! Plugins, their chain, and how plugins are replaced while it is in use. Knows no socket, no
//! protocol and no engine. Read `items` first, then `chain`, `plugin` and `changes`.
//!
//! A swap reads and compiles the new plugin without a lock, and instantiates and initialises it before
//! it touches the chain. Only then it takes the chain's write lock, which waits for the running bursts, hands the state
//! over, and replaces the old plugin. If any earlier step fails, the old plugin stays. The replaced
//! version stays compiled, and comes back if its successor is parked and its settings say so.

pub mod admission;
pub mod bindings;
mod call_size;
pub mod chain;
pub mod changes;
pub mod counters;
pub mod declaration;
pub mod directory;
pub mod files;
mod isolation;
pub mod items;
mod order;
pub mod plugin;
pub mod recheck;
pub mod stats;
pub mod trace;
pub mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use bindings::CompiledPlugin;
use chain::Chain;
use changes::{Record, Version};
use counters::Counters;
use declaration::PolicySource;
use declaration::TrapPolicy;
use directory::{Fingerprint, PluginConfig, PluginFiles};
use files::Gaps;
use order::{Begun, Order};
use plugin::{Handover, Plugin, PluginContext};
use recheck::Rechecks;
use stats::{ChangeKind, Failure, Initiator, PluginStats, Swap, Swaps};
use switchyard_config::limits::LiveLimits;
use switchyard_config::{OnPark, PluginsConfig};
use switchyard_hub::connections::Connections;
use switchyard_telemetry::panics;
use switchyard_wasm::Wasm;
use trace::Tracer;
use write::Source;

/// Why a plugin was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{step}: plugin {plugin} ({}): {problem}", .file.display())]
pub struct PluginError {
    /// The name of the plugin.
    pub plugin: String,
    /// The file concerned.
    pub file: PathBuf,
    /// The step that failed: read, config, declaration, compile, link, instantiate, init,
    /// save, restore or write.
    pub step: &'static str,
    /// Why.
    pub problem: String,
}

/// The middleware of a server.
pub struct Middleware {
    chain: RwLock<Chain>,
    wasm: Wasm,
    counters: Counters,
    context: PluginContext,
    config: PluginsConfig,
    /// Held while a change is made: one at a time. Components are compiled before.
    changes: Mutex<Changes>,
    order: Order,
    compiled: Mutex<Compiled>,
    /// Notified when a compilation ended.
    has_compiled: Condvar,
    /// What is known of each occupied slot. Held briefly, and no other lock is acquired while
    /// it is held.
    records: Mutex<BTreeMap<String, Record>>,
    /// The last refusal in each slot, unless a plugin was accepted there since.
    refused: Mutex<BTreeMap<String, (SystemTime, PluginError)>>,
    /// Checks of existing subscriptions that are due.
    rechecks: Rechecks,
    /// What is missing or left over in the plugin directory. Held briefly.
    gaps: Mutex<Gaps>,
    swaps: Swaps,
    tracer: Arc<Tracer>,
    /// How many closed connections there are whose end plugins have not been notified of yet.
    disconnect_notices: watch::Sender<usize>,
}

#[derive(Default)]
struct Changes {
    /// The files last seen in each slot, accepted or refused.
    seen: BTreeMap<String, Fingerprint>,
}

/// Versions that are compiled.
#[derive(Default)]
struct Compiled {
    /// The latest first: a version that is restored need not be compiled again.
    latest: Vec<(String, Arc<CompiledPlugin>)>,
    /// Those that are being compiled.
    pending: BTreeSet<String>,
}

/// How many versions stay compiled, in addition to those in use.
const COMPILED_MAX: usize = 16;
/// How often a change that waits for another compilation of the same version checks whether it is
/// still wanted.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How a plugin is put into its slot.
struct InstallOptions<'a> {
    by: &'a Initiator,
    /// Its place in the order of changes.
    begun: &'a Begun<'a>,
    /// Whether it is a rollback.
    is_rollback: bool,
    /// Whether a new instance is wanted even if nothing has changed.
    is_forced: bool,
    /// The files to write for a restart.
    write_to: Option<&'a Path>,
    /// The slot that it was in, if its files were renamed.
    renamed_from: Option<String>,
    /// Whether it starts without its predecessor's state.
    is_fresh: bool,
}

impl<'a> InstallOptions<'a> {
    /// As its files say, which are in place already.
    fn as_found(by: &'a Initiator, begun: &'a Begun<'a>) -> InstallOptions<'a> {
        InstallOptions {
            by,
            begun,
            is_rollback: false,
            is_forced: false,
            write_to: None,
            renamed_from: None,
            is_fresh: false,
        }
    }
}

impl Middleware {
    /// An empty chain.
    pub fn new(
        wasm: Wasm,
        config: PluginsConfig,
        counters_max: usize,
        connections: Arc<Connections>,
        limits: Arc<LiveLimits>,
        runtime: Handle,
        tracer: Arc<Tracer>,
    ) -> Middleware {
        Middleware {
            chain: RwLock::new(Chain::default().traced_by(tracer.clone())),
            wasm,
            counters: Counters::new(counters_max),
            context: PluginContext {
                connections,
                runtime,
                rebuild_backoff: config.rebuild_backoff,
                rebuild_backoff_max: config.rebuild_backoff_max,
                parked: Arc::new(Notify::new()),
                limits,
            },
            config,
            changes: Mutex::default(),
            order: Order::default(),
            compiled: Mutex::default(),
            has_compiled: Condvar::new(),
            records: Mutex::default(),
            refused: Mutex::default(),
            rechecks: Rechecks::default(),
            gaps: Mutex::default(),
            swaps: Swaps::default(),
            tracer,
            disconnect_notices: watch::Sender::new(0),
        }
    }

    /// The hits and misses of the cache of compiled components; none: there is no cache.
    pub fn cache_counts(&self) -> Option<(usize, usize)> {
        self.wasm.cache_counts()
    }

    /// The last changes of the chain and of the engine.
    pub fn swaps(&self) -> &Swaps {
        &self.swaps
    }

    /// For traces.
    pub fn tracer(&self) -> &Arc<Tracer> {
        &self.tracer
    }

    /// Locks the chain for a burst of commands. A thread must not lock it twice at once, and must
    /// not hold it while waiting.
    pub fn chain(&self) -> RwLockReadGuard<'_, Chain> {
        self.chain.read()
    }

    /// The same, if it can be locked within this time.
    pub fn chain_within(&self, time: Duration) -> Option<RwLockReadGuard<'_, Chain>> {
        self.chain.try_read_for(time)
    }

    /// Puts a plugin into its slot, and replaces the plugin in it. None: it is there already.
    fn place(
        &self,
        changes: &mut Changes,
        files: PluginFiles,
        compiled: Arc<CompiledPlugin>,
        options: InstallOptions<'_>,
    ) -> Result<Option<Swap>, PluginError> {
        let PluginFiles { config, wasm, toml } = files;
        let slot = config.slot.clone();
        let slot_before = options.renamed_from.as_ref().unwrap_or(&slot);
        let current =
            self.chain.read().plugins().iter().find(|p| p.slot() == *slot_before).cloned();
        if !options.is_forced
            && current.as_ref().is_some_and(|current| current.config_now() == config)
        {
            self.refused.lock().remove(&slot);
            return Ok(None);
        }
        let error = |step, problem| PluginError {
            plugin: config.name.clone(),
            file: config.file.clone(),
            step,
            problem,
        };
        if current.is_none() && self.chain.read().plugins().len() >= self.config.plugins_max {
            let problem = format!("there may be {} (plugins.plugins_max)", self.config.plugins_max);
            return Err(error("config", problem));
        }
        let counters = self.counters.space(&config.counters);
        let stats = match self.records.lock().get(slot_before) {
            Some(record) => record.stats.clone(),
            None => Arc::<PluginStats>::default(),
        };
        let unwritable = |io: std::io::Error| error("write", io.to_string());
        let new =
            Plugin::new(config.clone(), compiled, counters, stats.clone(), self.context.clone())?;
        let source = Source { wasm, toml };
        if let Some(directory) = options.write_to {
            source.write(directory, &slot).map_err(unwritable)?;
        }
        let identity = new.identity.clone();
        let in_force = new.clone();
        let handover = match current.as_ref().is_some_and(|old| old.is_parked()) {
            _ if options.is_fresh => Handover::Fresh,
            true => {
                // Instead of those that do not take over their predecessor's state.
                new.build_spares(config.instances)?;
                Handover::WhereItCan
            }
            false => Handover::Whole,
        };
        let replaced = self.replace(|plugins| match &current {
            None => {
                new.enters();
                plugins.push(new);
                plugins.sort_by_key(|plugin| plugin.slot());
                Ok(())
            }
            Some(old) => {
                new.take_over(old, handover)?;
                if let Some(place) = plugins.iter_mut().find(|plugin| Arc::ptr_eq(plugin, old)) {
                    *place = new;
                }
                plugins.sort_by_key(|plugin| plugin.slot());
                Ok(())
            }
        });
        let mut records = self.records.lock();
        let pause = match replaced {
            Ok(pause) => pause,
            Err(failure) => {
                // Restore the plugin in use, so that a restart does not load the refused one.
                if let Some(directory) = options.write_to {
                    let in_use = records.get(&slot).map(|record| record.source.clone());
                    drop(records);
                    if let Err(io) = write::write_back(directory, &slot, in_use.as_ref()) {
                        let file = directory::wasm_file(directory, &slot);
                        error!(%io, file = %file.display(), "the file in use was not written back");
                    }
                    // The current files are in use: the next poll of the directory finds no change.
                    if let Ok(listing) = directory::list(directory)
                        && let Some(fingerprint) = listing.slots.get(&slot)
                    {
                        changes.seen.insert(slot.clone(), fingerprint.clone());
                    }
                }
                return Err(failure);
            }
        };
        options.begun.takes_effect();
        in_force.is_in_force();
        warn_if_open_by_default(&in_force);
        let kind = match &current {
            _ if options.is_rollback => ChangeKind::RolledBack,
            _ if options.renamed_from.is_some() => ChangeKind::Moved,
            Some(_) => ChangeKind::Swapped,
            None => ChangeKind::Added,
        };
        let from = current.as_ref().map(|old| old.identity.clone());
        let before = match records.remove(slot_before).zip(current.as_ref()) {
            // A rollback never returns to a parked plugin. The version before it may be the one
            // that this change restores.
            Some((record, old)) if old.is_parked() => {
                record.before.filter(|_| !options.is_rollback)
            }
            Some((record, old)) => Some(Version {
                config: old.config_now(),
                identity: old.identity.clone(),
                compiled: old.compiled().clone(),
                source: record.source,
            }),
            None => None,
        };
        let at = SystemTime::now();
        let by = options.by.clone();
        let record = Record { source, before, since: at, by: by.clone(), stats };
        records.insert(slot.clone(), record);
        drop(records);
        self.is_whole(slot_before);
        self.refused.lock().remove(&slot);
        // The last reference: its store is dropped here, off the data path.
        drop(current);
        let to = Some(identity);
        Ok(Some(self.done(Swap { at, by, kind, slot: Some(slot), from, to, pause })))
    }

    /// Waits until a plugin is parked; `put_back` is to be called then.
    pub async fn parked(&self) {
        self.context.parked.notified().await;
    }

    /// If the settings of a parked plugin say so, restores the last good version. Blocks: do not
    /// call it on a thread that serves connections.
    pub fn put_back(&self) {
        let mut changes = self.changes.lock();
        let parked: Vec<Arc<Plugin>> = self
            .chain
            .read()
            .plugins()
            .iter()
            .filter(|plugin| plugin.is_parked() && plugin.config.limits.on_park == OnPark::Rollback)
            .cloned()
            .collect();
        for plugin in parked {
            let (slot, from) = (plugin.slot(), &plugin.identity);
            let Some((files, compiled)) = self.before(&slot) else {
                error!(plugin = %from, "a parked plugin stays: there is no version to roll back to");
                continue;
            };
            let by = Initiator::Parked;
            let begun = self.order.begin(&slot);
            let options = InstallOptions {
                is_rollback: true,
                is_forced: true,
                ..InstallOptions::as_found(&by, &begun)
            };
            let file = files.config.file.clone();
            match self.place(&mut changes, files, compiled, options) {
                Ok(placed) => {
                    let swap = placed.expect("a forced change is made");
                    error!(plugin = %swap.to.as_deref().unwrap_or_default(), %from,
                        pause_us = swap.pause.as_micros() as u64, file = %file.display(),
                        "a parked plugin was rolled back; its file still has the parked version");
                }
                Err(error) => error!(plugin = error.plugin, %from, step = error.step,
                    problem = error.problem, "a parked plugin stays: no version could be rolled back to"),
            }
        }
    }

    /// The version that a rollback puts into a slot.
    fn before(&self, slot: &str) -> Option<(PluginFiles, Arc<CompiledPlugin>)> {
        let records = self.records.lock();
        let Version { config, compiled, source, .. } = records.get(slot)?.before.as_ref()?;
        // The current slot, if it was moved since.
        let file = match self.directory() {
            Some(directory) => directory::wasm_file(directory, slot),
            None => config.file.clone(),
        };
        let config = PluginConfig { slot: slot.to_owned(), file, ..config.clone() };
        let Source { wasm, toml } = source.clone();
        Some((PluginFiles { config, wasm, toml }, compiled.clone()))
    }

    /// Removes a plugin from the chain. None: there was none.
    fn take_out(&self, slot: &str, by: &Initiator) -> Option<Swap> {
        let plugin = self.chain.read().plugins().iter().find(|p| p.slot() == slot).cloned()?;
        let pause = self.replace(|plugins| {
            plugins.retain(|other| !Arc::ptr_eq(other, &plugin));
            Ok(())
        });
        self.order.begin(slot).takes_effect();
        self.records.lock().remove(slot);
        self.is_whole(slot);
        Some(self.done(Swap {
            at: SystemTime::now(),
            by: by.clone(),
            kind: ChangeKind::Removed,
            slot: Some(slot.to_owned()),
            from: Some(plugin.identity.clone()),
            to: None,
            pause: pause.unwrap_or_default(),
        }))
    }

    /// Logs a change of the chain, and records it.
    fn done(&self, swap: Swap) -> Swap {
        let pause_us = swap.pause.as_micros() as u64;
        let by = swap.by.name();
        let from = swap.from.as_deref().unwrap_or_default();
        let plugin = swap.to.as_deref().unwrap_or(from);
        let slot = swap.slot.as_deref().unwrap_or_default();
        match swap.kind {
            ChangeKind::Added if swap.by == Initiator::Check => {
                info!(%plugin, "a plugin was checked");
            }
            ChangeKind::Added => info!(%plugin, %by, pause_us, "a plugin was added"),
            ChangeKind::Removed => info!(%plugin, %by, pause_us, "a plugin was removed"),
            ChangeKind::Moved => info!(%plugin, %slot, %by, pause_us, "a plugin was moved"),
            ChangeKind::RolledBack => {
                info!(%plugin, %from, %by, pause_us, "a plugin was rolled back")
            }
            ChangeKind::Swapped | ChangeKind::EngineSwapped | ChangeKind::EngineRolledBack => {
                info!(%plugin, %from, %by, pause_us, "a plugin was swapped");
            }
        }
        self.swaps.record(swap.clone());
        swap
    }

    fn was_refused(&self, slot: &str, refused: &PluginError, by: &Initiator) {
        error!(plugin = refused.plugin, file = %refused.file.display(), step = refused.step,
            problem = refused.problem, by = %by.name(), "a plugin was refused");
        let at = SystemTime::now();
        if let Some(record) = self.records.lock().get(slot) {
            record.stats.failed(Failure {
                at,
                plugin: refused.plugin.as_str().into(),
                step: refused.step,
                problem: refused.problem.clone(),
                file: Some(refused.file.clone()),
            });
        }
        self.refused.lock().insert(slot.to_owned(), (at, refused.clone()));
    }

    /// Takes the chain's write lock and changes the chain. Returns for how long publishers could
    /// not get it: the wait for running bursts, and the change. On an error the chain is unchanged.
    fn replace(
        &self,
        change: impl FnOnce(&mut Vec<Arc<Plugin>>) -> Result<(), PluginError>,
    ) -> Result<Duration, PluginError> {
        let started = Instant::now();
        let mut chain = self.chain.write();
        let mut plugins = chain.plugins().to_vec();
        change(&mut plugins)?;
        let new = Chain::new(plugins).traced_by(self.tracer.clone()).after(&chain);
        let old = std::mem::replace(&mut *chain, new);
        self.rechecks.add_for(&old, &chain);
        // Read the clock before the lock is released: a thread that waits for it may preempt
        // this one then.
        let pause = started.elapsed();
        drop(chain);
        drop(old);
        Ok(pause)
    }

    /// The compiled code of this version. Compiles it, while `is_wanted`, unless it is known; holds
    /// no lock while it compiles. The error names the step and the problem.
    fn compile(
        &self,
        version: &str,
        wasm: &Arc<[u8]>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Arc<CompiledPlugin>, (&'static str, String)> {
        let in_use = |version: &str| {
            let chain = self.chain.read();
            let plugin = chain.plugins().iter().find(|plugin| plugin.config.version == version);
            plugin.map(|plugin| plugin.compiled().clone())
        };
        if let Some(known) = in_use(version) {
            return Ok(known);
        }
        let mut compiled = self.compiled.lock();
        loop {
            if let Some(known) = compiled.find(version) {
                return Ok(known);
            }
            if compiled.pending.insert(version.to_owned()) {
                break;
            }
            self.has_compiled.wait_for(&mut compiled, CHECK_INTERVAL);
            if !is_wanted() {
                return Err(("compile", "it is not wanted any more".to_owned()));
            }
        }
        drop(compiled);
        // A panic in it is contained in its thread, or in `link`, which then fails for this change.
        let done = panics::contain(|| CompiledPlugin::new(&self.wasm, wasm, is_wanted));
        let mut compiled = self.compiled.lock();
        compiled.pending.remove(version);
        self.has_compiled.notify_all();
        let done = done.unwrap_or_else(|| Err(("link", "it panicked".to_owned())))?;
        let done = Arc::new(done);
        compiled.latest.insert(0, (version.to_owned(), done.clone()));
        compiled.latest.truncate(COMPILED_MAX);
        Ok(done)
    }
}

impl Compiled {
    fn find(&mut self, version: &str) -> Option<Arc<CompiledPlugin>> {
        let position = self.latest.iter().position(|(known, _)| known == version)?;
        let found = self.latest.remove(position);
        let compiled = found.1.clone();
        self.latest.insert(0, found);
        Some(compiled)
    }
}

/// Warns about a plugin that is skipped when it fails, if neither its operator nor its author set
/// that.
fn warn_if_open_by_default(plugin: &Plugin) {
    if plugin.policy == TrapPolicy::Open && plugin.policy_source == PolicySource::Default {
        warn!(plugin = %plugin.identity,
            "a plugin that only sees messages does not say how it fails, so messages pass it by \
             while it cannot answer; policy = \"closed\" or \"open\" in its .toml says it");
    }
}
