//! The cache of compiled components: the engine and plugins.

use anyhow::Context;
use tracing::warn;

use switchyard_config::PluginsConfig;
use switchyard_wasm::cache::{self, CacheError};
use switchyard_wasm::{CompileLimits, Wasm};

/// Sets up Wasmtime with this cache. If the directory cannot be written to, this logs a warning
/// and uses no cache.
///
/// # Errors
///
/// Other users may be able to write to the directory, or Wasmtime does not compile for this
/// machine.
pub fn open(settings: &PluginsConfig) -> anyhow::Result<Wasm> {
    let PluginsConfig { cache: settings, compile_time, compilations_max, .. } = settings;
    let limits = CompileLimits { at_once_max: *compilations_max, time: *compile_time };
    let opened = match &settings.directory {
        None => None,
        Some(directory) => match cache::open(directory, settings.bytes_max) {
            Ok(cache) => Some(cache),
            Err(CacheError::Unusable(problem)) => {
                let directory = directory.display();
                warn!(%directory, %problem, "compiled components are not cached");
                None
            }
            Err(error @ CacheError::Unsafe(_)) => {
                return Err(error)
                    .with_context(|| format!("plugins.cache_directory, {}", directory.display()));
            }
        },
    };
    Wasm::with_cache(opened, limits)
        .map_err(|error| anyhow::anyhow!("cannot set up Wasmtime: {error:#}"))
}
