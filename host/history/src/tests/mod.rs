//! Tests of the whole: random sequences against models, and the sentences of the protocol.

mod bounded;
mod clients;
mod keys;
mod model;
mod positions;
mod restarts;
mod sequences;

use std::sync::Arc;

use crate::{Entry, HistoryRule, Limits, Resolver};

/// How many seeds a test runs: so many that are the same each time, and as many that are not.
const SEEDS: u64 = 500;

/// Runs a test for many seeds, or for the one in `SWITCHYARD_HISTORY_SEED`. A failure prints the seed.
fn for_seeds(test: impl Fn(u64, &mut fastrand::Rng)) {
    struct Printed(u64);
    impl Drop for Printed {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("repeat it with SWITCHYARD_HISTORY_SEED={}", self.0);
            }
        }
    }
    let chosen = std::env::var("SWITCHYARD_HISTORY_SEED").ok();
    let seeds: Vec<u64> = match chosen.and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..SEEDS).chain((0..SEEDS).map(|_| fastrand::u64(..))).collect(),
    };
    for seed in seeds {
        let printed = Printed(seed);
        test(seed, &mut fastrand::Rng::with_seed(seed));
        drop(printed);
    }
}

/// The time at which tests begin.
const BEGIN_US: u64 = 1_764_340_000_000_000;

fn rule(messages: usize, age_ms: u64, idle_ms: u64) -> HistoryRule {
    HistoryRule { messages, age_ms, idle_ms }
}

/// The same rule for all channels.
fn all(rule: HistoryRule) -> Resolver {
    Arc::new(move |_| Some(rule))
}

fn entry(payload: &str) -> Entry {
    Entry::new(payload.as_bytes(), 7, None, None)
}

fn limits() -> Limits {
    Limits { bytes_max: 1 << 30, channels_max: 1_000, ..Limits::DEFAULT }
}
