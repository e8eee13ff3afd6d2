//! Random sequences of calls against a model that is simple enough to be obviously correct.
//!
//! The model of a room is a map of members and the list of all its changes. The model of a watcher
//! is a client: it applies what it receives to a map, and a change that does not fit (an enter of a
//! known member, a leave of an unknown one, an update without a difference) fails the test. Once
//! all is flushed, each client must know exactly the members of the room. A watcher with a snapshot
//! of one page must also have received each single change in its order, up to 16 in one flush.
//!
//! `SWITCHYARD_PRESENCE_SEED` repeats one sequence, `SWITCHYARD_PRESENCE_RUNS` changes how many.

#[cfg(test)]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use support::run::Run;

const RUNS: u64 = 3_000;

#[test]
fn watchers_know_exactly_the_members() {
    let number = |name: &str| -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().expect("a number"))
    };
    if let Some(seed) = number("SWITCHYARD_PRESENCE_SEED") {
        Run::new(seed).steps();
        return;
    }
    let first = fastrand::u64(..u64::MAX / 2);
    for seed in first..first + number("SWITCHYARD_PRESENCE_RUNS").unwrap_or(RUNS) {
        let run = catch_unwind(AssertUnwindSafe(|| Run::new(seed).steps()));
        if let Err(panic) = run {
            eprintln!("SWITCHYARD_PRESENCE_SEED={seed} repeats this");
            resume_unwind(panic);
        }
    }
}
