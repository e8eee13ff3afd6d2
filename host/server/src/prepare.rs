//! Makes what a server consists of, as it is configured.

use std::sync::Arc;

use anyhow::Context;

use crate::auth_attempts::AuthAttempts;
use crate::compile_cache;
use crate::engine_swap::EngineSwaps;
use crate::live_config::LiveConfig;
use crate::session::Services;
use switchyard_backplane::Backplane;
use switchyard_config::limits::LiveLimits;
use switchyard_config::{Config, ConfigError, EngineSource};
use switchyard_engine::EngineCode;
use switchyard_hub::Hub;
use switchyard_hub::connections::Connections;
use switchyard_hub::engine::EngineFactory;
use switchyard_middleware::Middleware;
use switchyard_middleware::stats::Initiator;
use switchyard_middleware::trace::Tracer;
use switchyard_middleware::write;
use switchyard_telemetry::log;

/// Loads certificates, engine and plugins, for a server that starts.
///
/// # Errors
///
/// As `prepare_by`.
pub fn prepare(config: &Config) -> anyhow::Result<(LiveConfig, Services, Arc<EngineSwaps>)> {
    prepare_by(config, &Initiator::Start)
}

/// Loads certificates, engine and plugins. `by` is the start, which also removes files that a killed
/// server left, or a check, which changes no file.
///
/// # Errors
///
/// A certificate, the engine or a plugin is refused, or other machines could connect and no plugin
/// decides which clients may.
pub fn prepare_by(
    config: &Config,
    by: &Initiator,
) -> anyhow::Result<(LiveConfig, Services, Arc<EngineSwaps>)> {
    prepare_with(config, by, |code| Arc::new(code))
}

/// The same with an engine that `engine` makes of the configured one.
///
/// # Errors
///
/// As `prepare_by`.
pub fn prepare_with(
    config: &Config,
    by: &Initiator,
    engine: impl FnOnce(EngineCode) -> Arc<dyn EngineFactory>,
) -> anyhow::Result<(LiveConfig, Services, Arc<EngineSwaps>)> {
    let stats = Arc::default();
    let live = LiveConfig::new(config.clone(), &stats).context("cannot use a certificate")?;
    let wasm = compile_cache::open(&config.plugins)?;
    let connections = Connections::new(
        config.limits.connections_max,
        config.outbox,
        config.limits.attributes_bytes_max,
    );
    connections.set_limits(&config.limits, config.outbox);
    connections.memory().set_limits(&config.memory, config.limits.connections_max);
    let limits = Arc::new(LiveLimits::new(&config.limits));
    let backplane = config.cluster.clone().map(|cluster| Backplane::new(cluster, limits.clone()));
    if backplane.is_some() {
        connections.ids().set_random_node();
    }
    let middleware = Middleware::new(
        wasm.clone(),
        config.plugins.clone(),
        config.limits.counters_max,
        connections.clone(),
        limits.clone(),
        tokio::runtime::Handle::current(),
        Arc::new(Tracer::new(config.admin.traces_max, config.admin.trace_queue_max)),
    );
    if *by == Initiator::Start {
        remove_leftovers(config);
    }
    // Compiled at the same time.
    let (code, errors) = std::thread::scope(|scope| {
        let engine = scope.spawn(|| EngineCode::load(&wasm, &config.engine));
        let errors = middleware.rescan(by);
        (engine.join(), errors)
    });
    let code = code.map_err(|_| anyhow::anyhow!("loading the engine panicked"))??;
    if let Some(error) = errors.into_iter().next() {
        return Err(error.into());
    }
    let hub =
        Hub::new(engine(code.clone()), &config.engine, config.limits.names, connections.clone())
            .map_err(|problem| anyhow::anyhow!("cannot instantiate the engine: {problem}"))?;
    let hub = match &backplane {
        Some(backplane) => {
            hub.with_observer(backplane.interest().clone()).with_room_publisher(backplane.clone())
        }
        None => hub,
    };
    middleware.forget_rechecks();
    check_protection(config, &middleware)?;
    log::follow(&config.log.connections);
    hub.history().set(&config.history, &config.channels);
    let each_max = config.limits.subscriptions_max;
    hub.presence().set(&config.presence, &config.channels, each_max);
    let auth_attempts = Arc::new(AuthAttempts::new(limits.clone()));
    let services = Services {
        hub: Arc::new(hub),
        middleware: Arc::new(middleware),
        stats,
        limits,
        backplane,
        publish_batcher: Arc::default(),
        auth_attempts,
        supervisor: Arc::default(),
        reserves: Arc::default(),
    };
    wasm.begin_serving();
    let engine = Arc::new(EngineSwaps::new(
        config.engine.clone(),
        wasm,
        services.hub.clone(),
        services.middleware.clone(),
        code,
    ));
    Ok((live, services, engine))
}

/// Removes the files that a server which was killed was writing.
fn remove_leftovers(config: &Config) {
    let engine = match &config.engine.source {
        EngineSource::File(path) => path.parent(),
        EngineSource::Embedded | EngineSource::Native => None,
    };
    for directory in config.plugins.directory.as_deref().into_iter().chain(engine) {
        write::remove_leftovers(directory);
    }
}

/// Like Redis' protected mode: an address that others can reach is not left open by mistake.
///
/// # Errors
///
/// It is open, with the setting that opens it.
pub fn check_protection(config: &Config, middleware: &Middleware) -> Result<(), ConfigError> {
    if config.is_open_to_all || middleware.chain().has_admission() {
        return Ok(());
    }
    // The admin API has its own rule.
    let mut doors = config.listeners().filter(|(key, _)| *key != "admin.listen");
    match doors.find_map(|(key, address)| Some((key, address.open()?))) {
        Some((key, address)) => Err(ConfigError::Unprotected { key, address }),
        None => Ok(()),
    }
}
