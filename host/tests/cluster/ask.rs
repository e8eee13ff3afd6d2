//! Asking all nodes at once. There is no door for it yet but the library's, so this
//! is a node within the test, beside real ones.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use switchyard::backplane::{Answer, Backplane as Link, Question, Text};
use switchyard::cli::ServeArgs;
use switchyard::config::Config;
use switchyard::engine::EngineCode;
use switchyard::hub::Hub;
use switchyard::hub::connections::Connections;
use switchyard::limits::LiveLimits;
use switchyard::middleware::Middleware;
use switchyard::middleware::trace::Tracer;
use switchyard::wasm::Wasm;

use crate::backplane::{Backplane, Kind};
use crate::nodes::Node;
use crate::support::PATIENCE;

async fn all_are_asked(kind: Kind) -> Result<()> {
    let backplane = Backplane::start(kind).await?;
    let [a, b, c] = Node::three(&backplane).await?;
    let mut clients = Vec::new();
    for (node, names) in [(&a, ["x", "y"]), (&b, ["y", "z"]), (&c, ["other", "y"])] {
        let mut client = node.client().await?;
        for name in names {
            client.call(&["SUBSCRIBE", name]).await?;
        }
        client.call(&["PSUBSCRIBE", "p*"]).await?;
        clients.push(client);
    }

    let config = Config::load(&ServeArgs { cluster: Some(backplane.url()), ..Default::default() })?;
    let wasm = Wasm::new().map_err(|error| anyhow!("{error:#}"))?;
    let code = EngineCode::load(&wasm, &config.engine)?;
    let limits = config.limits;
    let connections =
        Connections::new(limits.connections_max, config.outbox, limits.attributes_bytes_max);
    let live = Arc::new(LiveLimits::new(&limits));
    let link = Link::new(config.cluster.context("there is one")?, live);
    let hub =
        Hub::new(code, &config.engine, connections.clone()).map_err(|error| anyhow!(error))?;
    let hub = Arc::new(hub.with_interest(link.interest().clone()));
    let runtime = tokio::runtime::Handle::current();
    let middleware = Middleware::new(
        wasm,
        config.plugins,
        limits.counters_max,
        connections,
        runtime,
        Arc::new(Tracer::new(1, 1)),
    );
    let running = tokio::spawn(link.clone().run(hub.clone(), Arc::new(middleware)));
    ensure!(link.ready(PATIENCE).await, "it did not find the backplane");

    let text = |name: &str| Text(name.as_bytes().to_vec());
    let channels = Question::Channels { is_shard: false, matching: Some(text("[xyz]")) };
    let mut names: Vec<Vec<u8>> = Vec::new();
    let answers = link.ask_all(&hub, channels).await;
    ensure!(answers.len() == 4, "{answers:?}");
    for answer in answers {
        let Answer::Names { names: some, is_cut: false } = answer.answer else {
            anyhow::bail!("{answer:?}")
        };
        names.extend(some.into_iter().map(|name| name.0));
    }
    names.sort_unstable();
    ensure!(names == [b"x", b"y", b"y", b"y", b"z"], "{names:?}");

    let counts =
        Question::SubscriberCounts { is_shard: false, channels: vec![text("x"), text("y")] };
    let mut sums = [0, 0];
    for answer in link.ask_all(&hub, counts).await {
        let Answer::Counts(counts) = answer.answer else { anyhow::bail!("{answer:?}") };
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    ensure!(sums == [1, 3], "{sums:?}");
    let patterns = link.ask_all(&hub, Question::PatternCount).await;
    let count =
        |wanted: u64| patterns.iter().filter(|it| it.answer == Answer::Count(wanted)).count();
    ensure!((count(0), count(1)) == (1, 3), "{patterns:?}");
    running.abort();
    Ok(())
}

#[tokio::test]
async fn all_nodes_are_asked_over_redis() -> Result<()> {
    all_are_asked(Kind::Redis).await
}

#[tokio::test]
async fn all_nodes_are_asked_over_nats() -> Result<()> {
    all_are_asked(Kind::Nats).await
}
