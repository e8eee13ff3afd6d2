//! The limits of clients, which can be changed while they are in use.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crate::Limits;

/// The limits that sessions read for every command: one load each, and no lock.
#[derive(Debug)]
pub struct LiveLimits {
    connections_max: AtomicUsize,
    subscriptions_max: AtomicUsize,
    patterns_max: AtomicUsize,
    names_per_command_max: AtomicUsize,
    transaction_commands_max: AtomicUsize,
    name_bytes_max: AtomicUsize,
    payload_bytes_max: AtomicUsize,
    auth_attempts_per_minute_max: AtomicUsize,
    nanos_per_command: AtomicU64,
    epoch: Instant,
}

macro_rules! limits {
    ($($(#[doc = $what:literal])* $name:ident),* $(,)?) => {
        impl LiveLimits {
            $($(#[doc = $what])* pub fn $name(&self) -> usize {
                self.$name.load(Ordering::Relaxed)
            })*

            /// Sets the limits.
            pub fn set(&self, limits: &Limits) {
                $(self.$name.store(limits.$name, Ordering::Relaxed);)*
                self.nanos_per_command.store(nanos_per_command(limits), Ordering::Relaxed);
            }
        }
    };
}

limits! {
    /// Connections at once.
    connections_max,
    /// Names that one connection is subscribed to.
    subscriptions_max,
    /// Patterns among them.
    patterns_max,
    /// Names in one command.
    names_per_command_max,
    /// Commands between MULTI and EXEC.
    transaction_commands_max,
    /// The length of a channel's or pattern's name.
    name_bytes_max,
    /// The size of a payload.
    payload_bytes_max,
    /// Failures to authenticate, for each connection and for each address.
    auth_attempts_per_minute_max,
}

impl LiveLimits {
    /// These apply until others are set.
    pub fn new(limits: &Limits) -> LiveLimits {
        LiveLimits {
            connections_max: limits.connections_max.into(),
            subscriptions_max: limits.subscriptions_max.into(),
            patterns_max: limits.patterns_max.into(),
            names_per_command_max: limits.names_per_command_max.into(),
            transaction_commands_max: limits.transaction_commands_max.into(),
            name_bytes_max: limits.name_bytes_max.into(),
            payload_bytes_max: limits.payload_bytes_max.into(),
            auth_attempts_per_minute_max: limits.auth_attempts_per_minute_max.into(),
            nanos_per_command: nanos_per_command(limits).into(),
            epoch: Instant::now(),
        }
    }

    /// The clock and the limit for measuring rates now.
    pub fn meter(&self, now: Instant) -> Meter {
        Meter {
            now: now.saturating_duration_since(self.epoch).as_nanos() as u64,
            nanos_per_command: self.nanos_per_command.load(Ordering::Relaxed),
        }
    }
}

fn nanos_per_command(limits: &Limits) -> u64 {
    SECOND / limits.commands_per_second_max as u64
}

const SECOND: u64 = 1_000_000_000;

/// How much of its rate a connection has used: a bucket that holds one second's worth of commands,
/// and a second's worth of debt.
///
/// It is stored as the time at which the bucket would be full again, in nanoseconds since the
/// limits were created. Rejected commands use tokens, too: a connection that continues at the same
/// rate has all its commands rejected, and is closed in the end.
#[derive(Debug, Default, Clone, Copy)]
pub struct Rate {
    full_at: u64,
}

/// The clock and the limit for measuring rates, read once for each time budget.
#[derive(Debug, Clone, Copy)]
pub struct Meter {
    now: u64,
    nanos_per_command: u64,
}

impl Meter {
    /// How many commands per second there may be.
    pub fn per_second(self) -> u64 {
        SECOND / self.nanos_per_command
    }
}

/// The decision about one more command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateDecision {
    /// The command is executed.
    Allow,
    /// It is rejected.
    Reject,
    /// It is one rejected command too many: the connection is closed.
    Disconnect,
}

impl Rate {
    /// Takes the tokens of one command.
    pub fn spend(&mut self, meter: Meter) -> RateDecision {
        let Meter { now, nanos_per_command } = meter;
        self.full_at = self.full_at.max(now) + nanos_per_command;
        let ahead = self.full_at - now;
        if ahead <= SECOND {
            RateDecision::Allow
        } else if ahead <= 2 * SECOND {
            RateDecision::Reject
        } else {
            RateDecision::Disconnect
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_may_come_at_once_and_no_more() {
        let meter = |now| Meter { now, nanos_per_command: SECOND / 10 };
        let mut rate = Rate::default();
        for _ in 0..10 {
            assert_eq!(rate.spend(meter(5)), RateDecision::Allow);
        }
        for _ in 0..10 {
            assert_eq!(rate.spend(meter(5)), RateDecision::Reject);
        }
        assert_eq!(rate.spend(meter(5)), RateDecision::Disconnect);
        // The debt is repaid after a second, and one command's time later a token is free.
        let mut patient = Rate { full_at: 5 + 2 * SECOND };
        let later = meter(5 + SECOND + SECOND / 10);
        assert_eq!(patient.spend(later), RateDecision::Allow);
        assert_eq!(patient.spend(later), RateDecision::Reject);
    }
}
