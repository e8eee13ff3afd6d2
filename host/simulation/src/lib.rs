//! Runs the server's own sessions, hub, chain and outboxes with simulated clients, sockets, time and
//! engine failures, all from one seed, and checks what the clients saw.
//!
//! Time is tokio's paused clock on a current-thread runtime: it advances when every task waits, and
//! the server's budgets read it, too, so that a run depends on its seed alone. The order in which
//! tasks run is varied by the sockets, which delay and cut reads and writes at random. turmoil was
//! considered: it simulates hosts and their network, while here one host with many connections is of
//! interest. shuttle and loom explore orders of threads, and need every lock in the server to be
//! theirs; loom checks the outbox and the publish batches in `host/net/loom`.
//!
//! Not simulated: several threads, components (the native library is the engine), TLS, the
//! backplane.

pub mod chance;
pub mod check;
mod client;
mod engine;
pub mod record;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tokio::sync::Semaphore;

use chance::Chance;
use client::World;
use engine::Unreliable;
use record::{Event, Recorder};
use switchyard_config::{ChannelRule, ChannelRules, Config, EngineSource, HistoryRule};
use switchyard_hub::clock;
use switchyard_net::outbox::OutboxMemory;
use switchyard_server::in_memory::InMemoryServer;
use switchyard_types::command::Space;
use switchyard_types::keyed_hash;

/// For how long a server may need to remove connections that ended, in simulated time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the simulation with this seed. Returns what the clients did and saw, in order.
///
/// # Errors
///
/// The server cannot be started, sent something that no client expects, or kept something of the
/// connections when all had ended.
pub fn run(seed: u64) -> Result<Vec<Event>> {
    // Which shard has which channel.
    keyed_hash::fix_key(0);
    // The server has thread-local state, such as a task that belongs to the thread's runtime.
    let running = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .context("no runtime")?;
        runtime.block_on(simulate(Chance::new(seed)))
    });
    running.join().map_err(|_| anyhow!("a panic"))?
}

/// Runs the simulation with this seed and checks what the clients saw.
///
/// # Errors
///
/// As for `run`; or the server broke a promise, with the steps that show it.
pub fn run_and_check(seed: u64) -> Result<Vec<Event>> {
    let events = run(seed).with_context(|| format!("with the seed {seed}"))?;
    check::check(&events).with_context(|| format!("with the seed {seed}"))?;
    Ok(events)
}

async fn simulate(chance: Chance) -> Result<Vec<Event>> {
    let mut config = Config::default();
    config.engine.source = EngineSource::Native;
    config.engine.shards = chance.number(1..4);
    config.plugins.directory = None;
    if chance.one_in(3) {
        // Slow readers are closed.
        config.outbox.bytes_max = chance.number(4 << 10..64 << 10);
        config.outbox.soft_bytes = config.outbox.bytes_max;
    }
    clock::simulate();
    let rule = ChannelRule {
        match_: vec!["[0-2].*".to_owned()],
        history: Some(HistoryRule {
            messages: chance.number(3..40),
            age_ms: chance.number(1_000..60_000) as u64,
            idle_ms: 60_000,
        }),
        presence: None,
    };
    config.channels = ChannelRules::new(vec![rule]);
    let fails_one_in = if chance.one_in(3) { chance.number(20..200) } else { 0 };
    let of = chance.clone();
    let server = InMemoryServer::open_with(config, |code| {
        Arc::new(Unreliable { engines: Arc::new(code), chance: of, fails_one_in })
    })?;
    let services = server.services().clone();
    let clients = chance.number(2..8);
    let channels = (0..chance.number(1..5)).map(|number| format!("{number}.room"));
    let world = Arc::new(World {
        server,
        recorder: Recorder::new(),
        channels: channels.collect(),
        drop_one_in: if chance.one_in(2) { chance.number(5..40) } else { 0 },
        stall_one_in: if chance.one_in(2) { chance.number(5..40) } else { 0 },
        sending: clients.into(),
        all_sent: Semaphore::new(0),
        connections: 0.into(),
        payloads: 0.into(),
        chance: chance.clone(),
    });
    let steps = || chance.number(5..40);
    let running: Vec<_> =
        (0..clients).map(|_| tokio::spawn(client::run(world.clone(), steps()))).collect();
    for client in running {
        client.await.context("a client panicked")??;
    }
    let world = Arc::into_inner(world).context("a client still runs")?;
    world.server.close(PATIENCE).await;
    let left = services.hub.connections().count();
    ensure!(left == 0, "{left} connections are left when all have ended");
    let subscribed = services.hub.channel_count(Space::Channels).unwrap_or_default()
        + services.hub.pattern_count().unwrap_or_default();
    ensure!(subscribed == 0, "{subscribed} names have subscribers when all connections have ended");
    let holds = services.hub.connections().memory().account().held();
    ensure!(holds == 0, "{holds} bytes are accounted for when all connections have ended");
    Ok(world.recorder.events())
}
