//! What is counted while the server runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Counters since the server began.
pub struct Stats {
    /// When it began.
    pub started: Instant,
    /// Connections that were let in.
    pub connections: AtomicU64,
    /// Connections that were turned away.
    pub rejected_connections: AtomicU64,
    /// Connections closed because their outbox was full.
    pub outbox_overflows: AtomicU64,
    commands: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            started: Instant::now(),
            connections: AtomicU64::new(0),
            rejected_connections: AtomicU64::new(0),
            outbox_overflows: AtomicU64::new(0),
            commands: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
        }
    }
}

impl Stats {
    /// So many commands were carried out.
    pub fn carried_out(&self, commands: u64) {
        self.commands.fetch_add(commands, Ordering::Relaxed);
    }

    /// So many bytes came from a client.
    pub fn read(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So many bytes went to a client.
    pub fn wrote(&self, bytes: usize) {
        self.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Commands carried out, bytes read and bytes written.
    pub fn totals(&self) -> [u64; 3] {
        [&self.commands, &self.bytes_read, &self.bytes_written]
            .map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// One more of something.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
