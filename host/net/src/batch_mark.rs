//! Marks a connection whose publications wait in a batch.

use std::sync::atomic::Ordering;

use crate::outbox::Outbox;
use crate::sync::AtomicBool;

/// Set while publications of a connection wait in a batch: its task waits until they are published, and
/// is woken then. A task that queues a message for it in the meantime does not wake it.
#[derive(Default)]
pub struct BatchMark(AtomicBool);

impl BatchMark {
    /// Whether it is set. A task that queues bytes for the connection checks this afterwards, not
    /// before: if it is still set, the task that clears it wakes the connection later.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Sets it. Only the connection's own task does.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Clears it, and wakes the writer of the connection's outbox.
    pub fn clear(&self, outbox: &Outbox) {
        self.0.store(false, Ordering::Release);
        outbox.wake();
    }
}
