//! Three engines that must not differ: the component that is shipped, the same library linked in,
//! and the naive reference model.
//!
//! All three execute random operations, and each result is compared. In between they hand over
//! their state: to a fresh instance of their own kind, or from the native engine to the component
//! and back. `SWITCHYARD_SEED` repeats a run.

use anyhow::{Context, Result, ensure};
use guest_core::model::{Answer, Model, Operation, Random, random_operation};
use guest_core::{FanOuts, Names};
use switchyard_config::{Config, EngineConfig, EngineSource};
use switchyard_engine::EngineCode;
use switchyard_hub::engine::{Engine, EngineFactory, Outcome};
use switchyard_wasm::Wasm;

/// The two engines of the host, and the code to create more of each.
struct Pair {
    codes: [EngineCode; 2],
    engines: [Box<dyn Engine>; 2],
}

impl Pair {
    fn load() -> Result<Pair> {
        let wasm = Wasm::new().map_err(|problem| anyhow::anyhow!("{problem:#}"))?;
        let load =
            |source| EngineCode::load(&wasm, &EngineConfig { source, ..Config::default().engine });
        let codes = [load(EngineSource::Native)?, load(EngineSource::Embedded)?];
        ensure!(codes.each_ref().map(EngineCode::version) != ["native"; 2], "both are native");
        let engines = fresh(&codes)?;
        Ok(Pair { codes, engines })
    }

    /// Starts again with empty engines.
    fn forget(&mut self) -> Result<()> {
        self.engines = fresh(&self.codes)?;
        Ok(())
    }

    /// Applies it to both, and returns the answer of each.
    fn apply(&mut self, operation: &Operation) -> Result<[Answer; 2]> {
        let [native, component] = &mut self.engines;
        Ok([apply(operation, &mut **native)?, apply(operation, &mut **component)?])
    }

    /// How many channels each of them knows.
    fn channel_counts(&mut self) -> Result<[u64; 2]> {
        let [native, component] = &mut self.engines;
        Ok([native.channel_count()?, component.channel_count()?])
    }

    /// Saves both, which must give the same bytes, and restores each state into a fresh engine: of
    /// the other kind if `crossing`.
    fn hand_over(&mut self, crossing: bool) -> Result<()> {
        let [native, component] = &mut self.engines;
        let native = native.save()?.context("the native engine saves nothing")?;
        let component = component.save()?.context("the component saves nothing")?;
        ensure!(native == component, "the two write down the same state differently");
        let states = if crossing { [component, native] } else { [native, component] };
        self.engines = fresh(&self.codes)?;
        for (engine, state) in self.engines.iter_mut().zip(&states) {
            ensure!(engine.restore(state)?, "a state that was just saved is not accepted");
        }
        Ok(())
    }
}

fn fresh(codes: &[EngineCode; 2]) -> Result<[Box<dyn Engine>; 2]> {
    let make = |code: &EngineCode| code.instantiate().map_err(anyhow::Error::msg);
    let [native, component] = codes;
    Ok([make(native)?, make(component)?])
}

/// Applies it to an engine; a handover is left to `Pair::hand_over`.
fn apply(operation: &Operation, engine: &mut dyn Engine) -> Outcome<Answer> {
    match operation {
        Operation::Subscribe(connection, channels) => engine.subscribe(*connection, channels)?,
        Operation::Unsubscribe(connection, channels) => {
            engine.unsubscribe(*connection, channels)?
        }
        Operation::Psubscribe(connection, patterns) => {
            return Ok(Answer::PatternIds(engine.psubscribe(*connection, patterns)?));
        }
        Operation::Punsubscribe(connection, patterns) => {
            engine.punsubscribe(*connection, patterns)?;
        }
        Operation::Route(channels) => {
            // Remains of an earlier answer must not be visible.
            let mut fan_outs = FanOuts { connections: vec![7], groups: Vec::new() };
            engine.route(channels, &mut fan_outs)?;
            return Ok(Answer::FanOuts(fan_outs));
        }
        Operation::Channels(matching) => {
            return Ok(Answer::Names(engine.channels(matching.as_deref())?));
        }
        Operation::SubscriberCounts(channels) => {
            return Ok(Answer::Counts(engine.subscriber_counts(channels)?));
        }
        Operation::PatternCount => return Ok(Answer::Count(engine.pattern_count()?)),
        Operation::Handover => {}
    }
    Ok(Answer::Done)
}

#[test]
fn random_operations_are_answered_alike() -> Result<()> {
    let mut random = Random::from_environment();
    let mut pair = Pair::load()?;
    for round in 0..60 {
        let mut model = Model::new();
        pair.forget()?;
        for step in 0..1_000 {
            let operation = random_operation(&mut random);
            let place = || format!("round {round}, step {step}: {operation:?} on {model:?}");
            if matches!(operation, Operation::Handover) {
                pair.hand_over(random.below(2) == 0).with_context(place)?;
                continue;
            }
            let [native, component] = pair.apply(&operation).with_context(place)?;
            let place = place();
            let expected = model.apply(&operation);
            assert_eq!(native, expected, "native, {place}");
            assert_eq!(component, expected, "component, {place}");
            let channels = model.channels(None).len() as u64;
            assert_eq!(pair.channel_counts()?, [channels; 2], "channels, {place}");
        }
    }
    Ok(())
}

/// Operations at the limits of what a call can carry.
fn extremes() -> Vec<Operation> {
    let none = Names::new;
    let long = || Names::from_iter([vec![b'x'; 1 << 20], Vec::new(), vec![b'*'; 1 << 10]]);
    let many = || Names::from_iter((0..50_000_u32).map(u32::to_be_bytes));
    let patterns = || Names::from_iter((0..2_000_u32).map(|n| format!("{n}*[^{n}]?")));
    let mut operations = Vec::new();
    for connection in [0, u64::from(u32::MAX) + 1, u64::MAX] {
        operations.extend([
            Operation::Subscribe(connection, none()),
            Operation::Subscribe(connection, long()),
            Operation::Subscribe(connection, many()),
            Operation::Psubscribe(connection, none()),
            Operation::Psubscribe(connection, Names::from_iter(["", "*", "\\", "[", "*"])),
            Operation::Psubscribe(connection, patterns()),
        ]);
    }
    for names in [none(), long(), many(), Names::from_iter(["12", "12345", "12345", ""])] {
        operations.extend([
            Operation::Route(names.clone()),
            Operation::SubscriberCounts(names.clone()),
            Operation::Handover,
            Operation::Unsubscribe(u64::MAX, names.clone()),
            Operation::Route(names),
        ]);
    }
    for matching in [None, Some(&b""[..]), Some(b"\0\0*"), Some(b"[x-]*"), Some(b"\\")] {
        operations.push(Operation::Channels(matching.map(<[u8]>::to_vec)));
    }
    operations.extend([
        Operation::Punsubscribe(0, patterns()),
        Operation::PatternCount,
        Operation::Punsubscribe(u64::MAX, Names::from_iter(["*", "*", "never held"])),
        Operation::PatternCount,
        Operation::Handover,
        Operation::Route(long()),
    ]);
    operations
}

/// The model would take minutes for these. The tests above check the library against the model, so
/// here it is enough that the component agrees with the library.
#[test]
fn extremes_are_answered_alike() -> Result<()> {
    let mut pair = Pair::load()?;
    for (step, operation) in extremes().iter().enumerate() {
        let place = || format!("step {step}: {:.120}", format!("{operation:?}"));
        if matches!(operation, Operation::Handover) {
            pair.hand_over(true).with_context(place)?;
            continue;
        }
        let [native, component] = pair.apply(operation).with_context(place)?;
        assert!(native == component, "the two differ in {}", place());
    }
    Ok(())
}

/// Bytes that no `save` wrote are refused by both, and neither traps on them.
#[test]
fn a_damaged_state_is_not_accepted() -> Result<()> {
    let mut pair = Pair::load()?;
    let names = Names::from_iter(["a", "room:1", "room:2"]);
    pair.apply(&Operation::Subscribe(7, names.clone()))?;
    pair.apply(&Operation::Psubscribe(9, Names::from_iter(["room:*"])))?;
    let state = pair.engines[0].save()?.context("it saves nothing")?;
    let cuts = (0..state.len()).map(|end| state[..end].to_vec());
    let longer = [state.clone(), vec![0]].concat();
    for damaged in cuts.chain([longer, vec![0xff; 64], b"\0asm".to_vec()]) {
        pair.forget()?;
        for engine in &mut pair.engines {
            assert!(!engine.restore(&damaged)?, "{} was accepted", damaged.escape_ascii());
        }
    }
    Ok(())
}
