//! What is done for each message, to be counted in instructions: each piece in a
//! function of its own, which `tests/counts.rs` has callgrind count, the code of the
//! components included. It prints how often each piece is done.
//!
//! Nothing is timed here, so that the counts are the same whatever else the machine
//! does.

use std::borrow::Cow;
use std::hint::black_box;
use std::task::{Context as TaskContext, Waker};

use anyhow::{Result, ensure};
use bench::chain::Bench;
use bytes::Bytes;
use guest_core::{FanOuts, Names};
use switchyard_config::{Config, EngineConfig, EngineSource};
use switchyard_engine::EngineCode;
use switchyard_hub::encoding::{Encoding, Message, Push};
use switchyard_hub::engine::{Engine, EngineFactory};
use switchyard_middleware::chain::{Chain, Publication, Space};
use switchyard_middleware::items::Action;
use switchyard_net::chunks::{Chunks, Written};
use switchyard_net::outbox::Outbox;
use switchyard_protocol::json;
use switchyard_protocol::resp::{Authentication, Burst, Outcome, RequestLimits, RequestParser};
use switchyard_types::batch::Batch;
use switchyard_wasm::Wasm;

/// How often each piece is done: a multiple of the batch.
const TIMES: usize = 1_920;
/// How many names one call is about.
const BATCH: usize = 64;
/// After how many calls a plugin is shown a whole batch.
const UNTIL_TRUSTED: usize = 100;
/// How many channels have a subscriber.
const CHANNELS: usize = 10_000;

fn channel(number: usize) -> String {
    format!("room:{number:06}:message")
}

fn main() -> Result<()> {
    println!("{TIMES}");
    let wasm = Wasm::without_deadlines().map_err(|problem| anyhow::anyhow!("{problem:#}"))?;
    let payload = "x".repeat(128);
    let names: Names = (0..BATCH).map(|number| channel(number * 131 % CHANNELS)).collect();

    let mut native = engine(&wasm, EngineSource::Native)?;
    let mut component = engine(&wasm, EngineSource::Embedded)?;
    let mut fan_outs = FanOuts::default();
    measured_route_native(&mut *native, &names, &mut fan_outs)?;
    ensure!(fan_outs.connections.len() == BATCH, "not every subscriber was found");
    measured_route_component(&mut *component, &names, &mut fan_outs)?;
    ensure!(fan_outs.connections.len() == BATCH, "not every subscriber was found");
    measured_route_component_alone(&mut *component, &channel(1), &mut fan_outs)?;

    let bench = Bench::new(&wasm)?;
    let chain = bench.chain("test", "onlooker", "{}")?;
    let name = channel(1);
    let id = bench.connection.id;
    let action = (id, Action::Publish { channel: &name, payload_bytes: payload.len() });
    let actions = vec![action; BATCH];
    // A new plugin is shown little at first.
    (0..UNTIL_TRUSTED).for_each(|_| drop(chain.access(&actions)));
    measured_hook_access(&chain, &actions)?;
    measured_hook_access_alone(&chain, action)?;
    let publication = Publication::new(
        Space::Channels,
        Cow::Borrowed(name.as_bytes()),
        Cow::Borrowed(payload.as_bytes()),
    );
    let publication = (id, publication);
    let publications = vec![publication.clone(); BATCH];
    (0..UNTIL_TRUSTED).for_each(|_| drop(chain.publish(publications.as_slice().into())));
    measured_hook_messages(&chain, &publications)?;
    measured_hook_messages_alone(&chain, &publication)?;

    let text = format!("[1,\"PUBLISH\",\"{name}\",\"{payload}\"]");
    measured_decode_json(&text)?;
    let request = format!(
        "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{name}\r\n${}\r\n{payload}\r\n",
        name.len(),
        payload.len()
    );
    measured_decode_resp(request.as_bytes())?;
    measured_encode_json(name.as_bytes(), payload.as_bytes());
    measured_encode_resp(name.as_bytes(), payload.as_bytes());
    measured_outbox(&Bytes::from(payload.into_bytes()));
    Ok(())
}

/// An engine with a subscriber on each channel.
fn engine(wasm: &Wasm, source: EngineSource) -> Result<Box<dyn Engine>> {
    let config = EngineConfig { source, ..Config::default().engine };
    let mut engine = EngineCode::load(wasm, &config)?.instantiate().map_err(anyhow::Error::msg)?;
    for number in 0..CHANNELS {
        engine.subscribe(number as u64, &Names::from_iter([channel(number)]))?;
    }
    Ok(engine)
}

#[inline(never)]
fn measured_route_native(
    engine: &mut dyn Engine,
    names: &Names,
    fan_outs: &mut FanOuts,
) -> Result<()> {
    for _ in 0..TIMES / BATCH {
        engine.route(black_box(names), fan_outs)?;
    }
    Ok(())
}

#[inline(never)]
fn measured_route_component(
    engine: &mut dyn Engine,
    names: &Names,
    fan_outs: &mut FanOuts,
) -> Result<()> {
    for _ in 0..TIMES / BATCH {
        // Otherwise it is the same function as the one before.
        engine.route(black_box(names), black_box(&mut *fan_outs))?;
    }
    Ok(())
}

/// What is a batch only of itself.
#[inline(never)]
fn measured_route_component_alone(
    engine: &mut dyn Engine,
    name: &str,
    fan_outs: &mut FanOuts,
) -> Result<()> {
    let names = Names::from_iter([name]);
    for _ in 0..TIMES {
        engine.route(black_box(&names), fan_outs)?;
        ensure!(fan_outs.connections.len() == 1, "no connection was found");
    }
    Ok(())
}

#[inline(never)]
fn measured_hook_access(chain: &Chain, actions: &[(u64, Action<'_>)]) -> Result<()> {
    for _ in 0..TIMES / BATCH {
        let answers = chain.access(black_box(actions));
        ensure!(answers.len() == BATCH && answers.iter().all(Option::is_none), "refused");
    }
    Ok(())
}

#[inline(never)]
fn measured_hook_access_alone(chain: &Chain, action: (u64, Action<'_>)) -> Result<()> {
    for _ in 0..TIMES {
        let answers = chain.access(black_box(&[action]));
        ensure!(answers.len() == 1 && answers.iter().all(Option::is_none), "refused");
    }
    Ok(())
}

#[inline(never)]
fn measured_hook_messages_alone(chain: &Chain, publication: &(u64, Publication<'_>)) -> Result<()> {
    for _ in 0..TIMES {
        let alone = Batch::from_iter([black_box(publication).clone()]);
        ensure!(chain.publish(alone).len() == 1, "it was not answered");
    }
    Ok(())
}

#[inline(never)]
fn measured_hook_messages(chain: &Chain, publications: &[(u64, Publication<'_>)]) -> Result<()> {
    for _ in 0..TIMES / BATCH {
        let fates = chain.publish(black_box(publications).into());
        ensure!(fates.len() == BATCH, "not all were answered");
    }
    Ok(())
}

#[inline(never)]
fn measured_decode_json(text: &str) -> Result<()> {
    let mut requests = Vec::new();
    for _ in 0..TIMES {
        requests.clear();
        json::parse(black_box(text), &mut requests);
        ensure!(requests.first().is_some_and(|request| request.command.is_ok()), "not parsed");
    }
    Ok(())
}

#[inline(never)]
fn measured_decode_resp(request: &[u8]) -> Result<()> {
    let mut parser = RequestParser::new(RequestLimits::default());
    let mut burst = Burst::default();
    for _ in 0..TIMES {
        burst.clear();
        let outcome = parser.parse(black_box(request), Authentication::Settled, &mut burst);
        ensure!(outcome == Outcome::Complete, "not parsed");
    }
    Ok(())
}

fn push<'a>(channel: &'a [u8], payload: &'a [u8]) -> Push<'a> {
    Push::new(Message::new(Space::Channels, None, channel, payload))
}

#[inline(never)]
fn measured_encode_json(channel: &[u8], payload: &[u8]) {
    for _ in 0..TIMES {
        let mut push = push(black_box(channel), black_box(payload));
        black_box(push.encoded(Encoding::JSON));
    }
}

#[inline(never)]
fn measured_encode_resp(channel: &[u8], payload: &[u8]) {
    for _ in 0..TIMES {
        let mut push = push(black_box(channel), black_box(payload));
        black_box(push.encoded(Encoding::RESP2));
    }
}

/// Pushed, dequeued by the writer, and written.
#[inline(never)]
fn measured_outbox(chunk: &Bytes) {
    let outbox = Outbox::new(Config::default().outbox);
    let context = TaskContext::from_waker(Waker::noop());
    let mut chunks = Chunks::default();
    for _ in 0..TIMES {
        outbox.push(black_box(chunk).clone());
        black_box(outbox.take(Written::default(), &mut chunks, &context));
        chunks.clear();
        let written = Written { bytes: chunk.len(), chunks: 1 };
        black_box(outbox.take(written, &mut chunks, &context));
    }
}
