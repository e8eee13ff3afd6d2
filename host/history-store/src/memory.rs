//! The histories in memory, as the store sees them.

use switchyard_history::{Changes, Entry, Restored, StoredKey, StoredStream};
use switchyard_types::command::Published;

/// What the store reads from and fills. Each call takes a lock, and holds it for a short time.
pub trait Memory: Send + Sync {
    /// The next changes; see `switchyard_history::Streams::changes`.
    fn changes(&self, written: &dyn Fn(u64) -> u64, bytes_max: usize) -> Changes;
    /// The next answers that are not written, the oldest first.
    fn unwritten_keys(&self) -> Vec<StoredKey<Published>>;
    /// Everything is to be written again.
    fn record_all(&self);
    /// Retains nothing any more, if nothing is pending. Returns whether that is so.
    fn seal(&self) -> bool;
    /// How many streams changed since they were read.
    fn pending(&self) -> usize;
    /// The highest epoch so far.
    fn last_epoch(&self) -> u64;
    /// All epochs that begin from now on are above this one.
    fn set_epoch_floor(&self, epoch: u64);
    /// Takes back a stream; see `switchyard_history::Streams::restore`.
    fn restore(&self, stream: StoredStream, entries: Vec<Entry>, is_complete: bool) -> Restored;
    /// Takes back the answer to a publication.
    fn restore_key(&self, key: StoredKey<Published>);
    /// How long answers live, in milliseconds.
    fn idempotency_ms(&self) -> u64;
    /// The time, in microseconds since 1970.
    fn now_us(&self) -> u64;
}
