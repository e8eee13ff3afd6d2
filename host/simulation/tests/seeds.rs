//! Simulations with many seeds, and what they must find.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use switchyard_simulation::check::check;
use switchyard_simulation::record::{Command, End, Event, Reply, Step};
use switchyard_simulation::{run, run_and_check};

/// `make simulate SEED=n` runs one, and more.
const SEEDS: std::ops::Range<u64> = 0..200;

#[test]
fn the_server_keeps_its_promises_with_each_seed() -> Result<()> {
    let mut seen = BTreeSet::new();
    for seed in SEEDS {
        seen.extend(run_and_check(seed)?.iter().map(|event| kind(&event.step)));
    }
    // The seeds cover what can happen.
    let expected = [
        "dropped",
        "message",
        "ok",
        "pmessage",
        "publish",
        "quit",
        "recovered",
        "refused",
        "resume",
        "resumed",
        "slow",
        "subscribe",
        "unavailable",
        "unsubscribe",
    ];
    ensure!(seen.iter().copied().eq(expected), "{seen:?}");
    Ok(())
}

fn kind(step: &Step) -> &'static str {
    match step {
        Step::Sent(_, Command::Subscribe(_)) => "subscribe",
        Step::Sent(_, Command::Unsubscribe(_)) => "unsubscribe",
        Step::Sent(_, Command::Publish { .. }) => "publish",
        Step::Sent(_, Command::Resume { .. }) => "resume",
        Step::Reply(_, Reply::Resumed { is_recovered: true, missed: 1.., .. }) => "recovered",
        Step::Reply(_, Reply::Resumed { .. }) => "resumed",
        Step::Reply(_, Reply::Ok(_)) => "ok",
        Step::Reply(_, Reply::Err(code)) if code == "UNAVAILABLE" => "unavailable",
        Step::Reply(_, Reply::Err(_)) => "refused",
        Step::Message { pattern: None, .. } => "message",
        Step::Message { pattern: Some(_), .. } => "pmessage",
        Step::Ended(End::Quit) => "quit",
        Step::Ended(End::Dropped) => "dropped",
        Step::Ended(End::Closed(4202)) => "slow",
        Step::Ended(_) => "failed",
    }
}

#[test]
fn a_seed_determines_every_step() -> Result<()> {
    for seed in SEEDS.step_by(20) {
        let (first, second) = (run(seed)?, run(seed)?);
        for (at, (first, second)) in first.iter().zip(&second).enumerate() {
            ensure!(first == second, "seed {seed}, step {at}: {first} / {second}");
        }
        ensure!(first.len() == second.len(), "seed {seed}: one run is longer");
    }
    Ok(())
}

/// Changes a run in a way that breaks a promise; false: this run has nothing to change.
type Break = fn(&mut Vec<Event>) -> bool;

/// What each check must find.
const BREAKS: [(&str, Break); 6] = [
    ("a message is lost", |events| {
        remove_last(events, |step| matches!(step, Step::Message { .. }))
    }),
    ("a message comes twice", |events| {
        let is_message = |event: &&Event| matches!(event.step, Step::Message { .. });
        let Some(again) = events.iter().find(is_message).cloned() else { return false };
        let at = events.iter().position(|event| *event == again).unwrap_or_default();
        events.insert(at, again);
        true
    }),
    ("two messages change places", |events| {
        // Two that one connection received by one channel, with nothing of its own between them.
        let mut last: BTreeMap<usize, (usize, &Step)> = BTreeMap::new();
        let mut found = None;
        for (at, event) in events.iter().enumerate() {
            let channel_of = |step: &Step| match step {
                Step::Message { pattern: None, channel, .. } => Some(channel.clone()),
                _ => None,
            };
            let before = last.insert(event.connection, (at, &event.step));
            if let Some((first, step)) = before
                && channel_of(step).is_some()
                && channel_of(step) == channel_of(&event.step)
            {
                found = Some([(first, event.step.clone()), (at, step.clone())]);
                break;
            }
        }
        for (at, step) in found.iter().flatten() {
            if let Some(event) = events.get_mut(*at) {
                event.step = step.clone();
            }
        }
        found.is_some()
    }),
    ("a reply is lost", |events| remove_last(events, |step| matches!(step, Step::Reply(..)))),
    ("a reply counts too many deliveries", |events| {
        for event in events {
            if let Step::Reply(_, Reply::Ok(count)) = &mut event.step {
                *count += 1;
                return true;
            }
        }
        false
    }),
    ("a refused message is delivered", |events| {
        let Some(payload) = events.iter().find_map(|event| match &event.step {
            Step::Message { payload, .. } => Some(payload.clone()),
            _ => None,
        }) else {
            return false;
        };
        let sent = events.iter().find_map(|event| match &event.step {
            Step::Sent(id, Command::Publish { payload: of, .. }) if *of == payload => {
                Some((event.connection, *id))
            }
            _ => None,
        });
        for event in events {
            if let Step::Reply(id, reply) = &mut event.step
                && Some((event.connection, *id)) == sent
            {
                *reply = Reply::Err("UNAVAILABLE".to_owned());
                return true;
            }
        }
        false
    }),
];

fn remove_last(events: &mut Vec<Event>, is_it: fn(&Step) -> bool) -> bool {
    // Not of a connection that is lost: it may miss anything.
    let Some(at) = events.iter().rposition(|event| is_it(&event.step)) else { return false };
    events.remove(at);
    true
}

#[test]
fn a_broken_promise_is_found() -> Result<()> {
    for (what, change) in BREAKS {
        let (mut tried, mut found) = (0, 0);
        for seed in 0..40 {
            let mut events = run(seed)?;
            if change(&mut events) {
                tried += 1;
                found += usize::from(check(&events).is_err());
            }
        }
        // A connection that was lost may miss its last messages and replies.
        ensure!(tried > 10 && found * 2 > tried, "{what}: found in {found} of {tried} runs");
    }
    Ok(())
}
