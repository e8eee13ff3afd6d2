//! Replaces the engine, on request of the file watch, a signal or the admin API.
//!
//! One swap runs at a time, after the new engine was compiled without a lock, and the replaced engine stays compiled for a rollback. If the engine is
//! loaded from a file, a swap is also written there, so that a restart finds it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use thiserror::Error;
use tracing::{error, info};

use switchyard_config::file::{self, ENGINE_BYTES_MAX};
use switchyard_config::{EngineConfig, EngineSource};
use switchyard_engine::{EMBEDDED, EngineCode, EngineError};
use switchyard_hub::Hub;
use switchyard_hub::engine::EngineFactory;
use switchyard_middleware::Middleware;
use switchyard_middleware::stats::{ChangeKind, Initiator, Swap};
use switchyard_middleware::write::write_atomically;
use switchyard_wasm::Wasm;

/// The engine in use, and what can take its place.
pub struct EngineSwaps {
    config: EngineConfig,
    wasm: Wasm,
    hub: Arc<Hub>,
    /// Records all swaps.
    middleware: Arc<Middleware>,
    versions: Mutex<Versions>,
    /// How many changes began.
    begun: AtomicU64,
}

struct Versions {
    now: Version,
    before: Option<Version>,
    /// The number of the change that put `now` there.
    number: u64,
}

impl Versions {
    fn check_order(&self, number: u64) -> Result<(), EngineSwapError> {
        if self.number > number { Err(EngineSwapError::Superseded) } else { Ok(()) }
    }
}

#[derive(Clone)]
struct Version {
    code: EngineCode,
    /// None: the engine is not a component.
    bytes: Option<Arc<[u8]>>,
    origin: String,
    since: SystemTime,
    by: Initiator,
}

/// The code, its component if there is one, and its source.
type Found = (EngineCode, Option<Arc<[u8]>>, String);

/// The status of the engine, for operators.
pub struct EngineStatus {
    /// The hash of its code.
    pub version: String,
    /// Its source.
    pub origin: String,
    /// The component; none: the engine is not a component.
    pub bytes: Option<Arc<[u8]>>,
    /// The version that a rollback restores.
    pub before: Option<String>,
    /// Since when it is in use.
    pub since: SystemTime,
    /// The initiator of the change that put it there.
    pub by: Initiator,
}

/// Why the engine was not replaced: the one in use stays.
#[derive(Debug, Error)]
pub enum EngineSwapError {
    /// It cannot be used.
    #[error(transparent)]
    Refused(#[from] EngineError),
    /// It could not take over.
    #[error("swap: {0}")]
    Failed(String),
    /// The file of the engine could not be written.
    #[error("write: cannot write {path}: {source}")]
    Unwritable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A later change was made while it was compiled.
    #[error("a later change of the engine was made while this one was compiled")]
    Superseded,
    /// There is no version to roll back to.
    #[error("no engine was in use before this one")]
    NothingBefore,
}

impl EngineSwaps {
    /// Takes the engine that the hub was created with.
    pub fn new(
        config: EngineConfig,
        wasm: Wasm,
        hub: Arc<Hub>,
        middleware: Arc<Middleware>,
        code: EngineCode,
    ) -> EngineSwaps {
        let bytes = match &config.source {
            // Unless it was replaced since it was compiled.
            EngineSource::File(path) => file::read(path, ENGINE_BYTES_MAX)
                .ok()
                .filter(|bytes| switchyard_wasm::version_of(bytes) == code.version())
                .map(Into::into),
            EngineSource::Native | EngineSource::Embedded => embedded(&config),
        };
        let now = Version {
            code,
            bytes,
            origin: origin(&config),
            since: SystemTime::now(),
            by: Initiator::Start,
        };
        let versions = Mutex::new(Versions { now, before: None, number: 0 });
        EngineSwaps { config, wasm, hub, middleware, versions, begun: AtomicU64::new(0) }
    }

    /// The engine in use.
    pub fn status(&self) -> EngineStatus {
        let versions = self.versions.lock();
        let Version { code, bytes, origin, since, by } = versions.now.clone();
        EngineStatus {
            version: code.version().to_owned(),
            origin,
            bytes,
            before: versions.before.as_ref().map(|before| before.code.version().to_owned()),
            since,
            by,
        }
    }

    /// Reloads the engine that the configuration names, and swaps it if it is another one. If it is
    /// refused, this is logged.
    ///
    /// # Errors
    ///
    /// Its file must be read again: why it could not be read.
    pub fn reload(&self, by: &Initiator) -> Result<(), String> {
        let number = self.begin();
        let done = self.read().map_err(EngineSwapError::from).and_then(|found| {
            let mut versions = self.versions.lock();
            // A pause would change nothing.
            if found.0.version() == self.hub.engine_version() {
                return Ok(());
            }
            versions.check_order(number)?;
            self.take(&mut versions, number, found, by, ChangeKind::EngineSwapped).map(|_| ())
        });
        match done {
            Err(EngineSwapError::Refused(EngineError::Unreadable { path, source }))
                if file::is_passing(&source) =>
            {
                Err(format!("{}: {source}", path.display()))
            }
            Err(problem) => {
                let by = by.name();
                error!(%problem, %by, "the engine was not swapped: the one in use stays");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Replaces the engine by this component; `file` is where it was read from, unless it was
    /// uploaded. Blocks: do not call it on a thread that serves connections.
    ///
    /// # Errors
    ///
    /// It is refused; the one in use stays.
    pub fn swap(
        &self,
        bytes: Arc<[u8]>,
        file: Option<&Path>,
        by: &Initiator,
    ) -> Result<Swap, EngineSwapError> {
        let number = self.begin();
        let origin = file.unwrap_or(Path::new("(uploaded)"));
        let code = self.compiled(origin, &bytes)?;
        let new = (code, Some(bytes), origin.display().to_string());
        let mut versions = self.versions.lock();
        versions.check_order(number)?;
        self.take(&mut versions, number, new, by, ChangeKind::EngineSwapped)
    }

    /// Restores the engine that was replaced last.
    ///
    /// # Errors
    ///
    /// There is none, or it cannot take over; the one in use stays.
    pub fn roll_back(&self, by: &Initiator) -> Result<Swap, EngineSwapError> {
        let mut versions = self.versions.lock();
        let number = self.begin();
        let before = versions.before.clone().ok_or(EngineSwapError::NothingBefore)?;
        let new = (before.code, before.bytes, before.origin);
        self.take(&mut versions, number, new, by, ChangeKind::EngineRolledBack)
    }

    /// The number of a change that begins. Compiling takes long and holds no lock; where a change
    /// that began later is in force by then, the earlier one is dropped.
    fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn read(&self) -> Result<Found, EngineError> {
        let EngineSource::File(path) = &self.config.source else {
            let code = match embedded(&self.config) {
                None => EngineCode::load(&self.wasm, &self.config)?,
                Some(bytes) => self.compiled(Path::new("(embedded)"), &bytes)?,
            };
            return Ok((code, embedded(&self.config), origin(&self.config)));
        };
        // Read once, so that the bytes are those of the code.
        let bytes: Arc<[u8]> = file::read(path, ENGINE_BYTES_MAX)
            .map_err(|source| EngineError::Unreadable { path: path.clone(), source })?
            .into();
        Ok((self.compiled(path, &bytes)?, Some(bytes), origin(&self.config)))
    }

    /// Compiles an engine, unless it is the one in use.
    fn compiled(&self, origin: &Path, bytes: &Arc<[u8]>) -> Result<EngineCode, EngineError> {
        let now = self.versions.lock().now.code.clone();
        match now.version() == switchyard_wasm::version_of(bytes) {
            true => Ok(now),
            false => EngineCode::compile(&self.wasm, origin, bytes, &self.config),
        }
    }

    fn take(
        &self,
        versions: &mut Versions,
        number: u64,
        (code, bytes, origin): Found,
        by: &Initiator,
        kind: ChangeKind,
    ) -> Result<Swap, EngineSwapError> {
        // An engine that was loaded from a file is already written there.
        let file = match &self.config.source {
            EngineSource::File(path) if !matches!(by, Initiator::File | Initiator::Signal) => {
                Some(path)
            }
            _ => None,
        };
        if let (Some(path), Some(bytes)) = (file, &bytes) {
            write_atomically(path, bytes)
                .map_err(|source| EngineSwapError::Unwritable { path: path.clone(), source })?;
        }
        let swap = match self.hub.swap_engine(Arc::new(code.clone())) {
            Ok(swap) => swap,
            Err(problem) => {
                // Restore the engine in use, so that a restart does not load the failed one.
                if let (Some(path), Some(bytes)) = (file, &versions.now.bytes)
                    && let Err(io) = write_atomically(path, bytes)
                {
                    error!(%io, file = %path.display(), "the file in use was not written back");
                }
                return Err(EngineSwapError::Failed(problem));
            }
        };
        let pause_us = swap.longest_pause.as_micros() as u64;
        let words = match kind {
            ChangeKind::EngineRolledBack => "the engine was rolled back",
            _ => "the engine was swapped",
        };
        info!(
            from = swap.from,
            to = swap.to,
            by = %by.name(),
            pause_us,
            "{words}"
        );
        let at = SystemTime::now();
        let now = Version { code, bytes, origin, since: at, by: by.clone() };
        versions.before = Some(std::mem::replace(&mut versions.now, now));
        versions.number = number;
        let swap = Swap {
            at,
            by: by.clone(),
            kind,
            slot: None,
            from: Some(swap.from.into()),
            to: Some(swap.to.into()),
            pause: swap.longest_pause,
        };
        self.middleware.swaps().record(swap.clone());
        Ok(swap)
    }
}

fn embedded(config: &EngineConfig) -> Option<Arc<[u8]>> {
    (config.source == EngineSource::Embedded).then(|| EMBEDDED.into())
}

fn origin(config: &EngineConfig) -> String {
    match &config.source {
        EngineSource::Native => "native".to_owned(),
        EngineSource::Embedded => "embedded".to_owned(),
        EngineSource::File(path) => path.display().to_string(),
    }
}
