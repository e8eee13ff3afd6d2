//! The interface to Wasmtime. Besides it, only the two files with bindings use Wasmtime.
//!
//! It has one engine for all components, synchronous calls and no ambient authority: a component
//! gets an empty WASI (its output goes to the log) and the host imports of its contract. Every
//! store is bounded in memory, every call in processor time. This crate does not know what the
//! components are for.
//!
//! It is a separate crate because linking WASI takes the compiler longer than the rest of the
//! server together.

pub mod cache;
mod compile;
mod last_words;
mod log;
mod metadata;
pub mod outside;
mod wasi;

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::runtime::Handle;
use tracing::Level;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{
    Cache, Config, Engine, ResourceLimiter, Store, Trap, UpdateDeadline, WasmBacktrace,
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use compile::Gate;
use last_words::LastWords;
use outside::{HttpPermit, HttpState};

pub use compile::CompileLimits;
pub use log::ComponentLog;
pub use metadata::{Interfaces, custom_section, own_version};

/// The contract that this host serves.
pub const CONTRACT: &str = "switchyard:pubsub";
/// The versions of the contract that this host serves, the newest first.
pub const CONTRACT_VERSIONS: [&str; 2] = ["0.2.0", "0.1.0"];

/// How often deadlines are checked: the precision of a budget. A shorter tick costs wake-ups on an
/// idle server.
const TICK: Duration = Duration::from_millis(2);

/// The limits of one store and its calls.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Linear memory, over all memories of the component.
    pub memory_bytes_max: usize,
    /// Elements, over all tables of the component.
    pub table_elements_max: usize,
    /// Core instances of the component.
    pub core_instances_max: usize,
    /// Handles to resources (streams, pollables and the like) held at once.
    pub resources_max: usize,
    /// Lists and strings that pass to the host in one call.
    pub returned_bytes_max: usize,
    /// Lines in the log.
    pub log_lines_per_second_max: u32,
    /// Processor time of a call.
    pub call_budget: Duration,
}

/// A call exceeded its processor time.
#[derive(Debug, Error)]
#[error("took more than its budget of {} ms", .0.as_millis())]
pub struct BudgetOverrun(pub Duration);

/// Compiles components and makes stores for them.
#[derive(Clone)]
pub struct Wasm {
    engine: Engine,
    cache: Option<Cache>,
    gate: Arc<Gate>,
}

/// The host's state for a component.
pub struct StoreState {
    wasi: WasiCtx,
    table: ResourceTable,
    limiter: Limiter,
    budget: Budget,
    outside: HttpState,
    /// The target of its log lines.
    pub log: Arc<ComponentLog>,
    last_words: Arc<LastWords>,
    lent: Box<dyn Any + Send>,
}

/// How much of the call's processor time is left.
struct Budget {
    limit: Duration,
    /// The thread's processor time when the call was first seen at a tick; it is not read earlier,
    /// because reading it costs more than most calls.
    seen_at: Option<Duration>,
}

impl StoreState {
    /// The host imports of its contract.
    ///
    /// # Panics
    ///
    /// The store was created with another type.
    pub fn lent<T: 'static>(&self) -> &T {
        self.lent.downcast_ref().expect("a store is made with what its linker lends")
    }

    /// The problem of a call that failed, as `describe` returned it, with what the instance wrote to
    /// standard error about it: a panic's message, or an exception. One line of bounded length,
    /// without control characters.
    pub fn explain(&self, problem: &str) -> String {
        self.log_held(Level::DEBUG);
        self.last_words.explain(problem, problem == PANICKED)
    }

    /// Must be called after each call that did not fail: logs what looked like the report of a
    /// failure, and was not.
    pub fn succeeded(&self) {
        self.log_held(Level::INFO);
    }

    fn log_held(&self, level: Level) {
        self.last_words.take_held().iter().for_each(|line| self.log.line(level, line));
    }

    /// The size of its memories.
    pub fn memory_bytes(&self) -> usize {
        self.limiter.memory_bytes
    }

    /// Permits or forbids HTTP requests from now on. While they are permitted, calls block their
    /// thread, which must not be a worker of a runtime.
    pub fn set_http_permit(&mut self, leave: Option<HttpPermit>) {
        self.outside.set_http_permit(leave);
    }
}

impl WasiView for StoreState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl Wasm {
    /// Sets up the engine and starts the timer for its deadlines, which stops when the last
    /// component is dropped.
    ///
    /// # Errors
    ///
    /// Wasmtime does not compile for this machine.
    pub fn new() -> Result<Wasm, wasmtime::Error> {
        Wasm::with_cache(None, CompileLimits::default())
    }

    /// As `new`, with a cache of compiled components, if there is one, and limits for compiling
    /// aside.
    ///
    /// # Errors
    ///
    /// As `new`.
    pub fn with_cache(
        cache: Option<Cache>,
        limits: CompileLimits,
    ) -> Result<Wasm, wasmtime::Error> {
        let wasm = Wasm::set_up(cache, limits)?;
        let weak = wasm.engine.weak();
        std::thread::Builder::new().name("deadlines".to_owned()).spawn(move || {
            while let Some(engine) = weak.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(TICK);
            }
        })?;
        Ok(wasm)
    }

    /// The same without the timer: for counting instructions, which must not depend on time. No
    /// budget ends a call.
    ///
    /// # Errors
    ///
    /// As `new`.
    pub fn without_deadlines() -> Result<Wasm, wasmtime::Error> {
        Wasm::set_up(None, CompileLimits::default())
    }

    fn set_up(cache: Option<Cache>, limits: CompileLimits) -> Result<Wasm, wasmtime::Error> {
        let mut config = Config::new();
        config.cache(cache.clone());
        // Three times cheaper calls than with it (DESIGN: what a call costs).
        config.concurrency_support(false);
        config.epoch_interruption(true);
        Ok(Wasm { engine: Engine::new(&config)?, cache, gate: Gate::new(limits) })
    }

    /// Compiles a component. This takes long: do not call it on the data path.
    ///
    /// # Errors
    ///
    /// The bytes are not a component; the error is a message.
    pub fn compile(&self, bytes: &[u8]) -> Result<Component, String> {
        check_kind(bytes)?;
        let component = Component::new(&self.engine, bytes).map_err(|error| describe(&error))?;
        prepare_memory_images(&component).map_err(|error| describe(&error))?;
        Ok(component)
    }

    /// The names of a component's imports and exports.
    pub fn interfaces(&self, component: &Component) -> Interfaces {
        let component_type = component.component_type();
        let imports = component_type.imports(&self.engine).map(|(name, _)| name.to_owned());
        let exports = component_type.exports(&self.engine).map(|(name, _)| name.to_owned());
        Interfaces { imports: imports.collect(), exports: exports.collect() }
    }

    /// The hits and misses of the cache; none: there is no cache.
    pub fn cache_counts(&self) -> Option<(usize, usize)> {
        self.cache.as_ref().map(|cache| (cache.cache_hits(), cache.cache_misses()))
    }

    /// The context for looking up component types.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// A linker with the empty WASI.
    ///
    /// # Errors
    ///
    /// Two interfaces have the same name: a bug in this function.
    pub fn linker(&self) -> Result<Linker<StoreState>, wasmtime::Error> {
        let mut linker = Linker::new(&self.engine);
        wasi::add_to_linker(&mut linker)?;
        Ok(linker)
    }

    /// An empty store for one instance, whose output goes to `log`, with the host imports `lent`.
    pub fn store(
        &self,
        log: Arc<ComponentLog>,
        limits: Limits,
        lent: Box<dyn Any + Send>,
    ) -> Store<StoreState> {
        let mut wasi = WasiCtx::builder();
        wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
        let last_words = Arc::new(LastWords::default());
        wasi.stdout(log::OutputToLog::stdout(log.clone()));
        wasi.stderr(log::OutputToLog::stderr(log.clone(), last_words.clone()));
        let limiter = Limiter { limits, memory_bytes: 0, table_elements: 0 };
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.resources_max);
        let mut store = Store::new(
            &self.engine,
            StoreState {
                wasi: wasi.build(),
                table,
                limiter,
                budget: Budget { limit: limits.call_budget, seen_at: None },
                outside: HttpState::default(),
                log,
                last_words,
                lent,
            },
        );
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(limits.returned_bytes_max);
        store.set_max_component_handles(limits.resources_max);
        store.epoch_deadline_callback(|mut context| {
            let budget = &mut context.data_mut().budget;
            let now = thread_cpu_time();
            let seen_at = *budget.seen_at.get_or_insert_with(|| {
                notify_idle_worker();
                now
            });
            if now.saturating_sub(seen_at) < budget.limit {
                return Ok(UpdateDeadline::Continue(1));
            }
            Err(wasmtime::Error::new(BudgetOverrun(budget.limit)))
        });
        store
    }
}

/// Checks that the component imports only an empty WASI, the host imports of the contract and
/// those of `also`, and that it uses one version of the contract, which this host serves.
/// Returns that version; none: it uses nothing of the contract.
///
/// # Errors
///
/// Names the first import or export that is not permitted, or the versions.
pub fn check_imports(
    Interfaces { imports, exports }: &Interfaces,
    lent: &[&str],
    also: &[&str],
) -> Result<Option<&'static str>, String> {
    let mut used = None;
    for name in imports.iter().chain(exports) {
        let Some(version) = served_version(name)? else { continue };
        match used {
            Some(other) if other != version => {
                return Err(format!(
                    "uses {CONTRACT}@{other} and {name}: a component must use one version of \
                     the contract throughout"
                ));
            }
            _ => used = Some(version),
        }
    }
    for name in imports {
        let interface = name.split_once('@').map_or(name.as_str(), |(interface, _)| interface);
        let granted = match interface.strip_prefix(CONTRACT) {
            Some(of_ours) => {
                of_ours == "/types"
                    || lent.iter().any(|lent| of_ours.strip_prefix('/') == Some(lent))
            }
            None => {
                also.contains(&interface)
                    || WASI_GRANTED.iter().any(|package| interface.starts_with(package))
            }
        };
        if !granted {
            return Err(format!(
                "imports {name}, which is not granted; granted are {} and {CONTRACT}/{{{}}}",
                WASI_GRANTED.join("*, ") + "*",
                lent.join(", ")
            ));
        }
    }
    Ok(used)
}

/// Checks that these bytes are a component.
///
/// # Errors
///
/// They are something else; the error is a message.
fn check_kind(bytes: &[u8]) -> Result<(), String> {
    if !bytes.starts_with(b"\0asm") {
        return Err("not a WebAssembly file".to_owned());
    }
    // A core module differs from a component in the bytes of the layer field.
    if bytes.get(6..8) == Some(&[0, 0]) {
        return Err("a core module, not a component: build it for wasm32-wasip2, or use \
                    `wasm-tools component new`"
            .to_owned());
    }
    Ok(())
}

/// Writes the initial memory of a component's instances to files in memory, which instances map.
/// Without this, the first instantiation does it. The kernel refuses to seal such a file while it
/// still uses pages of it for something else (EBUSY; `memfd_wait_for_pins` in its mm/memfd.c), so
/// this is tried again with a new file.
fn prepare_memory_images(component: &Component) -> Result<(), wasmtime::Error> {
    const WAITS_MS: [u64; 4] = [10, 50, 250, 1_000];
    for wait in WAITS_MS {
        match component.initialize_copy_on_write_image() {
            Err(error) if is_busy(&error) => std::thread::sleep(Duration::from_millis(wait)),
            done => return done,
        }
    }
    component.initialize_copy_on_write_image()
}

fn is_busy(error: &wasmtime::Error) -> bool {
    let errors = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    errors.into_iter().any(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

/// The served version of the contract that an interface belongs to; none: it belongs to another
/// package.
///
/// # Errors
///
/// It belongs to a version that this host does not serve.
fn served_version(interface: &str) -> Result<Option<&'static str>, String> {
    let Some((_, version)) = interface
        .strip_prefix(CONTRACT)
        .and_then(|rest| rest.strip_prefix('/'))
        .map(|rest| rest.split_once('@').unwrap_or((rest, "")))
    else {
        return Ok(None);
    };
    // Before 1.0.0, versions with different minor numbers are incompatible.
    let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
    match CONTRACT_VERSIONS.iter().find(|served| minor(served) == minor(version)) {
        Some(served) => Ok(Some(served)),
        None => Err(format!(
            "built for {interface}, but this server serves {CONTRACT}@{}",
            CONTRACT_VERSIONS.join(" and @")
        )),
    }
}

/// The limits of one store: all its memories together, and all its tables together.
struct Limiter {
    limits: Limits,
    memory_bytes: usize,
    table_elements: usize,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> Result<bool, wasmtime::Error> {
        let wanted = self.memory_bytes.saturating_sub(current).saturating_add(desired);
        let fits = wanted <= self.limits.memory_bytes_max;
        if fits {
            self.memory_bytes = wanted;
        }
        Ok(fits)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> Result<bool, wasmtime::Error> {
        let wanted = self.table_elements.saturating_sub(current).saturating_add(desired);
        let fits = wanted <= self.limits.table_elements_max;
        if fits {
            self.table_elements = wanted;
        }
        Ok(fits)
    }

    fn instances(&self) -> usize {
        self.limits.core_instances_max
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

/// The interpreters of other languages have more than one of each.
const MEMORIES_MAX: usize = 8;
const TABLES_MAX: usize = 64;

/// The permitted imports of every component: an empty environment, clocks, randomness and streams
/// that lead to the log.
const WASI_GRANTED: &[&str] = &["wasi:cli/", "wasi:clocks/", "wasi:io/", "wasi:random/"];

/// A file system without files, and sockets that cannot be created. The interpreters of other
/// languages import them, whether or not a plugin uses them.
pub const WASI_EMPTY: &[&str] = &[
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// Must be called before each call into a component: sets a new budget.
pub fn arm(store: &mut Store<StoreState>, budget: Duration) {
    store.data_mut().budget = Budget { limit: budget, seen_at: None };
    store.set_epoch_deadline(1);
}

/// Has another worker of the runtime poll its I/O driver and timers while this one is in a long
/// call. A worker that leaves the driver for a single task runs it without waking another worker to
/// replace it. The second task here wakes one; the first alone would stay with this thread.
fn notify_idle_worker() {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(async {});
        runtime.spawn(async {});
    }
}

/// The version of these bytes: the first twelve digits of their SHA-256.
pub fn version_of(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// What `describe` returns for the trap of a panic, which says nothing itself.
const PANICKED: &str = "it panicked or ran out of memory";

/// The error in one line, without the backtrace, which names functions that mean nothing to an
/// operator.
pub fn describe(error: &wasmtime::Error) -> String {
    if let Some(overrun) = error.downcast_ref::<BudgetOverrun>() {
        return overrun.to_string();
    }
    if let Some(trap) = error.downcast_ref::<Trap>() {
        return match trap {
            Trap::UnreachableCodeReached => PANICKED.to_owned(),
            other => format!("it trapped: {other}"),
        };
    }
    let is_backtrace = error.downcast_ref::<WasmBacktrace>().is_some();
    let words: Vec<String> = error
        .chain()
        .skip(usize::from(is_backtrace))
        .map(|cause| cause.to_string().replace('\n', " "))
        .collect();
    words.join(": ")
}

/// How much processor time this thread has used.
pub fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.max(0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_file_is_told_from_other_failures() {
        let failure = |code: i32| {
            let cause = io::Error::from_raw_os_error(code);
            wasmtime::Error::new(cause).context("cannot add seals to the memfd")
        };
        const EBUSY: i32 = 16;
        const EMFILE: i32 = 24;
        assert!(is_busy(&failure(EBUSY)));
        assert!(!is_busy(&failure(EMFILE)));
        assert!(!is_busy(&wasmtime::Error::msg("it is no component")));
    }

    #[test]
    fn versions_with_the_same_minor_number_are_one() {
        let version = |interface| served_version(interface);
        assert_eq!(version("switchyard:pubsub/log@0.2.0"), Ok(Some("0.2.0")));
        assert_eq!(version("switchyard:pubsub/log@0.2.7"), Ok(Some("0.2.0")));
        assert_eq!(version("switchyard:pubsub/log@0.1.3"), Ok(Some("0.1.0")));
        assert_eq!(version("wasi:io/streams@0.2.6"), Ok(None));
        assert_eq!(version("switchyard:pubsub-more/log@9.0.0"), Ok(None));
        for other in
            ["switchyard:pubsub/log@0.3.0", "switchyard:pubsub/log", "switchyard:pubsub/log@1"]
        {
            let refused = version(other).err().unwrap_or_default();
            assert!(refused.contains("switchyard:pubsub@0.2.0 and @0.1.0"), "{refused}");
        }
    }
}
