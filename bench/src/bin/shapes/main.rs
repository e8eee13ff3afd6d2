//! What a call of a hook costs for each of its items, with its arguments in several shapes: the
//! measurement by which the shapes of the plugin contract were chosen. `make bench-shapes`
//!
//! The shapes are those of bench/shapes/wit. All do the same: look at the first byte of each name
//! and payload, and let everything pass. Batches of all shapes alternate; a figure is the thread's
//! processor time in the median batch.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::sides::{BATCHES, time};
use switchyard_wasm::{ComponentLog, Limits, StoreState, Wasm};
use wasmtime::Store;

use bindings::Shapes;
use bindings::bench::shapes::types::{Extra, MessageParam, Origin};
use bindings::exports::bench::shapes::{carried, flat, nested, optional, plain, sparse};

#[allow(missing_docs, unsafe_code, clippy::all, clippy::restriction, reason = "generated")]
mod bindings {
    wasmtime::component::bindgen!({
        path: "shapes/wit",
        world: "shapes",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

const CHANNEL: &str = "room:000042:message";
/// As long as the other, so that only what differs is seen.
const OTHER_CHANNEL: &str = "room:000043:message";
const PAYLOAD: &[u8] = &[b'x'; 100];
const TAGS: &[(&str, &str)] = &[("kind", "chat"), ("lang", "en")];
/// Calls in a batch.
const CALLS: usize = 200;
/// Batches before those that count.
const WARM_UP_BATCHES: usize = 3;
const ITEMS: [usize; 2] = [1, 64];

/// More than the component needs.
const LIMITS: Limits = Limits {
    memory_bytes_max: 64 << 20,
    table_elements_max: 10_000,
    core_instances_max: 10,
    resources_max: 100,
    returned_bytes_max: 1 << 20,
    log_lines_per_second_max: 100,
    call_budget: Duration::from_secs(1),
};

type Call = fn(&Shapes, &mut Store<StoreState>, usize) -> wasmtime::Result<usize>;

/// What is compared, and what it is called in the table.
const SHAPES: &[(&str, Call)] = &[
    ("`on-access`, 0.1.0", plain_access),
    ("`on-access`, 0.2.0, one name", |shapes, store, items| {
        carried_access(shapes, store, items, CHANNEL)
    }),
    ("`on-access`, 0.2.0, names that differ", |shapes, store, items| {
        carried_access(shapes, store, items, OTHER_CHANNEL)
    }),
    ("`on-access`, one list of bytes", flat_access),
    ("`on-publish`, 0.1.0", plain_publish),
    ("`on-publish`, 0.2.0, one channel", |shapes, store, items| {
        carried_publish(shapes, store, items, CHANNEL, &[])
    }),
    ("`on-publish`, 0.2.0, channels that differ", |shapes, store, items| {
        carried_publish(shapes, store, items, OTHER_CHANNEL, &[])
    }),
    ("`on-publish`, 0.2.0, one channel, two tags", |shapes, store, items| {
        carried_publish(shapes, store, items, CHANNEL, TAGS)
    }),
    ("`on-publish`, extras and verdicts in lists of their own", sparse_publish),
    ("`on-publish`, extras as an option", |shapes, store, items| {
        optional_publish(shapes, store, items, &[])
    }),
    ("`on-publish`, extras as an option, two tags", |shapes, store, items| {
        optional_publish(shapes, store, items, TAGS)
    }),
    ("`on-publish`, all in one record", |shapes, store, items| {
        nested_publish(shapes, store, items, &Origin::Connection(7), &[])
    }),
    ("`on-publish`, all in one record, from a token", |shapes, store, items| {
        nested_publish(shapes, store, items, &Origin::Token("backend"), &[])
    }),
    ("`on-publish`, all in one record, two tags", |shapes, store, items| {
        nested_publish(shapes, store, items, &Origin::Connection(7), TAGS)
    }),
    ("`on-publish`, one list of bytes", flat_publish),
];

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let file = root.join("target/components/test/shapes.wasm");
    let bytes = std::fs::read(&file).with_context(|| format!("{}", file.display()))?;
    let wasm = Wasm::without_deadlines().map_err(failure)?;
    let component = wasm.compile(&bytes).map_err(anyhow::Error::msg)?;
    let linker = wasm.linker().map_err(failure)?;
    let mut store = wasm.store(ComponentLog::new("shapes", 100), LIMITS, Box::new(()));
    store.set_epoch_deadline(u64::MAX / 2);
    let shapes = Shapes::instantiate(&mut store, &component, &linker).map_err(failure)?;
    let mut columns = Vec::new();
    for items in ITEMS {
        columns.push(measure(&shapes, &mut store, items)?);
    }
    print!("{}", table(&columns)?);
    Ok(())
}

/// The median of each shape, in nanoseconds for one item.
fn measure(shapes: &Shapes, store: &mut Store<StoreState>, items: usize) -> Result<Vec<f64>> {
    let mut times = vec![Vec::new(); SHAPES.len()];
    for batch in 0..WARM_UP_BATCHES + BATCHES {
        for ((name, call), times) in SHAPES.iter().zip(&mut times) {
            let took = time(|| {
                for _ in 0..CALLS {
                    let answers = call(shapes, store, items).map_err(failure)?;
                    ensure!(answers == items || answers == 0, "{name}: {answers} answers");
                }
                Ok(())
            })?;
            if batch >= WARM_UP_BATCHES {
                times.push(took);
            }
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        median.as_nanos() as f64 / (CALLS * items) as f64
    };
    Ok(times.into_iter().map(median).collect())
}

fn table(columns: &[Vec<f64>]) -> Result<String> {
    let mut page = "| shape | alone, ns | of 64, ns each |\n|---|---|---|\n".to_owned();
    for (row, (name, _)) in SHAPES.iter().enumerate() {
        write!(page, "| {name} |")?;
        for column in columns {
            write!(page, " {:.0} |", column.get(row).copied().unwrap_or_default())?;
        }
        page.push('\n');
    }
    Ok(page)
}

fn failure(error: wasmtime::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:?}")
}

/// One of two channels, in turns.
fn channel(number: usize, other: &'static str) -> &'static str {
    if number.is_multiple_of(2) { CHANNEL } else { other }
}

/// The channel, unless it is the same as the one before.
fn carried(number: usize, other: &'static str) -> Option<&'static str> {
    (number == 0 || other != CHANNEL).then(|| channel(number, other))
}

fn plain_access(
    shapes: &Shapes,
    store: &mut Store<StoreState>,
    items: usize,
) -> wasmtime::Result<usize> {
    let intent = || plain::Intent { channel: CHANNEL, payload_bytes: 100 };
    let request = |_| plain::Request { connection: 7, action: plain::Action::Publish(intent()) };
    let requests: Vec<_> = (0..items).map(request).collect();
    Ok(shapes.bench_shapes_plain().call_on_access(store, &requests)?.len())
}

fn carried_access(
    shapes: &Shapes,
    store: &mut Store<StoreState>,
    items: usize,
    other: &'static str,
) -> wasmtime::Result<usize> {
    let request = |number| carried::Request {
        origin: Origin::Connection(7),
        name: carried(number, other),
        action: carried::Action::Publish(100),
        recheck: false,
    };
    let requests: Vec<_> = (0..items).map(request).collect();
    Ok(shapes.bench_shapes_carried().call_on_access(store, &requests)?.len())
}

fn flat_access(
    shapes: &Shapes,
    store: &mut Store<StoreState>,
    items: usize,
) -> wasmtime::Result<usize> {
    let mut names = Vec::new();
    let mut requests = Vec::with_capacity(items);
    for _ in 0..items {
        names.extend_from_slice(CHANNEL.as_bytes());
        let name_end = names.len() as u32;
        let verb = flat::Verb::Publish;
        requests.push(flat::Request { connection: 7, verb, name_end, payload_bytes: 100 });
    }
    Ok(shapes.bench_shapes_flat().call_on_access(store, &names, &requests)?.len())
}

fn plain_publish(
    shapes: &Shapes,
    store: &mut Store<StoreState>,
    items: usize,
) -> wasmtime::Result<usize> {
    let submission = |_| plain::Submission {
        connection: 7,
        publication: MessageParam { channel: CHANNEL, payload: PAYLOAD },
    };
    let submissions: Vec<_> = (0..items).map(submission).collect();
    Ok(shapes.bench_shapes_plain().call_on_publish(store, &submissions)?.len())
}

fn extras<'a>(items: usize, tags: &'a [(&'a str, &'a str)]) -> Vec<Extra<'a>> {
    let extra = |number| Extra { submission: number as u32, key: None, version: None, tags };
    if tags.is_empty() { Vec::new() } else { (0..items).map(extra).collect() }
}

fn carried_publish(
    shapes: &Shapes,
    store: &mut Store<StoreState>,
    items: usize,
    other: &'static str,
    tags: &[(&str, &str)],
) -> wasmtime::Result<usize> {
    let submission = |number| carried::Submission {
        origin: Origin::Connection(7),
        channel: carried(number, other),
        payload: PAYLOAD,
    };
    let submissions: Vec<_> = (0..items).map(submission).collect();
    let extras = extras(items, tags);
    Ok(shapes.bench_shapes_carried().call_on_publish(store, &submissions, &extras)?.len())
}

fn sparse_publish(
    shapes: &Shapes,
    store: &mut Store<StoreState>,
    items: usize,
) -> wasmtime::Result<usize> {
    let submission = |_| sparse::Submission {
        origin: Origin::Connection(7),
        channel: CHANNEL,
        payload: PAYLOAD,
    };
    let submissions: Vec<_> = (0..items).map(submission).collect();
    Ok(shapes.bench_shapes_sparse().call_on_publish(store, &submissions, &[])?.len())
}

fn optional_publish(
    shapes: &Shapes,
    store: &mut Store<StoreState>,
    items: usize,
    tags: &[(&str, &str)],
) -> wasmtime::Result<usize> {
    let extras =
        || (!tags.is_empty()).then_some(optional::Extras { key: None, version: None, tags });
    let submission = |_| optional::Submission {
        origin: Origin::Connection(7),
        publication: optional::Publication { channel: CHANNEL, payload: PAYLOAD, extras: extras() },
    };
    let submissions: Vec<_> = (0..items).map(submission).collect();
    Ok(shapes.bench_shapes_optional().call_on_publish(store, &submissions)?.len())
}

fn nested_publish(
    shapes: &Shapes,
    store: &mut Store<StoreState>,
    items: usize,
    origin: &Origin<'_>,
    tags: &[(&str, &str)],
) -> wasmtime::Result<usize> {
    let publication = || nested::Publication {
        channel: CHANNEL,
        payload: PAYLOAD,
        key: None,
        version: None,
        tags,
    };
    let submission = |_| nested::Submission { origin: origin.clone(), publication: publication() };
    let submissions: Vec<_> = (0..items).map(submission).collect();
    Ok(shapes.bench_shapes_nested().call_on_publish(store, &submissions)?.len())
}

fn flat_publish(
    shapes: &Shapes,
    store: &mut Store<StoreState>,
    items: usize,
) -> wasmtime::Result<usize> {
    let mut bytes = Vec::new();
    let mut submissions = Vec::with_capacity(items);
    for _ in 0..items {
        bytes.extend_from_slice(CHANNEL.as_bytes());
        let channel_end = bytes.len() as u32;
        bytes.extend_from_slice(PAYLOAD);
        submissions.push(flat::Submission {
            origin: Origin::Connection(7),
            channel_end,
            payload_end: bytes.len() as u32,
            version: None,
        });
    }
    Ok(shapes.bench_shapes_flat().call_on_publish(store, &bytes, &submissions, &[])?.len())
}
