//! `switchyard health`: checks the health of a server where there is no curl, as in a container's
//! health check.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use super::http::Answer;
use super::output::harmless;
use super::{http, seconds};
use crate::tls::{self, TrustArgs};

/// How much of a response is shown.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// The flags of `switchyard health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// The URL to request, as http://HOST:PORT/PATH or https://… A server on this machine that
    /// speaks TLS is requested over TLS in either case.
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8080/healthz")]
    pub url: String,

    /// The timeout of the response, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    pub timeout: Duration,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub trust: TrustArgs,
}

/// Sends the request, and prints the response.
///
/// # Errors
///
/// There is no response in time, or its status is not a success.
pub fn run(args: &HealthArgs) -> anyhow::Result<()> {
    let answer = match get(args, &args.url) {
        Ok(answer) => answer,
        Err(problem) => over_tls(args, &problem)
            .ok_or(problem)
            .with_context(|| format!("no answer from {}", args.url))?,
    };
    let body = String::from_utf8_lossy(&answer.body);
    if !answer.is_good {
        bail!("HTTP {}: {}", answer.status, harmless(body.trim_end()));
    }
    for line in body.lines() {
        println!("{}", harmless(line));
    }
    Ok(())
}

fn get(args: &HealthArgs, url: &str) -> anyhow::Result<Answer> {
    let trust = args.trust.for_probe(url).map_err(anyhow::Error::msg)?;
    http::get(url, trust, None, args.timeout, ANSWER_BYTES_MAX)
}

/// The response over TLS of a server on this machine that accepts connections and does not speak
/// HTTP: the same health check then works with and without `http.tls`.
fn over_tls(args: &HealthArgs, problem: &anyhow::Error) -> Option<Answer> {
    let rest = args.url.strip_prefix("http://").filter(|_| tls::is_loopback(&args.url))?;
    let is_foreign = match problem.downcast_ref::<ureq::Error>()? {
        ureq::Error::Io(io) => io.kind() != ErrorKind::ConnectionRefused,
        ureq::Error::Protocol(_) | ureq::Error::Http(_) => true,
        _ => false,
    };
    is_foreign.then(|| get(args, &format!("https://{rest}")).ok()).flatten()
}
