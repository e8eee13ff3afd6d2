//! What the store says about itself.

use std::time::Duration;

/// What was read at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Streams that go on in their epoch.
    pub continued: u64,
    /// Streams that go on in a new epoch.
    pub renewed: u64,
    /// Streams whose channel has no history any more, or that were idle for too long.
    pub dropped: u64,
    /// The messages that were read.
    pub messages: u64,
    /// The size of what was read.
    pub bytes: u64,
    /// Keys of publications that were read.
    pub keys: u64,
    /// Whether something could not be read, and the files were set aside.
    pub is_damaged: bool,
}

/// The state of the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Streams with changes that are not written.
    pub pending: usize,
    /// The size of the files.
    pub disk_bytes: u64,
    /// Messages written since the start.
    pub messages: u64,
    /// Bytes given to the database since the start.
    pub written_bytes: u64,
    /// Writes that failed since the start.
    pub failures: u64,
    /// For how long not everything is on disk: since the last write that wrote all there was.
    pub age: Duration,
    /// Why writing fails now; none: it does not.
    pub problem: Option<String>,
    /// What was read at the start.
    pub read: Summary,
}
