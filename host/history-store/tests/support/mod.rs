//! Histories in memory, without a server around them.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use switchyard_history::{
    Changes, Entry, HistoryRule, KeyLimits, Keys, Limits, Restored, StoredKey, StoredStream,
    Streams,
};
use switchyard_history_store::Memory;
use switchyard_types::command::Published;

/// How long keys live.
pub const IDEMPOTENCY_MS: u64 = 300_000;

/// The histories of all channels, with one rule for them.
pub struct Histories {
    /// What is retained.
    pub streams: Mutex<Streams>,
    /// The answers to publications.
    pub keys: Mutex<Keys<Published>>,
}

impl Histories {
    /// No history.
    pub fn new(rule: HistoryRule) -> Arc<Histories> {
        let limits = Limits { bytes_max: usize::MAX / 2, channels_max: 1 << 20, ..Limits::DEFAULT };
        let key_limits = KeyLimits { idempotency_ms: IDEMPOTENCY_MS, keys_max: 100_000 };
        let mut streams = Streams::new(limits, Arc::new(move |_| Some(rule)));
        streams.record_changes();
        let mut keys = Keys::new(key_limits);
        keys.record_answers();
        Arc::new(Histories { streams: Mutex::new(streams), keys: Mutex::new(keys) })
    }
}

impl Memory for Histories {
    fn changes(&self, written: &dyn Fn(u64) -> u64, bytes_max: usize) -> Changes {
        self.streams.lock().changes(written, 4_096, bytes_max)
    }

    fn unwritten_keys(&self) -> Vec<StoredKey<Published>> {
        self.keys.lock().unwritten(1_000)
    }

    fn record_all(&self) {
        self.streams.lock().record_all();
        self.keys.lock().record_all();
    }

    fn seal(&self) -> bool {
        !self.keys.lock().has_unwritten() && self.streams.lock().seal()
    }

    fn pending(&self) -> usize {
        self.streams.lock().pending_changes()
    }

    fn last_epoch(&self) -> u64 {
        self.streams.lock().last_epoch()
    }

    fn set_epoch_floor(&self, epoch: u64) {
        self.streams.lock().set_epoch_floor(epoch);
    }

    fn restore(&self, stream: StoredStream, entries: Vec<Entry>, is_complete: bool) -> Restored {
        self.streams.lock().restore(stream, entries, is_complete, self.now_us())
    }

    fn restore_key(&self, key: StoredKey<Published>) {
        self.keys.lock().restore(key, self.now_us());
    }

    fn idempotency_ms(&self) -> u64 {
        IDEMPOTENCY_MS
    }

    fn now_us(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_micros() as u64
    }
}
