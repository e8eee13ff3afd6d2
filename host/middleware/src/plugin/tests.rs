//! What becomes of a plugin when the host itself panics.

use std::time::Duration;

use anyhow::{Context, Result};

use super::*;
use crate::Middleware;
use crate::changes::Offer;
use crate::stats::Initiator;
use crate::trace::Tracer;
use switchyard_config::Config;
use switchyard_config::limits::LiveLimits;
use switchyard_hub::connections::Connections;
use switchyard_wasm::Wasm;

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_in_whose_call_the_host_panics_is_rebuilt() -> Result<()> {
    let config = Config::default();
    let middleware = Middleware::new(
        Wasm::with_cache(None).map_err(|error| anyhow::anyhow!("{error:#}"))?,
        config.plugins.clone(),
        config.limits.counters_max,
        Connections::new(9, config.outbox, 0),
        Arc::new(LiveLimits::new(&config.limits)),
        tokio::runtime::Handle::current(),
        Arc::new(Tracer::new(1, 1)),
    );
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/components/test/probe.wasm");
    let wasm = std::fs::read(file).context("run `make components`")?;
    let offer = Offer { wasm: wasm.into(), file: None, toml: None, is_fresh: false };
    middleware.load("10-probe", offer, &Initiator::Local)?;
    let plugin = middleware.chain().plugins().first().context("it is there")?.clone();
    let connection = 7;

    let answer = plugin
        .call_instance(connection, Cause::Plugin, |_| -> Result<(), Fault> { panic!("a defect") });
    assert_eq!(answer, None, "its policy decides");
    let rebuilt = async {
        while plugin.call_instance(connection, Cause::Plugin, |_| Ok(())).is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), rebuilt).await?;
    assert_eq!(plugin.state(), State::Running);
    Ok(())
}
