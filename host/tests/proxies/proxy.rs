//! nginx or HAProxy as a child process, in the foreground.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::backplane::free_port;
use crate::support::process::Process;
use crate::support::{PATIENCE, within};

/// How often another port is tried.
const ATTEMPTS: usize = 5;

/// A proxy. Dropping it kills it.
pub struct Proxy {
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
    _home: TempDir,
}

impl Proxy {
    /// One that listens. `command` makes the command and writes its configuration: its home, and
    /// the port to listen on.
    pub async fn start(
        name: &'static str,
        command: impl Fn(&TempDir, u16) -> Result<Command>,
    ) -> Result<Proxy> {
        let mut problem = None;
        for _ in 0..ATTEMPTS {
            // It cannot report which port it bound, so it is given one that was free a moment ago.
            // Another process may bind it first; then try again.
            let port = free_port()?;
            let home = tempfile::tempdir().context("cannot make a home for the proxy")?;
            let mut process =
                Process::start(name, &mut command(&home, port)?).with_context(|| {
                    format!("there is no {name}; run host/tests/clients/install.sh")
                })?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            tokio::select! {
                connected = within(PATIENCE, "a proxy that listens", listens(address)) => {
                    connected?;
                    return Ok(Proxy { process, address, _home: home });
                }
                ended = process.exit() => problem = Some(format!("{name} ended: {ended:?}")),
            }
        }
        anyhow::bail!("{}", problem.unwrap_or_default())
    }
}

async fn listens(address: SocketAddr) {
    while TcpStream::connect(address).await.is_err() {
        tokio::task::yield_now().await;
    }
}
