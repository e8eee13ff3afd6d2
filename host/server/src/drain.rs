//! Closes the connections at shutdown, slice by slice, so that the servers they reconnect to
//! are not overloaded.

use std::time::Duration;

use tokio::time::Instant;

use crate::goaway::goaway;
use switchyard_config::ShutdownConfig;
use switchyard_hub::connections::Connections;
use switchyard_types::close::CloseReason;

/// The number of slices.
const SLICES: usize = 100;
/// The time before the first client reconnects, for the benefit of the servers that it reconnects
/// to.
const PAUSE: Duration = Duration::from_millis(500);

/// When each connection is closed, and when its client is notified to reconnect.
#[derive(Debug, Clone, Copy)]
struct Plan {
    connections: usize,
    closing: Duration,
    returning: Duration,
}

impl Plan {
    fn new(connections: usize, config: &ShutdownConfig) -> Plan {
        let at_that_rate = connections as f64 / config.closes_per_second as f64;
        let closing = Duration::from_secs_f64(at_that_rate).min(config.drain_time_max);
        Plan { connections, closing, returning: closing.max(config.reconnect_spread) }
    }

    fn slice_of(&self, place: usize) -> usize {
        place * SLICES / self.connections.max(1)
    }

    /// When a slice is closed, from the start.
    fn closes_after(&self, slice: usize) -> Duration {
        share(self.closing, slice)
    }

    /// When a slice should reconnect, from the start. Not before it was closed, and no two slices
    /// at once.
    fn returns_within(&self, slice: usize) -> [Duration; 2] {
        [slice, slice + 1].map(|slice| PAUSE + share(self.returning, slice))
    }
}

fn share(whole: Duration, slices: usize) -> Duration {
    whole.mul_f64(slices as f64 / SLICES as f64)
}

/// Sends each client the time at which to reconnect, then closes the connections slice by
/// slice. Returns how many there were and how long it took. Connections that arrive during
/// the drain are handled by the listener.
pub async fn drain(connections: &Connections, config: &ShutdownConfig) -> (usize, Duration) {
    let leaving = connections.opened_ones();
    let plan = Plan::new(leaving.len(), config);
    let began = Instant::now();
    for (place, connection) in leaving.iter().enumerate() {
        goaway(connection, &CloseReason::ShuttingDown, plan.returns_within(plan.slice_of(place)));
    }
    for (place, connection) in leaving.iter().enumerate() {
        let due = began + plan.closes_after(plan.slice_of(place));
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        connection.outbox.close(CloseReason::ShuttingDown);
    }
    (leaving.len(), began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(connections: usize) -> Plan {
        let shutdown = switchyard_config::Config::default().shutdown;
        Plan::new(connections, &shutdown)
    }

    #[test]
    fn few_are_closed_quickly_and_many_over_the_whole_time() {
        assert_eq!(plan(0).closing, Duration::ZERO);
        assert_eq!(plan(2).closing, Duration::from_millis(2));
        assert_eq!(plan(2_000).closing, Duration::from_secs(2));
        assert_eq!(plan(1_000_000).closing, Duration::from_secs(10));
    }

    #[test]
    fn no_client_is_notified_to_reconnect_before_it_is_closed() {
        for plan in [plan(1), plan(7), plan(2_000), plan(50_000)] {
            let mut last = Duration::ZERO;
            for slice in 0..SLICES {
                let [from, to] = plan.returns_within(slice);
                assert!(from >= plan.closes_after(slice) && from < to && from >= last);
                last = to;
            }
            assert_eq!(plan.slice_of(plan.connections), SLICES);
            assert!(last >= PAUSE + Duration::from_secs(5));
        }
    }
}
