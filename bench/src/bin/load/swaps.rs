//! How long a swap holds messages up, as the server itself measures it: a client cannot
//! distinguish a pause from a time slice that another process had.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::fleet::Fleet;
use crate::server::{Kind, Server};
use crate::wire::ask;

/// What is swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// A plugin with `access` and `messages`.
    Plugin,
    /// The engine, with a million subscriptions.
    Engine,
}

/// Subscriptions held while the engine is swapped: so many connections with so many
/// each.
const HOLDERS: (usize, usize) = (100, 10_000);

/// Swaps it so often while 50 connections publish, one message after the other;
/// answers the pauses in microseconds.
pub fn measure(server: &Server, kind: Kind, part: Part, swaps: u32) -> Result<Histogram<u64>> {
    let mut fleet = Fleet::new(kind.wire)?;
    if part == Part::Engine {
        for holder in 0..HOLDERS.0 {
            let names: Vec<String> =
                (0..HOLDERS.1).map(|name| format!("held:{holder}:{name}")).collect();
            let mut stream = kind.wire.connect(server.port)?;
            for some in names.chunks(1_000).enumerate() {
                ask(&mut stream, &kind.wire.subscribe(some.1, 1_000 * (some.0 + 1)))?;
            }
            fleet.take(stream)?;
        }
    }
    let first = fleet.len();
    for _ in 0..50 {
        fleet.take(kind.wire.connect(server.port)?)?;
    }
    let publication = kind.wire.publish("news", &"x".repeat(128));
    for publisher in first..fleet.len() {
        fleet.send(publisher, &publication)?;
    }
    let (file, says) = match part {
        Part::Plugin => ("plugins/00-onlooker.wasm", "a plugin was swapped"),
        Part::Engine => ("engine.wasm", "the engine was swapped"),
    };
    let path = server.home.path().join(file);
    let component = fs::read(&path)?;
    let mut pauses = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    // The file may be looked at again after the server began to listen.
    server.log_line("changes of files are watched")?;
    std::thread::scope(|scope| {
        let swapping = scope.spawn(move || -> Result<Vec<u64>> {
            (0..swaps)
                .map(|number| {
                    replace(&path, &component, number)?;
                    let line = server.log_line(says)?;
                    let pause = line.split("pause_us=").nth(1).and_then(|rest| {
                        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
                    });
                    pause.with_context(|| format!("no pause in: {line}"))
                })
                .collect()
        });
        while !swapping.is_finished() {
            fleet.poll(Duration::from_millis(10))?;
            for (number, _) in std::mem::take(&mut fleet.came) {
                fleet.send(number, &publication)?;
            }
        }
        let measured = swapping.join().map_err(|_| anyhow::anyhow!("swapping panicked"))??;
        measured.into_iter().try_for_each(|pause| pauses.record(pause.max(1)))?;
        Ok(pauses)
    })
}

/// The same component with another hash: a custom section says which it is.
fn replace(path: &Path, component: &[u8], number: u32) -> Result<()> {
    let mut bytes = component.to_vec();
    let digits = format!("{number:08}");
    // Id 0, the length of the rest, and a name of eight bytes with nothing behind.
    bytes.extend_from_slice(&[0, 9, 8]);
    bytes.extend_from_slice(digits.as_bytes());
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, &bytes)?;
    Ok(fs::rename(&fresh, path)?)
}
