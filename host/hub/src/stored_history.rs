//! Histories on disk: the hub is the memory that the store reads from and fills.

use std::sync::Arc;

use super::Hub;
use super::clock::unix_us;
use super::history::History;
use switchyard_config::HistoryStoreConfig;
use switchyard_history::{Changes, Entry, Restored, StoredKey, StoredStream};
use switchyard_history_store::{Memory, OpenError, Options, Store};
use switchyard_types::command::Published;

/// How much is read while the streams are locked: about 100 us.
const WORK_MAX: usize = 1_024;
/// How many answers are read while the keys are locked.
const KEYS_MAX: usize = 1_000;

impl Hub {
    /// Reads the histories from disk, and keeps them there from now on. The rules are set, and there
    /// are no publications yet. Takes as long as reading does.
    ///
    /// # Errors
    ///
    /// The directory cannot be used.
    pub fn open_history(self: &Arc<Hub>, config: &HistoryStoreConfig) -> Result<(), OpenError> {
        self.history.streams.lock().record_changes();
        self.history.keys.lock().record_answers();
        let options = Options {
            directory: config.directory.clone(),
            flush_time: config.flush_time,
            batch_bytes_max: config.flush_bytes_max,
        };
        let store = Store::open(options, self.clone())?;
        let _it_is_the_first = self.history.store.set(store);
        Ok(())
    }
}

impl History {
    /// The histories on disk. None: there are none.
    pub fn store(&self) -> Option<&Store> {
        self.store.get()
    }
}

impl Memory for Hub {
    fn changes(&self, written: &dyn Fn(u64) -> u64, bytes_max: usize) -> Changes {
        self.history.streams.lock().changes(written, WORK_MAX, bytes_max)
    }

    fn unwritten_keys(&self) -> Vec<StoredKey<Published>> {
        self.history.keys.lock().unwritten(KEYS_MAX)
    }

    fn record_all(&self) {
        self.history.streams.lock().record_all();
        self.history.keys.lock().record_all();
    }

    fn seal(&self) -> bool {
        let keys = self.history.keys.lock();
        !keys.has_unwritten() && self.history.streams.lock().seal()
    }

    fn pending(&self) -> usize {
        self.history.streams.lock().pending_changes()
    }

    fn last_epoch(&self) -> u64 {
        self.history.streams.lock().last_epoch()
    }

    fn set_epoch_floor(&self, epoch: u64) {
        self.history.streams.lock().set_epoch_floor(epoch);
    }

    fn restore(&self, stream: StoredStream, entries: Vec<Entry>, is_complete: bool) -> Restored {
        self.history.streams.lock().restore(stream, entries, is_complete, unix_us())
    }

    fn restore_key(&self, key: StoredKey<Published>) {
        self.history.keys.lock().restore(key, unix_us());
    }

    fn idempotency_ms(&self) -> u64 {
        self.history.keys.lock().limits().idempotency_ms
    }

    fn now_us(&self) -> u64 {
        unix_us()
    }
}
