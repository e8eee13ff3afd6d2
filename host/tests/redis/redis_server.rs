//! A real Redis as a child process, to hold Switchyard to.
//!
//! It is Debian's `redis-server`, or what `REDIS_SERVER` names. It keeps nothing,
//! listens on a free port of the loopback, and is ended by its process id.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::support::process::{Pipe, Process};

/// How often another port is tried.
const ATTEMPTS: usize = 5;

/// A running Redis. Dropping it kills it.
pub struct RedisServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Major and minor version.
    pub version: (u32, u32),
    _process: Process,
    _home: TempDir,
}

impl RedisServer {
    /// A Redis that says it is ready.
    pub async fn start() -> Result<RedisServer> {
        let mut problem = None;
        for _ in 0..ATTEMPTS {
            // Redis cannot report which port it bound, so it is given one that was free a moment
            // ago. Another process may bind it first; then try again.
            match RedisServer::start_on(free_port()?).await {
                Ok(server) => return Ok(server),
                Err(failure) => problem = Some(failure),
            }
        }
        match problem {
            Some(problem) => Err(problem),
            None => bail!("no attempt was made"),
        }
    }

    async fn start_on(port: u16) -> Result<RedisServer> {
        let program = std::env::var_os("REDIS_SERVER").unwrap_or("redis-server".into());
        let home = tempfile::tempdir().context("cannot make a home for Redis")?;
        let mut command = Command::new(program);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "no"]).current_dir(home.path());
        let process = Process::start("redis-server", &mut command)
            .context("there is no redis-server; run host/tests/clients/install.sh")?;
        process.line_with(Pipe::Stdout, "Ready to accept connections").await?;
        let line = process.line_with(Pipe::Stdout, "Redis version=").await?;
        let version = version(&line).with_context(|| format!("no version: {line}"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(RedisServer { address, version, _process: process, _home: home })
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn version(line: &str) -> Option<(u32, u32)> {
    let (_, version) = line.split_once("Redis version=")?;
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
