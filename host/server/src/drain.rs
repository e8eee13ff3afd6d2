//! Closes the connections at shutdown, slice by slice, so that the servers they reconnect to
//! are not overloaded.
//!
//! The slices are notified one after another. Each client is given a time within which to connect
//! elsewhere, and its connection is closed only after that, so that a client that connects
//! elsewhere first misses nothing.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::goaway::{can_notify, goaway};
use switchyard_config::ShutdownConfig;
use switchyard_hub::connections::{Connection, Connections};
use switchyard_types::close::CloseReason;

/// The number of slices.
const SLICES: usize = 100;
/// How often it is checked whether all connections are closed already, and whether one was admitted
/// whose handshake began before the drain.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// When each slice is notified, reconnects and is closed.
#[derive(Debug, Clone, Copy)]
struct Plan {
    connections: usize,
    closing: Duration,
    returning: Duration,
    close_delay: Duration,
}

impl Plan {
    fn new(connections: usize, config: &ShutdownConfig) -> Plan {
        let at_that_rate = connections as f64 / config.closes_per_second as f64;
        let closing = Duration::from_secs_f64(at_that_rate).min(config.drain_time_max);
        Plan {
            connections,
            closing,
            returning: closing.max(config.reconnect_spread),
            close_delay: config.close_delay,
        }
    }

    fn slice_of(&self, place: usize) -> usize {
        place * SLICES / self.connections.max(1)
    }

    /// When a slice is notified, from the start.
    fn notified_after(&self, slice: usize) -> Duration {
        share(self.returning, slice)
    }

    /// What happens first to a connection of a slice, and when, from the start. A client that cannot
    /// be notified is not waited for.
    fn first_step(&self, connection: &Connection, slice: usize) -> (Duration, Step) {
        match can_notify(connection) {
            true => (self.notified_after(slice), Step::Notify),
            false => (share(self.closing, slice), Step::Close),
        }
    }

    /// Within which time a client should reconnect, from its notice: until the next slice is
    /// notified.
    fn returns_within(&self) -> [Duration; 2] {
        [Duration::ZERO, share(self.returning, 1)]
    }

    /// How long a connection stays open after its notice.
    fn closes_in(&self) -> Duration {
        self.returns_within()[1] + self.close_delay
    }
}

fn share(whole: Duration, slices: usize) -> Duration {
    whole.mul_f64(slices as f64 / SLICES as f64)
}

/// What a drain did.
#[derive(Debug, Clone, Copy)]
pub struct Drained {
    /// How many connections there were.
    pub connections: usize,
    /// How long that took.
    pub took: Duration,
    /// When the whole shutdown should have ended: the start of the drain, the longer one of the
    /// times of closing and of reconnecting, `shutdown.close_delay_ms` and `shutdown.timeout_ms`.
    pub end: Instant,
}

/// What happens next to a connection.
enum Step {
    Notify,
    /// The connection was admitted after the drain had begun.
    NotifyLate,
    Close,
}

/// Sends each client the time at which to reconnect, and closes its connection after that. It
/// returns when all connections have been closed, by the server or by their clients.
pub async fn drain(connections: &Connections, config: &ShutdownConfig) -> Drained {
    let leaving = connections.opened_ones();
    let plan = Plan::new(leaving.len(), config);
    let began = Instant::now();
    let last = began + plan.returning + plan.close_delay;
    let end = last + config.time;
    let mut known: HashSet<_> = leaving.iter().map(|connection| connection.id).collect();
    let mut steps: BTreeMap<_, _> = leaving
        .into_iter()
        .enumerate()
        .map(|(place, connection)| {
            let (after, step) = plan.first_step(&connection, plan.slice_of(place));
            ((began + after, connection.id), (connection, step))
        })
        .collect();
    while let Some(next) = steps.first_entry() {
        let (due, id) = *next.key();
        let now = Instant::now();
        if due <= now {
            let (connection, step) = next.remove();
            match step {
                Step::Notify => {
                    let within = plan.returns_within();
                    goaway(&connection, &CloseReason::ShuttingDown, within, plan.closes_in());
                    steps.insert((now + plan.closes_in(), id), (connection, Step::Close));
                }
                Step::NotifyLate => {
                    // It is closed with the last of the others, so that the drain takes no longer.
                    let closes_in = plan.closes_in().min(last.saturating_duration_since(now));
                    let within = plan.returns_within().map(|time| time.min(closes_in));
                    goaway(&connection, &CloseReason::ShuttingDown, within, closes_in);
                    steps.insert((now + closes_in, id), (connection, Step::Close));
                }
                Step::Close => connection.outbox.close(CloseReason::ShuttingDown),
            }
        } else if connections.count() == 0 {
            break;
        } else {
            tokio::time::sleep_until(due.min(now + LOOK_INTERVAL)).await;
            for late in connections.opened_ones() {
                if known.insert(late.id) {
                    let step = match can_notify(&late) {
                        true => Step::NotifyLate,
                        false => Step::Close,
                    };
                    steps.insert((now, late.id), (late, step));
                }
            }
        }
    }
    Drained { connections: known.len(), took: began.elapsed(), end }
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
    fn slices_follow_each_other_and_the_last_is_closed_within_the_bound() {
        let config = switchyard_config::Config::default().shutdown;
        for plan in [plan(1), plan(7), plan(2_000), plan(50_000)] {
            for slice in 1..SLICES {
                let between = plan.notified_after(slice) - plan.notified_after(slice - 1);
                let [from, to] = plan.returns_within();
                assert!(from < to && between.abs_diff(to) < Duration::from_micros(1));
            }
            assert_eq!(plan.slice_of(plan.connections), SLICES);
            let last = plan.notified_after(SLICES - 1) + plan.closes_in();
            assert!(last.abs_diff(plan.returning + plan.close_delay) < Duration::from_micros(1));
            assert!(plan.returning <= config.drain_time_max.max(config.reconnect_spread));
        }
    }
}
