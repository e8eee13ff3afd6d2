//! A real Redis or NATS as a child process, that can be killed and started again.
//!
//! They are Debian's `redis-server` and `nats-server`, or what `REDIS_SERVER` and
//! `NATS_SERVER` name. They keep nothing and listen on a free port of the loopback.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::client::RespClient;
use crate::support::process::{Pipe, Process};
use crate::support::{PATIENCE, within};
use crate::value::Value;

/// How often another port is tried.
const ATTEMPTS: usize = 5;

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Redis,
    Nats,
}

/// A backplane. Dropping it kills it.
pub struct Backplane {
    pub kind: Kind,
    pub address: SocketAddr,
    extra: Vec<String>,
    process: Option<Process>,
    home: TempDir,
}

impl Backplane {
    /// One that says it is ready.
    pub async fn start(kind: Kind) -> Result<Backplane> {
        Backplane::start_with(kind, &[]).await
    }

    /// The same with further arguments; `{port}` stands for the port.
    pub async fn start_with(kind: Kind, extra: &[&str]) -> Result<Backplane> {
        let mut problem = None;
        for _ in 0..ATTEMPTS {
            // They cannot report which port they bound, so they are given one that was free a
            // moment ago. Another process may bind it first; then try again.
            let mut backplane = Backplane {
                kind,
                address: (Ipv4Addr::LOCALHOST, free_port()?).into(),
                extra: extra.iter().map(ToString::to_string).collect(),
                process: None,
                home: tempfile::tempdir().context("cannot make a home for the backplane")?,
            };
            match backplane.come_back().await {
                Ok(()) => return Ok(backplane),
                Err(failure) => problem = Some(failure),
            }
        }
        Err(problem.context("no attempt was made")?)
    }

    /// The URL that nodes are configured with.
    pub fn url(&self) -> String {
        match self.kind {
            Kind::Redis => format!("redis://{}", self.address),
            Kind::Nats => format!("nats://{}", self.address),
        }
    }

    /// Kills it; no client is notified.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it on the port it had, with other arguments than before.
    pub async fn come_back_with(&mut self, extra: &[&str]) -> Result<()> {
        self.extra = extra.iter().map(ToString::to_string).collect();
        self.come_back().await
    }

    /// Where it stores what it stores.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Deletes what a killed one has stored.
    pub fn empty(&self) -> Result<()> {
        ensure!(self.process.is_none(), "it is running");
        for stored in fs::read_dir(self.home.path())? {
            fs::remove_dir_all(stored?.path())?;
        }
        Ok(())
    }

    /// Starts it on the port it had.
    pub async fn come_back(&mut self) -> Result<()> {
        let port = self.address.port().to_string();
        let home = self.home.path();
        let program = |variable: &str, default: &str| {
            Command::new(std::env::var_os(variable).unwrap_or(default.into()))
        };
        let (name, mut command, pipe, ready) = match self.kind {
            Kind::Redis => {
                let mut command = program("REDIS_SERVER", "redis-server");
                command.args(["--port", &port, "--bind", "127.0.0.1", "--save", ""]);
                command.args(["--appendonly", "no"]);
                ("redis-server", command, Pipe::Stdout, "Ready to accept connections")
            }
            Kind::Nats => {
                let mut command = program("NATS_SERVER", "nats-server");
                command.args(["--addr", "127.0.0.1", "--port", &port]);
                ("nats-server", command, Pipe::Stderr, "Server is ready")
            }
        };
        let extra = self.extra.iter().map(|word| if word == "{port}" { &port } else { word });
        command.args(extra).current_dir(home);
        let process = Process::start(name, &mut command)
            .with_context(|| format!("there is no {name}; run host/tests/clients/install.sh"))?;
        process.line_with(pipe, ready).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Has it stop where it is. When this returns, it has: a thread that runs is stopped a
    /// moment after the signal.
    pub async fn stand_still(&self) -> Result<()> {
        self.process.as_ref().context("it is not running")?.signal("STOP")?;
        let threads = format!("/proc/{}/task", self.pid()?);
        within(PATIENCE, "the backplane to stand still", async {
            loop {
                let mut stands_still = true;
                for thread in fs::read_dir(&threads)? {
                    let stat = fs::read_to_string(thread?.path().join("stat"))?;
                    // The state is behind the name, which may hold anything.
                    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
                    stands_still &= state == Some('T');
                }
                if stands_still {
                    return Ok(());
                }
                tokio::task::yield_now().await;
            }
        })
        .await?
    }

    /// Has it go on after that.
    pub fn go_on(&self) -> Result<()> {
        self.process.as_ref().context("it is not running")?.signal("CONT")
    }

    /// Its process.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("it is not running")?.id())
    }

    /// A program that publishes there directly.
    pub async fn publisher(&self) -> Result<Publisher> {
        Publisher::connect(self.kind, self.address).await
    }

    /// What a Redis says to a command.
    pub async fn ask(&self, words: &[&str]) -> Result<Value> {
        RespClient::connect(self.address).await?.call(words).await
    }
}

/// Speaks to a backplane as any program would.
pub enum Publisher {
    Redis(RespClient),
    Nats(BufReader<TcpStream>),
}

impl Publisher {
    async fn connect(kind: Kind, address: SocketAddr) -> Result<Publisher> {
        Ok(match kind {
            Kind::Redis => Publisher::Redis(RespClient::connect(address).await?),
            Kind::Nats => {
                let stream = within(PATIENCE, "NATS", TcpStream::connect(address)).await??;
                let mut stream = BufReader::new(stream);
                stream.get_mut().write_all(b"CONNECT {\"verbose\":false}\r\n").await?;
                Publisher::Nats(stream)
            }
        })
    }

    /// Publishes all of these; they are with the backplane when it is done.
    pub async fn publish(&mut self, publications: &[(&str, String)]) -> Result<()> {
        match self {
            Publisher::Redis(client) => {
                let mut bytes = Vec::new();
                for (channel, payload) in publications {
                    bytes.extend(crate::value::command(&["PUBLISH", channel, payload]));
                }
                client.send(&bytes).await?;
                for reply in client.next_many(publications.len()).await? {
                    ensure!(matches!(reply, Value::Integer(_)), "{reply}");
                }
            }
            Publisher::Nats(stream) => {
                let mut bytes = Vec::new();
                for (subject, payload) in publications {
                    let head = format!("PUB {subject} {}\r\n{payload}\r\n", payload.len());
                    bytes.extend(head.bytes());
                }
                bytes.extend(b"PING\r\n");
                stream.get_mut().write_all(&bytes).await?;
                within(PATIENCE, "a PONG", async {
                    loop {
                        let mut line = String::new();
                        ensure!(stream.read_line(&mut line).await? > 0, "NATS has gone");
                        match line.trim_end() {
                            "PONG" => return Ok(()),
                            "PING" => stream.get_mut().write_all(b"PONG\r\n").await?,
                            line if line.starts_with("-ERR") => bail!("{line}"),
                            _ => {}
                        }
                    }
                })
                .await??;
            }
        }
        Ok(())
    }
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
