//! The engines of the hub. Knows no connections: an engine is given ids and names.
//!
//! `component` is what the server ships: `guest-core` as a WASI component in a store of its own. The
//! hub brings the same library linked in, for parity tests and for the comparison in the
//! benchmark. Only `EngineCode` chooses between them.

mod component;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use component::CompiledEngine;
use switchyard_config::file::{self, ENGINE_BYTES_MAX};
use switchyard_config::{EngineConfig, EngineSource};
use switchyard_hub::engine::{Engine, EngineFactory};
use switchyard_hub::native::Native;
use switchyard_wasm::Wasm;

/// Why there is no engine.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The file could not be read.
    #[error("read: cannot read the engine {path}: {source}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a usable component.
    #[error("{step}: the engine {path}: {problem}")]
    Refused {
        /// The step that failed: compile, link or instantiate.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
}

/// The code of an engine, which can be instantiated.
#[derive(Clone)]
pub enum EngineCode {
    /// The library.
    Native,
    /// A component.
    Component(Arc<CompiledEngine>),
}

impl EngineCode {
    /// Reads and compiles the engine that the configuration names, and instantiates it once as a
    /// test.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is no component, or does not implement the contract.
    pub fn load(wasm: &Wasm, config: &EngineConfig) -> Result<EngineCode, EngineError> {
        let (path, bytes) = match &config.source {
            EngineSource::Native => return Ok(EngineCode::Native),
            EngineSource::Embedded => (PathBuf::from("(embedded)"), Arc::from(EMBEDDED)),
            EngineSource::File(path) => {
                let bytes = file::read(path, ENGINE_BYTES_MAX)
                    .map_err(|source| EngineError::Unreadable { path: path.clone(), source })?;
                (path.clone(), Arc::from(bytes))
            }
        };
        EngineCode::compile(wasm, &path, &bytes, config)
    }

    /// Compiles an engine that was read from `path`, and instantiates it once as a test.
    ///
    /// # Errors
    ///
    /// The bytes are no component, or it does not implement the contract.
    pub fn compile(
        wasm: &Wasm,
        path: &Path,
        bytes: &Arc<[u8]>,
        config: &EngineConfig,
    ) -> Result<EngineCode, EngineError> {
        let refused = |(step, problem): (&'static str, String)| EngineError::Refused {
            step,
            path: path.to_owned(),
            problem,
        };
        let compiled = CompiledEngine::new(wasm, bytes, config).map_err(refused)?;
        compiled.instantiate().map_err(|problem| refused(("instantiate", problem)))?;
        Ok(EngineCode::Component(Arc::new(compiled)))
    }
}

impl EngineFactory for EngineCode {
    fn instantiate(&self) -> Result<Box<dyn Engine>, String> {
        match self {
            EngineCode::Native => Native.instantiate(),
            EngineCode::Component(compiled) => Ok(Box::new(compiled.instantiate()?)),
        }
    }

    fn version(&self) -> &str {
        match self {
            EngineCode::Native => Native.version(),
            EngineCode::Component(compiled) => compiled.version(),
        }
    }
}

/// The engine that the server ships. `build.rs` embeds it.
pub const EMBEDDED: &[u8] = include_bytes!(env!("SWITCHYARD_GUEST_CORE"));
