//! All messages wait while state is handed over, so the handover has a budget of its own. A plugin
//! that cannot hand its state over can be replaced without it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::support::admin::Operator;
use crate::support::components;
use crate::support::server::Launch;

/// The longest that one message may wait: the budget, and an allowance for a busy machine. The
/// budget of `init`, which delayed messages before, is ten times as long.
const WAIT_MAX: Duration = Duration::from_millis(700);

fn probe(stamp: u32) -> Result<Vec<u8>> {
    components::stamped(components::built("test/probe")?, stamp)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_that_never_ends_delays_messages_briefly() -> Result<()> {
    let directory = components::directory()?;
    let settings = json!({"on_publish": ["stamp", "number"], "save": "loop"});
    components::install(directory.path(), "probe", &probe(0)?, &settings)?;
    let plugins = Some(directory.path().to_owned());
    let config = "plugins.init_budget_ms = 5000\nshutdown.timeout_ms = 100\n";
    let server = Launch { plugins, ..Launch::with_config(config) }.start().await?;
    let operator = Operator::of(&server).await?;
    let next = directory.path().join("next");
    std::fs::write(&next, probe(1)?)?;
    let next = next.to_str().context("a path in UTF-8")?.to_owned();

    let mut client = server.client().await?;
    ensure!(client.call(json!(["SUBSCRIBE", "a"])).await? == json!(["OK", 1]));
    let (mut longest, mut attempts) = (Duration::ZERO, 0);
    while attempts < 3 {
        let (words, swapping) = (next.clone(), Operator::of(&server).await?);
        let swapping =
            tokio::task::spawn_blocking(move || swapping.run(&["plugin", "swap", "probe", &words]));
        while !swapping.is_finished() {
            let began = Instant::now();
            ensure!(client.call(json!(["PUBLISH", "a", "x"])).await? == json!(["OK", 1]));
            longest = longest.max(began.elapsed());
            client.next_json().await?;
        }
        let refused = swapping.await??;
        ensure!(refused.code == Some(1), "{refused:?}");
        for word in ["save", "handover_budget_ms is 50", "--fresh"] {
            ensure!(refused.stderr.contains(word), "{word:?} is not said: {refused:?}");
        }
        attempts += 1;
    }
    println!("the longest wait while {attempts} swaps were refused: {longest:?}");
    ensure!(longest < WAIT_MAX, "a message waited {longest:?}");

    let swapped = operator.json(&["plugin", "swap", "probe", &next, "--fresh"])?;
    ensure!(swapped["deed"] == "swapped", "{swapped}");
    ensure!(client.call(json!(["PUBLISH", "a", "x"])).await? == json!(["OK", 1]));
    let came = client.next_json().await?;
    ensure!(came == json!(["message", "a", "x@00000001#1"]), "{came} came");
    operator.say(&["plugin", "reload", "probe", "--fresh"])?;
    server.stop().await
}
