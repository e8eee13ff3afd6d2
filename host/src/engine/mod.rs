//! The interface between the hub and the engine: a trait, and its two implementations.
//!
//! `component` is what the server ships: `guest-core` as a WASI component in a store of its own.
//! `native` is the same library linked in, for parity tests and for the comparison in the
//! benchmark. Only `EngineCode` chooses between them.

mod component;
mod native;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use guest_core::{ConnectionId, FanOuts, Names, PatternId};

pub use guest_core::Page;

use thiserror::Error;

use crate::wasm::{self, Wasm};
use component::CompiledEngine;
use switchyard_config::{EngineConfig, EngineSource};

/// An engine. Each method does what `wit/engine.wit` says of the function of its name.
///
/// After an error the engine is in an unknown state and must be dropped.
#[allow(missing_docs, reason = "the contract documents them")]
pub trait Engine: Send {
    fn subscribe(&mut self, connection: ConnectionId, channels: &Names) -> Outcome<()>;
    fn unsubscribe(&mut self, connection: ConnectionId, channels: &Names) -> Outcome<()>;
    fn psubscribe(&mut self, connection: ConnectionId, patterns: &Names)
    -> Outcome<Vec<PatternId>>;
    fn punsubscribe(&mut self, connection: ConnectionId, patterns: &Names) -> Outcome<()>;
    fn route(&mut self, channels: &Names, fan_outs: &mut FanOuts) -> Outcome<()>;
    fn channels(&mut self, matching: Option<&[u8]>) -> Outcome<Names>;
    /// All of them at once, for an engine that cannot list a part of them.
    fn channels_from(
        &mut self,
        matching: Option<&[u8]>,
        from: Option<&[u8]>,
        visits_max: u32,
    ) -> Outcome<Page>;
    fn subscriber_counts(&mut self, channels: &Names) -> Outcome<Vec<u64>>;
    fn channel_count(&mut self) -> Outcome<u64>;
    fn pattern_count(&mut self) -> Outcome<u64>;
    /// The state for a successor; none: the engine cannot save it.
    fn save(&mut self) -> Outcome<Option<Vec<u8>>>;
    /// The size of its memory; zero: unknown.
    fn memory_bytes(&self) -> usize {
        0
    }
    /// Restores a state. False: the engine cannot read it, and must be replaced before it is used.
    fn restore(&mut self, state: &[u8]) -> Outcome<bool>;
}

/// The result of an engine call, or its failure.
pub type Outcome<T> = Result<T, EngineFault>;

/// An engine failed, and must be dropped.
#[derive(Debug, Clone, Error)]
#[error("the engine failed in {call}: {problem}")]
pub struct EngineFault {
    /// The function that was called.
    pub call: &'static str,
    /// A trap, or the budget that it overran.
    pub problem: String,
    /// Whether it was the budget: then a retry would fail, too.
    pub is_overrun: bool,
}

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
            EngineSource::Embedded => (PathBuf::from("(embedded)"), EMBEDDED.to_vec()),
            EngineSource::File(path) => {
                let bytes = std::fs::read(path)
                    .map_err(|source| EngineError::Unreadable { path: path.clone(), source })?;
                (path.clone(), bytes)
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
        bytes: &[u8],
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

    /// A new engine without any state.
    ///
    /// # Errors
    ///
    /// The component cannot be instantiated; the error is a message.
    pub fn instantiate(&self) -> Result<Box<dyn Engine>, String> {
        match self {
            EngineCode::Native => Ok(Box::<native::NativeEngine>::default()),
            EngineCode::Component(compiled) => Ok(Box::new(compiled.instantiate()?)),
        }
    }

    /// The hash of this code.
    pub fn version(&self) -> &str {
        match self {
            EngineCode::Native => "native",
            EngineCode::Component(compiled) => compiled.version(),
        }
    }
}

/// The engine that the server ships. `build.rs` embeds it.
pub const EMBEDDED: &[u8] = include_bytes!(env!("SWITCHYARD_GUEST_CORE"));

fn fault(call: &'static str) -> impl FnOnce(wasmtime::Error) -> EngineFault {
    move |error| EngineFault {
        call,
        problem: wasm::describe(&error),
        is_overrun: error.downcast_ref::<wasm::BudgetOverrun>().is_some(),
    }
}
