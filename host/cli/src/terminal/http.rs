//! GET over HTTP, which is all that the terminal commands need of the admin API.

use std::io::Read;
use std::time::Duration;

use anyhow::ensure;
use ureq::Agent;
use ureq::tls::TlsConfig;

/// A response.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Whether it is a success.
    pub is_good: bool,
    /// The body.
    pub body: Vec<u8>,
}

/// Sends one request, with the configuration of TLS for `https://`. An error status is returned as a response.
///
/// # Errors
///
/// There is no response within `time`, or it has more than `bytes_max`.
pub fn get(
    url: &str,
    tls: TlsConfig,
    token: Option<&str>,
    time: Duration,
    bytes_max: u64,
) -> anyhow::Result<Answer> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .tls_config(tls)
        .timeout_global(Some(time))
        // The request is for this server only, and a proxy must not see the token.
        .proxy(None)
        .max_redirects(0)
        .build()
        .into();
    let mut request = agent.get(url);
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let response = request.call()?;
    let status = response.status();
    let mut body = Vec::new();
    response.into_body().into_reader().take(bytes_max + 1).read_to_end(&mut body)?;
    ensure!(body.len() as u64 <= bytes_max, "the answer has over {bytes_max} bytes");
    Ok(Answer { status: status.as_u16(), is_good: status.is_success(), body })
}
