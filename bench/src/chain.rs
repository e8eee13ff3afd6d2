//! A chain of one plugin, and a connection that asks it, without a server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use switchyard_config::Config;
use switchyard_config::limits::LiveLimits;
use switchyard_hub::connections::{Connection, Connections};
use switchyard_hub::encoding::Encoding;
use switchyard_middleware::bindings::CompiledPlugin;
use switchyard_middleware::chain::Chain;
use switchyard_middleware::counters::Counters;
use switchyard_middleware::declaration::TrapPolicy;
use switchyard_middleware::directory;
use switchyard_middleware::plugin::{Plugin, PluginContext};
use switchyard_wasm::Wasm;
use tokio::runtime::Runtime;

/// What plugins of a chain have around them.
pub struct Bench {
    wasm: Wasm,
    config: Config,
    context: PluginContext,
    /// The connection that makes the requests.
    pub connection: Arc<Connection>,
    /// Where plugins would be rebuilt.
    _runtime: Runtime,
}

impl Bench {
    /// One connection, and no plugin yet.
    ///
    /// # Errors
    ///
    /// No runtime can be started.
    pub fn new(wasm: &Wasm) -> Result<Bench> {
        let config = Config::default();
        let connections = Connections::new(1, config.outbox, config.limits.attributes_bytes_max);
        let connection = connections
            .add(Encoding::JSON, SocketAddr::from(([127, 0, 0, 1], 0)))
            .ok()
            .context("there is room for one")?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let context = PluginContext {
            connections,
            runtime: runtime.handle().clone(),
            rebuild_backoff: config.plugins.rebuild_backoff,
            rebuild_backoff_max: config.plugins.rebuild_backoff_max,
            parked: Arc::default(),
            limits: Arc::new(LiveLimits::new(&config.limits)),
        };
        Ok(Bench { wasm: wasm.clone(), config, context, connection, _runtime: runtime })
    }

    /// A chain of the plugin that `make components` leaves in this directory of
    /// `target/components`.
    ///
    /// # Errors
    ///
    /// It is not there, or is refused.
    pub fn chain(&self, directory: &str, name: &str, settings: &str) -> Result<Chain> {
        let components = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/components");
        let directory = components.join(directory);
        let mut files = directory::read(&directory, name, self.config.plugins.defaults)?;
        files.config.settings = settings.to_owned();
        // One that fails must not pass for one that lets through.
        files.config.policy = Some(TrapPolicy::Closed);
        // However slow the machine, all of a batch is shown in one call.
        files.config.limits.call_budget = Duration::from_secs(3_600);
        let compiled = CompiledPlugin::new(&self.wasm, &files.wasm, &|| true)
            .map_err(|(step, problem)| anyhow::anyhow!("{step}: {name}: {problem}"))?;
        let counters = Counters::new(1).space(name);
        let plugin = Plugin::new(
            files.config,
            Arc::new(compiled),
            counters,
            Arc::default(),
            self.context.clone(),
        )?;
        Ok(Chain::new(vec![plugin]))
    }
}
