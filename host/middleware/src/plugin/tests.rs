//! A plugin in whose call the host panics, and plugins that were built for either version of the
//! contract.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::*;
use crate::Middleware;
use crate::changes::Offer;
use crate::items::{Action, Inspection};
use crate::stats::Initiator;
use crate::trace::Tracer;
use switchyard_config::Config;
use switchyard_config::limits::LiveLimits;
use switchyard_hub::connections::Connections;
use switchyard_types::command::NOPERM;
use switchyard_wasm::Wasm;

fn middleware() -> Result<Middleware> {
    let config = Config::default();
    Ok(Middleware::new(
        Wasm::new().map_err(|error| anyhow::anyhow!("{error:#}"))?,
        config.plugins.clone(),
        config.limits.counters_max,
        Connections::new(9, config.outbox, 0),
        Arc::new(LiveLimits::new(&config.limits)),
        tokio::runtime::Handle::current(),
        Arc::new(Tracer::new(1, 1)),
    ))
}

/// Loads a component that `make components` leaves.
fn load(middleware: &Middleware, name: &str, toml: Option<&str>) -> Result<Arc<Plugin>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/components");
    let wasm =
        std::fs::read(folder.join(format!("{name}.wasm"))).context("run `make components`")?;
    let toml = toml.map(str::to_owned);
    let offer = Offer { wasm: wasm.into(), file: None, toml, is_fresh: false };
    middleware.load("10-plugin", offer, &Initiator::Local)?;
    Ok(middleware.chain().plugins().first().context("it is there")?.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_in_whose_call_the_host_panics_is_rebuilt() -> Result<()> {
    let middleware = middleware()?;
    let plugin = load(&middleware, "test/probe", None)?;
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

/// What `acl` of each version decides about every action on a channel that its rules open, or not.
#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_the_contract_are_asked_about_every_action() -> Result<()> {
    const RULES: &str = r#"
        [[settings.rules]]
        users = ["*"]
        subscribe = ["read.*"]
        publish = ["write.*"]
    "#;
    let actions = |name| {
        [
            (Action::Subscribe(name), "read"),
            (Action::Psubscribe(name), "read"),
            (Action::Resume(name), "read"),
            (Action::History(name), "read"),
            (Action::Presence(name), "read"),
            (Action::Watch(name), "read"),
            (Action::Inspect(Inspection::Channel(name)), "read"),
            (Action::Publish { channel: name, payload_bytes: 1 }, "write"),
            (Action::Enter { channel: name, data_bytes: 1 }, "write"),
            // Plugins for 0.1.0 cannot decide about calls.
            (Action::Call { method: name, argument_bytes: 1 }, "write by 0.2.0"),
            (Action::Inspect(Inspection::Patterns), "never"),
            (Action::Inspect(Inspection::Server), "never"),
            (Action::Inspect(Inspection::Clients), "never"),
            (Action::Inspect(Inspection::Configuration), "never"),
        ]
    };
    for (component, version) in [("acl", "0.2.0"), ("test/acl-v0-1", "0.1.0")] {
        let middleware = middleware()?;
        load(&middleware, component, Some(RULES))?;
        for (name, kind) in [("read.1", "read"), ("write.1", "write"), ("other", "")] {
            let actions = actions(name);
            let asked: Vec<_> = actions.iter().map(|(action, _)| (7, *action)).collect();
            let together = middleware.chain().access(&asked);
            for ((action, needed), together) in actions.iter().zip(&together) {
                let is_open = !kind.is_empty()
                    && needed
                        .strip_suffix(" by 0.2.0")
                        .map_or(*needed == kind, |needed| needed == kind && version == "0.2.0");
                assert_eq!(together.is_none(), is_open, "{version}, {action:?}: {together:?}");
                let alone = middleware.chain().access_again(&[(7, *action)]);
                assert_eq!(alone.first(), Some(together), "{version}, {action:?}");
            }
        }
    }
    Ok(())
}

/// A plugin for 0.1.0 cannot decide about the server's state, so no client sees it, whether the plugin
/// is available or not.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_contract_lacks_is_refused_whatever_the_policy() -> Result<()> {
    const OPEN: &str = r#"
        policy = "open"
        spares = 0
        [[settings.rules]]
        users = ["*"]
        subscribe = ["*"]
    "#;
    let middleware = middleware()?;
    let plugin = load(&middleware, "test/acl-v0-1", Some(OPEN))?;
    let server = Action::Inspect(Inspection::Server);
    let call = Action::Call { method: "m", argument_bytes: 0 };
    let check = |when: &str| {
        for refusal in middleware.chain().access_again(&[(7, server), (7, call)]) {
            let refused = refusal.map(|refusal| (refusal.code.to_string(), refusal.by));
            assert_eq!(refused, Some((NOPERM.to_owned(), None)), "{when}");
        }
    };
    check("available");
    let fail = |_: &mut Instance| -> Result<(), Fault> { panic!("a defect") };
    for _ in 0..plugin.config.limits.strikes_max {
        plugin.call_instance(7, Cause::Plugin, fail);
        check("rebuilt or missing");
        while plugin.state() != State::Running && !plugin.is_parked() {
            tokio::task::yield_now().await;
        }
    }
    assert!(plugin.is_parked());
    check("parked");
    Ok(())
}
