//! What the sandbox costs: the same work natively and in a component, side by
//! side in one run. `make bench` runs it; it takes half a minute.
//!
//! The work is what the server does: the engine is called through the trait that
//! the hub uses, and plugins through the chain that sessions use. Inputs are the
//! same in each run.

mod engines;
mod hooks;

use anyhow::Result;
use bench::{machine, sides};
use switchyard_wasm::Wasm;

use engines::Engines;
use hooks::Hooks;

/// How many names a batched call has.
const NAMES_A_CALL: usize = 64;

/// What a batched name with one receiver may cost more in a component.
const ROUTE_DIFFERENCE_NS_MAX: f64 = 150.0;

fn main() -> Result<()> {
    let wasm = Wasm::new().map_err(|problem| anyhow::anyhow!("{problem:#}"))?;
    let mut engines = Engines::load(&wasm)?;
    let hooks = Hooks::load(&wasm)?;

    println!("What the sandbox costs");
    println!("{}", machine::facts());
    println!(
        "switchyard {}, Wasmtime {}, guest-core@{}, {}",
        machine::version_of("switchyard"),
        machine::version_of("wasmtime"),
        engines.version(),
        hooks.versions(),
    );
    println!(
        "Medians of {} batches a side, measured alternately, of thread CPU time.",
        sides::BATCHES
    );
    println!("Spread: of their middle half. Where it is large, look at the ratio.");

    engines.measure_call()?;
    let batched_routes = engines.measure_route()?;
    engines.measure_subscribe()?;
    engines.measure_restore()?;
    hooks.measure()?;

    println!();
    println!("Target: batched route at most {ROUTE_DIFFERENCE_NS_MAX} ns above native.");
    for (audience, route) in batched_routes {
        let difference = route.difference();
        let verdict = if difference <= ROUTE_DIFFERENCE_NS_MAX { "met" } else { "missed" };
        println!("  {audience}: {difference:.0} ns above, {verdict}");
    }
    Ok(())
}
