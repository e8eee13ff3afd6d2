//! Returns memory that was freed to the operating system.
//!
//! mimalloc does so when a large block is freed, for the blocks freed more than a second before. So
//! a server that frees much and is idle afterwards would keep it.

use std::hint::black_box;
use std::time::Duration;

use switchyard_telemetry::supervise::Ended;

/// How often memory is returned.
const INTERVAL: Duration = Duration::from_secs(1);
/// A block of this size has pages of its own. It is not written, so that it uses no memory.
const BLOCK_BYTES: usize = 4 << 20;

/// Frees a large block at intervals.
pub async fn keep_returning() -> Ended {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        drop(black_box(Vec::<u8>::with_capacity(BLOCK_BYTES)));
    }
}
