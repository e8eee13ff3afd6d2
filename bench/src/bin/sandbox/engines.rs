//! The engine, natively and as a component: what it takes to route, to
//! subscribe, and to take over a state.

use std::fmt;
use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use bench::sides::{Comparison, compare, time};
use bench::table::{print_head, print_line, thousands};
use guest_core::{FanOuts, Names};
use switchyard_config::{Config, EngineConfig, EngineSource};
use switchyard_engine::EngineCode;
use switchyard_hub::engine::{Engine, EngineFactory, Outcome};
use switchyard_wasm::Wasm;

use crate::NAMES_A_CALL;

/// The subscriptions while it is routed.
#[derive(Clone, Copy)]
struct Audience {
    channels: usize,
    /// How many connections listen to each channel.
    receivers: usize,
    /// How many names one batch routes: enough for a fraction of a millisecond.
    names: usize,
}

/// What all of one take fits into a core's caches, but for the many channels:
/// there a name must be waited for, natively too.
const AUDIENCES: [Audience; 4] = [
    Audience { channels: 100, receivers: 1, names: 6_400 },
    Audience { channels: 10_000, receivers: 1, names: 6_400 },
    Audience { channels: 100, receivers: 100, names: 1_280 },
    Audience { channels: 4, receivers: 10_000, names: 128 },
];

/// How many channels have a subscriber while another comes and goes.
const CHANNELS_HELD: usize = 10_000;
/// How many channels a batch subscribes to and unsubscribes from.
const CHANNELS_CHURNED: usize = 3_200;
/// How many subscriptions are restored, each to a channel of its own.
const SUBSCRIPTIONS_RESTORED: usize = 100_000;

/// The code of the two, of which each measurement makes instances.
pub struct Engines {
    native: EngineCode,
    component: EngineCode,
}

type Pair = [Box<dyn Engine>; 2];

impl Engines {
    /// Compiles the component that the server ships.
    pub fn load(wasm: &Wasm) -> Result<Engines> {
        let load =
            |source| EngineCode::load(wasm, &EngineConfig { source, ..Config::default().engine });
        Ok(Engines {
            native: load(EngineSource::Native)?,
            component: load(EngineSource::Embedded)?,
        })
    }

    /// Of the component.
    pub fn version(&self) -> &str {
        self.component.version()
    }

    /// What a call costs that does next to nothing.
    pub fn measure_call(&self) -> Result<()> {
        const CALLS: usize = 5_000;
        let mut pair = self.instantiate()?;
        print_head("ns a call");
        let call = compare_pair(&mut pair, CALLS, |engine| {
            (0..CALLS).try_for_each(|_| black_box(&mut *engine).pattern_count().map(drop))
        })?;
        print_line("pattern-count: no list in, none out", &call);
        Ok(())
    }

    /// What it costs to find receivers. Answers those of a name with one receiver,
    /// of many names in a call.
    pub fn measure_route(&self) -> Result<Vec<(String, Comparison)>> {
        let mut measured = Vec::new();
        for audience in AUDIENCES {
            let mut pair = self.instantiate()?;
            for engine in &mut pair {
                audience.take_seats(&mut **engine)?;
            }
            for names_a_call in [1, NAMES_A_CALL] {
                let calls = audience.calls(names_a_call);
                ensure!(alike(&mut pair, &calls)?, "the two route differently: {audience}");
                let mut fan_outs = FanOuts::default();
                let route = compare_pair(&mut pair, audience.names, |engine| {
                    calls.iter().try_for_each(|names| engine.route(names, &mut fan_outs))
                })?;
                measured.push((audience, names_a_call, route));
            }
        }
        print_head("route, ns a name");
        for (audience, names_a_call, route) in &measured {
            print_line(&format!("{audience}, {names_a_call} a call"), route);
        }
        print_head("the same, ns a receiver");
        for (audience, names_a_call, route) in &measured {
            if audience.receivers > 1 {
                let each = route.shared_by(audience.receivers);
                print_line(&format!("{audience}, {names_a_call} a call"), &each);
            }
        }
        let is_batch_for_one =
            |audience: &Audience, names_a_call| audience.receivers == 1 && names_a_call > 1;
        Ok(measured
            .into_iter()
            .filter(|(audience, names_a_call, _)| is_batch_for_one(audience, *names_a_call))
            .map(|(audience, _, route)| (audience.to_string(), route))
            .collect())
    }

    /// What it costs to come and to go.
    pub fn measure_subscribe(&self) -> Result<()> {
        let mut pair = self.instantiate()?;
        for engine in &mut pair {
            engine.subscribe(1, &(0..CHANNELS_HELD).map(|n| channel(2 * n)).collect())?;
        }
        print_head("subscribe and unsubscribe, ns a name");
        for names_a_call in [1, NAMES_A_CALL] {
            // Channels that are new, each between two that are held.
            let churned: Vec<String> = (0..CHANNELS_CHURNED)
                .map(|n| channel(2 * scattered(n, CHANNELS_HELD) + 1))
                .collect();
            let calls = in_calls(&churned, names_a_call);
            let subscribe = |engine: &mut dyn Engine| {
                calls.iter().try_for_each(|names| engine.subscribe(2, names))
            };
            let unsubscribe = |engine: &mut dyn Engine| {
                calls.iter().try_for_each(|names| engine.unsubscribe(2, names))
            };
            let [native, component] = &mut pair;
            let subscribed = compare([native, component], CHANNELS_CHURNED, |engine| {
                let took = time(|| subscribe(&mut **engine))?;
                unsubscribe(&mut **engine).map(|()| took)
            })?;
            let unsubscribed = compare([native, component], CHANNELS_CHURNED, |engine| {
                subscribe(&mut **engine)?;
                time(|| unsubscribe(&mut **engine))
            })?;
            print_line(&format!("subscribe, {names_a_call} a call"), &subscribed);
            print_line(&format!("unsubscribe, {names_a_call} a call"), &unsubscribed);
        }
        Ok(())
    }

    /// What it costs to take over a state, once an instance is there.
    pub fn measure_restore(&mut self) -> Result<()> {
        let [mut full, _] = self.instantiate()?;
        full.subscribe(1, &(0..SUBSCRIPTIONS_RESTORED).map(channel).collect())?;
        let state = full.save()?.context("the native engine saves nothing")?;
        let Engines { native, component } = self;
        let restored = compare([native, component], SUBSCRIPTIONS_RESTORED, |code| {
            let mut fresh = code.instantiate().map_err(anyhow::Error::msg)?;
            time(|| {
                ensure!(fresh.restore(&state)?, "a state that was just saved is not accepted");
                Ok(())
            })
        })?;
        print_head("restore, ns a subscription");
        print_line("100,000, each to a channel of its own", &restored);
        Ok(())
    }

    fn instantiate(&self) -> Result<Pair> {
        let make = |code: &EngineCode| code.instantiate().map_err(anyhow::Error::msg);
        Ok([make(&self.native)?, make(&self.component)?])
    }
}

impl Audience {
    /// Subscribes all of it.
    fn take_seats(&self, engine: &mut dyn Engine) -> Outcome<()> {
        let channels: Names = (0..self.channels).map(channel).collect();
        (1..)
            .take(self.receivers)
            .try_for_each(|connection| engine.subscribe(connection, &channels))
    }

    /// What one batch asks about.
    fn calls(&self, names_a_call: usize) -> Vec<Names> {
        let queried: Vec<String> =
            (0..self.names).map(|n| channel(scattered(n, self.channels))).collect();
        in_calls(&queried, names_a_call)
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [receivers, channels] =
            [self.receivers, self.channels].map(|count| thousands(count as f64));
        let plural = if self.receivers == 1 { "" } else { "s" };
        write!(f, "{receivers} receiver{plural}, {channels} channels")
    }
}

fn compare_pair(
    [native, component]: &mut Pair,
    things: usize,
    mut work: impl FnMut(&mut dyn Engine) -> Outcome<()>,
) -> Outcome<Comparison> {
    compare([native, component], things, |engine| time(|| work(&mut **engine)))
}

/// Whether the two find the same receivers.
fn alike([native, component]: &mut Pair, calls: &[Names]) -> Outcome<bool> {
    let [mut expected, mut fan_outs] = [FanOuts::default(), FanOuts::default()];
    for names in calls {
        native.route(names, &mut expected)?;
        component.route(names, &mut fan_outs)?;
        if fan_outs != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

fn channel(number: usize) -> String {
    format!("room:{number:06}:message")
}

/// Every number below `limit` once before one comes again, none beside its
/// neighbours. Limits are no multiples of the prime.
fn scattered(number: usize, limit: usize) -> usize {
    number * 7_919 % limit
}

fn in_calls(names: &[String], names_a_call: usize) -> Vec<Names> {
    names.chunks(names_a_call).map(|names| names.iter().collect()).collect()
}
