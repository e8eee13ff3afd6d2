//! How long a start takes with all plugins that ship, once they were compiled. `make measure` runs it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::tokens::public;
use crate::support::components;
use crate::support::server::Launch;

const STARTS: usize = 5;
const TIME_MAX: Duration = Duration::from_secs(1);

/// The settings that the page of a plugin shows first.
fn settings(plugin: &str) -> Result<String> {
    let page = format!("../plugins/{plugin}/README.md");
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page))?;
    let settings = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let settings = settings.context("it shows no settings")?;
    // The key that the page leaves out.
    let Some((before, rest)) = settings.split_once("-----BEGIN PUBLIC KEY-----") else {
        return Ok(settings.to_owned());
    };
    let after = rest.split_once("-----END PUBLIC KEY-----\n").context("the key does not end")?.1;
    Ok(format!("{before}{}{after}", public("rsa")?))
}

#[tokio::test]
async fn a_start_with_all_plugins_that_ship_takes_less_than_a_second() -> Result<()> {
    let plugins = components::directory()?;
    for slot in
        ["05-jwt-auth", "06-webhook-auth", "10-acl", "15-rate-limit", "20-redact", "25-validate"]
    {
        let name = slot.split_once('-').context("it has a number")?.1;
        std::fs::write(plugins.path().join(format!("{slot}.toml")), settings(name)?)?;
        let component = components::built(name)?;
        components::write_atomically(&components::path(plugins.path(), slot), &component)?;
    }
    let mut times = Vec::new();
    // The first one may compile them.
    for _ in 0..=STARTS {
        let began = Instant::now();
        let plugins = Some(plugins.path().to_owned());
        let server =
            Launch { plugins, ..Launch::with_config("shutdown.timeout_ms = 100") }.start().await?;
        times.push(began.elapsed());
        server.stop().await?;
    }
    println!("starts took {times:?}");
    let slowest = times.iter().skip(1).max().context("there are some")?;
    ensure!(*slowest < TIME_MAX, "a start took {slowest:?}");
    Ok(())
}
