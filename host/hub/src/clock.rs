//! The time in microseconds since 1970, for what has a position.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

thread_local! {
    /// When the simulated clock of this thread was at `SIMULATED_START_US`.
    static SIMULATED: Cell<Option<Instant>> = const { Cell::new(None) };
}
const SIMULATED_START_US: u64 = 1_764_340_000_000_000;

/// Microseconds since 1970, by the system clock.
pub fn unix_us() -> u64 {
    if let Some(began) = SIMULATED.get() {
        return SIMULATED_START_US + began.elapsed().as_micros() as u64;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Lets the time of this thread begin anew and follow tokio's clock, which a simulation pauses and
/// advances. To be called in its runtime.
pub fn simulate() {
    SIMULATED.set(Some(Instant::now()));
}
