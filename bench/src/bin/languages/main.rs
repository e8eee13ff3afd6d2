//! What a plugin costs in Rust, JavaScript and Python: one that does the same in all
//! three (`examples/languages`), called by the chain as sessions call it.
//! `make bench-languages` runs it; it takes a minute, most of it to compile them.
//!
//! Batches of Rust and of each other language alternate, so that a disturbance affects both.

use std::borrow::Cow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bench::chain::Bench;
use bench::machine;
use bench::sides::{self, Comparison, compare, time};
use bench::table::thousands;
use switchyard_middleware::chain::{Chain, Publication, PublishOutcome, Space};
use switchyard_middleware::stats::Failure;
use switchyard_wasm::Wasm;

/// The languages beside Rust, with the name of the component in each.
const OTHERS: [(&str, &str); 2] = [("JavaScript", "emoji-js"), ("Python", "emoji-python")];
const RUST: &str = "emoji";

/// Where `make languages` leaves them, within `target/components`.
const FOLDER: &str = "languages";

const CHANNEL: &str = "room:000042:message";

/// How many bytes are published in a batch. All batches together stay well under the
/// memory that a plugin may have, because one in Python does not give back what it
/// returned.
const BATCH_BYTES: usize = 64_000;

/// What is published.
struct Case {
    what: &'static str,
    payload: String,
    messages_a_call: usize,
    is_changed: bool,
}

fn main() -> Result<()> {
    let wasm = Wasm::new().map_err(|problem| anyhow::anyhow!("{problem:#}"))?;
    let bench = Bench::new(&wasm)?;
    println!("What a plugin costs in three languages");
    println!("{}", machine::facts());
    println!(
        "switchyard {}, Wasmtime {}",
        machine::version_of("switchyard"),
        machine::version_of("wasmtime")
    );
    println!(
        "Medians of {} batches a side, measured alternately, of thread CPU time.",
        sides::BATCHES
    );
    println!("\n| | component | compiled in | memory, fresh |");
    println!("|---|---|---|---|");
    let rust = load(&bench, "Rust", RUST)?;
    let mut others = Vec::new();
    for (language, component) in OTHERS {
        others.push((language, load(&bench, language, component)?));
    }
    println!("\n| one message, in ns | Rust | JavaScript | Python | spread |");
    println!("|---|---|---|---|---|");
    for case in cases() {
        let mut measured = Vec::new();
        for (_, other) in &others {
            measured.push(measure(&bench, &rust, other, &case)?);
        }
        print_line(case.what, &measured);
    }
    println!();
    for (language, chain) in &others {
        println!("Memory of the one in {language} after all that: {}", memory(chain));
    }
    Ok(())
}

fn cases() -> [Case; 5] {
    // 100 bytes: with no colon but those that make a name, or none.
    let plain = "see you at the station in half an hour, I am the one in red with the very large \
                 umbrella, and a dog."
        .to_owned();
    let named = plain.replace("dog.", ":+1:");
    let case = |what, payload: &str, messages_a_call, is_changed| Case {
        what,
        payload: payload.to_owned(),
        messages_a_call,
        is_changed,
    };
    [
        case("100 B, left as it is, 1 a call", &plain, 1, false),
        case("100 B, left as it is, 64 a call", &plain, 64, false),
        case("100 B, changed, 1 a call", &named, 1, true),
        case("100 B, changed, 64 a call", &named, 64, true),
        case("4 KiB, changed, 1 a call", &plain.repeat(40).replace("dog.", ":+1:"), 1, true),
    ]
}

/// Compiles one, and says what that took.
fn load(bench: &Bench, language: &str, component: &str) -> Result<Chain> {
    let started = Instant::now();
    let chain = bench.chain(FOLDER, component, "{}").context("run `make languages`")?;
    let seconds = started.elapsed().as_secs_f64();
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/components")
        .join(FOLDER)
        .join(component)
        .with_extension("wasm");
    let bytes = std::fs::metadata(file)?.len();
    println!("| {language} | {} KB | {seconds:.1} s | {} |", bytes / 1000, memory(&chain));
    Ok(chain)
}

fn memory(chain: &Chain) -> String {
    let bytes: usize =
        chain.plugins().iter().flat_map(|plugin| plugin.memory_bytes()).flatten().sum();
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Rust on one side, another language on the other.
fn measure(bench: &Bench, rust: &Chain, other: &Chain, case: &Case) -> Result<Comparison> {
    let publication = Publication::new(
        Space::Channels,
        Cow::Borrowed(CHANNEL.as_bytes()),
        Cow::Borrowed(case.payload.as_bytes()),
    );
    let publications = vec![(bench.connection.id, publication); case.messages_a_call];
    let ask = |chain: &Chain| {
        let fates = chain.publish(publications.as_slice().into());
        let as_meant = |fate: &&PublishOutcome<'_>| match fate {
            PublishOutcome::Forward(Publication { payload: Cow::Borrowed(_), .. }) => {
                !case.is_changed
            }
            PublishOutcome::Forward(Publication { payload: Cow::Owned(_), .. }) => case.is_changed,
            _ => false,
        };
        fates.iter().filter(as_meant).count()
    };
    let mut by_rust = rust;
    let mut by_other = other;
    let messages = BATCH_BYTES / case.payload.len();
    let calls = messages / case.messages_a_call;
    compare([&mut by_rust, &mut by_other], calls * case.messages_a_call, |chain| {
        time(|| {
            (0..calls).try_for_each(|_| {
                let as_meant = ask(chain);
                ensure!(
                    as_meant == case.messages_a_call,
                    "{}: {as_meant} were as meant: {:?}",
                    case.what,
                    failures(chain)
                );
                Ok(())
            })
        })
    })
}

/// The calls that failed; printed when a result is wrong.
fn failures(chain: &Chain) -> Vec<Failure> {
    chain.plugins().iter().flat_map(|plugin| plugin.stats.failures()).collect()
}

fn print_line(what: &str, measured: &[Comparison]) {
    // Rust was measured with each: all the same but for the noise.
    let rust: f64 =
        measured.iter().map(|with| with.native).sum::<f64>() / measured.len().max(1) as f64;
    let others: Vec<String> = measured
        .iter()
        .map(|with| format!("{} ({:.0} ×)", thousands(with.component), with.ratio()))
        .collect();
    let spread = measured.iter().map(|with| with.spread).fold(0.0, f64::max);
    println!("| {what} | {} | {} | {:.0} % |", thousands(rust), others.join(" | "), spread * 100.0);
}
