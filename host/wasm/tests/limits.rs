//! What a component may hold, over all that it is made of.

use std::time::Duration;

use switchyard_wasm::{ComponentLog, Limits, StoreState, Wasm};
use wasmtime::Store;
use wasmtime::component::{Instance, TypedFunc};

const PAGE: usize = 64 << 10;

/// Two modules, each with a memory of its own that starts with one page.
/// `wasm-tools parse` makes it of the text beside it.
const TWO_MEMORIES: &[u8] = include_bytes!("two_memories.wasm");

fn start(pages_max: usize) -> wasmtime::Result<(Store<StoreState>, Instance)> {
    let wasm = Wasm::new()?;
    let component = wasm.compile(TWO_MEMORIES).expect("it is a component");
    let limits = Limits {
        memory_bytes_max: pages_max * PAGE,
        table_elements_max: 1_000,
        core_instances_max: 10,
        resources_max: 10,
        returned_bytes_max: PAGE,
        log_lines_per_second_max: 1,
        call_budget: Duration::from_secs(10),
    };
    let log = ComponentLog::new("test", limits.log_lines_per_second_max);
    let mut store = wasm.store(log, limits, Box::new(()));
    switchyard_wasm::arm(&mut store, limits.call_budget);
    let instance = wasm.linker()?.instantiate(&mut store, &component)?;
    Ok((store, instance))
}

#[test]
fn memories_are_counted_together() -> wasmtime::Result<()> {
    let (mut store, instance) = start(10)?;
    let mut grow = |name: &str, pages: i32| -> wasmtime::Result<i32> {
        let function: TypedFunc<(i32,), (i32,)> = instance.get_typed_func(&mut store, name)?;
        let (before,) = function.call(&mut store, (pages,))?;
        Ok(before)
    };
    // Each answers how many pages it had, or -1: no more.
    assert_eq!(grow("grow-a", 9)?, -1);
    assert_eq!(grow("grow-a", 4)?, 1);
    assert_eq!(grow("grow-b", 5)?, -1);
    assert_eq!(grow("grow-b", 4)?, 1);
    // The one has 5 and the other 5.
    assert_eq!(grow("grow-a", 1)?, -1);
    assert_eq!(grow("grow-b", 1)?, -1);
    // What was refused is not counted.
    assert_eq!(grow("grow-a", 0)?, 5);
    assert_eq!(grow("grow-b", 0)?, 5);
    Ok(())
}

#[test]
fn memories_are_counted_from_the_start() -> wasmtime::Result<()> {
    start(2)?;
    let refused = start(1).err().map(|error| format!("{error:#}")).unwrap_or_default();
    assert!(refused.contains("memory minimum size of 1 pages exceeds"), "{refused}");
    Ok(())
}
