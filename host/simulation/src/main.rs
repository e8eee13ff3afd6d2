//! `simulate [SEED [COUNT]]`: runs simulations with COUNT seeds from SEED on, and prints the steps
//! of the first one that breaks a promise.

use std::process::ExitCode;

use switchyard_simulation::{check, run, run_and_check};

/// How many seeds are run unless COUNT says so.
const COUNT: u64 = 1_000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let (seed, count) = match (arguments.next(), arguments.next()) {
        (None, _) => (0, COUNT),
        (Some(Ok(seed)), None) => (seed, 1),
        (Some(Ok(seed)), Some(Ok(count))) => (seed, count),
        _ => {
            eprintln!("usage: simulate [SEED [COUNT]], where both are numbers");
            return ExitCode::from(64);
        }
    };
    let mut steps = 0;
    for seed in seed..seed.saturating_add(count) {
        match run_and_check(seed) {
            Ok(events) => steps += events.len(),
            Err(problem) => {
                if let Ok(events) = run(seed) {
                    events.iter().enumerate().for_each(|(at, event)| println!("{at:>5} {event}"));
                    let _same_as_above = check::check(&events);
                }
                eprintln!("simulate: {problem:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{count} simulations from seed {seed}: {steps} steps of clients, all as promised");
    ExitCode::SUCCESS
}
