//! The interface between the hub and an engine.

use guest_core::{ConnectionId, FanOuts, Names, PatternId};
use thiserror::Error;

pub use guest_core::Page;

/// The code of an engine: makes instances.
pub trait EngineFactory: Send + Sync {
    /// A new engine without any state.
    ///
    /// # Errors
    ///
    /// There can be none; the error is a message.
    fn instantiate(&self) -> Result<Box<dyn Engine>, String>;

    /// The hash of this code.
    fn version(&self) -> &str;
}

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
