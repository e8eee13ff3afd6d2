//! Makes what a server consists of, as it is configured.

use std::sync::Arc;

use anyhow::Context;

use crate::auth_attempts::AuthAttempts;
use crate::compile_cache;
use crate::connection_setup::is_local;
use crate::engine_swap::EngineSwaps;
use crate::live_config::LiveConfig;
use crate::session::Services;
use switchyard_backplane::Backplane;
use switchyard_config::limits::LiveLimits;
use switchyard_config::{Config, ConfigError};
use switchyard_engine::EngineCode;
use switchyard_hub::Hub;
use switchyard_hub::connections::Connections;
use switchyard_middleware::Middleware;
use switchyard_middleware::stats::Initiator;
use switchyard_middleware::trace::Tracer;
use switchyard_telemetry::log;

/// Loads certificates, engine and plugins.
///
/// # Errors
///
/// A certificate, the engine or a plugin is refused, or other machines could connect and no plugin
/// decides which clients may.
pub fn prepare(config: &Config) -> anyhow::Result<(LiveConfig, Services, Arc<EngineSwaps>)> {
    let stats = Arc::default();
    let live = LiveConfig::new(config.clone(), &stats).context("cannot use a certificate")?;
    let wasm = compile_cache::open(&config.plugins.cache)?;
    let code = EngineCode::load(&wasm, &config.engine)?;
    let connections = Connections::new(
        config.limits.connections_max,
        config.outbox,
        config.limits.attributes_bytes_max,
    );
    connections.set_limits(&config.limits, config.outbox);
    connections.memory().set_limits(&config.memory, config.limits.connections_max);
    let hub =
        Hub::new(Arc::new(code.clone()), &config.engine, config.limits.names, connections.clone())
            .map_err(|problem| anyhow::anyhow!("cannot instantiate the engine: {problem}"))?;
    let limits = Arc::new(LiveLimits::new(&config.limits));
    let backplane = config.cluster.clone().map(|cluster| Backplane::new(cluster, limits.clone()));
    let hub = match &backplane {
        Some(backplane) => hub.with_observer(backplane.interest().clone()),
        None => hub,
    };
    let middleware = Middleware::new(
        wasm.clone(),
        config.plugins.clone(),
        config.limits.counters_max,
        connections,
        limits.clone(),
        tokio::runtime::Handle::current(),
        Arc::new(Tracer::new(config.admin.traces_max, config.admin.trace_queue_max)),
    );
    if let Some(error) = middleware.rescan(&Initiator::Start).into_iter().next() {
        return Err(error.into());
    }
    middleware.forget_rechecks();
    check_protection(config, &middleware)?;
    log::follow(&config.log.connections);
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
    let engine = Arc::new(EngineSwaps::new(
        config.engine.clone(),
        wasm,
        services.hub.clone(),
        services.middleware.clone(),
        code,
    ));
    Ok((live, services, engine))
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
    let resp = config.resp.as_ref().map(|resp| ("resp.listen", resp.listen));
    for (key, address) in [("http.listen", config.http.listen)].into_iter().chain(resp) {
        if !is_local(address) {
            return Err(ConfigError::Unprotected { key, address });
        }
    }
    Ok(())
}
