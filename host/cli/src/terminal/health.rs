//! `switchyard health`: checks the health of a server where there is no curl, as in a container's
//! health check.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use super::output::harmless;
use super::{http, seconds};

/// How much of a response is shown.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// The flags of `switchyard health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// The URL to request, as http://HOST:PORT/PATH.
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8080/healthz")]
    pub url: String,

    /// The timeout of the response, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    pub timeout: Duration,
}

/// Sends the request, and prints the response.
///
/// # Errors
///
/// There is no response in time, or its status is not a success.
pub fn run(args: &HealthArgs) -> anyhow::Result<()> {
    let answer = http::get(&args.url, None, args.timeout, ANSWER_BYTES_MAX)
        .with_context(|| format!("no answer from {}", args.url))?;
    let body = String::from_utf8_lossy(&answer.body);
    if !answer.is_good {
        bail!("HTTP {}: {}", answer.status, harmless(body.trim_end()));
    }
    for line in body.lines() {
        println!("{}", harmless(line));
    }
    Ok(())
}
